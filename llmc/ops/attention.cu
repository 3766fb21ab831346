// Attention on CUDA: a block takes a tile of queries (or, for the gradients of keys and values, of keys) and walks over the tiles
// of the other side that the window lets it see; a warp owns 16 or 32 rows of the block's tile, with their softmax and sums in
// registers. Long windows are bound by the tensor cores. The bf16 kernels take heads of up to 128; the fp32 build, and larger
// heads, have plain kernels with the same walk. On Hopper, heads of 64 and 128 go to attention_hopper.cu. No atomics: each gradient
// is summed by one thread, in a fixed order.
#include "llmc/ops/attention.h"
#include <algorithm>
#include <cmath>
#include "llmc/ops/attention_cuda.h"
#include "llmc/ops/checks.h"

using Sizes = AttentionSizes;

size_t attention_scratch(int B, int T, int H, int HK, int D) {
    require_attention("attention_scratch", B, T, H, HK, D, 0);
    return static_cast<size_t>(B) * static_cast<size_t>(H) * static_cast<size_t>(padded(T)) * sizeof(QueryRow);
}

// Eight lanes a query and head; bound by the bytes of dy and y.
static constexpr int ROW_LANES = 8, ROW_THREADS = 256;

static __global__ void __launch_bounds__(ROW_THREADS)
query_rows_kernel(QueryRow* rows, const floatX* dy, const floatX* y, const float* lse, Sizes s, int64_t total) {
    const int64_t index = (static_cast<int64_t>(blockIdx.x) * ROW_THREADS + threadIdx.x) / ROW_LANES;   // (B, padded T, H)
    const int h = static_cast<int>(index % s.H);
    const int64_t t = index / s.H % padded(s.T), b = index / s.H / padded(s.T);
    const bool real = index < total && t < s.T;
    float sum = 0;
    if (real) {
        const int64_t at = ((b * s.T + t) * s.H + h) * s.D;
        for (int d = static_cast<int>(threadIdx.x) % ROW_LANES * VECTOR; d < s.D; d += ROW_LANES * VECTOR) {
            float dout[VECTOR], out[VECTOR];
            load(dout, dy + at + d);
            load(out, y + at + d);
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sum += dout[i] * out[i];
        }
    }
    sum = warp_sum<ROW_LANES>(sum);
    if (index < total && threadIdx.x % ROW_LANES == 0)
        rows[(b * s.H + h) * padded(s.T) + t] = real ? QueryRow{lse[(b * s.H + h) * s.T + t] * LOG2E, sum} : QueryRow{INFINITY, 0};
}

// Rows of one head in device memory, from row t on; there are `count` of them.
template <class X>
struct Rows {
    X* data;
    int64_t stride;
    int count;
};

template <class X>
__device__ Rows<X> queries_from(const Sizes& s, X* qkv, int b, int h, int t) {
    return {s.queries(qkv, b, h) + t * s.width(), s.width(), s.T - t};
}
template <class X>
__device__ Rows<X> keys_from(const Sizes& s, X* qkv, int b, int g, int t) { return queries_from(s, qkv, b, s.key_head(g), t); }
template <class X>
__device__ Rows<X> values_from(const Sizes& s, X* qkv, int b, int g, int t) { return queries_from(s, qkv, b, s.value_head(g), t); }
template <class X>
__device__ Rows<X> out_from(const Sizes& s, X* y, int b, int h, int t) {
    return {s.out(y, b, h) + t * s.out_width(), s.out_width(), s.T - t};
}

#ifndef PRECISION_FP32
// ------------------------------------------------------------------------------------------------------- tiles for tensor cores

// Rows of one head in shared memory, HEAD columns (those from D on are zeros), in pieces of 16 bytes. A row is one piece longer
// than that, so that the eight rows that ldmatrix reads at once come from different banks.
template <int HEAD>
struct Tile {
    static constexpr int PIECES = HEAD / 8, PITCH = HEAD + 8;
    int offset;                             // elements from the beginning of shared memory

    HOST_DEVICE static constexpr int elements(int rows) { return rows * PITCH; }

    __device__ bf16* at(int row, int piece) const { return shared_memory<bf16>() + offset + row * PITCH + piece * 8; }
};

// Starts copying ROWS rows to a tile; those beyond from.count become zeros.
template <int ROWS, int THREADS, int HEAD>
__device__ void fetch(Tile<HEAD> tile, Rows<const bf16> from, int D) {
    constexpr int PIECES = Tile<HEAD>::PIECES, STEP = THREADS / PIECES;
    static_assert(THREADS % PIECES == 0 && ROWS % STEP == 0);
    uint32_t thread = threadIdx.x;
    settle(thread);                         // or the compiler keeps what it derives from it in registers, which the sums need
    const int row = static_cast<int>(thread) / PIECES, piece = static_cast<int>(thread) % PIECES;
    if (piece * 8 >= D) from.count = 0;
    const bf16* data = from.data + (row * from.stride + piece * 8);
#pragma unroll
    for (int i = 0; i < ROWS; i += STEP, data += STEP * from.stride)
        copy_async(tile.at(row + i, piece), data, row + i < from.count);
}

// blockIdx.x, read again after a long loop, which has no registers to keep what was derived from it.
static __device__ int block_again() {
    uint32_t block = blockIdx.x;
    settle(block);
    return static_cast<int>(block);
}

// A warp's sums, 16 M rows by N columns, as mma gives them: lane holds rows 16 m + lane / 4 and 8 below it, and of every
// 8 columns 2 (lane % 4) and the next.
template <int M, int N>
using Sums = float[M][N / 8][4];
// 16 columns of them, rounded to bf16: the left operand of the next mma.
template <int M>
using Left = uint32_t[M][4];

