// The processes of a job that MPI started: how they meet, send each other bytes, and end. It knows no device.
#pragma once
#include <algorithm>
#include <cstdint>
#include <memory>
#include <string>
#include <vector>
#include "llmc/io/launcher.h"
#include "llmc/io/waiting.h"

/// Calls are made by one thread, in the same order in every process.
class MpiJob {
public:
    /// Whether this build found MPI.
    static bool built_in();

    /// Meets the others. Throws std::invalid_argument where they are not MPI's or this build has none, CommError beyond the deadline (where
    /// MPI_Init itself waits, which nothing can interrupt, it says so and ends the process with exit code 2).
    MpiJob(const Launcher& launcher, const CommOptions& options);
    /// The last call together, unless an error is on its way or the job has failed.
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
    /// Sends and receives them all at once, and waits. The peers are others. Throws CommError.
    void transfer(const std::vector<Message>& messages, const std::string& place, const char* phase);

    /// all (count, bytes) = everyone's segment, of which each brings its own, in place.
    void gather(void* all, int64_t bytes, const std::string& place, const char* phase);

    /// Whether all processes call it with this text within two seconds. No call after it but the destructor, and abort().
    bool all_fail_alike(const std::string& text) noexcept;
    /// Ends every process of the job, this one with exit code 2.
    [[noreturn]] void abort() noexcept;

private:
    struct Transport;
    std::unique_ptr<Transport> transport;
    int own_rank = 0;
    std::vector<std::string> hosts;   // by rank
};
