// NCCL: a GPU a process, the one of its local rank. The communicator is nonblocking: no call of NCCL waits for the others by itself, so that each
// call has our deadline, the start too. NCCL has no watchdog of its own, and ends no kernel whose partner is gone: an error here aborts the
// communicator first, or the stream would never finish. Its calls stay outside captured graphs, on a stream of their own; that and the caller's
// stream wait for each other by events. A nonblocking communicator launches on a thread of its own, whose cudaStreamPerThread is not the caller's.
#include "llmc/ops/comm.h"
#include <algorithm>
#include <cstring>
#include <fstream>
#include <iterator>
#include <random>
#include <utility>
#include <vector>
#include "llmc/device/cuda_check.h"
#include "llmc/device/cuda_common.h"
#include "llmc/device/device.h"
#include "llmc/device/memory.h"
#include "llmc/io/error.h"
#include "llmc/io/file.h"
#include "llmc/io/launcher.h"
#include "llmc/io/mpi_job.h"
#include "llmc/io/process.h"
#ifndef NO_NCCL
#include <nccl.h>
#endif

/// Bytes of the device buffer through which host data goes, a piece at a time.
static constexpr int64_t BOUNCE = int64_t{4} << 20;

#ifndef NO_NCCL

// --------------------------------------------------------------------------------------------- how processes meet without MPI

/// By a file that all see: each process writes a nonce beside it, rank 0 waits for all of them and writes the file, with all nonces and NCCL's id. A
/// process takes an id only together with its own nonce, so that what an earlier run left behind is never taken for this one's.
class MeetingFile {
public:
    MeetingFile(const std::string& file, int own, int processes) : path(file), rank(own), count(processes), nonces(static_cast<size_t>(processes)) {
        std::random_device random;
        for (int i = 0; i < 4; i++) nonce += concat(std::hex, random(), ".");
        write(of_rank(rank), nonce + "\n");
    }
    /// Removes this process's nonce, and at rank 0 the file; the others have read it, or have ended.
    ~MeetingFile() {
        unlink(of_rank(rank).c_str());
        if (rank == 0) unlink(path.c_str());
    }
    MeetingFile(const MeetingFile&) = delete;
    MeetingFile& operator=(const MeetingFile&) = delete;

    /// Rank 0: writes the file as soon as all nonces have been seen, and again when one has changed: the first was an earlier run's.
    void offer(const ncclUniqueId& id) {
        std::string all;
        missing.clear();
        for (int r = 0; r < count; r++) {
            std::string& theirs = nonces[static_cast<size_t>(r)];
            if (const std::string now = read(of_rank(r)); now.ends_with('\n')) theirs = now;   // else it has gone again
            if (theirs.empty()) missing.push_back(r);
            all += theirs;
        }
        if (!missing.empty() || all == written) return;
        write(path, all + std::string(id.internal, sizeof id.internal));
        written = all;
    }
    /// The other ranks: whether the file is there and belongs to this run.
    bool found(ncclUniqueId& id) const {
        const std::string text = read(path);
        size_t at = 0;
        for (int r = 0; r < count; r++) {
            const size_t end = text.find('\n', at);
            if (end == std::string::npos || (r == rank && text.substr(at, end - at) != nonce)) return false;
            at = end + 1;
        }
        if (text.size() - at != sizeof id.internal) return false;
        std::memcpy(id.internal, text.data() + at, sizeof id.internal);
        return true;
    }
    /// Which processes rank 0 waits for: those whose nonces it has never seen; or else all of them.
    std::string whom() const {
        if (missing.empty()) return "the others";
        std::string ranks;
        for (int r : missing) ranks += concat(ranks.empty() ? "" : ", ", r);
        return concat("rank ", ranks, ", of which there is no ", of_rank(missing.front()));
    }

private:
    std::string of_rank(int r) const { return concat(path, ".rank", r); }
    static void write(const std::string& to, const std::string& text) {
        NewFile file(to, static_cast<int64_t>(text.size()));
        file.write(text.data(), static_cast<int64_t>(text.size()), 0);
        file.commit(static_cast<int64_t>(text.size()));
    }
    static std::string read(const std::string& from) {
        std::ifstream file(from, std::ios::binary);
        return {std::istreambuf_iterator<char>(file), {}};
    }

    const std::string path;
    const int rank, count;
    std::string nonce, written;
    std::vector<std::string> nonces;   // by rank
    std::vector<int> missing;
};

// ------------------------------------------------------------------------------------------------------------ the communicator

