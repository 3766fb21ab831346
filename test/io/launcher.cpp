// The rank of this process and the size of its job, from the variables that launchers set.
#include "llmc/io/launcher.h"
#include <doctest/doctest.h>
#include <array>
#include <cstdlib>
#include <map>
#include <stdexcept>
#include <string>

using Environment = std::map<std::string, std::string>;

/// find_launcher() with these variables, and no others that launchers set.
static Launcher found(const Environment& environment) {
    static constexpr std::array names = {"OMPI_COMM_WORLD_SIZE", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE", "PMIX_RANK",
                                         "SLURM_STEP_NUM_TASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_TASKS_PER_NODE", "SLURM_NTASKS",
                                         "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE"};
    struct Restored {
        Environment before;
        Restored() {
            for (const char* name : names)
                if (const char* value = std::getenv(name)) before[name] = value;
        }
        ~Restored() {
            for (const char* name : names) unsetenv(name);
            for (auto& [name, value] : before) setenv(name.c_str(), value.c_str(), 1);
        }
    } restored;
    for (const char* name : names) unsetenv(name);
    for (auto& [name, value] : environment) setenv(name.c_str(), value.c_str(), 1);
    return find_launcher();
}

static void check(const Environment& environment, Launcher::Kind kind, int rank, int count, int local_rank, int local_count) {
    const Launcher launcher = found(environment);
    CHECK(launcher.kind == kind);
    CHECK(launcher.rank == rank);
    CHECK(launcher.count == count);
    CHECK(launcher.local_rank == local_rank);
    CHECK(launcher.local_count == local_count);
}

static std::string refusal(const Environment& environment) {
    try {
        found(environment);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

static const Environment MPIRUN{{"OMPI_COMM_WORLD_SIZE", "4"}, {"OMPI_COMM_WORLD_RANK", "3"}, {"OMPI_COMM_WORLD_LOCAL_RANK", "1"}, {"OMPI_COMM_WORLD_LOCAL_SIZE", "2"}, {"PMIX_RANK", "3"}};
static const Environment SRUN{{"SLURM_STEP_NUM_TASKS", "11"}, {"SLURM_PROCID", "9"}, {"SLURM_LOCALID", "1"}, {"SLURM_NODEID", "2"}, {"SLURM_STEP_TASKS_PER_NODE", "4(x2),3"}};
static const Environment TORCHRUN{{"WORLD_SIZE", "8"}, {"RANK", "5"}, {"LOCAL_RANK", "1"}, {"LOCAL_WORLD_SIZE", "4"}};

/// The variables of both; b's win.
static Environment both(Environment a, const Environment& b) {
    for (auto& [name, value] : b) a[name] = value;
    return a;
}

TEST_CASE("launcher: mpirun, srun and RANK define the rank of a process, and nothing else does") {
    check({}, Launcher::Kind::none, 0, 1, 0, 1);
    check(MPIRUN, Launcher::Kind::mpi, 3, 4, 1, 2);
    check(SRUN, Launcher::Kind::slurm, 9, 11, 1, 3);
    check(both(SRUN, {{"SLURM_NODEID", "1"}}), Launcher::Kind::slurm, 9, 11, 1, 4);
    check(both(SRUN, {{"PMIX_RANK", "9"}}), Launcher::Kind::mpi, 9, 11, 1, 3);
    check(TORCHRUN, Launcher::Kind::variables, 5, 8, 1, 4);
    // A batch script sees the number of tasks of its allocation, but is not started by srun.
    check({{"SLURM_NTASKS", "8"}, {"SLURM_PROCID", "0"}, {"SLURM_LOCALID", "0"}}, Launcher::Kind::none, 0, 1, 0, 1);
    // mpirun in a job of Slurm starts its own helpers through srun.
    check(both(SRUN, MPIRUN), Launcher::Kind::mpi, 3, 4, 1, 2);
    // A launcher that does not set the number of processes: MPI knows it.
    check({{"PMIX_RANK", "2"}}, Launcher::Kind::mpi, 2, 0, 0, 0);
    // Containers set a number of one.
    check({{"WORLD_SIZE", "1"}}, Launcher::Kind::none, 0, 1, 0, 1);
    check({{"WORLD_SIZE", ""}}, Launcher::Kind::none, 0, 1, 0, 1);
}

TEST_CASE("launcher: under srun, torchrun's own numbers count; contradictions are refused") {
    const Environment torchruns{{"SLURM_STEP_NUM_TASKS", "2"}, {"SLURM_PROCID", "1"}, {"SLURM_LOCALID", "0"}, {"SLURM_STEP_TASKS_PER_NODE", "1(x2)"}};
    check(both(torchruns, TORCHRUN), Launcher::Kind::variables, 5, 8, 1, 4);
    check(both(SRUN, both(TORCHRUN, {{"WORLD_SIZE", "11"}, {"RANK", "9"}})), Launcher::Kind::slurm, 9, 11, 1, 3);
    CHECK(refusal(both(SRUN, TORCHRUN)) == "the launcher: RANK and WORLD_SIZE say process 5 of 8, srun says process 9 of 11; unset RANK and WORLD_SIZE");
    CHECK(refusal(both(SRUN, both(TORCHRUN, {{"WORLD_SIZE", "11"}}))).find("say process 5 of 11, srun says process 9 of 11") != std::string::npos);
}

TEST_CASE("launcher: missing or nonsensical variables are refused") {
    CHECK(refusal({{"WORLD_SIZE", "2"}}) == "the launcher: WORLD_SIZE is set, and RANK is not; a process must know both: set it, or unset WORLD_SIZE");
    CHECK(refusal({{"WORLD_SIZE", "2"}, {"RANK", "0"}}).find("LOCAL_RANK is not") != std::string::npos);
    CHECK(refusal({{"SLURM_STEP_NUM_TASKS", "2"}}).find("SLURM_PROCID is not") != std::string::npos);
    CHECK(refusal(both(TORCHRUN, {{"RANK", "8"}})) ==
          "the launcher: a rank must be below the count of processes, not 8 of 8 (RANK and WORLD_SIZE says so); correct what sets them");
    for (std::string text : {"x", "0", "-1", "2x", "99999999999"})
        CHECK(refusal({{"WORLD_SIZE", text}}) == "the launcher: WORLD_SIZE must be a whole number of at least 1, not '" + text + "'; a launcher sets it, or unset it");
}
