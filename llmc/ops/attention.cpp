// Attention on the CPU: tiles of queries against tiles of keys, each matmul by oneDNN on one thread, an online softmax between
// them. A task is a tile of queries of one head (forward) or all of one key/value head (backward), so every sum
// is made by one thread in a fixed order.
#include "llmc/ops/attention.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <omp.h>
#include <type_traits>
#include <vector>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/matmul_tile.h"
#include "llmc/ops/vector_math.h"

// A tile of scores, (64, 512) in fp32, stays in L2.
static constexpr int QUERIES = 64, KEYS = 512;

// What one thread works on.
struct AttentionWorkspace {
    float *scores, *dscores;        // (QUERIES, KEYS)
    floatX *p, *ds;                 // (QUERIES, KEYS) the softmax and the gradient of the scores, as matmuls read them
    float* out;                     // (QUERIES, D)    y, or dq in the backward pass
    float *dk, *dv;                 // (T, D)
};

// Cuts memory into a workspace; returns its size.
static size_t cut(AttentionWorkspace& w, char* memory, int T, int D) {
    size_t size = 0;
    auto take = [&](auto*& pointer, size_t count) {
        pointer = reinterpret_cast<std::remove_reference_t<decltype(pointer)>>(memory + size);
        size += (count * sizeof *pointer + 4095) / 4096 * 4096;
    };
    take(w.scores, QUERIES * KEYS);
    take(w.dscores, QUERIES * KEYS);
    take(w.p, QUERIES * KEYS);
    take(w.ds, QUERIES * KEYS);
    take(w.out, static_cast<size_t>(QUERIES) * D);
    take(w.dk, static_cast<size_t>(T) * D);
    take(w.dv, static_cast<size_t>(T) * D);
    return size;
}

static size_t workspace_bytes(int T, int D) {
    AttentionWorkspace w;
    return cut(w, nullptr, T, D);
}

// The calling thread's own part of the scratch.
static AttentionWorkspace workspace(void* scratch, int T, int D) {
    AttentionWorkspace w;
    cut(w, static_cast<char*>(scratch) + omp_get_thread_num() * workspace_bytes(T, D), T, D);
    return w;
}

bool attention_use_hopper(bool) { return false; }   // GPUs alone have such kernels

size_t attention_scratch(int B, int T, int H, int HK, int D) {
    require_attention("attention_scratch", B, T, H, HK, D, 0);
    return omp_get_max_threads() * workspace_bytes(T, D);
}

// Columns of a tile, in whole vectors.
struct Columns { int begin, end; };

// Query t sees some of the n keys from k0 on. Returns the columns that hold them, after setting the scores of others there to
// -inf, whose exponential is 0.
static Columns mask(float* score, int t, int window, int k0, int n) {
    constexpr int lanes = 16;
    const int begin = std::clamp(t - std::min(t, window) - k0, 0, n), end = std::clamp(t + 1 - k0, begin, n);
    const Columns seen{begin / lanes * lanes, std::min(n, (end + lanes - 1) / lanes * lanes)};
    std::fill(score + seen.begin, score + begin, -INFINITY);
    std::fill(score + end, score + seen.end, -INFINITY);
    return seen;
}

static float row_max(const float* x, Columns s) {
    float m = -INFINITY;
#pragma omp simd reduction(max : m)
    for (int j = s.begin; j < s.end; j++) m = x[j] > m ? x[j] : m;
    return m;
}

// p = exp(scale * x - shift) in the columns seen, 0 in the others of n; returns the sum
static float exponentials(floatX* p, const float* x, float scale, float shift, Columns s, int n) {
    float sum = 0;
    std::fill(p, p + s.begin, to_floatX(0));
#pragma omp simd reduction(+ : sum)
    for (int j = s.begin; j < s.end; j++) {
        float e = expf(scale * x[j] - shift);
        sum += e;
        p[j] = to_floatX(e);
    }
    std::fill(p + s.end, p + n, to_floatX(0));
    return sum;
}

// p = exp(scale * x - lse), ds = p * (dp - delta) * scale in the columns seen, 0 in the others of n
static void softmax_gradient(floatX* p, floatX* ds, const float* x, const float* dp, float scale, float lse, float delta, Columns s, int n) {
    std::fill(p, p + s.begin, to_floatX(0));
    std::fill(ds, ds + s.begin, to_floatX(0));
#pragma omp simd
    for (int j = s.begin; j < s.end; j++) {
        float e = expf(scale * x[j] - lse);
        p[j] = to_floatX(e);
        ds[j] = to_floatX(e * (dp[j] - delta) * scale);
    }
    std::fill(p + s.end, p + n, to_floatX(0));
    std::fill(ds + s.end, ds + n, to_floatX(0));
}

