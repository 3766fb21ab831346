// Matmuls on the CPU: oneDNN.
#include "llmc/ops/matmul.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <dnnl.hpp>
#include <map>
#include <mutex>
#include <omp.h>
#include <string>
#include <unordered_map>
#include <vector>
#include "llmc/device/device.h"
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/matmul_tile.h"

using dnnl::memory;

#ifdef ISA_AVX2
// make ISA=avx2: oneDNN too leaves newer instructions alone. It takes a limit until its first call only, which other files' static objects may make.
__attribute__((constructor(101))) static void hold_onednn_to_avx2() {
    if (dnnl_set_max_cpu_isa(dnnl_cpu_isa_avx2) == dnnl_success) return;
    std::fputs("matmul: this oneDNN cannot be held to AVX2; build without ISA=avx2\n", stderr);
    std::_Exit(2);
}
#endif

// How a matmul is done: by a compiled primitive and its four memory objects, which get their addresses at each call, or,
// where `matmul` is empty, by dnnl_sgemm.
struct Method {
    std::string name;
    dnnl::matmul matmul;
    memory a, b, out, scratch;
    size_t scratch_bytes = 0;
};

struct Key {
    Matmul matmul;
    memory::data_type out_type;
    int threads;

    bool operator==(const Key&) const = default;
};

struct KeyHash {
    size_t operator()(const Key& key) const {
        const Matmul& p = key.matmul;
        uint64_t hash = key.threads;
        for (int64_t field : {p.batch, p.M, p.N, p.K, p.lda, p.ldb, p.ldout, static_cast<int64_t>(p.transpose_a),
                              static_cast<int64_t>(p.transpose_b), static_cast<int64_t>(key.out_type)})
            hash = (hash ^ static_cast<uint64_t>(field)) * 0x9e3779b97f4a7c15u, hash ^= hash >> 29;
        return hash;
    }
};

static const dnnl::engine& cpu() {
    static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
    return engine;
}

// A row-major matrix, or its transpose seen through the strides, `batch` times.
static memory::desc matrix(int64_t batch, int64_t rows, int64_t cols, int64_t ld, bool transposed, memory::data_type type) {
    memory::dims dims{rows, cols}, strides{ld, 1};
    if (transposed) std::swap(strides[0], strides[1]);
    if (batch > 1) {
        dims.insert(dims.begin(), batch);
        strides.insert(strides.begin(), (transposed ? cols : rows) * ld);
    }
    return memory::desc(dims, type, strides);
}

static constexpr bool FP32 = sizeof(floatX) == 4;

static std::string text_of(const Matmul& p) {
    return concat(p.batch > 1 ? concat(p.batch, " x ") : "", p.M, " x ", p.N, " x ", p.K, p.transpose_a ? " a^T" : "", p.transpose_b ? " b^T" : "");
}

static std::runtime_error no_matmul(const Matmul& p, const std::string& why) {
    std::string hint = FP32 ? "" : "; build with PRECISION=fp32";
    return std::runtime_error(concat("matmul: oneDNN has no fast matmul ", text_of(p), " (M x N x K) in ", PRECISION_NAME, " on this processor (",
                                     device_name(), "): ", why, hint));
}

static dnnl::matmul::primitive_desc describe(const Matmul& p, const memory::desc& a, const memory::desc& b, const memory::desc& out,
                                             const dnnl::primitive_attr& attr) {
    try {
#if DNNL_VERSION_MAJOR >= 3
        return dnnl::matmul::primitive_desc(cpu(), a, b, out, attr);
#else
        return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, out), attr, cpu());
#endif
    } catch (const dnnl::error& error) {
        throw no_matmul(p, error.what());
    }
}

// Implementations in use, by matmul; many threads add to it.
static std::mutex used_mutex;
static std::map<std::string, std::string> used;

