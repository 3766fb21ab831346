// The numbers of the engine: floatX (what activations and matrix products are stored in), bf16, Stream.
#pragma once
#include <cstdint>
#include <cstring>

/// bfloat16: the upper half of a float. Storage only; every sum is made in fp32.
struct bf16 {
    uint16_t bits;
};

inline float to_float(float x) { return x; }
inline float to_float(bf16 x) {
    uint32_t u = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, sizeof f);
    return f;
}

/// Rounds to nearest, ties to even, as the hardware does; NaN stays NaN.
inline bf16 to_bf16(float f) {
    uint32_t u;
    std::memcpy(&u, &f, sizeof u);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    return bf16{static_cast<uint16_t>(nan ? ((u >> 16) | 0x40u) : rounded)};
}

#ifdef PRECISION_FP32
using floatX = float;
inline floatX to_floatX(float x) { return x; }
inline constexpr const char* PRECISION_NAME = "fp32";
#else
using floatX = bf16;
inline floatX to_floatX(float x) { return to_bf16(x); }
inline constexpr const char* PRECISION_NAME = "bf16";
#endif

/// The queue that an op's work goes to: CUDA's own stream type, and always null on the CPU.
using Stream = struct CUstream_st*;
