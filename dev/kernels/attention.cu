// The ladders of causal attention: y = softmax(q k^T / sqrt(D)) v for every head, where a query sees itself and `window` keys before it;
// the gradients further down. Forward: two matmuls of 2 T T D FLOPs a head, and T T exponentials between them. On paper it is bound by
// arithmetic: q, k, v and y are read and written in a small part of the time. How near a kernel comes to that bound depends on where it
// keeps the T x T scores.
#include "dev/kernels/ladder.h"

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
static constexpr float LOWEST = -1e30f;             // what row_max starts from: finite, so that differences stay numbers
static_assert(SCALE * SCALE * HEAD == 1);

// ------------------------------------------------------------------------------------------------------------ 1. the formula
// Three kernels, with the scores of all heads in device memory between them, in fp32: a thread a score; a block a row of the softmax; a
// thread an element of y. Each fused multiply-add loads both of its operands, and an SM loads for 32 threads a clock where it could
// multiply for 128 (A100: 64). Worse, neighbouring threads read rows of k that are 3 H D apart: a load of the warp touches 32 cache
// lines, of which L1 looks up 4 a clock. Bound by cache lines in the first kernel, by loads in the last. The
// scores' 4 T T bytes a head are written, read, written and read, which takes a twentieth of that.
static constexpr int THREADS = 256;

static __global__ void __launch_bounds__(THREADS)
scores_kernel(float* scores, const floatX* qkv, AttentionSize s) {
    const int head = static_cast<int>(blockIdx.z), query = static_cast<int>(blockIdx.y);
    const int key = static_cast<int>(blockIdx.x) * THREADS + thread();
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
    const int head = static_cast<int>(blockIdx.y), d = thread() % HEAD;
    const int query = static_cast<int>(blockIdx.x) * (THREADS / HEAD) + thread() / HEAD;
    if (query >= s.T) return;
    const Rows at(s, head);
    float sum = 0;
    for (int key = 0; key < s.T; key++) sum += p[(at.lse + query) * s.T + key] * to_float(qkv[at.v + key * at.width + d]);
    y[at.y + query * at.out_width + d] = to_floatX(sum);
}

static void softmax_rows(float* lse, float* scores, AttentionSize s, Stream stream) {
    launch("softmax", softmax_kernel, {dim3(static_cast<unsigned>(s.B * s.H * s.T)), THREADS, WARP * sizeof(float)}, stream, lse, scores,
           s);
}
static void formula(floatX* y, float* lse, float* scratch, const floatX* qkv, AttentionSize s, Stream stream) {
    const unsigned T = static_cast<unsigned>(s.T), heads = static_cast<unsigned>(s.B * s.H);
    launch("scores", scores_kernel, {dim3(ceil_div(T, THREADS), T, heads), THREADS}, stream, scratch, qkv, s);
    softmax_rows(lse, scratch, s, stream);
    launch("values", values_kernel, {dim3(ceil_div(T, THREADS / HEAD), heads), THREADS}, stream, y, scratch, qkv, s);
}

// ---------------------------------------------------------------------------------------------------- 2. tiles in shared memory
// The same three kernels; the matmuls work on tiles of 64 x 64. A block loads a tile of each side into shared memory, coalesced, as
// floats, and each of 256 threads computes 4 x 4 elements: 8 loads from shared memory for 16 fused multiply-adds, where the formula has
// 32. The loads (8, for 32 threads a clock), the multiply-adds and the instructions (24 and the loop, for 128) are then near each other:
// bound by instructions, those that load the tiles included. Rows of a tile lie 65 words apart: shared memory has 32 banks a word
// wide, and a bank gives one word a clock. A warp reads one column of 16 neighbouring rows of k at once: 65 words apart they lie in 16
// different banks; 64 words apart they would all lie in one bank and take 16 clocks.
static constexpr int TILE = 64, PITCH = TILE + 1, FLOATS = TILE * PITCH;
static_assert(TILE == HEAD);
static dim3 blocks_of_tiles(AttentionSize s) { return dim3(static_cast<unsigned>(ceil_div(s.T, TILE)), static_cast<unsigned>(s.B * s.H)); }

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
__device__ void add_matmul(float (&sums)[4][4], const float* a, const float* b) {
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
    add_matmul<true>(sums, q, k);
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
        add_matmul<false>(sums, p, v);
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

// ------------------------------------------------------------------------------- 3. no scores in memory: FlashAttention (Dao et al. 2022)
// One kernel. A block keeps a tile of queries and walks over the tiles of keys; a tile of scores lives in registers, then, as
// probabilities, in shared memory, and never leaves the SM. The softmax is online (cross_entropy.cu, step 2): a new max rescales the sum
// and the row of y so far. Memory traffic falls from 4 readings or writings of T T floats a head to that of q, k, v and y. Bound by
// instructions, with loads close behind (A100: and the multiply-adds): the matmuls are the same as before. (The stores of p have two-way
// bank conflicts; there is one store for 128 multiply-adds.)
static __global__ void __launch_bounds__(THREADS)
flash_kernel(floatX* y, float* lse, const floatX* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(blockIdx.x) * TILE;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float *q = shared_memory<float>(), *k = q + FLOATS, *v = k + FLOATS, *p = v + FLOATS;
    float out[4][4] = {}, row_max[4] = {LOWEST, LOWEST, LOWEST, LOWEST}, sum[4] = {};
    load_tile(q, qkv + at.q + q0 * at.width, at.width, s.T - q0, HEAD);
    for (int k0 = 0; k0 < s.T; k0 += TILE) {
        load_tile(k, qkv + at.k + k0 * at.width, at.width, s.T - k0, HEAD);
        load_tile(v, qkv + at.v + k0 * at.width, at.width, s.T - k0, HEAD);
        __syncthreads();
        float scores[4][4] = {};
        add_matmul<true>(scores, q, k);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            float top = row_max[i];
#pragma unroll
            for (int j = 0; j < 4; j++) {
                scores[i][j] = sees(s, q0 + row_of(i), k0 + column_of(j)) ? scores[i][j] * SCALE : -INFINITY;
                top = fmaxf(top, scores[i][j]);
            }
            top = warp_max<16>(top);                // the 16 threads of a row are half of a warp
            const float rescale = expf(row_max[i] - top);
            row_max[i] = top;
            sum[i] *= rescale;
#pragma unroll
            for (int j = 0; j < 4; j++) {
                const float probability = expf(scores[i][j] - top);
                sum[i] += probability;
                out[i][j] *= rescale;
                p[row_of(i) * PITCH + column_of(j)] = probability;
            }
        }
        __syncwarp();                               // a row of p is written and read by the same half of a warp
        add_matmul<false>(out, p, v);
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; i++) {
        sum[i] = warp_sum<16>(sum[i]);
        const int query = q0 + row_of(i);
        if (query >= s.T) continue;
        if (thread() % 16 == 0) lse[at.lse + query] = row_max[i] + logf(sum[i]);
#pragma unroll
        for (int j = 0; j < 4; j++) y[at.y + query * at.out_width + column_of(j)] = to_floatX(out[i][j] / sum[i]);
    }
}
static void flash(floatX* y, float* lse, float*, const floatX* qkv, AttentionSize s, Stream stream) {
    launch("flash", flash_kernel, {blocks_of_tiles(s), THREADS, 4 * FLOATS * sizeof(float)}, stream, y, lse, qkv, s);
}