static __device__ int row_of(int m, int i) { return 16 * m + lane_of_thread() / 4 + 8 * (i / 2); }
static __device__ int column_of(int n, int i) { return 8 * n + 2 * (lane_of_thread() % 4) + i % 2; }

template <int M, int COLUMNS8>
__device__ void clear(float (&sums)[M][COLUMNS8][4]) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < COLUMNS8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sums[m][n][i] = 0;
}

// Columns 16 k and on.
template <int M, int COLUMNS8>
__device__ void round(uint32_t (&left)[M][4], const float (&sums)[M][COLUMNS8][4], int k) {
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const float(&four)[4] = sums[m][2 * k + i / 2];
            left[m][i] = pack_bf16(four[i % 2 * 2], four[i % 2 * 2 + 1]);
        }
}

// sums (16 M, N) = x y^T: 16 M rows of tile x from x0 on, N rows of tile y from y0 on.
template <int M, int COLUMNS8, int HEAD>
__device__ void matmul_tiles(float (&sums)[M][COLUMNS8][4], Tile<HEAD> x, int x0, Tile<HEAD> y, int y0) {
    const int lane = lane_of_thread();
    const bf16* x_lane = x.at(x0 + lane % 16, lane / 16);
    const bf16* y_lane = y.at(y0 + lane / 16 * 8 + lane % 8, lane / 8 % 2);
    clear(sums);
#pragma unroll
    for (int p = 0; p < Tile<HEAD>::PIECES; p += 2) {
        uint32_t a[M][4];
#pragma unroll
        for (int m = 0; m < M; m++) ldmatrix_x4(a[m], x_lane + 16 * m * Tile<HEAD>::PITCH + p * 8);
#pragma unroll
        for (int n = 0; n < COLUMNS8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4(b, y_lane + 8 * n * Tile<HEAD>::PITCH + p * 8);
            const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
            for (int m = 0; m < M; m++) {
                mma_m16n8k16(sums[m][n], a[m], first);
                mma_m16n8k16(sums[m][n + 1], a[m], second);
            }
        }
    }
}

// sums (16 M, HEAD) += left (16 M, 16) y: 16 rows of tile y from y0 on.
template <int M, int HEAD>
__device__ void add_matmul(float (&sums)[M][HEAD / 8][4], const uint32_t (&left)[M][4], Tile<HEAD> y, int y0) {
    const bf16* y_lane = y.at(y0 + lane_of_thread() % 16, lane_of_thread() / 16);
#pragma unroll
    for (int n = 0; n < HEAD / 8; n += 2) {
        uint32_t b[4];
        ldmatrix_x4_trans(b, y_lane + n * 8);
        const uint32_t first[2] = {b[0], b[1]}, second[2] = {b[2], b[3]};
#pragma unroll
        for (int m = 0; m < M; m++) {
            mma_m16n8k16(sums[m][n], left[m], first);
            mma_m16n8k16(sums[m][n + 1], left[m], second);
        }
    }
}

// Writes the warp's sums, row (m, i / 2) times factor[m][i / 2], 16 bytes a lane: through its own rows of a tile, from x0 on, that
// no other warp reads.
template <int M, int HEAD>
__device__ void store_rows(Rows<bf16> to, int D, const float (&sums)[M][HEAD / 8][4], const float (&factor)[M][2], Tile<HEAD> tile,
                           int x0) {
    __syncwarp();
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2)
                *reinterpret_cast<uint32_t*>(tile.at(x0 + row_of(m, i), n) + column_of(0, i)) =
                    pack_bf16(sums[m][n][i] * factor[m][i / 2], sums[m][n][i + 1] * factor[m][i / 2]);
    __syncwarp();
    constexpr int PIECES = Tile<HEAD>::PIECES;
    const int p = lane_of_thread() % PIECES;
#pragma unroll
    for (int i = 0; i < 16 * M * PIECES / WARP; i++) {
        const int row = (i * WARP + lane_of_thread()) / PIECES;
        if (row < to.count && p * 8 < D) store_packed(to.data + row * to.stride + p * 8, load_packed(tile.at(x0 + row, p)));
    }
}

// ------------------------------------------------------------------------------------------------------------------ forward

template <int HEAD>
struct Forward {
    static constexpr int M = 2, WARPS = 4, THREADS = WARPS * WARP, QUERIES = 16 * M * WARPS, KEYS = 64;
    static constexpr size_t SHARED = (Tile<HEAD>::elements(QUERIES) + 4 * Tile<HEAD>::elements(KEYS)) * sizeof(bf16);
};

