// The ladder of causal attention, forward: y = softmax(q k^T / sqrt(D)) v for every head, where a query sees itself and `window` keys before it.
// Two products of 2 T T D FLOPs a head, and T T exponentials between them. On paper it is bound by arithmetic: q, k, v and y are
// read and written in a small part of the time. How much of the paper's bound a kernel sees depends on where it keeps the T x T scores.
#include "dev/kernels/ladder.h"
#include "llmc/attention.h"

// Where the rows of head h of sequence b begin. Rows of q, k and v are 3 H D apart, those of y H D.
struct Rows {
    int64_t width, out_width, q, k, v, y, lse;
    __device__ Rows(AttentionSize s, int head)
        : width(int64_t{3} * s.H * HEAD), out_width(int64_t{s.H} * HEAD), q(head / s.H * s.T * width + head % s.H * HEAD), k(q + out_width),
          v(k + out_width), y(head / s.H * s.T * out_width + head % s.H * HEAD), lse(int64_t{head} * s.T) {}
};

static __device__ int thread() { return static_cast<int>(threadIdx.x); }
static __device__ bool sees(AttentionSize s, int query, int key) { return key <= query && key >= query - s.window; }

static constexpr float SCALE = 0.125f;              // 1 / sqrt(HEAD)
static constexpr float LOWEST = -1e30f;             // what a greatest score starts from: finite, so that differences stay numbers
static_assert(SCALE * SCALE * HEAD == 1);

// ------------------------------------------------------------------------------------------------------------ 1. the formula
// Three kernels, with the scores of all heads in device memory between them, in fp32: a thread a score; a block a row of the softmax; a thread
// an element of y. Each fused multiply-add loads both of its numbers, and a multiprocessor loads for 32 threads a clock where it
// could multiply for 128 (A100: 64). Worse, threads that are neighbours read rows of k that are 3 H D apart: a load of the warp touches 32
// cache lines, of which the first cache looks up 4 a clock. Bound by cache lines in the first kernel, by loads in the last. The scores'
// 4 T T bytes a head are written, read, written and read, which takes a twentieth of that.
static constexpr int THREADS = 256;

static __global__ void __launch_bounds__(THREADS)
scores_kernel(float* scores, const floatX* qkv, AttentionSize s) {
    const int head = static_cast<int>(blockIdx.z), query = static_cast<int>(blockIdx.y), key = static_cast<int>(blockIdx.x) * THREADS + thread();
    if (key >= s.T) return;
    const Rows at(s, head);
    const floatX *q = qkv + at.q + query * at.width, *k = qkv + at.k + key * at.width;
    float score = 0;
    for (int d = 0; d < HEAD; d++) score += to_float(q[d]) * to_float(k[d]);
    scores[(at.lse + query) * s.T + key] = sees(s, query, key) ? score * SCALE : -INFINITY;
}

static __global__ void __launch_bounds__(THREADS)
softmax_kernel(float* lse, float* scores, AttentionSize s) {
    float* row = scores + static_cast<int64_t>(blockIdx.x) * s.T;
    float top = -INFINITY, sum = 0;
    for (int key = thread(); key < s.T; key += THREADS) top = fmaxf(top, row[key]);
    top = block_max(top, shared_memory<float>());
    for (int key = thread(); key < s.T; key += THREADS) sum += expf(row[key] - top);
    const float log_sum = top + logf(block_sum(sum, shared_memory<float>()));
    for (int key = thread(); key < s.T; key += THREADS) row[key] = expf(row[key] - log_sum);
    if (thread() == 0) lse[blockIdx.x] = log_sum;
}

static __global__ void __launch_bounds__(THREADS)
values_kernel(floatX* y, const float* p, const floatX* qkv, AttentionSize s) {
    const int head = static_cast<int>(blockIdx.y), query = static_cast<int>(blockIdx.x) * (THREADS / HEAD) + thread() / HEAD, d = thread() % HEAD;
    if (query >= s.T) return;
    const Rows at(s, head);
    float sum = 0;
    for (int key = 0; key < s.T; key++) sum += p[(at.lse + query) * s.T + key] * to_float(qkv[at.v + key * at.width + d]);
    y[at.y + query * at.out_width + d] = to_floatX(sum);
}

