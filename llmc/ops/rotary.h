// Rotary positions (Su et al. 2021) on the queries and keys, and RMSNorm of each head after them (QK norm).
#pragma once
#include "llmc/device/types.h"

/// Fills a table of cosines and sines on the host: angle[t,i] = t * 10000^(-2i/D).
/// table (T, D): for each t first D/2 cosines, then D/2 sines, fp32, computed in double.
void rotary_table(float* table, int T, int D);

/// For every query and key head, with a and b its halves and c, s the table's row at t:
///     a' = a c + b s,   b' = b c - a s          (a rotation by MINUS t * freq, as both recipes do)
/// and, when qk_norm, the head (a', b') is divided by sqrt(mean(a'^2, b'^2) + eps). Value heads are left alone.
///
/// qkv   (B, T, (H + 2 HK) D)   in and out: queries, then keys, then values
/// rstd  (B, T, H + HK)  =      fp32; written only when qk_norm
/// table (>= first + T, D)      position t of the tokens here is first + t of the sequence
/// Throws std::invalid_argument when D is not a multiple of 8 or HK does not divide H.
void rotary_forward(floatX* qkv, float* rstd, const float* table, int B, int T, int H, int HK, int D, int first, bool qk_norm,
                    float eps, Stream stream);

/// dqkv  (B, T, (H + 2 HK) D)   in and out: gradients after the op on entry, before it on return; value heads are left alone
/// qkv   (B, T, (H + 2 HK) D)   the forward pass's output
void rotary_backward(floatX* dqkv, const floatX* qkv, const float* rstd, const float* table, int B, int T, int H, int HK, int D,
                     bool qk_norm, Stream stream);