template <int HEAD>
__global__ void __launch_bounds__(Forward<HEAD>::THREADS, 2)
forward_kernel(bf16* y, float* lse, const bf16* qkv, Sizes s, int tiles) {
    using F = Forward<HEAD>;
    constexpr int M = F::M, QUERIES = F::QUERIES, KEYS = F::KEYS;
    const Place place(static_cast<int>(blockIdx.x), tiles, s.H);
    const int q0 = place.from_end(tiles) * QUERIES, g = place.head / s.group();
    const int row0 = 16 * M * warp_of_thread();                 // the warp's first row in the tile

    const Tile<HEAD> q_tile{0};
    auto k_tile = [&](int stage) { return Tile<HEAD>{Tile<HEAD>::elements(QUERIES + 2 * stage * KEYS)}; };
    auto v_tile = [&](int stage) { return Tile<HEAD>{Tile<HEAD>::elements(QUERIES + (2 * stage + 1) * KEYS)}; };
    auto fetch_keys = [&](int k0, int stage) {
        fetch<KEYS, F::THREADS>(k_tile(stage), keys_from(s, qkv, place.batch, g, k0), s.D);
        fetch<KEYS, F::THREADS>(v_tile(stage), values_from(s, qkv, place.batch, g, k0), s.D);
        copy_async_commit();
    };
    const int first = max(0, q0 - s.window) / KEYS * KEYS, end = min(q0 + QUERIES, s.T);
    fetch<QUERIES, F::THREADS>(q_tile, queries_from(s, qkv, place.batch, place.head, q0), s.D);
    fetch_keys(first, 0);

    const float log2_scale = inverse_sqrt(s.D) * LOG2E;         // exp(scale x) = 2^(log2_scale x)
    Sums<M, HEAD> out;
    clear(out);
    // row_max is of log2_scale times the scores; sum is over the lane's own columns until the end.
    float row_max[M][2], sum[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) row_max[m][r] = LOWEST, sum[m][r] = 0;

    for (int k0 = first, stage = 0; k0 < end; k0 += KEYS, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();            // the tiles are here, and all are done with those of the other stage
        if (k0 + KEYS < end) fetch_keys(k0 + KEYS, stage ^ 1);
        const int q = q0 + row0;
        if (!s.any_sees(q, 16 * M, k0, KEYS)) continue;

        Sums<M, KEYS> p;
        float rescale[M][2];
        matmul_tiles(p, q_tile, row0, k_tile(stage), 0);
        if (!s.all_see(q, 16 * M, k0, KEYS)) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        if (!s.sees(q + row_of(m, i), k0 + column_of(n, i))) p[m][n][i] = -INFINITY;
        }
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < 2; r++) {
                float top = p[m][0][2 * r];
#pragma unroll
                for (int n = 0; n < KEYS / 8; n++) top = fmaxf(top, fmaxf(p[m][n][2 * r], p[m][n][2 * r + 1]));
                top = fmaxf(row_max[m][r], warp_max<4>(top) * log2_scale);
                rescale[m][r] = fast_exp2(row_max[m][r] - top);
                row_max[m][r] = top;
                sum[m][r] *= rescale[m][r];
            }
        // A new max rescales the sums so far. Late in a walk most rows have none. And across a branch the compiler does not
        // interleave this with the exponentials, for which there are too few registers.
#pragma unroll
        for (int m = 0; m < M; m++)
#pragma unroll
            for (int r = 0; r < 2; r++)
                if (rescale[m][r] != 1) {
#pragma unroll
                    for (int n = 0; n < HEAD / 8; n++) out[m][n][2 * r] *= rescale[m][r], out[m][n][2 * r + 1] *= rescale[m][r];
                }
#pragma unroll
        for (int k = 0; k < KEYS / 16; k++) {
#pragma unroll
            for (int m = 0; m < M; m++)
#pragma unroll
                for (int n = 2 * k; n < 2 * k + 2; n++)
#pragma unroll
                    for (int i = 0; i < 4; i++)
                        sum[m][i / 2] += p[m][n][i] = fast_exp2(fmaf(p[m][n][i], log2_scale, -row_max[m][i / 2]));
            Left<M> left;
            round(left, p, k);
            add_matmul(out, left, v_tile(stage), 16 * k);
        }
    }

    const Place to(block_again(), tiles, s.H);
    const int t0 = to.from_end(tiles) * QUERIES + row0;
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[m][r] = warp_sum<4>(sum[m][r]);
            const int t = t0 + row_of(m, 2 * r);
            if (lane_of_thread() % 4 == 0 && t < s.T)
                lse[s.all_heads(to.batch, to.head) * s.T + t] = row_max[m][r] * LN2 + logf(sum[m][r]);
            sum[m][r] = 1 / sum[m][r];
        }
    store_rows(out_from(s, y, to.batch, to.head, t0), s.D, out, sum, q_tile, row0);
}

// ----------------------------------------------------------------------------------------------------------------- backward
// p and the gradient of the scores are computed twice, by the kernel for dk and dv and by the one for dq: 7 matmuls instead of 5, and
// no atomics.

// A warp owns 16 M keys. STEP queries are worked on at a time.
template <int HEAD>
struct BackwardKeys {
    static constexpr int M = HEAD == 64 ? 2 : 1, WARPS = HEAD == 64 ? 4 : 8, STEP = HEAD == 64 ? 32 : 64;
    static constexpr int THREADS = WARPS * WARP, KEYS = 16 * M * WARPS, QUERIES = 64;
    static constexpr size_t TILES = 2 * Tile<HEAD>::elements(KEYS) + 4 * Tile<HEAD>::elements(QUERIES);
    static constexpr size_t SHARED = TILES * sizeof(bf16) + 2 * QUERIES * sizeof(QueryRow);
};

