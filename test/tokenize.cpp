// data/tokenize: files and folders to shards.
#include <doctest/doctest.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <filesystem>
#include <random>
#include <span>
#include <string>
#include <vector>
#include "llmc/text/tokenizer.h"
#include "test/program.h"
#include "test/shards.h"

namespace fs = std::filesystem;

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }
static bool one_line(const std::string& text) { return std::count(text.begin(), text.end(), '\n') == 1; }

TEST_SUITE_BEGIN("encoder" * doctest::skip(!can_split()));

TEST_CASE("tokenize: every file is a document that begins with bos, in the order of the paths") {
    TempDir dir;
    fs::create_directories(dir / "in/b/c");
    write_file(dir / "in/z.txt", "last\r\n");
    write_file(dir / "in/b/c/deep.txt", "deep \xff \U0001F600");
    write_file(dir / "in/b.txt", "<|bos|> is text");
    write_file(dir / "in/empty.txt", "");
    write_file(dir / "in/binary", std::string("a\0b", 3));
    mkfifo((dir / "in/pipe").c_str(), 0600);
    fs::create_directory_symlink("..", dir / "in/b/up");  // leads back up
    fs::create_symlink("z.txt", dir / "in/a.txt");        // another name of z.txt: the first name counts
    fs::create_symlink("nowhere", dir / "in/broken");

    Result result = run("data/tokenize --no-shuffle " + dir / "in" + " " + dir / "in/z.txt" + " --out " + dir / "out --train-tokenizer 257");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    CHECK(names_in(dir / "out") == Names{"tokenizer.txt", "train_000000.bin"});
    CHECK(documents_in(dir / "out/train_000000.bin") == Names{"last\r\n", "<|bos|> is text", "deep \xff \U0001F600"});
    CHECK(contains(result.out, "train: 3 documents, 32 bytes, 35 tokens, 1.000 bytes/token, 1 shard"));
    CHECK(contains(result.out, "val: none, there are only 3 documents"));
    for (std::string reason : {"empty: ", "binary (a NUL in the first 8 KiB): ", "not a file: ", "a link that leads nowhere: "})
        CHECK_MESSAGE(contains(result.err, "skipped 1 file: " + reason), result.err);
    // A file given by its own name counts as text, whatever it contains.
    REQUIRE(run("data/tokenize " + dir / "in/binary" + " --out " + dir / "named --train-tokenizer 257").code == 0);
    CHECK(documents_in(dir / "named/train_000000.bin") == Names{std::string("a\0b", 3)});
}

TEST_CASE("tokenize: the same input gives the same bytes, and a learned vocabulary gives fewer tokens") {
    TempDir dir;
    for (std::string out : {"a", "b"}) REQUIRE(run("data/tokenize /usr/include/asm-generic --train-tokenizer 600 --out " + dir / out).code == 0);
    CHECK(names_in(dir / "a") == Names{"tokenizer.txt", "train_000000.bin", "val_000000.bin"});
    for (const std::string& name : names_in(dir / "a")) CHECK(read_file(dir / ("a/" + name)) == read_file(dir / ("b/" + name)));
    Tokenizer tokenizer = Tokenizer::load(dir / "a/tokenizer.txt");
    CHECK(tokenizer.vocab_size() == 600);
    size_t bytes = 0, documents = 0;
    for (const std::string& text : documents_in(dir / "a/train_000000.bin")) bytes += text.size(), documents++;
    CHECK(2 * (tokens_in(dir / "a/train_000000.bin").size() - documents) < bytes);
}

