// The gradient of a table whose rows were looked up by token: sums over runs of equal tokens, for embedding.cu and
// value_embedding.cu. Without atomics: a run's sum is made by the block in whose segment of the order it begins.
//
// A block takes RUN_SEGMENT sorted positions and RUN_CHANNELS channels. Eight lanes are a group, which reads 128 neighbouring
// bytes of a row. Each group takes the run that begins at its position; a run that does not end within the segment's length is
// long, and all groups of the block take every RUN_GROUPS-th eight of its rows, so that a frequent token does not hold up the rest.
#pragma once
#include "llmc/device/cuda_common.h"

inline constexpr int RUN_LANES = 8, RUN_THREADS = 256, RUN_GROUPS = RUN_THREADS / RUN_LANES, RUN_SEGMENT = RUN_GROUPS;
inline constexpr int RUN_CHANNELS = RUN_LANES * VECTOR;

/// What is summed: element c of position n is rows[n * stride + c], times weight[n * C / D + c / D] unless weight is null.
struct RunRows {
    const floatX* rows;
    int64_t stride;
    const float* weight;
    int C, D;
};

/// What a group knows of itself.
struct RunGroup {
    int lane, number;
    unsigned mask;   // its lanes of the warp

    __device__ RunGroup()
        : lane(lane_of_thread() % RUN_LANES), number(static_cast<int>(threadIdx.x) / RUN_LANES), mask(0xffu << (lane_of_thread() - lane)) {}
};

/// What a group's lanes know of eight neighbouring positions of the order.
struct RunEight {
    int position;   // the lane's row, or -1
    int count;      // how many of the eight have the token; they come first, as its run is in one piece

    __device__ RunEight(const RunGroup& group, const int* idx, const int* order, int64_t first, int64_t N, int token) {
        const int64_t place = first + group.lane;
        position = place < N ? order[place] : -1;
        count = __popc(__ballot_sync(group.mask, position >= 0 && idx[position] == token) & group.mask);
    }
    /// sum += their rows, of the channels from `channel` on
    __device__ void add(float (&sum)[VECTOR], const RunGroup& group, const RunRows& from, int channel) const {
        Packed pieces[RUN_LANES];
        float weight[RUN_LANES];
#pragma unroll
        for (int i = 0; i < RUN_LANES; i++) {
            const int64_t n = __shfl_sync(group.mask, position, i, RUN_LANES);
            const bool wanted = i < count && channel < from.C;
            pieces[i] = wanted ? load_packed(from.rows + n * from.stride + channel) : Packed{};
            weight[i] = wanted && from.weight ? from.weight[n * (from.C / from.D) + channel / from.D] : 1.0f;
        }
#pragma unroll
        for (int i = 0; i < RUN_LANES; i++) {
            float v[VECTOR];
            unpack(v, pieces[i]);
#pragma unroll
            for (int k = 0; k < VECTOR; k++) sum[k] += weight[i] * v[k];
        }
    }
};

/// What a block shares.
struct RunShared {
    float sums[RUN_GROUPS][RUN_CHANNELS];
    int long_begins;   // place in the segment, or -1: at most one long run begins in a segment
};

/// table (V, C) +=, fp32. Grid: segments of the order, then as many blocks as share a row's channels, RUN_CHANNELS at a time.
static __global__ void __launch_bounds__(RUN_THREADS, 3) run_sum_kernel(float* table, RunRows from, const int* idx, const int* order, int64_t N) {
    RunShared& shared = *shared_memory<RunShared>();
    const RunGroup group;
    const int64_t segment = int64_t{blockIdx.x} * RUN_SEGMENT;
    const int first_channel = static_cast<int>(blockIdx.y) * RUN_CHANNELS + group.lane * VECTOR, next_channel = static_cast<int>(gridDim.y) * RUN_CHANNELS;
    const int end_channel = from.C + group.lane * VECTOR;   // so that all lanes of a block go on together
    if (threadIdx.x == 0) shared.long_begins = -1;
    __syncthreads();

    const int64_t begin = segment + group.number;
    const int token = begin < N ? idx[order[begin]] : -1;
    if (begin < N && (begin == 0 || idx[order[begin - 1]] != token)) {
        // Most runs are short: their rows are looked up once, and what each piece of channels waits for is one load.
        const RunEight eight(group, idx, order, begin, N, token);
        float* const row = table + int64_t{token} * from.C;
        for (int channel = first_channel; channel < end_channel; channel += next_channel) {
            float old[VECTOR], sum[VECTOR] = {};
            if (channel < from.C) load(old, row + channel);
            eight.add(sum, group, from, channel);
            int count = eight.count;
            for (int64_t end = begin + RUN_LANES; count == RUN_LANES && end < begin + RUN_SEGMENT; end += RUN_LANES) {
                const RunEight more(group, idx, order, end, N, token);
                more.add(sum, group, from, channel);
                count = more.count;
            }
            if (count == RUN_LANES) {   // what is summed so far is summed again, by all
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

    const int64_t run = segment + shared.long_begins;
    const int run_token = idx[order[run]];
    float* const row = table + int64_t{run_token} * from.C;
    for (int channel = first_channel; channel < end_channel; channel += next_channel) {
        float sum[VECTOR] = {};
        int count = RUN_LANES;
        for (int64_t at = run + group.number * RUN_LANES; count == RUN_LANES; at += RUN_GROUPS * RUN_LANES) {
            const RunEight eight(group, idx, order, at, N, run_token);
            eight.add(sum, group, from, channel);
            count = eight.count;
        }
        store(&shared.sums[group.number][group.lane * VECTOR], sum);
        __syncthreads();
        if (group.number == 0 && channel < from.C) {
            for (int g = 1; g < RUN_GROUPS; g++) {
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

/// table (V, C)  +=  sums over runs of equal tokens; order from token_order.
inline void run_sum(const char* op, float* table, const RunRows& from, const int* idx, const int* order, int64_t N, Stream stream) {
    constexpr int PIECES = 4;   // of a row's channels that a block takes, one after another
    Grid grid{dim3(static_cast<unsigned>(ceil_div(N, RUN_SEGMENT)), static_cast<unsigned>(ceil_div(from.C, PIECES * RUN_CHANNELS))), dim3(RUN_THREADS),
              sizeof(RunShared)};
    launch(op, run_sum_kernel, grid, stream, table, from, idx, order, N);
}
