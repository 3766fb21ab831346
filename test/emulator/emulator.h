// Runs CUDA kernels on the CPU, one thread of a block a fibre, so that their faults show on a machine without a GPU.
//
// Blocks run one after another on the calling thread, in shuffled order. The threads of a block are fibres: one runs until it
// has to wait for others (a barrier, a shuffle, any warp-wide operation) or ends, then another is drawn. In every other block one warp runs as
// long as it can, before any other does. So a missing barrier lets a thread run far ahead, or stay far behind. The order comes from
// EMULATOR_SEED (1) and is the same at every run.
//   - Shared memory is a heap block of exactly the launched size, poisoned before every block; device memory is poisoned when
//     allocated, and closed to the host by AddressSanitizer while no kernel and no copy runs; what tests put around tensors is closed to kernels.
//   - A barrier or warp operation that can never complete, or that a mask makes undefined, is an error that names the kernel,
//     block and thread, and ends the launch. So is an argument that points to host memory.
//   - Asynchronous work is done as late as it may be: cp.async, TMA and wgmma at the wait, and until then the target is poison; kernels and
//     copies when the host waits for the stream. So a result that is read too early, and an input that is overwritten too early, shows.
//   - TMA and the tensor cores see what threads wrote to shared memory only after their async_fence.
// What it cannot show: races between blocks, and within a warp between threads that a barrier would not order either.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <source_location>
#include <string>
#include "cuda.h"

struct EmulatedDim {
    unsigned x = 1, y = 1, z = 1;
    constexpr EmulatedDim(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};

/// Of the thread that runs now.
inline thread_local EmulatedDim threadIdx, blockIdx, blockDim, gridDim;

/// Runs `thread` for every thread of the grid. Throws std::runtime_error where the behaviour is undefined.
void emulate_grid(EmulatedDim grid, EmulatedDim block, size_t shared_bytes, const std::function<void()>& thread);

/// The innermost NVTX range, by which errors name the kernel.
void emulator_push_name(const char* name);
void emulator_pop_name();

// -------------------------------------------------------------------------------------------------------------------- streams

using EmulatedWork = std::function<void()>;

/// Queues work of a stream, under the name of the innermost NVTX range; there is one queue for all streams.
void emulated_queue(EmulatedWork work);
/// The same for work that needs another process: it is called again and again until it returns true.
using EmulatedPoll = std::function<bool()>;
void emulated_queue_polled(EmulatedPoll work);
/// Does the first work in the queue, or all of it. An error in it empties the queue.
void emulated_advance();
void emulated_finish();
/// Does the queued work, up to work that waits for another process. Returns whether the queue was empty before.
bool emulated_poll();
/// The work under its present name: for a graph, which is queued later.
EmulatedWork emulated_named(EmulatedWork work);

// ----------------------------------------------------------------------------------------- called by the thread that runs now

[[noreturn]] void emulation_error(const std::string& what);

void* emulated_shared_memory();

/// Waits for `threads` threads at barrier `id`, or for all that have not ended when 0. Returns the sum of their values.
int emulated_barrier(int id, int threads, int value, const char* what, std::source_location where);

/// Brings the lanes of `mask` together. When the last has come, `exchange` runs once with the `mine` of each lane (null for
/// lanes that are not in the mask); then all go on.
using EmulatedLanes = void* [32];
void emulated_warp(unsigned mask, void* mine, void (*exchange)(EmulatedLanes& lanes), const char* what);

/// A lane's registers of llmc/device/ptx.h's mma_m16n8k16, and the mma of all lanes once they have met.
struct EmulatedMma {
    float* d;
    const uint32_t *a, *b;
};
void emulated_mma(EmulatedLanes& lanes);

/// Asynchronous copies of this thread: started, closed to a group, waited for until `newer` groups are left.
void emulated_copy_async(void* shared, const void* global, size_t bytes);
void emulated_copy_commit();
void emulated_copy_wait(int newer);

// --------------------------------------------------------------------------------------------------------------------- Hopper
// llmc/device/ptx.h says what each of these is.

/// In bytes, as hardware counts them: the block's shared memory begins at 1024, after what the driver keeps.
uint32_t emulated_shared_address(const void* shared);

void emulated_mbarrier_init(void* barrier, int arrivals);
void emulated_mbarrier_init_fence();
void emulated_mbarrier_arrive(void* barrier, int bytes);
void emulated_mbarrier_wait(void* barrier, uint32_t parity);

/// Copies happen when somebody waits for the barrier, or for the stores.
void emulated_tensor_load(void* shared, const CUtensorMap& map, int x, int y, int z, void* barrier);
void emulated_bulk_load(void* shared, const void* global, size_t bytes, void* barrier);
void emulated_tensor_store(const CUtensorMap& map, const void* shared, int x, int y, int z);
void emulated_tensor_store_commit();
void emulated_tensor_store_wait();
void emulated_async_fence();

/// A warp's part of a wgmma of 64 x N x 16. It is done, and reads its operands, when the warp waits for its group.
///     d           N / 8 times 4 floats of this thread
///     a, a_left   a descriptor, and null; or 4 registers of this thread, and then a is not used
struct EmulatedWgmma {
    int N;
    float* d;
    const uint32_t* a_left;
    uint64_t a, b;
    bool add;
};
void emulated_wgmma_fence();
void emulated_wgmma(const EmulatedWgmma& wgmma);
void emulated_wgmma_commit();
void emulated_wgmma_wait(int newer);

/// setmaxnreg: registers of a thread from now on; all warps of a warpgroup do it.
void emulated_registers(int count, bool grow);

// ------------------------------------------------------------------------------------------------------------- device memory

/// Fills memory with a pattern that is NaN in every float type and a wild index.
void emulator_poison(void* memory, size_t bytes);

void* emulated_malloc(size_t bytes);
/// False when there is no such block.
bool emulated_free(void* memory);
bool is_device_memory(const void* pointer);

/// Kernels may not touch these bytes of device memory, copies may: the sentinels that a test puts around a tensor.
void emulator_guard(const void* memory, size_t bytes);

/// Pinned host memory, which copies may read and write after the call that started them.
void* emulated_malloc_host(size_t bytes);
bool emulated_free_host(void* memory);
bool is_pinned_memory(const void* pointer, size_t bytes);

/// While one lives, device memory is accessible: for kernels, and for the copies and libraries that are emulated.
struct DeviceAccess {
    DeviceAccess();
    ~DeviceAccess();
    DeviceAccess(const DeviceAccess&) = delete;
    DeviceAccess& operator=(const DeviceAccess&) = delete;
};
