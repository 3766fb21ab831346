// Matrix products on the CPU: oneDNN.
#include "llmc/matmul.h"
#include <algorithm>
#include <chrono>
#include <dnnl.hpp>
#include <limits>
#include <omp.h>
#include <unordered_map>
#include <vector>
#include "llmc/checks.h"
#include "llmc/device.h"
#include "llmc/error.h"
#include "llmc/matmul_tile.h"
#include "llmc/profile.h"

using dnnl::memory;

// A compiled product and the four descriptions of memory it runs on, which get their addresses at each call.
struct Primitive {
    dnnl::matmul matmul;
    memory a, b, out, scratch;
    size_t scratch_bytes;
};

struct Key {
    Product product;
    memory::data_type out_type;
    int threads;

    bool operator==(const Key&) const = default;
};

struct KeyHash {
    size_t operator()(const Key& key) const {
        const Product& p = key.product;
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

static dnnl::matmul::primitive_desc describe(const memory::desc& a, const memory::desc& b, const memory::desc& out,
                                             const dnnl::primitive_attr& attr) {
    try {
#if DNNL_VERSION_MAJOR >= 3
        return dnnl::matmul::primitive_desc(cpu(), a, b, out, attr);
#else
        return dnnl::matmul::primitive_desc(dnnl::matmul::desc(a, b, out), attr, cpu());
#endif
    } catch (const dnnl::error& error) {
        throw std::runtime_error(concat("matmul: oneDNN has no product of ", PRECISION_NAME, " on this processor (", error.what(),
                                        "); build with PRECISION=fp32"));
    }
}

static Primitive compile(const Key& key) {
    const Product& p = key.product;
    memory::data_type in_type = sizeof(floatX) == 4 ? memory::data_type::f32 : memory::data_type::bf16;
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
    int allowed = omp_get_max_threads();
    omp_set_num_threads(key.threads);
    dnnl::matmul::primitive_desc desc = describe(a, b, out, attr);
    dnnl::matmul matmul(desc);
    omp_set_num_threads(allowed);
    return Primitive{matmul, memory(a, cpu(), nullptr), memory(b, cpu(), nullptr), memory(out, cpu(), nullptr),
                     memory(desc.scratchpad_desc(), cpu(), nullptr), desc.scratchpad_desc().get_size()};
}

// The thread's scratchpad, as large as the largest product of the thread needed.
static void* scratchpad(size_t bytes) {
    thread_local std::vector<unsigned char> pad;
    if (pad.size() < bytes) pad.resize(bytes);
    return pad.data();
}

static void run(void* out, memory::data_type out_type, const floatX* a, const floatX* b, const Product& product) {
    thread_local std::unordered_map<Key, Primitive, KeyHash> primitives;
    thread_local dnnl::stream stream(cpu());

    Key key{product, out_type, omp_in_parallel() ? 1 : omp_get_max_threads()};
    auto found = primitives.find(key);
    if (found == primitives.end()) found = primitives.emplace(key, compile(key)).first;
    Primitive& p = found->second;

    p.a.set_data_handle(const_cast<floatX*>(a));
    p.b.set_data_handle(const_cast<floatX*>(b));
    p.out.set_data_handle(out);
    p.scratch.set_data_handle(scratchpad(p.scratch_bytes));
    dnnl_exec_arg_t arguments[] = {
        {DNNL_ARG_SRC, p.a.get()}, {DNNL_ARG_WEIGHTS, p.b.get()}, {DNNL_ARG_DST, p.out.get()}, {DNNL_ARG_SCRATCHPAD, p.scratch.get()}};
    dnnl::error::wrap_c_api(dnnl_primitive_execute(p.matmul.get(), stream.get(), 4, arguments), "matmul: oneDNN could not run a product");
}

void multiply(float* out, const floatX* a, const floatX* b, const Product& product) {
    run(out, memory::data_type::f32, a, b, product);
}

#ifndef PRECISION_FP32
void multiply(floatX* out, const floatX* a, const floatX* b, const Product& product) {
    run(out, memory::data_type::bf16, a, b, product);
}
#endif

void matmul_forward(floatX* out, const floatX* x, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream) {
    Range range("matmul_forward");
    require_product("matmul_forward", N, IC, OC);
    multiply(out, x, w, {.M = N, .N = OC, .K = IC, .lda = IC, .ldb = IC, .ldout = OC, .transpose_b = true});
}

void matmul_backward_input(floatX* dx, const floatX* dout, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream) {
    Range range("matmul_backward_input");
    require_product("matmul_backward_input", N, IC, OC);
    multiply(dx, dout, w, {.M = N, .N = IC, .K = OC, .lda = OC, .ldb = IC, .ldout = IC});
}

void matmul_backward_weight(float* dw, const floatX* dout, const floatX* x, int64_t N, int64_t IC, int64_t OC, Stream) {
    Range range("matmul_backward_weight");
    require_product("matmul_backward_weight", N, IC, OC);
    multiply(dw, dout, x, {.M = OC, .N = IC, .K = N, .lda = OC, .ldb = IC, .ldout = IC, .transpose_a = true, .beta = 1});
}

void matmul(floatX* out, const floatX* a, const floatX* b, const floatX* c, int64_t batch, int64_t M, int64_t N, int64_t K, bool transpose_a,
            bool transpose_b, float alpha, float beta, Stream stream) {
    Range range("matmul");
    require_products("matmul", batch, M, N, K, c, beta);
    if (beta != 0 && c != out) copy_on_device(out, c, static_cast<size_t>(batch * M * N) * sizeof(floatX), stream);   // oneDNN adds to what is there
    multiply(out, a, b, {.batch = batch, .M = M, .N = N, .K = K, .lda = transpose_a ? M : K, .ldb = transpose_b ? K : N, .ldout = N,
                         .transpose_a = transpose_a, .transpose_b = transpose_b, .alpha = alpha, .beta = beta});
}

void matmul_symmetric(floatX* out, const floatX* x, const floatX* c, const float* scale, int64_t batch, int64_t M, int64_t K, bool transposed,
                      float alpha, float beta, Stream stream) {
    Range range("matmul_symmetric");
    require_products("matmul_symmetric", batch, M, M, K, c, beta);
    matmul(out, x, x, c, batch, M, M, K, transposed, !transposed, alpha, beta, stream);
    if (!scale) return;
#pragma omp parallel for
    for (int64_t i = 0; i < batch * M * M; i++) out[i] = to_floatX(scale[i / (M * M)] * to_float(out[i]));
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
