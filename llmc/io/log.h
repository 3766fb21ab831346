// What a run tells while it goes: log.jsonl for programs, a progress bar for people.
#pragma once
#include <iostream>
#include <nlohmann/json.hpp>
#include <string>
#include "llmc/io/error.h"

/// A file of one JSON object a line, which grows.
class Log {
public:
    /// Appends; a line that a killed process left half-written is closed first. Throws std::invalid_argument when the file
    /// cannot be written.
    explicit Log(const std::string& path);
    ~Log();
    Log(const Log&) = delete;
    Log& operator=(const Log&) = delete;

    /// The line is with the system when it returns. Throws std::invalid_argument when it is not, on a full disk say.
    void write(const nlohmann::json& line);

private:
    std::string path;
    FILE* stream;
};

/// x, or null: JSON has no NaN or Inf.
nlohmann::json or_null(double x);

/// False in those of several processes that another one speaks for.
inline bool warnings_on = true;

/// `program: warning: pieces`, a line on stderr.
template <class... Pieces>
void warn(const char* program, const Pieces&... pieces) {
    if (!warnings_on) return;
    std::cout.flush();
    std::cerr << readable(concat(program, ": warning: ", pieces...)) << std::endl;
}

/// h:mm:ss
std::string clock_text(double seconds);

/// A last line on a terminal that the next line of output takes the place of; nothing elsewhere, nor where it is not wanted (mpirun
/// gives its processes terminals, whoever reads what they print).
class ProgressBar {
public:
    explicit ProgressBar(bool wanted = true);
    void show(int64_t step, int64_t steps, double seconds_left);
    void clear();

private:
    const bool terminal;
};
