// Rank and number of processes of a job, from the environment that the launcher sets: mpirun, srun, or RANK and WORLD_SIZE as torchrun sets them.
#pragma once
#include <string>

struct Launcher {
    enum class Kind {
        none,        ///< no launcher: a single process
        mpi,         ///< mpirun, or srun --mpi=pmix: MPI_Init connects the processes
        slurm,       ///< srun without PMIx
        variables,   ///< RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them
    };
    Kind kind = Kind::none;
    int rank = 0;
    int count = 1;         ///< 0: unknown until MPI_Init
    int local_rank = 0;    ///< among the processes of this host
    int local_count = 1;   ///< 0: unknown
};

/// Reads the environment. Throws std::invalid_argument when it is contradictory or incomplete.
Launcher find_launcher();

/// "mpirun", "srun", ...: the launcher's name in errors.
std::string launcher_name(const Launcher& launcher);
/// "mpirun started 4 processes", "RANK and WORLD_SIZE say that there are 4 processes", ...
std::string what_it_started(const Launcher& launcher);
