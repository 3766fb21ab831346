// Attention on Hopper (compute capability 9.x, code for sm_90a), heads of 64 and 128 in bf16, after FlashAttention-3 (Shah et al.
// 2024): the walks of attention.cu, with the matmuls by wgmma and the tiles loaded by TMA. On an H200 it takes
// 0.52 to 0.75 of the time of attention.cu (dev/results/nvidia-h200.md).
//
// A block keeps a tile of one side in shared memory and walks over the tiles of the other side that the window lets it see. Rows of
// the tiles, and the stages: how many of the walk's tiles shared memory holds at once.
//
//                               the block's tile               the walk's tiles     stages: D = 64              D = 128
//     forward_kernel            192 q (D = 64), 128 q (128)    128 k; 128 v         4 k, 4 v                    2 k, 2 v
//     backward_keys_kernel      128 k and v                    64 q and dy          6                           3
//     backward_queries_kernel   128 q and dy                   64 k; 64 v           8 k, 6 v                    4 k, 2 v
//
// The producer is one thread of the block's first warpgroup, which gives its registers to the others. It starts the loads of the
// block's tile and of those of the walk, in the order of their use, as far ahead as there are empty buffers, and does not stop
// between walks: the kernels are persistent, one block an SM, which goes from tile to tile (for_places).
// The consumers are two or three warpgroups, which compute. Each owns 64 rows of the block's tile, with their softmax and sums in
// registers. One whose rows do not see a tile that another's see passes over it (skip).
//
// Buffers form rings. A buffer has two mbarriers: `full` completes when TMA has brought all the bytes that the producer expects,
// `empty` when every consumer warp has released the buffer. Writer and Reader are the two ends of a ring; a Turn is a position in it:
// which buffer, and the parity of the round, which tells a barrier's phase from the one before.
// The block's own tile lies in one of two slots, a ring as well. After the walk the results are written where the tile was, and TMA
// stores them while the next walk, with its tile in the other slot, has begun; then the slot is empty (Consumer).
//
// A step of the forward walk at tile j of the keys; that of backward_queries_kernel goes the same way:
//     start    scores_j = q k_j^T             the tensor cores take one after the other,
//     start    out += p_(j-1) v_(j-1)         while the threads go on
//     wait     for scores_j                   k_j is released
//     p_j =    softmax of scores_j            overlaps the matmul that sums out
//     wait     for out                        v_(j-1) is released
//     out *=   the softmax's rescale          where the row max is a new one
// This order decides the speed. The tensor cores of an SM do 4096 operations in a clock, its special function unit 16 exponentials.
// A score costs 4 D operations and one exponential, so for D = 128 the exponentials take half as long as the matmuls and for D = 64
// just as long: neither may wait for the other. Backward, where a score costs 8 D operations in the keys' kernel and 6 D in the
// queries', the tensor cores are the bound.
#include <algorithm>
#include "llmc/ops/attention.h"
#include "llmc/ops/attention_cuda.h"

#ifdef PRECISION_FP32

bool attention_use_hopper(bool) { return false; }

#else

#include <cstddef>

// Only nvcc's pass for sm_90a has these instructions; in every other pass the kernels are a trap.
#if !defined(__CUDA_ARCH__) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
#define HOPPER_CODE 1
#else
#define HOPPER_CODE 0
#endif

namespace {

using Sizes = AttentionSizes;

constexpr int GROUP = 128;              // threads of a warpgroup
constexpr int BOX = 64;                 // rows and columns of a TMA box: 128 bytes a row, swizzled
constexpr int ROW_BYTES = BOX * sizeof(bf16);
constexpr int SLOTS = 2;                // buffers for the tile that a block works on
constexpr int PRODUCER_REGISTERS = 24;  // of the 504 that one thread of each warpgroup can have together

// Registers of a consumer's thread.
template <int GROUPS>
constexpr int REGISTERS = (504 - PRODUCER_REGISTERS) / GROUPS / 8 * 8;

// ------------------------------------------------------------------------------------------------------------------- tiles

// Rows of one head in shared memory: boxes of 64 x 64, those of the first 64 columns before the others.
template <int HEAD, int ROWS>
struct Tile {
    static constexpr int BLOCK = ROWS * ROW_BYTES, BYTES = HEAD / BOX * BLOCK;      // of 64 columns; of all

    alignas(1024) char bytes[BYTES];

    __device__ char* box(uint32_t row, uint32_t column) { return bytes + column / BOX * BLOCK + row * ROW_BYTES; }

