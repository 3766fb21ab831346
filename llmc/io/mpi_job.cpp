#include "llmc/io/mpi_job.h"

#ifdef NO_MPI

bool MpiJob::built_in() { return false; }

struct MpiJob::Transport {};

MpiJob::MpiJob(const Launcher& launcher, const CommOptions&) {
    fail("comm: ", what_it_started(launcher), ", and this build has no MPI, by which they reach each other; make deps installs it, then make");
}
MpiJob::~MpiJob() = default;
void MpiJob::transfer(const std::vector<Message>&, const std::string&, const char*) {}
void MpiJob::gather(void*, int64_t, const std::string&, const char*) {}
bool MpiJob::all_fail_alike(const std::string&) noexcept { return false; }
void MpiJob::abort() noexcept { _exit(2); }

#else
#include <mpi.h>
#include <array>
#include <atomic>
#include <climits>
#include <condition_variable>
#include <mutex>
#include <optional>
#include "llmc/io/hash.h"
#include "llmc/io/process.h"

namespace {
/// Largest message in bytes: MPI counts them in an int, and the deadline starts anew with every message that arrives. (Messages of 16 MiB are not faster.)
constexpr int64_t PIECE = int64_t{4} << 20;

/// A deadline for MPI calls that may block: MPI_Init, MPI_Finalize, and any call after another process has died (seen with MPI_Testsome in Open MPI
/// 4.1, which then reports to an mpirun that is itself about to end, and waits for its answer). After the deadline it prints the error of Waiting
/// and ends this process, and with it the job.
class Watchdog {
public:
    Watchdog(const CommOptions& from, std::atomic<bool>& said) : options(from), said_stop(said), thread([this] { watch(); }) {}
    ~Watchdog() {
        {
            std::lock_guard lock(mutex);
            over = true;
        }
        wakes.notify_one();
        thread.join();
    }

    /// Sets what the following calls are for, and how many seconds each may take.
    void expect(const std::string& what, double seconds) {
        std::lock_guard lock(mutex);
        where = what, options.deadline = seconds;
    }
    template <class Call>
    int watched(Call call) {
        inside = ++calls;
        const int code = call();
        inside = 0;
        return code;
    }

private:
    void watch() {
        std::optional<Waiting> waiting;
        std::unique_lock lock(mutex);
        for (uint64_t seen = 0; !over; wakes.wait_for(lock, std::chrono::milliseconds(50))) {
            const uint64_t now = inside;
            if (now != seen) waiting.reset();
            if (now != 0 && !waiting) waiting.emplace(options, said_stop, where);
            seen = now;
            try {
                if (waiting) waiting->pause([] { return "the others"; });
            } catch (const CommError& error) {
                say_to_stderr(error.what());
                _exit(2);
            }
        }
    }

    CommOptions options;
    std::atomic<bool>& said_stop;
    std::string where;
    uint64_t calls = 0;
    std::atomic<uint64_t> inside = 0;   // number of the call that has not returned
    bool over = false;
    std::mutex mutex;
    std::condition_variable wakes;
    std::thread thread;
};

/// A set of MPI requests, started together and waited for together.
class Requests {
public:
    static constexpr int OTHERS = -1;   ///< in place of a peer: all of them

    /// tag: keeps the messages of different phases apart.
    Requests(const std::vector<std::string>& of_ranks, std::string at, MPI_Comm in = MPI_COMM_NULL, int with = 0)
        : hosts(of_ranks), where(std::move(at)), comm(in), tag(with) {}

    /// Starts a non-blocking MPI call with a peer: add(peer, [&](MPI_Request* request) { return MPI_Isend(..., request); })
    template <class Start>
    void add(int peer, Start start) {
        requests.emplace_back(MPI_REQUEST_NULL);
        peers.push_back(peer);
        check(start(&requests.back()));
    }

    // Both work in pieces of at most PIECE bytes.
    void receive(void* to, int64_t bytes, int peer) {
        for (int64_t at = 0; at < bytes; at += PIECE)
            add(peer, [&](MPI_Request* request) { return MPI_Irecv(static_cast<char*>(to) + at, length(bytes - at), MPI_BYTE, peer, tag, comm, request); });
    }
    void send(const void* from, int64_t bytes, int peer) {
        for (int64_t at = 0; at < bytes; at += PIECE)
            add(peer, [&](MPI_Request* request) { return MPI_Isend(static_cast<const char*>(from) + at, length(bytes - at), MPI_BYTE, peer, tag, comm, request); });
    }

