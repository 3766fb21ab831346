// The residual stream on the CPU: a row at a time, read from memory once.
#include "llmc/ops/residual.h"
#include <cmath>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/rms_norm.h"

void residual_add(floatX* x, const floatX* branch, int64_t n, Stream) {
    Range range("residual_add");
    require_elements("residual_add", n);
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) x[i] = to_floatX(to_float(x[i]) + to_float(branch[i]));
}

void add_norm_forward(floatX* h, float* rstd, floatX* x, const floatX* branch, int64_t N, int C, float scale, float eps, Stream) {
    Range range("add_norm_forward");
    require_rows("add_norm_forward", N, C);
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        floatX* row = x + n * C;
        if (branch) {
            const floatX* add = branch + n * C;
#pragma omp simd
            for (int c = 0; c < C; c++) row[c] = to_floatX(to_float(row[c]) + scale * to_float(add[c]));
        }
        rms_norm_row(h + n * C, rstd + n, row, C, eps);
    }
}

void add_norm_backward(floatX* dx, floatX* dbranch, const floatX* dh, const floatX* h, const float* rstd, int64_t N, int C,
                       float scale, Stream) {
    Range range("add_norm_backward");
    require_rows("add_norm_backward", N, C);
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        floatX* dx_row = dx + n * C;
        const floatX *dh_row = dh + n * C, *h_row = h + n * C;
        float mean = mean_product(dh_row, h_row, C), r = rstd[n];
#pragma omp simd
        for (int c = 0; c < C; c++) dx_row[c] = to_floatX(to_float(dx_row[c]) + r * (to_float(dh_row[c]) - to_float(h_row[c]) * mean));
        if (dbranch) {
            floatX* db_row = dbranch + n * C;
#pragma omp simd
            for (int c = 0; c < C; c++) db_row[c] = to_floatX(scale * to_float(dx_row[c]));
        }
    }
}

void mix_norm_forward(floatX* h, float* rstd, floatX* prev, floatX* x, const floatX* branch, const floatX* x0, const float* resid,
                      const float* skip, int64_t N, int C, float eps, Stream) {
    Range range("mix_norm_forward");
    require_rows("mix_norm_forward", N, C);
    const float r = *resid, s = *skip;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        floatX *x_row = x + n * C, *prev_row = prev + n * C;
        const floatX* x0_row = x0 + n * C;
        if (branch) {
            const floatX* add = branch + n * C;
#pragma omp simd
            for (int c = 0; c < C; c++) x_row[c] = to_floatX(to_float(x_row[c]) + to_float(add[c]));
        }
#pragma omp simd
        for (int c = 0; c < C; c++) {
            float before = to_float(x_row[c]);
            prev_row[c] = to_floatX(before);
            x_row[c] = to_floatX(r * before + s * to_float(x0_row[c]));
        }
        rms_norm_row(h + n * C, rstd + n, x_row, C, eps);
    }
}

void mix_norm_backward(floatX* dx, floatX* dx0, float* dresid, float* dskip, float* scratch, const floatX* dh, const floatX* h,
                       const float* rstd, const floatX* prev, const floatX* x0, const float* resid, const float* skip, int64_t N,
                       int C, Stream) {
    Range range("mix_norm_backward");
    require_rows("mix_norm_backward", N, C);
    const float r = *resid, s = *skip;
    float *row_dresid = scratch, *row_dskip = scratch + N;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        floatX *dx_row = dx + n * C, *dx0_row = dx0 + n * C;
        const floatX *dh_row = dh + n * C, *h_row = h + n * C, *prev_row = prev + n * C, *x0_row = x0 + n * C;
        float mean = mean_product(dh_row, h_row, C), rs = rstd[n];
        float resid_sum = 0, skip_sum = 0;
#pragma omp simd reduction(+ : resid_sum, skip_sum)
        for (int c = 0; c < C; c++) {
            float g = to_float(dx_row[c]) + rs * (to_float(dh_row[c]) - to_float(h_row[c]) * mean);
            resid_sum += g * to_float(prev_row[c]);
            skip_sum += g * to_float(x0_row[c]);
            dx0_row[c] = to_floatX(to_float(dx0_row[c]) + s * g);
            dx_row[c] = to_floatX(r * g);
        }
        row_dresid[n] = resid_sum;
        row_dskip[n] = skip_sum;
    }
    double resid_total = 0, skip_total = 0;
    for (int64_t n = 0; n < N; n++) {
        resid_total += row_dresid[n];
        skip_total += row_dskip[n];
    }
    *dresid += static_cast<float>(resid_total);
    *dskip += static_cast<float>(skip_total);
}
