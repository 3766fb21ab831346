// The types of the engine: floatX (what activations and the operands of matmuls are stored in), bf16, Stream.
#pragma once
#include <cstdint>
#include <cstring>

/// Functions of this header run on the host and, where nvcc compiles them, on the device.
#ifdef __CUDACC__
#define HOST_DEVICE __host__ __device__
#else
#define HOST_DEVICE
#endif

/// bfloat16: the upper half of a float. Storage only; every sum is made in fp32.
struct bf16 {
    uint16_t bits;
};

HOST_DEVICE inline float to_float(float x) { return x; }
HOST_DEVICE inline float to_float(bf16 x) {
    uint32_t u = static_cast<uint32_t>(x.bits) << 16;
    float f;
    std::memcpy(&f, &u, sizeof f);
    return f;
}

/// Rounds to nearest, ties to even, as the hardware does; NaN stays NaN.
HOST_DEVICE inline bf16 to_bf16(float f) {
#ifdef __CUDA_ARCH__
    bf16 x;
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(x.bits) : "f"(f));
    return x;
#else
    uint32_t u;
    std::memcpy(&u, &f, sizeof u);
    uint32_t rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    bool nan = (u & 0x7fffffffu) > 0x7f800000u;
    return bf16{static_cast<uint16_t>(nan ? ((u >> 16) | 0x40u) : rounded)};
#endif
}

#if defined PRECISION_ANY   // a file that does no arithmetic is compiled once for both precisions, and can only name the type
struct floatX;
#elif defined PRECISION_FP32
using floatX = float;
HOST_DEVICE inline floatX to_floatX(float x) { return x; }
inline constexpr const char* PRECISION_NAME = "fp32";
#else
using floatX = bf16;
HOST_DEVICE inline floatX to_floatX(float x) { return to_bf16(x); }
inline constexpr const char* PRECISION_NAME = "bf16";
#endif

/// The queue that an op's work goes to: CUDA's own stream type, and always null on the CPU.
using Stream = struct CUstream_st*;