template <int HEAD>
__global__ void __launch_bounds__(BackwardKeys<HEAD>::THREADS, HEAD == 64 ? 2 : 1)
backward_keys_kernel(bf16* dqkv, const QueryRow* rows, const bf16* dy, const bf16* qkv, Sizes s, int tiles) {
    using F = BackwardKeys<HEAD>;
    constexpr int M = F::M, STEP = F::STEP, QUERIES = F::QUERIES, KEYS = F::KEYS;
    const Place place(static_cast<int>(blockIdx.x), tiles, s.HK);
    const int g = place.head, k0 = place.tile * KEYS, row0 = 16 * M * warp_of_thread(), key0 = k0 + row0;

    const Tile<HEAD> k_tile{0}, v_tile{Tile<HEAD>::elements(KEYS)};
    auto q_tile = [&](int stage) { return Tile<HEAD>{Tile<HEAD>::elements(2 * KEYS + 2 * stage * QUERIES)}; };
    auto dy_tile = [&](int stage) { return Tile<HEAD>{Tile<HEAD>::elements(2 * KEYS + (2 * stage + 1) * QUERIES)}; };
    auto row_tile = [&](int stage) {
        return reinterpret_cast<QueryRow*>(shared_memory<bf16>() + Tile<HEAD>::elements(2 * KEYS + 4 * QUERIES)) + stage * QUERIES;
    };

    // The walk: tiles of queries that see some of the keys, for every head of the group.
    const int first = k0 / QUERIES * QUERIES, end = min(s.T, k0 + KEYS + s.window), steps = (end - first + QUERIES - 1) / QUERIES;
    auto fetch_queries = [&](int i, int stage) {
        const int h = g * s.group() + i / steps, q0 = first + i % steps * QUERIES;
        fetch<QUERIES, F::THREADS>(q_tile(stage), queries_from(s, qkv, place.batch, h, q0), s.D);
        fetch<QUERIES, F::THREADS>(dy_tile(stage), out_from(s, dy, place.batch, h, q0), s.D);
        const QueryRow* from = rows + s.all_heads(place.batch, h) * padded(s.T) + q0;
        const int two = 2 * static_cast<int>(threadIdx.x);
        if (two < QUERIES) copy_async(row_tile(stage) + two, from + two);
        copy_async_commit();
    };
    fetch<KEYS, F::THREADS>(k_tile, keys_from(s, qkv, place.batch, g, k0), s.D);
    fetch<KEYS, F::THREADS>(v_tile, values_from(s, qkv, place.batch, g, k0), s.D);
    fetch_queries(0, 0);

    const float scale = inverse_sqrt(s.D), log2_scale = scale * LOG2E;
    Sums<M, HEAD> dk, dv;
    clear(dk);
    clear(dv);
    for (int i = 0, stage = 0; i < steps * s.group(); i++, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();            // the tiles are here, and all are done with those of the other stage
        if (i + 1 < steps * s.group()) fetch_queries(i + 1, stage ^ 1);
#pragma unroll 1
        for (int step = 0; step < QUERIES; step += STEP) {
            const int q = first + i % steps * QUERIES + step;
            if (!s.any_sees(q, STEP, key0, 16 * M)) continue;
            const bool whole = s.all_see(q, STEP, key0, 16 * M);
            Sums<M, STEP> p, ds;                                // rows are keys, columns queries
            matmul_tiles(p, k_tile, row0, q_tile(stage), step);
#pragma unroll
            for (int k = 0; k < STEP / 16; k++) {
#pragma unroll
                for (int n = 2 * k; n < 2 * k + 2; n++) {
                    const QueryRow* row = row_tile(stage) + step + column_of(n, 0);
                    const float lse2[2] = {row[0].lse2, row[1].lse2};
#pragma unroll
                    for (int m = 0; m < M; m++)
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            p[m][n][j] = probability(p[m][n][j], log2_scale, lse2[j % 2]);
                            if (!whole && !s.sees(q + column_of(n, j), key0 + row_of(m, j))) p[m][n][j] = 0;
                        }
                }
                Left<M> left;
                round(left, p, k);
                add_matmul(dv, left, dy_tile(stage), step + 16 * k);
            }
            matmul_tiles(ds, v_tile, row0, dy_tile(stage), step);
#pragma unroll
            for (int k = 0; k < STEP / 16; k++) {
#pragma unroll
                for (int n = 2 * k; n < 2 * k + 2; n++) {
                    const QueryRow* row = row_tile(stage) + step + column_of(n, 0);
                    const float delta[2] = {row[0].delta, row[1].delta};
#pragma unroll
                    for (int m = 0; m < M; m++)
#pragma unroll
                        for (int j = 0; j < 4; j++) ds[m][n][j] = p[m][n][j] * (ds[m][n][j] - delta[j % 2]);
                }
                Left<M> left;
                round(left, ds, k);
                add_matmul(dk, left, q_tile(stage), step + 16 * k);
            }
        }
    }

    float scales[M][2], ones[M][2];
#pragma unroll
    for (int m = 0; m < M; m++) scales[m][0] = scales[m][1] = scale, ones[m][0] = ones[m][1] = 1;
    store_rows(keys_from(s, dqkv, place.batch, g, key0), s.D, dk, scales, k_tile, row0);
    store_rows(values_from(s, dqkv, place.batch, g, key0), s.D, dv, ones, v_tile, row0);
}

// A warp owns 16 M queries. STEP keys are worked on at a time.
template <int HEAD>
struct BackwardQueries {
    static constexpr int M = 2, WARPS = 4, THREADS = WARPS * WARP, QUERIES = 16 * M * WARPS, KEYS = HEAD == 64 ? 64 : 32, STEP = 32;
    static constexpr size_t SHARED = (2 * Tile<HEAD>::elements(QUERIES) + 4 * Tile<HEAD>::elements(KEYS)) * sizeof(bf16);
};

