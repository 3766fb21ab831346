// data/fineweb10B.sh and data/tinyshakespeare.sh, against test/range_server.py on this machine.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <vector>
#include "llmc/text/shard.h"
#include "llmc/text/tokenizer.h"
#include "test/program.h"

namespace fs = std::filesystem;

/// The server with its folder of published files and its log. port is 0 where it could not be started.
struct Server {
    TempDir dir;
    pid_t process;
    std::string port = "0";

    Server() {
        fs::create_directory(dir / "files");
        write_file(dir / "log", "");
        int out[2];
        if (pipe(out) != 0) throw std::runtime_error("no pipe");
        pid_t parent = getpid();
        process = fork();
        if (process == 0) {
            prctl(PR_SET_PDEATHSIG, SIGKILL);
            if (getppid() != parent) _exit(1);
            dup2(out[1], STDOUT_FILENO);
            execlp("python3", "python3", "test/range_server.py", (dir / "files").c_str(), (dir / "log").c_str(), nullptr);
            _exit(127);
        }
        close(out[1]);
        FILE* printed = fdopen(out[0], "r");
        int number = 0;
        if (fscanf(printed, "%d", &number) == 1) port = std::to_string(number);
        fclose(printed);
    }
    ~Server() { stop(); }
    void stop() {
        if (process <= 0) return;
        kill(process, SIGKILL);
        waitpid(process, nullptr, 0);
        process = 0;
    }

    void publish(const std::string& name, const std::string& bytes) const { write_file(dir / ("files/" + name), bytes); }
    std::string log() const { return read_file(dir / "log"); }
    /// A command that fetches from one of the server's paths.
    Result fetch(const std::string& kind, const std::string& command) const {
        return run("http_proxy= no_proxy=127.0.0.1 BASE_URL=http://127.0.0.1:" + port + "/" + kind + " " + command);
    }
};

static std::string shard(int32_t tokens, size_t bytes_of_tokens) {
    int32_t header[256] = {SHARD_MAGIC, SHARD_VERSION, tokens};
    std::string bytes(reinterpret_cast<const char*>(header), sizeof header);
    for (size_t i = 0; i < bytes_of_tokens; i++) bytes += static_cast<char>(i * 7 + static_cast<size_t>(tokens));
    return bytes;
}

static const std::string VAL = "fineweb_val_000000.bin", TRAIN1 = "fineweb_train_000001.bin", TRAIN2 = "fineweb_train_000002.bin";

static std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
    std::sort(names.begin(), names.end());
    return names;
}

static bool one_line(const std::string& text) { return std::count(text.begin(), text.end(), '\n') == 1; }

/// False, and said, where the tools for these tests are missing.
static bool can_serve(const Server& server) {
    bool can = server.port != "0" && run("command -v curl").code == 0;
    if (!can) MESSAGE("SKIPPED: downloads need curl and python3, and one is missing");
    return can;
}

TEST_CASE("fineweb10B.sh fetches the shards that were asked for, once") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    server.publish(VAL, shard(500, 1000));
    server.publish(TRAIN1, shard(3000, 6000));
    server.publish(TRAIN2, shard(1, 2));

    Result first = server.fetch("whole", "data/fineweb10B.sh 2 " + dir / "new");
    CHECK(first.err == "");
    REQUIRE(first.code == 0);
    CHECK(names_in(dir / "new") == std::vector{TRAIN1, TRAIN2, VAL, std::string("tokenizer.txt")});
    CHECK(read_file(dir / "new/" + TRAIN1) == shard(3000, 6000));
    CHECK(read_file(dir / "new/" + VAL) == shard(500, 1000));
    CHECK(read_shard_header(dir / "new/" + TRAIN2) == 1);
    CHECK(Tokenizer::load(tokenizer_beside(dir / "new/" + TRAIN2)).vocab_size() == 50257);

    std::string requests = server.log();
    CHECK(std::count(requests.begin(), requests.end(), '\n') == 3);
    CHECK(server.fetch("whole", "data/fineweb10B.sh 2 " + dir / "new").code == 0);
    CHECK(server.log() == requests);
    CHECK(server.fetch("whole", "data/fineweb10B.sh 1 " + dir / "one").code == 0);
    CHECK(names_in(dir / "one") == std::vector{TRAIN1, VAL, std::string("tokenizer.txt")});
}

TEST_CASE("a download goes on where it stopped") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    std::string whole = shard(3000, 6000);
    server.publish(VAL, shard(1, 2));
    server.publish(TRAIN1, whole);
    std::string command = "data/fineweb10B.sh 1 " + dir.path, file = dir / TRAIN1;

    SUBCASE("in the next run, from what is there") {
        write_file(file + ".tmp", whole.substr(0, 2500));
        CHECK(server.fetch("whole", command).code == 0);
        CHECK(server.log().find(TRAIN1 + " bytes=2500-\n") != std::string::npos);
    }
    SUBCASE("in the same run, as often as the connection breaks") {
        CHECK(server.fetch("cut", command).code == 0);
        CHECK(server.log().find(TRAIN1 + " bytes=5000-\n") != std::string::npos);
    }
    SUBCASE("with nothing left to fetch") {
        write_file(file + ".tmp", whole);
        CHECK(server.fetch("whole", command).code == 0);
    }
    SUBCASE("from the beginning, where the server cannot do otherwise") {
        write_file(file + ".tmp", whole.substr(0, 2500));
        CHECK(server.fetch("norange", command).code == 0);
    }
    CHECK(read_file(file) == whole);
    CHECK(!fs::exists(file + ".tmp"));
}

