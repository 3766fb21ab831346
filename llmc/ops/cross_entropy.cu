// Softmax cross entropy on CUDA. A block takes a row of logits: one pass for its softmax's denominator, which leaves the row in
// shared memory, one for the gradient. Bound by memory: each logit is read once and written once. With a cap the special function
// unit would take longer (three of its operations in each pass), so that the gradient in bf16 has a kernel of its own.
#include "llmc/ops/cross_entropy.h"
#include "llmc/device/cuda_common.h"

static constexpr int THREADS = 512, STRIDE = THREADS * VECTOR;   // elements from a thread's vector to its next
static constexpr int UNDER_WAY = 8;   // copies in flight for each thread, 16 bytes each: 128 KB for the two blocks of an SM
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
        const float exponent = 2 * LOG2_E * inverse * x;
        const float below = 2 * fast_reciprocal(1 + fast_exp2(exponent > 80 ? 80 : exponent));   // 1 - tanh; NaN stays NaN
        return {softcap - softcap * below, below * (2 - below)};
    }
    const float tanh = tanhf(x * inverse);
    return {softcap * tanh, 1 - tanh * tanh};
}

template <bool FAST>
__device__ inline float exponential(float x) {
    return FAST ? fast_exp2(x * LOG2_E) : expf(x);
}

/// The softmax's denominator so far: sum of exp(z - row_max).
struct Denominator {
    float row_max, sum;
};
template <bool FAST>
__device__ inline Denominator join(Denominator a, Denominator b) {
    const float row_max = fmaxf(a.row_max, b.row_max);
    if (row_max == -INFINITY) return a;
    return {row_max, a.sum * exponential<FAST>(a.row_max - row_max) + b.sum * exponential<FAST>(b.row_max - row_max)};
}

template <bool FAST>
__device__ Denominator block_join(Denominator mine, Denominator* scratch) {
    auto join_warp = [](Denominator d) {
#pragma unroll
        for (int distance = WARP / 2; distance > 0; distance /= 2)
            d = join<FAST>(d, {__shfl_xor_sync(ALL_LANES, d.row_max, distance), __shfl_xor_sync(ALL_LANES, d.sum, distance)});
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
        float row_max = mine.row_max;
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            z[k] = cap<CAPPED, FAST>(z[k], softcap, inverse).z;
            row_max = fmaxf(row_max, z[k]);
        }
        float sum = mine.sum * exponential<FAST>(mine.row_max - row_max);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) sum += exponential<FAST>(z[k] - row_max);
        mine = {row_max, sum};
    }
    const Denominator all = block_join<FAST>(mine, scratch);
    const float log_sum = all.row_max + logf(all.sum);
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

// -------------------------------------------------------------------------------------------------- the gradient with a cap, bf16
//
// Of a logit x, with q = e^(2 x / softcap) and i = 1 / (1 + q):
//     z = softcap (1 - 2 i),   slope = dz/dx = 4 q i^2
// The cap is monotonic, so the max of the logits also has the max z: it is known before any exponential is computed, no sum is rescaled,
// and p = 2^-64 e^(z - max) is final at once. The gradient then needs one number of a logit, p slope / 4, which takes the logit's place
// in shared memory. Special function unit: 2.5 operations an element, as two elements share a reciprocal.

/// Numbers from 0 to 2^-64 in 16 bits, two to a word: the six bits that their exponents need and ten of their fraction, so that
/// rounding them (2^-11) hardly shows in a bf16 (2^-8).
static constexpr float SMALL = 0x1p-64f;
__device__ inline uint32_t pack_small(float low, float high) {
    auto rounded = [](float x) { return (float_to_bits(x) << 3) + 0x8000; };
    return rounded(low) >> 16 | (rounded(high) & 0xffff0000u);
}
__device__ inline void unpack_small(float& low, float& high, uint32_t both) {
    low = bits_to_float((both & 0xffffu) << 13);
    high = bits_to_float(both >> 16 << 13);
}

/// q above, of x times 2 log2(e) / softcap: at most 2^40, so that two denominators can be multiplied. NaN stays NaN.
__device__ inline float growth(float exponent) { return fast_exp2(exponent > 40 ? 40 : exponent); }