template <int HEAD>
__global__ void __launch_bounds__(BackwardQueries<HEAD>::THREADS, 2)
backward_queries_kernel(bf16* dqkv, const QueryRow* rows, const bf16* dy, const bf16* qkv, Sizes s, int tiles) {
    using F = BackwardQueries<HEAD>;
    constexpr int M = F::M, STEP = F::STEP, QUERIES = F::QUERIES, KEYS = F::KEYS;
    const Place place(static_cast<int>(blockIdx.x), tiles, s.H);
    const int q0 = place.from_end(tiles) * QUERIES, g = place.head / s.group(), row0 = 16 * M * warp_of_thread(), q = q0 + row0;

    const Tile<HEAD> q_tile{0}, dy_tile{Tile<HEAD>::elements(QUERIES)};
    auto k_tile = [&](int stage) { return Tile<HEAD>{Tile<HEAD>::elements(2 * QUERIES + 2 * stage * KEYS)}; };
    auto v_tile = [&](int stage) { return Tile<HEAD>{Tile<HEAD>::elements(2 * QUERIES + (2 * stage + 1) * KEYS)}; };
    auto fetch_keys = [&](int k0, int stage) {
        fetch<KEYS, F::THREADS>(k_tile(stage), keys_from(s, qkv, place.batch, g, k0), s.D);
        fetch<KEYS, F::THREADS>(v_tile(stage), values_from(s, qkv, place.batch, g, k0), s.D);
        copy_async_commit();
    };
    const int first = max(0, q0 - s.window) / KEYS * KEYS, end = min(q0 + QUERIES, s.T);
    fetch<QUERIES, F::THREADS>(q_tile, queries_from(s, qkv, place.batch, place.head, q0), s.D);
    fetch<QUERIES, F::THREADS>(dy_tile, out_from(s, dy, place.batch, place.head, q0), s.D);
    fetch_keys(first, 0);

    const float scale = inverse_sqrt(s.D), log2_scale = scale * LOG2E;
    QueryRow row[M][2];
    float scales[M][2];
#pragma unroll
    for (int m = 0; m < M; m++)
#pragma unroll
        for (int r = 0; r < 2; r++) {
            row[m][r] = rows[s.all_heads(place.batch, place.head) * padded(s.T) + q + row_of(m, 2 * r)];
            scales[m][r] = scale;
        }
    Sums<M, HEAD> dq;
    clear(dq);
    for (int k0 = first, stage = 0; k0 < end; k0 += KEYS, stage ^= 1) {
        copy_async_wait<0>();
        __syncthreads();            // the tiles are here, and all are done with those of the other stage
        if (k0 + KEYS < end) fetch_keys(k0 + KEYS, stage ^ 1);
#pragma unroll 1
        for (int step = 0; step < KEYS; step += STEP) {
            if (!s.any_sees(q, 16 * M, k0 + step, STEP)) continue;
            const bool whole = s.all_see(q, 16 * M, k0 + step, STEP);
            Sums<M, STEP> p, ds;
            matmul_tiles(p, q_tile, row0, k_tile(stage), step);
            matmul_tiles(ds, dy_tile, row0, v_tile(stage), step);
#pragma unroll
            for (int k = 0; k < STEP / 16; k++) {
#pragma unroll
                for (int m = 0; m < M; m++)
#pragma unroll
                    for (int n = 2 * k; n < 2 * k + 2; n++)
#pragma unroll
                        for (int j = 0; j < 4; j++) {
                            const QueryRow& at = row[m][j / 2];
                            ds[m][n][j] = probability(p[m][n][j], log2_scale, at.lse2) * (ds[m][n][j] - at.delta);
                            if (!whole && !s.sees(q + row_of(m, j), k0 + step + column_of(n, j))) ds[m][n][j] = 0;
                        }
                Left<M> left;
                round(left, ds, k);
                add_matmul(dq, left, k_tile(stage), step + 16 * k);
            }
        }
    }
    const Place to(block_again(), tiles, s.H);
    const int t0 = to.from_end(tiles) * QUERIES + row0;
    store_rows(queries_from(s, dqkv, to.batch, to.head, t0), s.D, dq, scales, q_tile, row0);
}

template <int HEAD>
void tiled_forward(floatX* y, float* lse, const floatX* qkv, int B, const Sizes& s, Stream stream) {
    using F = Forward<HEAD>;
    const int tiles = ceil_div(s.T, F::QUERIES);
    const Grid grid{static_cast<unsigned>(tiles * s.H * B), F::THREADS, F::SHARED};
    launch("attention_forward", forward_kernel<HEAD>, grid, stream, y, lse, qkv, s, tiles);
}

template <int HEAD>
void tiled_backward(floatX* dqkv, const QueryRow* rows, const floatX* dy, const floatX* qkv, int B, const Sizes& s, Stream stream) {
    using K = BackwardKeys<HEAD>;
    using Q = BackwardQueries<HEAD>;
    static_assert(QUERY_ROWS % K::QUERIES == 0 && QUERY_ROWS % Q::QUERIES == 0);
    const int key_tiles = ceil_div(s.T, K::KEYS), query_tiles = ceil_div(s.T, Q::QUERIES);
    const Grid key_grid{static_cast<unsigned>(key_tiles * s.HK * B), K::THREADS, K::SHARED};
    const Grid query_grid{static_cast<unsigned>(query_tiles * s.H * B), Q::THREADS, Q::SHARED};
    launch("attention_backward", backward_keys_kernel<HEAD>, key_grid, stream, dqkv, rows, dy, qkv, s, key_tiles);
    launch("attention_backward", backward_queries_kernel<HEAD>, query_grid, stream, dqkv, rows, dy, qkv, s, query_tiles);
}
#endif

// ------------------------------------------------------------------------------------------------------------ plain kernels
// 64 x 64 tiles in fp32, a thread 4 x 4 elements of one. A block writes 64 columns of the head, so heads can be of any size; it
// needs the scores, which are sums over the whole head, and makes them 64 columns at a time.

