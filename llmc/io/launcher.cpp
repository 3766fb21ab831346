#include "llmc/io/launcher.h"
#include <charconv>
#include <cstdlib>
#include <cstring>
#include <optional>
#include "llmc/io/error.h"

namespace {
/// The number in an environment variable, if it is set.
std::optional<int> number(const char* name, int least) {
    const char* text = std::getenv(name);
    if (!text || !*text) return {};
    int value = 0;
    const char* end = text + std::strlen(text);
    const auto [stopped, error] = std::from_chars(text, end, value);
    require(error == std::errc() && stopped == end && value >= least, "the launcher: ", name, " must be a whole number of at least ", least, ", not '", text,
            "'; a launcher sets it, or unset it");
    return value;
}

int told(const char* name, int least, const char* by) {
    const std::optional<int> value = number(name, least);
    require(value.has_value(), "the launcher: ", by, " is set, and ", name, " is not; a process must know both: set it, or unset ", by);
    return *value;
}

/// Number of tasks of this step on node `node`, from Slurm's list: "4(x2),3" means 4, 4 and 3. 0: not in the list.
int tasks_on_node(const char* list, int node) {
    while (list && *list) {
        char* end;
        const long tasks = std::strtol(list, &end, 10);
        long nodes = 1;
        if (end == list) return 0;
        if (std::strncmp(end, "(x", 2) == 0) {
            nodes = std::strtol(end + 2, &end, 10);
            if (*end == ')') end++;
        }
        if (node < nodes) return static_cast<int>(tasks);
        node -= static_cast<int>(nodes);
        list = *end == ',' ? end + 1 : nullptr;
    }
    return 0;
}

/// Rank and counts of the step that srun started. (Not SLURM_NTASKS: it belongs to the allocation, and is set in a batch script without a step.)
Launcher slurm_step(Launcher::Kind kind) {
    const char* by = "SLURM_STEP_NUM_TASKS";
    return {kind, told("SLURM_PROCID", 0, by), told(by, 1, by), told("SLURM_LOCALID", 0, by),
            tasks_on_node(std::getenv("SLURM_STEP_TASKS_PER_NODE"), number("SLURM_NODEID", 0).value_or(0))};
}
}  // namespace

Launcher find_launcher() {
    Launcher found;
    const bool in_step = number("SLURM_STEP_NUM_TASKS", 1).has_value();
    if (number("OMPI_COMM_WORLD_SIZE", 1)) {
        const char* by = "OMPI_COMM_WORLD_SIZE";
        found = {Launcher::Kind::mpi, told("OMPI_COMM_WORLD_RANK", 0, by), told(by, 1, by), told("OMPI_COMM_WORLD_LOCAL_RANK", 0, by),
                 number("OMPI_COMM_WORLD_LOCAL_SIZE", 1).value_or(0)};
    } else if (const auto pmix_rank = number("PMIX_RANK", 0)) {
        found = in_step ? slurm_step(Launcher::Kind::mpi) : Launcher{Launcher::Kind::mpi, *pmix_rank, 0, 0, 0};
    } else {
        if (in_step) found = slurm_step(Launcher::Kind::slurm);
        // Many containers set WORLD_SIZE=1 and nothing else, whatever runs in them.
        if (const auto count = number("WORLD_SIZE", 1); count && *count > 1) {
            const int rank = told("RANK", 0, "WORLD_SIZE"), local_rank = told("LOCAL_RANK", 0, "WORLD_SIZE");
            // More processes than srun started: its tasks are torchrun launchers, which started these.
            require(*count > found.count || (*count == found.count && rank == found.rank), "the launcher: RANK and WORLD_SIZE say process ", rank, " of ", *count,
                    ", srun says process ", found.rank, " of ", found.count, "; unset RANK and WORLD_SIZE");
            if (*count > found.count) found = {Launcher::Kind::variables, rank, *count, local_rank, number("LOCAL_WORLD_SIZE", 1).value_or(0)};
        }
    }
    require(found.count == 0 || found.rank < found.count, "the launcher: a rank must be below the count of processes, not ", found.rank, " of ", found.count,
            " (", launcher_name(found), " says so); correct what sets them");
    return found;
}

std::string launcher_name(const Launcher& launcher) {
    switch (launcher.kind) {
        case Launcher::Kind::mpi: return std::getenv("OMPI_COMM_WORLD_SIZE") ? "mpirun" : std::getenv("SLURM_STEP_NUM_TASKS") ? "srun with PMIx" : "a launcher with PMIx";
        case Launcher::Kind::slurm: return "srun";
        case Launcher::Kind::variables: return "RANK and WORLD_SIZE";
        case Launcher::Kind::none: break;
    }
    return "no launcher";
}

std::string what_it_started(const Launcher& launcher) {
    return concat(launcher_name(launcher), launcher.kind == Launcher::Kind::variables ? " say that there are " : " started ",
                  launcher.count > 0 ? concat(launcher.count) : "perhaps several", " processes");
}
