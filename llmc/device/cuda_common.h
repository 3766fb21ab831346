// What every .cu file is written with: the launch, 16-byte loads and stores, sums over warps, blocks and rows.
//
// How a kernel is written here
//   - llmc/ops/<op>.cu opens with a sentence on how the threads share the work and what bounds it (bytes or operations); then the
//     kernels; then the functions of llmc/ops/<op>.h, which validate, choose the grid and launch(). A kernel assumes its arguments are right.
//   - The same file compiles with nvcc for the GPU and, unchanged, with g++ for the emulator (test/emulator), where the op suite runs
//     it: so no <<<>>>, no `__shared__` (all shared memory is dynamic: Grid::shared bytes, through shared_memory<T>()), no inline
//     PTX outside llmc/device/ptx.h (but for the rounding of types.h), and of the CUDA API only what test/emulator/cuda_runtime.h
//     has; add there what you need.
//   - Tensors are read and written 16 bytes a thread, neighbours by neighbouring threads, each element once if it can be: load what
//     the thread needs first, all of it, then compute. Arrays in registers are indexed by unrolled loops only.
//   - Sums are fp32, in an order that depends on the sizes alone. No float atomics: two runs give the same bytes.
//   - Sizes, limits and the number of blocks that fill the device are read off the device.
//   - A stream of null is the calling thread's own stream (cudaStreamPerThread), which a graph can capture.
#pragma once
#include <cuda_runtime.h>
#include <cstdint>
#include <type_traits>
#include "llmc/device/cuda_check.h"
#include "llmc/device/profile.h"
#include "llmc/device/ptx.h"
#include "llmc/device/types.h"
#include "llmc/io/error.h"

#if defined(__CUDACC__) && CUDART_VERSION < 12050
#error "CUDA's toolkit must be 12.5 or later (cudaGetDriverEntryPointByVersion, 32764 bytes of kernel arguments): install a newer one, or set NVCC=where/it/is"
#endif

inline constexpr int WARP = 32;
inline constexpr unsigned ALL_LANES = 0xffffffffu;
/// Elements of floatX in 16 bytes.
inline constexpr int VECTOR = 16 / static_cast<int>(sizeof(floatX));

// ------------------------------------------------------------------------------------------------------------- the host's side

/// Bytes of cuBLASLt's workspace: NVIDIA's advice for Hopper (older devices need less). Each host thread that calls it has one.
inline constexpr size_t MATMUL_WORKSPACE = size_t{32} << 20;

inline cudaStream_t cuda_stream(Stream stream) { return stream ? stream : cudaStreamPerThread; }

inline int device_attribute(cudaDeviceAttr attribute) {
    int device = 0, value = 0;
    cuda_check(cudaGetDevice(&device), "device_attribute");
    cuda_check(cudaDeviceGetAttribute(&value, attribute, device), "device_attribute");
    return value;
}
inline int sm_count() {
    static const int count = device_attribute(cudaDevAttrMultiProcessorCount);
    return count;
}
/// The most shared memory that a block can have.
inline size_t shared_memory_limit() {
    static const int bytes = device_attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin);
    return static_cast<size_t>(bytes);
}

template <class Integer>
constexpr Integer ceil_div(Integer a, std::type_identity_t<Integer> b) {
    return (a + b - 1) / b;
}

/// Blocks, threads of a block, bytes of shared memory of a block.
struct Grid {
    dim3 blocks, threads;
    size_t shared = 0;
};

/// Without this a block gets 48 KB of shared memory at most. Always sets the device's limit, so that no launch lowers what a captured
/// kernel needs.
template <class Kernel>
void allow_shared_memory(const char* op, Kernel* kernel, size_t bytes) {
    if (bytes > 48 * 1024)
        cuda_check(cudaFuncSetAttribute(reinterpret_cast<const void*>(kernel), cudaFuncAttributeMaxDynamicSharedMemorySize,
                                        static_cast<int>(shared_memory_limit())),
                   op);
}

/// Runs kernel(args...) on the stream. `op` names it in errors and in profiles.
template <class... Parameters>
void launch(const char* op, void (*kernel)(Parameters...), const Grid& grid, Stream stream, std::type_identity_t<Parameters>... args) {
    Range range(op);
    allow_shared_memory(op, kernel, grid.shared);
    cudaLaunchConfig_t config{};
    config.gridDim = grid.blocks;
    config.blockDim = grid.threads;
    config.dynamicSmemBytes = grid.shared;
    config.stream = cuda_stream(stream);
    cuda_check(cudaLaunchKernelEx(&config, kernel, args...), op);
}

