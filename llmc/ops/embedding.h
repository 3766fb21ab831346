// Token embeddings: rows looked up, and gradients of rows summed without atomics.
#pragma once
#include "llmc/device/types.h"

/// Sorts the positions of a micro-batch by token: order[i] is a position, tokens ascend with i, and equal tokens keep
/// their order, so that a gradient's sum over them always runs the same way.
///
/// order   (N)      =
/// scratch (V + 1)
/// idx     (N)          each in [0, V)
void token_order(int* order, int* scratch, const int* idx, int64_t N, int V, Stream stream);

/// out (N, C)  =  wte[idx]
/// idx (N)
/// wte (V, C)
/// Throws std::invalid_argument when N < 1 or C is not a positive multiple of 8.
void embedding_forward(floatX* out, const int* idx, const floatX* wte, int64_t N, int C, Stream stream);

/// dwte  (V, C)  +=  fp32; row v gets the sum of dout over the positions whose token is v, in the order of `order`
/// dout  (N, C)
/// idx   (N)
/// order (N)         from token_order
void embedding_backward(float* dwte, const floatX* dout, const int* idx, const int* order, int64_t N, int C, Stream stream);