static void softmax_rows(float* lse, float* scores, AttentionSize s, Stream stream) {
    launch("softmax", softmax_kernel, {dim3(static_cast<unsigned>(s.B * s.H * s.T)), THREADS, WARP * sizeof(float)}, stream, lse, scores, s);
}
static void formula(floatX* y, float* lse, float* scratch, const floatX* qkv, AttentionSize s, Stream stream) {
    const unsigned T = static_cast<unsigned>(s.T), heads = static_cast<unsigned>(s.B * s.H);
    launch("scores", scores_kernel, {dim3(ceil_div(T, THREADS), T, heads), THREADS}, stream, scratch, qkv, s);
    softmax_rows(lse, scratch, s, stream);
    launch("values", values_kernel, {dim3(ceil_div(T, THREADS / HEAD), heads), THREADS}, stream, y, scratch, qkv, s);
}

// ---------------------------------------------------------------------------------------------------- 2. tiles in shared memory
// The same three kernels; the products work on tiles of 64 x 64. A block loads a tile of each side into shared memory, coalesced, as
// floats, and each of 256 threads computes 4 x 4 elements: 8 loads from shared memory for 16 fused multiply-adds, where the formula has
// 32. That leaves the loads (8 turns of 32 threads), the multiply-adds and the instructions (24 and the loop, of 128) near each other:
// bound by instructions, those that bring the tiles included. Rows of a tile lie 65 words apart: shared memory has 32 banks a word
// wide, and a bank gives one word a clock. A warp reads one column of 16 neighbouring rows of k at once: 65 words apart they lie in 16
// different banks; 64 words apart they would all lie in one bank and take 16 clocks.
static constexpr int TILE = 64, PITCH = TILE + 1, FLOATS = TILE * PITCH;
static_assert(TILE == HEAD);

// Rows `rows` and columns `columns` and beyond become zeros.
template <class X>
__device__ void load_tile(float* tile, const X* from, int64_t stride, int rows, int columns) {
    for (int i = thread(); i < TILE * TILE; i += THREADS) {
        const int row = i / TILE, column = i % TILE;
        tile[row * PITCH + column] = row < rows && column < columns ? to_float(from[row * stride + column]) : 0;
    }
}

// A thread's elements: rows y + 16 i and columns x + 16 j of the tile.
static __device__ int row_of(int i) { return thread() / 16 + 16 * i; }
static __device__ int column_of(int j) { return thread() % 16 + 16 * j; }

// sums += a b^T, or a b
template <bool TRANSPOSED>
__device__ void add_product(float (&sums)[4][4], const float* a, const float* b) {
#pragma unroll 8
    for (int k = 0; k < TILE; k++) {
        float left[4], right[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = a[row_of(i) * PITCH + k];
#pragma unroll
        for (int j = 0; j < 4; j++) right[j] = TRANSPOSED ? b[column_of(j) * PITCH + k] : b[k * PITCH + column_of(j)];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] += left[i] * right[j];
    }
}

static __global__ void __launch_bounds__(THREADS)
tiled_scores_kernel(float* scores, const floatX* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(blockIdx.y) * TILE, k0 = static_cast<int>(blockIdx.x) * TILE;
    const Rows at(s, static_cast<int>(blockIdx.z));
    float *q = shared_memory<float>(), *k = q + FLOATS, sums[4][4] = {};
    load_tile(q, qkv + at.q + q0 * at.width, at.width, s.T - q0, HEAD);
    load_tile(k, qkv + at.k + k0 * at.width, at.width, s.T - k0, HEAD);
    __syncthreads();
    add_product<true>(sums, q, k);
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) {
            const int query = q0 + row_of(i), key = k0 + column_of(j);
            if (query < s.T && key < s.T) scores[(at.lse + query) * s.T + key] = sees(s, query, key) ? sums[i][j] * SCALE : -INFINITY;
        }
}

