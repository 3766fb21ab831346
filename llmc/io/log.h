// Output of a run in progress: log.jsonl for programs, a progress bar and warnings for people.
#pragma once
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include "llmc/io/error.h"

/// A JSON Lines file that grows: one object per line.
class Log {
public:
    /// Opens the file for appending; a half-written last line of a killed process is ended first. Throws std::invalid_argument when the
    /// file cannot be written.
    explicit Log(const std::string& path);
    ~Log();
    Log(const Log&) = delete;
    Log& operator=(const Log&) = delete;

    /// Writes a line and flushes it to the system. Throws std::invalid_argument when that fails, for instance on a full disk.
    void write(const nlohmann::json& line);

private:
    std::string path;
    FILE* stream;
};

/// x, or null: JSON has no NaN or Inf.
nlohmann::json or_null(double x);

/// False at all ranks but 0, which prints for all.
inline bool warnings_on = true;

/// Prints `program: warning: pieces` as a line on stderr.
template <class... Pieces>
void warn(const char* program, const Pieces&... pieces) {
    if (!warnings_on) return;
    std::cout.flush();
    std::cerr << readable(concat(program, ": warning: ", pieces...)) << std::endl;
}

/// h:mm:ss
std::string clock_text(double seconds);

/// A progress bar on the last line of a terminal; the next line of output replaces it. Shows nothing if stdout is not a terminal, or if not
/// `wanted` (mpirun gives its processes a terminal even if their output goes to a file).
class ProgressBar {
public:
    explicit ProgressBar(bool wanted = true);
    void show(int64_t step, int64_t steps, double seconds_left);
    void clear();

private:
    const bool terminal;
};
