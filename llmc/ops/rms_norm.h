// RMSNorm of one row on the CPU: what norm, residual and rotary share.
#pragma once
#include <cmath>
#include "llmc/device/types.h"

/// rstd = 1 / sqrt(mean_c x[c]^2 + eps)
inline float row_rstd(const floatX* x, int C, float eps) {
    float squares = 0;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += to_float(x[c]) * to_float(x[c]);
    return 1 / std::sqrt(squares / C + eps);
}

/// out = x rstd
inline void rms_norm_row(floatX* out, float* rstd, const floatX* x, int C, float eps) {
    const float r = row_rstd(x, C, eps);
#pragma omp simd
    for (int c = 0; c < C; c++) out[c] = to_floatX(to_float(x[c]) * r);
    *rstd = r;
}

/// mean_c(dout out): what the gradient, rstd * (dout - out * mean), needs of the whole row
inline float mean_product(const floatX* dout, const floatX* out, int C) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += to_float(dout[c]) * to_float(out[c]);
    return sum / C;
}