static float dot(const floatX* a, const floatX* b, int D) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int d = 0; d < D; d++) sum += to_float(a[d]) * to_float(b[d]);
    return sum;
}

void attention_forward(floatX* y, float* lse, void* scratch, const floatX* qkv, int B, int T, int H, int HK, int D, int window,
                       Stream) {
    Range range("attention_forward");
    require_attention("attention_forward", B, T, H, HK, D, window);
    const int64_t width = static_cast<int64_t>(H + 2 * HK) * D, C = static_cast<int64_t>(H) * D;
    const int tiles = (T + QUERIES - 1) / QUERIES;
    const float scale = 1 / std::sqrt(static_cast<float>(D));

    ParallelErrors errors;
#pragma omp parallel for collapse(3) schedule(dynamic)
    for (int b = 0; b < B; b++)
    for (int h = 0; h < H; h++)
    for (int tile = 0; tile < tiles; tile++) errors.run([&] {
        const AttentionWorkspace w = workspace(scratch, T, D);
        const int q0 = tile * QUERIES, rows = std::min(QUERIES, T - q0), g = h / (H / HK);
        const floatX* q = qkv + (static_cast<int64_t>(b) * T + q0) * width + h * D;
        const floatX* k = qkv + static_cast<int64_t>(b) * T * width + (H + g) * D;
        const floatX* v = k + HK * D;
        float m[QUERIES], sum[QUERIES];
        std::fill(m, m + rows, -INFINITY);
        std::fill(sum, sum + rows, 0.0f);

        const int first = q0 - std::min(q0, window), last = q0 + rows;
        for (int k0 = first; k0 < last; k0 += KEYS) {
            const int n = std::min(KEYS, last - k0);
            multiply(w.scores, q, k + k0 * width, {.M = rows, .N = n, .K = D, .lda = width, .ldb = width, .ldout = n, .transpose_b = true});
            for (int r = 0; r < rows; r++) {
                float* score = w.scores + r * n;
                const Columns columns = mask(score, q0 + r, window, k0, n);
                const float before = m[r];
                m[r] = std::max(before, row_max(score, columns) * scale);
                if (m[r] > before && k0 > first) {              // a new max: the sums so far are rescaled
                    float rescale = std::exp(before - m[r]);
                    sum[r] *= rescale;
                    for (int d = 0; d < D; d++) w.out[r * D + d] *= rescale;
                }
                sum[r] += exponentials(w.p + r * n, score, scale, m[r], columns, n);
            }
            multiply(w.out, w.p, v + k0 * width,
                     {.M = rows, .N = D, .K = n, .lda = n, .ldb = width, .ldout = D, .beta = k0 == first ? 0.0f : 1.0f});
        }

        for (int r = 0; r < rows; r++) {
            floatX* row = y + (static_cast<int64_t>(b) * T + q0 + r) * C + h * D;
            const float inverse = 1 / sum[r];
            for (int d = 0; d < D; d++) row[d] = to_floatX(w.out[r * D + d] * inverse);
            lse[(static_cast<int64_t>(b) * H + h) * T + q0 + r] = m[r] + std::log(sum[r]);
        }
    });
    errors.rethrow();
}

