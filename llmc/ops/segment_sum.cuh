// The gradient of a table whose rows were looked up by token: a segmented sum over the positions sorted by token, for embedding.cu and
// value_embedding.cu. A segment is all positions of one token. Without atomics: a segment is summed by the block in which it begins.
//
// A block takes SEGMENT_POSITIONS sorted positions and SEGMENT_CHANNELS channels at a time. Eight lanes are a group, which reads 128
// neighbouring bytes of a row. Each group takes the segment that begins at its position. One that does not end within
// SEGMENT_POSITIONS positions is long: all groups of the block share it, each with every SEGMENT_GROUPS-th eight of its rows, so that a
// frequent token does not hold up the rest.
#pragma once
#include "llmc/device/cuda_common.h"

inline constexpr int SEGMENT_LANES = 8, SEGMENT_THREADS = 256, SEGMENT_GROUPS = SEGMENT_THREADS / SEGMENT_LANES, SEGMENT_POSITIONS = SEGMENT_GROUPS;
inline constexpr int SEGMENT_CHANNELS = SEGMENT_LANES * VECTOR;

/// What is summed: element c of position n is rows[n * stride + c], times weight[n * C / D + c / D] unless weight is null.
struct SegmentRows {
    const floatX* rows;
    int64_t stride;
    const float* weight;
    int C, D;
};

/// A group's place in its block and its warp.
struct SegmentGroup {
    int lane, number;
    unsigned mask;   // its lanes of the warp

    __device__ SegmentGroup()
        : lane(lane_of_thread() % SEGMENT_LANES), number(static_cast<int>(threadIdx.x) / SEGMENT_LANES), mask(0xffu << (lane_of_thread() - lane)) {}
};

/// Eight neighbouring positions of the order, one for each lane of a group.
struct EightRows {
    int position;   // the lane's row, or -1
    int count;      // how many of the eight have the token; they come first, as a segment has no gaps

    __device__ EightRows(const SegmentGroup& group, const int* idx, const int* order, int64_t first, int64_t N, int token) {
        const int64_t place = first + group.lane;
        position = place < N ? order[place] : -1;
        count = __popc(__ballot_sync(group.mask, position >= 0 && idx[position] == token) & group.mask);
    }
    /// sum += their rows, of the channels from `channel` on
    __device__ void add(float (&sum)[VECTOR], const SegmentGroup& group, const SegmentRows& from, int channel) const {
        Packed pieces[SEGMENT_LANES];
        float weight[SEGMENT_LANES];
#pragma unroll
        for (int i = 0; i < SEGMENT_LANES; i++) {
            const int64_t n = __shfl_sync(group.mask, position, i, SEGMENT_LANES);
            const bool wanted = i < count && channel < from.C;
            pieces[i] = wanted ? load_packed(from.rows + n * from.stride + channel) : Packed{};
            weight[i] = wanted && from.weight ? from.weight[n * (from.C / from.D) + channel / from.D] : 1.0f;
        }
#pragma unroll
        for (int i = 0; i < SEGMENT_LANES; i++) {
            float v[VECTOR];
            unpack(v, pieces[i]);
#pragma unroll
            for (int k = 0; k < VECTOR; k++) sum[k] += weight[i] * v[k];
        }
    }
};

/// What a block shares.
struct SegmentShared {
    float sums[SEGMENT_GROUPS][SEGMENT_CHANNELS];
    int long_begins;   // which of the block's positions, or -1: at most one long segment begins in a block
};

// With 3 blocks an SM nvcc 13.0 spills two registers for sm_80, and none for sm_90a.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
inline constexpr int SEGMENT_BLOCKS = 2;
#else
inline constexpr int SEGMENT_BLOCKS = 3;
#endif