static constexpr int PLAIN = 64, PLAIN_THREADS = 256, PLAIN_PITCH = PLAIN + 1;       // the odd pitch spreads a column over the banks
static constexpr size_t PLAIN_TILE = PLAIN * PLAIN_PITCH;
static constexpr size_t PLAIN_SHARED = 3 * PLAIN_TILE * sizeof(float);

static __device__ int plain_row(int i) { return static_cast<int>(threadIdx.x) / 16 + 16 * i; }
static __device__ int plain_column(int j) { return static_cast<int>(threadIdx.x) % 16 + 16 * j; }

using PlainRows = Rows<const floatX>;

// Copies rows, and columns from d0 on, that are there, and zeros for the rest.
static __device__ void plain_fetch(float* tile, PlainRows from, int d0, int D) {
    const floatX* data = from.data + d0;
    const int columns = D - d0;
    for (int i = static_cast<int>(threadIdx.x); i < PLAIN * PLAIN / 4; i += PLAIN_THREADS) {
        const int row = i / (PLAIN / 4), column = i % (PLAIN / 4) * 4;
        float four[4] = {};
        if (row < from.count && column < columns) load(four, data + row * from.stride + column);
#pragma unroll
        for (int j = 0; j < 4; j++) tile[row * PLAIN_PITCH + column + j] = four[j];
    }
}

// sums += x y, or x y^T
template <bool TRANSPOSED>
__device__ void plain_matmul(float (&sums)[4][4], const float* x, const float* y) {
    for (int k = 0; k < PLAIN; k++) {
        float left[4], right[4];
#pragma unroll
        for (int i = 0; i < 4; i++) {
            left[i] = x[plain_row(i) * PLAIN_PITCH + k];
            right[i] = TRANSPOSED ? y[plain_column(i) * PLAIN_PITCH + k] : y[k * PLAIN_PITCH + plain_column(i)];
        }
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] += left[i] * right[j];
    }
}

// The block's shared memory: two tiles of inputs, and one of weights (p or ds), which multiply the second.
struct PlainTiles {
    float *x, *y, *p;
    __device__ PlainTiles() : x(shared_memory<float>()), y(x + PLAIN_TILE), p(y + PLAIN_TILE) {}

    // scores = a b^T over the whole head
    __device__ void scores(float (&sums)[4][4], PlainRows a, PlainRows b, int D) const {
#pragma unroll
        for (int i = 0; i < 16; i++) sums[i / 4][i % 4] = 0;
        for (int d = 0; d < D; d += PLAIN) {
            __syncthreads();
            plain_fetch(x, a, d, D);
            plain_fetch(y, b, d, D);
            __syncthreads();
            plain_matmul<true>(sums, x, y);
        }
    }
    // sums += weights b, for the columns of the head from d0 on
    __device__ void add_weighted(float (&sums)[4][4], const float (&weights)[4][4], PlainRows b, int d0, int D) const {
        __syncthreads();
        plain_fetch(y, b, d0, D);
#pragma unroll
        for (int i = 0; i < 16; i++) p[plain_row(i / 4) * PLAIN_PITCH + plain_column(i % 4)] = weights[i / 4][i % 4];
        __syncthreads();
        plain_matmul<false>(sums, p, y);
    }
};

static __device__ void plain_store(Rows<floatX> to, int d0, int D, const float (&sums)[4][4], const float (&factor)[4]) {
    floatX* data = to.data + d0;
    const int columns = D - d0;
#pragma unroll
    for (int i = 0; i < 16; i++)
        if (plain_row(i / 4) < to.count && plain_column(i % 4) < columns)
            data[plain_row(i / 4) * to.stride + plain_column(i % 4)] = to_floatX(sums[i / 4][i % 4] * factor[i / 4]);
}

static __global__ void __launch_bounds__(PLAIN_THREADS, 1)
plain_forward_kernel(floatX* y, float* lse, const floatX* qkv, Sizes s, int tiles) {
    const Place place(static_cast<int>(blockIdx.x), tiles, s.H);
    const int q0 = place.from_end(tiles) * PLAIN, g = place.head / s.group(), d0 = static_cast<int>(blockIdx.y) * PLAIN;
    const PlainTiles shared;
    const float scale = inverse_sqrt(s.D), log2_scale = scale * LOG2E;
    float out[4][4] = {}, row_max[4] = {LOWEST, LOWEST, LOWEST, LOWEST}, sum[4] = {};
    for (int k0 = max(0, q0 - s.window) / PLAIN * PLAIN; k0 < min(q0 + PLAIN, s.T); k0 += PLAIN) {
        float p[4][4];
        shared.scores(p, queries_from(s, qkv, place.batch, place.head, q0), keys_from(s, qkv, place.batch, g, k0), s.D);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float top = row_max[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                if (!s.sees(q0 + plain_row(i), k0 + plain_column(j))) p[i][j] = -INFINITY;
                top = fmaxf(top, p[i][j]);
            }
            top = warp_max<16>(top);
            const float rescale = exp2f((row_max[i] - top) * log2_scale);
            row_max[i] = top;
            sum[i] *= rescale;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                sum[i] += p[i][j] = exp2f(fmaf(p[i][j], log2_scale, -top * log2_scale));
                out[i][j] *= rescale;
            }
        }
        shared.add_weighted(out, p, values_from(s, qkv, place.batch, g, k0), d0, s.D);
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[i] = warp_sum<16>(sum[i]);
        const int t = q0 + plain_row(i);
        if (d0 == 0 && plain_column(0) == 0 && t < s.T)
            lse[s.all_heads(place.batch, place.head) * s.T + t] = row_max[i] * scale + logf(sum[i]);
        sum[i] = 1 / sum[i];
    }
    plain_store(out_from(s, y, place.batch, place.head, q0), d0, s.D, out, sum);
}

