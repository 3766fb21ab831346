// The device that the ops run on: its memory, copies to and from it, captured work (CUDA graphs), its name. On the CPU it is the host itself.
#pragma once
#include <cstddef>
#include <memory>
#include <string>
#include "llmc/device/types.h"

/// Called first in main(), before any thread exists. On the CPU it limits how long OpenMP's threads spin while they wait for each other:
/// on a busy machine a spinning thread holds the core that the thread it waits for needs. libgomp reads its limit before main() and
/// never again, so the program calls exec on itself, with GOMP_SPINCOUNT set; not where the user has set that or OMP_WAIT_POLICY.
/// argv: main()'s.
void device_begin(char** argv);

/// Zeroed memory, aligned to 256 bytes (on the CPU to pages, every one touched). Throws std::bad_alloc when there is not enough.
void* device_alloc(size_t bytes);
/// The memory that device_alloc(bytes) takes: whole pages.
size_t device_alloc_bytes(size_t bytes);
void device_free(void* memory);
void device_zero(void* memory, size_t bytes, Stream stream);
/// Copies from and to the host wait: when they return, the data is there.
void copy_to_device(void* device, const void* host, size_t bytes, Stream stream);
void copy_to_host(void* host, const void* device, size_t bytes, Stream stream);
void copy_on_device(void* to, const void* from, size_t bytes, Stream stream);
/// Waits until everything on the stream is done.
void device_wait(Stream stream);

/// Copies from the host that do not wait for the stream: the bytes are in pinned memory when the call returns, so the caller may
/// overwrite its own. Only where `slots` copies are still under way, the next one waits for the oldest of them.
class Uploads {
public:
    /// bytes: of the largest copy
    Uploads(size_t bytes, int slots);
    ~Uploads();
    Uploads(const Uploads&) = delete;
    Uploads& operator=(const Uploads&) = delete;
    void copy(void* device, const void* host, size_t bytes, Stream stream);

private:
    struct Ring;
    std::unique_ptr<Ring> ring;   // null on the CPU
};

/// Work that a stream does again and again: captured once as a CUDA graph, then replayed in one launch. On the CPU the work itself runs.
/// Ops, pointers, sizes and scalars must be the same each time. What changes is read from device memory.
class Capture {
public:
    Capture();
    ~Capture();
    Capture(const Capture&) = delete;
    Capture& operator=(const Capture&) = delete;

    /// The first run does the work directly (libraries choose kernels and allocate then), the second captures it, later ones replay it.
    template <class Work>
    void run(Stream stream, Work work) {
        if (replay(stream)) return;
        const bool capturing = begin(stream);
        try {
            work();
        } catch (...) {
            if (capturing) abandon(stream);
            throw;
        }
        if (capturing) end(stream);
    }
    /// Drops the graph: the next run is a first one again.
    void forget();

private:
    bool replay(Stream stream);
    bool begin(Stream stream);
    void end(Stream stream);
    void abandon(Stream stream);
    struct Graph;
    std::unique_ptr<Graph> graph;   // null on the CPU, and before the first run
};

/// One line for people: processor, threads, instruction set; or the GPU's name.
std::string device_name();
/// Bytes that device_alloc could still give to each of `processes` processes of this host: they share the memory of a CPU, and have a GPU each.
size_t device_free_bytes(int processes = 1);
/// Of that memory, what a run with micro-batches of so many tokens takes besides the tensors: on the CPU the process as it stands
/// and what it will load and read ahead, on a GPU cuBLASLt's workspace.
size_t device_overhead_bytes(int64_t tokens);
