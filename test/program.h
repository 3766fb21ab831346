// For tests that run the built programs: a command's exit code and output, temporary folders, reading and writing files.
#pragma once
#include <sys/wait.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <stdexcept>
#include <string>

/// A new folder under $TMPDIR or /tmp, removed with its contents by the destructor.
struct TempDir {
    std::string path;

    TempDir() {
        const char* base = std::getenv("TMPDIR");
        path = std::string(base && *base ? base : "/tmp") + "/deepen-test-XXXXXX";
        if (!mkdtemp(path.data())) throw std::runtime_error("cannot make a folder " + path);
    }
    ~TempDir() {
        std::error_code ignored;
        std::filesystem::remove_all(path, ignored);
    }
    TempDir(const TempDir&) = delete;
    TempDir& operator=(const TempDir&) = delete;

    std::string operator/(const std::string& name) const { return path + "/" + name; }
};

inline std::string read_file(const std::string& path) {
    std::ifstream file(path, std::ios::binary);
    if (!file) throw std::runtime_error("cannot read " + path);
    return {std::istreambuf_iterator<char>(file), {}};
}

inline void write_file(const std::string& path, const std::string& bytes) {
    std::ofstream file(path, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    if (!file.flush()) throw std::runtime_error("cannot write " + path);
}

struct Result {
    int code;  ///< exit status; 128 + n when signal n ended it
    std::string out, err;
};

/// Runs a command line in sh, from the folder the tests run in (the top of the tree), with an empty stdin.
inline Result run(const std::string& command) {
    TempDir dir;
    int status = std::system(("( " + command + "\n) </dev/null >" + dir / "out" + " 2>" + dir / "err").c_str());
    int code = WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    return {code, read_file(dir / "out"), read_file(dir / "err")};
}

/// How often the text has the words.
inline int occurrences(const std::string& text, const std::string& words) {
    int found = 0;
    for (size_t at = text.find(words); at != text.npos; at = text.find(words, at + 1)) found++;
    return found;
}
