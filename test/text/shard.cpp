// llmc/text/shard: the header, byte by byte, and every error of a bad shard.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <filesystem>
#include <string>
#include <vector>
#include "llmc/text/shard.h"
#include "test/program.h"

namespace fs = std::filesystem;

static std::string shard(int32_t magic, int32_t version, int32_t tokens, size_t bytes_of_tokens) {
    int32_t header[256] = {magic, version, tokens};
    return std::string(reinterpret_cast<const char*>(header), sizeof header) + std::string(bytes_of_tokens, 'x');
}

/// The message of the error that reading the header throws; empty if it throws none.
static std::string refusal(const std::string& path) {
    try {
        read_shard_header(path);
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

TEST_CASE("shard: written as llm.c reads it") {
    TempDir dir;
    std::vector<uint16_t> tokens{1, 50256, 65535};
    ShardWriter writer(dir / "a.bin");
    writer.write(tokens);
    writer.write(std::span(tokens).first(1));
    writer.write({});
    CHECK(writer.tokens() == 4);
    CHECK(!fs::exists(dir / "a.bin"));
    writer.finish();

    std::string bytes = read_file(dir / "a.bin");
    REQUIRE(bytes.size() == 1024 + 8);
    CHECK(bytes.substr(0, 12) == std::string("\x88\xd8\x34\x01\x01\0\0\0\x04\0\0\0", 12));  // 20240520, 1, 4
    CHECK(bytes.substr(12, 1012) == std::string(1012, '\0'));
    CHECK(bytes.substr(1024) == std::string("\x01\x00\x50\xc4\xff\xff\x01\x00", 8));
    CHECK(read_shard_header(dir / "a.bin") == 4);
    CHECK(std::distance(fs::directory_iterator(dir.path), {}) == 1);
}

TEST_CASE("shard: a writer that does not finish leaves the old file") {
    TempDir dir;
    write_file(dir / "a.bin", "old");
    uint16_t token = 7;
    {
        ShardWriter writer(dir / "a.bin");
        writer.write({&token, 1});
    }
    {
        ShardWriter writer(dir / "a.bin");
        CHECK_THROWS_AS(writer.finish(), std::invalid_argument);  // no tokens
    }
    CHECK(read_file(dir / "a.bin") == "old");
    CHECK(std::distance(fs::directory_iterator(dir.path), {}) == 1);
    CHECK_THROWS_AS(ShardWriter(dir / "none/a.bin"), std::invalid_argument);
}

TEST_CASE("shard: on a full disk no file is left behind") {
    TempDir dir;
    rlimit before;
    getrlimit(RLIMIT_FSIZE, &before);
    std::vector<uint16_t> tokens(10000);
    {
        ShardWriter writer(dir / "a.bin");
        rlimit small{8192, before.rlim_max};
        setrlimit(RLIMIT_FSIZE, &small);
        CHECK_THROWS_AS(writer.write(tokens), std::invalid_argument);
        setrlimit(RLIMIT_FSIZE, &before);
    }
    CHECK(fs::is_empty(dir.path));
}

TEST_CASE("shard: errors name the file, what was found and what was expected") {
    TempDir dir;
    std::string path = dir / "a.bin", expected;
    int32_t magic = SHARD_MAGIC;
    write_file(path, shard(magic, 1, 10, 20));
    CHECK(read_shard_header(path) == 10);

    SUBCASE("cut in the header") {
        write_file(path, shard(magic, 1, 10, 20).substr(0, 1023)), expected = "cut short: its header is 1024 bytes, the file 1023";
    }
    SUBCASE("empty") { write_file(path, ""), expected = "the file 0"; }
    SUBCASE("cut short") {
        write_file(path, shard(magic, 1, 10, 19)), expected = "cut short: its header says 10 tokens (1044 bytes), the file has 1043 bytes";
    }
    SUBCASE("too long") {
        write_file(path, shard(magic, 1, 10, 21)), expected = "too long: its header says 10 tokens (1044 bytes), the file has 1045 bytes";
    }
    SUBCASE("another magic") { write_file(path, shard(20240801, 1, 10, 20)), expected = "begins with 20240801 instead of 20240520"; }
    SUBCASE("another version") { write_file(path, shard(magic, 7, 10, 20)), expected = "version 7"; }
    SUBCASE("no tokens") { write_file(path, shard(magic, 1, 0, 0)), expected = "holds 0 tokens"; }
    SUBCASE("a negative count") { write_file(path, shard(magic, 1, -10, 20)), expected = "holds -10 tokens"; }
    SUBCASE("the largest count") { write_file(path, shard(magic, 1, INT32_MAX, 20)), expected = "2147483647 tokens (4294968318 bytes)"; }
    SUBCASE("not there") { fs::remove(path), expected = "a.bin"; }
    SUBCASE("a folder") { fs::remove(path), fs::create_directory(path), expected = "a.bin"; }
    SUBCASE("a pipe that nobody writes to") { fs::remove(path), mkfifo(path.c_str(), 0600), expected = "a.bin"; }
    CHECK_MESSAGE(refusal(path).find(expected) != std::string::npos, refusal(path));
    CHECK_MESSAGE(refusal(path).find(path) != std::string::npos, refusal(path));
}
