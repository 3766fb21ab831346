// Waiting for the other processes of a job: with a deadline, a line for the user who stops it, and no more of a core than it takes.
#pragma once
#include <sched.h>
#include <unistd.h>
#include <atomic>
#include <chrono>
#include <cmath>
#include <csignal>
#include <stdexcept>
#include <string>
#include <thread>
#include "llmc/io/error.h"

/// Another process died, or did not come within the deadline, or the transport failed: the job cannot go on. The text names host, rank, step,
/// phase, and for whom it waited.
struct CommError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct CommOptions {
    double deadline = 600;                                ///< seconds that one call waits, while nothing comes, for the others
    std::string meet;                                     ///< a file that all processes see, by which those of a CUDA build meet without MPI; empty: none
    const volatile std::sig_atomic_t* stop = nullptr;     ///< set by a signal: a call that still waits then says on stderr for whom
};

/// A line on stderr in one piece, since several processes write there: "train_gpt: text".
inline void say_to_stderr(const std::string& text) noexcept {
    const std::string line = readable(concat(program_invocation_short_name, ": ", text)) + "\n";
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) return;   // nobody reads it, and there is nobody else to tell
}

/// One call's wait: pause() whenever nothing has come.
class Waiting {
public:
    /// where: "rank 0 on host a, step 17: gather of weights". said_stop: that the line after a stop was said, which is said once in a job.
    Waiting(const CommOptions& from, std::atomic<bool>& said, std::string at) : options(from), said_stop(said), where(std::move(at)) {}

    /// Something came: the deadline begins anew.
    void progress() { since = Clock::now(); }

    /// Gives the core to others for a moment. Throws CommError beyond the deadline. whom(): "rank 1 on host b"
    template <class Whom>
    void pause(Whom whom) {
        const Clock::time_point now = Clock::now();
        const double waited = std::chrono::duration<double>(now - since).count();
        if (waited > options.deadline)
            throw CommError(concat(where, " waited ", seconds(waited), " for ", whom(),
                                   "; its own last words say why, or else it hangs or cannot be reached; start again from the last checkpoint, or give it more time"));
        if (options.stop && *options.stop && !said_stop) {
            if (stopped == Clock::time_point()) stopped = now;
            // Long enough that a step's end, where a stop is heeded, is no reason to say it.
            if (now - stopped > std::chrono::milliseconds(300) && !said_stop.exchange(true))
                say_to_stderr(concat(where, " was asked to stop, and still waits for ", whom()));
        }
        // Most waits are short, and a transport moves data when it is asked alone; a long wait is for a process that computes, perhaps on this core.
        if (waited < 0.001) sched_yield();
        else std::this_thread::sleep_for(std::chrono::microseconds(waited < 0.1 ? 50 : 1000));
    }

    static std::string seconds(double count) { return concat(std::round(count * 10) / 10, " s"); }

private:
    using Clock = std::chrono::steady_clock;
    const CommOptions& options;
    std::atomic<bool>& said_stop;
    const std::string where;
    Clock::time_point since = Clock::now(), stopped;
};