#ifndef PRECISION_FP32
// ------------------------------------------------------------------------------------------------------------ 4. tensor cores
// The matmuls by mma.sync: a warp multiplies 16 x 16 by 16 x 8 in one instruction, with operands spread over its lanes' registers. A warp
// owns 16 queries, whose q it holds in registers; ldmatrix loads k and v from shared memory in the layout that mma wants. mma's output
// has the layout of its left operand, so the probabilities go from one matmul into the next without leaving the registers, rounded to
// bf16. Rows of a tile are 72 elements long: the 8 rows of 16 bytes that ldmatrix reads at once are 36 words apart and lie in 32
// different banks. Bound by loads from shared memory: every warp reads all of k and v, 16 KiB for 16 x 64 scores. Instructions are close
// behind, the exponentials take as long as the matmuls (H200), all warps wait for the tile's loads, and half of the scores are masked:
// computed for nothing.
static constexpr int WARPS = 4, MMA_THREADS = WARPS * WARP, MMA_PITCH = HEAD + 8, ELEMENTS = TILE * MMA_PITCH;
static_assert(WARPS * 16 == TILE);
static constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;

// A warp's 16 rows of a tile as the left operand of its matmuls. Of the 16 x 8 elements of an mma's output a lane holds (row, column),
// (row, column + 1) and the same 8 rows below, where row = lane / 4 and column = 2 (lane % 4).
using Left = uint32_t[HEAD / 16][4];
using Scores = float[TILE / 8][4];                  // 16 x TILE
using Sums = float[HEAD / 8][4];                    // 16 x HEAD
static __device__ int mma_row(int i) { return lane_of_thread() / 4 + 8 * (i / 2); }
static __device__ int mma_column(int n, int i) { return 8 * n + 2 * (lane_of_thread() % 4) + i % 2; }

static __device__ void load_left(Left& left, const bf16* tile) {
#pragma unroll
    for (int d = 0; d < HEAD / 16; d++)
        ldmatrix_x4(left[d], tile + (warp_of_thread() * 16 + lane_of_thread() % 16) * MMA_PITCH + 16 * d + lane_of_thread() / 16 * 8);
}

// p = left tile^T
static __device__ void multiply(Scores& p, const Left& left, const bf16* tile) {
    const bf16* lane_row = tile + (lane_of_thread() / 16 * 8 + lane_of_thread() % 8) * MMA_PITCH + lane_of_thread() / 8 % 2 * 8;
#pragma unroll
    for (int n = 0; n < TILE / 8; n += 2) {
#pragma unroll
        for (int i = 0; i < 4; i++) p[n][i] = p[n + 1][i] = 0;
#pragma unroll
        for (int d = 0; d < HEAD / 16; d++) {
            uint32_t b[4];
            ldmatrix_x4(b, lane_row + 8 * n * MMA_PITCH + 16 * d);
            mma_m16n8k16(p[n], left[d], {b[0], b[1]});
            mma_m16n8k16(p[n + 1], left[d], {b[2], b[3]});
        }
    }
}

