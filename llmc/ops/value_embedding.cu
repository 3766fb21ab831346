// Value embeddings on CUDA. Some lanes take a head of a token, each 16 bytes of it; bound by memory: values and their rows are read
// once. In the backward pass a block takes a tile of tokens and leaves its part of the gate weights' gradient; then the parts are summed.
#include "llmc/ops/value_embedding.h"
#include "llmc/device/cuda_common.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/segment_sum.cuh"

static constexpr int THREADS = 256, WARPS = THREADS / WARP, TILE = 64;   // tokens a block of the backward pass takes

/// Calls body.operator()<LANES>() with lanes enough for 16 bytes each of D elements; where 32 are too few, each takes several.
template <class Body>
static void for_head_size(int D, Body body) {
    const int vectors = D / VECTOR;
    if (vectors <= 1) body.template operator()<1>();
    else if (vectors <= 2) body.template operator()<2>();
    else if (vectors <= 4) body.template operator()<4>();
    else if (vectors <= 8) body.template operator()<8>();
    else if (vectors <= 16) body.template operator()<16>();
    else body.template operator()<32>();
}

template <int LANES>
__global__ void value_embedding_forward_kernel(floatX* qkv, float* gate, const floatX* h, const int* idx, const floatX* ve, const floatX* w,
                                               int64_t heads, int64_t width, int C, int values, int HK, int D) {
    const int64_t head = (int64_t{blockIdx.x} * THREADS + threadIdx.x) / LANES;
    const int lane = static_cast<int>(threadIdx.x) % LANES;
    const bool there = head < heads;   // the last warp's lanes all take part in its sums
    const int64_t n = there ? head / HK : 0;
    const int g = there ? static_cast<int>(head % HK) : 0;

    float dot = 0;
#pragma unroll
    for (int c = lane; c < VE_GATE_CHANNELS; c += LANES) dot += to_float(h[n * C + c]) * to_float(w[g * VE_GATE_CHANNELS + c]);
    const float open = 2 / (1 + expf(-warp_sum<LANES>(dot)));
    if (!there) return;
    if (lane == 0) gate[head] = open;

    floatX* value = qkv + n * width + values + g * D;
    const floatX* row = ve + (int64_t{idx[n]} * HK + g) * D;
    for (int d = lane * VECTOR; d < D; d += LANES * VECTOR) {
        float v[VECTOR], add[VECTOR];
        load(v, value + d);
        load(add, row + d);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) v[k] += open * add[k];
        store(value + d, v);
    }
}

/// Shared memory of a block of the backward pass: its tokens' gate channels, then (TILE, HK) gradients of the sigmoids' arguments.
struct TileShared {
    float h[TILE][VE_GATE_CHANNELS];
    float inside[1];
};

/// A warp takes a token: the gradients of its gates, and of its gate channels. Then the block makes its part of dw:
/// parts (blocks, HK, 32)   =   or, where there is one block only, dw itself, +=
template <int LANES>
__global__ void __launch_bounds__(THREADS)
gate_backward_kernel(floatX* dh, float* dw, float* parts, const floatX* dqkv, const float* gate, const floatX* h, const int* idx, const floatX* ve,
                     const floatX* w, int64_t N, int64_t width, int C, int values, int HK, int D) {
    constexpr int HEADS = WARP / LANES;   // that a warp works on at once
    TileShared& shared = *shared_memory<TileShared>();
    const int lane = lane_of_thread(), part = lane % LANES;
    const int64_t first = int64_t{blockIdx.x} * TILE;
    const int tokens = static_cast<int>(min(N - first, int64_t{TILE}));

    for (int t = warp_of_thread(); t < tokens; t += WARPS) {
        const int64_t n = first + t;
        const floatX *dvalues = dqkv + n * width + values, *rows = ve + int64_t{idx[n]} * HK * D;
        float dchannel = 0;   // of channel `lane`
        for (int begin = 0; begin < HK; begin += HEADS) {
            const int g = begin + lane / LANES;
            float dgate = 0;
            if (g < HK)
                for (int d = part * VECTOR; d < D; d += LANES * VECTOR) {
                    float dv[VECTOR], row[VECTOR];
                    load(dv, dvalues + g * D + d);
                    load(row, rows + g * D + d);
#pragma unroll
                    for (int k = 0; k < VECTOR; k++) dgate += dv[k] * row[k];
                }
            dgate = warp_sum<LANES>(dgate);
            const float open = g < HK ? gate[n * HK + g] : 0;
            const float inside = dgate * open * (1 - open / 2);   // times the slope of 2 sigmoid
            if (part == 0 && g < HK) shared.inside[t * HK + g] = inside;
#pragma unroll 4
            for (int i = 0; i < HEADS; i++) {
                const float other = __shfl_sync(ALL_LANES, inside, i * LANES);
                if (begin + i < HK) dchannel += other * to_float(w[(begin + i) * VE_GATE_CHANNELS + lane]);
            }
        }
        shared.h[t][lane] = to_float(h[n * C + lane]);
        dh[n * C + lane] = to_floatX(to_float(dh[n * C + lane]) + dchannel);
    }
    __syncthreads();

    for (int g = warp_of_thread(); g < HK; g += WARPS) {
        float sum = 0;
        for (int t = 0; t < tokens; t++) sum += shared.inside[t * HK + g] * shared.h[t][lane];
        const int64_t at = int64_t{g} * VE_GATE_CHANNELS + lane;
        if (gridDim.x == 1) dw[at] += sum;
        else parts[blockIdx.x * int64_t{HK} * VE_GATE_CHANNELS + at] = sum;
    }
}

