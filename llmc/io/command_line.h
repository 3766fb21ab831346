// Command lines: what CLI11 does with one, as all programs answer.
#pragma once
#include <CLI/CLI.hpp>
#include "llmc/io/error.h"

/// False when help was asked for, and printed. Throws std::invalid_argument for a command line that is not right.
inline bool parse_command_line(CLI::App& app, int argc, char** argv) {
    app.get_formatter()->column_width(34);
    try {
        app.parse(argc, argv);
    } catch (const CLI::CallForHelp&) {
        std::cout << app.help();
        return false;
    } catch (const CLI::ParseError& error) {
        fail(error.what(), "; see --help");
    }
    return true;
}