TEST_CASE("what is not the published file is refused, and not kept") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    server.publish(VAL, shard(1, 2));
    std::string file = dir / TRAIN1, found;
    SUBCASE("too short for its header") { server.publish(TRAIN1, shard(3000, 5998)), found = "3000 tokens, 7024 bytes, but it has 7022"; }
    SUBCASE("too long for its header") { server.publish(TRAIN1, shard(3000, 6002)), found = "but it has 7026"; }
    SUBCASE("another version") { server.publish(TRAIN1, shard(3000, 6000).replace(4, 1, "\2")), found = "do not begin as a shard"; }
    SUBCASE("a page of text") { server.publish(TRAIN1, "<html>please sign in</html>"), found = "27 bytes do not begin as a shard"; }
    SUBCASE("empty") { server.publish(TRAIN1, ""), found = "0 bytes do not begin as a shard"; }
    SUBCASE("another file was begun") {
        server.publish(TRAIN1, shard(3000, 6000));
        write_file(file + ".tmp", shard(9000, 17000));
        found = "9000 tokens";
    }
    Result result = server.fetch("whole", "data/fineweb10B.sh 1 " + dir.path);
    CHECK(result.code == 2);
    CHECK(one_line(result.err));
    CHECK_MESSAGE(result.err.find(found) != std::string::npos, result.err);
    CHECK(names_in(dir.path) == std::vector{VAL});

    server.publish(TRAIN1, shard(3000, 6000));
    CHECK(server.fetch("whole", "data/fineweb10B.sh 1 " + dir.path).code == 0);
}

TEST_CASE("without a server, or without the file, a line says so, and what has arrived stays") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    server.publish(VAL, shard(1, 2));
    std::string part = dir / TRAIN1 + ".tmp", kind = "whole", found;
    write_file(part, shard(3000, 100));
    SUBCASE("not there") { found = "404"; }
    SUBCASE("busy") { kind = "busy", found = "503"; }
    SUBCASE("no server") { server.stop(), found = "is there a network?"; }
    Result result = server.fetch(kind, "data/fineweb10B.sh 1 " + dir.path);
    CHECK(result.code == 2);
    CHECK(one_line(result.err));
    CHECK_MESSAGE(result.err.find(found) != std::string::npos, result.err);
    CHECK(read_file(part) == shard(3000, 100));
    CHECK(!fs::exists(dir / TRAIN1));
}

TEST_CASE("a damaged file that is there is named, and left alone") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    write_file(dir / VAL, shard(500, 10));
    Result result = server.fetch("whole", "data/fineweb10B.sh 1 " + dir.path);
    CHECK(result.code == 2);
    CHECK(result.err.find(VAL + "' is not the published file") != std::string::npos);
    CHECK(read_file(dir / VAL) == shard(500, 10));
    CHECK(server.log() == "");
}

TEST_CASE("two downloads do not go into one folder") {
    TempDir dir;
    Result result = run("flock " + dir.path + " data/fineweb10B.sh 1 " + dir.path);
    CHECK(result.code == 2);
    CHECK(result.err.find("another download") != std::string::npos);
    CHECK(names_in(dir.path).empty());
}

TEST_CASE("download scripts refuse what they cannot do") {
    TempDir dir;
    write_file(dir / "file", "");
    for (std::string arguments : {"", "0", "104", "-1", "1x", "1 a b", "01"}) {
        Result result = run("cd " + dir.path + " && " + fs::current_path().string() + "/data/fineweb10B.sh " + arguments);
        CHECK(result.code == 2);
        CHECK(result.err == "fineweb10B.sh: expected a number of shards from 1 to 103: data/fineweb10B.sh N [DIR]\n");
    }
    CHECK(names_in(dir.path) == std::vector<std::string>{"file"});
    for (std::string script : {"data/fineweb10B.sh 1 ", "data/tinyshakespeare.sh "}) {
        Result result = run(script + dir / "file/sub");
        CHECK(result.code == 2);
        CHECK(result.err.find("cannot make the folder") != std::string::npos);
        CHECK(one_line(result.err));
    }
}

TEST_CASE("tinyshakespeare.sh knows the text by its checksum") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    server.publish("input.txt", "First Citizen:\nBefore we proceed any further, hear me sing.\n");
    Result result = server.fetch("whole", "data/tinyshakespeare.sh " + dir.path);
    CHECK(result.code == 2);
    CHECK(one_line(result.err));
    CHECK(result.err.find("SHA-256") != std::string::npos);
    CHECK(names_in(dir.path).empty());
}
