// Value embeddings: a second embedding of the tokens, added to the values of a layer through a gate per head.
#pragma once
#include "llmc/device/types.h"

/// The gate reads the first VE_GATE_CHANNELS channels of the block's input.
inline constexpr int VE_GATE_CHANNELS = 32;

/// gate[n,g] = 2 sigmoid(h[n,:32] . w[g]),   v[n,g] += gate[n,g] * ve[idx[n],g]
///
/// qkv  (N, (H + 2 HK) D)   the values, its last HK D channels, are added to
/// gate (N, HK)        =    fp32, kept for the backward pass
/// h    (N, C)              C >= 32
/// idx  (N)
/// ve   (V, HK D)
/// w    (HK, 32)
/// Throws std::invalid_argument when C < 32 or D is not a multiple of 8.
void value_embedding_forward(floatX* qkv, float* gate, const floatX* h, const int* idx, const floatX* ve, const floatX* w,
                             int64_t N, int C, int H, int HK, int D, Stream stream);

/// dh      (N, C)     +=  its first 32 channels
/// dve     (V, HK D)  +=  fp32, summed over equal tokens in the order of `order`; null: not wanted
/// dw      (HK, 32)   +=  fp32, summed in an order that does not depend on the number of threads
/// scratch (N, HK)        fp32: gradient of the sigmoid's argument
/// dqkv    (N, (H + 2 HK) D)   the gradient of the values passes through unchanged
void value_embedding_backward(floatX* dh, float* dve, float* dw, float* scratch, const floatX* dqkv, const float* gate,
                              const floatX* h, const int* idx, const int* order, const floatX* ve, const floatX* w, int64_t N,
                              int C, int H, int HK, int D, Stream stream);
