// The residual stream: a branch's output is added to it, and the next branch reads its RMSNorm. One pass for both.
#pragma once
#include "llmc/device/types.h"

/// x      (n)  +=  branch (n). Throws std::invalid_argument when n is not a positive multiple of 8.
void residual_add(floatX* x, const floatX* branch, int64_t n, Stream stream);

/// x += scale * branch, then h = rms_norm(x).
///
/// h      (N, C)  =
/// rstd   (N)     =   fp32, kept for the backward pass
/// x      (N, C)  +=  the residual stream
/// branch (N, C)      the output of the attention or the MLP, or null: x stays
/// Throws std::invalid_argument when N < 1 or C is not a positive multiple of 8.
void add_norm_forward(floatX* h, float* rstd, floatX* x, const floatX* branch, int64_t N, int C, float scale, float eps,
                      Stream stream);

/// dx += the gradient of rms_norm at dh, then dbranch = scale * dx.
///
/// dx      (N, C)  +=  gradient of the residual stream: after the op on entry, before it on return
/// dbranch (N, C)  =   or null: not wanted (scale 1: dx itself is the branch's gradient)
/// dh      (N, C)
/// h       (N, C)      the forward pass's output
/// rstd    (N)         fp32
void add_norm_backward(floatX* dx, floatX* dbranch, const floatX* dh, const floatX* h, const float* rstd, int64_t N, int C,
                       float scale, Stream stream);

/// x += branch; prev = x; x = resid * prev + skip * x0; h = rms_norm(x): how a layer of the nanochat recipe begins.
///
/// h      (N, C)  =
/// rstd   (N)     =   fp32
/// prev   (N, C)  =   kept for the backward pass
/// x      (N, C)      in and out
/// branch (N, C)      or null
/// x0     (N, C)      the normed embedding
/// resid, skip (1)    fp32: this layer's entry of resid_lambdas and of x0_lambdas
void mix_norm_forward(floatX* h, float* rstd, floatX* prev, floatX* x, const floatX* branch, const floatX* x0, const float* resid,
                      const float* skip, int64_t N, int C, float eps, Stream stream);

/// dx += the gradient of rms_norm at dh; then dresid += sum(dx prev), dskip += sum(dx x0), dx0 += skip * dx, dx = resid * dx.
///
/// dx      (N, C)     in and out: gradient of x on entry, of prev (and so of the branch) on return
/// dx0     (N, C)  +=
/// dresid, dskip (1)  +=  fp32
/// scratch (2, N)     fp32
/// The sums over N and C are made in an order that does not depend on the number of threads.
void mix_norm_backward(floatX* dx, floatX* dx0, float* dresid, float* dskip, float* scratch, const floatX* dh, const floatX* h,
                       const float* rstd, const floatX* prev, const floatX* x0, const float* resid, const float* skip, int64_t N,
                       int C, Stream stream);