// sums += p tile, with p rounded to bf16
static __device__ void add_multiply(Sums& sums, const Scores& p, const bf16* tile) {
    const bf16* lane_row = tile + lane_of_thread() % 16 * MMA_PITCH + lane_of_thread() / 16 * 8;
#pragma unroll
    for (int k = 0; k < TILE / 16; k++) {
        const uint32_t left[4] = {pack_bf16(p[2 * k][0], p[2 * k][1]), pack_bf16(p[2 * k][2], p[2 * k][3]),
                                  pack_bf16(p[2 * k + 1][0], p[2 * k + 1][1]), pack_bf16(p[2 * k + 1][2], p[2 * k + 1][3])};
#pragma unroll
        for (int n = 0; n < HEAD / 8; n += 2) {
            uint32_t b[4];
            ldmatrix_x4_trans(b, lane_row + 16 * k * MMA_PITCH + 8 * n);
            mma_m16n8k16(sums[n], left, {b[0], b[1]});
            mma_m16n8k16(sums[n + 1], left, {b[2], b[3]});
        }
    }
}

// Writes `rows` of the warp's 16 rows, each times its factor (upper, lower). A lane writes 4 bytes, four neighbours 16: half of a sector,
// which L2 merges with the other half.
static __device__ void store_rows(bf16* to, int64_t stride, int rows, const Sums& sums, float upper, float lower) {
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        if (mma_row(i) >= rows) continue;
        const float factor = i == 0 ? upper : lower;
#pragma unroll
        for (int n = 0; n < HEAD / 8; n++)
            *reinterpret_cast<uint32_t*>(to + mma_row(i) * stride + mma_column(n, 0)) =
                pack_bf16(sums[n][i] * factor, sums[n][i + 1] * factor);
    }
}

// What a warp holds in registers for its 16 queries. Index r, 0 or 1, is the upper or the lower of the lane's rows.
struct Queries {
    Left q;
    Sums out = {};
    float row_max[2] = {LOWEST, LOWEST}, sum[2] = {};        // of log2(e) times the scores; sums are over the lane's own columns

    // Scores that are not seen become -infinity.
    __device__ void mask(Scores& p, AttentionSize s, int query, int key) const {
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++)
                if (!sees(s, query + mma_row(i), key + mma_column(n, i))) p[n][i] = -INFINITY;
    }

    // The online softmax over a tile of scores.
    __device__ void exponentiate(Scores& p) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = -INFINITY;
#pragma unroll
            for (int n = 0; n < TILE / 8; n++) top = fmaxf(top, fmaxf(p[n][2 * r], p[n][2 * r + 1]));
            top = fmaxf(row_max[r], warp_max<4>(top) * (SCALE * LOG2E));
            const float rescale = fast_exp2(row_max[r] - top);
            row_max[r] = top;
            sum[r] *= rescale;
#pragma unroll
            for (int n = 0; n < HEAD / 8; n++) out[n][2 * r] *= rescale, out[n][2 * r + 1] *= rescale;
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) sum[i / 2] += p[n][i] = fast_exp2(fmaf(p[n][i], SCALE * LOG2E, -row_max[i / 2]));
    }

    // `query` is the warp's first.
    __device__ void finish(bf16* y, float* lse, const Rows& at, int query, int T) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            sum[r] = warp_sum<4>(sum[r]);
            const int row = query + mma_row(2 * r);
            if (lane_of_thread() % 4 == 0 && row < T) lse[at.lse + row] = row_max[r] * LN2 + logf(sum[r]);
        }
        store_rows(y + at.y + query * at.out_width, at.out_width, T - query, out, 1 / sum[0], 1 / sum[1]);
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

static __device__ void load_now(bf16* tile, const bf16* from, int64_t stride, int rows) {
    copy_tile(tile, from, stride, rows,
              [](bf16* to, const bf16* at, bool wanted) { store_packed(to, wanted ? load_packed(at) : Packed{}); });
}

static __global__ void __launch_bounds__(MMA_THREADS)
tensor_cores_kernel(bf16* y, float* lse, const bf16* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(blockIdx.x) * TILE, query = q0 + 16 * warp_of_thread();
    const Rows at(s, static_cast<int>(blockIdx.y));
    bf16 *q = shared_memory<bf16>(), *k = q + ELEMENTS, *v = k + ELEMENTS;
    load_now(q, qkv + at.q + q0 * at.width, at.width, s.T - q0);
    __syncthreads();
    Queries mine;
    load_left(mine.q, q);
    for (int k0 = 0; k0 < s.T; k0 += TILE) {
        load_now(k, qkv + at.k + k0 * at.width, at.width, s.T - k0);
        load_now(v, qkv + at.v + k0 * at.width, at.width, s.T - k0);
        __syncthreads();
        Scores p;
        multiply(p, mine.q, k);
        mine.mask(p, s, query, k0);
        mine.exponentiate(p);
        add_multiply(mine.out, p, v);
        __syncthreads();
    }
    mine.finish(y, lse, at, query, s.T);
}
static void tensor_cores(floatX* y, float* lse, float*, const floatX* qkv, AttentionSize s, Stream stream) {
    launch("tensor_cores", tensor_cores_kernel, {blocks_of_tiles(s), MMA_THREADS, 3 * ELEMENTS * sizeof(bf16)}, stream, y, lse, qkv, s);
}

