// Rotary positions and QK norm on CUDA. A warp takes as many heads of a token as it has lanes for, each lane with a vector of both
// halves. Bound by memory: queries and keys are read once and written once; the table's rows come from L2.
#include "llmc/ops/rotary.h"
#include "llmc/device/cuda_common.h"
#include "llmc/ops/checks.h"

static constexpr int WARPS = 4;

/// The lanes of a head are LANES neighbours; lane i holds elements i * WIDTH + k of the first half, and of the second.
template <int LANES, int WIDTH>
struct HeadLanes {
    static constexpr int HEADS = WARP / LANES;   // of a warp
    int at, half;
    bool holds;                                  // a lane beyond the half's end holds zeros
    float cosine[WIDTH] = {}, sine[WIDTH] = {};

    __device__ HeadLanes(const float* table_row, int D)
        : at(lane_of_thread() % LANES * WIDTH), half(D / 2), holds(at < half) {
        if (!holds) return;
        load(cosine, table_row + at);
        load(sine, table_row + half + at);
    }
    __device__ void load_halves(float (&a)[WIDTH], float (&b)[WIDTH], const floatX* head, bool wanted) const {
#pragma unroll
        for (int k = 0; k < WIDTH; k++) a[k] = b[k] = 0;
        if (!holds || !wanted) return;
        load(a, head + at);
        load(b, head + half + at);
    }
    __device__ void store_halves(floatX* head, const float (&a)[WIDTH], const float (&b)[WIDTH], bool wanted) const {
        if (!holds || !wanted) return;
        store(head + at, a);
        store(head + half + at, b);
    }
};

/// Token n and head h of a lane. Blocks that work on the same tokens are neighbours.
template <int LANES>
struct Place {
    int64_t n;
    int h;

    __device__ explicit Place(unsigned groups)
        : n(int64_t{blockIdx.x / groups} * WARPS + warp_of_thread()), h(static_cast<int>(blockIdx.x % groups) * (WARP / LANES) + lane_of_thread() / LANES) {}
};

template <int LANES, int WIDTH>
__global__ void __launch_bounds__(WARPS * WARP)
rotary_forward_kernel(floatX* qkv, float* rstd, const float* table, int64_t N, int T, int heads, int64_t width, int D, unsigned groups, int first,
                      bool qk_norm, float eps) {
    const auto [n, h] = Place<LANES>(groups);
    if (n >= N) return;
    const HeadLanes<LANES, WIDTH> lanes(table + (first + n % T) * D, D);
    floatX* head = qkv + n * width + int64_t{h} * D;
    float a[WIDTH], b[WIDTH];
    lanes.load_halves(a, b, head, h < heads);
    float r = 1;
    if (qk_norm) {
        float squares = 0;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) squares += a[k] * a[k] + b[k] * b[k];
        r = rsqrtf(warp_sum<LANES>(squares) / static_cast<float>(D) + eps);   // a rotation does not change it
        if (lanes.at == 0 && h < heads) rstd[n * heads + h] = r;
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        const float x = a[k], y = b[k];
        a[k] = (x * lanes.cosine[k] + y * lanes.sine[k]) * r;
        b[k] = (y * lanes.cosine[k] - x * lanes.sine[k]) * r;
    }
    lanes.store_halves(head, a, b, h < heads);
}