static __global__ void __launch_bounds__(THREADS)
tiled_values_kernel(floatX* y, const float* scores, const floatX* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(blockIdx.x) * TILE;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float *p = shared_memory<float>(), *v = p + FLOATS, sums[4][4] = {};
    for (int k0 = 0; k0 < s.T; k0 += TILE) {
        load_tile(p, scores + (at.lse + q0) * s.T + k0, s.T, s.T - q0, s.T - k0);
        load_tile(v, qkv + at.v + k0 * at.width, at.width, s.T - k0, HEAD);
        __syncthreads();
        add_product<false>(sums, p, v);
        __syncthreads();                            // all have read the tiles before the next ones overwrite them
    }
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (q0 + row_of(i) < s.T) y[at.y + (q0 + row_of(i)) * at.out_width + column_of(j)] = to_floatX(sums[i][j]);
}

static void tiled(floatX* y, float* lse, float* scratch, const floatX* qkv, AttentionSize s, Stream stream) {
    const unsigned tiles = static_cast<unsigned>(ceil_div(s.T, TILE)), heads = static_cast<unsigned>(s.B * s.H);
    const size_t shared = 2 * FLOATS * sizeof(float);
    launch("tiled_scores", tiled_scores_kernel, {dim3(tiles, tiles, heads), THREADS, shared}, stream, scratch, qkv, s);
    softmax_rows(lse, scratch, s, stream);
    launch("tiled_values", tiled_values_kernel, {dim3(tiles, heads), THREADS, shared}, stream, y, scratch, qkv, s);
}

// ------------------------------------------------------------------------------------ 3. no scores in memory: FlashAttention (Dao et al. 2022)
// One kernel. A block keeps a tile of queries and walks over the tiles of keys; a tile of scores lives in registers, then, as probabilities,
// in shared memory, and never leaves the multiprocessor. The softmax is online (cross_entropy.cu, step 2), and what it shrinks when
// a greater score comes is the sum and the row of y so far. The memory's part falls from 4 readings or writings of T T floats a head to
// that of q, k, v and y. Bound by instructions, with loads close behind (A100: and the multiply-adds): the products are the same as before.
// (Of the stores of p two meet in each bank; they are one for 128 multiply-adds.)
static __global__ void __launch_bounds__(THREADS)
flash_kernel(floatX* y, float* lse, const floatX* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(blockIdx.x) * TILE;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float *q = shared_memory<float>(), *k = q + FLOATS, *v = k + FLOATS, *p = v + FLOATS;
    float out[4][4] = {}, greatest[4] = {LOWEST, LOWEST, LOWEST, LOWEST}, sum[4] = {};
    load_tile(q, qkv + at.q + q0 * at.width, at.width, s.T - q0, HEAD);
    for (int k0 = 0; k0 < s.T; k0 += TILE) {
        load_tile(k, qkv + at.k + k0 * at.width, at.width, s.T - k0, HEAD);
        load_tile(v, qkv + at.v + k0 * at.width, at.width, s.T - k0, HEAD);
        __syncthreads();
        float scores[4][4] = {};
        add_product<true>(scores, q, k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float top = greatest[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                scores[i][j] = sees(s, q0 + row_of(i), k0 + column_of(j)) ? scores[i][j] * SCALE : -INFINITY;
                top = fmaxf(top, scores[i][j]);
            }
            top = warp_max<16>(top);                // the 16 threads of a row are half of a warp
            const float shrink = expf(greatest[i] - top);
            greatest[i] = top;
            sum[i] *= shrink;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float probability = expf(scores[i][j] - top);
                sum[i] += probability;
                out[i][j] *= shrink;
                p[row_of(i) * PITCH + column_of(j)] = probability;
            }
        }
        __syncwarp();                               // a row of p is written and read by the same half of a warp
        add_product<false>(out, p, v);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[i] = warp_sum<16>(sum[i]);
        const int query = q0 + row_of(i);
        if (query >= s.T) continue;
        if (thread() % 16 == 0) lse[at.lse + query] = greatest[i] + logf(sum[i]);
#pragma unroll
        for (int j = 0; j < 4; j++) y[at.y + query * at.out_width + column_of(j)] = to_floatX(out[i][j] / sum[i]);
    }
}
static void flash(floatX* y, float* lse, float*, const floatX* qkv, AttentionSize s, Stream stream) {
    const Grid grid{dim3(static_cast<unsigned>(ceil_div(s.T, TILE)), static_cast<unsigned>(s.B * s.H)), THREADS, 4 * FLOATS * sizeof(float)};
    launch("flash", flash_kernel, grid, stream, y, lse, qkv, s);
}

