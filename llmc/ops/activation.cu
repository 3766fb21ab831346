// Activations on CUDA. A thread takes vectors of 16 bytes, loads all of them, then computes; bound by memory.
#include "llmc/ops/activation.h"
#include "llmc/device/cuda_common.h"
#include "llmc/ops/checks.h"

static constexpr int THREADS = 256, VECTORS = 2;   // vectors of each tensor that a thread loads before it stores

static constexpr float SQRT_HALF = 0.70710678f;             // 1 / sqrt(2)
static constexpr float NORMAL_AT_0 = 0.39894228f;           // 1 / sqrt(2 pi)
static constexpr float LOG2_E = 1.44269504f;

/// The normal distribution: its mass below x, its density at x.
struct Normal {
    float below, density;
};
__device__ inline Normal normal(float x) {
    // erff and its conversions are some 30 instructions, which at 4 bytes an element take longer than the bytes. These are half of
    // them: Abramowitz & Stegun 7.1.26, right to 10^-7, as 1 + erff is in fp32 where erff is near -1.
    if constexpr (sizeof(floatX) == 2) {
        const float t = fast_reciprocal(1 + 0.3275911f * SQRT_HALF * fabsf(x)), exponential = fast_exp2(-0.5f * LOG2_E * x * x);
        const float series = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
        const float beyond = 0.5f * exponential * series;   // the mass beyond |x|
        return {x < 0 ? beyond : 1 - beyond, NORMAL_AT_0 * exponential};
    }
    return {0.5f * (1 + erff(x * SQRT_HALF)), NORMAL_AT_0 * expf(-0.5f * x * x)};
}

template <Activation KIND>
__device__ inline float activation(float x) {
    if constexpr (KIND == Activation::gelu) return x * normal(x).below;
    const float above = fmaxf(x, 0.0f);
    return above * above;
}

template <Activation KIND>
__device__ inline float slope(float x) {
    if constexpr (KIND == Activation::gelu) {
        const Normal n = normal(x);
        return n.below + x * n.density;
    }
    return 2 * fmaxf(x, 0.0f);
}

template <Activation KIND>
__global__ void activation_forward_kernel(floatX* out, const floatX* x, int64_t vectors) {
    const int64_t first = int64_t{blockIdx.x} * VECTORS * THREADS + threadIdx.x;
    Packed pieces[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int64_t at = first + i * THREADS;
        pieces[i] = at < vectors ? load_packed(x + at * VECTOR) : Packed{};
    }
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int64_t at = first + i * THREADS;
        float v[VECTOR];
        unpack(v, pieces[i]);
        for (float& element : v) element = activation<KIND>(element);
        if (at < vectors) store(out + at * VECTOR, v);
    }
}

template <Activation KIND>
__global__ void activation_backward_kernel(floatX* dx, const floatX* dout, const floatX* x, int64_t vectors) {
    const int64_t first = int64_t{blockIdx.x} * VECTORS * THREADS + threadIdx.x;
    Packed x_pieces[VECTORS], dout_pieces[VECTORS];
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int64_t at = first + i * THREADS;
        x_pieces[i] = at < vectors ? load_packed(x + at * VECTOR) : Packed{};
        dout_pieces[i] = at < vectors ? load_packed(dout + at * VECTOR) : Packed{};
    }
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        const int64_t at = first + i * THREADS;
        float v[VECTOR], g[VECTOR];
        unpack(v, x_pieces[i]);
        unpack(g, dout_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) g[k] *= slope<KIND>(v[k]);
        if (at < vectors) store(dx + at * VECTOR, g);
    }
}

static Grid grid_for(int64_t vectors) { return {dim3(static_cast<unsigned>(ceil_div(vectors, VECTORS * THREADS))), dim3(THREADS)}; }

void activation_forward(floatX* out, const floatX* x, int64_t n, Activation kind, Stream stream) {
    require_elements("activation_forward", n);
    require_aligned("activation_forward", out, x);
    auto kernel = kind == Activation::gelu ? activation_forward_kernel<Activation::gelu> : activation_forward_kernel<Activation::relu2>;
    launch("activation_forward", kernel, grid_for(n / VECTOR), stream, out, x, n / VECTOR);
}

void activation_backward(floatX* dx, const floatX* dout, const floatX* x, int64_t n, Activation kind, Stream stream) {
    require_elements("activation_backward", n);
    require_aligned("activation_backward", dx, dout, x);
    auto kernel = kind == Activation::gelu ? activation_backward_kernel<Activation::gelu> : activation_backward_kernel<Activation::relu2>;
    launch("activation_backward", kernel, grid_for(n / VECTOR), stream, dx, dout, x, n / VECTOR);
}
