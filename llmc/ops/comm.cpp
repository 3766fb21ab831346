// The processes of a job on CPUs, by MPI. Messages go pairwise, all at once, so that an error can name the process whose did not come.
#include "llmc/ops/comm.h"
#include <omp.h>
#include <cstdlib>
#include <cstring>
#include "llmc/device/profile.h"
#include "llmc/io/launcher.h"
#include "llmc/io/log.h"
#include "llmc/io/mpi_job.h"
#include "llmc/io/process.h"

struct Comm::Transport {
    MpiJob job;
};

/// mpirun binds every process to one core, even a single one, unless it is told otherwise.
static void warn_when_bound(const Launcher& launcher) {
    cpu_set_t mask;
    if (launcher.rank > 0 || !std::getenv("OMPI_COMM_WORLD_SIZE") || sched_getaffinity(0, sizeof mask, &mask) != 0) return;
    const int cores = CPU_COUNT(&mask), online = static_cast<int>(sysconf(_SC_NPROCESSORS_ONLN));
    const char* asked = std::getenv("OMP_NUM_THREADS");
    const int threads = asked && *asked ? omp_get_max_threads() : online / std::max(1, launcher.local_count);
    if (cores >= std::min(threads, online)) return;
    warn(program_invocation_short_name, "mpirun bound this process to ", cores, " of ", online, " cores, and its ", threads, " threads share ", cores == 1 ? "it" : "them",
         "; give mpirun --bind-to none");
}

size_t comm_bytes() { return size_t{10} << 20; }   // measured, Open MPI 4.1.4: its pages, and what processes of one host share

Comm::Comm(const CommOptions& from) : host_name(own_host_name()), options(from) {
    const Launcher launcher = find_launcher();
    warn_when_bound(launcher);
    if (launcher.count == 1) return;
    transport.reset(new Transport{{launcher, options}});
    const MpiJob& job = transport->job;
    own_rank = job.rank(), processes = job.count();
    own_local_rank = job.local_rank(), local_processes = job.local_count();
}

Comm::~Comm() = default;

void Comm::exchange(float* parts, const float* block, int64_t segment, int64_t at, int64_t n, Stream) {
    Range range("exchange");
    require(at >= 0 && n >= 0 && at <= segment - n, "exchange: elements [at, at + n) must lie in a segment of ", segment, ", not at ", at, " with n of ", n);
    if (n == 0) return;
    const int64_t bytes = n * static_cast<int64_t>(sizeof(float));
    if (transport) {
        std::vector<MpiJob::Message> messages;
        for (int i = 1; i < processes; i++) {   // each process begins with another peer
            const int peer = (own_rank + i) % processes;
            messages.push_back({peer, parts + peer * n, block + peer * segment + at, bytes});
        }
        transport->job.transfer(messages, place, "exchange of gradients");
    }
    std::memcpy(parts + own_rank * n, block + own_rank * segment + at, bytes);
}

void Comm::gather(void* block, int64_t bytes, Stream) {
    Range range("gather");
    require(bytes >= 0, "gather: bytes must not be negative: ", bytes);
    if (transport) transport->job.gather(block, bytes, place, "gather of weights");
}

void Comm::collect(void* all, const void* mine, int64_t bytes) {
    require(bytes >= 0, "collect: bytes must not be negative: ", bytes);
    if (bytes == 0) return;
    std::memmove(static_cast<char*>(all) + own_rank * bytes, mine, bytes);
    if (transport) transport->job.gather(all, bytes, place, "collect");
}

void Comm::bring(void* host, const void* device, int64_t bytes, int owner) {
    require(bytes >= 0, "bring: bytes must not be negative: ", bytes);
    require(owner >= 0 && owner < processes, "bring: owner must be one of ", processes, " processes, not ", owner);
    if (bytes == 0) return;
    if (owner == 0) {
        if (own_rank == 0) std::memmove(host, device, bytes);
    } else if (own_rank == 0) {
        transport->job.transfer({{owner, host, nullptr, bytes}}, place, "bring");
    } else if (own_rank == owner) {
        transport->job.transfer({{0, nullptr, device, bytes}}, place, "bring");
    }
}

void Comm::wait(Stream) {}   // every call waits before it returns

bool Comm::all_fail_alike(const std::string& text) noexcept { return !transport || transport->job.all_fail_alike(text); }

void Comm::abort() noexcept {
    if (transport) transport->job.abort();
    _exit(2);
}
