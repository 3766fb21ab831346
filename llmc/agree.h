// What the processes of a job decide together: errors that one of them has and all of them act on, and whether they are told the same.
#pragma once
#include <string>
#include <utility>
#include <vector>
#include "llmc/io/error.h"
#include "llmc/ops/comm.h"

/// The texts of all processes, in the order of ranks. Called by all of them.
std::vector<std::string> collect_texts(Comm& comm, const std::string& mine);

/// "rank 3 on host node7", or nothing where the process is alone.
std::string name_of(const Comm& comm);

/// Throws std::invalid_argument at all processes where any has an error (a text that is not empty): that of the lowest rank, which it names where
/// it is not the error of all.
void fail_together(Comm& comm, const std::string& error);

/// `work` at each process. What it throws at any of them as std::invalid_argument, all throw.
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

/// The same at rank 0 alone: folders, logs and files are its.
template <class Work>
void at_first(Comm& comm, Work work) {
    together(comm, [&] {
        if (comm.rank() == 0) work();
    });
}

/// run_program() for one of several processes. An error that all of them have is rank 0's to tell; one that others have not ends the whole job,
/// with a line that names the process.
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

/// Throws std::invalid_argument at all processes unless each of these is the same text at all of them; names the first that differs, and two ranks.
/// facts: what it is, and its value
void require_alike(Comm& comm, const std::vector<std::pair<std::string, std::string>>& facts);
