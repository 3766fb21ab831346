// What the processes of a job decide together: an error at one process stops all of them, and settings are checked to be equal at all.
#pragma once
#include <string>
#include <utility>
#include <vector>
#include "llmc/io/error.h"
#include "llmc/ops/comm.h"

/// Collective: every process gives a text and gets the texts of all, in the order of ranks.
std::vector<std::string> collect_texts(Comm& comm, const std::string& mine);

/// "rank 3 on host node7", or nothing where the process is alone.
std::string name_of(const Comm& comm);

/// Collective: throws std::invalid_argument at every process when any process passes an error (a text that is not empty). The error thrown is that
/// of the lowest rank that has one; its rank is named unless all processes have the same error.
void fail_together(Comm& comm, const std::string& error);

/// Runs `work` at each process. When it throws std::invalid_argument at any of them, all processes throw it.
template <class Work>
void together(Comm& comm, Work work) {
    std::string error;
    try {
        work();
    } catch (const std::invalid_argument& wrong) {
        if (comm.count() == 1) throw;
        error = wrong.what();
    }
    fail_together(comm, error);
}

/// The same, with `work` at rank 0 alone, which owns folders, logs and files.
template <class Work>
void at_first(Comm& comm, Work work) {
    together(comm, [&] {
        if (comm.rank() == 0) work();
    });
}

/// run_program() for one of several processes. Rank 0 prints an error that all processes have; an error that only some have ends the whole job, with
/// a line that names the process.
template <class Work>
int run_job(Comm& comm, Work work, const char* more_memory) {
    std::string error;
    bool of_all = false;
    try {
        return work();
    } catch (const CommError& gone) {
        error = gone.what();
    } catch (const std::exception& wrong) {
        if (comm.count() == 1) throw;
        error = dynamic_cast<const std::bad_alloc*>(&wrong) ? concat("out of memory; ", more_memory) : wrong.what();
        of_all = comm.all_fail_alike(error);
        if (!of_all) error = concat(name_of(comm), ": ", error);
    }
    std::cout.flush();
    if (!of_all || comm.rank() == 0) say_to_stderr(error);
    if (!of_all) comm.abort();
    return 2;
}

/// Throws std::invalid_argument at all processes unless every fact has the same value at all of them; names the first that differs, and two ranks.
/// facts: pairs of a name and a value
void require_alike(Comm& comm, const std::vector<std::pair<std::string, std::string>>& facts);
