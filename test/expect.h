// For tests that run the built programs: commands that must work, and commands that must be refused.
#pragma once
#include <doctest/doctest.h>

#include <algorithm>
#include <string>
#include "test/program.h"

/// Runs a command that must work.
inline std::string done(const std::string& command) {
    Result result = run(command);
    INFO(command, ": ", result.err);
    CHECK(result.code == 0);
    CHECK(result.err == "");
    return result.out;
}

/// Runs a command that must be refused: exit 2, one line on stderr that holds `words`.
inline void refused(const std::string& command, const std::string& words) {
    Result result = run(command);
    INFO(command, ": ", result.code, " ", result.err);
    CHECK(result.code == 2);
    CHECK(result.err.find(words) != std::string::npos);
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
}
