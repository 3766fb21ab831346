// Instructions that CUDA C++ has no function for: PTX behind small functions, and the block's shared memory.
// test/emulator/llmc/device/ptx.h has the same functions for a machine without a GPU; a function here needs its twin there.
#pragma once
#include <cuda.h>
#include <cstdint>
#include "llmc/device/types.h"

/// The beginning of the block's dynamic shared memory, Grid::shared bytes. There is no other: `__shared__` arrays are not used,
/// so that the emulator can guard every byte. It begins at a multiple of 1024 bytes.
template <class T>
__device__ inline T* shared_memory() {
    extern __shared__ __align__(1024) uint4 dynamic_shared_memory[];
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

// -------------------------------------------------------------------------------------------- asynchronous copies (cp.async)

/// Starts copying 16 bytes from device to shared memory, bypassing registers and L1; writes zeros and reads nothing
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

// ------------------------------------------------------------------------- Hopper: barriers in shared memory (mbarrier)
// All from here on is for compute capability 9.0; wgmma and setmaxnreg need code for sm_90a.

/// A barrier of 8 bytes in shared memory goes through phases. One is over when `arrivals` threads have arrived and all the bytes
/// that they told it to expect have been copied; then the next begins.
__device__ inline void mbarrier_init(uint64_t* barrier, int arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)), "r"(arrivals) : "memory");
}
/// After the last mbarrier_init: TMA must see the barriers too. Other threads see them after __syncthreads.
__device__ inline void mbarrier_init_fence() { asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory"); }

__device__ inline void mbarrier_arrive(uint64_t* barrier) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier)) : "memory");
}
/// Arrives, and adds to what the phase expects.
__device__ inline void mbarrier_arrive_expect(uint64_t* barrier, int bytes) {
    asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes) : "memory");
}
/// Waits until the phase of this parity is over: 0 for the first, 1 for the second, and so on in turn. Of a new barrier the phase
/// before the first, of parity 1, is over. What was copied, and what others wrote before they arrived, is then seen.
__device__ inline void mbarrier_wait(uint64_t* barrier, uint32_t parity) {
    uint32_t over;
    do {
        asm volatile(
            "{\n.reg .pred over;\nmbarrier.try_wait.parity.shared::cta.b64 over, [%1], %2;\nselp.u32 %0, 1, 0, over;\n}\n"
            : "=r"(over)
            : "r"(shared_address(barrier)), "r"(parity)
            : "memory");
    } while (!over);
}

// --------------------------------------------------------------------------- Hopper: TMA, the engine that copies boxes of tensors
// One thread asks for a whole box. A box whose rows are 128 bytes lies in shared memory row after row, swizzled: bits 4 to 6 of an
// address (which 16 bytes of the row) are XORed with bits 7 to 9 (which row of eight). So the pieces of one column in eight rows come
// from different banks.

/// Starts copying the box at (x, y, z) of a tensor to shared memory (128-byte aligned; 1024 for the rows to be swizzled as counted
/// from its beginning). What lies outside of the tensor becomes zeros. The barrier's phase gets the bytes of the whole box.
__device__ inline void tensor_load(void* shared, const CUtensorMap* map, int x, int y, int z, uint64_t* barrier) {
    asm volatile("cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];"
                 :
                 : "r"(shared_address(shared)), "l"(map), "r"(x), "r"(y), "r"(z), "r"(shared_address(barrier))
                 : "memory");
}
/// The same for `bytes` that lie together; both addresses and the number are multiples of 16.
__device__ inline void bulk_load(void* shared, const void* global, int bytes, uint64_t* barrier) {
    asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];"
                 :
                 : "r"(shared_address(shared)), "l"(global), "r"(bytes), "r"(shared_address(barrier))
                 : "memory");
}
/// Starts copying a box from shared memory to (x, y, z) of a tensor; what lies outside is left out. Threads that wrote the box each
/// need an async_fence, and a barrier after it, before this.
__device__ inline void tensor_store(const CUtensorMap* map, const void* shared, int x, int y, int z) {
    asm volatile("cp.async.bulk.tensor.3d.global.shared::cta.bulk_group [%0, {%2, %3, %4}], [%1];"
                 :
                 : "l"(map), "r"(shared_address(shared)), "r"(x), "r"(y), "r"(z)
                 : "memory");
}
/// Ends a group of this thread's stores.
__device__ inline void tensor_store_commit() { asm volatile("cp.async.bulk.commit_group;" ::: "memory"); }
/// Waits until shared memory is no longer read by any of this thread's groups.
__device__ inline void tensor_store_wait() { asm volatile("cp.async.bulk.wait_group.read 0;" ::: "memory"); }

/// What this thread wrote to shared memory is seen by TMA and the tensor cores too.
__device__ inline void async_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

// --------------------------------------------------------------------- Hopper: tensor cores, a warpgroup together (wgmma)
// 128 threads, four warps of which the first has a number divisible by 4, start a wgmma, which runs while they go on. Between
// wgmma_fence and the wgmma_wait that covers it, no thread touches the registers of a wgmma, nor the shared memory that it reads.