/// Blocks of a kernel that the whole device holds at once: the grid of a kernel whose blocks loop over the work.
template <class... Parameters>
unsigned blocks_that_fit(const char* op, void (*kernel)(Parameters...), int threads, size_t shared = 0) {
    int blocks = 0;
    allow_shared_memory(op, kernel, shared);
    cuda_check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks, kernel, threads, shared), op);
    return static_cast<unsigned>(blocks * sm_count());
}

/// 16-byte accesses need tensors that begin at a multiple of 16 bytes, as all of the model's do. Null is fine.
template <class... Pointers>
void require_aligned(const char* op, const Pointers*... pointers) {
    bool aligned = ((reinterpret_cast<uintptr_t>(pointers) % 16 == 0) && ...);
    require(aligned, op, ": every tensor must begin at a multiple of 16 bytes");
}

// ------------------------------------------------------------------------------------------------- 16 bytes, or N elements, at once

__device__ inline float bits_to_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/// Two bf16 as floats, and back.
__device__ inline void unpack_bf16(float& low, float& high, uint32_t both) {
    low = bits_to_float(both << 16);
    high = bits_to_float(both & 0xffff0000u);
}

/// 16 bytes of floatX, as they lie in memory: half the registers that floats take in the bf16 build.
using Packed = uint4;

__device__ inline Packed load_packed(const floatX* from) { return *reinterpret_cast<const Packed*>(from); }
__device__ inline void store_packed(floatX* to, Packed packed) { *reinterpret_cast<Packed*>(to) = packed; }

__device__ inline void unpack(float (&to)[4], uint4 packed) {
    to[0] = bits_to_float(packed.x);
    to[1] = bits_to_float(packed.y);
    to[2] = bits_to_float(packed.z);
    to[3] = bits_to_float(packed.w);
}
__device__ inline void unpack(float (&to)[8], uint4 packed) {
    unpack_bf16(to[0], to[1], packed.x);
    unpack_bf16(to[2], to[3], packed.y);
    unpack_bf16(to[4], to[5], packed.z);
    unpack_bf16(to[6], to[7], packed.w);
}
__device__ inline uint32_t float_to_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}
__device__ inline uint4 pack(const float (&from)[4]) {
    return {float_to_bits(from[0]), float_to_bits(from[1]), float_to_bits(from[2]), float_to_bits(from[3])};
}
__device__ inline uint4 pack(const float (&from)[8]) {
    return {pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3]), pack_bf16(from[4], from[5]), pack_bf16(from[6], from[7])};
}

/// N elements from memory as floats, and back: N is 1, or a multiple of 4 with an address aligned to N elements or to 16 bytes.
template <int N>
__device__ inline void load(float (&to)[N], const float* from) {
    static_assert(N == 1 || N % 4 == 0);
    if constexpr (N == 1) {
        to[0] = *from;
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            float4 four = *reinterpret_cast<const float4*>(from + i);
            to[i] = four.x, to[i + 1] = four.y, to[i + 2] = four.z, to[i + 3] = four.w;
        }
    }
}
template <int N>
__device__ inline void load(float (&to)[N], const bf16* from) {
    static_assert(N == 1 || N == 4 || N == 8);
    if constexpr (N == 1) {
        to[0] = to_float(*from);
    } else if constexpr (N == 4) {
        uint2 two = *reinterpret_cast<const uint2*>(from);
        unpack_bf16(to[0], to[1], two.x);
        unpack_bf16(to[2], to[3], two.y);
    } else {
        unpack(to, *reinterpret_cast<const uint4*>(from));
    }
}
template <int N>
__device__ inline void store(float* to, const float (&from)[N]) {
    static_assert(N == 1 || N % 4 == 0);
    if constexpr (N == 1) {
        *to = from[0];
    } else {
#pragma unroll
        for (int i = 0; i < N; i += 4) *reinterpret_cast<float4*>(to + i) = {from[i], from[i + 1], from[i + 2], from[i + 3]};
    }
}
template <int N>
__device__ inline void store(bf16* to, const float (&from)[N]) {
    static_assert(N == 1 || N == 4 || N == 8);
    if constexpr (N == 1) *to = to_bf16(from[0]);
    else if constexpr (N == 4) *reinterpret_cast<uint2*>(to) = {pack_bf16(from[0], from[1]), pack_bf16(from[2], from[3])};
    else *reinterpret_cast<uint4*>(to) = pack(from);
}

// ------------------------------------------------------------------------------------------------------------ warps and blocks

__device__ inline int lane_of_thread() { return static_cast<int>(threadIdx.x) % WARP; }
__device__ inline int warp_of_thread() { return static_cast<int>(threadIdx.x) / WARP; }