// -------------------------------------------------------------------------- 5. copies that run ahead, tiles that are skipped
// Two buffers of keys and values: cp.async copies the next tile into one, bypassing the registers, while the block computes on the other,
// so the latency of memory hides behind the matmuls, and one barrier a tile is enough. Tiles that no query of the block sees, above the
// diagonal and before the window, are never loaded: half of all for a long causal sequence, nearly all for a short window. Only tiles on
// a border need the mask. Long walks, those of the last queries, begin first, so that no block starts one when the others are done.
// Still bound by loads from shared memory, for half of the tiles: a warp with 16 queries reads too much for what it computes.
static __global__ void __launch_bounds__(MMA_THREADS)
ahead_kernel(bf16* y, float* lse, const bf16* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * TILE, query = q0 + 16 * warp_of_thread();
    const Rows at(s, static_cast<int>(blockIdx.y));
    bf16 *q = shared_memory<bf16>(), *buffers = q + ELEMENTS;
    auto load_ahead = [&](bf16* tile, int64_t begin, int row) {
        copy_tile(tile, qkv + begin + row * at.width, at.width, s.T - row,
                  [](bf16* to, const bf16* from, bool wanted) { copy_async(to, from, wanted); });
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
        if (k0 == first) load_left(mine.q, q);
        const bf16 *k = buffers + 2 * buffer * ELEMENTS, *v = k + ELEMENTS;
        Scores p;
        multiply(p, mine.q, k);
        if (k0 + TILE - 1 > query || k0 < query + 15 - s.window) mine.mask(p, s, query, k0);
        mine.exponentiate(p);
        add_multiply(mine.out, p, v);
    }
    mine.finish(y, lse, at, query, s.T);
}
static void ahead(floatX* y, float* lse, float*, const floatX* qkv, AttentionSize s, Stream stream) {
    launch("ahead", ahead_kernel, {blocks_of_tiles(s), MMA_THREADS, 5 * ELEMENTS * sizeof(bf16)}, stream, y, lse, qkv, s);
}
#endif

// 6. llmc/ops/attention.cu: any head size, grouped heads, and 32 queries a warp, which halves what a matmul reads from shared memory. Bound
// by the tensor cores, with the exponentials close behind.
static void engine(floatX* y, float* lse, float* scratch, const floatX* qkv, AttentionSize s, Stream stream) {
    attention_forward(y, lse, scratch, qkv, s.B, s.T, s.H, s.H, HEAD, s.window, stream);
}

// =================================================================================================================== backward
// With p the probabilities, dp = dy v^T and delta = dy . y (which is sum_s p dp):  ds = p (dp - delta),
//     dv = p^T dy,   dk = ds^T q / sqrt(D),   dq = ds k / sqrt(D):  five matmuls, where the forward pass has two.
// The forward pass kept lse, so p = exp(score - lse) needs no second softmax.

// delta (B, H, T). A thread a row: its time is small beside the rest.
static __global__ void __launch_bounds__(THREADS)
delta_kernel(float* delta, const floatX* dy, const floatX* y, AttentionSize s) {
    const int query = static_cast<int>(blockIdx.x) * THREADS + thread();
    if (query >= s.T) return;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float sum = 0;
    for (int d = 0; d < HEAD; d++) sum += to_float(dy[at.y + query * at.out_width + d]) * to_float(y[at.y + query * at.out_width + d]);
    delta[at.lse + query] = sum;
}
static void compute_delta(float* delta, const floatX* dy, const floatX* y, AttentionSize s, Stream stream) {
    launch("delta", delta_kernel, {dim3(static_cast<unsigned>(ceil_div(s.T, THREADS)), static_cast<unsigned>(s.B * s.H)), THREADS}, stream,
           delta, dy, y, s);
}