TEST_CASE("tokenize: validation is every n-th document, or the files of --val") {
    TempDir dir;
    fs::create_directory(dir / "in");
    for (std::string name : {"0", "1", "2", "3", "4", "5", "6"}) write_file(dir / ("in/" + name), "text " + name);
    std::string command = "data/tokenize --no-shuffle " + dir / "in --train-tokenizer 257 --out " + dir / "out ", train = dir / "out/train_000000.bin",
                val = dir / "out/val_000000.bin";
    SUBCASE("every third") {
        REQUIRE(run(command + "--val-every 3").code == 0);
        CHECK(documents_in(train) == Names{"text 0", "text 1", "text 3", "text 4", "text 6"});
        CHECK(documents_in(val) == Names{"text 2", "text 5"});
    }
    SUBCASE("none") {
        REQUIRE(run(command + "--val-every 0").code == 0);
        CHECK(documents_in(train).size() == 7);
        CHECK(!fs::exists(val));
    }
    SUBCASE("a file that is named as input and by --val is for validation only") {
        write_file(dir / "other", "other");
        REQUIRE(run(command + "--val " + dir / "other --val " + dir / "in/4").code == 0);
        CHECK(documents_in(train) == Names{"text 0", "text 1", "text 2", "text 3", "text 5", "text 6"});
        CHECK(documents_in(val) == Names{"other", "text 4"});
    }
}

TEST_CASE("tokenize: --unique drops duplicates") {
    TempDir dir;
    fs::create_directory(dir / "in");
    write_file(dir / "in/a", "one");
    write_file(dir / "in/b", "two");
    write_file(dir / "in/c", "one");        // a's
    write_file(dir / "in/d", "one\n");      // not quite
    write_file(dir / "in/e.jsonl", "{\"text\": \"tw\\u006f\"}\n{\"text\": \"three\"}\n{\"text\": \"eno\"}\n");   // b's, and of a's letters
    std::string command = "data/tokenize --no-shuffle " + dir / "in --train-tokenizer 257 --out " + dir / "out ", train = dir / "out/train_000000.bin";
    SUBCASE("among all documents, before validation is chosen from them") {
        Result result = run(command + "--unique --val-every 2");
        REQUIRE_MESSAGE(result.code == 0, result.err);
        CHECK(contains(result.out, "unique: 5 of 7 documents"));
        CHECK(documents_in(train) == Names{"one", "one\n", "eno"});
        CHECK(documents_in(dir / "out/val_000000.bin") == Names{"two", "three"});
    }
    SUBCASE("a text that is also in --val is for validation only") {
        write_file(dir / "val.jsonl", "{\"text\": \"one\"}\n{\"text\": \"four\"}\n{\"text\": \"four\"}\n");
        REQUIRE(run(command + "--unique --val " + dir / "val.jsonl").code == 0);
        CHECK(documents_in(train) == Names{"two", "one\n", "three", "eno"});
        CHECK(documents_in(dir / "out/val_000000.bin") == Names{"one", "four"});
    }
    SUBCASE("only when asked to") {
        REQUIRE(run(command + "--val-every 0").code == 0);
        CHECK(documents_in(train) == Names{"one", "two", "one", "one\n", "two", "three", "eno"});
    }
    SUBCASE("no document is left") {
        write_file(dir / "more", "three");
        Result result = run("data/tokenize " + dir / "more --unique --val " + dir / "in --train-tokenizer 257 --out " + dir / "out");
        CHECK(result.code == 2);
        CHECK_MESSAGE(contains(result.err, "every text in '" + dir / "more' is also in the text of --val, and --unique drops it"), result.err);
    }
    SUBCASE("also for texts that are read in parts") {
        std::string text;
        while (text.size() < 9'000'000) text += "all of it counts " + std::to_string(text.size()) + "\n";
        for (std::string name : {"long", "same"}) write_file(dir / ("in/" + name), text);
        write_file(dir / "in/other", text.substr(0, text.size() - 1) + ".");
        Result result = run(command + "--unique --val-every 0");
        REQUIRE(result.code == 0);
        CHECK_MESSAGE(contains(result.out, "unique: 7 of 10 documents"), result.out);
    }
}

