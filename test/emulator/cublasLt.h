// The part of cuBLASLt that llmc/ops/matmul.cu uses, for the emulator: plain loops, and the checks of arguments that the library makes.
#pragma once
#include <cuda_runtime.h>
#include <cstdint>
#include <cstring>
#include <string>
#include <vector>
#include "llmc/device/types.h"

enum cublasStatus_t { CUBLAS_STATUS_SUCCESS, CUBLAS_STATUS_INVALID_VALUE = 7, CUBLAS_STATUS_EXECUTION_FAILED = 13, CUBLAS_STATUS_NOT_SUPPORTED = 15 };
inline const char* cublasLtGetStatusName(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS            ? "CUBLAS_STATUS_SUCCESS"
           : status == CUBLAS_STATUS_INVALID_VALUE    ? "CUBLAS_STATUS_INVALID_VALUE"
           : status == CUBLAS_STATUS_EXECUTION_FAILED ? "CUBLAS_STATUS_EXECUTION_FAILED"
                                                      : "CUBLAS_STATUS_NOT_SUPPORTED";
}
inline const char* cublasLtGetStatusString(cublasStatus_t status) {
    return status == CUBLAS_STATUS_SUCCESS            ? "success"
           : status == CUBLAS_STATUS_INVALID_VALUE    ? "an invalid value"
           : status == CUBLAS_STATUS_EXECUTION_FAILED ? "the matmul could not be launched"
                                                      : "not supported";
}

enum cudaDataType_t { CUDA_R_32F = 0, CUDA_R_16BF = 14 };
enum cublasComputeType_t { CUBLAS_COMPUTE_32F = 68 };
enum cublasOperation_t { CUBLAS_OP_N, CUBLAS_OP_T };

using cublasLtHandle_t = struct cublasLtContext*;
inline cublasStatus_t cublasLtCreate(cublasLtHandle_t* handle) { return *handle = nullptr, CUBLAS_STATUS_SUCCESS; }

template <class Field>
cublasStatus_t emulated_set(Field& field, const void* value, size_t bytes) {
    if (bytes != sizeof field) return CUBLAS_STATUS_INVALID_VALUE;
    std::memcpy(&field, value, bytes);
    return CUBLAS_STATUS_SUCCESS;
}

// ------------------------------------------------------------------------------------------------------------ descriptions

struct cublasLtMatmulDescOpaque {
    cublasOperation_t a = CUBLAS_OP_N, b = CUBLAS_OP_N;
};
using cublasLtMatmulDesc_t = cublasLtMatmulDescOpaque*;
enum cublasLtMatmulDescAttributes_t { CUBLASLT_MATMUL_DESC_TRANSA = 3, CUBLASLT_MATMUL_DESC_TRANSB = 4 };
inline cublasStatus_t cublasLtMatmulDescCreate(cublasLtMatmulDesc_t* desc, cublasComputeType_t, cudaDataType_t scale) {
    *desc = new cublasLtMatmulDescOpaque;
    return scale == CUDA_R_32F ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}
inline cublasStatus_t cublasLtMatmulDescSetAttribute(cublasLtMatmulDesc_t desc, cublasLtMatmulDescAttributes_t name, const void* value, size_t bytes) {
    return emulated_set(name == CUBLASLT_MATMUL_DESC_TRANSA ? desc->a : desc->b, value, bytes);
}

/// Element (i, j) of matrix n lies at i + j * ld + n * stride.
struct cublasLtMatrixLayoutOpaque {
    cudaDataType_t type;
    int64_t rows, cols, ld;
    int32_t batch = 1;
    int64_t stride = 0;
};
using cublasLtMatrixLayout_t = cublasLtMatrixLayoutOpaque*;
enum cublasLtMatrixLayoutAttribute_t { CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT = 5, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET = 6 };
inline cublasStatus_t cublasLtMatrixLayoutCreate(cublasLtMatrixLayout_t* layout, cudaDataType_t type, uint64_t rows, uint64_t cols, int64_t ld) {
    *layout = new cublasLtMatrixLayoutOpaque{type, static_cast<int64_t>(rows), static_cast<int64_t>(cols), ld};
    return ld >= static_cast<int64_t>(rows) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_INVALID_VALUE;
}
inline cublasStatus_t cublasLtMatrixLayoutSetAttribute(cublasLtMatrixLayout_t layout, cublasLtMatrixLayoutAttribute_t name, const void* value,
                                                       size_t bytes) {
    return name == CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT ? emulated_set(layout->batch, value, bytes) : emulated_set(layout->stride, value, bytes);
}