// 1. The formula, with p and ds of all heads in device memory: a thread a score for both, then a thread an element of the gradients.
// Bound by cache lines, as in the forward pass: neighbours read rows of k and of v that are 3 H D apart. The other kernels are bound by
// instructions and loads, two of these for a multiply-add.
static __global__ void __launch_bounds__(THREADS)
scores_backward_kernel(float* p, float* ds, const floatX* dy, const float* lse, const float* delta, const floatX* qkv, AttentionSize s) {
    const int head = static_cast<int>(blockIdx.z), query = static_cast<int>(blockIdx.y);
    const int key = static_cast<int>(blockIdx.x) * THREADS + thread();
    if (key >= s.T) return;
    const Rows at(s, head);
    const floatX *q = qkv + at.q + query * at.width, *k = qkv + at.k + key * at.width, *v = qkv + at.v + key * at.width;
    float score = 0, dp = 0;
    for (int d = 0; d < HEAD; d++) {
        score += to_float(q[d]) * to_float(k[d]);
        dp += to_float(dy[at.y + query * at.out_width + d]) * to_float(v[d]);
    }
    const float probability = sees(s, query, key) ? expf(score * SCALE - lse[at.lse + query]) : 0;
    p[(at.lse + query) * s.T + key] = probability;
    ds[(at.lse + query) * s.T + key] = probability * (dp - delta[at.lse + query]);
}
static __global__ void __launch_bounds__(THREADS)
keys_backward_kernel(floatX* dqkv, const float* p, const float* ds, const floatX* dy, const floatX* qkv, AttentionSize s) {
    const int key = static_cast<int>(blockIdx.x) * (THREADS / HEAD) + thread() / HEAD, d = thread() % HEAD;
    if (key >= s.T) return;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float dk = 0, dv = 0;
    for (int query = 0; query < s.T; query++) {
        dk += ds[(at.lse + query) * s.T + key] * to_float(qkv[at.q + query * at.width + d]);
        dv += p[(at.lse + query) * s.T + key] * to_float(dy[at.y + query * at.out_width + d]);
    }
    dqkv[at.k + key * at.width + d] = to_floatX(dk * SCALE);
    dqkv[at.v + key * at.width + d] = to_floatX(dv);
}
static __global__ void __launch_bounds__(THREADS)
queries_backward_kernel(floatX* dqkv, const float* ds, const floatX* qkv, AttentionSize s) {
    const int query = static_cast<int>(blockIdx.x) * (THREADS / HEAD) + thread() / HEAD, d = thread() % HEAD;
    if (query >= s.T) return;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float dq = 0;
    for (int key = 0; key < s.T; key++) dq += ds[(at.lse + query) * s.T + key] * to_float(qkv[at.k + key * at.width + d]);
    dqkv[at.q + query * at.width + d] = to_floatX(dq * SCALE);
}
static void formula_backward(floatX* dqkv, float* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv,
                             AttentionSize s, Stream stream) {
    const unsigned T = static_cast<unsigned>(s.T), heads = static_cast<unsigned>(s.B * s.H);
    float *delta = scratch, *p = delta + int64_t{s.B} * s.H * s.T, *ds = p + int64_t{s.B} * s.H * s.T * s.T;
    const Grid rows{dim3(ceil_div(T, THREADS / HEAD), heads), THREADS};
    compute_delta(delta, dy, y, s, stream);
    launch("scores_backward", scores_backward_kernel, {dim3(ceil_div(T, THREADS), T, heads), THREADS}, stream, p, ds, dy, lse, delta, qkv,
           s);
    launch("keys_backward", keys_backward_kernel, rows, stream, dqkv, p, ds, dy, qkv, s);
    launch("queries_backward", queries_backward_kernel, rows, stream, dqkv, ds, qkv, s);
}

// 2. No scores in memory: p and ds are recomputed, tile by tile, wherever they are needed. That is twice: a block that keeps a tile of
// keys walks over the queries for dk and dv, one that keeps queries walks over the keys for dq. Seven matmuls instead of five, and in
// return each gradient is summed by one thread in a fixed order: no atomics, the same bytes in every run. Tiles and threads as in the
// forward pass; the matmuls with p^T and ds^T read their left operand by columns. Bound by loads, with instructions close behind (A100:
// by the multiply-adds).

// sums += a^T b
static __device__ void add_matmul_transposed(float (&sums)[4][4], const float* a, const float* b) {
#pragma unroll 8
    for (int k = 0; k < TILE; k++) {
        float left[4], right[4];
#pragma unroll
        for (int i = 0; i < 4; i++) left[i] = a[k * PITCH + row_of(i)], right[i] = b[k * PITCH + column_of(i)];
#pragma unroll
        for (int i = 0; i < 4; i++)
#pragma unroll
            for (int j = 0; j < 4; j++) sums[i][j] += left[i] * right[j];
    }
}
static __device__ void store_tile(floatX* to, int64_t stride, int rows, const float (&sums)[4][4], float factor) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++)
            if (row_of(i) < rows) to[row_of(i) * stride + column_of(j)] = to_floatX(sums[i][j] * factor);
}
// A tile of scores becomes p, and of dp becomes ds: rows are queries.
static __device__ void to_p_and_ds(float (&p)[4][4], float (&ds)[4][4], const float* lse, const float* delta, AttentionSize s, int q0,
                                   int k0) {
#pragma unroll
    for (int i = 0; i < 4; i++) {
        const int query = q0 + row_of(i);
        const float row_lse = query < s.T ? lse[query] : INFINITY, row_delta = query < s.T ? delta[query] : 0;
#pragma unroll
        for (int j = 0; j < 4; j++) {
            p[i][j] = sees(s, query, k0 + column_of(j)) ? expf(p[i][j] * SCALE - row_lse) : 0;
            ds[i][j] = p[i][j] * (ds[i][j] - row_delta);
        }
    }
}
static __device__ void to_shared(float* tile, const float (&sums)[4][4]) {
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) tile[row_of(i) * PITCH + column_of(j)] = sums[i][j];
}