/// Every lane gets the sum, or the max, over its group of LANES neighbouring lanes. All lanes of the warp take part.
template <int LANES = WARP>
__device__ inline float warp_sum(float x) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) x += __shfl_xor_sync(ALL_LANES, x, distance);
    return x;
}
template <int LANES = WARP>
__device__ inline float warp_max(float x) {
#pragma unroll
    for (int distance = LANES / 2; distance > 0; distance /= 2) x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, distance));
    return x;
}

/// Every thread of the block gets the sum over all. All take part; the block's size is a multiple of 32.
/// scratch (32)   shared memory; free again on return
__device__ inline float block_sum(float x, float* scratch) {
    x = warp_sum(x);
    if (lane_of_thread() == 0) scratch[warp_of_thread()] = x;
    __syncthreads();
    x = warp_sum(lane_of_thread() < static_cast<int>(blockDim.x) / WARP ? scratch[lane_of_thread()] : 0.0f);
    __syncthreads();
    return x;
}
/// Every thread of the block gets the max. Otherwise as block_sum.
__device__ inline float block_max(float x, float* scratch) {
    x = warp_max(x);
    if (lane_of_thread() == 0) scratch[warp_of_thread()] = x;
    __syncthreads();
    x = warp_max(lane_of_thread() < static_cast<int>(blockDim.x) / WARP ? scratch[lane_of_thread()] : -INFINITY);
    __syncthreads();
    return x;
}

// ------------------------------------------------------------------------------------------------------------------------ rows

/// The most threads of a block of Row's kernels: few enough for a thread to hold pieces of six tensors in registers.
template <bool BLOCK>
inline constexpr int ROW_BLOCK = BLOCK ? 384 : 128;

/// A row of C elements, held by a warp or, where it is long, by a whole block. Each thread holds up to VECTORS pieces of 16 bytes of
/// it; the pieces i of neighbouring threads lie side by side.
template <int VECTORS, bool BLOCK>
struct Row {
    int C, thread, threads;

    __device__ explicit Row(int channels)
        : C(channels), thread(BLOCK ? static_cast<int>(threadIdx.x) : lane_of_thread()), threads(BLOCK ? static_cast<int>(blockDim.x) : WARP) {}

    /// Which row this thread works on; the grid is rounded up to whole blocks, so it may be N or above.
    __device__ static int64_t index() {
        int64_t block = blockIdx.x;
        return BLOCK ? block : block * (static_cast<int>(blockDim.x) / WARP) + warp_of_thread();
    }
    /// Where piece i begins in the row; the thread has none when that is C or beyond.
    __device__ int at(int i) const { return (i * threads + thread) * VECTOR; }

    /// The thread's pieces of a row; those beyond its end are zeros.
    __device__ void load(Packed (&pieces)[VECTORS], const floatX* row) const {
#pragma unroll
        for (int i = 0; i < VECTORS; i++) pieces[i] = at(i) < C ? load_packed(row + at(i)) : Packed{};
    }
    __device__ void store(floatX* row, const Packed (&pieces)[VECTORS]) const {
#pragma unroll
        for (int i = 0; i < VECTORS; i++)
            if (at(i) < C) store_packed(row + at(i), pieces[i]);
    }
    /// The sum over the row's threads, in each of them.
    __device__ static float sum(float x) {
        if constexpr (BLOCK) return block_sum(x, shared_memory<float>());
        else return warp_sum(x);
    }
};

/// Calls body.operator()<VECTORS, BLOCK>(grid) with what suits N rows of C elements: kernels that use Row<VECTORS, BLOCK>.
template <class Body>
void for_rows(const char* op, int64_t N, int C, Body body) {
    const int pieces = C / VECTOR;
    if (pieces <= 4 * WARP) {
        Grid grid{dim3(static_cast<unsigned>(ceil_div(N, ROW_BLOCK<false> / WARP))), dim3(ROW_BLOCK<false>)};
        if (pieces <= WARP) body.template operator()<1, false>(grid);
        else if (pieces <= 2 * WARP) body.template operator()<2, false>(grid);
        else if (pieces <= 3 * WARP) body.template operator()<3, false>(grid);
        else body.template operator()<4, false>(grid);
        return;
    }
    require(pieces <= 4 * ROW_BLOCK<true>, op, ": C must be at most ", 4 * ROW_BLOCK<true> * VECTOR, " on this device, not ", C);
    unsigned threads = static_cast<unsigned>(ceil_div(ceil_div(pieces, 4), WARP) * WARP);
    body.template operator()<4, true>(Grid{dim3(static_cast<unsigned>(N)), dim3(threads), WARP * sizeof(float)});
}