TEST_CASE("tokenize: --train-tokens and --val-tokens write exactly that many tokens, or nothing") {
    TempDir dir;
    fs::create_directory(dir / "in");
    for (std::string name : {"0", "1", "2", "3", "4", "5"}) write_file(dir / ("in/" + name), "text " + name);   // 7 tokens each, with bos
    std::string command = "data/tokenize --no-shuffle " + dir / "in --train-tokenizer 257 --val-every 3 --out " + dir / "out ", train = dir / "out/train_000000.bin";
    SUBCASE("the last document is cut") {
        Result result = run(command + "--train-tokens 18 --val-tokens 7 --shard-tokens 12");
        REQUIRE_MESSAGE(result.code == 0, result.err);
        CHECK(names_in(dir / "out") == Names{"tokenizer.txt", "train_000000.bin", "train_000001.bin", "val_000000.bin"});
        CHECK(documents_in(train) == Names{"text 0", "text"});
        CHECK(tokens_in(dir / "out/train_000001.bin") == std::vector<uint16_t>{' ', '1', 256, 't', 'e', 'x'});
        CHECK(documents_in(dir / "out/val_000000.bin") == Names{"text 2"});
        CHECK_MESSAGE(contains(result.out, "train: 3 documents, 15 bytes, 18 tokens, 1.000 bytes/token, 2 shards"), result.out);
        CHECK_MESSAGE(contains(result.out, "val: 1 documents, 6 bytes, 7 tokens, 1.000 bytes/token, 1 shard"), result.out);
    }
    SUBCASE("as many as there are") {
        REQUIRE(run(command + "--train-tokens 28 --val-tokens 14").code == 0);
        CHECK(documents_in(train) == Names{"text 0", "text 1", "text 3", "text 4"});
    }
    SUBCASE("fewer than there must be") {
        for (auto& [flags, found] : {std::pair{"--train-tokens 29", "--train-tokens is 29, but the documents give only 28"},
                                     std::pair{"--val-tokens 15", "--val-tokens is 15, but the documents give only 14"},
                                     std::pair{"--val-every 7 --val-tokens 1", "--val-tokens is 1, but of 6 documents none is for validation"}}) {
            Result result = run("data/tokenize --no-shuffle " + dir / "in --train-tokenizer 257 --out " + dir / "out " +
                                (contains(flags, "every") ? "" : "--val-every 3 ") + flags);
            CHECK(result.code == 2);
            CHECK(one_line(result.err));
            CHECK_MESSAGE(contains(result.err, found), result.err);
            CHECK(!fs::exists(dir / "out"));
        }
    }
}

TEST_CASE("tokenize: documents are shuffled by a seed, with the same result on every machine") {
    TempDir dir;
    fs::create_directories(dir / "in/sub");
    fs::create_directories(dir / "elsewhere/b");
    Names sorted;
    for (std::string name : {"0", "1", "2", "3", "4", "5", "6", "7", "8", "sub/9"}) {
        write_file(dir / ("in/" + name), "text " + name);
        sorted.push_back("text " + name);
    }
    fs::copy(dir / "in", dir / "elsewhere/b/in", fs::copy_options::recursive);
    auto order = [&](const std::string& in, const std::string& flags) {
        Result result = run("data/tokenize " + in + " --train-tokenizer 257 --overwrite --out " + dir / "out " + flags);
        REQUIRE_MESSAGE(result.code == 0, result.err);
        return documents_in(dir / "out/train_000000.bin");
    };
    auto in_order = [](Names names) {
        std::sort(names.begin(), names.end());
        return names;
    };
    CHECK(order(dir / "in", "--no-shuffle") == sorted);
    // The C++ standard fixes the output of std::mt19937_64.
    Names expected = sorted;
    std::mt19937_64 generator(1);
    for (size_t i = expected.size(); i > 1; i--) std::swap(expected[i - 1], expected[generator() % i]);
    REQUIRE(expected != sorted);
    CHECK(order(dir / "in", "") == expected);
    CHECK(order(dir / "in", "--shuffle-seed 1") == expected);
    CHECK(order(dir / "elsewhere/b/in", "") == expected);
    CHECK(order("$(cd " + dir / "in && find . -type f | sort | sed 's,^," + dir / "in/," + "')", "") == expected);
    const Names other = order(dir / "in", "--shuffle-seed 2");
    CHECK(other != expected);
    CHECK(in_order(other) == sorted);

    // The choice of validation documents and the tokenizer do not depend on the seed; validation is shuffled too.
    order(dir / "in", "--val-every 2");
    const std::string tokenizer = read_file(dir / "out/tokenizer.txt");
    const Names val = documents_in(dir / "out/val_000000.bin");
    order(dir / "in", "--val-every 2 --shuffle-seed 3");
    CHECK(read_file(dir / "out/tokenizer.txt") == tokenizer);
    const Names val3 = documents_in(dir / "out/val_000000.bin");
    CHECK(in_order(val) == Names{"text 1", "text 3", "text 5", "text 7", "text sub/9"});
    CHECK(in_order(val3) == in_order(val));
    CHECK(val3 != val);
}