static __global__ void __launch_bounds__(THREADS, 2)        // shared memory allows no third block, so two may use all registers
flash_keys_kernel(floatX* dqkv, const floatX* dy, const float* lse, const float* delta, const floatX* qkv, AttentionSize s) {
    const int k0 = static_cast<int>(blockIdx.x) * TILE;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float *k = shared_memory<float>(), *v = k + FLOATS, *q = v + FLOATS, *dout = q + FLOATS, *p_tile = dout + FLOATS,
          *ds_tile = p_tile + FLOATS;
    float dk[4][4] = {}, dv[4][4] = {};
    load_tile(k, qkv + at.k + k0 * at.width, at.width, s.T - k0, HEAD);
    load_tile(v, qkv + at.v + k0 * at.width, at.width, s.T - k0, HEAD);
    for (int q0 = 0; q0 < s.T; q0 += TILE) {
        load_tile(q, qkv + at.q + q0 * at.width, at.width, s.T - q0, HEAD);
        load_tile(dout, dy + at.y + q0 * at.out_width, at.out_width, s.T - q0, HEAD);
        __syncthreads();
        float p[4][4] = {}, ds[4][4] = {};
        add_matmul<true>(p, q, k);
        add_matmul<true>(ds, dout, v);
        to_p_and_ds(p, ds, lse + at.lse, delta + at.lse, s, q0, k0);
        to_shared(p_tile, p);
        to_shared(ds_tile, ds);
        __syncthreads();                            // a column of them was written by several warps
        add_matmul_transposed(dv, p_tile, dout);
        add_matmul_transposed(dk, ds_tile, q);
        __syncthreads();
    }
    store_tile(dqkv + at.k + k0 * at.width, at.width, s.T - k0, dk, SCALE);
    store_tile(dqkv + at.v + k0 * at.width, at.width, s.T - k0, dv, 1);
}
static __global__ void __launch_bounds__(THREADS, 2)
flash_queries_kernel(floatX* dqkv, const floatX* dy, const float* lse, const float* delta, const floatX* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(blockIdx.x) * TILE;
    const Rows at(s, static_cast<int>(blockIdx.y));
    float *q = shared_memory<float>(), *dout = q + FLOATS, *k = dout + FLOATS, *v = k + FLOATS, *ds_tile = v + FLOATS;
    float dq[4][4] = {};
    load_tile(q, qkv + at.q + q0 * at.width, at.width, s.T - q0, HEAD);
    load_tile(dout, dy + at.y + q0 * at.out_width, at.out_width, s.T - q0, HEAD);
    for (int k0 = 0; k0 < s.T; k0 += TILE) {
        load_tile(k, qkv + at.k + k0 * at.width, at.width, s.T - k0, HEAD);
        load_tile(v, qkv + at.v + k0 * at.width, at.width, s.T - k0, HEAD);
        __syncthreads();
        float p[4][4] = {}, ds[4][4] = {};
        add_matmul<true>(p, q, k);
        add_matmul<true>(ds, dout, v);
        to_p_and_ds(p, ds, lse + at.lse, delta + at.lse, s, q0, k0);
        to_shared(ds_tile, ds);
        __syncwarp();                               // a row of it is written and read by the same half of a warp
        add_matmul<false>(dq, ds_tile, k);
        __syncthreads();
    }
    store_tile(dqkv + at.q + q0 * at.width, at.width, s.T - q0, dq, SCALE);
}
static void flash_backward(floatX* dqkv, float* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv,
                           AttentionSize s, Stream stream) {
    const dim3 blocks = blocks_of_tiles(s);
    compute_delta(scratch, dy, y, s, stream);
    launch("flash_keys", flash_keys_kernel, {blocks, THREADS, 6 * FLOATS * sizeof(float)}, stream, dqkv, dy, lse, scratch, qkv, s);
    launch("flash_queries", flash_queries_kernel, {blocks, THREADS, 5 * FLOATS * sizeof(float)}, stream, dqkv, dy, lse, scratch, qkv, s);
}

