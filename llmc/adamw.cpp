// AdamW on the CPU: one pass over four or five arrays, bound by memory.
#include "llmc/adamw.h"
#include <cmath>
#include "llmc/error.h"

template <bool HAS_WEIGHT>
static void update(const AdamWTensor& t, int64_t step) {
    const float b1 = t.beta1, b2 = t.beta2;
    const float decay = 1 - t.lr * t.weight_decay;
    const float m_scale = static_cast<float>(t.lr / (1 - std::pow(static_cast<double>(b1), static_cast<double>(step))));
    const float v_scale = static_cast<float>(1 / (1 - std::pow(static_cast<double>(b2), static_cast<double>(step))));
#pragma omp parallel for simd
    for (int64_t i = 0; i < t.n; i++) {
        float g = t.grad[i];
        float m = t.m[i] = b1 * t.m[i] + (1 - b1) * g;
        float v = t.v[i] = b2 * t.v[i] + (1 - b2) * g * g;
        float w = t.master[i] = decay * t.master[i] - m_scale * m / (std::sqrt(v_scale * v) + t.eps);
        if constexpr (HAS_WEIGHT) t.weight[i] = to_floatX(w);
    }
}

void adamw_update(const AdamWTensor* tensors, int count, int64_t step, Stream) {
    require(step >= 1, "adamw_update: step must be at least 1, not ", step);
    for (int i = 0; i < count; i++) {
        require(tensors[i].n >= 1, "adamw_update: n of tensor ", i, " must be at least 1, not ", tensors[i].n);
        if (tensors[i].weight) update<true>(tensors[i], step);
        else update<false>(tensors[i], step);
    }
}
