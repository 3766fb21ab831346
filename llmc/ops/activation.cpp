// Activations on the CPU: one pass, bound by memory (relu2) or by the exponentials (gelu).
#include "llmc/ops/activation.h"
#include <algorithm>
#include "llmc/device/profile.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/vector_math.h"

static constexpr float SQRT_HALF = 0.70710678f;             // 1 / sqrt(2)
static constexpr float NORMAL_AT_0 = 0.39894228f;           // 1 / sqrt(2 pi)

void activation_forward(floatX* out, const floatX* x, int64_t n, Activation kind, Stream) {
    Range range("activation_forward");
    require_elements("activation_forward", n);
    if (kind == Activation::gelu) {
#pragma omp parallel for simd
        for (int64_t i = 0; i < n; i++) {
            float v = to_float(x[i]);
            out[i] = to_floatX(0.5f * v * (1 + erff(v * SQRT_HALF)));
        }
    } else {
#pragma omp parallel for simd
        for (int64_t i = 0; i < n; i++) {
            float v = std::max(to_float(x[i]), 0.0f);
            out[i] = to_floatX(v * v);
        }
    }
}

void activation_backward(floatX* dx, const floatX* dout, const floatX* x, int64_t n, Activation kind, Stream) {
    Range range("activation_backward");
    require_elements("activation_backward", n);
    if (kind == Activation::gelu) {
#pragma omp parallel for simd
        for (int64_t i = 0; i < n; i++) {
            float v = to_float(x[i]);
            float below = 0.5f * (1 + erff(v * SQRT_HALF));                 // the normal distribution's mass below v
            float density = NORMAL_AT_0 * expf(-0.5f * v * v);
            dx[i] = to_floatX(to_float(dout[i]) * (below + v * density));
        }
    } else {
#pragma omp parallel for simd
        for (int64_t i = 0; i < n; i++) dx[i] = to_floatX(to_float(dout[i]) * 2 * std::max(to_float(x[i]), 0.0f));
    }
}
