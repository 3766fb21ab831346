// Sums and checks over whole tensors, in an order that does not depend on the number of threads.
#pragma once
#include "llmc/device/types.h"

/// Number of partial sums that sum_of_squares makes.
inline constexpr int REDUCE_PARTS = 1024;

/// out     (1)             =   fp32: sum over i of x[i]^2, the partial sums added in double
/// scratch (REDUCE_PARTS)      fp32
/// x       (n)
void sum_of_squares(float* out, float* scratch, const float* x, int64_t n, Stream stream);

/// A micro-batch's mean loss joins the step's:  last = sum over n of losses[n] / valid,  total += share * last
///
/// total  (1)  +=  fp64; on the device, as the others
/// last   (1)  =   fp64
/// losses (N)      nats, added up in double
/// valid           targets that count
void mean_loss(double* total, double* last, const float* losses, int64_t N, double valid, double share, Stream stream);

/// Index of the first element that is NaN or infinite, -1 when there is none. Waits for the stream; for diagnosis.
int64_t first_nonfinite(const float* x, int64_t n, Stream stream);
int64_t first_nonfinite(const bf16* x, int64_t n, Stream stream);

/// out (n) = in (n), rounded to the storage type.
void cast(floatX* out, const float* in, int64_t n, Stream stream);
