// Errors: every refusal is one line that names the thing, the rule, the value and the way out.
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

/// The pieces, printed one after another, as one string.
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

/// Keeps what is thrown in a parallel region, which no exception may leave, and throws the first of it behind the region:
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

/// A text as it is printed of an error, whatever of a user's it repeats: on one line, since control characters (a line break in a
/// path) become spaces; and of more than 600 characters the first 360 and the last 240, where the way out is, with the number of
/// those between them. UTF-8 is not cut within a character.
inline std::string readable(std::string text) {
    constexpr size_t longest = 600, first = 360, last = 240;
    for (char& c : text)
        if ((c >= 0 && c < ' ') || c == 127) c = ' ';
    if (text.size() <= longest) return text;
    auto continues = [&](size_t at) { return (text[at] & 0xC0) == 0x80; };   // a byte of UTF-8 that begins no character
    size_t from = first, to = text.size() - last;
    while (from > first - 4 && continues(from)) from--;
    while (to < text.size() - last + 4 && continues(to)) to++;
    const auto left_out = std::count_if(text.begin() + from, text.begin() + to, [](char c) { return (c & 0xC0) != 0x80; });
    return concat(text.substr(0, from), "... (", left_out, " characters left out) ...", text.substr(to));
}

/// A program is built for the processor that it is built on. One that lacks an instruction of it gets a line and exit code 2 in place of a
/// crash; from before all other initialization on, which may be where it is met.
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

/// What main() of every program does: runs `body`, and turns what it throws into one readable line on stderr (`name: text`) and exit
/// code 2. more_memory: what to do when there is not enough.
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

/// What a program does last that printed results: output that nobody reads any more is no error, output that was lost is, and
/// throws std::invalid_argument. (std::cout is stdout.)
inline void require_printed() {
    std::cout.flush();
    if (std::fflush(stdout) == 0 && !std::ferror(stdout) && std::cout) return;
    const bool now = write(STDOUT_FILENO, "\n", 1) == 1;   // what failed is not known any more: asked once more
    require(!now && errno == EPIPE, "stdout: cannot be written: ", now ? "some of the text is lost" : std::strerror(errno),
            "; make room, or send it elsewhere");
}

/// run_program() for a program that is there to write a file: it does so whether its output is read to the end or not, or lost.
template <class Body>
int run_to_its_file(const char* name, Body body) {
    std::signal(SIGPIPE, SIG_IGN);
    return run_program(name, [&] {
        const int code = body();
        require_printed();
        return code;
    });
}
