// Muon on the CPU: nearly all its work is a few matmuls; large matrices one after another, small ones side by side.
#include "llmc/ops/muon.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <omp.h>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/matmul.h"
#include "llmc/ops/reduce.h"

struct MuonWorkspace {
    floatX *x, *next;           // (rows, cols)
    floatX *gram, *polynomial;  // (m, m), m = min(rows, cols)
    float* sums;                // (max(rows, cols)) a sum of squares for each row, or each column
};

// Cuts `scratch` into a workspace; returns its size.
static size_t cut(int rows, int cols, void* scratch, MuonWorkspace* w) {
    const size_t n = static_cast<size_t>(rows) * cols, m = static_cast<size_t>(std::min(rows, cols));
    size_t size = 0;
    auto take = [&](size_t bytes) {
        void* piece = scratch ? static_cast<char*>(scratch) + size : nullptr;
        size += (bytes + 4095) / 4096 * 4096;
        return piece;
    };
    w->x = static_cast<floatX*>(take(n * sizeof(floatX)));
    w->next = static_cast<floatX*>(take(n * sizeof(floatX)));
    w->gram = static_cast<floatX*>(take(m * m * sizeof(floatX)));
    w->polynomial = static_cast<floatX*>(take(m * m * sizeof(floatX)));
    w->sums = static_cast<float*>(take(std::max(rows, cols) * sizeof(float)));
    return size;
}

// In matmuls of small matrices threads mostly wait for each other, so each thread takes small matrices of its own, with its own workspace.
static bool small(int rows, int cols) { return std::min(rows, cols) <= 512; }
static int workers(int count, int rows, int cols) { return small(rows, cols) ? std::min(count, omp_get_max_threads()) : 1; }

size_t muon_scratch(int count, int rows, int cols) {
    require_matrices("muon_scratch", count, rows, cols);
    MuonWorkspace w;
    return workers(count, rows, cols) * cut(rows, cols, nullptr, &w);
}

static double total(const float* x, int n) {
    double sum = 0;
    for (int i = 0; i < n; i++) sum += x[i];
    return sum;
}

// Nesterov momentum: m = mu m + k g, x = (k g + mu m) / (its norm * safety + eps), with k = 1 for a summed
// momentum and 1 - mu for an averaged one.
static void momentum(const MuonTensor& t, int rows, int cols, float mu, float k, float safety, float eps, const MuonWorkspace& w) {
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) {
        const float* g = t.grad + r * cols;
        float *m = t.momentum + r * cols, squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int c = 0; c < cols; c++) {
            m[c] = mu * m[c] + k * g[c];
            float u = k * g[c] + mu * m[c];
            squares += u * u;
        }
        w.sums[r] = squares;
    }
    const float scale = static_cast<float>(1 / (std::sqrt(total(w.sums, rows)) * safety + eps));
#pragma omp parallel for simd
    for (int64_t i = 0; i < static_cast<int64_t>(rows) * cols; i++)
        w.x[i] = to_floatX((k * t.grad[i] + mu * t.momentum[i]) * scale);
}

// x = a x + (b s + c s s) x with s = x x^T; for a tall x the same from the other side, with s = x^T x.
static void orthogonalize(MuonWorkspace& w, int rows, int cols, const MuonSteps& steps) {
    const bool tall = rows > cols;
    const int64_t m = std::min(rows, cols);
    // In fp32, a is added to the polynomial's diagonal, which saves a pass over x; bf16's 8 bits would lose the diagonal's own value.
    // The polynomial is symmetric, so it may be read as its own transpose, as sgemm does faster on AVX2.
    constexpr bool fp32 = sizeof(floatX) == 4;
    for (const MuonStep& step : steps) {
        matmul_symmetric(w.gram, w.x, nullptr, nullptr, 1, m, tall ? rows : cols, tall, 1, 0, nullptr);
        matmul_symmetric(w.polynomial, w.gram, w.gram, nullptr, 1, m, m, false, step.c, step.b, nullptr);
        if (fp32)
            for (int64_t d = 0; d < m; d++) w.polynomial[d * m + d] = to_floatX(to_float(w.polynomial[d * m + d]) + step.a);
        matmul(w.next, tall ? w.x : w.polynomial, tall ? w.polynomial : w.x, fp32 ? nullptr : w.x, 1, rows, cols, m, fp32 && !tall, fp32 && tall, 1,
               fp32 ? 0 : step.a, nullptr);
        std::swap(w.x, w.next);
    }
}

// sums = the sum of x^2 over each row
static void row_squares(float* sums, const floatX* x, int rows, int cols) {
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) {
        float squares = 0;
#pragma omp simd reduction(+ : squares)
        for (int c = 0; c < cols; c++) squares += to_float(x[r * cols + c]) * to_float(x[r * cols + c]);
        sums[r] = squares;
    }
}

