// For tests that start jobs of several processes.
#pragma once
#include <string>
#include "llmc/io/mpi_job.h"
#include "test/needs.h"
#include "test/program.h"

/// Shell words that make their shell one that no launcher started, as the tests themselves may run in a job.
inline const std::string NO_LAUNCHER = "unset $(env | sed -nE 's/^((SLURM|OMPI|PMIX|PMI)_[A-Za-z0-9_]*|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE)=.*/\\1/p'); ";

/// This build has MPI, and this machine its mpirun.
inline bool has_mpirun() {
    static const bool there = MpiJob::built_in() && run("command -v mpirun").code == 0;
    return there;
}
inline Needs needs_mpirun() { return {has_mpirun(), "MPI"}; }

/// Shell variables for one mpirun: it may run as root, and has a session folder of its own. By default the jobs of Open MPI 4.1 share one, and a job
/// that ends removes it while another job starts.
inline std::string mpirun_variables() {
    static const TempDir sessions;
    return " OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_orte_tmpdir_base=$(mktemp -d " + sessions / "XXXXXX" + ") ";
}
