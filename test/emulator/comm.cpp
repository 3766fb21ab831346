// comm.cu with NCCL on the emulator: test/comm_worker.cpp as one to four processes, which meet by a file or by MPI, and their errors when one is
// missing, dead or stopped. (test/ops/comm.cpp tests MPI, on CPUs.)
#include <doctest/doctest.h>
#include <chrono>
#include <csignal>
#include <future>
#include <thread>
#include <tuple>
#include <vector>
#include "llmc/io/mpi_job.h"
#include "llmc/io/process.h"
#include "test/mpirun.h"
#include "test/needs.h"
#include "test/program.h"

namespace fs = std::filesystem;

namespace {
const std::string FOLDER = fs::read_symlink("/proc/self/exe").parent_path();
const std::string ALONE = NO_LAUNCHER + "export OMP_NUM_THREADS=1; ";

std::string rank(int number) { return "rank " + std::to_string(number) + " on host " + own_host_name(); }
std::string ok(int r, int count) {
    const std::string who = std::to_string(r) + " of " + std::to_string(count);
    return "rank " + who + " (" + who + " on " + own_host_name() + "): OK\n";
}
std::string waited(int r, const std::string& where, const std::string& whom) {
    return "comm_worker: " + rank(r) + ", " + where + " waited 5 s for " + whom +
           "; its own output says why, or else it hangs or is unreachable; start again from the last checkpoint, or give a longer --deadline\n";
}
std::string gone(int r, const std::string& where) {
    return "comm_worker: " + rank(r) + ", " + where +
           ": NCCL says: remote process exited or there was a network error; the last words of the other processes say why; start again from the last checkpoint\n";
}

/// Processes that meet by a file in a folder of their own, each begun on its own.
struct Job {
    TempDir folder;
    const std::string file = folder / "meet";

    /// A process that is stopped, or comes too late, is killed in the end; the limit of the "contract" runs is too long to kill one on a busy machine.
    std::future<Result> begin(int r, int count, const std::string& what, const std::string& environment = "") const {
        const std::string number = std::to_string(r), seconds = what == "contract" ? "200" : "12";
        const std::string command = ALONE + "export RANK=" + number + " LOCAL_RANK=" + number + " WORLD_SIZE=" + std::to_string(count) + " EMULATOR_GPUS=4 MEET=" + file + " " +
                                    environment + "; timeout -s KILL " + seconds + " " + FOLDER + "/comm_worker " + what + "; exit $?";
        return std::async(std::launch::async, [command] { return run(command); });
    }
    /// `left_out` does not come.
    std::vector<Result> all(int count, const std::string& what, const std::string& environment = "", int left_out = -1) const {
        std::vector<std::future<Result>> begun;
        std::vector<Result> results;
        for (int r = 0; r < count; r++)
            if (r != left_out) begun.push_back(begin(r, count, what, environment));
        for (auto& each : begun) results.push_back(each.get());
        return results;
    }
    bool empty() const { return fs::is_empty(folder.path); }
};

void check_ok(const std::vector<Result>& results) {
    for (size_t r = 0; r < results.size(); r++) {
        CHECK(results[r].err == "");
        CHECK(results[r].out == ok(static_cast<int>(r), static_cast<int>(results.size())));
        CHECK(results[r].code == 0);
    }
}
}  // namespace

TEST_CASE("nccl: one to four processes get each byte from where it belongs, and leave no file behind") {
    for (int count = 1; count <= 4; count++) {
        CAPTURE(count);
        Job job;
        check_ok(job.all(count, "contract"));
        CHECK(job.empty());
    }
}

TEST_CASE("nccl: processes that MPI started meet by it" * needs_mpirun()) {
    // What Open MPI keeps until the process ends is no leak of ours.
    const Result result = run(ALONE + "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 ASAN_OPTIONS=detect_leaks=0 EMULATOR_GPUS=3; "
                                      "export" + mpirun_variables() + "; exec mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n 3 " + FOLDER + "/comm_worker contract");
    CAPTURE(result.err);
    CHECK(result.code == 0);
    for (int r = 0; r < 3; r++) CHECK(result.out.find(ok(r, 3)) != std::string::npos);
}

TEST_CASE("nccl: a build without it is one process, and refuses several" * doctest::skip(!fs::exists(FOLDER + "/comm_worker_without_nccl"))) {
    auto of = [](const std::string& launcher, const std::string& what) { return run(ALONE + "export " + launcher + "; exec " + FOLDER + "/comm_worker_without_nccl " + what); };
    CHECK(of("NOBODY=", "contract").out == ok(0, 1));
    const std::string rest = " processes, and this build has no NCCL to join their GPUs by; install it (libnccl-dev of NVIDIA's repository), then make; or start one process\n";
    CHECK(of("RANK=1 WORLD_SIZE=2 LOCAL_RANK=1", "starts").err == "comm_worker: comm: RANK and WORLD_SIZE say that there are 2" + rest);
    CHECK(of("PMIX_RANK=0", "starts").err == "comm_worker: comm: a launcher with PMIx started perhaps several" + rest);
}