/// table (V, C) +=, fp32. Grid: SEGMENT_POSITIONS of the order each; then the blocks that share a row's channels, SEGMENT_CHANNELS at a time.
static __global__ void __launch_bounds__(SEGMENT_THREADS, SEGMENT_BLOCKS) segment_sum_kernel(float* table, SegmentRows from, const int* idx, const int* order, int64_t N) {
    SegmentShared& shared = *shared_memory<SegmentShared>();
    const SegmentGroup group;
    const int64_t block_begin = int64_t{blockIdx.x} * SEGMENT_POSITIONS;
    const int first_channel = static_cast<int>(blockIdx.y) * SEGMENT_CHANNELS + group.lane * VECTOR;
    const int next_channel = static_cast<int>(gridDim.y) * SEGMENT_CHANNELS;
    const int end_channel = from.C + group.lane * VECTOR;   // so that all lanes of a block go on together
    if (threadIdx.x == 0) shared.long_begins = -1;
    __syncthreads();

    const int64_t begin = block_begin + group.number;
    const int token = begin < N ? idx[order[begin]] : -1;
    if (begin < N && (begin == 0 || idx[order[begin - 1]] != token)) {
        // Most segments are short: their positions are looked up once, and then each piece of channels waits for one load only.
        const EightRows eight(group, idx, order, begin, N, token);
        float* const row = table + int64_t{token} * from.C;
        for (int channel = first_channel; channel < end_channel; channel += next_channel) {
            float old[VECTOR], sum[VECTOR] = {};
            if (channel < from.C) load(old, row + channel);
            eight.add(sum, group, from, channel);
            int count = eight.count;
            for (int64_t end = begin + SEGMENT_LANES; count == SEGMENT_LANES && end < begin + SEGMENT_POSITIONS; end += SEGMENT_LANES) {
                const EightRows more(group, idx, order, end, N, token);
                more.add(sum, group, from, channel);
                count = more.count;
            }
            if (count == SEGMENT_LANES) {   // what is summed so far is summed again, by all
                if (group.lane == 0) shared.long_begins = group.number;
                break;
            }
            if (channel >= from.C) continue;
#pragma unroll
            for (int k = 0; k < VECTOR; k++) old[k] += sum[k];
            store(row + channel, old);
        }
    }
    __syncthreads();
    if (shared.long_begins < 0) return;

    const int64_t long_begin = block_begin + shared.long_begins;
    const int long_token = idx[order[long_begin]];
    float* const row = table + int64_t{long_token} * from.C;
    for (int channel = first_channel; channel < end_channel; channel += next_channel) {
        float sum[VECTOR] = {};
        int count = SEGMENT_LANES;
        for (int64_t at = long_begin + group.number * SEGMENT_LANES; count == SEGMENT_LANES; at += SEGMENT_GROUPS * SEGMENT_LANES) {
            const EightRows eight(group, idx, order, at, N, long_token);
            eight.add(sum, group, from, channel);
            count = eight.count;
        }
        store(&shared.sums[group.number][group.lane * VECTOR], sum);
        __syncthreads();
        if (group.number == 0 && channel < from.C) {
            for (int g = 1; g < SEGMENT_GROUPS; g++) {
                float other[VECTOR];
                load(other, &shared.sums[g][group.lane * VECTOR]);
#pragma unroll
                for (int k = 0; k < VECTOR; k++) sum[k] += other[k];
            }
            float old[VECTOR];
            load(old, row + channel);
#pragma unroll
            for (int k = 0; k < VECTOR; k++) old[k] += sum[k];
            store(row + channel, old);
        }
        __syncthreads();   // the next channels take the sums' place
    }
}

/// table (V, C)  +=  sums over the positions of each token; order from token_order.
inline void segment_sum(const char* op, float* table, const SegmentRows& from, const int* idx, const int* order, int64_t N, Stream stream) {
    constexpr int PIECES = 4;   // that a block takes of a row, of SEGMENT_CHANNELS each
    const dim3 blocks(static_cast<unsigned>(ceil_div(N, SEGMENT_POSITIONS)), static_cast<unsigned>(ceil_div(from.C, PIECES * SEGMENT_CHANNELS)));
    launch(op, segment_sum_kernel, {blocks, dim3(SEGMENT_THREADS), sizeof(SegmentShared)}, stream, table, from, idx, order, N);
}
