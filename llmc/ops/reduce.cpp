// Sums and checks over whole tensors on the CPU: bound by memory.
#include "llmc/ops/reduce.h"
#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"

// A SIMD lane adds up at most 4096 / lanes terms in fp32 before the lanes are added in double.
static double squares_of(const float* x, int64_t n) {
    double total = 0;
    for (int64_t begin = 0; begin < n; begin += 4096) {
        int64_t end = std::min(n, begin + 4096);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t i = begin; i < end; i++) sum += x[i] * x[i];
        total += sum;
    }
    return total;
}

void sums_of_squares(float* out, const float* x, const Span* spans, int count, Stream) {
    Range range("sums_of_squares");
    require(count >= 0, "sums_of_squares: count must not be negative, but is ", count);
#pragma omp parallel for schedule(dynamic, 4)
    for (int i = 0; i < count; i++) out[i] = static_cast<float>(squares_of(x + spans[i].begin, spans[i].count));
}

void add(float* sum, const float* x, int64_t n, Stream) {
    Range range("add");
    require(n >= 1, "add: n must be at least 1, not ", n);
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) sum[i] += x[i];
}

void mean_loss(double* total, double* last, const float* losses, int64_t N, double valid, double share, Stream) {
    Range range("mean_loss");
    require(N >= 1, "mean_loss: N must be at least 1, not ", N);
    double sum = 0;
    for (int64_t n = 0; n < N; n++) sum += losses[n];
    *last = sum / valid;
    *total += share * *last;
}

// Elements in blocks that stay in cache, whatever the count of parts: sums[level] holds the sum of 2^level parts until its neighbour is there.
void tree_sum(float* out, const float* parts, int count, int64_t n, Stream) {
    Range range("tree_sum");
    require(count >= 1, "tree_sum: count must be at least 1, not ", count);
    require(n >= 1, "tree_sum: n must be at least 1, not ", n);
    constexpr int64_t BLOCK = 256;
    constexpr int LEVELS = 31;   // of an int's count
#pragma omp parallel for
    for (int64_t begin = 0; begin < n; begin += BLOCK) {
        const int64_t size = std::min(BLOCK, n - begin);
        float sums[LEVELS][BLOCK], sum[BLOCK];
        for (int part = 0; part < count; part++) {
            std::copy_n(parts + part * n + begin, size, sum);
            int level = 0;
            for (; part >> level & 1; level++)
                for (int64_t i = 0; i < size; i++) sum[i] = sums[level][i] + sum[i];
            std::copy_n(sum, size, sums[level]);
        }
        int level = std::countr_zero(static_cast<unsigned>(count));   // the subtrees left over, from the smallest: each joins the one before it
        std::copy_n(sums[level], size, sum);
        while (++level < LEVELS)
            if (count >> level & 1)
                for (int64_t i = 0; i < size; i++) sum[i] = sums[level][i] + sum[i];
        std::copy_n(sum, size, out + begin);
    }
}

template <class Number>
static int64_t first_nonfinite_of(const Number* x, int64_t n) {
    int64_t first = std::numeric_limits<int64_t>::max();
#pragma omp parallel for reduction(min : first)
    for (int64_t i = 0; i < n; i++)
        if (!std::isfinite(to_float(x[i]))) first = std::min(first, i);
    return first < n ? first : -1;
}

int64_t first_nonfinite(const float* x, int64_t n, Stream) { return first_nonfinite_of(x, n); }
int64_t first_nonfinite(const bf16* x, int64_t n, Stream) { return first_nonfinite_of(x, n); }

void cast(floatX* out, const float* in, int64_t n, Stream) {
    Range range("cast");
    require(n >= 1, "cast: n must be at least 1, not ", n);
#pragma omp parallel for simd
    for (int64_t i = 0; i < n; i++) out[i] = to_floatX(in[i]);
}
