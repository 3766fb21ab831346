// The processes of an MPI job: how they connect, exchange bytes in host memory, and end.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>
#include "llmc/io/launcher.h"
#include "llmc/io/waiting.h"

/// One thread makes all calls, in the same order in every process.
class MpiJob {
public:
    /// Whether this build has MPI.
    static bool built_in();

    /// Connects to the other processes. Throws std::invalid_argument when the launcher is not MPI's or this build has no MPI, CommError after
    /// the deadline (MPI_Init cannot be interrupted: if it hangs, the process prints that and exits with code 2).
    MpiJob(const Launcher& launcher, const CommOptions& options);
    /// The last collective call (MPI_Finalize), skipped while an exception is thrown or after the job has failed.
    ~MpiJob();
    MpiJob(const MpiJob&) = delete;
    MpiJob& operator=(const MpiJob&) = delete;

    int rank() const { return own_rank; }
    int count() const { return static_cast<int>(hosts.size()); }
    /// Among the processes of this host.
    int local_rank() const { return static_cast<int>(std::count(hosts.begin(), hosts.begin() + own_rank, hosts[own_rank])); }
    int local_count() const { return static_cast<int>(std::count(hosts.begin(), hosts.end(), hosts[own_rank])); }

    struct Message {
        int peer;
        void* receive;        ///< null: nothing
        const void* send;     ///< null: nothing
        int64_t bytes;
    };
    /// Starts all sends and receives, and waits for them. A peer is never this process. Throws CommError.
    void transfer(const std::vector<Message>& messages, const std::string& place, const char* phase);

    /// All-gather in place: all (count, bytes); each process provides its own segment.
    void gather(void* all, int64_t bytes, const std::string& place, const char* phase);

    /// Whether all processes call it with the same text within two seconds. Only the destructor and abort() may be called after it.
    bool all_fail_alike(const std::string& text) noexcept;
    /// Ends every process of the job, this one with exit code 2.
    [[noreturn]] void abort() noexcept;

private:
    struct Transport;
    std::unique_ptr<Transport> transport;
    int own_rank = 0;
    std::vector<std::string> hosts;   // by rank
};