struct Comm::Transport {
    const Comm& of;
    std::unique_ptr<MpiJob> mpi;     // null: MPI did not start the job, or is not in this build
    ncclComm_t nccl = nullptr;       // null: not yet made, or aborted
    cudaStream_t stream = nullptr;   // NCCL's
    cudaEvent_t passed = nullptr;    // makes one stream wait for another
    char* bounce = nullptr;          // (BOUNCE)
    const char* phase = "meeting";   // the call that went to the stream last
    std::atomic<bool> said_stop = false;

    explicit Transport(const Comm& comm) : of(comm) {}
    ~Transport() {
        if (nccl && std::uncaught_exceptions() == 0) part();
        give_up();
        release(bounce);
        if (passed) cudaEventDestroy(passed);
        if (stream) cudaStreamDestroy(stream);
    }
    /// Takes memory of the GPU, once it is known which GPU that is.
    void allocate() {
        cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "comm");
        cuda_check(cudaEventCreateWithFlags(&passed, cudaEventDisableTiming), "comm");
        bounce = static_cast<char*>(device_alloc(BOUNCE));
    }
    Transport(const Transport&) = delete;
    Transport& operator=(const Transport&) = delete;

    void give_up() noexcept {
        if (nccl) ncclCommAbort(std::exchange(nccl, nullptr));
    }

    std::string where() const { return concat("rank ", of.own_rank, " on host ", of.host_name, ", ", of.place, ": ", phase); }

    /// Waits until done(); any error aborts the communicator.
    template <class Done, class Whom>
    void until(Done done, Whom whom) {
        Waiting waiting(of.options, said_stop, where());
        try {
            while (!done()) waiting.pause(whom);
        } catch (...) {
            give_up();
            throw;
        }
    }
    template <class Done>
    void until(Done done) {
        until(done, [] { return "the other processes"; });
    }

    /// Whether NCCL has done what it was asked for; throws where it cannot.
    bool settled(ncclResult_t result) const {
        if (result == ncclInProgress) require_answer(ncclCommGetAsyncError(nccl, &result));
        if (result != ncclInProgress) require_answer(result);
        return result == ncclSuccess;
    }
    void require_answer(ncclResult_t result) const {
        if (result == ncclSuccess) return;
        throw CommError(concat(where(), ": NCCL says: ", ncclGetErrorString(result),
                               result == ncclRemoteError || result == ncclSystemError
                                   ? "; the last words of the other processes say why; start again from the last checkpoint"
                                   : "; NCCL_DEBUG=WARN says more"));
    }
    /// Checks a call that is part of a group, or the group's own beginning.
    void grouped(ncclResult_t result) {
        if (result == ncclSuccess || result == ncclInProgress) return;
        try {
            require_answer(result);
        } catch (...) {
            ncclGroupEnd();   // within a group an abort would take effect only at its end
            give_up();
            throw;
        }
    }

    void wait_for(cudaStream_t later, cudaStream_t earlier) {
        cuda_check(cudaEventRecord(passed, earlier), "comm");
        cuda_check(cudaStreamWaitEvent(later, passed, 0), "comm");
    }
    /// Calls between begin() and end() run together, after the work that is on the caller's stream already and before what comes later.
    void begin(const char* call, Stream callers) {
        phase = call;
        if (!nccl) throw CommError(concat(where(), ": the communication of this job has failed before"));
        wait_for(stream, cuda_stream(callers));
        grouped(ncclGroupStart());
    }
    void end(Stream callers) {
        ncclResult_t result = ncclGroupEnd();
        until([&] { return settled(std::exchange(result, ncclInProgress)); });   // only now are they on NCCL's stream
        wait_for(cuda_stream(callers), stream);
    }
    void send(const void* from, int64_t bytes, int to) { grouped(ncclSend(from, static_cast<size_t>(bytes), ncclUint8, to, nccl, stream)); }
    void receive(void* to, int64_t bytes, int from) { grouped(ncclRecv(to, static_cast<size_t>(bytes), ncclUint8, from, nccl, stream)); }

    /// Meets the others, and gets NCCL's id from rank 0 on the way.
    void meet() {
        std::unique_ptr<MeetingFile> file;
        ncclUniqueId id{};
        if (of.own_rank == 0) require_answer(ncclGetUniqueId(&id));
        if (mpi) {
            std::vector<char> ids(static_cast<size_t>(of.processes) * sizeof id);   // only rank 0's is an id
            std::memcpy(ids.data() + static_cast<size_t>(of.own_rank) * sizeof id, &id, sizeof id);
            mpi->gather(ids.data(), sizeof id, of.place, phase);
            std::memcpy(&id, ids.data(), sizeof id);
        } else {
            file = std::make_unique<MeetingFile>(of.options.meet, of.own_rank, of.processes);
            if (of.own_rank > 0) until([&] { return file->found(id); }, [&] { return concat("rank 0, of which there is no ", of.options.meet); });
        }
        ncclConfig_t config = NCCL_CONFIG_INITIALIZER;
        config.blocking = 0;
        ncclResult_t result = ncclCommInitRankConfig(&nccl, of.processes, id, of.own_rank, &config);
        until(
            [&] {
                if (file && of.own_rank == 0) file->offer(id);
                return settled(std::exchange(result, ncclInProgress));
            },
            [&] { return file ? file->whom() : std::string("the other processes"); });
    }

    /// The end, together with the others: what this process has sent may still be on its way.
    void part() noexcept {
        try {
            phase = "the end";
            ncclResult_t result = ncclCommFinalize(nccl);
            until([&] { return settled(std::exchange(result, ncclInProgress)); });
            ncclCommDestroy(std::exchange(nccl, nullptr));
        } catch (const std::exception& error) {
            say_to_stderr(error.what());
        }
    }
};

