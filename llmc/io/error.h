// Errors: one line that names the thing, the rule, the value and the way out.
#pragma once
#include <unistd.h>
#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <exception>
#include <iostream>
#include <mutex>
#include <sstream>
#include <stdexcept>
#include <string>

/// Prints the pieces one after another into a string.
template <class... Pieces>
std::string concat(const Pieces&... pieces) {
    std::ostringstream text;
    (text << ... << pieces);
    return text.str();
}

/// Throws std::invalid_argument with the pieces as its text.
template <class... Pieces>
[[noreturn]] void fail(const Pieces&... pieces) {
    throw std::invalid_argument(concat(pieces...));
}

/// Unless `holds`, throws std::invalid_argument with the pieces as its text.
template <class... Pieces>
void require(bool holds, const Pieces&... pieces) {
    if (!holds) fail(pieces...);
}

/// No exception may leave an OpenMP region. This catches exceptions in it, and rethrows the first one after the region:
///     ParallelErrors errors;
///     #pragma omp parallel for
///     for (...) errors.run([&] { ... });
///     errors.rethrow();
class ParallelErrors {
public:
    template <class Work>
    void run(Work work) {
        try {
            work();
        } catch (...) {
            std::lock_guard lock(mutex);
            if (!first) first = std::current_exception();
        }
    }
    void rethrow() {
        if (first) std::rethrow_exception(first);
    }

private:
    std::mutex mutex;
    std::exception_ptr first;
};

/// An error text that is safe to print, whatever user input it quotes: on one line (control characters, such as a line break in a path,
/// become spaces), and shortened: of more than 600 characters it keeps the first 360 and the last 240, where the way out is, and says
/// how many are left out. UTF-8 is not cut within a character.
inline std::string readable(std::string text) {
    constexpr size_t longest = 600, first = 360, last = 240;
    for (char& c : text)
        if ((c >= 0 && c < ' ') || c == 127) c = ' ';
    if (text.size() <= longest) return text;
    auto continues = [&](size_t at) { return (text[at] & 0xC0) == 0x80; };   // a continuation byte of UTF-8
    size_t from = first, to = text.size() - last;
    while (from > first - 4 && continues(from)) from--;
    while (to < text.size() - last + 4 && continues(to)) to++;
    const auto left_out = std::count_if(text.begin() + from, text.begin() + to, [](char c) { return (c & 0xC0) != 0x80; });
    return concat(text.substr(0, from), "... (", left_out, " characters left out) ...", text.substr(to));
}

/// A program is built for the processor of the machine that builds it. On a processor that lacks one of its instructions it prints a line and
/// exits with code 2 instead of crashing. This is installed before all other static initialization, which may already use such instructions.
struct ProcessorGuard {
    ProcessorGuard() { std::signal(SIGILL, refuse); }
    static void refuse(int) {
        static constexpr char text[] = ": this processor lacks an instruction that the program was built with; build it here: make clean, then make\n";
        bool written = write(STDERR_FILENO, program_invocation_short_name, std::strlen(program_invocation_short_name)) > 0;
        if (written) written = write(STDERR_FILENO, text, sizeof text - 1) > 0;
        _exit(2);
    }
};
[[gnu::init_priority(101)]] inline ProcessorGuard processor_guard;

/// The main() of every program: runs `body`, and turns an exception into one readable line on stderr (`name: text`) and exit code 2.
/// more_memory: what to do when memory runs out.
template <class Body>
int run_program(const char* name, Body body, const char* more_memory = "free some, or use a machine that has more") {
    std::string text;
    try {
        return body();
    } catch (const std::bad_alloc&) {
        text = concat("out of memory; ", more_memory);
    } catch (const std::exception& error) {
        text = error.what();
    }
    std::cout.flush();
    std::cerr << readable(concat(name, ": ", text)) << std::endl;
    return 2;
}

/// Called last by a program that prints results: throws std::invalid_argument if output was lost (a full disk). A closed pipe, whose
/// reader wants no more, is not an error. (std::cout is stdout.)
inline void require_printed() {
    std::cout.flush();
    if (std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout) return;
    const bool now = write(STDOUT_FILENO, "\n", 1) == 1;   // errno of the failed write is gone: write once more to get it
    require(!now && errno == EPIPE, "stdout: cannot be written: ", now ? "some of the text is lost" : std::strerror(errno),
            "; make room, or send it elsewhere");
}

/// run_program() for a program whose purpose is to write a file: it ignores SIGPIPE, so that the file is written even if stdout is closed.
template <class Body>
int run_to_its_file(const char* name, Body body) {
    std::signal(SIGPIPE, SIG_IGN);
    return run_program(name, [&] {
        const int code = body();
        require_printed();
        return code;
    });
}