#ifndef PRECISION_FP32
// 3. Tensor cores, and tiles that are not seen are skipped: the same two walks. The warp that owns 16 keys computes scores with the keys
// as rows, so that p^T and ds^T come out of the mma as the left operands of the next: no transposition, no trip through shared memory.
// Bound by loads from shared memory: for 16 x 64 scores a warp reads q and dy twice each, then k twice and v once. All wait for a tile's
// loads: there is no second buffer here.
static __global__ void __launch_bounds__(MMA_THREADS)
mma_keys_kernel(bf16* dqkv, const bf16* dy, const float* lse, const float* delta, const bf16* qkv, AttentionSize s) {
    const int k0 = static_cast<int>(blockIdx.x) * TILE, key = k0 + 16 * warp_of_thread();
    const Rows at(s, static_cast<int>(blockIdx.y));
    bf16 *k = shared_memory<bf16>(), *v = k + ELEMENTS, *q = v + ELEMENTS, *dout = q + ELEMENTS;
    float2* rows = reinterpret_cast<float2*>(dout + ELEMENTS);                  // of a query: log2(e) lse, and delta
    load_now(k, qkv + at.k + k0 * at.width, at.width, s.T - k0);
    load_now(v, qkv + at.v + k0 * at.width, at.width, s.T - k0);
    __syncthreads();
    Left k_left, v_left;
    load_left(k_left, k);
    load_left(v_left, v);
    Sums dk = {}, dv = {};
    for (int q0 = k0; q0 < min(s.T, k0 + TILE + s.window); q0 += TILE) {
        load_now(q, qkv + at.q + q0 * at.width, at.width, s.T - q0);
        load_now(dout, dy + at.y + q0 * at.out_width, at.out_width, s.T - q0);
        if (thread() < TILE) {
            const int query = q0 + thread();
            rows[thread()] = query < s.T ? float2{lse[at.lse + query] * LOG2E, delta[at.lse + query]} : float2{INFINITY, 0};
        }
        __syncthreads();
        Scores p, ds;                               // rows are keys, columns queries
        multiply(p, k_left, q);
        multiply(ds, v_left, dout);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float2 row = rows[mma_column(n, i)];
                const bool seen = sees(s, q0 + mma_column(n, i), key + mma_row(i));
                p[n][i] = seen ? fast_exp2(fmaf(p[n][i], SCALE * LOG2E, -row.x)) : 0;
                ds[n][i] = p[n][i] * (ds[n][i] - row.y);
            }
        add_multiply(dv, p, dout);
        add_multiply(dk, ds, q);
        __syncthreads();
    }
    store_rows(dqkv + at.k + key * at.width, at.width, s.T - key, dk, SCALE, SCALE);
    store_rows(dqkv + at.v + key * at.width, at.width, s.T - key, dv, 1, 1);
}
static __global__ void __launch_bounds__(MMA_THREADS)
mma_queries_kernel(bf16* dqkv, const bf16* dy, const float* lse, const float* delta, const bf16* qkv, AttentionSize s) {
    const int q0 = static_cast<int>(gridDim.x - 1 - blockIdx.x) * TILE, query = q0 + 16 * warp_of_thread();
    const Rows at(s, static_cast<int>(blockIdx.y));
    bf16 *q = shared_memory<bf16>(), *dout = q + ELEMENTS, *k = dout + ELEMENTS, *v = k + ELEMENTS;
    load_now(q, qkv + at.q + q0 * at.width, at.width, s.T - q0);
    load_now(dout, dy + at.y + q0 * at.out_width, at.out_width, s.T - q0);
    float row_lse[2], row_delta[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const int row = query + mma_row(2 * r);
        row_lse[r] = row < s.T ? lse[at.lse + row] * LOG2E : INFINITY;
        row_delta[r] = row < s.T ? delta[at.lse + row] : 0;
    }
    __syncthreads();
    Left q_left, dout_left;
    load_left(q_left, q);
    load_left(dout_left, dout);
    Sums dq = {};
    for (int k0 = max(0, q0 - s.window) / TILE * TILE; k0 < min(q0 + TILE, s.T); k0 += TILE) {
        load_now(k, qkv + at.k + k0 * at.width, at.width, s.T - k0);
        load_now(v, qkv + at.v + k0 * at.width, at.width, s.T - k0);
        __syncthreads();
        Scores p, ds;
        multiply(p, q_left, k);
        multiply(ds, dout_left, v);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const bool seen = sees(s, query + mma_row(i), k0 + mma_column(n, i));
                ds[n][i] = seen ? fast_exp2(fmaf(p[n][i], SCALE * LOG2E, -row_lse[i / 2])) * (ds[n][i] - row_delta[i / 2]) : 0;
            }
        add_multiply(dq, ds, k);
        __syncthreads();
    }
    store_rows(dqkv + at.q + query * at.width, at.width, s.T - query, dq, SCALE, SCALE);
}
static void mma_backward(floatX* dqkv, float* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv,
                         AttentionSize s, Stream stream) {
    const dim3 blocks = blocks_of_tiles(s);
    const size_t tiles = 4 * ELEMENTS * sizeof(bf16);
    compute_delta(scratch, dy, y, s, stream);
    launch("mma_keys", mma_keys_kernel, {blocks, MMA_THREADS, tiles + TILE * sizeof(float2)}, stream, dqkv, dy, lse, scratch, qkv, s);
    launch("mma_queries", mma_queries_kernel, {blocks, MMA_THREADS, tiles}, stream, dqkv, dy, lse, scratch, qkv, s);
}
#endif

// 4. llmc/ops/attention.cu: two buffers for what is walked over, 32 rows a warp where registers allow it. Bound by the tensor cores: five
// matmuls at least (its two walks compute seven).
static void engine_backward(floatX* dqkv, float* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv,
                            AttentionSize s, Stream stream) {
    attention_backward(dqkv, scratch, dy, y, lse, qkv, s.B, s.T, s.H, s.H, HEAD, s.window, stream);
}

// -------------------------------------------------------------------------------------------------------------------- the work

using Size = AttentionSize;
using Works = std::vector<Work>;
static constexpr double BYTES = sizeof(floatX);

// Scores of all tiles, seen or not, in tiles of 64 x 64 queries and keys.
static double all_scores(const AttentionSize& s) {
    const double side = ceil_div(s.T, TILE) * TILE;
    return s.B * s.H * side * side;
}
// Scores of the tiles of which any is seen.
[[maybe_unused]] static double seen_tiles(const AttentionSize& s) {
    double tiles = 0;
    for (int q0 = 0; q0 < s.T; q0 += TILE) tiles += q0 / TILE + 1 - std::max(0, q0 - s.window) / TILE;
    return tiles * s.B * s.H * TILE * TILE;
}
// q, k, v read and y written; lse is one hundredth of that.
static double necessary_bytes(const AttentionSize& s) { return 4 * s.elements() * BYTES; }

static double scores_in_memory(const AttentionSize& s) { return static_cast<double>(s.B) * s.H * s.T * s.T; }