    // Starts copying rows that begin at (column, row) of the tensor.
    __device__ void load(const CUtensorMap& from, int column, int row, int batch, uint64_t* barrier) {
#pragma unroll
        for (int c = 0; c < HEAD; c += BOX)
#pragma unroll
            for (int r = 0; r < ROWS; r += BOX) tensor_load(box(r, c), &from, column + c, row + r, batch, barrier);
    }
};

// A warpgroup's sums, 64 rows by N columns, as wgmma gives them: element [n][i] is at row_of(i), column_of(n, i).
template <int N>
using Sums = float[N / 8][4];
// N columns of them rounded to bf16: the left operand of the next matmul.
template <int N>
using Left = uint32_t[N / 16][4];

// Broadcast from one lane, so that the compiler keeps what follows from it once for all lanes of a warp.
[[maybe_unused]] __device__ int group_of_thread() { return __shfl_sync(ALL_LANES, static_cast<int>(threadIdx.x) / GROUP, 0); }

[[maybe_unused]] __device__ int row_of(int i) { return warp_of_thread() % 4 * 16 + lane_of_thread() / 4 + i / 2 * 8; }
[[maybe_unused]] __device__ int column_of(int n, int i) { return 8 * n + 2 * (lane_of_thread() % 4) + i % 2; }

template <int COLUMNS8>
__device__ void clear(float (&sums)[COLUMNS8][4]) {
#pragma unroll
    for (int n = 0; n < COLUMNS8; n++)
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] = 0;
}

template <int COLUMNS16>
__device__ void round(uint32_t (&left)[COLUMNS16][4], const float (&sums)[2 * COLUMNS16][4]) {
#pragma unroll
    for (int k = 0; k < COLUMNS16; k++)
#pragma unroll
        for (int i = 0; i < 4; i++) left[k][i] = pack_bf16(sums[2 * k + i / 2][i % 2 * 2], sums[2 * k + i / 2][i % 2 * 2 + 1]);
}

// Starts sums (64, N) = x y^T: 64 rows of tile x from x0 on, all N of tile y.
template <int HEAD, int ROWS, int N>
__device__ void start_matmul(float (&sums)[N / 8][4], Tile<HEAD, ROWS>& x, int x0, Tile<HEAD, N>& y) {
    const uint64_t x_rows = matrix_descriptor(x.box(x0, 0), 0), y_rows = matrix_descriptor(y.bytes, 0);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < HEAD / 16; k++) {
        const int block = k * 16 / BOX, within = k * 32 % ROW_BYTES;
        const uint64_t x_at = descriptor_at(x_rows, block * Tile<HEAD, ROWS>::BLOCK + within);
        const uint64_t y_at = descriptor_at(y_rows, block * Tile<HEAD, N>::BLOCK + within);
        wgmma<N>(sums, x_at, y_at, k > 0);
    }
    wgmma_commit();
}

// Starts sums (64, HEAD) += left (64, K) y: all K rows of tile y.
template <int HEAD, int K>
__device__ void start_add_matmul(float (&sums)[HEAD / 8][4], const uint32_t (&left)[K / 16][4], Tile<HEAD, K>& y) {
    const uint64_t y_columns = matrix_descriptor(y.bytes, Tile<HEAD, K>::BLOCK);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < K / 16; k++) wgmma_add<HEAD>(sums, left[k], descriptor_at(y_columns, k * 16 * ROW_BYTES));
    wgmma_commit();
}

// ------------------------------------------------------------------------------------------------- rings of buffers and their ends

// A position in a ring of SIZE buffers, and the parity of the round.
template <int SIZE>
struct Turn {
    int at = 0;
    uint32_t parity = 0;
    __device__ void next() {
        if (++at == SIZE) at = 0, parity ^= 1;
    }
    __device__ int before() const { return at == 0 ? SIZE - 1 : at - 1; }
};

// Barriers of SIZE buffers: each is full, for the consumers, and then empty again, for the producer.
template <int SIZE>
struct Ring {
    uint64_t full[SIZE], empty[SIZE];

    // `readers` arrive when they are done with a buffer.
    __device__ void init(int readers) {
#pragma unroll
        for (int i = 0; i < SIZE; i++) {
            mbarrier_init(&full[i], 1);
            mbarrier_init(&empty[i], readers);
        }
    }
};

// One thread initializes the barriers, and all wait for it. Slots are released by the leaders of the consumer warpgroups, the
// buffers of a walk by each of their warps.
template <int GROUPS, int... SIZES>
__device__ void init_rings(Ring<SLOTS>& slots, Ring<SIZES>&... rings) {
    if (threadIdx.x == 0) {
        slots.init(GROUPS);
        (rings.init(4 * GROUPS), ...);
        mbarrier_init_fence();
    }
    __syncthreads();
}

// The producer's end of a ring.
template <int SIZE>
struct Writer {
    Ring<SIZE>& ring;
    Turn<SIZE> turn{};

    // Waits until the next buffer is empty, and says how many bytes will come; load(at, full) starts copying them to buffer `at`.
    template <class Load>
    __device__ void fill(int bytes, Load load) {
        mbarrier_wait(&ring.empty[turn.at], turn.parity ^ 1);
        mbarrier_arrive_expect(&ring.full[turn.at], bytes);
        load(turn.at, &ring.full[turn.at]);
        turn.next();
    }
};

// A consumer warp's end of a ring.
template <int SIZE>
struct Reader {
    Ring<SIZE>& ring;
    Turn<SIZE> turn{};