/// Takes the GPU of this local rank, before anything is allocated.
static void take_gpu(int local_rank, const std::string& host) {
    int gpus = 0;
    if (cudaGetDeviceCount(&gpus) != cudaSuccess) gpus = 0;
    require(local_rank < gpus, "comm: a process takes a GPU of its own, and local rank ", local_rank, " on host ", host, " sees ", gpus, " of them; start at most ", gpus,
            " a host, or let each process see all of its host's (unset CUDA_VISIBLE_DEVICES; srun --gpu-bind=none)");
    cuda_check(cudaSetDevice(local_rank), "comm");
}

#else
struct Comm::Transport {};
#endif

// --------------------------------------------------------------------------------------------------------- start, end, and waiting

size_t comm_bytes() { return BOUNCE; }   // and what NCCL takes for itself

Comm::Comm(const CommOptions& given) : host_name(own_host_name()), options(given) {
    const Launcher launcher = find_launcher();
    own_rank = launcher.rank, processes = launcher.count, own_local_rank = launcher.local_rank, local_processes = launcher.local_count;
    if (processes == 1) return;
#ifdef NO_NCCL
    fail("comm: ", what_it_started(launcher), ", and this build has no NCCL to join their GPUs by; install it (libnccl-dev of NVIDIA's repository), then make; or start one process");
#else
    transport = std::make_unique<Transport>(*this);
    if (launcher.kind == Launcher::Kind::mpi && MpiJob::built_in()) {
        transport->mpi = std::make_unique<MpiJob>(launcher, options);
        own_rank = transport->mpi->rank(), processes = transport->mpi->count();
        own_local_rank = transport->mpi->local_rank(), local_processes = transport->mpi->local_count();
        if (processes == 1) {
            transport.reset();
            return;
        }
    }
    require(transport->mpi || !options.meet.empty(), "comm: ", what_it_started(launcher), ", which ", MpiJob::built_in() ? "MPI did not start" : "this build has no MPI to join",
            "; name a file that all of them see, by which they meet: --meet FILE");
    require(processes > 1, "comm: ", what_it_started(launcher), ", and does not say how many; use one that does, or set RANK, WORLD_SIZE and LOCAL_RANK");
    take_gpu(own_local_rank, host_name);
    transport->allocate();
    transport->meet();

    // Every connection is made now, under this deadline, and takes its memory before anyone asks how much is free.
    auto* numbers = reinterpret_cast<float*>(transport->bounce);
    exchange(numbers, numbers + processes, 1, 0, 1, nullptr);
    wait(nullptr);
    using Name = char[256];
    std::vector<char> names(static_cast<size_t>(processes) * sizeof(Name));
    Name mine = "";
    host_name.copy(mine, sizeof mine - 1);
    collect(names.data(), mine, sizeof mine);
    local_processes = 0;
    for (int r = 0; r < processes; r++) local_processes += host_name == names.data() + static_cast<size_t>(r) * sizeof(Name);
#endif
}

Comm::~Comm() { transport.reset(); }   // first: it uses the rest

#ifdef NO_NCCL

void Comm::wait(Stream stream) { device_wait(stream); }

bool Comm::all_fail_alike(const std::string&) noexcept { return true; }

void Comm::abort() noexcept { _exit(2); }

#else

