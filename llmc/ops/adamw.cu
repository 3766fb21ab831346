// AdamW on CUDA: one launch for all tensors. A block takes a piece of one of them, each thread 8 elements of it; bound by memory,
// 30 bytes an element.
#include "llmc/ops/adamw.h"
#include <algorithm>
#include "llmc/device/cuda_common.h"

static constexpr int THREADS = 256, WIDTH = 8, PIECE = THREADS * WIDTH;

/// A tensor and the first of its blocks.
struct AdamWArgument {
    AdamWTensor tensor;
    int64_t first_block;
};

/// As many as fit in the 32764 bytes of a kernel's arguments: enough for any model of up to some 500 value embeddings.
struct AdamWArguments {
    AdamWArgument tensor[584];
    int count;
};
static_assert(sizeof(AdamWArguments) + sizeof(void*) <= 32764);
static constexpr int MAX_TENSORS = sizeof(AdamWArguments::tensor) / sizeof(AdamWArgument);

template <int N>
__device__ inline void update(const AdamWTensor& t, const AdamWHyper& hyper, int64_t i) {
    float g[N], m[N], v[N], w[N];
    load(g, t.grad + i);
    load(m, t.m + i);
    load(v, t.v + i);
    load(w, t.master + i);
#pragma unroll
    for (int k = 0; k < N; k++) {
        m[k] = hyper.beta1 * m[k] + (1 - hyper.beta1) * g[k];
        v[k] = hyper.beta2 * v[k] + (1 - hyper.beta2) * g[k] * g[k];
        w[k] = hyper.decay * w[k] - hyper.m_scale * m[k] / (sqrtf(hyper.v_scale * v[k]) + hyper.eps);
    }
    store(t.m + i, m);
    store(t.v + i, v);
    store(t.master + i, w);
    if (t.weight) store(t.weight + i, w);
}

__global__ void __launch_bounds__(THREADS) adamw_kernel(const __grid_constant__ AdamWArguments tensors, const AdamWHyper* hypers) {
    const int64_t block = blockIdx.x;
    int which = 0;
    for (int end = tensors.count; end - which > 1;) {   // the last whose first block is not after this one
        const int middle = (which + end) / 2;
        (block >= tensors.tensor[middle].first_block ? which : end) = middle;
    }
    const AdamWTensor& t = tensors.tensor[which].tensor;
    const AdamWHyper hyper = hypers[which];
    const int64_t i = (block - tensors.tensor[which].first_block) * PIECE + int64_t{threadIdx.x} * WIDTH;
    if (i + WIDTH <= t.n) update<WIDTH>(t, hyper, i);
    else
        for (int64_t j = i; j < t.n; j++) update<1>(t, hyper, j);
}

void adamw_update(const AdamWTensor* tensors, const AdamWHyper* hypers, int count, Stream stream) {
    for (int begin = 0; begin < count; begin += MAX_TENSORS) {
        AdamWArguments args;
        args.count = std::min(MAX_TENSORS, count - begin);
        int64_t blocks = 0;
        for (int i = 0; i < args.count; i++) {
            const AdamWTensor& t = tensors[begin + i];
            require(t.n >= 1, "adamw_update: n of tensor ", begin + i, " must be at least 1, not ", t.n);
            require_aligned("adamw_update", t.master, t.weight, t.grad, t.m, t.v);
            args.tensor[i] = {t, blocks};
            blocks += ceil_div(t.n, PIECE);
        }
        launch("adamw_update", adamw_kernel, {dim3(static_cast<unsigned>(blocks)), dim3(THREADS)}, stream, args, hypers + begin);
    }
}