    __device__ void wait() { mbarrier_wait(&ring.full[turn.at], turn.parity); }
    // The warp is done with the buffer.
    __device__ void release() {
        __syncwarp();
        if (lane_of_thread() == 0) mbarrier_arrive(&ring.empty[turn.at]);
        turn.next();
    }
};

// The producer loads what any of the warpgroups needs; one that does not need the next `count` buffers of each ring releases them
// unread. The rings take turns, as the producer fills them: while it waits for room in one, it fills no other.
template <int... SIZES>
__device__ void skip(int count, Reader<SIZES>&... readers) {
    for (; count > 0; count--) ((readers.wait(), readers.release()), ...);
}

// A consumer warpgroup, and its end of the ring of slots. Its results are stored from the slot that its tile was in, while the next
// tile's work has begun; then its leader, the thread that started the store, releases the slot.
template <int HEAD>
struct Consumer {
    Ring<SLOTS>& slots;
    int index = group_of_thread() - 1, row0 = index * BOX;          // its 64 rows of the block's tile begin at row0
    bool leader = threadIdx.x % GROUP == 0, storing = false;        // storing: there was a tile before this one
    Turn<SLOTS> slot{};

    __device__ void wait_for_tile() { mbarrier_wait(&slots.full[slot.at], slot.parity); }

    // A barrier of the warpgroup, once a tile: the leader releases the tile's slot for all of its warps, so it must not be two tiles
    // ahead of a warp that has not seen the slot filled yet.
    __device__ void keep_together() { named_barrier(1 + index, GROUP); }

    // Writes the sums, row row_of(2 r) times factor[r], to the warpgroup's rows of a tile, and starts copying these to the tensor,
    // at (column, row).
    template <int ROWS>
    __device__ void start_store(const CUtensorMap& to, int column, int row, int batch, Tile<HEAD, ROWS>& tile,
                                const float (&sums)[HEAD / 8][4], const float (&factor)[2]) {
        uint32_t lane_row = static_cast<uint32_t>(row_of(0));
        settle(lane_row);                   // or the compiler keeps all the addresses in registers, from one tile to the next
#pragma unroll
        for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
            for (int i = 0; i < 4; i += 2) {
                const float times = factor[i / 2];
                char* piece = tile.box(row0 + lane_row + i / 2 * 8, n * 8) + (n % 8 ^ lane_row % 8) * 16;
                reinterpret_cast<uint32_t*>(piece)[lane_of_thread() % 4] = pack_bf16(sums[n][i] * times, sums[n][i + 1] * times);
            }
        async_fence();
        keep_together();
        if (leader) {
#pragma unroll
            for (int c = 0; c < HEAD; c += BOX) tensor_store(&to, tile.box(row0, c), column + c, row, batch);
            tensor_store_commit();
        }
    }
    // Once a tile, when its work has begun: the end of the store of the tile before it.
    __device__ void finish_store() {
        if (leader && storing) {
            tensor_store_wait();
            mbarrier_arrive(&slots.empty[slot.before()]);
        }
        storing = true;
    }
    // A block must not end before TMA has read its shared memory.
    __device__ void finish_last_store() {
        if (leader) tensor_store_wait();
    }
};

// ------------------------------------------------------------------------------------------------------- scheduling of the tiles

// The work: the tiles of every head of every sequence, a head's longest walk first. Where L2 holds all the rows that the walks read,
// the longest of all heads come first, and blocks end at about the same time; else the order is head by head.
struct Items {
    int tiles, heads, count;
    bool by_length;
};

// Calls work(place) for each of the block's items. Every other round goes backwards, so that a block that had a long one gets a
// short one.
template <class Work>
__device__ void for_places(const Items& items, Work work) {
    const int blocks = static_cast<int>(gridDim.x), block = static_cast<int>(blockIdx.x), all_heads = items.count / items.tiles;
    for (int first = 0, back = 0; first < items.count; first += blocks, back ^= 1) {
        const int item = first + (back ? blocks - 1 - block : block);
        const int index = items.by_length ? item % all_heads * items.tiles + item / all_heads : item;
        if (item < items.count) work(Place(index, items.tiles, items.heads));
    }
}

// Tiles begin .. end - 1 of SIZE queries or keys.
template <int SIZE>
struct Walk {
    int begin, end;

    __device__ static Walk over_keys(const Sizes& s, int q, int queries) {
        if (q >= s.T) return {0, 0};
        return {max(0, q - s.window) / SIZE, (min(q + queries, s.T) + SIZE - 1) / SIZE};
    }
    __device__ static Walk over_queries(const Sizes& s, int k, int keys) {
        if (k >= s.T) return {0, 0};
        return {k / SIZE, (min(k + keys + s.window, s.T) + SIZE - 1) / SIZE};
    }
    // `other`, which is a part of this walk; an empty one lies at its end.
    __device__ Walk part(Walk other) const { return other.begin < other.end ? other : Walk{end, end}; }
    __device__ int count() const { return end - begin; }
};

