// Waiting for the other processes of a job: with a deadline, with a message when the user stops the job meanwhile, and without busy polling.
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

/// The job cannot continue: another process died or missed the deadline, or the transport failed. The text names host, rank, step, phase, and the
/// processes that it waited for.
struct CommError : std::runtime_error {
    using std::runtime_error::runtime_error;
};

struct CommOptions {
    double deadline = 600;                                ///< seconds that one call waits while no data arrives
    std::string meet;                                     ///< a file on a shared disk, through which processes on GPUs connect without MPI; empty: none
    const volatile std::sig_atomic_t* stop = nullptr;     ///< set by a signal: a call that still waits then prints on stderr for which processes
};

/// Writes a line to stderr with a single write(), since several processes share it: "train_gpt: text".
inline void say_to_stderr(const std::string& text) noexcept {
    const std::string line = readable(concat(program_invocation_short_name, ": ", text)) + "\n";
    if (write(STDERR_FILENO, line.data(), line.size()) < 0) return;   // stderr is closed: nowhere to report that
}

/// The wait of one call, which polls: pause() whenever nothing has arrived, progress() when something has.
class Waiting {
public:
    /// where: "rank 0 on host a, step 17: gather of weights". said_stop: whether the line after a stop was printed, which happens once per process.
    Waiting(const CommOptions& from, std::atomic<bool>& said, std::string at) : options(from), said_stop(said), where(std::move(at)) {}

    /// Data arrived: the deadline starts anew.
    void progress() { since = Clock::now(); }

    /// Yields the core for a moment. Throws CommError after the deadline. whom(): "rank 1 on host b"
    template <class Whom>
    void pause(Whom whom) {
        const Clock::time_point now = Clock::now();
        const double waited = std::chrono::duration<double>(now - since).count();
        if (waited > options.deadline)
            throw CommError(concat(where, " waited ", seconds(waited), " for ", whom(),
                                   "; its own output says why, or else it hangs or is unreachable; start again from the last checkpoint, or give a longer --deadline"));
        if (options.stop && *options.stop && !said_stop) {
            if (stopped == Clock::time_point()) stopped = now;
            // Print only after 300 ms: most stops take effect at the end of the step before that.
            if (now - stopped > std::chrono::milliseconds(300) && !said_stop.exchange(true))
                say_to_stderr(concat(where, " was asked to stop, and still waits for ", whom()));
        }
        // Most waits are short, and the transport moves data only while it is polled; in a long wait the other process computes, perhaps on this core.
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
