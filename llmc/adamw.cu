// AdamW on CUDA: one launch for all tensors. A block takes a piece of one of them, each thread 8 elements of it; bound by memory,
// 30 bytes an element.
#include "llmc/adamw.h"
#include <algorithm>
#include <cmath>
#include "llmc/cuda_common.h"

static constexpr int THREADS = 256, WIDTH = 8, PIECE = THREADS * WIDTH;

/// A tensor with what does not change within a step.
struct AdamWArgument {
    float* master;
    floatX* weight;
    const float* grad;
    float *m, *v;
    int64_t n;
    int64_t first_block;
    float beta1, beta2, eps, decay, m_scale, v_scale;
};

/// As many as fit in the 4 KB of a kernel's arguments.
struct AdamWArguments {
    AdamWArgument tensor[40];
    int count;
};
static constexpr int MAX_TENSORS = sizeof(AdamWArguments::tensor) / sizeof(AdamWArgument);

template <int N>
__device__ inline void update(const AdamWArgument& t, int64_t i) {
    float g[N], m[N], v[N], w[N];
    load(g, t.grad + i);
    load(m, t.m + i);
    load(v, t.v + i);
    load(w, t.master + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        m[k] = t.beta1 * m[k] + (1 - t.beta1) * g[k];
        v[k] = t.beta2 * v[k] + (1 - t.beta2) * g[k] * g[k];
        w[k] = t.decay * w[k] - t.m_scale * m[k] / (sqrtf(t.v_scale * v[k]) + t.eps);
    }
    store(t.m + i, m);
    store(t.v + i, v);
    store(t.master + i, w);
    if (t.weight) store(t.weight + i, w);
}

__global__ void __launch_bounds__(THREADS) adamw_kernel(const __grid_constant__ AdamWArguments tensors) {
    const int64_t block = blockIdx.x;
    int which = 0;
    while (which + 1 < tensors.count && block >= tensors.tensor[which + 1].first_block) which++;
    const AdamWArgument& t = tensors.tensor[which];
    const int64_t i = (block - t.first_block) * PIECE + int64_t{threadIdx.x} * WIDTH;
    if (i + WIDTH <= t.n) update<WIDTH>(t, i);
    else
        for (int64_t j = i; j < t.n; j++) update<1>(t, j);
}

/// 1 - beta^step, in double: beta is near 1.
static double correction(float beta, int64_t step) { return 1 - std::pow(static_cast<double>(beta), static_cast<double>(step)); }

void adamw_update(const AdamWTensor* tensors, int count, int64_t step, Stream stream) {
    require(step >= 1, "adamw_update: step must be at least 1, not ", step);
    for (int begin = 0; begin < count; begin += MAX_TENSORS) {
        AdamWArguments args{};
        args.count = std::min(MAX_TENSORS, count - begin);
        int64_t blocks = 0;
        for (int i = 0; i < args.count; i++) {
            const AdamWTensor& t = tensors[begin + i];
            require(t.n >= 1, "adamw_update: n of tensor ", begin + i, " must be at least 1, not ", t.n);
            require_aligned("adamw_update", t.master, t.weight, t.grad, t.m, t.v);
            args.tensor[i] = {t.master, t.weight, t.grad, t.m, t.v, t.n, blocks, t.beta1, t.beta2, t.eps, 1 - t.lr * t.weight_decay,
                              static_cast<float>(t.lr / correction(t.beta1, step)), static_cast<float>(1 / correction(t.beta2, step))};
            blocks += ceil_div(t.n, PIECE);
        }
        if (args.count > 0) launch("adamw_update", adamw_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(THREADS)}, stream, args);
    }
}
