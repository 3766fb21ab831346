// The ladder of the softmax cross entropy with its gradient: N rows of V logits, the gradient in the logits' place. A row is long (64 KiB
// for 32768 logits in bf16), so a block takes one, in every step. What must move is each logit in and each gradient out; what must
// be computed is an exponential for the sum and one for the gradient of every logit.
#include "dev/kernels/ladder.h"
#include "llmc/ops/cross_entropy.h"

static constexpr int THREADS = 512;
static constexpr size_t SCRATCH = WARP * sizeof(float);      // what block_sum and block_max take

static Grid grid_for(int64_t N) { return {dim3(static_cast<unsigned>(N)), dim3(THREADS), SCRATCH}; }
static __device__ int thread() { return static_cast<int>(threadIdx.x); }

// 1. The formula, a kernel for each of its passes: the max of a row, the sum of exponentials, the gradient. Subtracting the max keeps the
// exponentials at 1 and below. The whole tensor is read three times, and is larger than any cache: 3 readings and one writing of all
// logits. Bound by device memory.
static __global__ void __launch_bounds__(THREADS)
row_max_kernel(float* row_max, const floatX* logits, int V) {
    const floatX* row = logits + static_cast<int64_t>(blockIdx.x) * V;
    float top = -INFINITY;
    for (int v = thread(); v < V; v += THREADS) top = fmaxf(top, to_float(row[v]));
    top = block_max(top, shared_memory<float>());
    if (thread() == 0) row_max[blockIdx.x] = top;
}
static __global__ void __launch_bounds__(THREADS)
sum_kernel(float* losses, float* log_sums, const float* row_max, const floatX* logits, const int* targets, int V) {
    const int64_t n = blockIdx.x;
    const floatX* row = logits + n * V;
    float sum = 0;
    for (int v = thread(); v < V; v += THREADS) sum += expf(to_float(row[v]) - row_max[n]);
    sum = block_sum(sum, shared_memory<float>());
    if (thread() == 0) {
        log_sums[n] = row_max[n] + logf(sum);
        losses[n] = log_sums[n] - to_float(row[targets[n]]);
    }
}
static __global__ void __launch_bounds__(THREADS)
gradient_kernel(floatX* logits, const float* log_sums, const int* targets, int V, float dloss) {
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    const float log_sum = log_sums[n];
    floatX* row = logits + n * V;
    for (int v = thread(); v < V; v += THREADS)
        row[v] = to_floatX(dloss * (expf(to_float(row[v]) - log_sum) - (v == target ? 1.0f : 0.0f)));
}
static void three_passes(float* losses, floatX* logits, float* scratch, const int* targets, CrossEntropySize s, float dloss,
                         Stream stream) {
    launch("row_max", row_max_kernel, grid_for(s.N), stream, scratch, logits, s.V);
    launch("sum", sum_kernel, grid_for(s.N), stream, losses, scratch + s.N, scratch, logits, targets, s.V);
    launch("gradient", gradient_kernel, grid_for(s.N), stream, logits, scratch + s.N, targets, s.V, dloss);
}

// 2. Online softmax (Milakov and Gimelshein 2018): max and sum in one pass. A new max rescales the sum so far: it is multiplied by
// exp(old max - new max). And one kernel for all: the second reading of a row follows the first at once, so it can hit L2; 4 blocks of
// 512 threads on each of 132 SMs work on 528 rows of 64 KiB, 35 MB, where an H200's L2 has 50 MB. Each logit is read from memory once
// and written once if all are still there; what L2 has evicted is read again. Bound by instructions, 42 a logit: a load, a branch and the
// loop's own for every 2 bytes. And each logit waits for the sum that the one before it left.
static __global__ void __launch_bounds__(THREADS)
online_kernel(float* losses, floatX* logits, const int* targets, int V, float dloss) {
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    floatX* row = logits + n * V;
    const float target_logit = to_float(row[target]);        // before the barriers, so before the gradient overwrites it
    float row_max = -INFINITY, sum = 0;
    for (int v = thread(); v < V; v += THREADS) {
        const float z = to_float(row[v]);
        if (z > row_max) {
            sum = sum * expf(row_max - z) + 1;
            row_max = z;
        } else {
            sum += expf(z - row_max);
        }
    }
    const float top = block_max(row_max, shared_memory<float>());
    const float log_sum = top + logf(block_sum(sum * expf(row_max - top), shared_memory<float>()));
    if (thread() == 0) losses[n] = log_sum - target_logit;
    for (int v = thread(); v < V; v += THREADS)
        row[v] = to_floatX(dloss * (expf(to_float(row[v]) - log_sum) - (v == target ? 1.0f : 0.0f)));
}
static void online(float* losses, floatX* logits, float*, const int* targets, CrossEntropySize s, float dloss, Stream stream) {
    launch("online", online_kernel, grid_for(s.N), stream, losses, logits, targets, s.V, dloss);
}