// ------------------------------------------------------------------------------------------------------------------ forward

template <int HEAD>
struct Forward {
    static constexpr int GROUPS = HEAD == 64 ? 3 : 2, QUERIES = GROUPS * BOX, KEYS = 128, STAGES = HEAD == 64 ? 4 : 2;
    static constexpr int THREADS = (1 + GROUPS) * GROUP;
    struct Shared {
        Tile<HEAD, QUERIES> q[SLOTS];
        Tile<HEAD, KEYS> k[STAGES], v[STAGES];
        Ring<SLOTS> slots;
        Ring<STAGES> k_ring, v_ring;
    };
};

// The softmax of a lane's two rows, whose scores come tile by tile.
struct RunningSoftmax {
    float row_max[2] = {LOWEST, LOWEST};    // of log2_scale times the scores so far
    float sum[2] = {};                      // over the lane's own columns
    float rescale[2];                       // what all sums before the last tile are multiplied by

    // Scores become probabilities, not yet divided by their sum; a new max rescales the sums so far.
    template <int COLUMNS8>
    __device__ void step(float (&p)[COLUMNS8][4], float log2_scale) {
#pragma unroll
        for (int r = 0; r < 2; r++) {
            float top = p[0][2 * r];
#pragma unroll
            for (int n = 0; n < COLUMNS8; n++) top = fmaxf(top, fmaxf(p[n][2 * r], p[n][2 * r + 1]));
            top = fmaxf(row_max[r], warp_max<4>(top) * log2_scale);
            rescale[r] = fast_exp2(row_max[r] - top);
            row_max[r] = top;
            sum[r] *= rescale[r];
#pragma unroll
            for (int n = 0; n < COLUMNS8; n++)
#pragma unroll
                for (int i = 2 * r; i < 2 * r + 2; i++) sum[r] += p[n][i] = fast_exp2(fmaf(p[n][i], log2_scale, -top));
        }
    }
};

template <int HEAD>
__global__ void __launch_bounds__(Forward<HEAD>::THREADS, 1)
forward_kernel(const __grid_constant__ CUtensorMap y_map, float* lse, const __grid_constant__ CUtensorMap qkv_map, Sizes s,
               Items items) {
#if HOPPER_CODE
    using F = Forward<HEAD>;
    constexpr int KEYS = F::KEYS;
    auto& shared = *shared_memory<typename F::Shared>();
    init_rings<F::GROUPS>(shared.slots, shared.k_ring, shared.v_ring);

    if (threadIdx.x < GROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            Writer<SLOTS> slots{shared.slots};
            Writer<F::STAGES> keys{shared.k_ring}, values{shared.v_ring};
            for_places(items, [&](const Place& place) {
                const int q0 = place.from_end(items.tiles) * F::QUERIES, g = place.head / s.group();
                const auto walk = Walk<KEYS>::over_keys(s, q0, F::QUERIES);
                slots.fill(sizeof shared.q[0], [&](int at, uint64_t* full) {
                    shared.q[at].load(qkv_map, place.head * HEAD, q0, place.batch, full);
                });
                // In the order of their use: a tile's keys come before the values of the tile before it.
                for (int j = walk.begin; j <= walk.end; j++) {
                    if (j < walk.end)
                        keys.fill(sizeof shared.k[0], [&](int at, uint64_t* full) {
                            shared.k[at].load(qkv_map, s.key_head(g) * HEAD, j * KEYS, place.batch, full);
                        });
                    if (j > walk.begin)
                        values.fill(sizeof shared.v[0], [&](int at, uint64_t* full) {
                            shared.v[at].load(qkv_map, s.value_head(g) * HEAD, (j - 1) * KEYS, place.batch, full);
                        });
                }
            });
        }
    } else {
        setmaxnreg_inc<REGISTERS<F::GROUPS>>();
        Consumer<HEAD> group{shared.slots};
        Reader<F::STAGES> keys{shared.k_ring}, values{shared.v_ring};
        const float log2_scale = inverse_sqrt(HEAD) * LOG2E;        // exp(scale x) = 2^(log2_scale x)
        for_places(items, [&](const Place& place) {
            const int q0 = place.from_end(items.tiles) * F::QUERIES, q = q0 + group.row0;
            const auto all = Walk<KEYS>::over_keys(s, q0, F::QUERIES), walk = all.part(Walk<KEYS>::over_keys(s, q, BOX));
            auto& q_tile = shared.q[group.slot.at];
            group.wait_for_tile();
            skip(walk.begin - all.begin, keys, values);
            if (walk.count() > 0) {
                Sums<HEAD> out;
                Sums<KEYS> p;
                Left<KEYS> left;
                RunningSoftmax softmax;
                clear(out);
                auto start_scores = [&] { start_matmul(p, q_tile, group.row0, shared.k[keys.turn.at]); };
                // Tile j's scores are there: its keys are no longer needed.
                auto scores_to_probabilities = [&](int j) {
                    keys.release();
                    if (!s.all_see(q, BOX, j * KEYS, KEYS)) {
#pragma unroll
                        for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                            for (int i = 0; i < 4; i++)
                                if (!s.sees(q + row_of(i), j * KEYS + column_of(n, i))) p[n][i] = -INFINITY;
                    }
                    softmax.step(p, log2_scale);
                    // The next keys are waited for here because the compiler moves nothing across this wait. It would move the
                    // wait for the sums, which overlap the softmax, in front of the softmax.
                    settle(p);
                    if (j + 1 < walk.end) keys.wait();
                };
                auto start_sums = [&] {
                    values.wait();
                    start_add_matmul(out, left, shared.v[values.turn.at]);
                };
                auto finish_sums = [&] {
                    wgmma_wait<0>(out, left);
                    values.release();
                };
                keys.wait();
                start_scores();
                group.finish_store();
                wgmma_wait<0>(p);
                scores_to_probabilities(walk.begin);
                round(left, p);
                // The tensor cores work on the next tile's scores and on this one's values while the scores go through the softmax.
                for (int j = walk.begin + 1; j < walk.end; j++) {
                    start_scores();
                    start_sums();
                    wgmma_wait<1>(p);
                    scores_to_probabilities(j);
                    finish_sums();
#pragma unroll
                    for (int n = 0; n < HEAD / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) out[n][i] *= softmax.rescale[i / 2];
                    round(left, p);
                }
                start_sums();
                finish_sums();
                float inverse[2];
#pragma unroll
                for (int r = 0; r < 2; r++) {
                    const float sum = warp_sum<4>(softmax.sum[r]);
                    const int t = q + row_of(2 * r);
                    if (lane_of_thread() % 4 == 0 && t < s.T)
                        lse[s.all_heads(place.batch, place.head) * s.T + t] = softmax.row_max[r] * LN2 + logf(sum);
                    inverse[r] = 1 / sum;
                }
                group.start_store(y_map, place.head * HEAD, q, place.batch, q_tile, out, inverse);
            } else {
                group.finish_store();
                group.keep_together();
            }
            skip(all.end - walk.end, keys, values);
            group.slot.next();
        });
        group.finish_last_store();
    }
