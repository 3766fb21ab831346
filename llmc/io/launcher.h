// Which process of a job this is, as its launcher's environment says it: mpirun, srun, or whoever sets RANK and WORLD_SIZE.
#pragma once
#include <string>

struct Launcher {
    enum class Kind {
        none,        ///< nobody says that there are others
        mpi,         ///< mpirun, or srun --mpi=pmix: MPI_Init finds the others
        slurm,       ///< srun without PMIx
        variables,   ///< RANK, WORLD_SIZE and LOCAL_RANK, as torchrun sets them
    };
    Kind kind = Kind::none;
    int rank = 0;
    int count = 1;         ///< 0: not said; MPI tells
    int local_rank = 0;    ///< among the processes of this host
    int local_count = 1;   ///< 0: not said
};

/// Reads the environment. Throws std::invalid_argument where it contradicts itself, or says less than a process must know.
Launcher find_launcher();

/// "mpirun", "srun", ...: for errors.
std::string launcher_name(const Launcher& launcher);
/// "mpirun started 4 processes", "RANK and WORLD_SIZE say that there are 4 processes", ...
std::string what_it_started(const Launcher& launcher);