#ifndef PRECISION_FP32
// ------------------------------------------------------------------------------------------------------------ 4. tensor cores
// The products by mma.sync: a warp multiplies 16 x 16 by 16 x 8 in one instruction, on numbers that lie spread over its lanes. A warp owns 16
// queries, whose q it holds in registers; ldmatrix brings k and v from shared memory into the layout that mma wants. What mma puts out is
// laid out as the left side that it takes, so the probabilities go from one product into the next without leaving the registers,
// rounded to bf16. Rows of a tile are 72 elements long: the 8 rows of 16 bytes that ldmatrix reads at once are 36 words apart and lie in
// 32 different banks. Bound by loads from shared memory: every warp reads all of k and v, 16 KiB for 16 x 64 scores. Instructions are close
// behind, the exponentials take as long as the products (H200), the tile's loads are waited for by all, and half of the scores are
// masked: computed for nothing.
static constexpr int WARPS = 4, MMA_THREADS = WARPS * WARP, MMA_PITCH = HEAD + 8, ELEMENTS = TILE * MMA_PITCH;
static_assert(WARPS * 16 == TILE);
static constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

// What a warp keeps of its 16 queries. Of a product's 16 x 8 elements a lane holds (row, column), (row, column + 1) and the same 8 rows
// below, where row = lane / 4 and column = 2 (lane % 4). Index r, 0 or 1, is the upper or the lower of the lane's rows.
struct Queries {
    uint32_t q[HEAD / 16][4];
    float out[HEAD / 8][4] = {};
    float greatest[2] = {LOWEST, LOWEST}, sum[2] = {};        // scores are counted in powers of two; sums are over the lane's own columns

    __device__ void load_queries(const bf16* tile) {
#pragma unroll
        for (int d = 0; d < HEAD / 16; d++)
            ldmatrix_x4(q[d], tile + (warp_of_thread() * 16 + lane_of_thread() % 16) * MMA_PITCH + 16 * d + lane_of_thread() / 16 * 8);
    }

    // p (16, TILE) = the warp's queries times the tile's keys
    __device__ void score(float (&p)[TILE / 8][4], const bf16* keys) const {
        const bf16* lane_row = keys + (lane_of_thread() / 16 * 8 + lane_of_thread() % 8) * MMA_PITCH + lane_of_thread() / 8 % 2 * 8;
#pragma unroll
        for (int n = 0; n < TILE / 8; n += 2) {
#pragma unroll
            for (int i = 0; i < 4; i++) p[n][i] = p[n + 1][i] = 0;
#pragma unroll
            for (int d = 0; d < HEAD / 16; d++) {
                uint32_t b[4];
                ldmatrix_x4(b, lane_row + 8 * n * MMA_PITCH + 16 * d);
                mma_m16n8k16(p[n], q[d], {b[0], b[1]});
                mma_m16n8k16(p[n + 1], q[d], {b[2], b[3]});
            }
        }
    }

