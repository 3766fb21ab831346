// The processes of a job, on one machine or on many. Communication only moves bytes; sums are made by our own kernels (tree_sum in reduce.h), so
// that every count of processes gives the same bits, which no library's all-reduce does. comm.cpp is MPI, for processes on CPUs; comm.cu is NCCL,
// a GPU a process. A build that found neither is one process.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include "llmc/device/types.h"
#include "llmc/io/waiting.h"   // CommError, CommOptions

/// Bytes of a process's memory (on a GPU, of the device's) that a Comm of several processes takes.
size_t comm_bytes();

/// The calls are collective: every process of the job makes them, in the same order with the same sizes, unless it says otherwise. With one
/// process nothing is sent, and all of them are copies.
class Comm {
public:
    /// Meets the others. Which process this is comes from the launcher's environment (Open MPI, PMIx, Slurm, or RANK and WORLD_SIZE).
    /// Throws std::invalid_argument where a launcher started several and this build cannot reach them, CommError beyond the deadline.
    explicit Comm(const CommOptions& options = {});
    ~Comm();
    Comm(const Comm&) = delete;
    Comm& operator=(const Comm&) = delete;

    int rank() const { return own_rank; }
    int count() const { return processes; }
    int local_rank() const { return own_local_rank; }     ///< among the processes of this host: the GPU it takes
    int local_count() const { return local_processes; }
    const std::string& host() const { return host_name; }
    /// Where errors say it happened, from now on: "step 17". Local, as the members above.
    void set_place(std::string where) { place = std::move(where); }

    /// An all-to-all: every process sends to every other the part of its block that is theirs.
    ///
    /// parts (count, n)        =   elements [at, at + n) of segment `rank` of everyone's block, in the order of ranks
    /// block (count, segment)
    void exchange(float* parts, const float* block, int64_t segment, int64_t at, int64_t n, Stream stream);

    /// An all-gather in place. block (count, bytes): row r comes from process r.
    void gather(void* block, int64_t bytes, Stream stream);

    /// all (count, bytes) = the `bytes` of everyone's `mine`, in the order of ranks; both on the host. Waits.
    void collect(void* all, const void* mine, int64_t bytes);

    /// host (bytes) at process 0 = device (bytes) at process `owner`. Waits; the arguments of the other processes are ignored.
    void bring(void* host, const void* device, int64_t bytes, int owner);

    /// Waits until everything on the stream is done: device_wait() with a deadline. Throws CommError.
    void wait(Stream stream);

    /// For a process that ends with an error: whether all processes end with this same text; it waits two seconds for their answers. If so, one
    /// line is enough, and each can end as it would alone. Otherwise each that has an error prints it, and abort() ends the others.
    bool all_fail_alike(const std::string& text) noexcept;
    /// Ends every process of the job, this one with exit code 2.
    [[noreturn]] void abort() noexcept;

private:
    struct Transport;
    std::unique_ptr<Transport> transport;                 // null: one process
    int own_rank = 0, processes = 1, own_local_rank = 0, local_processes = 1;
    std::string host_name, place = "the start";
    CommOptions options;
};
