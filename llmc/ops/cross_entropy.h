// Softmax cross entropy over the vocabulary, with its gradient in the same pass.
#pragma once
#include "llmc/device/types.h"

/// With z = softcap * tanh(logits / softcap) (z = logits when softcap is 0):
///     losses[n] = log sum_v exp z[n,v] - z[n,targets[n]]
///     dlogits[n,v] = dloss * (softmax(z[n])[v] - [v = targets[n]]) * (1 - (z[n,v] / softcap)^2)
/// A target of -1 is left out: its loss and its gradients are 0.
///
/// losses  (N)     =   fp32, nats
/// logits  (N, V)      in; on return the gradient, or the capped logits z when dloss is 0
/// targets (N)         each -1 or in [0, V)
/// Throws std::invalid_argument when N < 1, V is not a positive multiple of 8, or softcap < 0.
void cross_entropy(float* losses, floatX* logits, const int* targets, int64_t N, int V, float dloss, float softcap, Stream stream);

/// Rows of logits (N, V) to hold at once, by the device: never a whole batch's, and all pieces but the last of that size.
int64_t logits_rows(int64_t N, int64_t V);