static Method compile(const Key& key) {
    const Matmul& p = key.matmul;
    memory::data_type in_type = FP32 ? memory::data_type::f32 : memory::data_type::bf16;
    memory::desc a = matrix(p.batch, p.M, p.K, p.lda, p.transpose_a, in_type);
    memory::desc b = matrix(p.batch, p.K, p.N, p.ldb, p.transpose_b, in_type);
    memory::desc out = matrix(p.batch, p.M, p.N, p.ldout, false, key.out_type);

    dnnl::post_ops after;
#if DNNL_VERSION_MAJOR >= 3
    if (p.alpha != 1) after.append_eltwise(dnnl::algorithm::eltwise_linear, p.alpha, 0.0f);
#else
    if (p.alpha != 1) after.append_eltwise(1.0f, dnnl::algorithm::eltwise_linear, p.alpha, 0.0f);
#endif
    if (p.beta != 0) after.append_sum(p.beta);
    dnnl::primitive_attr attr;
    attr.set_scratchpad_mode(dnnl::scratchpad_mode::user);
    attr.set_post_ops(after);

    // A primitive is made for the number of threads that OpenMP allows at this moment, also inside a parallel region.
    const int allowed = omp_get_max_threads();
    omp_set_num_threads(key.threads);
    Method method;
    try {
        dnnl::matmul::primitive_desc desc = describe(p, a, b, out, attr);
        const std::string name = desc.impl_info_str();
        const bool reference = name.find("ref") != name.npos;
        if (reference && !FP32) throw no_matmul(p, concat("only its reference loop, ", name));
        // "gemm:..." is sgemm behind a primitive, and knows nothing of the strides that multiply_fp32() avoids.
        if (FP32 && (reference || name.starts_with("gemm")))
            method.name = "dnnl_sgemm";
        else
            method = {name, dnnl::matmul(desc), memory(a, cpu(), nullptr), memory(b, cpu(), nullptr), memory(out, cpu(), nullptr),
                      memory(desc.scratchpad_desc(), cpu(), nullptr), desc.scratchpad_desc().get_size()};
    } catch (...) {
        omp_set_num_threads(allowed);
        throw;
    }
    omp_set_num_threads(allowed);
    std::lock_guard lock(used_mutex);
    used[concat(text_of(p), p.alpha != 1 ? " alpha" : "", p.beta != 0 ? " beta" : "", key.out_type == memory::data_type::f32 ? " to fp32" : " to bf16")] = method.name;
    return method;
}

static Method& method_for(const Matmul& p, memory::data_type out_type) {
    thread_local std::unordered_map<Key, Method, KeyHash> methods;
    const Key key{p, out_type, omp_in_parallel() ? 1 : omp_get_max_threads()};
    auto found = methods.find(key);
    if (found == methods.end()) found = methods.emplace(key, compile(key)).first;
    return found->second;
}

// The thread's scratchpad, as large as the thread's matmuls have needed so far.
static void* scratchpad(size_t bytes) {
    thread_local std::vector<unsigned char> pad;
    if (pad.size() < bytes) pad.resize(bytes);
    return pad.data();
}

#ifdef PRECISION_FP32

static void sgemm(float* out, const float* a, const float* b, const Matmul& p, int64_t K, int64_t lda, int64_t ldb, float beta) {
    const dnnl_status_t status = dnnl_sgemm(p.transpose_a ? 'T' : 'N', p.transpose_b ? 'T' : 'N', p.M, p.N, K, p.alpha, a, lda, b, ldb, beta, out, p.ldout);
    dnnl::error::wrap_c_api(status, "matmul: oneDNN could not run a matmul");
}

// sgemm on AVX2 reads an operand whose rows follow the sum (a stored (K, M), b stored (K, N)) a few columns at a time, down all
// rows. Where rows lie a multiple of 1 KiB apart, these columns share few sets of the L1 cache, are evicted before their
// neighbours are used, and sgemm runs at half its speed. Large ones do not suffer (sgemm packs their operands); where the copy is
// used by few rows of the other operand, it costs more than it saves.
static bool rows_share_sets(const Matmul& p, int64_t ld, int64_t uses) {
    return ld % 256 == 0 && std::min(p.M, p.N) <= 512 && p.K >= 256 && uses >= 128;
}

// Rows of such operands are copied, some hundreds at a time, to where they lie a cache line further apart.
static constexpr int64_t MOST_ROWS = 512, LEAST_ROWS = 128, COPIED = int64_t{1} << 20, CACHE_LINE = 16;   // in elements

static void spread_rows(float* to, const float* from, int64_t rows, int64_t cols, int64_t ld) {
#pragma omp parallel for
    for (int64_t r = 0; r < rows; r++) std::memcpy(to + r * (cols + CACHE_LINE), from + r * ld, static_cast<size_t>(cols) * sizeof(float));
}

