// data/fineweb10B.sh, fineweb100B.sh, fineweb_edu.sh and tinyshakespeare.sh, with test/range_server.py as the server; and data/parquet_to_jsonl.py.
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
#include "test/needs.h"
#include "test/program.h"
#include "test/shards.h"

namespace fs = std::filesystem;

/// The server, its folder of published files and its log. port is 0 if it could not be started.
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

static bool one_line(const std::string& text) { return std::count(text.begin(), text.end(), '\n') == 1; }

/// Whether the tools for these tests are there; prints a message if not.
static bool can_serve(const Server& server) {
    bool can = server.port != "0" && run("command -v curl").code == 0;
    if (!can) MESSAGE("SKIPPED: downloads need curl and python3, and one is missing");
    return can;
}

TEST_CASE("fineweb10B.sh fetches the requested shards, once") {
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

TEST_CASE("a download resumes where it stopped") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    std::string whole = shard(3000, 6000);
    server.publish(VAL, shard(1, 2));
    server.publish(TRAIN1, whole);
    std::string command = "data/fineweb10B.sh 1 " + dir.path, file = dir / TRAIN1;

    SUBCASE("in the next run, from the partial file") {
        write_file(file + ".tmp", whole.substr(0, 2500));
        CHECK(server.fetch("whole", command).code == 0);
        CHECK(server.log().find(TRAIN1 + " bytes=2500-\n") != std::string::npos);
    }
    SUBCASE("in the same run, each time the connection breaks") {
        CHECK(server.fetch("cut", command).code == 0);
        CHECK(server.log().find(TRAIN1 + " bytes=5000-\n") != std::string::npos);
    }
    SUBCASE("with nothing left to fetch") {
        write_file(file + ".tmp", whole);
        CHECK(server.fetch("whole", command).code == 0);
    }
    SUBCASE("from the beginning, if the server does not support ranges") {
        write_file(file + ".tmp", whole.substr(0, 2500));
        CHECK(server.fetch("norange", command).code == 0);
    }
    CHECK(read_file(file) == whole);
    CHECK(!fs::exists(file + ".tmp"));
}