/// An operand in shared memory that begins at `shared`: rows of 64 elements (128 bytes), swizzled as TMA does it, the next row
/// 128 bytes on.
///     K-major   a row holds 64 elements of the summed index K, and rows are M or N; `block` is not used
///     MN-major  rows are K, and a row holds 64 elements of N; the next 64 begin `block` bytes on
/// descriptor_at moves the beginning by a multiple of 16 bytes: 16 elements of K are 32 bytes in K-major, 2048 in MN-major. Whole
/// eights of rows begin at multiples of 1024 bytes.
__device__ inline uint64_t matrix_descriptor(const void* shared, int block) {
    const uint64_t begin = (shared_address(shared) & 0x3ffffu) >> 4, leading = static_cast<uint64_t>(block) >> 4;
    const uint64_t eight_rows = 1024 >> 4, swizzle_128 = 1;
    return begin | leading << 16 | eight_rows << 32 | swizzle_128 << 62;
}
__device__ inline uint64_t descriptor_at(uint64_t descriptor, int bytes) { return descriptor + static_cast<uint64_t>(bytes >> 4); }

/// Before the first wgmma, and whenever registers of the next one were touched by anything else.
__device__ inline void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Ends a group of wgmmas.
__device__ inline void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }

/// A barrier for the compiler: it must have x in its register here, knows nothing of its value afterwards, and moves no use of it
/// across.
__device__ inline void settle(float& x) { asm volatile("" : "+f"(x)::"memory"); }
__device__ inline void settle(uint32_t& x) { asm volatile("" : "+r"(x)::"memory"); }
template <class X, int ROWS>
__device__ inline void settle(X (&registers)[ROWS][4]) {
#pragma unroll
    for (int i = 0; i < ROWS; i++)
#pragma unroll
        for (int j = 0; j < 4; j++) settle(registers[i][j]);
}
/// Waits until at most NEWER groups, the youngest, are under way. `registers` are those of the wgmmas that are then complete.
template <int NEWER, class... Registers>
__device__ inline void wgmma_wait(Registers&... registers) {
    asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(NEWER) : "memory");
    (settle(registers), ...);
}

/// Starts d (64, N) = a (64, 16) b (16, N), or += when `add`: a and b in bf16, K-major, in shared memory; d in fp32. Warp w of the
/// warpgroup holds rows 16 w to 16 w + 15 of d. With g = lane / 4 and t = 2 (lane % 4), lane holds
///     d[n][0], d[n][1] = (16 w + g, 8 n + t), (16 w + g, 8 n + t + 1)               d[n][2], d[n][3] the same of row 16 w + g + 8
template <int N>
__device__ void wgmma(float (&d)[N / 8][4], uint64_t a, uint64_t b, bool add);
/// Starts d (64, N) += a (64, 16) b (16, N): a in registers, warp w's 16 rows as in mma_m16n8k16, b MN-major in shared memory.
template <int N>
__device__ void wgmma_add(float (&d)[N / 8][4], const uint32_t (&a)[4], uint64_t b);

#define ACCUMULATORS_4(d, n) "+f"(d[n][0]), "+f"(d[n][1]), "+f"(d[n][2]), "+f"(d[n][3])
#define ACCUMULATORS_16(d, n) ACCUMULATORS_4(d, n), ACCUMULATORS_4(d, n + 1), ACCUMULATORS_4(d, n + 2), ACCUMULATORS_4(d, n + 3)
#define ACCUMULATORS_32(d) ACCUMULATORS_16(d, 0), ACCUMULATORS_16(d, 4)
#define ACCUMULATORS_64(d) ACCUMULATORS_16(d, 0), ACCUMULATORS_16(d, 4), ACCUMULATORS_16(d, 8), ACCUMULATORS_16(d, 12)

template <>
__device__ inline void wgmma<64>(float (&d)[8][4], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %34, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "%32, %33, add, 1, 1, 0, 0;\n}\n"
        : ACCUMULATORS_32(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
template <>
__device__ inline void wgmma<128>(float (&d)[16][4], uint64_t a, uint64_t b, bool add) {
    asm volatile(
        "{\n.reg .pred add;\nsetp.ne.b32 add, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "%64, %65, add, 1, 1, 0, 0;\n}\n"
        : ACCUMULATORS_64(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
}
template <>
__device__ inline void wgmma_add<64>(float (&d)[8][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31}, "
        "{%32, %33, %34, %35}, %36, 1, 1, 1, 1;\n"
        : ACCUMULATORS_32(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}
template <>
__device__ inline void wgmma_add<128>(float (&d)[16][4], const uint32_t (&a)[4], uint64_t b) {
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 "
        "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15,"
        " %16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31,"
        " %32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47,"
        " %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63}, "
        "{%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
        : ACCUMULATORS_64(d)
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
}

#undef ACCUMULATORS_64
#undef ACCUMULATORS_32
#undef ACCUMULATORS_16
#undef ACCUMULATORS_4

/// Lowers (dec) or raises (inc) the registers of a thread of this warpgroup to N, a multiple of 8. All of its warps do it.
template <int N>
__device__ inline void setmaxnreg_dec() {
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(N));
}
template <int N>
__device__ inline void setmaxnreg_inc() {
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(N));
}
