// Matrix products on CUDA: cuBLASLt shares the work among the threads. Large products are bound by the tensor cores, those with
// a short side by the bytes of their operands.
#include <cublasLt.h>
#include <unordered_map>
#include <vector>
#include "llmc/cuda_common.h"
#include "llmc/device.h"
#include "llmc/matmul.h"

static void blas_check(cublasStatus_t status, const char* op) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw std::runtime_error(concat(op, ": cuBLASLt says: ", cublasLtGetStatusString(status), " (", cublasLtGetStatusName(status), ")"));
}

// NVIDIA's advice for Hopper; older devices need less.
static constexpr size_t WORKSPACE_BYTES = size_t{32} << 20;

// out (M, N) = alpha * op(a) op(b) + beta * out, `batch` times: all that the choice of a kernel depends on.
struct Product {
    int64_t M, N, K;
    bool transpose_a = false, transpose_b = false;
    int64_t batch = 1;
    cudaDataType_t out_type = sizeof(floatX) == 4 ? CUDA_R_32F : CUDA_R_16BF;
    uint32_t out_alignment = 0, a_alignment = 0, b_alignment = 0;     // bytes, filled in by run()

    bool operator==(const Product&) const = default;
};

struct ProductHash {
    size_t operator()(const Product& p) const {
        uint64_t hash = 0;
        for (int64_t field : {p.M, p.N, p.K, static_cast<int64_t>(p.transpose_a), static_cast<int64_t>(p.transpose_b), p.batch,
                              static_cast<int64_t>(p.out_type), static_cast<int64_t>(p.out_alignment),
                              static_cast<int64_t>(p.a_alignment), static_cast<int64_t>(p.b_alignment)})
            hash = (hash ^ static_cast<uint64_t>(field)) * 0x9e3779b97f4a7c15u, hash ^= hash >> 29;
        return hash;
    }
};

// The largest power of two up to 256, which is all that kernels ask for, that divides the address.
static uint32_t alignment(const void* pointer) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(pointer) | 256;
    return static_cast<uint32_t>(bits & -bits);
}

// A row-major matrix (rows, cols) is to cuBLASLt, which counts by columns, the matrix (cols, rows).
static cublasLtMatrixLayout_t layout(int64_t rows, int64_t cols, int64_t batch, cudaDataType_t type) {
    cublasLtMatrixLayout_t matrix;
    blas_check(cublasLtMatrixLayoutCreate(&matrix, type, static_cast<uint64_t>(cols), static_cast<uint64_t>(rows), cols), "matmul");
    const int32_t count = static_cast<int32_t>(batch);
    const int64_t stride = rows * cols;
    blas_check(cublasLtMatrixLayoutSetAttribute(matrix, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), "matmul");
    blas_check(cublasLtMatrixLayoutSetAttribute(matrix, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride), "matmul");
    return matrix;
}

// A product as cuBLASLt wants it described, and the kernel it chose. Kept until the program ends.
struct Plan {
    cublasLtMatmulDesc_t product;
    cublasLtMatrixLayout_t a, b, out;
    cublasLtMatmulAlgo_t kernel;
};

// One for each thread, because a product uses the workspace until it is done: the products of a thread run on one stream.
struct Library {
    cublasLtHandle_t handle;
    void* workspace;
    std::unordered_map<Product, Plan, ProductHash> plans;

    Library() : workspace(device_alloc(WORKSPACE_BYTES)) { blas_check(cublasLtCreate(&handle), "matmul"); }
};

static Library& library() {
    thread_local Library* mine = new Library;     // never deleted: the device may be gone before the thread's last destructor
    return *mine;
}

// cuBLASLt computes (out^T) = op(b)^T op(a)^T, so its first operand is our second.
static Plan choose(cublasLtHandle_t handle, const Product& p) {
    const cudaDataType_t in_type = sizeof(floatX) == 4 ? CUDA_R_32F : CUDA_R_16BF;
    Plan plan{};
    // COMPUTE_32F is fp32 sums, and never TF32 (that is COMPUTE_32F_FAST_TF32).
    blas_check(cublasLtMatmulDescCreate(&plan.product, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul");
    const cublasOperation_t op_a = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    blas_check(cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof op_b), "matmul");
    blas_check(cublasLtMatmulDescSetAttribute(plan.product, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof op_a), "matmul");
    plan.a = p.transpose_a ? layout(p.K, p.M, p.batch, in_type) : layout(p.M, p.K, p.batch, in_type);
    plan.b = p.transpose_b ? layout(p.N, p.K, p.batch, in_type) : layout(p.K, p.N, p.batch, in_type);
    plan.out = layout(p.M, p.N, p.batch, p.out_type);

    cublasLtMatmulPreference_t preference;
    blas_check(cublasLtMatmulPreferenceCreate(&preference), "matmul");
    auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
        blas_check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), "matmul");
    };
    // A sum over K may be split, but the parts meet in fp32 in the workspace, in a fixed order: the same bytes at every run.
    const uint32_t splits = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, splits);
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, WORKSPACE_BYTES);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.b_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.a_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.out_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.out_alignment);

    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, plan.product, plan.b, plan.a, plan.out, plan.out, preference, 1, &best, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status == CUBLAS_STATUS_SUCCESS && found == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status != CUBLAS_STATUS_SUCCESS)
        throw std::runtime_error(concat("matmul: cuBLASLt has no kernel for M ", p.M, ", N ", p.N, ", K ", p.K, ", batch ", p.batch, ": ",
                                        cublasLtGetStatusString(status)));
    plan.kernel = best.algo;
    return plan;
}