static void multiply_fp32(float* out, const float* a, const float* b, const Matmul& p) {
    const bool copy_a = p.transpose_a && rows_share_sets(p, p.lda, p.N), copy_b = !p.transpose_b && rows_share_sets(p, p.ldb, p.M);
    if (!copy_a && !copy_b) return sgemm(out, a, b, p, p.K, p.lda, p.ldb, p.beta);
    const int64_t width_a = copy_a ? p.M + CACHE_LINE : 0, width_b = copy_b ? p.N + CACHE_LINE : 0;
    const int64_t rows = std::min({p.K, COPIED / (width_a + width_b), MOST_ROWS}), size_a = rows * width_a, size_b = rows * width_b;
    if (rows < LEAST_ROWS) return sgemm(out, a, b, p, p.K, p.lda, p.ldb, p.beta);   // too wide for the memory that copies may take
    float* a_copy = static_cast<float*>(scratchpad(static_cast<size_t>(size_a + size_b) * sizeof(float)));
    float* b_copy = a_copy + size_a;
    for (int64_t k = 0; k < p.K; k += rows) {
        const int64_t n = std::min(rows, p.K - k);
        const float *a_part = p.transpose_a ? a + k * p.lda : a + k, *b_part = p.transpose_b ? b + k : b + k * p.ldb;
        if (copy_a) spread_rows(a_copy, a_part, n, p.M, p.lda);
        if (copy_b) spread_rows(b_copy, b_part, n, p.N, p.ldb);
        sgemm(out, copy_a ? a_copy : a_part, copy_b ? b_copy : b_part, p, n, copy_a ? p.M + CACHE_LINE : p.lda, copy_b ? p.N + CACHE_LINE : p.ldb,
              k == 0 ? p.beta : 1);
    }
}

#endif

static void run(void* out, memory::data_type out_type, const floatX* a, const floatX* b, const Matmul& p) {
    Method& method = method_for(p, out_type);
#ifdef PRECISION_FP32
    if (!method.matmul) {
        const int64_t size_a = p.lda * (p.transpose_a ? p.K : p.M), size_b = p.ldb * (p.transpose_b ? p.N : p.K), size_out = p.ldout * p.M;
        for (int64_t i = 0; i < p.batch; i++) multiply_fp32(static_cast<float*>(out) + i * size_out, a + i * size_a, b + i * size_b, p);
        return;
    }
#endif
    thread_local dnnl::stream stream(cpu());
    method.a.set_data_handle(const_cast<floatX*>(a));
    method.b.set_data_handle(const_cast<floatX*>(b));
    method.out.set_data_handle(out);
    method.scratch.set_data_handle(scratchpad(method.scratch_bytes));
    dnnl_exec_arg_t arguments[] = {{DNNL_ARG_SRC, method.a.get()},
                                   {DNNL_ARG_WEIGHTS, method.b.get()},
                                   {DNNL_ARG_DST, method.out.get()},
                                   {DNNL_ARG_SCRATCHPAD, method.scratch.get()}};
    dnnl::error::wrap_c_api(dnnl_primitive_execute(method.matmul.get(), stream.get(), 4, arguments), "matmul: oneDNN could not run a matmul");
}

std::string implementation_of(const Matmul& p, bool fp32_out) {
    return method_for(p, fp32_out || FP32 ? memory::data_type::f32 : memory::data_type::bf16).name;
}

std::vector<std::string> implementations_used() {
    std::lock_guard lock(used_mutex);
    std::vector<std::string> lines;
    for (const auto& [matmul, name] : used) lines.push_back(concat(matmul, ": ", name));
    return lines;
}

void multiply(float* out, const floatX* a, const floatX* b, const Matmul& p) {
    run(out, memory::data_type::f32, a, b, p);
}

#ifndef PRECISION_FP32
void multiply(floatX* out, const floatX* a, const floatX* b, const Matmul& p) {
    run(out, memory::data_type::bf16, a, b, p);
}
#endif

void matmul_forward(floatX* out, const floatX* x, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream) {
    Range range("matmul_forward");
    require_matmul("matmul_forward", N, IC, OC);
    multiply(out, x, w, {.M = N, .N = OC, .K = IC, .lda = IC, .ldb = IC, .ldout = OC, .transpose_b = true});
}

void matmul_backward_input(floatX* dx, const floatX* dout, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream) {
    Range range("matmul_backward_input");
    require_matmul("matmul_backward_input", N, IC, OC);
    multiply(dx, dout, w, {.M = N, .N = IC, .K = OC, .lda = OC, .ldb = IC, .ldout = IC});
}

void matmul_backward_weight(float* dw, const floatX* dout, const floatX* x, int64_t N, int64_t IC, int64_t OC, Stream) {
    Range range("matmul_backward_weight");
    require_matmul("matmul_backward_weight", N, IC, OC);
    multiply(dw, dout, x, {.M = OC, .N = IC, .K = N, .lda = OC, .ldb = IC, .ldout = IC, .transpose_a = true, .beta = 1});
}