// 3. 16 bytes a thread: 8 logits (bf16) an access. The max of the 8 is found first, so the sum is rescaled once for 8 of them, without a
// branch, and their 8 exponentials do not wait for each other: 28 instructions a logit. Bound by these and by device memory, equally; and
// held back by the second reading, as far as it misses L2.
static __device__ void add_logits(float& row_max, float& sum, const float (&z)[VECTOR]) {
    float top = row_max;
    for (float logit : z) top = fmaxf(top, logit);
    sum *= expf(row_max - top);
    for (float logit : z) sum += expf(logit - top);
    row_max = top;
}
static __global__ void __launch_bounds__(THREADS)
wide_kernel(float* losses, floatX* logits, const int* targets, int V, float dloss) {
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    floatX* row = logits + n * V;
    const float target_logit = to_float(row[target]);
    float z[VECTOR], row_max = -INFINITY, sum = 0;
    for (int v = thread() * VECTOR; v < V; v += THREADS * VECTOR) {
        load(z, row + v);
        add_logits(row_max, sum, z);
    }
    const float top = block_max(row_max, shared_memory<float>());
    const float log_sum = top + logf(block_sum(sum * expf(row_max - top), shared_memory<float>()));
    if (thread() == 0) losses[n] = log_sum - target_logit;
    for (int v = thread() * VECTOR; v < V; v += THREADS * VECTOR) {
        load(z, row + v);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) z[k] = dloss * (expf(z[k] - log_sum) - (v + k == target ? 1.0f : 0.0f));
        store(row + v, z);
    }
}
static void wide(float* losses, floatX* logits, float*, const int* targets, CrossEntropySize s, float dloss, Stream stream) {
    launch("wide", wide_kernel, grid_for(s.N), stream, losses, logits, targets, s.V, dloss);
}

// 4. The row stays in shared memory between the passes: each logit is read from memory once and the gradient written once, whatever the
// caches do. A thread reads back only what it wrote itself, so this needs no barrier. The price is occupancy: three rows of 64 KiB fit
// into the 228 KiB of an H200's SM (two into an A100's 164), 1536 threads where step 3 has 2048. Bound by device memory and by
// instructions, equally, on an H200: expf takes eight or so, to be right to the last bits.
static __device__ floatX* cached_row() { return reinterpret_cast<floatX*>(shared_memory<float>() + WARP); }

static __global__ void __launch_bounds__(THREADS)
cached_kernel(float* losses, floatX* logits, const int* targets, int V, float dloss) {
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    floatX* row = logits + n * V;
    const float target_logit = to_float(row[target]);
    float z[VECTOR], row_max = -INFINITY, sum = 0;
#pragma unroll 4
    for (int v = thread() * VECTOR; v < V; v += THREADS * VECTOR) {
        const Packed packed = load_packed(row + v);
        store_packed(cached_row() + v, packed);
        unpack(z, packed);
        add_logits(row_max, sum, z);
    }
    const float top = block_max(row_max, shared_memory<float>());
    const float log_sum = top + logf(block_sum(sum * expf(row_max - top), shared_memory<float>()));
    if (thread() == 0) losses[n] = log_sum - target_logit;
    for (int v = thread() * VECTOR; v < V; v += THREADS * VECTOR) {
        load(z, cached_row() + v);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) z[k] = dloss * (expf(z[k] - log_sum) - (v + k == target ? 1.0f : 0.0f));
        store(row + v, z);
    }
}
static Grid grid_with_row(int64_t N, int V) {
    Grid grid = grid_for(N);
    grid.shared += V * sizeof(floatX);
    require(grid.shared <= shared_memory_limit(), "cached: a row of ", V, " logits takes ", grid.shared,
            " bytes of shared memory; a block can have ", shared_memory_limit());
    return grid;
}
static void cached(float* losses, floatX* logits, float*, const int* targets, CrossEntropySize s, float dloss, Stream stream) {
    launch("cached", cached_kernel, grid_with_row(s.N, s.V), stream, losses, logits, targets, s.V, dloss);
}

// 5. Fast exponentials: e^(z - m) = 2^(z log2(e) - m log2(e)) is one fused multiply-add and one operation of the special function unit.
// Its relative error of 2^-22, and the rounding of its argument, vanish when the gradient is rounded to bf16. 15 instructions a logit.
// Bound by device memory: the special function units and the instructions take about 0.6 of its time each on an H200, and overlap it.
static constexpr float LOG2E = 1.4426950408889634f;
static __device__ float fast_exp_of_difference(float z, float scaled) { return fast_exp2(fmaf(z, LOG2E, -scaled)); }   // scaled = m log2(e)