TEST_CASE("tokenize: every line of a .jsonl file is a document") {
    TempDir dir;
    fs::create_directory(dir / "in");
    write_file(dir / "in/a.jsonl", "{\"text\": \"one\\n\\u00e9\", \"id\": 1}\r\n{\"meta\": {\"text\": \"no\"}, \"text\": \"two \\\"2\\\"\"}\n{\"text\":\"\"}\n{\"text\":\"a\\u0000b\"}");
    write_file(dir / "in/b.txt", "{\"text\": \"a file\"}\n");
    Result result = run("data/tokenize " + dir / "in --no-shuffle --train-tokenizer 257 --val-every 0 --out " + dir / "out");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    CHECK(documents_in(dir / "out/train_000000.bin") == Names{"one\n\u00e9", "two \"2\"", std::string("a\0b", 3), "{\"text\": \"a file\"}\n"});
    CHECK(contains(result.err, "skipped 1 line whose 'text' is empty: '" + dir / "in/a.jsonl: line 3'"));
    CHECK(contains(result.out, "train: 4 documents, 35 bytes, 39 tokens"));
    // Lines are chosen for validation and shuffled as files are.
    REQUIRE(run("data/tokenize " + dir / "in/a.jsonl --train-tokenizer 257 --val-every 3 --overwrite --out " + dir / "out").code == 0);
    CHECK(documents_in(dir / "out/val_000000.bin") == Names{std::string("a\0b", 3)});
    CHECK(documents_in(dir / "out/train_000000.bin").size() == 2);

    struct {
        std::string line, found;
    } bad[] = {
        {"{\"text\": \"x\"", "is not JSON: column 13: "},
        {"", "is not JSON"},
        {"{\"text\": 5}", "'text': is 5, but must be a string"},
        {"{\"txt\": \"x\"}", "'text' is missing"},
        {"[\"text\"]", "is [\"text\"], but must be an object"},
        {"{\"text\": \"\xff\"}", "is not JSON"},
        {"{\"text\": \"x\", \"text\": \"y\"}", "has 'text' twice"},
        {"{\"text\": \"" + std::string(100'000, 'x'), "is not JSON"},
    };
    for (auto& [line, found] : bad) {
        CAPTURE(line.substr(0, 50));
        write_file(dir / "in/a.jsonl", "{\"text\": \"one\"}\n" + line + "\n{\"text\": \"three\"}\n");
        Result refused = run("data/tokenize " + dir / "in --train-tokenizer 257 --out " + dir / "new");
        CHECK(refused.code == 2);
        CHECK(one_line(refused.err));
        CHECK(refused.err.size() < 600);
        CHECK_MESSAGE(contains(refused.err, "a.jsonl: line 2: " + found), refused.err.substr(0, 600));
        CHECK(!fs::exists(dir / "new"));
    }
}

TEST_CASE("tokenize: --separator splits the text of a file") {
    TempDir dir;
    auto split = [&](const std::string& text, const std::string& separator) {
        write_file(dir / "in", text);
        Result result = run("data/tokenize " + dir / "in --no-shuffle --train-tokenizer 257 --val-every 0 --overwrite --out " + dir / "out --separator " + separator);
        REQUIRE_MESSAGE(result.code == 0, result.err);
        return documents_in(dir / "out/train_000000.bin");
    };
    const std::string end = "'<|endoftext|>'";
    CHECK(split("one\n<|endoftext|>\ntwo<|endoftext|>three", end) == Names{"one\n", "\ntwo", "three"});
    CHECK(split("<|endoftext|>one<|endoftext|><|endoftext|>\n \n<|endoftext|>two<|endoftext|>", end) == Names{"one", "two"});
    CHECK(split("no end of text <|endoftext|", end) == Names{"no end of text <|endoftext|"});
    CHECK(split("a\n\n\nb\n\nc", "'\n\n'") == Names{"a", "\nb", "c"});
    CHECK(split("aXXXb", "XX") == Names{"a", "Xb"});

    // Across the boundaries of the 4 MiB blocks that a file is read in.
    const std::string long_text((4 << 20) - 5, 'x');
    CHECK(split(long_text + "<|endoftext|>" + long_text + "<|endoftext|>two", end) == Names{long_text, long_text, "two"});

    write_file(dir / "in", " <|endoftext|>\n");
    Result none = run("data/tokenize " + dir / "in --train-tokenizer 257 --overwrite --out " + dir / "out --separator " + end);
    CHECK(none.code == 2);
    CHECK(contains(none.err, "no text in"));
}

TEST_CASE("tokenize: --piece-bytes joins pieces until they are long enough, and keeps the separators between them") {
    TempDir dir;
    auto split = [&](const std::string& text, int bytes) {
        write_file(dir / "in", text);
        Result result = run("data/tokenize " + dir / "in --no-shuffle --train-tokenizer 257 --val-every 0 --overwrite --separator '|' --piece-bytes " +
                            std::to_string(bytes) + " --out " + dir / "out");
        REQUIRE_MESSAGE(result.code == 0, result.err);
        return documents_in(dir / "out/train_000000.bin");
    };
    CHECK(split("ab|c|d|efgh|i", 0) == Names{"ab", "c", "d", "efgh", "i"});
    CHECK(split("ab|c|d|efgh|i", 2) == Names{"ab", "c|d", "efgh", "i"});
    CHECK(split("ab|c|d|efgh|i", 3) == Names{"ab|c", "d|efgh", "i"});
    CHECK(split("ab|c|d|efgh|i", 100) == Names{"ab|c|d|efgh|i"});
    CHECK(split("| \n|ab||c| |", 4) == Names{"ab||c"});   // no empty pieces at the beginning or end
    Result alone = run("data/tokenize " + dir / "in --train-tokenizer 257 --piece-bytes 3 --overwrite --out " + dir / "out");
    CHECK(alone.code == 2);
    CHECK_MESSAGE(alone.err.find("--piece-bytes requires --separator") != std::string::npos, alone.err);
}

TEST_CASE("tokenize: of a large file with many documents only their positions are kept in memory") {
    TempDir dir;
    std::string line = "{\"padding\": \"" + std::string(4000, '.') + "\", \"text\": \"t\"}\n", lines;
    for (int i = 0; i < 20'000; i++) lines += line;
    write_file(dir / "in.jsonl", lines);
    Result result = run("ulimit -v 50000 && data/tokenize " + dir / "in.jsonl --tokenizer data/gpt2_vocab.bpe --out " + dir / "out");   // 80 MB of text, with 50 MB of memory
    CHECK_MESSAGE(result.code == 0, result.err);
    CHECK(contains(result.out, "train: 19000 documents, 19000 bytes, 38000 tokens"));
}

TEST_CASE("tokenize: with very many documents, the tokenizer is learned from a sample") {
    TempDir dir;
    std::string text;
    for (int i = 0; text.size() < 34 << 20; i++) text += "word" + std::to_string(i % 977) + std::string(1000, ' ') + "|";
    write_file(dir / "in", text);
    Result result = run("data/tokenize " + dir / "in --separator '|' --train-tokenizer 300 --out " + dir / "out");
    CHECK_MESSAGE(result.code == 0, result.err);
    CHECK_MESSAGE(contains(result.out, " (of some documents) in "), result.out);
}

TEST_CASE("tokenize: all shards but the last are full, and together they are all tokens") {
    TempDir dir;
    std::string text;
    for (int i = 0; i < 3000; i++) text += std::to_string(i * 7919 % 10007) + (i % 10 ? " word" : "\n");
    write_file(dir / "in", text);
    REQUIRE(run("data/tokenize " + dir / "in --tokenizer data/gpt2_vocab.bpe --shard-tokens 4000 --out " + dir / "out").code == 0);
    Tokenizer gpt2 = Tokenizer::load("data/gpt2_vocab.bpe");
    std::vector<uint16_t> expected = gpt2.encode(text), got;
    expected.insert(expected.begin(), 50256);
    size_t shards = (expected.size() + 3999) / 4000;
    REQUIRE(shards == 3);
    for (size_t i = 0; i < shards; i++) {
        std::vector<uint16_t> tokens = tokens_in(dir / ("out/train_00000" + std::to_string(i) + ".bin"));
        CHECK(tokens.size() == std::min<size_t>(4000, expected.size() - i * 4000));
        got.insert(got.end(), tokens.begin(), tokens.end());
    }
    CHECK(got == expected);
    CHECK(read_file(dir / "out/tokenizer.txt") == gpt2.serialize());
}

TEST_CASE("tokenize: a document that is encoded in parts has the same tokens as in one piece") {
    TempDir dir;
    std::string text, line = "It's  encoded \t in parts,\n\n  of 8 MiB; \u4f60\u597d\u3002\r\n";
    while (text.size() < 20'000'000) text += line + std::to_string(text.size());
    write_file(dir / "in", text);
    REQUIRE(run("data/tokenize " + dir / "in --tokenizer data/gpt2_vocab.bpe --out " + dir / "out").code == 0);
    std::vector<uint16_t> expected = Tokenizer::load("data/gpt2_vocab.bpe").encode(text);
    expected.insert(expected.begin(), 50256);
    bool same = tokens_in(dir / "out/train_000000.bin") == expected;
    CHECK(same);
}

TEST_CASE("tokenize: existing shards are replaced only on request, and then all of them") {
    TempDir dir;
    write_file(dir / "in", "one two three");
    write_file(dir / "in2", "four");
    std::string out = " --train-tokenizer 257 --out " + dir / "out";
    REQUIRE(run("data/tokenize " + dir / "in" + out + " --shard-tokens 4").code == 0);
    write_file(dir / "out/notes.txt", "mine");
    Names before = names_in(dir / "out");
    CHECK(before == Names{"notes.txt", "tokenizer.txt", "train_000000.bin", "train_000001.bin", "train_000002.bin", "train_000003.bin"});

    Result refused = run("data/tokenize " + dir / "in2" + out);
    CHECK(refused.code == 2);
    CHECK(one_line(refused.err));
    CHECK(contains(refused.err, "already holds"));
    CHECK(names_in(dir / "out") == before);
    CHECK(tokens_in(dir / "out/train_000003.bin").size() == 2);

    REQUIRE(run("data/tokenize " + dir / "in2" + out + " --overwrite").code == 0);
    CHECK(names_in(dir / "out") == Names{"notes.txt", "tokenizer.txt", "train_000000.bin"});
    CHECK(documents_in(dir / "out/train_000000.bin") == Names{"four"});
}

TEST_CASE("tokenize: wrong arguments give one line of error and exit code 2, and change nothing") {
    TempDir dir;
    write_file(dir / "in", "some text");
    write_file(dir / "empty", "");
    write_file(dir / "bad.txt", "deepen tokenizer 1\nsplit nanochat\nmerges 1\n1 999\nbos <|bos|>\n");
    std::string in = dir / "in", out = " --out " + dir / "out";
    Names before = names_in(dir.path);
    struct {
        std::string arguments, found;
    } cases[] = {
        {in + out, "give one of --train-tokenizer and --tokenizer"},
        {in + out + " --train-tokenizer 300 --tokenizer data/gpt2_vocab.bpe", "give one of"},
        {in + out + " --train-tokenizer 256", "--train-tokenizer is 256, but must be 257 to 65536"},
        {in + out + " --train-tokenizer 65537", "--train-tokenizer is 65537, but must be 257 to 65536"},
        {in + out + " --train-tokenizer many", "many"},
        {in + out + " --train-tokenizer 300", "has pairs for a vocabulary of"},
        {in + out + " --train-tokenizer 257 --shard-tokens 0", "--shard-tokens is 0, but must be 1 to 2147483647"},
        {in + out + " --train-tokenizer 257 --shard-tokens 2147483648", "--shard-tokens is 2147483648, but must be 1 to 2147483647"},
        {in + out + " --train-tokenizer 257 --val-every 1", "--val-every is 1, but must be 0, or 2 or more"},
        {in + out + " --train-tokenizer 257 --val-every -5", "--val-every is -5, but must be 0 or more"},
        {in + out + " --train-tokenizer 257 --val-every 5 --val " + in, "--val excludes --val-every"},
        {in + out + " --train-tokenizer 257 --train-tokens -1", "--train-tokens is -1, but must be 0 or more"},
        {in + out + " --train-tokenizer 257 --shuffle-seed -1", "--shuffle-seed is -1, but must be 0 or more"},
        {in + out + " --train-tokenizer 257 --shuffle-seed 9223372036854775808", "--shuffle-seed is 9223372036854775808, which is out of range"},
        {in + out + " --train-tokenizer 257 --shuffle-seed x", "--shuffle-seed is 'x', but must be a whole number"},
        {in + out + " --train-tokenizer 257 --shuffle-seed 2 --no-shuffle", "--shuffle-seed excludes --no-shuffle"},
        {in + out + " --train-tokenizer 257 --separator ''", "--separator is empty"},
        {in + out + " --train-tokenizer 257 --val " + dir / "empty", "which --val names"},
        {in + out + " --train-tokenizer 257 --frobnicate", "--frobnicate"},
        {in + " --train-tokenizer 257", "--out"},
        {in + " --train-tokenizer 257 --out ''", "--out"},
        {"--train-tokenizer 257" + out, "inputs"},
        {dir / "none" + out + " --train-tokenizer 257", "none' does not exist"},
        {"/dev/zero" + out + " --train-tokenizer 257", "neither a file nor a folder"},
        {dir / "empty" + out + " --train-tokenizer 257", "no text in"},
        {in + out + " --tokenizer " + dir / "bad.txt", "bad.txt', line 4: expected"},
        {in + out + " --tokenizer " + dir / "none", "none"},
        {in + out + " --tokenizer " + dir.path, dir.path},
        {in + " --train-tokenizer 257 --out " + in, "is not a folder"},
        {in + " --train-tokenizer 257 --out " + in + "/out", "in/out"},
    };
    for (auto& [arguments, found] : cases) {
        CAPTURE(arguments);
        Result result = run("data/tokenize " + arguments);
        CHECK(result.code == 2);
        CHECK_MESSAGE(contains(result.err, found), result.err);
        CHECK_MESSAGE(contains(result.err, "tokenize: "), result.err);
        CHECK(names_in(dir.path) == before);
    }
}

TEST_CASE("tokenize: a full disk leaves nothing half-written") {
    TempDir dir;
    write_file(dir / "in", std::string(100'000, 'x'));
    Result result = run("ulimit -f 16 && data/tokenize " + dir / "in --train-tokenizer 257 --out " + dir / "out");
    CHECK(result.code == 2);
    CHECK(one_line(result.err));
    CHECK_MESSAGE(contains(result.err, "train_000000.bin"), result.err);
    CHECK(names_in(dir.path) == Names{"in"});

    REQUIRE(run("data/tokenize " + dir / "in --train-tokenizer 257 --out " + dir / "out").code == 0);
    std::string before = read_file(dir / "out/train_000000.bin");
    CHECK(run("ulimit -f 16 && data/tokenize " + dir / "in --train-tokenizer 257 --overwrite --out " + dir / "out").code == 2);
    CHECK(names_in(dir / "out") == Names{"tokenizer.txt", "train_000000.bin"});
    CHECK(read_file(dir / "out/train_000000.bin") == before);
}

TEST_CASE("tokenize: folders without write permission, files without read permission") {
    TempDir dir;
    fs::create_directory(dir / "in");
    write_file(dir / "in/a", "readable");
    write_file(dir / "in/b", "secret");
    CHECK(run("data/tokenize " + dir / "in --train-tokenizer 257 --out /proc/out").code == 2);
    if (geteuid() == 0) {
        MESSAGE("SKIPPED in part: root can read and write everything");
        return;
    }
    fs::create_directory(dir / "closed");
    fs::permissions(dir / "closed", fs::perms::owner_read | fs::perms::owner_exec);
    Result result = run("data/tokenize " + dir / "in --train-tokenizer 257 --out " + dir / "closed");
    CHECK(result.code == 2);
    CHECK(contains(result.err, "cannot be written"));
    CHECK(names_in(dir / "closed").empty());

    fs::permissions(dir / "in/b", fs::perms::none);
    result = run("data/tokenize " + dir / "in --train-tokenizer 257 --out " + dir / "out");
    CHECK(result.code == 0);
    CHECK(contains(result.err, "skipped 1 file: cannot be read"));
    CHECK(documents_in(dir / "out/train_000000.bin") == Names{"readable"});
}

TEST_CASE("tokenize: stopped by a signal, it has written everything or nothing") {
    TempDir dir;
    std::string text;
    while (text.size() < 60'000'000) text += "all of it, or nothing of it " + std::to_string(text.size()) + "\n";
    write_file(dir / "in", text);
    Result result = run("timeout -s TERM 0.5 data/tokenize " + dir / "in --tokenizer data/gpt2_vocab.bpe --out " + dir / "out");
    CHECK((result.code == 0 || result.code == 124));
    if (fs::exists(dir / "out"))
        CHECK(names_in(dir / "out") == Names{"tokenizer.txt", "train_000000.bin"});
    else
        CHECK(names_in(dir.path) == Names{"in"});
}

TEST_CASE("data/default_corpus.sh: the headers of this machine") {
    TempDir dir;
    Result result = run("data/default_corpus.sh " + dir / "corpus");
    REQUIRE_MESSAGE(result.code == 0, result.err);
    CHECK(Tokenizer::load(dir / "corpus/tokenizer.txt").vocab_size() == 4096);
    CHECK(read_shard_header(dir / "corpus/train_000000.bin") > 5 * read_shard_header(dir / "corpus/val_000000.bin"));
    CHECK(run("data/default_corpus.sh " + dir / "corpus").code == 2);
}

TEST_SUITE_END();