    // Scores that are not seen become -infinity.
    __device__ void mask(float (&p)[TILE / 8][4], AttentionSize s, int query, int key) const {
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!sees(s, query + lane_of_thread() / 4 + 8 * (i / 2), key + 8 * n + 2 * (lane_of_thread() % 4) + i % 2)) p[n][i] = -INFINITY;
    }

    // The online softmax over a tile of scores.
    __device__ void exponentiate(float (&p)[TILE / 8][4]) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) top = fmaxf(top, fmaxf(p[n][2 * r], p[n][2 * r + 1]));
            top = fmaxf(greatest[r], warp_max<4>(top) * (SCALE * LOG2E));
            const float shrink = fast_exp2(greatest[r] - top);
            greatest[r] = top;
            sum[r] *= shrink;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++) out[n][2 * r] *= shrink, out[n][2 * r + 1] *= shrink;
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i / 2] += p[n][i] = fast_exp2(fmaf(p[n][i], SCALE * LOG2E, -greatest[i / 2]));
    }

    // out += p times the tile's values
    __device__ void add_values(const float (&p)[TILE / 8][4], const bf16* values) {
        const bf16* lane_row = values + lane_of_thread() % 16 * MMA_PITCH + lane_of_thread() / 16 * 8;
#pragma unroll
        for (int k = 0; k < TILE / 16; k++) {
            const uint32_t left[4] = {pack_bf16(p[2 * k][0], p[2 * k][1]), pack_bf16(p[2 * k][2], p[2 * k][3]),
                                      pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]), pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
            for (int n = 0; n < HEAD / 8; n += 2) {
                uint32_t b[4];
                ldmatrix_x4_trans(b, lane_row + 16 * k * MMA_PITCH + 8 * n);
                mma_m16n8k16(out[n], left, {b[0], b[1]});
                mma_m16n8k16(out[n + 1], left, {b[2], b[3]});
            }
        }
    }

    // `query` is the warp's first. A lane writes 4 bytes, four neighbours 16: half of a sector, which the second cache completes.
    __device__ void finish(bf16* y, float* lse, const Rows& at, int query, int T) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] = warp_sum<4>(sum[r]);
            const int row = query + lane_of_thread() / 4 + 8 * r;
            if (row >= T) continue;
            if (lane_of_thread() % 4 == 0) lse[at.lse + row] = greatest[r] * LN2 + logf(sum[r]);
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++)
                *reinterpret_cast<uint32_t*>(y + at.y + row * at.out_width + 8 * n + 2 * (lane_of_thread() % 4)) =
                    pack_bf16(out[n][2 * r] / sum[r], out[n][2 * r + 1] / sum[r]);
        }
    }
};

// 64 rows of one head, 16 bytes at a time, through `copy`(to, from, wanted).
template <class Copy>
__device__ void copy_tile(bf16* tile, const bf16* from, int64_t stride, int rows, Copy copy) {
#pragma unroll
    for (int i = 0; i < TILE * HEAD / 8; i += MMA_THREADS) {
        const int row = (i + thread()) / (HEAD / 8), column = (i + thread()) % (HEAD / 8) * 8;
        copy(tile + row * MMA_PITCH + column, from + row * stride + column, row < rows);
    }
}