#else
    __trap();
#endif
}

// ----------------------------------------------------------------------------------------------------------------- backward
// As in attention.cu: p and the gradient of the scores are computed twice, once for dk and dv and once for dq.

template <int HEAD>
struct BackwardKeys {
    static constexpr int GROUPS = 2, KEYS = GROUPS * BOX, QUERIES = 64, STAGES = HEAD == 64 ? 6 : 3;
    static constexpr int THREADS = (1 + GROUPS) * GROUP;
    struct Shared {
        Tile<HEAD, KEYS> k[SLOTS], v[SLOTS];
        Tile<HEAD, QUERIES> q[STAGES], dy[STAGES];
        alignas(16) QueryRow rows[STAGES][QUERIES];
        Ring<SLOTS> slots;
        Ring<STAGES> ring;
    };
};

template <int HEAD>
__global__ void __launch_bounds__(BackwardKeys<HEAD>::THREADS, 1)
backward_keys_kernel(const __grid_constant__ CUtensorMap dqkv_map, const QueryRow* rows,
                     const __grid_constant__ CUtensorMap dy_map, const __grid_constant__ CUtensorMap qkv_map,
                     Sizes s, Items items) {
#if HOPPER_CODE
    using F = BackwardKeys<HEAD>;
    constexpr int QUERIES = F::QUERIES;
    auto& shared = *shared_memory<typename F::Shared>();
    init_rings<F::GROUPS>(shared.slots, shared.ring);

    if (threadIdx.x < GROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            Writer<SLOTS> slots{shared.slots};
            Writer<F::STAGES> queries{shared.ring};
            for_places(items, [&](const Place& place) {
                const int g = place.head, k0 = place.tile * F::KEYS;
                const auto walk = Walk<QUERIES>::over_queries(s, k0, F::KEYS);
                slots.fill(sizeof shared.k[0] + sizeof shared.v[0], [&](int at, uint64_t* full) {
                    shared.k[at].load(qkv_map, s.key_head(g) * HEAD, k0, place.batch, full);
                    shared.v[at].load(qkv_map, s.value_head(g) * HEAD, k0, place.batch, full);
                });
                for (int h = g * s.group(); h < (g + 1) * s.group(); h++)
                    for (int j = walk.begin; j < walk.end; j++) {
                        const int q0 = j * QUERIES;
                        const QueryRow* from = rows + s.all_heads(place.batch, h) * padded(s.T) + q0;
                        queries.fill(sizeof shared.q[0] + sizeof shared.dy[0] + sizeof shared.rows[0], [&](int at, uint64_t* full) {
                            shared.q[at].load(qkv_map, h * HEAD, q0, place.batch, full);
                            bulk_load(shared.rows[at], from, sizeof shared.rows[0], full);
                            shared.dy[at].load(dy_map, h * HEAD, q0, place.batch, full);
                        });
                    }
            });
        }
    } else {
        setmaxnreg_inc<REGISTERS<F::GROUPS>>();
        Consumer<HEAD> group{shared.slots};
        Reader<F::STAGES> queries{shared.ring};
        const float scale = inverse_sqrt(HEAD), log2_scale = scale * LOG2E;
        for_places(items, [&](const Place& place) {
            const int g = place.head, k0 = place.tile * F::KEYS, k = k0 + group.row0;
            const auto all = Walk<QUERIES>::over_queries(s, k0, F::KEYS), walk = all.part(Walk<QUERIES>::over_queries(s, k, BOX));
            auto& k_tile = shared.k[group.slot.at];
            auto& v_tile = shared.v[group.slot.at];
            Sums<HEAD> dk, dv;
            clear(dk);
            clear(dv);
            group.wait_for_tile();
            group.finish_store();
            for (int h = 0; h < s.group(); h++) {
                skip(walk.begin - all.begin, queries);
                if (walk.count() > 0) {
                    Sums<QUERIES> p, ds;                            // rows are keys, columns queries
                    Left<QUERIES> p_left, ds_left;
                    auto scores_to_probabilities = [&](int j, const QueryRow(&row)[QUERIES]) {
                        const int q = j * QUERIES;
                        const bool whole = s.all_see(q, QUERIES, k, BOX);
#pragma unroll
                        for (int n = 0; n < QUERIES / 8; n++) {
                            const float lse2[2] = {row[column_of(n, 0)].lse2, row[column_of(n, 1)].lse2};
#pragma unroll
                            for (int i = 0; i < 4; i++) {
                                p[n][i] = probability(p[n][i], log2_scale, lse2[i % 2]);
                                if (!whole && !s.sees(q + column_of(n, i), k + row_of(i))) p[n][i] = 0;
                            }
                        }
                    };
                    auto probabilities_to_gradient = [&](const QueryRow(&row)[QUERIES]) {
#pragma unroll
                        for (int n = 0; n < QUERIES / 8; n++) {
                            const float delta[2] = {row[column_of(n, 0)].delta, row[column_of(n, 1)].delta};
#pragma unroll
                            for (int i = 0; i < 4; i++) p[n][i] *= ds[n][i] - delta[i % 2];
                        }
                    };
                    for (int j = walk.begin; j < walk.end; j++) {
                        auto& q_tile = shared.q[queries.turn.at];
                        auto& dy_tile = shared.dy[queries.turn.at];
                        const auto& row = shared.rows[queries.turn.at];
                        queries.wait();
                        start_matmul(p, k_tile, group.row0, q_tile);
                        start_matmul(ds, v_tile, group.row0, dy_tile);
                        wgmma_wait<1>(p);
                        scores_to_probabilities(j, row);
                        round(p_left, p);
                        start_add_matmul(dv, p_left, dy_tile);
                        wgmma_wait<1>(ds);
                        probabilities_to_gradient(row);
                        round(ds_left, p);
                        start_add_matmul(dk, ds_left, q_tile);
                        wgmma_wait<0>(dk, dv, p_left, ds_left);
                        queries.release();
                    }
                }
                skip(all.end - walk.end, queries);
            }
            if (walk.count() > 0) {
                group.start_store(dqkv_map, s.key_head(g) * HEAD, k, place.batch, k_tile, dk, {scale, scale});
                group.start_store(dqkv_map, s.value_head(g) * HEAD, k, place.batch, v_tile, dv, {1, 1});
            } else {
                group.keep_together();
            }
            group.slot.next();
        });
        group.finish_last_store();
    }
