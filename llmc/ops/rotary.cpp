// Rotary positions and QK norm on the CPU: in place, a token at a time.
#include "llmc/ops/rotary.h"
#include <cmath>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/rms_norm.h"

// Rotates one head and divides it by its root mean square. A rotation does not change that, so it is computed before. Returns rstd.
static float forward_head(floatX* head, const float* table, int D, bool qk_norm, float eps) {
    const int half = D / 2;
    floatX *a = head, *b = head + half;
    const float *c = table, *s = table + half;
    const float rstd = qk_norm ? row_rstd(head, D, eps) : 1;
#pragma omp simd
    for (int i = 0; i < half; i++) {
        float ai = to_float(a[i]), bi = to_float(b[i]);
        a[i] = to_floatX((ai * c[i] + bi * s[i]) * rstd);
        b[i] = to_floatX((bi * c[i] - ai * s[i]) * rstd);
    }
    return rstd;
}

void rotary_forward(floatX* qkv, float* rstd, const float* table, int B, int T, int H, int HK, int D, int first, bool qk_norm,
                    float eps, Stream) {
    Range range("rotary_forward");
    require_heads("rotary_forward", B, T, H, HK, D);
    require(first >= 0, "rotary_forward: first must not be negative: ", first);
    const int64_t N = static_cast<int64_t>(B) * T, width = static_cast<int64_t>(H + 2 * HK) * D;
    const int heads = H + HK;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        const float* row = table + (first + n % T) * D;
        for (int h = 0; h < heads; h++) {
            float r = forward_head(qkv + n * width + h * D, row, D, qk_norm, eps);
            if (qk_norm) rstd[n * heads + h] = r;
        }
    }
}

// The gradient of the norm, g = rstd * (d - y * mean(d y)), then the inverse rotation.
static void backward_head(floatX* dhead, const floatX* y, float rstd, const float* table, int D, bool qk_norm) {
    const int half = D / 2;
    floatX *da = dhead, *db = dhead + half;
    const float *c = table, *s = table + half;
    if (!qk_norm) {
#pragma omp simd
        for (int i = 0; i < half; i++) {
            float a = to_float(da[i]), b = to_float(db[i]);
            da[i] = to_floatX(a * c[i] - b * s[i]);
            db[i] = to_floatX(b * c[i] + a * s[i]);
        }
        return;
    }
    const float mean = mean_product(dhead, y, D);
#pragma omp simd
    for (int i = 0; i < half; i++) {
        float a = rstd * (to_float(da[i]) - to_float(y[i]) * mean), b = rstd * (to_float(db[i]) - to_float(y[half + i]) * mean);
        da[i] = to_floatX(a * c[i] - b * s[i]);
        db[i] = to_floatX(b * c[i] + a * s[i]);
    }
}

void rotary_backward(floatX* dqkv, const floatX* qkv, const float* rstd, const float* table, int B, int T, int H, int HK, int D,
                     bool qk_norm, Stream) {
    Range range("rotary_backward");
    require_heads("rotary_backward", B, T, H, HK, D);
    const int64_t N = static_cast<int64_t>(B) * T, width = static_cast<int64_t>(H + 2 * HK) * D;
    const int heads = H + HK;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++)
        for (int h = 0; h < heads; h++) {
            int64_t at = n * width + h * D;
            backward_head(dqkv + at, qkv + at, qk_norm ? rstd[n * heads + h] : 1, table + n % T * D, D, qk_norm);
        }
}