    void wait(const CommOptions& options, std::atomic<bool>& said_stop, Watchdog& watchdog) {
        Waiting waiting(options, said_stop, where);
        watchdog.expect(where, options.deadline);
        const int all = static_cast<int>(requests.size());
        std::vector<int> which(requests.size());
        std::vector<MPI_Status> statuses(requests.size());
        for (int left = all; left > 0;) {
            int done = 0;
            const int code = watchdog.watched([&] { return MPI_Testsome(all, requests.data(), &done, which.data(), statuses.data()); });
            if (code == MPI_ERR_IN_STATUS)
                for (int i = 0; i < done; i++) check(statuses[i].MPI_ERROR);
            check(code);
            if (done == MPI_UNDEFINED) break;
            left -= done;
            if (done > 0) waiting.progress();
            else waiting.pause([&] { return missing(); });
        }
    }

private:
    static int length(int64_t left) { return static_cast<int>(std::min(left, PIECE)); }

    void check(int code) const {
        if (code == MPI_SUCCESS) return;
        char text[MPI_MAX_ERROR_STRING] = "";
        int length = 0;
        MPI_Error_string(code, text, &length);
        throw CommError(concat(where, " failed: ", text, "; start again from the last checkpoint"));
    }

    /// "rank 1 on host a, rank 3 on host b"
    std::string missing() const {
        std::vector<bool> waits(hosts.size());
        for (size_t i = 0; i < requests.size(); i++) {
            if (requests[i] == MPI_REQUEST_NULL) continue;
            if (peers[i] == OTHERS) return "the others";
            waits[peers[i]] = true;
        }
        std::string text;
        int ranks = 0;
        for (size_t rank = 0; rank < hosts.size(); rank++)
            if (waits[rank] && ranks++ < 8) text += concat(text.empty() ? "" : ", ", "rank ", rank, hosts[rank].empty() ? "" : " on host ", hosts[rank]);
        return ranks <= 8 ? text : concat(text, " and ", ranks - 8, " more");
    }

    const std::vector<std::string>& hosts;
    const std::string where;
    const MPI_Comm comm;
    const int tag;
    std::vector<MPI_Request> requests;
    std::vector<int> peers;
};
}  // namespace

struct MpiJob::Transport {
    explicit Transport(const CommOptions& from) : options(from) {}

    const CommOptions options;
    std::atomic<bool> said_stop = false;
    Watchdog watchdog{options, said_stop};
    bool failed = false;                  // no MPI call may be made any more, and MPI_Finalize would wait for ever
    MPI_Comm parting = MPI_COMM_NULL;     // communicator of all_fail_alike() alone
    std::vector<uint64_t> last_words;     // its receive buffer: a member, since messages may arrive after it has given up

    void run(const std::vector<Message>& messages, const std::vector<std::string>& hosts, std::string where, MPI_Comm comm, int tag, const CommOptions& patience) {
        Requests requests(hosts, std::move(where), comm, tag);
        try {
            for (const Message& message : messages)
                if (message.receive) requests.receive(message.receive, message.bytes, message.peer);
            for (const Message& message : messages)
                if (message.send) requests.send(message.send, message.bytes, message.peer);
            requests.wait(patience, said_stop, watchdog);
        } catch (...) {
            failed = true;
            throw;
        }
    }
};

bool MpiJob::built_in() { return true; }