// sums = the sum of x^2 over each column
static void column_squares(float* sums, const floatX* x, int rows, int cols) {
    constexpr int block = 64;
#pragma omp parallel for
    for (int begin = 0; begin < cols; begin += block) {
        const int end = std::min(cols, begin + block);
        std::fill(sums + begin, sums + end, 0.0f);
        for (int64_t r = 0; r < rows; r++)
#pragma omp simd
            for (int c = begin; c < end; c++) sums[c] += to_float(x[r * cols + c]) * to_float(x[r * cols + c]);
    }
}

// NorMuon: each row (column of a wide matrix) is divided by the root of its second moment, and the whole keeps its norm.
// Leaves the factors in w.sums.
static void second_moment(float* second, int rows, int cols, float beta2, MuonWorkspace& w) {
    const bool by_row = rows >= cols;
    const int lines = by_row ? rows : cols, length = by_row ? cols : rows;
    if (by_row) row_squares(w.sums, w.x, rows, cols);
    else column_squares(w.sums, w.x, rows, cols);
    double before = 0, after = 0;
    for (int i = 0; i < lines; i++) {
        second[i] = beta2 * second[i] + (1 - beta2) * (w.sums[i] / length);
        float factor = 1 / std::sqrt(std::max(second[i], 1e-10f));
        before += w.sums[i];
        after += static_cast<double>(w.sums[i]) * factor * factor;
        w.sums[i] = factor;
    }
    const float keep = static_cast<float>(std::sqrt(before) / std::max(std::sqrt(after), 1e-10));
    for (int i = 0; i < lines; i++) w.sums[i] *= keep;
}

// Which lines of x have a factor in w.sums.
enum class Factors { none, rows, columns };

// p -= lr u + weight decay; u is x times the factor of its line, in w.sums.
template <Factors FACTORS, MuonDecay DECAY>
static void move(const MuonTensor& t, int rows, int cols, float lr, float decay, const MuonWorkspace& w) {
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) {
        float* p = t.master + r * cols;
        const floatX* x = w.x + r * cols;
#pragma omp simd
        for (int c = 0; c < cols; c++) {
            float u = to_float(x[c]);
            if constexpr (FACTORS != Factors::none) u *= w.sums[FACTORS == Factors::rows ? r : c];
            if constexpr (DECAY == MuonDecay::none) p[c] -= lr * u;
            else if constexpr (DECAY == MuonDecay::all) p[c] -= lr * u + decay * p[c];
            else p[c] -= lr * u + (u * p[c] >= 0 ? decay * p[c] : 0);
        }
    }
}

template <Factors FACTORS>
static auto mover(MuonDecay decay) {
    return decay == MuonDecay::none ? move<FACTORS, MuonDecay::none> : decay == MuonDecay::all ? move<FACTORS, MuonDecay::all> : move<FACTORS, MuonDecay::cautious>;
}

static void update(const MuonTensor& t, int rows, int cols, const MuonHyper& hyper, const MuonRule& rule, MuonWorkspace& w) {
    momentum(t, rows, cols, hyper.momentum, rule.averaged_momentum ? 1 - hyper.momentum : 1, rule.safety, rule.eps, w);
    orthogonalize(w, rows, cols, rule.steps);
    if (rule.beta2 > 0) second_moment(t.second, rows, cols, rule.beta2, w);
    const float lr = hyper.lr * muon_scale(rule.scale, rows, cols);
    auto move = rule.beta2 == 0 ? mover<Factors::none>(rule.decay) : rows >= cols ? mover<Factors::rows>(rule.decay) : mover<Factors::columns>(rule.decay);
    move(t, rows, cols, lr, lr * hyper.weight_decay, w);
}

void muon_update(const MuonTensor* tensors, void* scratch, const MuonHyper* hyper, int count, int rows, int cols, const MuonRule& rule, Stream stream) {
    Range range("muon_update");
    require_matrices("muon_update", count, rows, cols);
    require_second_moments("muon_update", tensors, count, rule);
    const int threads = workers(count, rows, cols);
    auto update_one = [&](const MuonTensor& t, int worker) {
        MuonWorkspace w;
        const size_t size = cut(rows, cols, nullptr, &w);
        cut(rows, cols, static_cast<char*>(scratch) + worker * size, &w);
        update(t, rows, cols, *hyper, rule, w);
        if (t.weight) cast(t.weight, t.master, static_cast<int64_t>(rows) * cols, stream);
    };
    const int allowed = omp_get_max_threads();
    if (threads == 1 && small(rows, cols)) omp_set_num_threads(1);   // the same sums alone as among others
    ParallelErrors errors;
#pragma omp parallel for schedule(dynamic) num_threads(threads) if (threads > 1)
    for (int i = 0; i < count; i++) errors.run([&] { update_one(tensors[i], threads > 1 ? omp_get_thread_num() : 0); });
    omp_set_num_threads(allowed);
    errors.rethrow();
}