void Comm::wait(Stream stream) {
    if (!transport) return device_wait(stream);
    Transport& t = *transport;
    t.until([&] {
        const cudaError_t state = cudaStreamQuery(cuda_stream(stream));
        if (state != cudaErrorNotReady) return cuda_check(state, "comm"), true;
        // NCCL's error tells that a process is gone; the kernel that waits for it would never end.
        if (t.nccl) t.settled(ncclInProgress);
        return false;
    });
}

/// Without MPI only NCCL joins the processes, and the others may be waiting in other calls of it.
bool Comm::all_fail_alike(const std::string& text) noexcept { return !transport || (transport->mpi && transport->mpi->all_fail_alike(text)); }

/// Without MPI the launcher ends the others, or their deadline does. The communicator is left as it is: aborting it may take NCCL a while, and the
/// driver cleans up after a process.
void Comm::abort() noexcept {
    if (transport && transport->mpi) transport->mpi->abort();
    _exit(2);
}

#endif

// ----------------------------------------------------------------------------------------------------------------------- the calls

void Comm::exchange(float* parts, const float* block, int64_t segment, int64_t at, int64_t n, Stream stream) {
    require(n >= 0 && at >= 0 && at <= segment - n, "exchange: elements [at, at + n) must lie in a segment of ", segment, ", not at ", at, " with n of ", n);
    if (n == 0) return;
#ifndef NO_NCCL
    if (transport) {
        const int64_t bytes = n * static_cast<int64_t>(sizeof(float));
        transport->begin("exchange of gradients", stream);
        for (int r = 0; r < processes; r++) {
            if (r == own_rank) continue;
            transport->send(block + r * segment + at, bytes, r);
            transport->receive(parts + r * n, bytes, r);
        }
        transport->end(stream);
    }
#endif
    copy_on_device(parts + own_rank * n, block + own_rank * segment + at, static_cast<size_t>(n) * sizeof(float), stream);
}

void Comm::gather([[maybe_unused]] void* block, int64_t bytes, [[maybe_unused]] Stream stream) {
    require(bytes >= 0, "gather: bytes must not be negative: ", bytes);
#ifndef NO_NCCL
    if (!transport || bytes == 0) return;
    transport->begin("gather of weights", stream);
    const char* own = static_cast<const char*>(block) + own_rank * bytes;
    transport->grouped(ncclAllGather(own, block, static_cast<size_t>(bytes), ncclUint8, transport->nccl, transport->stream));
    transport->end(stream);
#endif
}

void Comm::collect(void* all, const void* mine, int64_t bytes) {
    require(bytes >= 0, "collect: bytes must not be negative: ", bytes);
    if (bytes == 0) return;
    if (!transport) return static_cast<void>(std::memmove(all, mine, static_cast<size_t>(bytes)));
#ifndef NO_NCCL
    wait(nullptr);   // the copies below wait without a deadline
    const int64_t most = BOUNCE / processes;
    std::vector<char> piece(static_cast<size_t>(BOUNCE));
    for (int64_t at = 0; at < bytes; at += most) {
        const int64_t size = std::min(most, bytes - at);
        copy_to_device(transport->bounce + own_rank * size, static_cast<const char*>(mine) + at, static_cast<size_t>(size), nullptr);
        gather(transport->bounce, size, nullptr);
        transport->phase = "collect";
        wait(nullptr);
        copy_to_host(piece.data(), transport->bounce, static_cast<size_t>(processes * size), nullptr);
        for (int r = 0; r < processes; r++) std::memcpy(static_cast<char*>(all) + r * bytes + at, piece.data() + r * size, static_cast<size_t>(size));
    }
#endif
}

void Comm::bring(void* host, const void* device, int64_t bytes, int owner) {
    require(bytes >= 0, "bring: bytes must not be negative: ", bytes);
    require(owner >= 0 && owner < processes, "bring: owner must be one of ", processes, " processes, not ", owner);
    if (bytes == 0) return;
    wait(nullptr);   // the copies below wait without a deadline
    if (owner == 0) {
        if (own_rank == 0) copy_to_host(host, device, static_cast<size_t>(bytes), nullptr);
        return;
    }
#ifndef NO_NCCL
    if (own_rank != 0 && own_rank != owner) return;
    for (int64_t at = 0; at < bytes; at += BOUNCE) {
        const int64_t size = std::min(BOUNCE, bytes - at);
        transport->begin("bring", nullptr);
        if (own_rank == owner) transport->send(static_cast<const char*>(device) + at, size, 0);
        else transport->receive(transport->bounce, size, owner);
        transport->end(nullptr);
        wait(nullptr);
        if (own_rank == 0) copy_to_host(static_cast<char*>(host) + at, transport->bounce, static_cast<size_t>(size), nullptr);
    }
#endif
}
