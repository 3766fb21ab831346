// Norms over channels. None has parameters, so their gradients need only their output and rstd.
#pragma once
#include "llmc/device/types.h"

enum class Norm { none, rms_norm, layer_norm };

/// rms_norm (Zhang & Sennrich 2019):  out[n,c] = x[n,c] * rstd[n],              rstd[n] = 1 / sqrt(mean_c x[n,c]^2 + eps)
/// layer_norm (Ba et al. 2016):       out[n,c] = (x[n,c] - mean[n]) * rstd[n],  rstd[n] = 1 / sqrt(var_c x[n,c] + eps)
/// none:                              out = x; rstd is not written
///
/// out  (N, C)  =   may be x itself
/// rstd (N)     =   fp32, kept for the backward pass
/// x    (N, C)
/// Throws std::invalid_argument when N < 1 or C is not a positive multiple of 8.
void norm_forward(floatX* out, float* rstd, const floatX* x, int64_t N, int C, Norm kind, float eps, Stream stream);

/// With g = dout and y = out:
/// rms_norm:    dx = rstd * (g - y * mean_c(g y))
/// layer_norm:  dx = rstd * (g - mean_c(g) - y * mean_c(g y))
///
/// dx   (N, C)  =   may be dout itself
/// dout (N, C)
/// out  (N, C)      the forward pass's output
/// rstd (N)         fp32
void norm_backward(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, int64_t N, int C, Norm kind, Stream stream);
