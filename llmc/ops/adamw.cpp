// AdamW on the CPU: one pass over four or five arrays, bound by memory.
#include "llmc/ops/adamw.h"
#include <cmath>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"

template <bool HAS_WEIGHT>
static void update(const AdamWTensor& t, const AdamWHyper& hyper) {
    const auto [b1, b2, eps, decay, m_scale, v_scale] = hyper;
#pragma omp parallel for simd
    for (int64_t i = 0; i < t.n; i++) {
        float g = t.grad[i];
        float m = t.m[i] = b1 * t.m[i] + (1 - b1) * g;
        float v = t.v[i] = b2 * t.v[i] + (1 - b2) * g * g;
        float w = t.master[i] = decay * t.master[i] - m_scale * m / (std::sqrt(v_scale * v) + eps);
        if constexpr (HAS_WEIGHT) t.weight[i] = to_floatX(w);
    }
}

void adamw_update(const AdamWTensor* tensors, const AdamWHyper* hypers, int count, Stream) {
    Range range("adamw_update");
    for (int i = 0; i < count; i++) {
        require(tensors[i].n >= 1, "adamw_update: n of tensor ", i, " must be at least 1, not ", tensors[i].n);
        if (tensors[i].weight) update<true>(tensors[i], hypers[i]);
        else update<false>(tensors[i], hypers[i]);
    }
}