static __global__ void __launch_bounds__(PLAIN_THREADS, 1)
plain_backward_keys_kernel(floatX* dqkv, const QueryRow* rows, const floatX* dy, const floatX* qkv, Sizes s, int tiles) {
    const Place place(static_cast<int>(blockIdx.x), tiles, s.HK);
    const int k0 = place.tile * PLAIN, g = place.head, d0 = static_cast<int>(blockIdx.y) * PLAIN;
    const PlainTiles shared;
    const PlainRows k = keys_from(s, qkv, place.batch, g, k0), v = values_from(s, qkv, place.batch, g, k0);
    const float scale = inverse_sqrt(s.D), log2_scale = scale * LOG2E;
    float dk[4][4] = {}, dv[4][4] = {};
    for (int h = g * s.group(); h < (g + 1) * s.group(); h++)
        for (int q0 = k0; q0 < min(s.T, k0 + PLAIN + s.window); q0 += PLAIN) {
            const PlainRows q = queries_from(s, qkv, place.batch, h, q0), dout = out_from(s, dy, place.batch, h, q0);
            const QueryRow* row = rows + s.all_heads(place.batch, h) * padded(s.T) + q0;
            float p[4][4], ds[4][4];                            // rows are keys, columns queries
            shared.scores(p, k, q, s.D);
            shared.scores(ds, v, dout, s.D);
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    const QueryRow at = row[plain_column(j)];
                    const bool seen = s.sees(q0 + plain_column(j), k0 + plain_row(i));
                    p[i][j] = seen ? exp2f(fmaf(p[i][j], log2_scale, -at.lse2)) : 0;
                    ds[i][j] = p[i][j] * (ds[i][j] - at.delta);
                }
            shared.add_weighted(dv, p, dout, d0, s.D);
            shared.add_weighted(dk, ds, q, d0, s.D);
        }
    plain_store(keys_from(s, dqkv, place.batch, g, k0), d0, s.D, dk, {scale, scale, scale, scale});
    plain_store(values_from(s, dqkv, place.batch, g, k0), d0, s.D, dv, {1, 1, 1, 1});
}

static __global__ void __launch_bounds__(PLAIN_THREADS, 1)
plain_backward_queries_kernel(floatX* dqkv, const QueryRow* rows, const floatX* dy, const floatX* qkv, Sizes s, int tiles) {
    const Place place(static_cast<int>(blockIdx.x), tiles, s.H);
    const int q0 = place.from_end(tiles) * PLAIN, g = place.head / s.group(), d0 = static_cast<int>(blockIdx.y) * PLAIN;
    const PlainTiles shared;
    const PlainRows q = queries_from(s, qkv, place.batch, place.head, q0), dout = out_from(s, dy, place.batch, place.head, q0);
    const QueryRow* row = rows + s.all_heads(place.batch, place.head) * padded(s.T) + q0;
    const float scale = inverse_sqrt(s.D), log2_scale = scale * LOG2E;
    float dq[4][4] = {};
    for (int k0 = max(0, q0 - s.window) / PLAIN * PLAIN; k0 < min(q0 + PLAIN, s.T); k0 += PLAIN) {
        const PlainRows k = keys_from(s, qkv, place.batch, g, k0), v = values_from(s, qkv, place.batch, g, k0);
        float p[4][4], ds[4][4];
        shared.scores(p, q, k, s.D);
        shared.scores(ds, dout, v, s.D);
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const QueryRow at = row[plain_row(i)];
                const bool seen = s.sees(q0 + plain_row(i), k0 + plain_column(j));
                ds[i][j] = seen ? exp2f(fmaf(p[i][j], log2_scale, -at.lse2)) * (ds[i][j] - at.delta) : 0;
            }
        shared.add_weighted(dq, ds, k, d0, s.D);
    }
    plain_store(queries_from(s, dqkv, place.batch, place.head, q0), d0, s.D, dq, {scale, scale, scale, scale});
}

// ---------------------------------------------------------------------------------------------------------------- launchers

static Grid plain_grid(int tiles, int heads, int B, int D) {
    return {dim3(static_cast<unsigned>(tiles * heads * B), static_cast<unsigned>(ceil_div(D, PLAIN))), PLAIN_THREADS, PLAIN_SHARED};
}

void attention_forward(floatX* y, float* lse, void*, const floatX* qkv, int B, int T, int H, int HK, int D, int window,
                       Stream stream) {
    require_attention("attention_forward", B, T, H, HK, D, window);
    require_aligned("attention_forward", y, qkv);
    const Sizes s{T, H, HK, D, std::min(window, T)};
#ifndef PRECISION_FP32
    if (attention_on_hopper(D)) return attention_forward_hopper(y, lse, qkv, B, s, stream);
    if (D <= 64) return tiled_forward<64>(y, lse, qkv, B, s, stream);
    if (D <= 128) return tiled_forward<128>(y, lse, qkv, B, s, stream);
#endif
    const int tiles = ceil_div(T, PLAIN);
    launch("attention_forward", plain_forward_kernel, plain_grid(tiles, H, B, D), stream, y, lse, qkv, s, tiles);
}

