// Sums and checks over whole tensors on CUDA. A block takes a span of a tensor; bound by memory.
#include "llmc/ops/reduce.h"
#include <algorithm>
#include <cfloat>
#include <memory>
#include "llmc/device/cuda_common.h"
#include "llmc/device/device.h"

static constexpr int THREADS = 256, LOSS_THREADS = 1024;

/// A block takes a span.
__global__ void squares_kernel(float* out, const float* x, const Span* spans) {
    const Span span = spans[blockIdx.x];
    const float* mine = x + span.begin;
    float sum = 0;
#pragma unroll 4
    for (int64_t i = int64_t{threadIdx.x} * 4; i + 3 < span.count; i += THREADS * 4) {
        float v[4];
        load(v, mine + i);
        sum += (v[0] * v[0] + v[1] * v[1]) + (v[2] * v[2] + v[3] * v[3]);
    }
    for (int64_t i = span.count - span.count % 4 + threadIdx.x; i < span.count; i += THREADS) sum += mine[i] * mine[i];
    sum = block_sum(sum, shared_memory<float>());
    if (threadIdx.x == 0) out[blockIdx.x] = sum;
}

__global__ void __launch_bounds__(THREADS) add_kernel(float* sum, const float* x, int64_t n) {
    const int64_t i = (int64_t{blockIdx.x} * THREADS + threadIdx.x) * 4;
    if (i + 3 < n) {
        float a[4], b[4];
        load(a, sum + i);
        load(b, x + i);
        for (int k = 0; k < 4; k++) a[k] += b[k];
        store(sum + i, a);
    } else {
        for (int64_t k = i; k < n; k++) sum[k] += x[k];
    }
}