TEST_CASE("a file other than the published one is refused, and not kept") {
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
    SUBCASE("the partial file is from another file") {
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

TEST_CASE("without a server, or without the file, there is one line of error, and what has arrived is kept") {
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

TEST_CASE("an existing damaged file is reported, and left alone") {
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

TEST_CASE("two downloads into one folder at a time are refused") {
    TempDir dir;
    Result result = run("flock " + dir.path + " data/fineweb10B.sh 1 " + dir.path);
    CHECK(result.code == 2);
    CHECK(result.err.find("another download") != std::string::npos);
    CHECK(names_in(dir.path).empty());
}

TEST_CASE("fineweb100B.sh: the same with more shards") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    server.publish(VAL, shard(500, 1000));
    server.publish(TRAIN1, shard(3000, 6000));
    Result result = server.fetch("whole", "data/fineweb100B.sh 1 " + dir / "new");
    CHECK_MESSAGE(result.code == 0, result.err);
    CHECK(names_in(dir / "new") == Names{TRAIN1, VAL, "tokenizer.txt"});
    for (std::string arguments : {"", "0", "1031", "01"})
        CHECK(run("data/fineweb100B.sh " + arguments).err == "fineweb100B.sh: expected a number of shards from 1 to 1030: data/fineweb100B.sh N [DIR]\n");
}

/// What the scripts check of a parquet file: the magic at both ends and the length of the footer.
static std::string parquet(uint32_t footer, size_t columns_and_footer) {
    return "PAR1" + std::string(columns_and_footer, 'x') + std::string(reinterpret_cast<const char*>(&footer), 4) + "PAR1";
}

static const std::string EDU0 = "shard_00000.parquet", EDU1 = "shard_00001.parquet", EDU_VAL = "shard_01822.parquet";

TEST_CASE("fineweb_edu.sh fetches the first files and the validation file, and resumes where it stopped") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    server.publish(EDU0, parquet(100, 3000));
    server.publish(EDU1, parquet(200, 200));
    server.publish(EDU_VAL, parquet(300, 5000));
    Result one = server.fetch("whole", "data/fineweb_edu.sh 1 " + dir / "new");
    REQUIRE_MESSAGE(one.code == 0, one.err);
    CHECK(names_in(dir / "new") == Names{EDU0, EDU_VAL});

    write_file(dir / "new/" + EDU1 + ".tmp", parquet(200, 200).substr(0, 150));
    Result two = server.fetch("whole", "data/fineweb_edu.sh 2 " + dir / "new");
    REQUIRE_MESSAGE(two.code == 0, two.err);
    CHECK(names_in(dir / "new") == Names{EDU0, EDU1, EDU_VAL});
    CHECK(read_file(dir / "new/" + EDU1) == parquet(200, 200));
    CHECK(read_file(dir / "new/" + EDU_VAL) == parquet(300, 5000));
    const std::string requests = server.log();
    CHECK(requests.ends_with("/whole/" + EDU1 + " bytes=150-\n"));
    CHECK(std::count(requests.begin(), requests.end(), '\n') == 3);
    CHECK(two.out.find("data/tokenize '" + dir / "new'/shard_*.jsonl --val '" + dir / "new/shard_01822.jsonl' --train-tokenizer 32768") != std::string::npos);
}

TEST_CASE("fineweb_edu.sh refuses files that are not parquet, and wrong arguments") {
    Server server;
    if (!can_serve(server)) return;
    TempDir dir;
    server.publish(EDU_VAL, parquet(1, 1));
    const std::string whole = parquet(100, 3000);
    for (auto& [bytes, found] : std::vector<std::pair<std::string, std::string>>{{whole.substr(0, 2999), "its 2999 bytes do not begin and end as parquet does"},
                                                                                 {"<html>please sign in</html>", "do not begin and end"},
                                                                                 {"PAR1", "its 4 bytes do not begin and end"},
                                                                                 {"X" + whole.substr(1), "do not begin and end"},
                                                                                 {parquet(3001, 3000), "its footer says that it has 3001 bytes, in a file of 3012"},
                                                                                 {parquet(0, 3000), "its footer says that it has 0 bytes"}}) {
        server.publish(EDU0, bytes);
        Result result = server.fetch("whole", "data/fineweb_edu.sh 1 " + dir / "new");
        CHECK(result.code == 2);
        CHECK(one_line(result.err));
        CHECK_MESSAGE(result.err.find(found) != std::string::npos, result.err);
        CHECK(names_in(dir / "new") == Names{EDU_VAL});
    }
    for (std::string arguments : {"", "0", "1823", "-1", "1x", "1 a b", "01"})
        CHECK(run("data/fineweb_edu.sh " + arguments).err == "fineweb_edu.sh: expected a number of files from 1 to 1822: data/fineweb_edu.sh N [DIR]\n");
}

// ------------------------------------------------------------------------------------------------------------- parquet to text

static Needs needs_python() { return {run("command -v python3").code == 0, "programs named python3"}; }
static Needs needs_pyarrow() {
    static const bool there = run("python3 -c 'import importlib.util, sys; sys.exit(importlib.util.find_spec(\"pyarrow\") is None)'").code == 0;
    return {there, "readers of parquet (pyarrow)"};
}

static Result convert(const std::string& files) { return run("python3 data/parquet_to_jsonl.py " + files); }

/// Runs a line of Python that may write parquet: `table` is pyarrow.table, `write` pyarrow.parquet.write_table.
static void make_parquet(const std::string& line) {
    Result result = run("python3 -c 'import pyarrow as pa, pyarrow.parquet; table = pa.table; write = pa.parquet.write_table; " + line + "'");
    REQUIRE_MESSAGE(result.code == 0, result.err);
}

TEST_CASE("parquet_to_jsonl.py: every row becomes a line that tokenize reads as the same text" * needs_pyarrow()) {
    TempDir dir;
    make_parquet(R"(write(table({"n": [1, 2, 3, 4, 5], "text": ["one\ntwo", "\"quoted\" \\ \x00\u00e9\u2028", None, "", "last"]}), ")" + dir / R"(a.parquet", row_group_size=2))");
    make_parquet(R"(write(table({"text": pa.array(["large"], pa.large_string())}), ")" + dir / R"(b.parquet"))");
    Result result = convert(dir / "a.parquet " + dir / "b.parquet");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    CHECK(result.out == dir / "a.jsonl: 3 documents, 2 rows without text left out\n" + dir / "b.jsonl: 1 documents\n");
    CHECK(names_in(dir.path) == Names{"a.jsonl", "a.parquet", "b.jsonl", "b.parquet"});
    if (can_split()) {
        REQUIRE(run("data/tokenize " + dir / "a.jsonl " + dir / "b.jsonl --no-shuffle --train-tokenizer 257 --out " + dir / "out").code == 0);
        CHECK(documents_in(dir / "out/train_000000.bin") == Names{"one\ntwo", std::string("\"quoted\" \\ \0\u00e9\u2028", 17), "last", "large"});
    }
    // An existing output is left as it is.
    write_file(dir / "a.jsonl", "mine");
    CHECK(convert(dir / "a.parquet").out == dir / "a.jsonl: already there\n");
    CHECK(read_file(dir / "a.jsonl") == "mine");
}