void matmul(floatX* out, const floatX* a, const floatX* b, const floatX* c, int64_t batch, int64_t M, int64_t N, int64_t K, bool transpose_a,
            bool transpose_b, float alpha, float beta, Stream stream) {
    Range range("matmul");
    require_batched_matmul("matmul", batch, M, N, K, out, c, beta);
    if (beta != 0) copy_on_device(out, c, static_cast<size_t>(batch * M * N) * sizeof(floatX), stream);   // oneDNN adds to what is there
    multiply(out, a, b, {.batch = batch, .M = M, .N = N, .K = K, .lda = transpose_a ? M : K, .ldb = transpose_b ? K : N, .ldout = N,
                         .transpose_a = transpose_a, .transpose_b = transpose_b, .alpha = alpha, .beta = beta});
}

// The part of a symmetric matrix (M, M) on and below the diagonal is made in tiles, each by one thread: as high as this, and as
// wide as leaves every thread some of them.
static int64_t tile_rows(int64_t M) { return M >= 512 ? 128 : 64; }
static int64_t tile_columns(int64_t M, int64_t height) {
    const int64_t n = (M + height - 1) / height, squares = n * (n + 1) / 2;
    const int threads = omp_in_parallel() ? 1 : omp_get_max_threads();
    return height * (threads == 1 ? n : std::max<int64_t>(1, squares / (4 * threads)));
}

// Scales what a tile has on and below the diagonal, and mirrors it.
static void mirror(floatX* out, int64_t M, int64_t row, int64_t rows, int64_t column, int64_t columns, float scale) {
    constexpr int64_t block = 16;
    for (int64_t r0 = row; r0 < row + rows; r0 += block)
        for (int64_t c0 = column; c0 < column + columns; c0 += block)
            for (int64_t r = r0; r < std::min(r0 + block, row + rows); r++)
                for (int64_t c = c0; c < std::min({c0 + block, column + columns, r + 1}); c++)
                    out[c * M + r] = out[r * M + c] = scale == 1 ? out[r * M + c] : to_floatX(scale * to_float(out[r * M + c]));
}

void matmul_symmetric(floatX* out, const floatX* x, const floatX* c, const float* scale, int64_t batch, int64_t M, int64_t K, bool transposed,
                      float alpha, float beta, Stream) {
    Range range("matmul_symmetric");
    require_batched_matmul("matmul_symmetric", batch, M, M, K, out, c, beta);
    const int64_t height = tile_rows(M), width = tile_columns(M, height), strips = (M + height - 1) / height, pieces = (M + width - 1) / width;
    ParallelErrors errors;
#pragma omp parallel for collapse(3) schedule(dynamic)
    for (int64_t i = 0; i < batch; i++)
    for (int64_t strip = strips - 1; strip >= 0; strip--)
    for (int64_t piece = 0; piece < pieces; piece++) errors.run([&] {
        const int64_t row = strip * height, rows = std::min(height, M - row), column = piece * width, columns = std::min(width, row + rows - column);
        if (columns <= 0) return;   // above the diagonal
        const floatX *from = x + i * M * K, *added = c ? c + i * M * M : nullptr;
        floatX* to = out + i * M * M;
        if (beta != 0 && added != to)   // oneDNN adds to what is there
            for (int64_t r = row; r < row + rows; r++) std::copy_n(added + r * M + column, columns, to + r * M + column);
        const int64_t ld = transposed ? M : K, step = transposed ? 1 : K;
        multiply(to + row * M + column, from + row * step, from + column * step,
                 {.M = rows, .N = columns, .K = K, .lda = ld, .ldb = ld, .ldout = M, .transpose_a = transposed, .transpose_b = !transposed,
                  .alpha = alpha, .beta = beta});
        mirror(to, M, row, rows, column, columns, scale ? scale[i] : 1);
    });
    errors.rethrow();
}

double matmul_flops(int64_t N, int64_t IC, int64_t OC, int repeats) {
    require(repeats >= 1, "matmul_flops: repeats must be at least 1, not ", repeats);
    std::vector<floatX> x(N * IC, to_floatX(1.5f)), w(OC * IC, to_floatX(-0.25f)), out(N * OC);
    double best = 0;
    for (int i = 0; i <= repeats; i++) {   // the first run compiles, and touches the memory
        auto start = std::chrono::steady_clock::now();
        matmul_forward(out.data(), x.data(), w.data(), N, IC, OC, nullptr);
        double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
        if (i > 0) best = std::max(best, 2.0 * static_cast<double>(N * OC * IC) / seconds);
    }
    return best;
}

// Test cases ask before main(), so what this file keeps may not exist yet.
bool matmul_supported() {
    if (FP32) return true;
    const memory::desc square = matrix(1, 8, 8, 8, false, memory::data_type::bf16);
    try {
        const std::string name = describe({.M = 8, .N = 8, .K = 8, .lda = 8, .ldb = 8, .ldout = 8}, square, square, square, {}).impl_info_str();
        return name.find("ref") == name.npos;
    } catch (const std::runtime_error&) {
        return false;
    }
}
