// Causal attention with sliding windows and grouped heads, without ever holding a T x T matrix of all heads
// (FlashAttention, Dao et al. 2022 and 2023).
#pragma once
#include <cstddef>
#include "llmc/device/types.h"

/// For head h, with g = h / (H / HK):
///     y[b,t,h] = sum_s p[t,s] v[b,s,g],  p = softmax over s of q[b,t,h] . k[b,s,g] / sqrt(D),  t - window <= s <= t
///
/// y       (B, T, H D)              =
/// lse     (B, H, T)                =   fp32: log of the softmax's denominator, kept for the backward pass
/// scratch (attention_scratch bytes)
/// qkv     (B, T, (H + 2 HK) D)         queries, then keys, then values
/// window                               a token sees itself and `window` tokens before it; >= T - 1 means all
/// Throws std::invalid_argument when D is not a multiple of 8, HK does not divide H, or window < 0.
void attention_forward(floatX* y, float* lse, void* scratch, const floatX* qkv, int B, int T, int H, int HK, int D, int window,
                       Stream stream);

/// dqkv    (B, T, (H + 2 HK) D)     =
/// scratch (attention_scratch bytes)
/// dy, y   (B, T, H D)
/// lse     (B, H, T)                    fp32
void attention_backward(floatX* dqkv, void* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv, int B,
                        int T, int H, int HK, int D, int window, Stream stream);

/// Bytes of scratch that both passes need.
size_t attention_scratch(int B, int T, int H, int HK, int D);

/// Compute capability 9.x has kernels of its own for heads of 64 and 128 in bf16, which are the default. From now on they are used, or,
/// unless `wanted`, those for every GPU: for tests and benchmarks of both. Returns whether Hopper's are used.
bool attention_use_hopper(bool wanted);

/// One sequence grows by T tokens: their keys and values go to the cache, and they attend to all of it.
///
/// y      (T, H D)            =
/// kcache, vcache (capacity, HK D)   rows past..past + T - 1 are written, rows before are read
/// qkv    (T, (H + 2 HK) D)
/// Throws std::invalid_argument when past + T > capacity.
void attention_cached(floatX* y, floatX* kcache, floatX* vcache, const floatX* qkv, int T, int capacity, int H, int HK, int D,
                      int past, int window, Stream stream);