#else
    __trap();
#endif
}

template <int HEAD>
struct BackwardQueries {
    static constexpr int GROUPS = 2, QUERIES = GROUPS * BOX, KEYS = 64;
    static constexpr int K_STAGES = HEAD == 64 ? 8 : 4, V_STAGES = HEAD == 64 ? 6 : 2;     // keys are needed for longer than values
    static constexpr int THREADS = (1 + GROUPS) * GROUP;
    struct Shared {
        Tile<HEAD, QUERIES> q[SLOTS], dy[SLOTS];
        Tile<HEAD, KEYS> k[K_STAGES], v[V_STAGES];
        Ring<SLOTS> slots;
        Ring<K_STAGES> k_ring;
        Ring<V_STAGES> v_ring;
    };
};

template <int HEAD>
__global__ void __launch_bounds__(BackwardQueries<HEAD>::THREADS, 1)
backward_queries_kernel(const __grid_constant__ CUtensorMap dqkv_map, const QueryRow* rows,
                        const __grid_constant__ CUtensorMap dy_map, const __grid_constant__ CUtensorMap qkv_map,
                        Sizes s, Items items) {
#if HOPPER_CODE
    using F = BackwardQueries<HEAD>;
    constexpr int KEYS = F::KEYS;
    auto& shared = *shared_memory<typename F::Shared>();
    init_rings<F::GROUPS>(shared.slots, shared.k_ring, shared.v_ring);

    if (threadIdx.x < GROUP) {
        setmaxnreg_dec<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) {
            Writer<SLOTS> slots{shared.slots};
            Writer<F::K_STAGES> keys{shared.k_ring};
            Writer<F::V_STAGES> values{shared.v_ring};
            for_places(items, [&](const Place& place) {
                const int q0 = place.from_end(items.tiles) * F::QUERIES, g = place.head / s.group();
                const auto walk = Walk<KEYS>::over_keys(s, q0, F::QUERIES);
                slots.fill(sizeof shared.q[0] + sizeof shared.dy[0], [&](int at, uint64_t* full) {
                    shared.q[at].load(qkv_map, place.head * HEAD, q0, place.batch, full);
                    shared.dy[at].load(dy_map, place.head * HEAD, q0, place.batch, full);
                });
                for (int j = walk.begin; j < walk.end; j++) {
                    keys.fill(sizeof shared.k[0], [&](int at, uint64_t* full) {
                        shared.k[at].load(qkv_map, s.key_head(g) * HEAD, j * KEYS, place.batch, full);
                    });
                    values.fill(sizeof shared.v[0], [&](int at, uint64_t* full) {
                        shared.v[at].load(qkv_map, s.value_head(g) * HEAD, j * KEYS, place.batch, full);
                    });
                }
            });
        }
    } else {
        setmaxnreg_inc<REGISTERS<F::GROUPS>>();
        Consumer<HEAD> group{shared.slots};
        Reader<F::K_STAGES> keys{shared.k_ring};
        Reader<F::V_STAGES> values{shared.v_ring};
        const float scale = inverse_sqrt(HEAD), log2_scale = scale * LOG2E;
        for_places(items, [&](const Place& place) {
            const int q0 = place.from_end(items.tiles) * F::QUERIES, q = q0 + group.row0;
            const auto all = Walk<KEYS>::over_keys(s, q0, F::QUERIES), walk = all.part(Walk<KEYS>::over_keys(s, q, BOX));
            auto& q_tile = shared.q[group.slot.at];
            auto& dy_tile = shared.dy[group.slot.at];
            group.wait_for_tile();
            group.finish_store();
            skip(walk.begin - all.begin, keys, values);
            if (walk.count() > 0) {
                QueryRow row[2];
#pragma unroll
                for (int r = 0; r < 2; r++)
                    row[r] = rows[s.all_heads(place.batch, place.head) * padded(s.T) + q + row_of(2 * r)];
                Sums<HEAD> dq;
                Sums<KEYS> p, ds;
                Left<KEYS> ds_left;
                Reader<F::K_STAGES> used_keys = keys;       // dq's sums need a tile's keys once more, a step after its scores
                clear(dq);
                auto start_scores = [&] {
                    start_matmul(p, q_tile, group.row0, shared.k[keys.turn.at]);
                    keys.turn.next();
                    values.wait();
                    start_matmul(ds, dy_tile, group.row0, shared.v[values.turn.at]);
                };
                auto scores_to_probabilities = [&](int j) {
                    const bool whole = s.all_see(q, BOX, j * KEYS, KEYS);
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) {
                            p[n][i] = probability(p[n][i], log2_scale, row[i / 2].lse2);
                            if (!whole && !s.sees(q + row_of(i), j * KEYS + column_of(n, i))) p[n][i] = 0;
                        }
                    settle(p);
                    if (j + 1 < walk.end) keys.wait();              // here, as in the forward pass
                };
                auto probabilities_to_gradient = [&] {
                    values.release();
#pragma unroll
                    for (int n = 0; n < KEYS / 8; n++)
#pragma unroll
                        for (int i = 0; i < 4; i++) p[n][i] *= ds[n][i] - row[i / 2].delta;
                };
                auto start_sums = [&] { start_add_matmul(dq, ds_left, shared.k[used_keys.turn.at]); };
                auto finish_sums = [&] {
                    wgmma_wait<0>(dq, ds_left);
                    used_keys.release();
                };
                keys.wait();
                start_scores();
                wgmma_wait<1>(p);
                scores_to_probabilities(walk.begin);
                wgmma_wait<0>(ds);
                probabilities_to_gradient();
                round(ds_left, p);
                // The tensor cores work on the next tile's scores and on this one's sums at the same time.
                for (int j = walk.begin + 1; j < walk.end; j++) {
                    start_scores();
                    start_sums();
                    wgmma_wait<2>(p);
                    scores_to_probabilities(j);
                    wgmma_wait<1>(ds);
                    probabilities_to_gradient();
                    finish_sums();
                    round(ds_left, p);
                }
                start_sums();
                finish_sums();
                group.start_store(dqkv_map, place.head * HEAD, q, place.batch, q_tile, dq, {scale, scale});
            } else {
                group.keep_together();
            }
            skip(all.end - walk.end, keys, values);
            group.slot.next();
        });
        group.finish_last_store();
    }
