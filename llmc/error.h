// Errors: every refusal is one line that names the thing, the rule, the value and the way out.
#pragma once
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

/// What main() of every program does: runs `body`, and turns what it throws into one line on stderr
/// (`name: text`) and exit code 2. A line break inside a text (a user's path) is printed as a space.
/// more_memory: what to do when there is not enough.
template <class Body>
int run_program(const char* name, Body body, const char* more_memory = "free some, or use a machine that has more") {
    try {
        return body();
    } catch (const std::bad_alloc&) {
        std::cout.flush();
        std::cerr << name << ": out of memory; " << more_memory << std::endl;
    } catch (const std::exception& error) {
        std::string text = error.what();
        for (char& c : text)
            if (c == '\n' || c == '\r') c = ' ';
        std::cout.flush();
        std::cerr << name << ": " << text << std::endl;
    }
    return 2;
}