MpiJob::MpiJob(const Launcher& launcher, const CommOptions& options) : transport(new Transport(options)) {
    require(launcher.kind != Launcher::Kind::slurm, "comm: srun started ", launcher.count,
            " tasks, and without PMIx MPI cannot reach them; give srun --mpi=pmix, or use mpirun");
    require(launcher.kind == Launcher::Kind::mpi, "comm: ", what_it_started(launcher),
            ", and on CPUs MPI starts them; use mpirun -n ", launcher.count, ", or unset WORLD_SIZE");
    const std::string host = own_host_name();
    std::string where = concat("rank ", launcher.rank, " on host ", host, ", the start: MPI_Init");
    transport->watchdog.expect(where, options.deadline);
    int level = 0;
    const int code = transport->watchdog.watched([&] { return MPI_Init_thread(nullptr, nullptr, MPI_THREAD_FUNNELED, &level); });
    if (code != MPI_SUCCESS || level < MPI_THREAD_FUNNELED)
        throw CommError(concat(where, " failed; see whether mpirun runs a small program, and is of the MPI that this program was built with"));
    MPI_Comm_set_errhandler(MPI_COMM_WORLD, MPI_ERRORS_RETURN);
    int count = 0;
    MPI_Comm_rank(MPI_COMM_WORLD, &own_rank);
    MPI_Comm_size(MPI_COMM_WORLD, &count);
    require(launcher.count == 0 || (launcher.count == count && launcher.rank == own_rank), "comm: ", launcher_name(launcher), " says process ", launcher.rank, " of ",
            launcher.count, ", and MPI process ", own_rank, " of ", count, "; use the mpirun of the MPI that this program was built with");
    hosts.resize(count);
    hosts[own_rank] = host;

    where = concat("rank ", own_rank, " on host ", host, ", the start: meeting");
    Requests meeting(hosts, where);
    meeting.add(Requests::OTHERS, [&](MPI_Request* request) { return MPI_Comm_idup(MPI_COMM_WORLD, &transport->parting, request); });
    meeting.wait(transport->options, transport->said_stop, transport->watchdog);
    using HostName = std::array<char, HOST_NAME_MAX + 1>;
    std::vector<HostName> names(count);
    std::copy(host.begin(), host.end(), names[own_rank].begin());
    gather(names.data(), sizeof(HostName), "the start", "meeting");
    for (int rank = 0; rank < count; rank++) hosts[rank] = names[rank].data();
}

MpiJob::~MpiJob() {
    Transport& t = *transport;
    // Pending receives may point into memory that is gone by now: make no MPI call any more.
    if (t.failed || std::uncaught_exceptions() > 0) return;
    t.said_stop = true;   // print nothing about signals from here on: mpirun sends one when another process has ended with an error
    const std::string where = concat("rank ", own_rank, " on host ", hosts[own_rank], ", the end: parting");
    try {
        Requests requests(hosts, where);   // MPI_Finalize would wait too, but by polling at full speed
        requests.add(Requests::OTHERS, [](MPI_Request* request) { return MPI_Ibarrier(MPI_COMM_WORLD, request); });
        requests.wait(t.options, t.said_stop, t.watchdog);
    } catch (const std::exception& error) {
        say_to_stderr(error.what());
        return;
    }
    t.watchdog.watched([] { return MPI_Finalize(); });
}

void MpiJob::transfer(const std::vector<Message>& messages, const std::string& place, const char* phase) {
    const std::string where = concat("rank ", own_rank, " on host ", hosts[own_rank], ", ", place, ": ", phase);
    transport->run(messages, hosts, where, MPI_COMM_WORLD, static_cast<int>(xxh3_64(phase) % 32768), transport->options);
}

static std::vector<MpiJob::Message> to_all(void* all, int64_t bytes, int rank, int count) {
    std::vector<MpiJob::Message> messages;
    auto* segments = static_cast<char*>(all);
    for (int i = 1; i < count; i++) {   // rotated, so that not all send to the same process first
        const int peer = (rank + i) % count;
        messages.push_back({peer, segments + peer * bytes, segments + rank * bytes, bytes});
    }
    return messages;
}

void MpiJob::gather(void* all, int64_t bytes, const std::string& place, const char* phase) {
    transfer(to_all(all, bytes, own_rank, count()), place, phase);
}

bool MpiJob::all_fail_alike(const std::string& text) noexcept {
    Transport& t = *transport;
    if (t.failed) return false;
    t.failed = true;
    try {
        t.last_words.resize(hosts.size());
        t.last_words[own_rank] = xxh3_64(text);
        CommOptions patience;
        patience.deadline = 2;
        t.run(to_all(t.last_words.data(), sizeof t.last_words[0], own_rank, count()), hosts,
              concat("rank ", own_rank, " on host ", hosts[own_rank], ": ", text, " (whether all have this error)"), t.parting, 0, patience);
        t.failed = std::count(t.last_words.begin(), t.last_words.end(), t.last_words[own_rank]) != count();
    } catch (...) {   // ignored: the caller already has an error to report
    }
    return !t.failed;
}

void MpiJob::abort() noexcept {
    std::signal(SIGALRM, [](int) { _exit(2); });   // MPI_Abort goes through the launcher, which may be unreachable
    alarm(2);
    MPI_Abort(MPI_COMM_WORLD, 2);
    _exit(2);
}

#endif