static __global__ void __launch_bounds__(MMA_THREADS)
tensor_cores_kernel(bf16* y, float* lse, const bf16* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(blockIdx.x) * TILE, query = q0 + 16 * warp_of_thread();
    const Rows at(s, static_cast<int>(blockIdx.y));
    bf16 *q = shared_memory<bf16>(), *k = q + ELEMENTS, *v = k + ELEMENTS;
    auto load_now = [&](bf16* tile, int64_t begin, int row, int rows) {
        copy_tile(tile, qkv + begin + row * at.width, at.width, rows,
                  [](bf16* to, const bf16* from, bool wanted) { store_packed(to, wanted ? load_packed(from) : Packed{}); });
    };
    load_now(q, at.q, q0, s.T - q0);
    __syncthreads();
    Queries mine;
    mine.load_queries(q);
    for (int k0 = 0; k0 < s.T; k0 += TILE) {
        load_now(k, at.k, k0, s.T - k0);
        load_now(v, at.v, k0, s.T - k0);
        __syncthreads();
        float p[TILE / 8][4];
        mine.score(p, k);
        mine.mask(p, s, query, k0);
        mine.exponentiate(p);
        mine.add_values(p, v);
        __syncthreads();
    }
    mine.finish(y, lse, at, query, s.T);
}
static void tensor_cores(floatX* y, float* lse, float*, const floatX* qkv, AttentionSize s, Stream stream) {
    const Grid grid{dim3(static_cast<unsigned>(ceil_div(s.T, TILE)), static_cast<unsigned>(s.B * s.H)), MMA_THREADS, 3 * ELEMENTS * sizeof(bf16)};
    launch("tensor_cores", tensor_cores_kernel, grid, stream, y, lse, qkv, s);
}

// ----------------------------------------------------------------------------------- 5. copies that run ahead, tiles that are skipped
// Two buffers of keys and values: cp.async copies the next tile into one, past the registers, while the block computes on the other, so the
// latency of memory hides behind the products, and one barrier a tile does. Tiles that no query of the block sees, above the diagonal and
// before the window, are never loaded: half of all for a long causal sequence, nearly all for a short window. Only tiles on a border need the
// mask. Long walks, those of the last queries, begin first, so that no block starts one when the others are done. Bound by loads from
// shared memory still, for half of the tiles: a warp with 16 queries reads too much for what it computes.
static __global__ void __launch_bounds__(MMA_THREADS)
ahead_kernel(bf16* y, float* lse, const bf16* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * TILE, query = q0 + 16 * warp_of_thread();
    const Rows at(s, static_cast<int>(blockIdx.y));
    bf16 *q = shared_memory<bf16>(), *buffers = q + ELEMENTS;
    auto load_ahead = [&](bf16* tile, int64_t begin, int row) {
        copy_tile(tile, qkv + begin + row * at.width, at.width, s.T - row, [](bf16* to, const bf16* from, bool wanted) { copy_async(to, from, wanted); });
    };
    auto load_keys = [&](int k0, int buffer) {
        load_ahead(buffers + 2 * buffer * ELEMENTS, at.k, k0);
        load_ahead(buffers + (2 * buffer + 1) * ELEMENTS, at.v, k0);
        copy_async_commit();
    };
    const int first = max(0, q0 - s.window) / TILE * TILE, end = min(q0 + TILE, s.T);
    load_ahead(q, at.q, q0);
    load_keys(first, 0);
    Queries mine;
    for (int k0 = first, buffer = 0; k0 < end; k0 += TILE, buffer ^= 1) {
        copy_async_wait<0>();
        __syncthreads();                            // the tiles are here for all, and all are done with the other buffer
        if (k0 + TILE < end) load_keys(k0 + TILE, buffer ^ 1);
        if (k0 == first) mine.load_queries(q);
        const bf16 *k = buffers + 2 * buffer * ELEMENTS, *v = k + ELEMENTS;
        float p[TILE / 8][4];
        mine.score(p, k);
        if (k0 + TILE - 1 > query || k0 < query + 15 - s.window) mine.mask(p, s, query, k0);
        mine.exponentiate(p);
        mine.add_values(p, v);
    }
    mine.finish(y, lse, at, query, s.T);
}
static void ahead(floatX* y, float* lse, float*, const floatX* qkv, AttentionSize s, Stream stream) {
    const Grid grid{dim3(static_cast<unsigned>(ceil_div(s.T, TILE)), static_cast<unsigned>(s.B * s.H)), MMA_THREADS, 5 * ELEMENTS * sizeof(bf16)};
    launch("ahead", ahead_kernel, grid, stream, y, lse, qkv, s);
}
#endif

