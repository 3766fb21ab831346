// Softmax cross entropy on CUDA. A block takes a row of logits: one pass for its softmax's denominator, which leaves the row in
// shared memory, one for the gradient. Bound by memory (each logit is read once and written once) or, with a softcap, by the
// special function unit: three of its operations in each pass.
#include "llmc/cross_entropy.h"
#include "llmc/cuda_common.h"

static constexpr int THREADS = 512, STRIDE = THREADS * VECTOR;   // elements from a thread's vector to its next
static constexpr int UNDER_WAY = 8;   // vectors of a thread that are being copied: two blocks on a multiprocessor ask for 128 KB at a time
static constexpr float LOG2_E = 1.44269504f;

/// A logit through the cap. The fast way has an absolute error of softcap * 2^-22 and so is right where only exponentials
/// and the slope are wanted.
struct Capped {
    float z, slope;   // z = softcap * tanh(x / softcap), its derivative
};
template <bool CAPPED, bool FAST>
__device__ inline Capped cap(float x, float softcap, float inverse) {
    if constexpr (!CAPPED) return {x, 1};
    if constexpr (FAST) {
        const float below = 2 * fast_reciprocal(1 + fast_exp2(fminf(2 * LOG2_E * inverse * x, 80.0f)));   // 1 - tanh
        return {softcap - softcap * below, below * (2 - below)};
    }
    const float tanh = tanhf(x * inverse);
    return {softcap * tanh, 1 - tanh * tanh};
}

template <bool FAST>
__device__ inline float exponential(float x) {
    return FAST ? fast_exp2(x * LOG2_E) : expf(x);
}

/// Denominator of a softmax so far: sum of exp(z - greatest).
struct Denominator {
    float greatest, sum;
};
template <bool FAST>
__device__ inline Denominator join(Denominator a, Denominator b) {
    const float greatest = fmaxf(a.greatest, b.greatest);
    if (greatest == -INFINITY) return a;
    return {greatest, a.sum * exponential<FAST>(a.greatest - greatest) + b.sum * exponential<FAST>(b.greatest - greatest)};
}

template <bool FAST>
__device__ Denominator block_join(Denominator mine, Denominator* scratch) {
    auto join_warp = [](Denominator d) {
#pragma unroll
        for (int distance = WARP / 2; distance > 0; distance /= 2)
            d = join<FAST>(d, {__shfl_xor_sync(ALL_LANES, d.greatest, distance), __shfl_xor_sync(ALL_LANES, d.sum, distance)});
        return d;
    };
    mine = join_warp(mine);
    if (lane_of_thread() == 0) scratch[warp_of_thread()] = mine;
    __syncthreads();
    return join_warp(lane_of_thread() < THREADS / WARP ? scratch[lane_of_thread()] : Denominator{-INFINITY, 0});
}

/// CACHED: the row is copied to shared memory, after block_join's scratch, and kept between the passes; each thread reads what it copied.
template <bool CAPPED, bool GRADIENT, bool CACHED>
__global__ void __launch_bounds__(THREADS)
cross_entropy_kernel(float* losses, floatX* logits, const int* targets, float dloss, float softcap, int V) {
    constexpr bool FAST = GRADIENT && sizeof(floatX) == 2;   // fp32, and the capped logits themselves, are exact
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    floatX* row = logits + n * V;
    Denominator* scratch = shared_memory<Denominator>();
    floatX* cache = CACHED ? reinterpret_cast<floatX*>(scratch + WARP) : row;
    const float inverse = CAPPED ? 1 / softcap : 0;
    const float target_z = cap<CAPPED, false>(target >= 0 ? to_float(row[target]) : 0, softcap, inverse).z;

    const int first = static_cast<int>(threadIdx.x) * VECTOR;
    auto fetch = [&](int v) {
        if (CACHED && v < V) copy_async(cache + v, row + v);
        copy_async_commit();
    };
    for (int i = 0; i < UNDER_WAY; i++) fetch(first + i * STRIDE);
    Denominator mine{-INFINITY, 0};
#pragma unroll 4
    for (int v = first; v < V; v += STRIDE) {
        copy_async_wait<UNDER_WAY - 1>();
        fetch(v + UNDER_WAY * STRIDE);
        float z[VECTOR];
        unpack(z, load_packed(cache + v));
        float greatest = mine.greatest;
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            z[k] = cap<CAPPED, FAST>(z[k], softcap, inverse).z;
            greatest = fmaxf(greatest, z[k]);
        }
        float sum = mine.sum * exponential<FAST>(mine.greatest - greatest);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) sum += exponential<FAST>(z[k] - greatest);
        mine = {greatest, sum};
    }
    const Denominator all = block_join<FAST>(mine, scratch);
    const float log_sum = all.greatest + logf(all.sum);
    if (threadIdx.x == 0) losses[n] = target < 0 ? 0 : log_sum - target_z;

#pragma unroll 4
    for (int v = first; v < V; v += STRIDE) {
        float x[VECTOR];
        unpack(x, load_packed(cache + v));
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            const Capped capped = cap<CAPPED, FAST>(x[k], softcap, inverse);
            if (!GRADIENT) x[k] = capped.z;
            else if (target < 0) x[k] = 0;
            else x[k] = dloss * (exponential<FAST>(capped.z - log_sum) - (v + k == target ? 1.0f : 0.0f)) * capped.slope;
        }
        store(row + v, x);
    }
}

template <bool CAPPED, bool GRADIENT>
static void launch_cross_entropy(float* losses, floatX* logits, const int* targets, float dloss, float softcap, int64_t N, int V, Stream stream) {
    Grid grid{dim3(static_cast<unsigned>(N)), dim3(THREADS), WARP * sizeof(Denominator)};
    const size_t with_row = grid.shared + V * sizeof(floatX);
    const bool cached = with_row <= shared_memory_limit();
    if (cached) grid.shared = with_row;
    launch("cross_entropy", cached ? cross_entropy_kernel<CAPPED, GRADIENT, true> : cross_entropy_kernel<CAPPED, GRADIENT, false>, grid, stream,
           losses, logits, targets, dloss, softcap, V);
}

void cross_entropy(float* losses, floatX* logits, const int* targets, float dloss, float softcap, int64_t N, int V, Stream stream) {
    require(N >= 1, "cross_entropy: N must be at least 1, not ", N);
    require(V >= 8 && V % 8 == 0, "cross_entropy: V must be a positive multiple of 8, not ", V);
    require(softcap >= 0, "cross_entropy: softcap must not be negative: ", softcap);
    require_aligned("cross_entropy", logits);
    auto run = softcap > 0 ? (dloss != 0 ? launch_cross_entropy<true, true> : launch_cross_entropy<true, false>)
                           : (dloss != 0 ? launch_cross_entropy<false, true> : launch_cross_entropy<false, false>);
    run(losses, logits, targets, dloss, softcap, N, V, stream);
}