#else
    __trap();
#endif
}

// ---------------------------------------------------------------------------------------------------------------- launchers

// The TMA descriptor of a tensor (B, T, columns), in boxes of 64 rows and columns of one sequence.
CUtensorMap tensor_map(const char* op, const bf16* begin, int B, int T, int64_t columns) {
    static const auto encode = [op] {
        void* function = nullptr;
        cudaDriverEntryPointQueryResult found{};
        cuda_check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found), op);
        require(found == cudaDriverEntryPointSuccess, op,
                ": the driver has no cuTensorMapEncodeTiled; it must be of CUDA 12.0 or later");
        return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(function);
    }();
    CUtensorMap map;
    const cuuint64_t sizes[3] = {static_cast<cuuint64_t>(columns), static_cast<cuuint64_t>(T), static_cast<cuuint64_t>(B)};
    const cuuint64_t strides[2] = {sizes[0] * sizeof(bf16), sizes[0] * sizes[1] * sizeof(bf16)};
    const cuuint32_t box[3] = {BOX, BOX, 1}, steps[3] = {1, 1, 1};
    const CUresult result = encode(&map, CU_TENSOR_MAP_DATA_TYPE_BFLOAT16, 3, const_cast<bf16*>(begin), sizes, strides, box, steps,
                                   CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_L2_128B,
                                   CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
    require(result == CUDA_SUCCESS, op, ": the driver refuses to copy boxes of a tensor of ", B, " x ", T, " x ", columns,
            ": CUDA error ", static_cast<int>(result));
    return map;
}

