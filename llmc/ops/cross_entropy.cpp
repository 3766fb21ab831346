// Softmax cross entropy on the CPU: a row of logits at a time, kept as fp32 in L2 between its three passes.
#include "llmc/ops/cross_entropy.h"
#include <algorithm>
#include <cmath>
#include <vector>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/vector_math.h"

// z = the capped logits; returns their max
static float cap_row(float* z, const floatX* logits, int V, float softcap) {
    float row_max = -INFINITY;
    if (softcap > 0) {
        const float inverse = 1 / softcap;
#pragma omp simd reduction(max : row_max)
        for (int v = 0; v < V; v++) {
            z[v] = softcap * tanhf(to_float(logits[v]) * inverse);
            row_max = z[v] > row_max ? z[v] : row_max;
        }
    } else {
#pragma omp simd reduction(max : row_max)
        for (int v = 0; v < V; v++) {
            z[v] = to_float(logits[v]);
            row_max = z[v] > row_max ? z[v] : row_max;
        }
    }
    return row_max;
}

static float sum_of_exponentials(const float* z, float row_max, int V) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int v = 0; v < V; v++) sum += expf(z[v] - row_max);
    return sum;
}

// The gradient of every logit as if none were the target's.
static void gradient_row(floatX* dlogits, const float* z, float log_sum, int V, float dloss, float softcap) {
    if (softcap > 0) {
        const float inverse = 1 / softcap;
#pragma omp simd
        for (int v = 0; v < V; v++) {
            float tanh = z[v] * inverse;
            dlogits[v] = to_floatX(dloss * expf(z[v] - log_sum) * (1 - tanh * tanh));
        }
    } else {
#pragma omp simd
        for (int v = 0; v < V; v++) dlogits[v] = to_floatX(dloss * expf(z[v] - log_sum));
    }
}

void cross_entropy(float* losses, floatX* logits, const int* targets, int64_t N, int V, float dloss, float softcap, Stream) {
    Range range("cross_entropy");
    require(N >= 1, "cross_entropy: N must be at least 1, not ", N);
    require(V >= 8 && V % 8 == 0, "cross_entropy: V must be a positive multiple of 8, not ", V);
    require(softcap >= 0, "cross_entropy: softcap must not be negative: ", softcap);
    ParallelErrors errors;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) errors.run([&] {
        thread_local std::vector<float> row;
        if (row.size() < static_cast<size_t>(V)) row.resize(V);
        float* z = row.data();
        floatX* logit_row = logits + n * V;
        const int target = targets[n];

        float row_max = cap_row(z, logit_row, V, softcap);
        float log_sum = row_max + std::log(sum_of_exponentials(z, row_max, V));
        losses[n] = target < 0 ? 0 : log_sum - z[target];
        if (dloss == 0) {
            for (int v = 0; v < V; v++) logit_row[v] = to_floatX(z[v]);
        } else if (target < 0) {
            std::fill(logit_row, logit_row + V, to_floatX(0));
        } else {
            gradient_row(logit_row, z, log_sum, V, dloss, softcap);
            float tanh = softcap > 0 ? z[target] / softcap : 0;
            logit_row[target] = to_floatX(dloss * (std::exp(z[target] - log_sum) - 1) * (1 - tanh * tanh));
        }
    });
    errors.rethrow();
}

int64_t logits_rows(int64_t N, int64_t V) {
    constexpr int64_t most = (int64_t{128} << 20) / sizeof(floatX);   // elements
    const int64_t pieces = std::max<int64_t>(2, (N * V + most - 1) / most);
    return (N + pieces - 1) / pieces;
}
