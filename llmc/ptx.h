// What CUDA C++ has no word for: PTX behind small functions, and the block's shared memory.
// test/emulator/llmc/ptx.h has the same functions for a machine without a GPU; a function here needs its twin there.
#pragma once
#include <cstdint>
#include "llmc/types.h"

/// The block's shared memory, as many bytes as launch() was given, at its beginning. There is no other: `__shared__` arrays
/// are not used, so that the emulator can guard every byte.
template <class T>
__device__ inline T* shared_memory() {
    extern __shared__ uint4 dynamic_shared_memory[];
    return reinterpret_cast<T*>(dynamic_shared_memory);
}

__device__ inline uint32_t shared_address(const void* pointer) { return static_cast<uint32_t>(__cvta_generic_to_shared(pointer)); }

/// Two floats rounded to bf16, `low` in the lower half.
__device__ inline uint32_t pack_bf16(float low, float high) {
    uint32_t both;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(both) : "f"(high), "f"(low));
    return both;
}

/// 2^x and 1/x by the special function unit: relative error 2^-22 and 2^-23.
__device__ inline float fast_exp2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
__device__ inline float fast_reciprocal(float x) {
    float y;
    asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---------------------------------------------------------------------------------------------- tensor cores, a warp together

/// Four 8 x 8 matrices of 16-bit elements from shared memory. Lane 8 i + j gives the address of row j of matrix i (16 bytes,
/// aligned); lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of row l / 4 of matrix i in r[i].
__device__ inline void ldmatrix_x4(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}
/// The same, each matrix transposed: lane l gets elements 2 (l % 4) and 2 (l % 4) + 1 of column l / 4.
__device__ inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(shared_address(row))
                 : "memory");
}

/// d += a b: a is 16 x 16 and b 16 x 8 in bf16, d 16 x 8 in fp32. With g = lane / 4 and t = 2 (lane % 4), lane holds
///     a[0] = (g, t..t+1)   a[1] = (g + 8, t..t+1)   a[2] = (g, t + 8..t + 9)   a[3] = (g + 8, t + 8..t + 9)
///     b[0] = (t..t+1, g)   b[1] = (t + 8..t + 9, g)
///     d[0], d[1] = (g, t), (g, t + 1)               d[2], d[3] = (g + 8, t), (g + 8, t + 1)
__device__ inline void mma_m16n8k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

// ------------------------------------------------------------------------------ copies that go on while the thread computes

/// Starts copying 16 bytes from device to shared memory, past the registers and the first cache; writes zeros and reads nothing
/// unless `wanted`. Both addresses are 16-byte aligned.
__device__ inline void copy_async(void* shared, const void* global, bool wanted = true) {
    int bytes = wanted ? 16 : 0;
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(shared_address(shared)), "l"(global), "r"(bytes) : "memory");
}
/// Ends a group of copies of this thread.
__device__ inline void copy_async_commit() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// Waits until at most NEWER groups of this thread are under way. Other threads see what arrived after the next barrier.
template <int NEWER>
__device__ inline void copy_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(NEWER) : "memory");
}

// ------------------------------------------------------------------------------------------------------- parts of a block

/// A barrier (id 1 to 15) for `threads` threads of the block, a multiple of 32.
__device__ inline void named_barrier(int id, int threads) { asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory"); }
