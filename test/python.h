// For suites that run Python scripts: the interpreter, and which packages this machine has.
#pragma once
#include <filesystem>
#include <string>
#include "test/needs.h"
#include "test/program.h"

/// The interpreter that Debian's matplotlib is installed for, else the first on the PATH.
inline const std::string PYTHON = std::filesystem::exists("/usr/bin/python3") ? "/usr/bin/python3" : "python3";

inline Needs needs_python() {
    static const bool there = run(PYTHON + " -c ''").code == 0;
    return {there, "python3"};
}
inline bool has_matplotlib() {
    static const bool there = run(PYTHON + " -c 'import matplotlib'").code == 0;
    return there;
}
inline Needs needs_matplotlib() { return {has_matplotlib(), "matplotlib"}; }