static void run(const char* op, void* out, const floatX* a, const floatX* b, Product product, float alpha, float beta, Stream stream) {
    Range range(op);
    product.out_alignment = alignment(out);
    product.a_alignment = alignment(a);
    product.b_alignment = alignment(b);
    Library& blas = library();
    auto found = blas.plans.find(product);
    if (found == blas.plans.end()) found = blas.plans.emplace(product, choose(blas.handle, product)).first;
    const Plan& plan = found->second;
    blas_check(cublasLtMatmul(blas.handle, plan.product, &alpha, b, plan.b, a, plan.a, &beta, out, plan.out, out, plan.out, &plan.kernel,
                              blas.workspace, WORKSPACE_BYTES, cuda_stream(stream)),
               op);
}

static void require_dims(const char* op, int64_t N, int64_t IC, int64_t OC) {
    require(N >= 1, op, ": N must be at least 1, not ", N);
    require(IC >= 1, op, ": IC must be at least 1, not ", IC);
    require(OC >= 1, op, ": OC must be at least 1, not ", OC);
}

void matmul_forward(floatX* out, const floatX* x, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream stream) {
    require_dims("matmul_forward", N, IC, OC);
    run("matmul_forward", out, x, w, {.M = N, .N = OC, .K = IC, .transpose_b = true}, 1, 0, stream);
}

void matmul_backward_input(floatX* dx, const floatX* dout, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream stream) {
    require_dims("matmul_backward_input", N, IC, OC);
    run("matmul_backward_input", dx, dout, w, {.M = N, .N = IC, .K = OC}, 1, 0, stream);
}

void matmul_backward_weight(float* dw, const floatX* dout, const floatX* x, int64_t N, int64_t IC, int64_t OC, Stream stream) {
    require_dims("matmul_backward_weight", N, IC, OC);
    run("matmul_backward_weight", dw, dout, x, {.M = OC, .N = IC, .K = N, .transpose_a = true, .out_type = CUDA_R_32F}, 1, 1, stream);
}

void matmul(floatX* out, const floatX* a, const floatX* b, int64_t M, int64_t N, int64_t K, bool transpose_a, bool transpose_b,
            float alpha, float beta, int64_t batch, Stream stream) {
    require(M >= 1, "matmul: M must be at least 1, not ", M);
    require(N >= 1, "matmul: N must be at least 1, not ", N);
    require(K >= 1, "matmul: K must be at least 1, not ", K);
    require(batch >= 1, "matmul: batch must be at least 1, not ", batch);
    run("matmul", out, a, b, {.M = M, .N = N, .K = K, .transpose_a = transpose_a, .transpose_b = transpose_b, .batch = batch}, alpha, beta, stream);
}

// Device memory of numbers between -1 and 1: on zeros the tensor cores run faster than on real data.
struct DeviceNumbers {
    floatX* data;
    explicit DeviceNumbers(int64_t count) : data(static_cast<floatX*>(device_alloc(static_cast<size_t>(count) * sizeof(floatX)))) {
        std::vector<floatX> numbers(static_cast<size_t>(count));
        uint32_t state = 1;
        for (floatX& number : numbers) {
            state = state * 1664525 + 1013904223;
            number = to_floatX(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
        }
        copy_to_device(data, numbers.data(), numbers.size() * sizeof(floatX), nullptr);
    }
    ~DeviceNumbers() { device_free(data); }
    DeviceNumbers(const DeviceNumbers&) = delete;
    DeviceNumbers& operator=(const DeviceNumbers&) = delete;
};

double matmul_flops(int64_t N, int64_t OC, int64_t IC, int repeats) {
    const char* op = "matmul_flops";
    require_dims(op, N, IC, OC);
    require(repeats >= 1, op, ": repeats must be at least 1, not ", repeats);
    DeviceNumbers x(N * IC), w(OC * IC), out(N * OC);
    cudaEvent_t start, stop;
    cuda_check(cudaEventCreate(&start), op);
    cuda_check(cudaEventCreate(&stop), op);
    float best = 0;
    for (int i = 0; i <= repeats; i++) {   // the first run chooses the kernel
        float milliseconds = 0;
        cuda_check(cudaEventRecord(start, cuda_stream(nullptr)), op);
        matmul_forward(out.data, x.data, w.data, N, IC, OC, nullptr);
        cuda_check(cudaEventRecord(stop, cuda_stream(nullptr)), op);
        cuda_check(cudaEventSynchronize(stop), op);
        cuda_check(cudaEventElapsedTime(&milliseconds, start, stop), op);
        if (i == 1 || (i > 1 && milliseconds < best)) best = milliseconds;
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    return 2.0 * static_cast<double>(N * OC * IC) / (best * 1e-3);
}