void attention_backward(floatX* dqkv, void* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv, int B,
                        int T, int H, int HK, int D, int window, Stream) {
    Range range("attention_backward");
    require_attention("attention_backward", B, T, H, HK, D, window);
    const int64_t width = static_cast<int64_t>(H + 2 * HK) * D, C = static_cast<int64_t>(H) * D;
    const int group = H / HK;
    const float scale = 1 / std::sqrt(static_cast<float>(D));

    ParallelErrors errors;
#pragma omp parallel for collapse(2) schedule(dynamic)
    for (int b = 0; b < B; b++)
    for (int g = 0; g < HK; g++) errors.run([&] {
        const AttentionWorkspace w = workspace(scratch, T, D);
        const int64_t at = static_cast<int64_t>(b) * T * width + (H + g) * D;
        const floatX *k = qkv + at, *v = k + HK * D;
        std::fill(w.dk, w.dk + static_cast<int64_t>(T) * D, 0.0f);
        std::fill(w.dv, w.dv + static_cast<int64_t>(T) * D, 0.0f);

        for (int h = g * group; h < (g + 1) * group; h++)
        for (int q0 = 0; q0 < T; q0 += QUERIES) {
            const int rows = std::min(QUERIES, T - q0);
            const int64_t token = static_cast<int64_t>(b) * T + q0;
            const floatX* q = qkv + token * width + h * D;
            const floatX *dout = dy + token * C + h * D, *out = y + token * C + h * D;
            const float* row_lse = lse + (static_cast<int64_t>(b) * H + h) * T + q0;

            float delta[QUERIES];                               // sum_s p dp, which is dy . y
            for (int r = 0; r < rows; r++) delta[r] = dot(dout + r * C, out + r * C, D);

            const int first = q0 - std::min(q0, window), last = q0 + rows;
            for (int k0 = first; k0 < last; k0 += KEYS) {
                const int n = std::min(KEYS, last - k0);
                const Matmul against_keys{.M = rows, .N = n, .K = D, .lda = width, .ldb = width, .ldout = n, .transpose_b = true};
                Matmul against_values = against_keys;
                against_values.lda = C;
                multiply(w.scores, q, k + k0 * width, against_keys);
                multiply(w.dscores, dout, v + k0 * width, against_values);
                for (int r = 0; r < rows; r++) {
                    const Columns columns = mask(w.scores + r * n, q0 + r, window, k0, n);
                    softmax_gradient(w.p + r * n, w.ds + r * n, w.scores + r * n, w.dscores + r * n, scale, row_lse[r], delta[r], columns, n);
                }
                multiply(w.dv + k0 * D, w.p, dout, {.M = n, .N = D, .K = rows, .lda = n, .ldb = C, .ldout = D, .transpose_a = true, .beta = 1});
                multiply(w.dk + k0 * D, w.ds, q, {.M = n, .N = D, .K = rows, .lda = n, .ldb = width, .ldout = D, .transpose_a = true, .beta = 1});
                multiply(w.out, w.ds, k + k0 * width,
                         {.M = rows, .N = D, .K = n, .lda = n, .ldb = width, .ldout = D, .beta = k0 == first ? 0.0f : 1.0f});
            }
            floatX* dq = dqkv + token * width + h * D;
            for (int r = 0; r < rows; r++)
                for (int d = 0; d < D; d++) dq[r * width + d] = to_floatX(w.out[r * D + d]);
        }

        for (int64_t t = 0; t < T; t++)
            for (int d = 0; d < D; d++) {
                dqkv[at + t * width + d] = to_floatX(w.dk[t * D + d]);
                dqkv[at + HK * D + t * width + d] = to_floatX(w.dv[t * D + d]);
            }
    });
    errors.rethrow();
}

void attention_cached(floatX* y, floatX* kcache, floatX* vcache, const floatX* qkv, int T, int capacity, int H, int HK, int D,
                      int past, int window, Stream) {
    Range range("attention_cached");
    require_attention("attention_cached", 1, T, H, HK, D, window);
    require(past >= 0, "attention_cached: past must not be negative: ", past);
    require(T <= capacity - past, "attention_cached: past + T (", past, " + ", T, ") must not exceed the capacity, ", capacity);
    const int64_t width = static_cast<int64_t>(H + 2 * HK) * D, CK = static_cast<int64_t>(HK) * D;
    const float scale = 1 / std::sqrt(static_cast<float>(D));
    for (int t = 0; t < T; t++) {
        std::memcpy(kcache + (past + t) * CK, qkv + t * width + static_cast<int64_t>(H) * D, CK * sizeof(floatX));
        std::memcpy(vcache + (past + t) * CK, qkv + t * width + static_cast<int64_t>(H + HK) * D, CK * sizeof(floatX));
    }

    ParallelErrors errors;
#pragma omp parallel for collapse(2)
    for (int t = 0; t < T; t++)
    for (int h = 0; h < H; h++) errors.run([&] {
        const int last = past + t, first = last - std::min(last, window), g = h / (H / HK);
        thread_local std::vector<float> memory;
        memory.resize(last - first + 1 + D);
        float *p = memory.data(), *out = p + (last - first + 1);
        const floatX* q = qkv + t * width + h * D;
        float m = -INFINITY, sum = 0;
        for (int s = first; s <= last; s++) {
            float score = dot(q, kcache + s * CK + g * D, D) * scale;
            p[s - first] = score;
            m = std::max(m, score);
        }
        std::fill(out, out + D, 0.0f);
        for (int s = first; s <= last; s++) {
            const floatX* v = vcache + s * CK + g * D;
            const float e = std::exp(p[s - first] - m);
            sum += e;
#pragma omp simd
            for (int d = 0; d < D; d++) out[d] += e * to_float(v[d]);
        }
        floatX* row = y + (static_cast<int64_t>(t) * H + h) * D;
        for (int d = 0; d < D; d++) row[d] = to_floatX(out[d] / sum);
    });
    errors.rethrow();
}