// 6. llmc/attention.cu: any head size, grouped heads, and 32 queries a warp, which halves what a product reads from shared memory. Bound by the
// tensor cores, with the exponentials close behind.
static void engine(floatX* y, float* lse, float* scratch, const floatX* qkv, AttentionSize s, Stream stream) {
    attention_forward(y, lse, scratch, qkv, s.B, s.T, s.H, s.H, HEAD, s.window, stream);
}

// -------------------------------------------------------------------------------------------------------------------- the work

static constexpr double BYTES = sizeof(floatX);

// Scores of all tiles, seen or not, in tiles of 64 x 64 queries and keys.
static double all_scores(const AttentionSize& s) { return static_cast<double>(s.B) * s.H * ceil_div(s.T, TILE) * ceil_div(s.T, TILE) * TILE * TILE; }
// q, k, v read and y written; lse is a part of a hundred.
static double necessary_bytes(const AttentionSize& s) { return 4 * s.elements() * BYTES; }

static double scores_in_memory(const AttentionSize& s) { return static_cast<double>(s.B) * s.H * s.T * s.T; }

// A product with the scores in memory: `words` and `lines` of loads and the instructions for a score, which is HEAD multiply-adds.
static Work product(const AttentionSize& s, double words, double lines, double instructions) {
    const double scores = scores_in_memory(s);
    return {.memory = 4 * scores, .fp32 = 2 * HEAD * scores, .words = words * scores, .lines = lines * scores, .instructions = COUNTED * instructions * scores};
}
static Work softmax(const AttentionSize& s) {
    const double scores = scores_in_memory(s);
    return {.memory = 8 * scores, .special = 2 * scores, .words = 4 * scores, .instructions = COUNTED * 27.6 * scores};
}
// In one kernel, products by mma. A warp reads a row of k and one of v for 16 queries.
[[maybe_unused]] static Work by_tensor_cores(const AttentionSize& s, double scores, double instructions) {
    return {.memory = necessary_bytes(s), .tensor = 4 * HEAD * scores, .special = scores, .words = 2 * HEAD * BYTES / 4 / 16 * scores,
            .instructions = COUNTED * instructions * scores};
}

const std::vector<Step<Attention, AttentionSize>>& attention_ladder() {
    using Size = AttentionSize;
    using Works = std::vector<Work>;
    static const std::vector<Step<Attention, Size>> steps = {
        {"the formula, three kernels", formula,
         [](const Size& s) { return Works{product(s, 2 * HEAD, HEAD + HEAD / 32.0, 334), softmax(s), product(s, 2 * HEAD, 2 * HEAD / 32.0, 416)}; }},
        {"tiles in shared memory", tiled, [](const Size& s) { return Works{product(s, HEAD / 2.0, 0, 158), softmax(s), product(s, HEAD / 2.0, 0, 159)}; }},
        {"no scores in memory: flash attention", flash,
         [](const Size& s) {
             const double scores = all_scores(s);
             return Works{{.memory = necessary_bytes(s), .fp32 = 4 * HEAD * scores, .special = scores, .words = HEAD * scores, .instructions = COUNTED * 281 * scores}};
         }},
#ifndef PRECISION_FP32
        {"tensor cores", tensor_cores, [](const Size& s) { return Works{by_tensor_cores(s, all_scores(s), 14.7)}; }},
        {"copies run ahead, tiles are skipped", ahead,
         [](const Size& s) {
             double tiles = 0;
             for (int q0 = 0; q0 < s.T; q0 += TILE) tiles += q0 / TILE + 1 - std::max(0, q0 - s.window) / TILE;
             return Works{by_tensor_cores(s, tiles * s.B * s.H * TILE * TILE, 15.8)};
         }},
#endif
        {"llmc/attention.cu", engine, [](const Size& s) {
             const double flops = 4 * HEAD * s.pairs();
             return Works{{.memory = necessary_bytes(s), .tensor = BYTES == 2 ? flops : 0, .fp32 = BYTES == 2 ? 0 : flops, .special = s.pairs()}};
         }}};
    return steps;
}
