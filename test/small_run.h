// For tests of ./train_gpt: shards for a tiny model, programs that run in the background, and their output, logs and checkpoints.
#pragma once
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>
#include <chrono>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>
#include <string>
#include <thread>
#include <vector>
#include "llmc/text/shard.h"
#include "test/program.h"

/// A command that runs in the background, on one thread (tiny models gain nothing from more). It is killed if the test dies.
class Child {
public:
    explicit Child(const std::string& command) {
        pid_t parent = getpid();
        process = fork();
        if (process != 0) return;
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (getppid() != parent) _exit(1);
        setenv("OMP_NUM_THREADS", "1", 1);
        redirect("/dev/null", O_RDONLY, STDIN_FILENO);
        redirect(dir / "out", O_WRONLY | O_CREAT, STDOUT_FILENO);
        redirect(dir / "err", O_WRONLY | O_CREAT, STDERR_FILENO);
        execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
        _exit(127);
    }
    ~Child() { finish(); }
    Child(const Child&) = delete;
    Child& operator=(const Child&) = delete;

    /// Waits until stdout has the text, or the program has ended.
    void wait_for(const std::string& text) {
        while (!ended() && (!std::filesystem::exists(dir / "out") || read_file(dir / "out").find(text) == std::string::npos)) pause(0.002);
    }
    static void pause(double seconds) { std::this_thread::sleep_for(std::chrono::duration<double>(seconds)); }
    void signal(int number) {
        if (process > 0) kill(process, number);
    }
    const Result& finish() {
        if (process > 0) take(waitpid(process, &status, 0));
        return result;
    }

private:
    static void redirect(const std::string& path, int flags, int to) {
        int file = open(path.c_str(), flags, 0600);
        if (file < 0 || dup2(file, to) < 0) _exit(127);
        close(file);
    }
    bool ended() {
        if (process > 0) take(waitpid(process, &status, WNOHANG));
        return process <= 0;
    }
    void take(pid_t waited) {
        if (waited != process) return;
        process = 0;
        result = {WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status), read_file(dir / "out"), read_file(dir / "err")};
    }

    TempDir dir;
    pid_t process = 0;
    int status = 0;
    Result result{};
};

/// The number after `name` in the output.
inline double number_after(const std::string& out, const std::string& name) {
    size_t at = out.find(name);
    CAPTURE(name);
    REQUIRE(at != std::string::npos);
    return std::stod(out.substr(at + name.size()));
}

/// Tokens 0 to 63; documents of 5 to 60 tokens begin with 64.
inline std::vector<uint16_t> random_tokens(int count, unsigned seed) {
    std::mt19937 generator(seed);
    std::vector<uint16_t> tokens;
    while (static_cast<int>(tokens.size()) < count) {
        tokens.push_back(64);
        for (int length = 4 + static_cast<int>(generator() % 56); length > 0; length--) tokens.push_back(generator() % 64);
    }
    tokens.resize(count);
    return tokens;
}

inline void write_shard(const std::string& path, const std::vector<uint16_t>& tokens) {
    ShardWriter writer(path);
    writer.write(tokens);
    writer.finish();
}

/// A folder with two shards for training and one for validation, and nothing else.
struct Workplace {
    TempDir dir;
    std::string data, val;

    Workplace() {
        write_shard(dir / "train_0.bin", random_tokens(3000, 1));
        write_shard(dir / "train_1.bin", random_tokens(2500, 2));
        write_shard(dir / "val_0.bin", random_tokens(1100, 3));
        data = " --data '" + dir / "train_*.bin'";
        val = " --val-data " + dir / "val_0.bin";
    }
    std::string operator/(const std::string& name) const { return dir / name; }
};

inline std::string step_file(const std::string& folder, int step) {
    std::string digits = std::to_string(step);
    return folder + "/step_" + std::string(7 - digits.size(), '0') + digits + ".bin";
}

/// The lines of a run's log with one kind of event.
inline std::vector<nlohmann::json> events(const std::string& folder, const std::string& kind) {
    std::vector<nlohmann::json> found;
    std::istringstream text(read_file(folder + "/log.jsonl"));
    for (std::string line; std::getline(text, line);)
        if (nlohmann::json parsed = nlohmann::json::parse(line); parsed["event"] == kind) found.push_back(parsed);
    return found;
}
