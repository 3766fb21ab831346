// Token embeddings on the CPU: bound by memory.
#include "llmc/ops/embedding.h"
#include <algorithm>
#include <cstring>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/checks.h"

// Counting sort: how often each token occurs, where its segment begins, then every position to the next place of its segment.
void token_order(int* order, int* scratch, const int* idx, int64_t N, int V, Stream) {
    Range range("token_order");
    require(N >= 1, "token_order: N must be at least 1, not ", N);
    require(V >= 1, "token_order: V must be at least 1, not ", V);
    int* begin = scratch;
    std::fill(begin, begin + V + 1, 0);
    for (int64_t i = 0; i < N; i++) begin[idx[i] + 1]++;
    for (int v = 0; v < V; v++) begin[v + 1] += begin[v];
    for (int64_t i = 0; i < N; i++) order[begin[idx[i]]++] = static_cast<int>(i);
}

void embedding_forward(floatX* out, const int* idx, const floatX* wte, int64_t N, int C, Stream) {
    Range range("embedding_forward");
    require_rows("embedding_forward", N, C);
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) std::memcpy(out + n * C, wte + static_cast<int64_t>(idx[n]) * C, C * sizeof(floatX));
}

void embedding_backward(float* dwte, const floatX* dout, const int* idx, const int* order, int64_t N, int C, Stream) {
    Range range("embedding_backward");
    require_rows("embedding_backward", N, C);
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t i = 0; i < N; i++) {
        int token = idx[order[i]];
        if (i > 0 && idx[order[i - 1]] == token) continue;           // the first position of a segment sums it
        float* row = dwte + static_cast<int64_t>(token) * C;
        for (int64_t j = i; j < N && idx[order[j]] == token; j++) {
            const floatX* add = dout + static_cast<int64_t>(order[j]) * C;
#pragma omp simd
            for (int c = 0; c < C; c++) row[c] += to_float(add[c]);
        }
    }
}
