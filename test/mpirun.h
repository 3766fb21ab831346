// For tests that start jobs with mpirun.
#pragma once
#include <string>
#include "test/program.h"

/// Shell variables for one mpirun: it may run as root, and has a session folder of its own. By default the jobs of Open MPI 4.1 share one, and a job
/// that ends removes it while another job starts.
inline std::string mpirun_variables() {
    static const TempDir sessions;
    return " OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMPI_MCA_orte_tmpdir_base=$(mktemp -d " + sessions / "XXXXXX" + ") ";
}