/// A block takes a row; each of its 16-byte vectors is read and written by the thread that copied it.
template <int BLOCK>
__global__ void __launch_bounds__(BLOCK)
capped_gradient_kernel(float* losses, floatX* logits, const int* targets, float dloss, float softcap, int V) {
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    floatX* row = logits + n * V;
    float* scratch = shared_memory<float>();
    floatX* cache = reinterpret_cast<floatX*>(scratch + WARP);
    const int first = static_cast<int>(threadIdx.x) * VECTOR;
    const float target_tanh = tanhf(target >= 0 ? to_float(row[target]) / softcap : 0);   // before anything is written

    for (int v = first; v < V; v += BLOCK * VECTOR) copy_async(cache + v, row + v);
    copy_async_commit();
    copy_async_wait<0>();
    float row_max = -INFINITY;
    for (int v = first; v < V; v += BLOCK * VECTOR) {
        float x[VECTOR];
        unpack(x, load_packed(cache + v));
#pragma unroll
        for (int k = 0; k < VECTOR; k++) row_max = fmaxf(row_max, x[k]);
    }
    row_max = block_max(row_max, scratch);

    const float scale = 2 * LOG2_E / softcap, slope_of_i = -2 * LOG2_E * softcap;
    const float max_i = fast_reciprocal(1 + growth(row_max * scale));
    const float offset = -64 - slope_of_i * max_i;   // log2 p = slope_of_i * i + offset
    float sum = 0;
    for (int v = first; v < V; v += BLOCK * VECTOR) {
        const Packed packed = load_packed(cache + v);
        auto kept = [&](uint32_t both) {
            float low, high;
            unpack_bf16(low, high, both);
            const float low_q = growth(low * scale), high_q = growth(high * scale);
            const float reciprocal = fast_reciprocal((1 + low_q) * (1 + high_q));
            const float low_i = reciprocal * (1 + high_q), high_i = reciprocal * (1 + low_q);
            const float low_p = fast_exp2(fmaf(slope_of_i, low_i, offset)), high_p = fast_exp2(fmaf(slope_of_i, high_i, offset));
            sum += low_p + high_p;
            return pack_small(low_p * (low_q * low_i * low_i), high_p * (high_q * high_i * high_i));
        };
        store_packed(cache + v, {kept(packed.x), kept(packed.y), kept(packed.z), kept(packed.w)});
    }
    sum = block_sum(sum, scratch);
    const float log_sum = softcap * (1 - 2 * max_i) + logf(sum / SMALL);
    if (threadIdx.x == 0) losses[n] = target < 0 ? 0 : log_sum - softcap * target_tanh;

    const float share = target < 0 ? 0 : 4 * dloss / sum;
    for (int v = first; v < V; v += BLOCK * VECTOR) {
        const Packed packed = load_packed(cache + v);
        auto gradient = [&](uint32_t both) {
            float low, high;
            unpack_small(low, high, both);
            return pack_bf16(share * low, share * high);
        };
        store_packed(row + v, {gradient(packed.x), gradient(packed.y), gradient(packed.z), gradient(packed.w)});
    }
    if (target >= 0 && target / VECTOR % BLOCK == static_cast<int>(threadIdx.x)) {   // the thread that wrote there
        const float p = expf(softcap * target_tanh - log_sum);
        row[target] = to_floatX(dloss * (p - 1) * (1 - target_tanh * target_tanh));
    }
}

template <bool CAPPED, bool GRADIENT>
static void launch_cross_entropy(float* losses, floatX* logits, const int* targets, float dloss, float softcap, int64_t N, int V, Stream stream) {
    Grid grid{dim3(static_cast<unsigned>(N)), dim3(THREADS), WARP * sizeof(Denominator)};
    const size_t with_row = grid.shared + V * sizeof(floatX);
    const bool cached = with_row <= shared_memory_limit();
    if (cached) grid.shared = with_row;
    auto kernel = cross_entropy_kernel<CAPPED, GRADIENT, false>;
    if (cached) {
        if constexpr (CAPPED && GRADIENT && sizeof(floatX) == 2) kernel = capped_gradient_kernel<THREADS>;
        else kernel = cross_entropy_kernel<CAPPED, GRADIENT, true>;
    }
    launch("cross_entropy", kernel, grid, stream, losses, logits, targets, dloss, softcap, V);
}

void cross_entropy(float* losses, floatX* logits, const int* targets, int64_t N, int V, float dloss, float softcap, Stream stream) {
    require(N >= 1, "cross_entropy: N must be at least 1, not ", N);
    require(V >= 8 && V % 8 == 0, "cross_entropy: V must be a positive multiple of 8, not ", V);
    require(softcap >= 0, "cross_entropy: softcap must not be negative: ", softcap);
    require_aligned("cross_entropy", logits);
    auto run = softcap > 0 ? (dloss != 0 ? launch_cross_entropy<true, true> : launch_cross_entropy<true, false>)
                           : (dloss != 0 ? launch_cross_entropy<false, true> : launch_cross_entropy<false, false>);
    run(losses, logits, targets, dloss, softcap, N, V, stream);
}

// Each piece reads and writes the fp32 gradient of the head once, 8 bytes a parameter: at 1 GiB a model of 50304 tokens and 65536 tokens a
// micro-batch does so 7 times. Whole tiles of cuBLASLt's, of which 256 rows is the largest, where a piece is that large.
int64_t logits_rows(int64_t N, int64_t V) {
    const int64_t pieces = std::max<int64_t>(2, ceil_div(N * V * int64_t{sizeof(floatX)}, int64_t{1} << 30)), rows = ceil_div(N, pieces);
    return rows < 4096 ? rows : ceil_div(rows, 256) * 256;
}
