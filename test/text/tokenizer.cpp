// llmc/text/tokenizer: ids against other implementations (test/golden/make_tokens.py), and its files.
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>
#include "llmc/text/tokenizer.h"
#include "test/program.h"

using Ids = std::vector<uint16_t>;

static const char* GPT2 = "data/gpt2_vocab.bpe";

static const nlohmann::json& golden() {
    static const nlohmann::json json = nlohmann::json::parse(read_file("test/golden/tokens.json"));
    return json;
}

static std::string from_hex(const std::string& hex) {
    std::string bytes;
    for (size_t i = 0; i < hex.size(); i += 2) bytes += static_cast<char>(std::stoi(hex.substr(i, 2), nullptr, 16));
    return bytes;
}

static Tokenizer train_on(const std::string& text, int vocab_size) { return Tokenizer::train({&text, 1}, vocab_size); }
static Tokenizer golden_tokenizer() { return train_on(from_hex(golden()["text"]), 357); }

/// The expected file of this tokenizer.
static std::string golden_file() {
    std::string file = "deepen tokenizer 1\nsplit nanochat\nmerges 100\n";
    for (const auto& merge : golden()["merges"]) file += merge[0].dump() + " " + merge[1].dump() + "\n";
    return file + "bos <|bos|>\n";
}