TEST_CASE("nccl: beyond the deadline a process ends, and the line says where it waited") {
    const std::string deadline = "DEADLINE=5";
    Job exchange, gather, bring, stopped, no_one, no_zero;
    auto of = [&](const Job& job, int count, const std::string& what, int left_out = -1) {
        return std::async(std::launch::async, [&job, count, what, deadline, left_out] { return job.all(count, what, deadline, left_out); });
    };
    // Side by side: what they do is wait.
    auto in_exchange = of(exchange, 3, "exchange-late 1"), in_gather = of(gather, 2, "gather-late 0"), in_bring = of(bring, 2, "bring-late 1"),
         at_stopped = of(stopped, 2, "stopped 1"), without_one = of(no_one, 3, "starts", 1), without_zero = of(no_zero, 2, "starts", 0);

    std::vector<Result> results = in_exchange.get();
    for (int r : {0, 2})   // when the first of them has ended, the second may see that
        CHECK((results[r].err == waited(r, "step 17: exchange of gradients", "the other processes") || results[r].err == gone(r, "step 17: exchange of gradients")));
    CHECK((results[0].err.find("waited") != std::string::npos || results[2].err.find("waited") != std::string::npos));
    CHECK(in_gather.get()[1].err == waited(1, "step 17: gather of weights", "the other processes"));
    CHECK(in_bring.get()[0].err == waited(0, "step 17: bring", "the other processes"));
    results = at_stopped.get();
    CHECK(results[0].err == waited(0, "step 17: collect", "the other processes"));
    CHECK(results[0].code == 2);
    CHECK(results[1].code == 128 + SIGKILL);
    CHECK(without_one.get()[0].err == waited(0, "the start: meeting", "rank 1, of which there is no " + no_one.file + ".rank1"));
    CHECK(without_zero.get()[0].err == waited(1, "the start: meeting", "rank 0, of which there is no " + no_zero.file));
    for (const Job* job : {&exchange, &gather, &bring, &stopped, &no_one, &no_zero}) CHECK(job->empty());
}

TEST_CASE("nccl: the end of a process ends those that wait for it, and its error is told once") {
    Job killed, fails, unwinds;
    std::vector<Result> results = killed.all(3, "killed 1");
    CHECK(results[1].code == 128 + SIGKILL);
    for (int r : {0, 2}) {
        CHECK(results[r].err == gone(r, "step 17: collect"));
        CHECK(results[r].code == 2);
    }
    for (auto [job, what, text] : {std::tuple{&fails, "one-fails 1", "process 1 has no such file"}, {&unwinds, "unwinds 1", "no memory"}}) {
        results = job->all(2, what);
        CHECK(results[0].err == gone(0, "step 17: collect"));
        CHECK(results[1].err == std::string("comm_worker: ") + text + "\n");
        for (const Result& result : results) CHECK(result.code == 2);
    }
}

TEST_CASE("nccl: what an earlier run left of its meeting is not taken for this one's") {
    for (int late : {0, 1, 2}) {   // who comes when the others have seen all that there is to see
        CAPTURE(late);
        Job job;
        for (int r = 0; r < 3; r++) write_file(job.file + ".rank" + std::to_string(r), "1.2.3." + std::to_string(r) + ".\n");
        write_file(job.file, "1.2.3.0.\n1.2.3.1.\n1.2.3.2.\n" + std::string(128, 'x'));
        std::vector<std::future<Result>> begun(3);
        for (int r = 0; r < 3; r++)
            if (r != late) begun[r] = job.begin(r, 3, "starts");
        std::this_thread::sleep_for(std::chrono::milliseconds(500));
        begun[late] = job.begin(late, 3, "starts");
        std::vector<Result> results;
        for (auto& each : begun) results.push_back(each.get());
        check_ok(results);
        CHECK(job.empty());
    }
}

TEST_CASE("nccl: a process without a GPU of its own, or a way to meet the others, is refused in one line") {
    Job job;
    CHECK(job.begin(1, 2, "starts", "EMULATOR_GPUS=1").get().err ==
          "comm_worker: comm: a process takes a GPU of its own, and local rank 1 on host " + own_host_name() +
              " sees 1 of them; start at most 1 a host, or let each process see all of its host's (unset CUDA_VISIBLE_DEVICES; srun --gpu-bind=none)\n");
    CHECK(job.begin(1, 2, "starts", "MEET=").get().err == "comm_worker: comm: RANK and WORLD_SIZE say that there are 2 processes, which " +
                                                              std::string(MpiJob::built_in() ? "MPI did not start" : "this build has no MPI to join") +
                                                              "; name a file that all of them see, by which they meet: --meet FILE\n");
    // Two processes that take the same GPU.
    std::vector<std::future<Result>> same;
    for (int r = 0; r < 2; r++) same.push_back(job.begin(r, 2, "starts", "LOCAL_RANK=0"));
    for (int r = 0; r < 2; r++) CHECK(same[r].get().err == "comm_worker: " + rank(r) + ", the start: meeting: NCCL says: invalid usage; NCCL_DEBUG=WARN says more\n");
}
