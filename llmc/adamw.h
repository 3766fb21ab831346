// AdamW (Loshchilov & Hutter 2019) over many tensors in one call.
#pragma once
#include "llmc/types.h"

/// One tensor of n elements and its hyper-parameters. All pointers are (n).
struct AdamWTensor {
    float* master;       ///< weights, fp32, updated
    floatX* weight;      ///< what the model reads: master rounded to floatX; null where the model reads master itself
    const float* grad;
    float* m;            ///< first moment, 0 at start
    float* v;            ///< second moment, 0 at start
    int64_t n;
    float lr, beta1, beta2, eps, weight_decay;
};

/// m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
/// w = w (1 - lr wd) - lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps)
///
/// tensors (count)   on the host; they must not overlap
/// step              1 at the first update
void adamw_update(const AdamWTensor* tensors, int count, int64_t step, Stream stream);
