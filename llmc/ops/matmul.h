// Matmuls: oneDNN on the CPU, cuBLASLt on CUDA. Row-major; weights are (out, in): y = x W^T.
#pragma once
#include "llmc/device/types.h"

/// out  (N, OC)  =  x W^T
/// x    (N, IC)
/// w    (OC, IC)
/// Throws std::invalid_argument when a dimension is below 1.
void matmul_forward(floatX* out, const floatX* x, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream stream);

/// dx   (N, IC)  =  dout W
/// dout (N, OC)
void matmul_backward_input(floatX* dx, const floatX* dout, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream stream);

/// dw   (OC, IC)  +=  dout^T x, fp32
void matmul_backward_weight(float* dw, const floatX* dout, const floatX* x, int64_t N, int64_t IC, int64_t OC, Stream stream);

/// The general GEMM, for the optimizer: `batch` of them, on matrices that lie one after another,
///     out = alpha * op(a) op(b) + beta * c,    op(m) = m or, when its flag is set, m^T
///
/// out (batch, M, N)  =
/// a   (batch, M, K), or (batch, K, M) when transpose_a
/// b   (batch, K, N), or (batch, N, K) when transpose_b
/// c   (batch, M, N)     not out itself, where cuBLASLt may round the matmul before it adds (seen of bf16 on an H200); null when beta is 0
void matmul(floatX* out, const floatX* a, const floatX* b, const floatX* c, int64_t batch, int64_t M, int64_t N, int64_t K, bool transpose_a,
            bool transpose_b, float alpha, float beta, Stream stream);

/// A matrix times its own transpose, which costs half a matmul: the result above the diagonal mirrors what is below.
///     out[i] = scale[i] * (alpha * x[i] x[i]^T + beta * c[i]),    or x[i]^T x[i] when `transposed`
///
/// out   (batch, M, M)  =   may not be x
/// x     (batch, M, K), or (batch, K, M) when transposed
/// c     (batch, M, M)      symmetric; may be x; null when beta is 0
/// scale (batch)            fp32; null for 1
void matmul_symmetric(floatX* out, const floatX* x, const floatX* c, const float* scale, int64_t batch, int64_t M, int64_t K, bool transposed,
                      float alpha, float beta, Stream stream);

/// FLOP/s of matmul_forward at these sizes, the fastest of `repeats` runs after one that is not counted.
/// Throws std::invalid_argument when repeats is below 1.
double matmul_flops(int64_t N, int64_t IC, int64_t OC, int repeats);

/// Whether the device has a matmul in floatX: a CPU may have none in bf16.
bool matmul_supported();
