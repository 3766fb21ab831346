// The processes of a job: test/comm_worker.cpp as one to four processes, and their errors when one of them is missing, dead, stopped, or fails.
#include <doctest/doctest.h>
#include <unistd.h>
#include <future>
#include <regex>
#include <vector>
#include "llmc/io/mpi_job.h"
#include "llmc/io/process.h"
#include "test/mpirun.h"
#include "test/needs.h"
#include "test/program.h"

namespace fs = std::filesystem;

namespace {
const std::string FOLDER = fs::read_symlink("/proc/self/exe").parent_path();
const std::string ALONE = NO_LAUNCHER + "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 DEADLINE=60; ";

/// `count` workers that do `what`, on any number of cores.
Result job(int count, const std::string& what, const std::string& environment = "") {
    return run(ALONE + environment + " export" + mpirun_variables() + "; exec timeout 120 mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1 -n " + std::to_string(count) + " " + FOLDER + "/comm_worker " + what);
}
/// One worker, without mpirun.
Result process(const std::string& what, const std::string& environment = "", const std::string& program = "comm_worker") {
    return run(ALONE + "export " + environment + "; exec " + FOLDER + "/" + program + " " + what);
}

/// The lines of the program itself: mpirun adds some of its own.
std::vector<std::string> own_lines(const std::string& text) {
    std::vector<std::string> lines;
    static const std::regex line("comm_worker: [^\n]*\n");
    for (std::sregex_iterator at(text.begin(), text.end(), line), end; at != end; ++at) lines.push_back(at->str());
    return lines;
}

/// Every line that says whom a rank waited for is of this form, and there is at least one.
void check_waited(const Result& result, const std::string& where, const std::string& whom) {
    CAPTURE(result.err);
    CHECK(result.code == 2);
    const std::regex form("comm_worker: rank [0-9]+ on host " + own_host_name() + ", " + where + " waited [0-9.]+ s for " + whom +
                          "; its own output says why, or else it hangs or is unreachable; start again from the last checkpoint, or give a longer --deadline\n");
    const std::vector<std::string> lines = own_lines(result.err);
    CHECK(!lines.empty());
    for (const std::string& line : lines) CHECK_MESSAGE(std::regex_match(line, form), line);
}

std::string rank(int number) { return "rank " + std::to_string(number) + " on host " + own_host_name(); }
}  // namespace

TEST_CASE("comm: one process only copies, and needs no MPI") {
    const std::string line = "rank 0 of 1 (0 of 1 on " + own_host_name() + "): OK\n";
    for (std::string program : {"comm_worker", "comm_worker_without_mpi"})
        for (std::string launcher : {"NOBODY=", "WORLD_SIZE=1 RANK=0", "OMPI_COMM_WORLD_SIZE=1 OMPI_COMM_WORLD_RANK=0 OMPI_COMM_WORLD_LOCAL_RANK=0",
                                     "SLURM_STEP_NUM_TASKS=1 SLURM_PROCID=0 SLURM_LOCALID=0", "SLURM_NTASKS=4"}) {
            CAPTURE(launcher);
            Result result = process("contract", launcher, program);
            CHECK(result.out == line);
            CHECK(result.err == "");
            CHECK(result.code == 0);
        }
    CHECK(process("alike").err == "comm_worker: a flag that nobody has\n");
}

TEST_CASE("comm: two, three and four processes get each byte from where it belongs" * needs_mpirun()) {
    for (int count = 1; count <= 4; count++) {
        CAPTURE(count);
        Result result = job(count, "contract");
        CAPTURE(result.err);
        CHECK(result.code == 0);
        CHECK(own_lines(result.err).empty());
        for (int r = 0; r < count; r++) {
            const std::string who = std::to_string(r) + " of " + std::to_string(count);
            CHECK(occurrences(result.out, "rank " + who + " (" + who + " on " + own_host_name() + "): OK\n") == 1);
        }
    }
}

TEST_CASE("comm: beyond the deadline every process ends, and its error says which rank waited where for which" * needs_mpirun()) {
    struct Late {
        int count;
        std::string what, where, whom;
    };
    const std::vector<Late> cases = {{3, "exchange-late 1", "step 17: exchange of gradients", rank(1)},
                                     {3, "gather-late 2", "step 17: gather of weights", rank(2)},
                                     {2, "bring-late 1", "step 17: bring", rank(1)},
                                     {3, "stopped 0", "step 17: collect", rank(0)},
                                     {3, "never-comes 1", "the start: MPI_Init", "the others"}};
    std::vector<std::future<Result>> jobs;   // side by side, since they only wait. Five seconds, since the start must not take longer on a busy machine
    for (const Late& late : cases) jobs.push_back(std::async(std::launch::async, job, late.count, late.what, "export DEADLINE=5;"));
    for (size_t i = 0; i < cases.size(); i++) {
        CAPTURE(cases[i].what);
        check_waited(jobs[i].get(), cases[i].where, cases[i].whom);
    }
}

