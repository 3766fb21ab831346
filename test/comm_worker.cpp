// One process of a job, for test/ops/comm.cpp and test/cluster.cpp: it does what its argument names, and prints OK, or which element is wrong.
// `comm_worker contract` checks every member of Comm against results that each process computes by itself; the other arguments cause failures.
#include <unistd.h>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>
#include <thread>
#include <vector>
#include "llmc/device/device.h"
#include "llmc/device/memory.h"
#include "llmc/io/error.h"
#include "llmc/ops/comm.h"

namespace {
volatile std::sig_atomic_t stop = 0;

void sleep_for(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }

/// Element i of process `rank`'s block in round `turn` of a test.
float value(int turn, int rank, int64_t i) {
    uint64_t x = (static_cast<uint64_t>(turn) << 48) ^ (static_cast<uint64_t>(rank) << 40) ^ static_cast<uint64_t>(i);
    x = (x ^ (x >> 31)) * 0x9E3779B97F4A7C15u;
    return static_cast<float>(static_cast<int32_t>((x ^ (x >> 29)) >> 33)) * 0x1p-20f;
}

/// Device memory, initialized from the host.
class OnDevice {
public:
    explicit OnDevice(const std::vector<float>& values) : bytes(values.size() * sizeof(float)), memory(device_alloc(bytes + 1), release) {
        copy_to_device(memory.get(), values.data(), bytes, nullptr);
    }
    float* data() const { return static_cast<float*>(memory.get()); }
    std::vector<float> values() const {
        std::vector<float> host(bytes / sizeof(float));
        copy_to_host(host.data(), memory.get(), bytes, nullptr);
        return host;
    }

private:
    const size_t bytes;
    std::unique_ptr<void, void (*)(void*)> memory;
};

void check_equal(const char* what, const Comm& comm, const std::vector<float>& is, const std::vector<float>& want) {
    for (size_t i = 0; i < want.size(); i++)
        if (std::memcmp(&is[i], &want[i], sizeof(float)) != 0) fail(what, ": process ", comm.rank(), " of ", comm.count(), ": element ", i, " of ", want.size(), " is ", is[i], ", not ", want[i]);
}

void check_exchange(Comm& comm, int turn, int64_t segment, int64_t at, int64_t n) {
    const int count = comm.count(), rank = comm.rank();
    std::vector<float> block(count * segment), want(count * n + 1, -1);   // one element more than is written
    for (size_t i = 0; i < block.size(); i++) block[i] = value(turn, rank, i);
    OnDevice made(block), from(std::vector<float>(block.size(), -2)), parts(std::vector<float>(want.size(), -1));
    copy_on_device(from.data(), made.data(), block.size() * sizeof(float), nullptr);   // still in progress when the exchange begins
    comm.exchange(parts.data(), from.data(), segment, at, n, nullptr);
    comm.wait(nullptr);
    for (int r = 0; r < count; r++)
        for (int64_t i = 0; i < n; i++) want[r * n + i] = value(turn, r, rank * segment + at + i);
    check_equal("exchange", comm, parts.values(), want);
    check_equal("exchange's block", comm, from.values(), block);
}

void check_gather(Comm& comm, int turn, int64_t n) {
    const int count = comm.count(), rank = comm.rank();
    std::vector<float> block(count * n + 1, -1), want(count * n + 1, -1);
    for (int64_t i = 0; i < count * n; i++) want[i] = value(turn, static_cast<int>(i / n), i);
    std::copy_n(want.begin() + rank * n, n, block.begin() + rank * n);
    OnDevice memory(block);
    comm.gather(memory.data(), n * static_cast<int64_t>(sizeof(float)), nullptr);
    comm.wait(nullptr);
    check_equal("gather", comm, memory.values(), want);
}

void check_collect(Comm& comm, int turn, int64_t bytes) {
    std::vector<char> mine(bytes), all(comm.count() * bytes + 1, 'e'), want(all);
    for (int r = 0; r < comm.count(); r++)
        for (int64_t i = 0; i < bytes; i++) want[r * bytes + i] = static_cast<char>(value(turn, r, i));
    std::copy_n(want.begin() + comm.rank() * bytes, bytes, mine.begin());
    comm.collect(all.data(), mine.data(), bytes);
    require(all == want, "collect: process ", comm.rank(), " of ", comm.count(), ": not everyone's ", bytes, " bytes");
}

void check_bring(Comm& comm, int turn, int64_t n, int owner) {
    std::vector<float> mine(n), host(n + 1, -1), want(n + 1, -1);
    for (int64_t i = 0; i < n; i++) mine[i] = value(turn, comm.rank(), i);
    OnDevice memory(mine);
    comm.bring(host.data(), memory.data(), n * static_cast<int64_t>(sizeof(float)), owner);
    for (int64_t i = 0; i < n && comm.rank() == 0; i++) want[i] = value(turn, owner, i);
    check_equal("bring", comm, host, want);
}

void contract(Comm& comm) {
    int turn = 0;
    for (int64_t n : {0, 1, 7, 1000, 4097}) {
        check_exchange(comm, turn++, n, 0, n);
        check_exchange(comm, turn++, n + 13, 5, n);
        check_gather(comm, turn++, n);
        check_collect(comm, turn++, n);
        for (int owner = 0; owner < comm.count(); owner++) check_bring(comm, turn++, n, owner);
    }
    const int64_t large = (int64_t{4} << 20) / sizeof(float) + 3;   // more than fits into one message
    check_exchange(comm, turn++, large + 1, 1, large);
    check_gather(comm, turn++, large);
    check_bring(comm, turn++, large, comm.count() - 1);
    for (int again = 0; again < 50; again++) check_collect(comm, turn++, 24);
}

void say(const Comm& comm, const std::string& text) {
    const std::string line = concat("rank ", comm.rank(), " of ", comm.count(), " (", comm.local_rank(), " of ", comm.local_count(), " on ", comm.host(), "): ", text, "\n");
    if (write(STDOUT_FILENO, line.data(), line.size()) < 0) _exit(3);
}

/// How the main() of a program with several processes handles an error.
int end_with(Comm& comm, const std::string& text) {
    if (comm.all_fail_alike(text)) {
        if (comm.rank() == 0) say_to_stderr(text);
        return 2;
    }
    say_to_stderr(text);
    comm.abort();
}
}  // namespace

