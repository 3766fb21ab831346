// Norms on the CPU: a row at a time, so that the second pass over it finds it in L1.
#include "llmc/ops/norm.h"
#include <cmath>
#include <cstring>
#include "llmc/device/profile.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/rms_norm.h"

static void layer_norm_row(floatX* out, float* rstd, const floatX* x, int C, float eps) {
    float sum = 0, squares = 0;
#pragma omp simd reduction(+ : sum)
    for (int c = 0; c < C; c++) sum += to_float(x[c]);
    float mean = sum / C;
#pragma omp simd reduction(+ : squares)
    for (int c = 0; c < C; c++) squares += (to_float(x[c]) - mean) * (to_float(x[c]) - mean);
    float r = 1 / std::sqrt(squares / C + eps);
#pragma omp simd
    for (int c = 0; c < C; c++) out[c] = to_floatX((to_float(x[c]) - mean) * r);
    *rstd = r;
}

void norm_forward(floatX* out, float* rstd, const floatX* x, int64_t N, int C, Norm kind, float eps, Stream) {
    Range range("norm_forward");
    require_rows("norm_forward", N, C);
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        if (kind == Norm::rms_norm) rms_norm_row(out + n * C, rstd + n, x + n * C, C, eps);
        if (kind == Norm::layer_norm) layer_norm_row(out + n * C, rstd + n, x + n * C, C, eps);
        if (kind == Norm::none) std::memmove(out + n * C, x + n * C, C * sizeof(floatX));
    }
}

static void norm_backward_row(floatX* dx, const floatX* dout, const floatX* y, float rstd, int C, Norm kind) {
    float g_sum = 0, gy_sum = 0;
#pragma omp simd reduction(+ : g_sum, gy_sum)
    for (int c = 0; c < C; c++) {
        g_sum += to_float(dout[c]);
        gy_sum += to_float(dout[c]) * to_float(y[c]);
    }
    float g_mean = kind == Norm::layer_norm ? g_sum / C : 0;
    float gy_mean = gy_sum / C;
#pragma omp simd
    for (int c = 0; c < C; c++) dx[c] = to_floatX(rstd * (to_float(dout[c]) - g_mean - to_float(y[c]) * gy_mean));
}

void norm_backward(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, int64_t N, int C, Norm kind, Stream) {
    Range range("norm_backward");
    require_rows("norm_backward", N, C);
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        if (kind == Norm::none) std::memmove(dx + n * C, dout + n * C, C * sizeof(floatX));
        else norm_backward_row(dx + n * C, dout + n * C, out + n * C, rstd[n], C, kind);
    }
}
