// Token embeddings on CUDA. Rows are copied 16 bytes a thread; gradients are summed by segment_sum.cuh; both bound by memory. Tokens are
// sorted by blocks that each place the tokens of a part of the vocabulary: bound by reading idx twice from L2.
#include "llmc/ops/embedding.h"
#include "llmc/device/cuda_common.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/segment_sum.cuh"

// ------------------------------------------------------------------------------------------------------------- token_order

static constexpr int SORT_THREADS = 512, SORT_ITEMS = 4, SORT_CHUNK = SORT_THREADS * SORT_ITEMS;

/// Shared memory of a block: the positions of a chunk that hold its tokens, a count a warp, and where the next position of each of
/// its tokens goes.
struct SortShared {
    int queue[SORT_CHUNK];
    int scratch[WARP];
    int next[1];   // as many as a block has tokens
};

__device__ inline int warp_sum_below(int x) {   // exclusive prefix sum: over the lanes before this one
    int sum = x;
#pragma unroll
    for (int distance = 1; distance < WARP; distance *= 2) {
        const int before = __shfl_up_sync(ALL_LANES, sum, distance);
        if (lane_of_thread() >= distance) sum += before;
    }
    return sum - x;
}

/// The sum of x over the threads before this one, and over all of the block.
__device__ inline int block_sum_below(int x, int& total, int* scratch) {
    const int below = warp_sum_below(x);
    if (lane_of_thread() == WARP - 1) scratch[warp_of_thread()] = below + x;
    __syncthreads();
    const int warps = SORT_THREADS / WARP;
    const int count = lane_of_thread() < warps ? scratch[lane_of_thread()] : 0;
    const int warps_below = warp_sum_below(count);
    total = __shfl_sync(ALL_LANES, warps_below + count, warps - 1);
    const int result = below + __shfl_sync(ALL_LANES, warps_below, warp_of_thread());
    __syncthreads();
    return result;
}

/// Block b places the tokens from b * tokens on.
__global__ void __launch_bounds__(SORT_THREADS) token_order_kernel(int* order, const int* idx, int64_t N, int V, int tokens) {
    SortShared& shared = *shared_memory<SortShared>();
    const int first = static_cast<int>(blockIdx.x) * tokens, end = min(V, first + tokens), mine = end - first;
    for (int i = static_cast<int>(threadIdx.x); i < mine; i += SORT_THREADS) shared.next[i] = 0;
    __syncthreads();

    // How often each of the block's tokens occurs, and how many positions hold tokens of the blocks before.
    int before = 0, total = 0;
    for (int64_t i = threadIdx.x; i < N; i += SORT_THREADS) {
        const int token = idx[i];
        before += token < first;
        if (token >= first && token < end) atomicAdd(&shared.next[token - first], 1);
    }
    block_sum_below(before, total, shared.scratch);
    int place = total;
    for (int i = 0; i < mine; i += SORT_THREADS) {
        const int at = i + static_cast<int>(threadIdx.x);
        const int count = at < mine ? shared.next[at] : 0;
        const int below = block_sum_below(count, total, shared.scratch);
        if (at < mine) shared.next[at] = place + below;
        place += total;
    }

    // The positions of a chunk that hold the block's tokens go to the queue, in order; the first warp takes them from there.
    for (int64_t chunk = 0; chunk < N; chunk += SORT_CHUNK) {
        const int64_t begin = chunk + int64_t{threadIdx.x} * SORT_ITEMS;
        bool own[SORT_ITEMS];
        int count = 0;
#pragma unroll
        for (int i = 0; i < SORT_ITEMS; i++) {
            const int token = begin + i < N ? idx[begin + i] : -1;
            own[i] = token >= first && token < end;
            count += own[i];
        }
        int at = block_sum_below(count, total, shared.scratch);
#pragma unroll
        for (int i = 0; i < SORT_ITEMS; i++)
            if (own[i]) shared.queue[at++] = static_cast<int>(begin + i);
        __syncthreads();
        if (warp_of_thread() == 0)
            for (int i = lane_of_thread(); i - lane_of_thread() < total; i += WARP) {
                const bool there = i < total;
                const int position = there ? shared.queue[i] : -1;
                const int token = there ? idx[position] - first : -1;
                const unsigned same = __match_any_sync(ALL_LANES, token);
                const int rank = __popc(same & ((1u << lane_of_thread()) - 1));
                const int target = there ? shared.next[token] : 0;
                __syncwarp();
                if (there) {
                    order[target + rank] = position;
                    if (rank == 0) shared.next[token] = target + __popc(same);
                }
                __syncwarp();
            }
    }
}

void token_order(int* order, int*, const int* idx, int64_t N, int V, Stream stream) {
    require(N >= 1, "token_order: N must be at least 1, not ", N);
    require(V >= 1, "token_order: V must be at least 1, not ", V);
    const int tokens = ceil_div(V, 2 * sm_count());
    const size_t shared = sizeof(SortShared) + tokens * sizeof(int);
    require(shared <= shared_memory_limit(), "token_order: V of ", V, " is too large for this device");
    launch("token_order", token_order_kernel, {dim3(static_cast<unsigned>(ceil_div(V, tokens))), dim3(SORT_THREADS), shared}, stream, order, idx, N, V, tokens);
}

// --------------------------------------------------------------------------------------------------------------- embedding

template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>) embedding_forward_kernel(floatX* out, const int* idx, const floatX* wte, int64_t N, int C) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed pieces[VECTORS];
    row.load(pieces, wte + int64_t{idx[n]} * C);
    row.store(out + n * C, pieces);
}

void embedding_forward(floatX* out, const int* idx, const floatX* wte, int64_t N, int C, Stream stream) {
    require_rows("embedding_forward", N, C);
    require_aligned("embedding_forward", out, wte);
    for_rows("embedding_forward", N, C, [&]<int VECTORS, bool BLOCK>(const Grid& grid) {
        launch("embedding_forward", embedding_forward_kernel<VECTORS, BLOCK>, grid, stream, out, idx, wte, N, C);
    });
}

void embedding_backward(float* dwte, const floatX* dout, const int* idx, const int* order, int64_t N, int C, Stream stream) {
    require_rows("embedding_backward", N, C);
    require_aligned("embedding_backward", dwte, dout);
    segment_sum("embedding_backward", dwte, {dout, C, nullptr, C, C}, idx, order, N, stream);
}
