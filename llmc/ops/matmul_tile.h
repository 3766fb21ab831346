// One matmul through oneDNN, for the CPU files of other ops: matmul.cpp and the tiles of attention are made of it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>
#include "llmc/device/types.h"

/// out = alpha * op(a) op(b) + beta * out, row-major. op(a) is (M, K), op(b) is (K, N); a matrix is stored transposed where
/// its flag is set. `lda`, `ldb`, `ldout` are elements from one stored row to the next; the matrices of a batch lie one
/// after another without gaps.
struct Matmul {
    int64_t batch = 1, M, N, K;
    int64_t lda, ldb, ldout;
    bool transpose_a = false, transpose_b = false;
    float alpha = 1, beta = 0;

    bool operator==(const Matmul&) const = default;
};

/// Runs on all threads, or on the calling one inside a parallel region. Each thread caches the primitive of every matmul
/// it has seen: the first call of a shape compiles it, later ones allocate nothing. Throws std::runtime_error where oneDNN
/// has nothing but its reference loop for it (bf16 on a processor without it).
void multiply(float* out, const floatX* a, const floatX* b, const Matmul& p);
#ifndef PRECISION_FP32
void multiply(floatX* out, const floatX* a, const floatX* b, const Matmul& p);
#endif

/// Which implementation does it: oneDNN's name of a primitive ("brg:avx512_core_bf16"), or "dnnl_sgemm". Throws as multiply() does.
std::string implementation_of(const Matmul& p, bool fp32_out);

/// The same for each matmul that this process has done since it began, in lines "M x N x K ...: implementation", sorted.
std::vector<std::string> implementations_used();