int main(int argc, char** argv) {
    device_begin(argv);
    const std::string what = argc > 1 ? argv[1] : "";
    const int who = argc > 2 ? std::atoi(argv[2]) : -1;
    for (int number : {SIGTERM, SIGUSR1}) std::signal(number, [](int) { stop = 1; });
    CommOptions options;
    options.stop = &stop;
    if (const char* deadline = std::getenv("DEADLINE")) options.deadline = std::atof(deadline);
    if (const char* meet = std::getenv("MEET")) options.meet = meet;
    if (const char* rank = std::getenv("OMPI_COMM_WORLD_RANK"); what == "never-comes" && rank && std::atoi(rank) == who) sleep_for(60);

    std::unique_ptr<Comm> comm;
    return run_program("comm_worker", [&] {
        comm = std::make_unique<Comm>(options);
        comm->set_place("step 17");
        auto everyone_again = [&] {
            char mine = 1;
            std::vector<char> all(comm->count());
            comm->collect(all.data(), &mine, 1);
        };
        try {
            if (what == "contract") contract(*comm);
            else if (what == "starts") {}
            else if (what == "killed" || what == "stopped" || what == "asked-to-stop") {   // process `who` dies, hangs or is late while the others wait for it
                everyone_again();   // data in flight is lost when a process dies: so all synchronize first
                if (comm->rank() == who) {
                    if (what == "killed") raise(SIGKILL);
                    if (what == "stopped") raise(SIGSTOP);
                    sleep_for(what == "asked-to-stop" ? 1.5 : 30);
                } else if (what == "asked-to-stop") stop = 1;
                everyone_again();
            } else if (what == "until-stop") {   // as in training: if one process is asked to stop, all stop at the end of the step
                say(*comm, "begins");
                for (bool stops = false; !stops; sleep_for(0.01)) {
                    const char mine = stop != 0;
                    std::vector<char> all(comm->count());
                    comm->collect(all.data(), &mine, 1);
                    for (char one : all) stops |= one != 0;
                }
            } else if (what == "exchange-late") {
                if (comm->rank() == who) sleep_for(30);
                check_exchange(*comm, 0, 5, 0, 5);
            } else if (what == "gather-late") {
                if (comm->rank() == who) sleep_for(30);
                check_gather(*comm, 0, 5);
            } else if (what == "bring-late") {
                if (comm->rank() == who) sleep_for(30);
                check_bring(*comm, 0, 5, who);
            } else if (what == "alike") fail("a flag that nobody has");
            else if (what == "differ") fail("process ", comm->rank(), " has no such file");
            else if (what == "one-fails") {
                if (comm->rank() == who) fail("process ", comm->rank(), " has no such file");
                everyone_again();
            } else if (what == "unwinds") {   // an exception that destroys the Comm while it unwinds
                Comm& lost = *comm;
                if (lost.rank() == who) {
                    std::unique_ptr<Comm> gone = std::move(comm);
                    fail("no memory");
                }
                everyone_again();
            } else fail("comm_worker knows no '", what, "'");
        } catch (const std::exception& error) {
            if (!comm) throw;
            return end_with(*comm, error.what());
        }
        say(*comm, "OK");
        return 0;
    });
}
