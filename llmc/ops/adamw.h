// AdamW (Loshchilov & Hutter 2019) over many tensors in one call.
#pragma once
#include <cmath>
#include "llmc/device/types.h"
#include "llmc/io/error.h"

/// One tensor of n elements. All pointers are (n).
struct AdamWTensor {
    float* master;       ///< weights, fp32, updated
    floatX* weight;      ///< what the model reads: master rounded to floatX; null where the model reads master itself
    const float* grad;
    float* m;            ///< first moment, 0 at start
    float* v;            ///< second moment, 0 at start
    int64_t n;
};

/// The hyperparameters of one step for a tensor. The update reads them from device memory, so that a captured step can be replayed
/// with other values.
struct AdamWHyper {
    float beta1, beta2, eps;
    float decay;         ///< 1 - lr wd
    float m_scale;       ///< lr / (1 - beta1^step)
    float v_scale;       ///< 1 / (1 - beta2^step)
};

/// step: 1 at the first update. In double where beta is near 1.
inline AdamWHyper adamw_hyper(float lr, float beta1, float beta2, float eps, float weight_decay, int64_t step) {
    require(step >= 1, "adamw_hyper: step must be at least 1, not ", step);
    auto correction = [step](double beta) { return 1 - std::pow(beta, static_cast<double>(step)); };
    return {beta1, beta2, eps, 1 - lr * weight_decay, static_cast<float>(lr / correction(beta1)), static_cast<float>(1 / correction(beta2))};
}

/// m = b1 m + (1 - b1) g,  v = b2 v + (1 - b2) g^2,
/// w = w (1 - lr wd) - lr (m / (1 - b1^step)) / (sqrt(v / (1 - b2^step)) + eps)
///
/// tensors (count)   on the host; they must not overlap
/// hypers  (count)   on the device, one a tensor
void adamw_update(const AdamWTensor* tensors, const AdamWHyper* hypers, int count, Stream stream);