/// What a caller promises when it asks for a kernel; the kernel that it gets insists on the promises.
struct cublasLtMatmulPreferenceOpaque {
    uint64_t workspace = 0;
    uint32_t splits = 7, align_a = 256, align_b = 256, align_c = 256, align_d = 256;
};
using cublasLtMatmulPreference_t = cublasLtMatmulPreferenceOpaque*;
enum cublasLtMatmulPreferenceAttributes_t {
    CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES = 1,
    CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK = 3,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES = 5,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES,
    CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES
};
enum { CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE = 2 };
inline cublasStatus_t cublasLtMatmulPreferenceCreate(cublasLtMatmulPreference_t* preference) {
    return *preference = new cublasLtMatmulPreferenceOpaque, CUBLAS_STATUS_SUCCESS;
}
inline cublasStatus_t cublasLtMatmulPreferenceDestroy(cublasLtMatmulPreference_t preference) { return delete preference, CUBLAS_STATUS_SUCCESS; }
inline cublasStatus_t cublasLtMatmulPreferenceSetAttribute(cublasLtMatmulPreference_t p, cublasLtMatmulPreferenceAttributes_t name,
                                                           const void* value, size_t bytes) {
    switch (name) {
        case CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES: return emulated_set(p->workspace, value, bytes);
        case CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK: return emulated_set(p->splits, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES: return emulated_set(p->align_a, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES: return emulated_set(p->align_b, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES: return emulated_set(p->align_c, value, bytes);
        case CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES: return emulated_set(p->align_d, value, bytes);
    }
    return CUBLAS_STATUS_INVALID_VALUE;
}

// -------------------------------------------------------------------------------------------------------------- the matmul

/// `batch`: the batch that it was chosen for. The kernel depends on that, as a GPU's does: one chosen for more than 8 sums in the reverse order;
/// and for an odd M it takes no larger batch, so that the caller's fallback is tested too.
struct cublasLtMatmulAlgo_t {
    cublasLtMatmulPreferenceOpaque promised;
    int64_t M, N, K;
    int32_t batch;
    bool takes(int32_t count) const { return count <= batch || M % 2 == 0; }
};
struct cublasLtMatmulHeuristicResult_t {
    cublasLtMatmulAlgo_t algo;
    size_t workspaceSize;
    cublasStatus_t state;
};

/// The sizes of op(a) op(b), a (M, K) by (K, N), if they fit each other and the output.
inline bool emulated_sizes(cublasLtMatmulAlgo_t& algo, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                           cublasLtMatrixLayout_t out) {
    bool ta = desc->a == CUBLAS_OP_T, tb = desc->b == CUBLAS_OP_T;
    algo.M = ta ? a->cols : a->rows;
    algo.K = ta ? a->rows : a->cols;
    algo.N = tb ? b->rows : b->cols;
    return algo.K == (tb ? b->cols : b->rows) && out->rows == algo.M && out->cols == algo.N && a->batch == out->batch && b->batch == out->batch &&
           a->type == b->type && (a->type == out->type || out->type == CUDA_R_32F);
}

inline cublasStatus_t cublasLtMatmulAlgoGetHeuristic(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                                     cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, cublasLtMatmulPreference_t preference,
                                                     int wanted, cublasLtMatmulHeuristicResult_t* results, int* found) {
    *found = 0;
    cublasLtMatmulAlgo_t algo{*preference, 0, 0, 0, 0};
    if (wanted < 1 || c != d || !emulated_sizes(algo, desc, a, b, d)) return CUBLAS_STATUS_INVALID_VALUE;
    algo.batch = d->batch;
    results[0] = {algo, 0, CUBLAS_STATUS_SUCCESS};
    *found = 1;
    return CUBLAS_STATUS_SUCCESS;
}

inline cublasStatus_t cublasLtMatmulAlgoCheck(cublasLtHandle_t, cublasLtMatmulDesc_t desc, cublasLtMatrixLayout_t a, cublasLtMatrixLayout_t b,
                                              cublasLtMatrixLayout_t c, cublasLtMatrixLayout_t d, const cublasLtMatmulAlgo_t* algo,
                                              cublasLtMatmulHeuristicResult_t* result) {
    cublasLtMatmulAlgo_t sizes{};
    if (c != d || !emulated_sizes(sizes, desc, a, b, d) || sizes.M != algo->M || sizes.N != algo->N || sizes.K != algo->K) return CUBLAS_STATUS_INVALID_VALUE;
    result->workspaceSize = 0;
    return algo->takes(d->batch) ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_NOT_SUPPORTED;
}

inline float emulated_element(const void* matrix, cudaDataType_t type, int64_t at) {
    return type == CUDA_R_32F ? static_cast<const float*>(matrix)[at] : to_float(static_cast<const bf16*>(matrix)[at]);
}

/// sums (M) = the sum over k of a[k] b[k], in that order or from the end; a (K, M). Without sanitizers: these are copies of the operands, and whole
/// training steps spend most of their time here.
__attribute__((no_sanitize("address", "undefined"))) inline void emulated_sums(float* sums, const float* a, const float* b, int64_t M, int64_t K, bool from_the_end) {
    for (int64_t i = 0; i < M; i++) sums[i] = 0;
    for (int64_t step = 0; step < K; step++) {
        const int64_t k = from_the_end ? K - 1 - step : step;
#pragma omp simd
        for (int64_t i = 0; i < M; i++) sums[i] += a[k * M + i] * b[k];
    }
}

inline cublasStatus_t cublasLtMatmul(cublasLtHandle_t, cublasLtMatmulDesc_t desc, const void* alpha, const void* a, cublasLtMatrixLayout_t a_layout,
                                     const void* b, cublasLtMatrixLayout_t b_layout, const void* beta, const void* c, cublasLtMatrixLayout_t,
                                     void* d, cublasLtMatrixLayout_t d_layout, const cublasLtMatmulAlgo_t* algo, void* workspace,
                                     size_t workspace_bytes, cudaStream_t stream) {
    cublasLtMatmulAlgo_t sizes{};
    const auto& promised = algo->promised;
    auto lies_at = [](const void* pointer, uint32_t bytes) { return is_device_memory(pointer) && reinterpret_cast<uintptr_t>(pointer) % bytes == 0; };
    if (!emulated_sizes(sizes, desc, a_layout, b_layout, d_layout) || sizes.M != algo->M || sizes.N != algo->N || sizes.K != algo->K || !algo->takes(d_layout->batch) ||
        !lies_at(a, promised.align_a) || !lies_at(b, promised.align_b) || !lies_at(c, promised.align_c) || !lies_at(d, promised.align_d) ||
        workspace_bytes < promised.workspace || !lies_at(workspace, 256))
        return CUBLAS_STATUS_INVALID_VALUE;
    const float scale = *static_cast<const float*>(alpha), keep = *static_cast<const float*>(beta);
    const cublasLtMatmulDescOpaque ops = *desc;
    const bool from_the_end = algo->batch > 8;
    const cublasLtMatrixLayoutOpaque as = *a_layout, bs = *b_layout, ds = *d_layout;
    cudaError_t error = emulated_submit("cublasLtMatmul", stream, [=] {
        DeviceAccess open;
        const int64_t a_row = ops.a == CUBLAS_OP_T ? as.ld : 1, a_col = ops.a == CUBLAS_OP_T ? 1 : as.ld;
        const int64_t b_row = ops.b == CUBLAS_OP_T ? bs.ld : 1, b_col = ops.b == CUBLAS_OP_T ? 1 : bs.ld;
        std::vector<float> left(sizes.K * sizes.M), right(sizes.K), sums(sizes.M);
        for (int64_t n = 0; n < ds.batch; n++) {
            for (int64_t k = 0; k < sizes.K; k++)
                for (int64_t i = 0; i < sizes.M; i++)
                    left[k * sizes.M + i] = emulated_element(a, as.type, n * as.stride + i * a_row + k * a_col);
            for (int64_t j = 0; j < sizes.N; j++) {
                for (int64_t k = 0; k < sizes.K; k++) right[k] = emulated_element(b, bs.type, n * bs.stride + k * b_row + j * b_col);
                emulated_sums(sums.data(), left.data(), right.data(), sizes.M, sizes.K, from_the_end);
                for (int64_t i = 0; i < sizes.M; i++) {
                    const int64_t at = n * ds.stride + i + j * ds.ld;
                    float sum = sums[i] * scale;
                    if (keep != 0) sum += keep * emulated_element(c, ds.type, at);
                    if (ds.type == CUDA_R_32F) static_cast<float*>(d)[at] = sum;
                    else static_cast<bf16*>(d)[at] = to_bf16(sum);
                }
            }
        }
    });
    return error == cudaSuccess ? CUBLAS_STATUS_SUCCESS : CUBLAS_STATUS_EXECUTION_FAILED;
}