TEST_CASE("comm: a process that dies ends the job, and those that wait for it say so, once" * needs_mpirun()) {
    Result result = job(3, "killed 1", "export OMPI_MCA_odls_base_sigkill_timeout=3;");   // mpirun's default of one second before it kills the rest may be too short on a busy machine
    CAPTURE(result.err);
    CHECK(result.code == 128 + SIGKILL);
    CHECK(result.out == "");
    for (int r : {0, 2}) CHECK(occurrences(result.err, "comm_worker: " + rank(r) + ", step 17: collect was asked to stop, and still waits for " + rank(1) + "\n") == 1);
}

TEST_CASE("comm: a stop is said once while it waits, and it goes on waiting" * needs_mpirun()) {
    Result result = job(3, "asked-to-stop 1");   // which comes after a second and a half
    CAPTURE(result.err);
    CHECK(result.code == 0);
    CHECK(own_lines(result.err).size() == 2);
    for (int r : {0, 2}) CHECK(occurrences(result.err, "comm_worker: " + rank(r) + ", step 17: collect was asked to stop, and still waits for " + rank(1) + "\n") == 1);
}

TEST_CASE("comm: an error that all processes share is one line; any other is printed by each that has it, and ends the job" * needs_mpirun()) {
    Result alike = job(3, "alike");
    CHECK(own_lines(alike.err) == std::vector<std::string>{"comm_worker: a flag that nobody has\n"});
    CHECK(alike.code == 2);

    Result differ = job(2, "differ");
    CHECK(differ.code == 2);
    std::vector<std::string> lines = own_lines(differ.err);
    CHECK(!lines.empty());   // the first to print its error may end the other before it prints
    for (const std::string& line : lines) CHECK(std::regex_match(line, std::regex("comm_worker: process [01] has no such file\n")));

    Result one = job(3, "one-fails 1");   // the others would wait 60 seconds
    CAPTURE(one.err);
    CHECK(one.code == 2);
    CHECK(occurrences(one.err, "comm_worker: process 1 has no such file\n") == 1);
    CHECK(occurrences(one.err, "waited") == 0);
}

TEST_CASE("comm: an error that leaves the object behind does not hang in its destructor" * needs_mpirun()) {
    Result result = job(2, "unwinds 1");
    CAPTURE(result.err);
    CHECK(result.code == 2);
    CHECK(occurrences(result.err, "comm_worker: no memory\n") == 1);
    CHECK(occurrences(result.err, "waited") == 0);
}

TEST_CASE("comm: a warning says that mpirun bound a process to fewer cores than it has threads" * needs_mpirun()) {
    const long cores = sysconf(_SC_NPROCESSORS_ONLN);
    if (cores < 2 || run("nproc").out == "1\n") return;   // nothing to bind to
    auto bound = [](const std::string& to, const std::string& threads) {
        return run(ALONE + threads + "; export" + mpirun_variables() + "; exec mpirun -n 1 --bind-to " + to + " " + FOLDER + "/comm_worker starts").err;
    };
    CHECK(bound("core", "export OMP_NUM_THREADS=2") == "comm_worker: warning: mpirun bound this process to 1 of " + std::to_string(cores) +
                                                           " cores, and its 2 threads share it; give mpirun --bind-to none\n");
    CHECK(occurrences(bound("core", "unset OMP_NUM_THREADS"), "warning: mpirun bound this process to 1 of ") == 1);
    CHECK(bound("core", "export OMP_NUM_THREADS=1") == "");
    CHECK(bound("none", "export OMP_NUM_THREADS=2") == "");
}

TEST_CASE("comm: several processes that cannot reach each other are refused in one line") {
    auto refused = [](const std::string& launcher, const std::string& program, const std::string& words) {
        Result result = process("starts", launcher, program);
        CHECK(result.code == 2);
        CHECK(result.out == "");
        CHECK(result.err == "comm_worker: comm: " + words + "\n");
    };
    const std::string srun = "SLURM_STEP_NUM_TASKS=4 SLURM_PROCID=1 SLURM_LOCALID=1", variables = "WORLD_SIZE=4 RANK=1 LOCAL_RANK=1";
    const std::string mpirun = "OMPI_COMM_WORLD_SIZE=4 OMPI_COMM_WORLD_RANK=1 OMPI_COMM_WORLD_LOCAL_RANK=1";
    const std::string no_mpi = " processes, and this build has no MPI, by which they reach each other; make deps installs it, then make";
    refused(mpirun, "comm_worker_without_mpi", "mpirun started 4" + no_mpi);
    refused(srun, "comm_worker_without_mpi", "srun started 4" + no_mpi);
    refused(srun + " PMIX_RANK=1", "comm_worker_without_mpi", "srun with PMIx started 4" + no_mpi);
    refused("PMIX_RANK=0", "comm_worker_without_mpi", "a launcher with PMIx started perhaps several" + no_mpi);
    refused(variables, "comm_worker_without_mpi", "RANK and WORLD_SIZE say that there are 4" + no_mpi);
    if (!MpiJob::built_in()) return;
    refused(srun, "comm_worker", "srun started 4 tasks, and without PMIx MPI cannot reach them; give srun --mpi=pmix, or use mpirun");
    refused(variables, "comm_worker", "RANK and WORLD_SIZE say that there are 4 processes, and on CPUs MPI starts them; use mpirun -n 4, or unset WORLD_SIZE");
}