// Walks are over two tensors (B, T, walk_heads D).
Items items_of(int tiles, int heads, int walk_heads, int B, const Sizes& s) {
    static const int64_t cache = device_attribute(cudaDevAttrL2CacheSize);
    const int64_t bytes = int64_t{2} * B * s.T * walk_heads * s.D * static_cast<int64_t>(sizeof(bf16));
    return {tiles, heads, tiles * heads * B, bytes <= cache / 2};
}

template <class F>
Grid grid(const Items& items) {
    static_assert(sizeof(typename F::Shared) <= 227 * 1024);
    return {dim3(static_cast<unsigned>(std::min(items.count, sm_count()))), F::THREADS, sizeof(typename F::Shared)};
}

template <int HEAD>
void forward(bf16* y, float* lse, const bf16* qkv, int B, const Sizes& s, Stream stream) {
    const char* op = "attention_forward";
    const Items items = items_of(ceil_div(s.T, Forward<HEAD>::QUERIES), s.H, s.HK, B, s);
    launch(op, forward_kernel<HEAD>, grid<Forward<HEAD>>(items), stream, tensor_map(op, y, B, s.T, s.out_width()), lse,
           tensor_map(op, qkv, B, s.T, s.width()), s, items);
}

template <int HEAD>
void backward(bf16* dqkv, const QueryRow* rows, const bf16* dy, const bf16* qkv, int B, const Sizes& s, Stream stream) {
    const char* op = "attention_backward";
    using K = BackwardKeys<HEAD>;
    using Q = BackwardQueries<HEAD>;
    static_assert(QUERY_ROWS % K::QUERIES == 0 && QUERY_ROWS % Q::QUERIES == 0);
    const CUtensorMap dqkv_map = tensor_map(op, dqkv, B, s.T, s.width()), dy_map = tensor_map(op, dy, B, s.T, s.out_width()),
                      qkv_map = tensor_map(op, qkv, B, s.T, s.width());
    const Items keys = items_of(ceil_div(s.T, K::KEYS), s.HK, s.H, B, s);
    const Items queries = items_of(ceil_div(s.T, Q::QUERIES), s.H, s.HK, B, s);
    launch(op, backward_keys_kernel<HEAD>, grid<K>(keys), stream, dqkv_map, rows, dy_map, qkv_map, s, keys);
    launch(op, backward_queries_kernel<HEAD>, grid<Q>(queries), stream, dqkv_map, rows, dy_map, qkv_map, s, queries);
}

bool hopper_wanted = true;

}  // namespace

bool attention_on_hopper(int D) {
    static const bool hopper = device_attribute(cudaDevAttrComputeCapabilityMajor) == 9;
    return hopper && hopper_wanted && (D == 64 || D == 128);
}

bool attention_use_hopper(bool wanted) {
    hopper_wanted = wanted;
    return attention_on_hopper(64);
}

void attention_forward_hopper(bf16* y, float* lse, const bf16* qkv, int B, const Sizes& s, Stream stream) {
    if (s.D == 64) forward<64>(y, lse, qkv, B, s, stream);
    else forward<128>(y, lse, qkv, B, s, stream);
}

void attention_backward_hopper(bf16* dqkv, const QueryRow* rows, const bf16* dy, const bf16* qkv, int B, const Sizes& s,
                               Stream stream) {
    if (s.D == 64) backward<64>(dqkv, rows, dy, qkv, B, s, stream);
    else backward<128>(dqkv, rows, dy, qkv, B, s, stream);
}
#endif