// A matmul with the scores in memory: `words` and `lines` of loads and the instructions for a score, which is HEAD multiply-adds.
static Work matmul_work(const AttentionSize& s, double words, double lines, double instructions) {
    const double scores = scores_in_memory(s);
    return {.memory = 4 * scores,
            .fp32 = 2 * HEAD * scores,
            .words = words * scores,
            .lines = lines * scores,
            .instructions = COUNTED * instructions * scores};
}
static Work softmax_work(const AttentionSize& s) {
    const double scores = scores_in_memory(s);
    return {.memory = 8 * scores, .special = 2 * scores, .words = 4 * scores, .instructions = COUNTED * 27.6 * scores};
}
// In one kernel, matmuls by mma. A warp reads a row of k and one of v for 16 queries.
[[maybe_unused]] static Work by_tensor_cores(const AttentionSize& s, double scores, double instructions) {
    return {.memory = necessary_bytes(s), .tensor = 4 * HEAD * scores, .special = scores, .words = 2 * HEAD * BYTES / 4 / 16 * scores,
            .instructions = COUNTED * instructions * scores};
}

const std::vector<Step<Attention, AttentionSize>>& attention_ladder() {
    static const std::vector<Step<Attention, Size>> steps = {
        {"the formula, three kernels", formula,
         [](const Size& s) {
             return Works{matmul_work(s, 2 * HEAD, HEAD + HEAD / 32.0, 334), softmax_work(s), matmul_work(s, 2 * HEAD, 2 * HEAD / 32.0, 416)};
         }},
        {"tiles in shared memory", tiled,
         [](const Size& s) {
             return Works{matmul_work(s, HEAD / 2.0, 0, 158), softmax_work(s), matmul_work(s, HEAD / 2.0, 0, 159)};
         }},
        {"no scores in memory: flash attention", flash,
         [](const Size& s) {
             const double scores = all_scores(s);
             return Works{{.memory = necessary_bytes(s),
                           .fp32 = 4 * HEAD * scores,
                           .special = scores,
                           .words = HEAD * scores,
                           .instructions = COUNTED * 281 * scores}};
         }},
#ifndef PRECISION_FP32
        {"tensor cores", tensor_cores, [](const Size& s) { return Works{by_tensor_cores(s, all_scores(s), 14.5)}; }},
        {"copies run ahead, tiles are skipped", ahead, [](const Size& s) { return Works{by_tensor_cores(s, seen_tiles(s), 16)}; }},
#endif
        {"llmc/ops/attention.cu", engine, [](const Size& s) {
             const double flops = 4 * HEAD * s.pairs();
             return Works{
                 {.memory = necessary_bytes(s), .tensor = BYTES == 2 ? flops : 0, .fp32 = BYTES == 2 ? 0 : flops, .special = s.pairs()}};
         }}};
    return steps;
}

// In tiles, without scores in memory: the two walks compute 4 and 3 matmuls of HEAD multiply-adds a score.
static Works two_walks(const Size& s, double scores, bool tensor, double words_a_matmul, double keys_instructions,
                       double queries_instructions) {
    const double flops = 2 * HEAD * scores;
    auto walk = [&](int matmuls, double tensors, double instructions) {
        return Work{.memory = tensors * s.elements() * BYTES,
                    .tensor = tensor ? matmuls * flops : 0,
                    .fp32 = tensor ? 0 : matmuls * flops,
                    .special = scores,
                    .words = matmuls * words_a_matmul * scores,
                    .instructions = COUNTED * instructions * scores};
    };
    return {walk(4, 6, keys_instructions), walk(3, 5, queries_instructions)};
}

const std::vector<Step<AttentionBackward, AttentionSize>>& attention_backward_ladder() {
    static const std::vector<Step<AttentionBackward, Size>> steps = {
        {"the formula, four kernels", formula_backward,
         [](const Size& s) {
             const double n = scores_in_memory(s);
             return Works{{.memory = 8 * n,
                           .fp32 = 4 * HEAD * n,
                           .special = n,
                           .words = 4 * HEAD * n,
                           .lines = 2 * (HEAD + HEAD / 32.0) * n,
                           .instructions = COUNTED * 684 * n},
                          {.memory = 8 * n,
                           .fp32 = 4 * HEAD * n,
                           .words = 4 * HEAD * n,
                           .lines = 4 * HEAD / 32.0 * n,
                           .instructions = COUNTED * 1200 * n},
                          {.memory = 4 * n,
                           .fp32 = 2 * HEAD * n,
                           .words = 2 * HEAD * n,
                           .lines = 2 * HEAD / 32.0 * n,
                           .instructions = COUNTED * 428 * n}};
         }},
        {"no scores in memory: two walks", flash_backward,
         [](const Size& s) { return two_walks(s, all_scores(s), false, HEAD / 2.0, 489, 378); }},
#ifndef PRECISION_FP32
        {"tensor cores, tiles are skipped", mma_backward, [](const Size& s) { return two_walks(s, seen_tiles(s), true, 2, 20.7, 14.1); }},
#endif
        {"llmc/ops/attention.cu", engine_backward, [](const Size& s) {
             const double flops = 10 * HEAD * s.pairs();
             return Works{{.memory = 8 * s.elements() * BYTES,
                           .tensor = BYTES == 2 ? flops : 0,
                           .fp32 = BYTES == 2 ? 0 : flops,
                           .special = s.pairs()}};
         }}};
    return steps;
}