template <int LANES, int WIDTH>
__global__ void __launch_bounds__(WARPS * WARP)
rotary_backward_kernel(floatX* dqkv, const floatX* qkv, const float* rstd, const float* table, int64_t N, int T, int heads, int64_t width, int D,
                       unsigned groups, bool qk_norm) {
    const auto [n, h] = Place<LANES>(groups);
    if (n >= N) return;
    const HeadLanes<LANES, WIDTH> lanes(table + n % T * D, D);
    floatX* dhead = dqkv + n * width + int64_t{h} * D;
    float a[WIDTH], b[WIDTH];
    lanes.load_halves(a, b, dhead, h < heads);
    if (qk_norm) {
        float ya[WIDTH], yb[WIDTH], sum = 0;
        lanes.load_halves(ya, yb, qkv + n * width + int64_t{h} * D, h < heads);
        const float r = h < heads ? rstd[n * heads + h] : 0;
#pragma unroll
        for (int k = 0; k < WIDTH; k++) sum += a[k] * ya[k] + b[k] * yb[k];
        const float mean = warp_sum<LANES>(sum) / static_cast<float>(D);
#pragma unroll
        for (int k = 0; k < WIDTH; k++) {
            a[k] = r * (a[k] - ya[k] * mean);
            b[k] = r * (b[k] - yb[k] * mean);
        }
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        const float x = a[k], y = b[k];
        a[k] = x * lanes.cosine[k] - y * lanes.sine[k];
        b[k] = y * lanes.cosine[k] + x * lanes.sine[k];
    }
    lanes.store_halves(dhead, a, b, h < heads);
}

/// Calls body.operator()<LANES, WIDTH>() with the fewest lanes that hold a half of D / 2 elements.
template <class Body>
static void for_head_size(const char* op, int D, Body body) {
    auto with_width = [&]<int WIDTH>() {
        const int lanes = ceil_div(D / 2, WIDTH);
        require(lanes <= WARP, op, ": D must be at most ", 2 * WARP * WIDTH, " on this device, not ", D);
        if (lanes == 1) body.template operator()<1, WIDTH>();
        else if (lanes == 2) body.template operator()<2, WIDTH>();
        else if (lanes <= 4) body.template operator()<4, WIDTH>();
        else if (lanes <= 8) body.template operator()<8, WIDTH>();
        else if (lanes <= 16) body.template operator()<16, WIDTH>();
        else body.template operator()<32, WIDTH>();
    };
    if (D / 2 % VECTOR == 0) with_width.template operator()<VECTOR>();
    else with_width.template operator()<4>();
}

static Grid grid_for(int64_t N, unsigned groups) { return {dim3(static_cast<unsigned>(ceil_div(N, WARPS)) * groups), dim3(WARPS * WARP)}; }

void rotary_forward(floatX* qkv, float* rstd, const float* table, int B, int T, int H, int HK, int D, int first, bool qk_norm,
                    float eps, Stream stream) {
    require_heads("rotary_forward", B, T, H, HK, D);
    require(first >= 0, "rotary_forward: first must not be negative: ", first);
    require_aligned("rotary_forward", qkv, table);
    const int64_t N = int64_t{B} * T, width = int64_t{H + 2 * HK} * D;
    for_head_size("rotary_forward", D, [&]<int LANES, int WIDTH>() {
        const unsigned groups = static_cast<unsigned>(ceil_div(H + HK, WARP / LANES));
        launch("rotary_forward", rotary_forward_kernel<LANES, WIDTH>, grid_for(N, groups), stream, qkv, rstd, table, N, T, H + HK, width, D, groups,
               first, qk_norm, eps);
    });
}

void rotary_backward(floatX* dqkv, const floatX* qkv, const float* rstd, const float* table, int B, int T, int H, int HK, int D,
                     bool qk_norm, Stream stream) {
    require_heads("rotary_backward", B, T, H, HK, D);
    require_aligned("rotary_backward", dqkv, qkv, table);
    const int64_t N = int64_t{B} * T, width = int64_t{H + 2 * HK} * D;
    for_head_size("rotary_backward", D, [&]<int LANES, int WIDTH>() {
        const unsigned groups = static_cast<unsigned>(ceil_div(H + HK, WARP / LANES));
        launch("rotary_backward", rotary_backward_kernel<LANES, WIDTH>, grid_for(N, groups), stream, dqkv, qkv, rstd, table, N, T, H + HK, width, D, groups,
               qk_norm);
    });
}