void attention_backward(floatX* dqkv, void* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv, int B,
                        int T, int H, int HK, int D, int window, Stream stream) {
    require_attention("attention_backward", B, T, H, HK, D, window);
    require_aligned("attention_backward", dqkv, scratch, dy, y, qkv);
    const Sizes s{T, H, HK, D, std::min(window, T)};
    QueryRow* rows = static_cast<QueryRow*>(scratch);
    const int64_t total = B * padded(T) * H;
    const Grid row_grid{static_cast<unsigned>(ceil_div(total * ROW_LANES, ROW_THREADS)), ROW_THREADS};
    launch("attention_backward", query_rows_kernel, row_grid, stream, rows, dy, y, lse, s, total);
#ifndef PRECISION_FP32
    if (attention_on_hopper(D)) return attention_backward_hopper(dqkv, rows, dy, qkv, B, s, stream);
    if (D <= 64) return tiled_backward<64>(dqkv, rows, dy, qkv, B, s, stream);
    if (D <= 128) return tiled_backward<128>(dqkv, rows, dy, qkv, B, s, stream);
#endif
    const int tiles = ceil_div(T, PLAIN);
    launch("attention_backward", plain_backward_keys_kernel, plain_grid(tiles, HK, B, D), stream, dqkv, rows, dy, qkv, s, tiles);
    launch("attention_backward", plain_backward_queries_kernel, plain_grid(tiles, H, B, D), stream, dqkv, rows, dy, qkv, s, tiles);
}

// ---------------------------------------------------------------------------------------------------- decoding with a KV cache

// A block takes a new token and a head; its threads first take a key each, then a column of the values each. Bound by the bytes of
// the cache. New keys and values are read from qkv, so no block waits for another to write them to the cache.
static constexpr int CACHED_THREADS = 128;

static __global__ void __launch_bounds__(CACHED_THREADS)
cached_kernel(floatX* y, floatX* kcache, floatX* vcache, const floatX* qkv, Sizes s, int past) {
    const int thread = static_cast<int>(threadIdx.x), t = static_cast<int>(blockIdx.x), h = static_cast<int>(blockIdx.y);
    const int g = h / s.group(), D = s.D;
    const int64_t cache_width = static_cast<int64_t>(s.HK) * D;
    const floatX* new_keys = s.keys(qkv, 0, g);
    const floatX* new_values = s.values(qkv, 0, g);
    if (h % s.group() == 0)
        for (int d = thread; d < D; d += CACHED_THREADS) {
            kcache[(past + t) * cache_width + g * D + d] = new_keys[t * s.width() + d];
            vcache[(past + t) * cache_width + g * D + d] = new_values[t * s.width() + d];
        }

    float *q = shared_memory<float>(), *out = q + D;                    // (D) each
    float *score = out + D, *p = score + CACHED_THREADS;                // (threads) each
    for (int d = thread; d < D; d += CACHED_THREADS) {
        q[d] = to_float(s.queries(qkv, 0, h)[t * s.width() + d]);
        out[d] = 0;
    }
    const int last = past + t, first = max(0, last - s.window);
    const float log2_scale = inverse_sqrt(D) * LOG2E;
    float row_max = LOWEST, sum = 0;
    for (int k0 = first; k0 <= last; k0 += CACHED_THREADS) {
        __syncthreads();
        const int key = k0 + thread;
        float dot = 0;
        if (key <= last) {
            const floatX* k = key < past ? kcache + key * cache_width + g * D : new_keys + (key - past) * s.width();
            for (int d = 0; d < D; d += VECTOR) {
                float part[VECTOR];
                load(part, k + d);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) dot += q[d + i] * part[i];
            }
        }
        score[thread] = dot = key <= last ? dot : -INFINITY;
        __syncthreads();
        // Every warp finds the max and the sum for itself.
        float top = row_max, part = 0;
        for (int i = lane_of_thread(); i < CACHED_THREADS; i += WARP) top = fmaxf(top, score[i]);
        top = warp_max(top);
        for (int i = lane_of_thread(); i < CACHED_THREADS; i += WARP) part += exp2f(fmaf(score[i], log2_scale, -top * log2_scale));
        const float rescale = exp2f((row_max - top) * log2_scale);
        row_max = top;
        sum = sum * rescale + warp_sum(part);
        p[thread] = exp2f(fmaf(dot, log2_scale, -top * log2_scale));
        __syncthreads();
        const int n = min(CACHED_THREADS, last + 1 - k0);
        for (int d = thread; d < D; d += CACHED_THREADS) {
            float value = out[d] * rescale;
            for (int i = 0; i < n; i++) {
                const int at = k0 + i;
                value += p[i] * to_float(at < past ? vcache[at * cache_width + g * D + d]
                                                   : new_values[(at - past) * s.width() + d]);
            }
            out[d] = value;
        }
    }
    for (int d = thread; d < D; d += CACHED_THREADS)
        y[t * s.out_width() + static_cast<int64_t>(h) * D + d] = to_floatX(out[d] / sum);
}

void attention_cached(floatX* y, floatX* kcache, floatX* vcache, const floatX* qkv, int T, int capacity, int H, int HK, int D,
                      int past, int window, Stream stream) {
    require_attention("attention_cached", 1, T, H, HK, D, window);
    require(past >= 0, "attention_cached: past must not be negative: ", past);
    require(T <= capacity - past, "attention_cached: past + T (", past, " + ", T, ") must not exceed the capacity, ", capacity);
    require_aligned("attention_cached", kcache, qkv);
    const size_t shared = (2 * static_cast<size_t>(D) + 2 * CACHED_THREADS) * sizeof(float);
    const Grid grid{dim3(static_cast<unsigned>(T), static_cast<unsigned>(H)), CACHED_THREADS, shared};
    const Sizes s{T, H, HK, D, std::min(window, capacity)};
    launch("attention_cached", cached_kernel, grid, stream, y, kcache, vcache, qkv, s, past);
}
