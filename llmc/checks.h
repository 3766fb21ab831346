// The rules that several ops' arguments obey, in one wording for the CPU's files and CUDA's.
#pragma once
#include <cstdint>
#include "llmc/error.h"

/// N rows of C channels.
inline void require_rows(const char* op, int64_t N, int C) {
    require(N >= 1, op, ": N must be at least 1, not ", N);
    require(C >= 8 && C % 8 == 0, op, ": C must be a positive multiple of 8, not ", C);
}

/// n elements in steps of 8.
inline void require_elements(const char* op, int64_t n) {
    require(n >= 8 && n % 8 == 0, op, ": n must be a positive multiple of 8, not ", n);
}

/// B sequences of T tokens, H query heads in groups of one key head each, D channels a head.
inline void require_heads(const char* op, int B, int T, int H, int HK, int D) {
    require(B >= 1, op, ": B must be at least 1, not ", B);
    require(T >= 1, op, ": T must be at least 1, not ", T);
    require(D >= 8 && D % 8 == 0, op, ": D must be a positive multiple of 8, not ", D);
    require(H >= 1 && HK >= 1 && H % HK == 0, op, ": HK must divide H, not ", HK, " and ", H);
}