static __global__ void __launch_bounds__(THREADS)
fast_kernel(float* losses, floatX* logits, const int* targets, int V, float dloss) {
    const int64_t n = blockIdx.x;
    const int target = targets[n];
    floatX* row = logits + n * V;
    const float target_logit = to_float(row[target]);
    float z[VECTOR], row_max = -INFINITY, sum = 0;
#pragma unroll 4
    for (int v = thread() * VECTOR; v < V; v += THREADS * VECTOR) {
        const Packed packed = load_packed(row + v);
        store_packed(cached_row() + v, packed);
        unpack(z, packed);
        float top = row_max;
        for (float logit : z) top = fmaxf(top, logit);
        sum *= fast_exp2((row_max - top) * LOG2E);
        for (float logit : z) sum += fast_exp_of_difference(logit, top * LOG2E);
        row_max = top;
    }
    const float top = block_max(row_max, shared_memory<float>());
    const float log_sum = top + logf(block_sum(sum * expf(row_max - top), shared_memory<float>()));
    if (thread() == 0) losses[n] = log_sum - target_logit;
    for (int v = thread() * VECTOR; v < V; v += THREADS * VECTOR) {
        load(z, cached_row() + v);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) z[k] = dloss * (fast_exp_of_difference(z[k], log_sum * LOG2E) - (v + k == target ? 1.0f : 0.0f));
        store(row + v, z);
    }
}
static void fast(float* losses, floatX* logits, float*, const int* targets, CrossEntropySize s, float dloss, Stream stream) {
    launch("fast", fast_kernel, grid_with_row(s.N, s.V), stream, losses, logits, targets, s.V, dloss);
}

// 6. llmc/ops/cross_entropy.cu: the same with a cap on the logits, targets that are left out, rows that do not fit into shared memory, and
// the loss alone. Bound by device memory. (With a cap it has a kernel of its own, in which an element costs 2.5 special functions.)
static void engine(float* losses, floatX* logits, float*, const int* targets, CrossEntropySize s, float dloss, Stream stream) {
    cross_entropy(losses, logits, targets, s.N, s.V, dloss, 0, stream);
}

// -------------------------------------------------------------------------------------------------------------------- the work

static double logits_of(const CrossEntropySize& s) { return static_cast<double>(s.N) * s.V; }
static constexpr double BYTES = sizeof(floatX);

// A kernel's `accesses` of a logit, from memory or shared memory, one logit at a time or 16 bytes; the bytes that memory moves;
// exponentials.
static Work kernel(double n, double bytes, double accesses, bool wide, double exponentials, double instructions) {
    return {.memory = bytes * n,
            .special = exponentials * n,
            .words = accesses * (wide ? BYTES / 4 : 1) * n,
            .instructions = COUNTED * instructions * n};
}

const std::vector<Step<CrossEntropy, CrossEntropySize>>& cross_entropy_ladder() {
    using Size = CrossEntropySize;
    using Works = std::vector<Work>;
    static constexpr double RESCALES = 1.0 / VECTOR;         // exponentials that rescale the sum
    static const std::vector<Step<CrossEntropy, Size>> steps = {
        {"three passes, three kernels", three_passes,
         [](const Size& s) {
             const double n = logits_of(s);
             return Works{kernel(n, BYTES, 1, false, 0, 3.3), kernel(n, BYTES, 1, false, 1, 12.8), kernel(n, 2 * BYTES, 2, false, 1, 19.8)};
         }},
        {"online softmax, one kernel", online, [](const Size& s) { return Works{kernel(logits_of(s), 2 * BYTES, 3, false, 2, 42)}; }},
        {"16 bytes a thread", wide, [](const Size& s) { return Works{kernel(logits_of(s), 2 * BYTES, 3, true, 2 + RESCALES, 28.2)}; }},
        {"the row in shared memory", cached,
         [](const Size& s) { return Works{kernel(logits_of(s), 2 * BYTES, 4, true, 2 + RESCALES, 27.8)}; }},
        {"fast exponentials", fast, [](const Size& s) { return Works{kernel(logits_of(s), 2 * BYTES, 4, true, 2 + RESCALES, 15.2)}; }},
        {"llmc/ops/cross_entropy.cu", engine, [](const Size& s) { return Works{kernel(logits_of(s), 2 * BYTES, 2, true, 2, 0)}; }}};
    return steps;
}