/// The sum over the LOSS_THREADS threads of a block, in thread 0. sums (LOSS_THREADS): shared memory
__device__ inline double sum_of_parts(double mine, double* sums) {
    sums[threadIdx.x] = mine;
    for (unsigned half = LOSS_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    return threadIdx.x == 0 ? sums[0] : 0;
}

/// One block: a micro-batch's losses are few.
__global__ void __launch_bounds__(LOSS_THREADS) mean_loss_kernel(double* total, double* last, const float* losses, int64_t N, double valid, double share) {
    double mine = 0;
#pragma unroll 4
    for (int64_t n = threadIdx.x; n < N; n += LOSS_THREADS) mine += losses[n];
    const double sum = sum_of_parts(mine, shared_memory<double>());
    if (threadIdx.x > 0) return;
    *last = sum / valid;
    *total += share * (sum / valid);
}

void sums_of_squares(float* out, const float* x, const Span* spans, int count, Stream stream) {
    require(count >= 0, "sums_of_squares: count must not be negative, but is ", count);
    require_aligned("sums_of_squares", x);
    if (count == 0) return;
    launch("sums_of_squares", squares_kernel, {dim3(static_cast<unsigned>(count)), dim3(THREADS), WARP * sizeof(float)}, stream, out, x, spans);
}

void add(float* sum, const float* x, int64_t n, Stream stream) {
    require(n >= 1, "add: n must be at least 1, not ", n);
    require_aligned("add", sum, x);
    launch("add", add_kernel, {dim3(static_cast<unsigned>(ceil_div(n, THREADS * 4))), dim3(THREADS)}, stream, sum, x, n);
}

void mean_loss(double* total, double* last, const float* losses, int64_t N, double valid, double share, Stream stream) {
    require(N >= 1, "mean_loss: N must be at least 1, not ", N);
    launch("mean_loss", mean_loss_kernel, {dim3(1), dim3(LOSS_THREADS), LOSS_THREADS * sizeof(double)}, stream, total, last, losses, N, valid, share);
}

/// A thread adds up one element of all parts: bound by memory. sums[level] is the sum of 2^level parts, until its neighbour is there; the
/// levels are unrolled, so that they stay in registers.
template <int LEVELS>
__global__ void tree_sum_kernel(float* out, const float* parts, int count, int64_t n) {
    const int64_t at = int64_t{blockIdx.x} * THREADS + threadIdx.x;
    if (at >= n) return;
    float sums[LEVELS];
    for (int part = 0; part < count; part++) {
        float sum = parts[part * n + at];
        bool carried = true;
#pragma unroll
        for (int level = 0; level < LEVELS; level++)
            if (carried) {
                carried = part >> level & 1;
                if (carried) sum = sums[level] + sum;
                else sums[level] = sum;
            }
    }
    float sum = 0;
    bool first = true;   // the subtrees left over, from the smallest: each joins the one before it
#pragma unroll
    for (int level = 0; level < LEVELS; level++)
        if (count >> level & 1) {
            sum = first ? sums[level] : sums[level] + sum;
            first = false;
        }
    out[at] = sum;
}

void tree_sum(float* out, const float* parts, int count, int64_t n, Stream stream) {
    require(count >= 1, "tree_sum: count must be at least 1, not ", count);
    require(n >= 1, "tree_sum: n must be at least 1, not ", n);
    const auto kernel = count < 4 ? tree_sum_kernel<2> : count < 64 ? tree_sum_kernel<6> : tree_sum_kernel<31>;
    launch("tree_sum", kernel, {dim3(static_cast<unsigned>(ceil_div(n, THREADS))), dim3(THREADS)}, stream, out, parts, count, n);
}

template <class Number>
__global__ void first_nonfinite_kernel(unsigned long long* first, const Number* x, int64_t n) {
    for (int64_t i = int64_t{blockIdx.x} * THREADS + threadIdx.x; i < n; i += int64_t{gridDim.x} * THREADS)
        if (!(fabsf(to_float(x[i])) <= FLT_MAX)) {
            atomicMin(first, static_cast<unsigned long long>(i));
            return;   // the thread's later ones are no smaller
        }
}

template <class Number>
static int64_t first_nonfinite_of(const Number* x, int64_t n, Stream stream) {
    if (n <= 0) return -1;
    std::unique_ptr<void, void (*)(void*)> memory(device_alloc(sizeof(unsigned long long)), device_free);
    auto* first = static_cast<unsigned long long*>(memory.get());
    unsigned long long found = static_cast<unsigned long long>(n);
    copy_to_device(first, &found, sizeof found, stream);
    const unsigned blocks = blocks_that_fit("first_nonfinite", first_nonfinite_kernel<Number>, THREADS);
    const int64_t wanted = ceil_div(n, THREADS);
    launch("first_nonfinite", first_nonfinite_kernel<Number>, {dim3(static_cast<unsigned>(std::min<int64_t>(blocks, wanted))), dim3(THREADS)}, stream,
           first, x, n);
    copy_to_host(&found, first, sizeof found, stream);
    return found < static_cast<unsigned long long>(n) ? static_cast<int64_t>(found) : -1;
}

int64_t first_nonfinite(const float* x, int64_t n, Stream stream) { return first_nonfinite_of(x, n, stream); }
int64_t first_nonfinite(const bf16* x, int64_t n, Stream stream) { return first_nonfinite_of(x, n, stream); }

__global__ void cast_kernel(floatX* out, const float* in, int64_t n) {
    const int64_t at = (int64_t{blockIdx.x} * THREADS + threadIdx.x) * VECTOR;
    if (at + VECTOR <= n) {
        float v[VECTOR];
        load(v, in + at);
        store(out + at, v);
    } else {
        for (int64_t i = at; i < n; i++) out[i] = to_floatX(in[i]);
    }
}

void cast(floatX* out, const float* in, int64_t n, Stream stream) {
    require(n >= 1, "cast: n must be at least 1, not ", n);
    require_aligned("cast", out, in);
    launch("cast", cast_kernel, {dim3(static_cast<unsigned>(ceil_div(n, VECTOR * THREADS))), dim3(THREADS)}, stream, out, in, n);
}