TEST_CASE("parquet_to_jsonl.py: a damaged file, one without text and a full disk give one line of error, and no output" * needs_pyarrow()) {
    TempDir dir;
    const std::string file = dir / "a.parquet";
    std::string found, limit;
    make_parquet(R"(write(table({"text": [str(i ** 40) for i in range(20000)]}), ")" + file + R"("))");
    const std::string whole = read_file(file);
    SUBCASE("cut") { write_file(file, whole.substr(0, whole.size() - 10)), found = "is damaged: "; }
    SUBCASE("empty") { write_file(file, ""), found = "is damaged: "; }
    SUBCASE("overwritten") { write_file(file, whole.substr(0, 20000) + std::string(5000, '\0') + whole.substr(25000)), found = "is damaged: "; }
    SUBCASE("no UTF-8") {
        make_parquet(R"(write(table({"text": pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff"]).buffers())}), ")" + file + R"("))");
        found = "is damaged: ";
    }
    SUBCASE("another column") { make_parquet(R"(write(table({"body": ["a"], "id": [1]}), ")" + file + R"("))"), found = "has no column 'text'; it has body, id"; }
    SUBCASE("another type") { make_parquet(R"(write(table({"text": [1]}), ")" + file + R"("))"), found = "is of type int64, but must be string"; }
    SUBCASE("a full disk") { limit = "ulimit -f 100; ", found = "File too large; is there space"; }
    Result result = run(limit + "python3 data/parquet_to_jsonl.py " + file);
    CHECK(result.code == 2);
    CHECK(one_line(result.err));
    CHECK_MESSAGE(result.err.find(found) != std::string::npos, result.err);
    CHECK(names_in(dir.path) == Names{"a.parquet"});
}

TEST_CASE("parquet_to_jsonl.py names what is missing" * needs_python()) {
    TempDir dir;
    write_file(dir / "a.parquet", parquet(1, 1));
    write_file(dir / "a.txt", "");
    // A module that fails to import takes the place of a missing one.
    fs::create_directory(dir / "pyarrow");
    write_file(dir / "pyarrow/__init__.py", "raise ModuleNotFoundError(\"No module named 'pyarrow'\")\n");
    for (auto& [arguments, found] : std::vector<std::pair<std::string, std::string>>{{dir / "a.parquet", "pyarrow is missing (No module named 'pyarrow'); install it from PyPI"},
                                                                                     {dir / "none.parquet", "none.parquet' is not there"},
                                                                                     {dir / "a.txt", "a.txt' does not end in .parquet"}}) {
        Result result = run("PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=" + dir.path + " python3 data/parquet_to_jsonl.py " + arguments);
        CHECK(result.code == 2);
        CHECK(one_line(result.err));
        CHECK_MESSAGE(result.err.find("parquet_to_jsonl.py: ") == 0, result.err);
        CHECK_MESSAGE(result.err.find(found) != std::string::npos, result.err);
    }
    CHECK(names_in(dir.path) == Names{"a.parquet", "a.txt", "pyarrow"});
}

TEST_CASE("download scripts refuse wrong arguments") {
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

TEST_CASE("tinyshakespeare.sh verifies the checksum of the text") {
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
