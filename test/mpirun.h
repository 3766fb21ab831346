// For tests that start jobs with mpirun.
#pragma once
#include <string>
#include "test/program.h"

/// Shell words that set variables for one mpirun: it may run as root, and it has a folder for its session of its own. Open MPI 4.1 otherwise keeps those
/// of all jobs in one, and a job that ends takes it away from another that begins.
inline std::string mpirun_variables() {
    static const TempDir sessions;
    return " OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_orte_tmpdir_base=$(mktemp -d " + sessions / "XXXXXX" + ") ";
}
