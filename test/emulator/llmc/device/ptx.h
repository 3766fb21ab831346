// llmc/device/ptx.h for the emulator: the same functions, in plain C++, under the scheduler of emulator.h.
#pragma once
#include <cmath>
#include <cstdint>
#include <cuda.h>
#include <cuda_runtime.h>
#include "llmc/device/types.h"

template <class T>
T* shared_memory() { return static_cast<T*>(emulated_shared_memory()); }

inline uint32_t pack_bf16(float low, float high) { return to_bf16(low).bits | static_cast<uint32_t>(to_bf16(high).bits) << 16; }

// As far off as the special function unit may be, some way for each x; 2^0 is exact, and what is below the normal numbers becomes zero.
inline float emulated_approximation(float exact, float x, double max_error) {
    uint32_t bits;
    std::memcpy(&bits, &x, sizeof bits);
    const double share = static_cast<int32_t>(bits * 2654435761u) * 0x1p-31;
    const float y = static_cast<float>(exact * (1 + share * max_error));
    return std::fabs(y) < 0x1p-126f ? std::copysign(0.0f, y) : y;
}
inline float fast_exp2(float x) { return x == 0 ? 1 : emulated_approximation(std::exp2(x), x, 0x1p-22); }
inline float fast_reciprocal(float x) { return emulated_approximation(1 / x, x, 0x1p-23); }

// ---------------------------------------------------------------------------------------------- tensor cores, a warp together

struct EmulatedLdmatrix {
    const void* row;
    uint32_t (*r)[4];
};
template <bool TRANSPOSED>
void emulated_ldmatrix(EmulatedLanes& lanes) {
    auto lane = [&](int i) { return static_cast<EmulatedLdmatrix*>(lanes[i]); };
    for (int matrix = 0; matrix < 4; matrix++) {
        uint16_t element[8][8];
        for (int row = 0; row < 8; row++) std::memcpy(element[row], lane(8 * matrix + row)->row, 16);
        for (int i = 0; i < 32; i++) {
            int g = i / 4, t = 2 * (i % 4);
            uint16_t low = TRANSPOSED ? element[t][g] : element[g][t], high = TRANSPOSED ? element[t + 1][g] : element[g][t + 1];
            (*lane(i)->r)[matrix] = low | static_cast<uint32_t>(high) << 16;
        }
    }
}
template <bool TRANSPOSED>
void ldmatrix_of(uint32_t (&r)[4], const void* row) {
    if (reinterpret_cast<uintptr_t>(row) % 16) emulation_error("ldmatrix: a row's address is not a multiple of 16");
    EmulatedLdmatrix mine{row, &r};
    emulated_warp(0xffffffffu, &mine, emulated_ldmatrix<TRANSPOSED>, TRANSPOSED ? "ldmatrix.trans" : "ldmatrix");
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) { ldmatrix_of<false>(r, row); }
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) { ldmatrix_of<true>(r, row); }

inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    EmulatedMma mine{d, a, b};
    emulated_warp(0xffffffffu, &mine, emulated_mma, "mma");
}

// -------------------------------------------------------------------------------------------- asynchronous copies (cp.async)

inline void copy_async(void* shared, const void* global, bool wanted = true) {
    emulated_copy_async(shared, global, wanted ? 16 : 0);
}
inline void copy_async_commit() { emulated_copy_commit(); }
template <int NEWER>
void copy_async_wait() { emulated_copy_wait(NEWER); }

// ------------------------------------------------------------------------------------------------------- parts of a block

inline void named_barrier(int id, int threads, std::source_location where = std::source_location::current()) {
    if (id < 1 || id > 15 || threads % 32) emulation_error("named_barrier: id must be 1 to 15 and threads a multiple of 32");
    emulated_barrier(id, threads, 0, "named_barrier", where);
}

// ------------------------------------------------------------------------- Hopper: barriers in shared memory (mbarrier)

inline void mbarrier_init(uint64_t* barrier, int arrivals) { emulated_mbarrier_init(barrier, arrivals); }
inline void mbarrier_init_fence() { emulated_mbarrier_init_fence(); }
inline void mbarrier_arrive(uint64_t* barrier) { emulated_mbarrier_arrive(barrier, 0); }
inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) { emulated_mbarrier_arrive(barrier, bytes); }
inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) { emulated_mbarrier_wait(barrier, parity); }

// --------------------------------------------------------------------------- Hopper: TMA, the engine that copies boxes of tensors

inline void tensor_load(void* shared, const CUtensorMap* map, int x, int y, int z, uint64_t* barrier) {
    emulated_tensor_load(shared, *map, x, y, z, barrier);
}
inline void bulk_load(void* shared, const void* global, int bytes, uint64_t* barrier) {
    emulated_bulk_load(shared, global, static_cast<size_t>(bytes), barrier);
}
inline void tensor_store(const CUtensorMap* map, const void* shared, int x, int y, int z) {
    emulated_tensor_store(*map, shared, x, y, z);
}
inline void tensor_store_commit() { emulated_tensor_store_commit(); }
inline void tensor_store_wait() { emulated_tensor_store_wait(); }
inline void async_fence() { emulated_async_fence(); }

// --------------------------------------------------------------------- Hopper: tensor cores, a warpgroup together (wgmma)

inline uint64_t matrix_descriptor(const void* shared, int block) {
    const uint64_t begin = (emulated_shared_address(shared) & 0x3ffffu) >> 4, leading = static_cast<uint64_t>(block) >> 4;
    return begin | leading << 16 | uint64_t{1024 >> 4} << 32 | uint64_t{1} << 62;
}
inline uint64_t descriptor_at(uint64_t descriptor, int bytes) { return descriptor + static_cast<uint64_t>(bytes >> 4); }

inline void wgmma_fence() { emulated_wgmma_fence(); }
inline void wgmma_commit() { emulated_wgmma_commit(); }
template <int NEWER, class... Registers>
void wgmma_wait(Registers&...) { emulated_wgmma_wait(NEWER); }
template <class X>
void settle(X&) {}

template <int N>
void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add) { emulated_wgmma({N, d[0], nullptr, a, b, add}); }
template <int N>
void wgmma_add(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b) { emulated_wgmma({N, d[0], a, 0, b, true}); }

template <int N>
void setmaxnreg_dec() { emulated_registers(N, false); }
template <int N>
void setmaxnreg_inc() { emulated_registers(N, true); }
