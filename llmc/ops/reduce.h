// Sums and checks over whole tensors, in an order that does not depend on the number of threads.
#pragma once
#include "llmc/device/types.h"

/// Elements [begin, begin + count) of an array; begin a multiple of 4.
struct Span {
    int64_t begin, count;
};

/// out   (count)  =   fp32: sum over i of x[i]^2 over span number c
/// x
/// spans (count)      on the device, as the others
void sums_of_squares(float* out, const float* x, const Span* spans, int count, Stream stream);

/// sum (n) += x (n)
void add(float* sum, const float* x, int64_t n, Stream stream);

/// A micro-batch's mean loss joins the step's:  last = sum over n of losses[n] / valid,  total += share * last
///
/// total  (1)  +=  fp64; on the device, as the others
/// last   (1)  =   fp64
/// losses (N)      nats, added up in double
/// valid           targets that count
void mean_loss(double* total, double* last, const float* losses, int64_t N, double valid, double share, Stream stream);

/// Sums the parts of a step as a binary tree, ((p0 + p1) + (p2 + p3)) + ..., whichever process made them. The sum of a whole subtree, made
/// elsewhere, can so be a part itself, and the bits stay the same. Where the count is no power of two, the tree is that of the next power,
/// without the missing parts.
///
/// out   (n)         =   fp32; may be row 0 of parts, and otherwise overlaps none
/// parts (count, n)      fp32
void tree_sum(float* out, const float* parts, int count, int64_t n, Stream stream);

/// Index of the first element that is NaN or infinite, -1 when there is none. Waits for the stream; for diagnosis.
int64_t first_nonfinite(const float* x, int64_t n, Stream stream);
int64_t first_nonfinite(const bf16* x, int64_t n, Stream stream);

/// out (n) = in (n), rounded to the storage type.
void cast(floatX* out, const float* in, int64_t n, Stream stream);