/// Block g adds up row g of dw: warp i takes every WARPS-th part.
__global__ void add_gate_parts_kernel(float* dw, const float* parts, int blocks, int HK) {
    float* sums = shared_memory<float>();   // (WARPS, 32)
    const int64_t at = int64_t{blockIdx.x} * VE_GATE_CHANNELS + lane_of_thread();
    float sum = 0;
#pragma unroll 8
    for (int i = warp_of_thread(); i < blocks; i += WARPS) sum += parts[i * int64_t{HK} * VE_GATE_CHANNELS + at];
    sums[threadIdx.x] = sum;
    __syncthreads();
    if (warp_of_thread() > 0) return;
    for (int i = 1; i < WARPS; i++) sum += sums[i * WARP + lane_of_thread()];
    dw[at] += sum;
}

void value_embedding_forward(floatX* qkv, float* gate, const floatX* h, const int* idx, const floatX* ve, const floatX* w,
                             int64_t N, int C, int H, int HK, int D, Stream stream) {
    require_value_heads("value_embedding_forward", N, C, VE_GATE_CHANNELS, H, HK, D);
    require_aligned("value_embedding_forward", qkv, ve);
    const int64_t width = int64_t{H + 2 * HK} * D;
    for_head_size(D, [&]<int LANES>() {
        Grid grid{dim3(static_cast<unsigned>(ceil_div(N * HK * LANES, THREADS))), dim3(THREADS)};
        launch("value_embedding_forward", value_embedding_forward_kernel<LANES>, grid, stream, qkv, gate, h, idx, ve, w, N * HK, width, C, (H + HK) * D,
               HK, D);
    });
}

void value_embedding_backward(floatX* dh, float* dve, float* dw, float* scratch, const floatX* dqkv, const float* gate,
                              const floatX* h, const int* idx, const int* order, const floatX* ve, const floatX* w, int64_t N,
                              int C, int H, int HK, int D, Stream stream) {
    const char* op = "value_embedding_backward";
    require_value_heads(op, N, C, VE_GATE_CHANNELS, H, HK, D);
    require_aligned(op, dve, dqkv, ve);
    const int64_t width = int64_t{H + 2 * HK} * D;
    const int values = (H + HK) * D;
    // The parts of dw fit in the scratch of (N, HK), since a tile has more tokens than a gate has channels.
    static_assert(TILE >= VE_GATE_CHANNELS);
    const unsigned blocks = static_cast<unsigned>(ceil_div(N, TILE));
    const size_t shared = sizeof(TileShared) + sizeof(float) * TILE * HK;
    require(shared <= shared_memory_limit(), op, ": HK of ", HK, " is too large for this device");
    for_head_size(D, [&]<int LANES>() {
        launch(op, gate_backward_kernel<LANES>, {dim3(blocks), dim3(THREADS), shared}, stream, dh, dw, scratch, dqkv, gate, h, idx, ve, w, N, width, C,
               values, HK, D);
    });
    if (blocks > 1)
        launch(op, add_gate_parts_kernel, {dim3(static_cast<unsigned>(HK)), dim3(THREADS), THREADS * sizeof(float)}, stream, dw, scratch,
               static_cast<int>(blocks), HK);
    if (dve) segment_sum(op, dve, {dqkv + values, width, gate, HK * D, D}, idx, order, N, stream);
}
