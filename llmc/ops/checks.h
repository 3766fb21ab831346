// Checks of arguments that several ops share, in one wording for the CPU's files and CUDA's.
#pragma once
#include <cstdint>
#include "llmc/device/types.h"
#include "llmc/io/error.h"

/// N rows of C channels.
inline void require_rows(const char* op, int64_t N, int C) {
    require(N >= 1, op, ": N must be at least 1, not ", N);
    require(C >= 8 && C % 8 == 0, op, ": C must be a positive multiple of 8, not ", C);
}

/// n elements in steps of 8.
inline void require_elements(const char* op, int64_t n) {
    require(n >= 8 && n % 8 == 0, op, ": n must be a positive multiple of 8, not ", n);
}

/// B sequences of T tokens, H query heads and HK key heads (each for a group of H / HK query heads), D channels a head.
inline void require_heads(const char* op, int B, int T, int H, int HK, int D) {
    require(B >= 1, op, ": B must be at least 1, not ", B);
    require(T >= 1, op, ": T must be at least 1, not ", T);
    require(D >= 8 && D % 8 == 0, op, ": D must be a positive multiple of 8, not ", D);
    require(H >= 1 && HK >= 1 && H % HK == 0, op, ": HK must divide H, not ", HK, " and ", H);
}

/// The same, and how far a query sees.
inline void require_attention(const char* op, int B, int T, int H, int HK, int D, int window) {
    require_heads(op, B, T, H, HK, D);
    require(window >= 0, op, ": window must not be negative: ", window);
}

/// N rows of C channels, of which the value embedding's gate reads the first `gate_channels`; H query heads, HK key heads of D channels.
inline void require_value_heads(const char* op, int64_t N, int C, int gate_channels, int H, int HK, int D) {
    require(N >= 1, op, ": N must be at least 1, not ", N);
    require(C >= gate_channels, op, ": C must be at least ", gate_channels, " (the gate's channels), not ", C);
    require(H >= 1 && HK >= 1, op, ": H and HK must be at least 1, not ", H, " and ", HK);
    require(D >= 8 && D % 8 == 0, op, ": D must be a positive multiple of 8, not ", D);
}

/// N rows through a matrix (OC, IC).
inline void require_matmul(const char* op, int64_t N, int64_t IC, int64_t OC) {
    require(N >= 1, op, ": N must be at least 1, not ", N);
    require(IC >= 1, op, ": IC must be at least 1, not ", IC);
    require(OC >= 1, op, ": OC must be at least 1, not ", OC);
}

/// `batch` matmuls (M, K) by (K, N), to which beta * c is added.
inline void require_batched_matmul(const char* op, int64_t batch, int64_t M, int64_t N, int64_t K, const floatX* out, const floatX* c, float beta) {
    require(batch >= 1, op, ": batch must be at least 1, not ", batch);
    require(M >= 1, op, ": M must be at least 1, not ", M);
    require(N >= 1, op, ": N must be at least 1, not ", N);
    require(K >= 1, op, ": K must be at least 1, not ", K);
    require(c || beta == 0, op, ": beta of ", beta, " needs a matrix c");
    require(c != out || beta == 0, op, ": out must not be c, which is read while out is written; give it memory of its own");
}

/// `count` matrices of one shape.
inline void require_matrices(const char* op, int count, int rows, int cols) {
    require(count >= 1, op, ": count must be at least 1, not ", count);
    require(rows >= 1, op, ": rows must be at least 1, not ", rows);
    require(cols >= 1, op, ": cols must be at least 1, not ", cols);
}
