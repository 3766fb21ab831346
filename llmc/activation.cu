// Activations on CUDA. A thread takes vectors of 16 bytes, loads all of them, then computes; bound by memory (relu2) or by the
// arithmetic of erf (gelu).
#include "llmc/activation.h"
#include "llmc/checks.h"
#include "llmc/cuda_common.h"

static constexpr int THREADS = 256, VECTORS = 2;   // vectors of each tensor that a thread loads before it stores

static constexpr float SQRT_HALF = 0.70710678f;             // 1 / sqrt(2)
static constexpr float NORMAL_AT_0 = 0.39894228f;           // 1 / sqrt(2 pi)

template <Activation KIND>
__device__ inline float activation(float x) {
    if constexpr (KIND == Activation::gelu) return 0.5f * x * (1 + erff(x * SQRT_HALF));
    const float above = fmaxf(x, 0.0f);
    return above * above;
}

template <Activation KIND>
__device__ inline float slope(float x) {
    if constexpr (KIND == Activation::gelu) {
        const float below = 0.5f * (1 + erff(x * SQRT_HALF));               // the normal distribution's mass below x
        return below + x * NORMAL_AT_0 * __expf(-0.5f * x * x);             // and x times its density
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

void activation_forward(floatX* out, const floatX* x, Activation kind, int64_t n, Stream stream) {
    require_elements("activation_forward", n);
    require_aligned("activation_forward", out, x);
    auto kernel = kind == Activation::gelu ? activation_forward_kernel<Activation::gelu> : activation_forward_kernel<Activation::relu2>;
    launch("activation_forward", kernel, grid_for(n / VECTOR), stream, out, x, n / VECTOR);
}

void activation_backward(floatX* dx, const floatX* dout, const floatX* x, Activation kind, int64_t n, Stream stream) {
    require_elements("activation_backward", n);
    require_aligned("activation_backward", dx, dout, x);
    auto kernel = kind == Activation::gelu ? activation_backward_kernel<Activation::gelu> : activation_backward_kernel<Activation::relu2>;
    launch("activation_backward", kernel, grid_for(n / VECTOR), stream, dx, dout, x, n / VECTOR);
}