/// The message of the error that reading these bytes as a tokenizer throws; empty if it throws none.
static std::string refusal(const std::string& file) {
    try {
        Tokenizer::parse(file, "a.txt");
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

TEST_CASE("tokenizer: bytes of tokens") {
    Tokenizer tokenizer = Tokenizer::parse("deepen tokenizer 1\nsplit nanochat\nmerges 1\n97 98\nbos <|bos|>\n", "a.txt");
    CHECK(tokenizer.token_bytes('a') == 1);
    CHECK(tokenizer.token_bytes(256) == 2);
    CHECK(tokenizer.token_bytes(257) == 0);
    CHECK(tokenizer.decode(Ids{257, 256, 0, 257, 'x'}) == std::string("ab\0x", 4));
    CHECK_THROWS_WITH_AS(tokenizer.decode(Ids{258}), "token 258 is not in the vocabulary of 258", std::invalid_argument);
    CHECK_THROWS_AS(tokenizer.token_bytes(-1), std::invalid_argument);
}

TEST_CASE("tokenizer: a round trip through a file gives the same tokenizer") {
    TempDir dir;
    std::string path = tokenizer_beside(dir / "train_000000.bin");
    CHECK(path == dir / "tokenizer.txt");
    for (bool own : {true, false}) {
        Tokenizer tokenizer = own ? Tokenizer::parse(golden_file(), "a.txt") : Tokenizer::load(GPT2);
        tokenizer.save(path);
        CHECK(read_file(path) == tokenizer.serialize());
        Tokenizer loaded = Tokenizer::load(path);
        CHECK(loaded.serialize() == tokenizer.serialize());
        CHECK(loaded.bos() == tokenizer.bos());
        for (int token = 0; token < tokenizer.vocab_size(); token++) {
            Ids id{static_cast<uint16_t>(token)};
            CHECK(loaded.decode(id) == tokenizer.decode(id));
        }
        CHECK_THROWS_AS(tokenizer.save(dir / "none/tokenizer.txt"), std::invalid_argument);
    }
}

TEST_CASE("tokenizer: errors in a file are reported with their line") {
    std::string good = "deepen tokenizer 1\nsplit nanochat\nmerges 2\n97 98\n256 99\nbos <|bos|>\n";
    CHECK(refusal(good) == "");
    auto with = [&](const std::string& from, const std::string& to) { return std::string(good).replace(good.find(from), from.size(), to); };
    CHECK(contains(refusal(""), "'a.txt' is not a tokenizer"));
    CHECK(contains(refusal(with("tokenizer 1", "tokenizer 2")), "its first line is neither"));
    CHECK(refusal(with("nanochat", "gpt4")) == "tokenizer 'a.txt', line 2: expected 'split nanochat' or 'split gpt2', found 'split gpt4'");
    for (std::string count : {"-1", "65280", "2x", "", "02", "99999999999999999999"})
        CHECK(contains(refusal(with("merges 2", "merges " + count)), "line 3: expected 'merges N', N from 0 to 65279"));
    for (std::string pair : {"256 98", "97 256", "-1 98", "97", "97 ", " 98", "97  98", "97 98 99", "97 98\r", "a b", "097 98", ""})
        CHECK_MESSAGE(contains(refusal(with("97 98", pair)), "line 4: expected 'LEFT RIGHT', the tokens that make token 256"), pair);
    CHECK(contains(refusal(with("256 99", "97 98")), "line 5: expected a pair that no earlier line merges, found '97 98'"));
    CHECK(contains(refusal(with("merges 2", "merges 1")), "line 5: expected 'bos <|bos|>', found '256 99'"));
    CHECK(contains(refusal(with("merges 2", "merges 3")), "line 6"));
    CHECK(contains(refusal(with("<|bos|>", "<|eos|>")), "line 6: expected 'bos <|bos|>', found 'bos <|eos|>'"));
    CHECK(refusal(good + "\n") == "tokenizer 'a.txt' goes on after its last line, 6");

    std::string doubling = "deepen tokenizer 1\nsplit nanochat\nmerges 11\n97 97\n";
    for (int i = 256; i < 266; i++) doubling += std::to_string(i) + " " + std::to_string(i) + "\n";
    CHECK(contains(refusal(doubling + "bos <|bos|>\n"), "line 14: expected a token of at most 1024 bytes"));
}

TEST_CASE("tokenizer: a file that is cut anywhere, or has a flipped bit, is refused, or reads as a different tokenizer") {
    std::string good = golden_file();
    for (size_t size = 0; size < good.size(); size++) CHECK(refusal(good.substr(0, size)) != "");
    for (size_t bit = 0; bit < good.size() * 8; bit++) {
        std::string flipped = good;
        flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
        if (refusal(flipped) == "") CHECK(Tokenizer::parse(flipped, "a.txt").serialize() == flipped);
    }
}

TEST_CASE("tokenizer: GPT-2's file is checked too") {
    std::string good = read_file(GPT2);
    CHECK(refusal(good) == "");
    CHECK(contains(refusal(good.substr(0, good.size() - 1)), "cut short: it ends in line 50001"));
    CHECK(contains(refusal(good.substr(0, 200)), "cut short: it ends in line"));
    CHECK(contains(refusal(good + "a b\n"), "goes on after its last line, 50001"));
    CHECK(contains(refusal("#version: 0.2\nh e\nh e\n"), "line 3: expected a token that no earlier line makes, found 'h e'"));
    for (std::string line : {"h", "", "h  e", "h e x", "hh e", "h e\r", "\x01 e"})
        CHECK_MESSAGE(contains(refusal("#version: 0.2\n" + line + "\n"), "line 2: expected two tokens of earlier lines"), line);
}

TEST_CASE("tokenizer: files that are not of a tokenizer") {
    TempDir dir;
    write_file(dir / "big", std::string(5'000'000, 'x'));
    CHECK_THROWS_AS(Tokenizer::load(dir / "big"), std::invalid_argument);
    CHECK_THROWS_AS(Tokenizer::load(dir / "none"), std::invalid_argument);
    CHECK_THROWS_AS(Tokenizer::load(dir.path), std::invalid_argument);
}

TEST_SUITE_BEGIN("encoder" * doctest::skip(!can_split()));

TEST_CASE("tokenizer: GPT-2's ids") {
    Tokenizer gpt2 = Tokenizer::load(GPT2);
    CHECK(gpt2.vocab_size() == 50257);
    CHECK(gpt2.bos() == 50256);
    CHECK(gpt2.encode("Hello world") == Ids{15496, 995});
    CHECK(gpt2.encode("<|endoftext|>") == Ids{27, 91, 437, 1659, 5239, 91, 29});  // text, not the token
    CHECK(golden()["cases"].size() == 20);
    for (const auto& test : golden()["cases"]) {
        std::string text = from_hex(test["bytes"]);
        CHECK(gpt2.encode(text) == test["gpt2"].get<Ids>());
        CHECK(gpt2.decode(gpt2.encode(text)) == text);
    }
}

TEST_CASE("tokenizer: learned merges, and their ids") {
    Tokenizer tokenizer = golden_tokenizer();
    CHECK(tokenizer.vocab_size() == 357);
    CHECK(tokenizer.bos() == 356);
    CHECK(tokenizer.serialize() == golden_file());
    Tokenizer from_file = Tokenizer::parse(golden_file(), "a.txt");
    for (const auto& test : golden()["cases"]) {
        std::string text = from_hex(test["bytes"]);
        CHECK(tokenizer.encode(text) == test["trained"].get<Ids>());
        CHECK(from_file.encode(text) == test["trained"].get<Ids>());
        CHECK(tokenizer.decode(tokenizer.encode(text)) == text);
    }
}

TEST_CASE("tokenizer: any bytes are decoded again, and text never encodes to bos") {
    std::mt19937 random(1);
    Tokenizer own = golden_tokenizer(), gpt2 = Tokenizer::load(GPT2);
    for (Tokenizer* tokenizer : {&own, &gpt2})
        for (int i = 0; i < 300; i++) {
            std::string text(random() % 200, '\0');
            for (char& c : text) c = static_cast<char>(random() % (i % 2 ? 256 : 128));
            Ids ids = tokenizer->encode(text + "<|bos|><|endoftext|>");
            CHECK(tokenizer->decode(ids) == text + "<|bos|><|endoftext|>");
            CHECK(std::find(ids.begin(), ids.end(), tokenizer->bos()) == ids.end());
            CHECK(tokenizer->encode(text + "<|bos|><|endoftext|>") == ids);  // now from the cache
        }
}

TEST_CASE("tokenizer: learned merges never cross documents, of which there may be any number") {
    std::vector<std::string> apart{"ab", "ab", "cd"};
    CHECK(contains(Tokenizer::train(apart, 259).serialize(), "\n97 98\n99 100\n"));
    CHECK(train_on("abab", 258).serialize() == "deepen tokenizer 1\nsplit nanochat\nmerges 1\n97 98\nbos <|bos|>\n");
    CHECK_THROWS_WITH_AS(Tokenizer::train(apart, 260),
                         "the text has pairs for a vocabulary of 259, not of 260; give a smaller size, or more text",
                         std::invalid_argument);
    CHECK(Tokenizer::train({}, 257).encode("hi") == Ids{'h', 'i'});
    for (int vocab_size : {-1, 0, 256, 65537}) CHECK_THROWS_AS(train_on("text", vocab_size), std::invalid_argument);
}

/// The definition of encoding a piece: repeatedly apply the earliest learned merge that is possible, everywhere in it.
static Ids merge_plainly(const Tokenizer& tokenizer, const std::string& piece) {
    std::vector<std::pair<int, int>> merges;
    std::istringstream file(tokenizer.serialize());
    std::string line;
    for (int i = 0; i < 3; i++) std::getline(file, line);
    for (int left, right; file >> left >> right;) merges.emplace_back(left, right);
    Ids ids;
    for (unsigned char byte : piece) ids.push_back(byte);
    for (size_t m = 0; m < merges.size(); m++)
        for (size_t i = 0; i + 1 < ids.size(); i++)
            if (ids[i] == merges[m].first && ids[i + 1] == merges[m].second) {
                ids[i] = static_cast<uint16_t>(256 + m);
                ids.erase(ids.begin() + static_cast<std::ptrdiff_t>(i) + 1);
            }
    return ids;
}

TEST_CASE("tokenizer: pieces of any length are merged by the definition") {
    std::mt19937 random(3);
    std::string text;
    for (int i = 0; i < 4000; i++) text += static_cast<char>('a' + random() % 2);
    Tokenizer tokenizer = train_on(text, 400);
    for (size_t length : {1, 2, 3, 29, 30, 31, 32, 100, 3000}) {
        for (int i = 0; i < 5; i++) CHECK(tokenizer.encode(text.substr(random() % 900, length)).size() <= length);
        std::string piece = text.substr(random() % 900, length), run(length, 'a');
        CHECK(tokenizer.encode(piece) == merge_plainly(tokenizer, piece));
        CHECK(tokenizer.encode(run) == merge_plainly(tokenizer, run));
    }
}

TEST_CASE("tokenizer: a million bytes without a space") {
    Tokenizer gpt2 = Tokenizer::load(GPT2);
    std::mt19937 random(4);
    std::string text;
    for (int i = 0; i < 1'000'000; i++) text += static_cast<char>('a' + random() % 26);
    for (const std::string& word : {text, std::string(1'000'000, 'a'), std::string(1'000'000, '\xff'), std::string(1'000'000, ' ')})
        CHECK(gpt2.decode(gpt2.encode(word)) == word);
}

TEST_SUITE_END();
