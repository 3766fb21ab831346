// llmc/text/split: pieces of text.
#include <doctest/doctest.h>
#include <random>
#include <string>
#include <vector>
#include "llmc/text/split.h"

using Pieces = std::vector<std::string>;

static Pieces split(SplitKind kind, std::string_view text) {
    Splitter splitter(kind);
    Pieces pieces;
    splitter.split(text, [&](std::string_view piece) { pieces.emplace_back(piece); });
    return pieces;
}

TEST_CASE("split: without PCRE2 the error names what is missing" * doctest::skip(can_split())) {
    MESSAGE("built without PCRE2: the tests of the tokenizer's encoder are left out");
    for (SplitKind kind : {SplitKind::nanochat, SplitKind::gpt2})
        CHECK_THROWS_WITH_AS(split(kind, "a"),
                             "split: this program was built without PCRE2, which encoding text needs; install it (make deps) and make again",
                             std::invalid_argument);
}

TEST_CASE("split: text can be cut between a word and white space") {
    CHECK(last_border("abc def ghi") == 7);
    CHECK(last_border("\u00e9 ! ") == 0);
    CHECK(last_border("a") == 0);
    CHECK(last_border("") == 0);
}

TEST_SUITE_BEGIN("encoder" * doctest::skip(!can_split()));

TEST_CASE("split: both patterns, by hand") {
    CHECK(split(SplitKind::gpt2, "I'll pay 1234 dollars!!  \n x") == Pieces{"I", "'ll", " pay", " 1234", " dollars", "!!", "  \n", " x"});
    CHECK(split(SplitKind::nanochat, "I'LL pay 12345 (x)\n\n\tfoo  bar") ==
          Pieces{"I", "'LL", " pay", " ", "12", "34", "5", " (", "x", ")\n\n", "\tfoo", " ", " bar"});
    CHECK(split(SplitKind::nanochat, "a  \n\n  b") == Pieces{"a", "  \n\n", " ", " b"});
    CHECK(split(SplitKind::gpt2, "").empty());
}

TEST_CASE("split: white space is Unicode's, in which U+180E is not") {
    CHECK(split(SplitKind::gpt2, "a\u3000\u2003b") == Pieces{"a", "\u3000", "\u2003", "b"});
    CHECK(split(SplitKind::gpt2, "a\u180e\u2003b") == Pieces{"a", "\u180e", "\u2003", "b"});
    CHECK(split(SplitKind::gpt2, "a \u180e!") == Pieces{"a", " \u180e!"});
}

TEST_CASE("split: bytes that are not UTF-8 are split as punctuation") {
    CHECK(split(SplitKind::gpt2, "caf\xe9 au") == Pieces{"caf", "\xe9", " au"});
    CHECK(split(SplitKind::gpt2, "a \xff\xfe!b") == Pieces{"a", " \xff\xfe!", "b"});
    CHECK(split(SplitKind::gpt2, "\u00e9\xc3") == Pieces{"\u00e9", "\xc3"});                               // cut off
    CHECK(split(SplitKind::gpt2, "\xc1\xa1\xe0\x80\xa1\xf0\x80\x80\xa1").size() == 1);                    // overlong encodings of letters
    CHECK(split(SplitKind::gpt2, "x\xed\xa0\x80\xf4\x90\x80\x80y") == Pieces{"x", "\xed\xa0\x80\xf4\x90\x80\x80", "y"});  // a surrogate, and a code point beyond U+10FFFF
    CHECK(split(SplitKind::gpt2, "x\xe0\xa0\x80\xed\x9f\xbb\xf0\x90\x80\x80").size() == 1);  // U+0800, U+D7FB, U+10000: letters
}

/// Random mixtures of letters, digits, white space, punctuation, characters of several bytes, and invalid bytes.
static std::string random_text(std::mt19937& random, size_t pieces) {
    static const Pieces alphabet{"a", "Z", "s", "'", "ll", "7", "12", " ", "  ", "\n", "\r\n", "\t", "!", "-", "\u00e9", "\u4f60",
                                 "\U0001F600", "\u3000", "\u00b2", "\xff", "\xc3", std::string(1, '\0'), "\xf0\x9f"};
    std::string text;
    for (size_t i = 0; i < pieces; i++) text += alphabet[random() % alphabet.size()];
    return text;
}

TEST_CASE("split: the pieces add up to the text, and none is empty") {
    std::mt19937 random(1);
    for (SplitKind kind : {SplitKind::nanochat, SplitKind::gpt2})
        for (int i = 0; i < 200; i++) {
            std::string text = random_text(random, random() % 60), joined;
            for (const std::string& piece : split(kind, text)) {
                CHECK(!piece.empty());
                joined += piece;
            }
            CHECK(joined == text);
        }
}

TEST_CASE("split: a text that is cut at its last border gives the same pieces as the whole") {
    std::mt19937 random(2);
    int cuts = 0;
    for (SplitKind kind : {SplitKind::nanochat, SplitKind::gpt2})
        for (int i = 0; i < 500; i++) {
            std::string text = random_text(random, 30);
            size_t border = last_border(std::string_view(text).substr(0, text.size() / 2));
            Pieces parts = split(kind, text.substr(0, border));
            for (const std::string& piece : split(kind, text.substr(border))) parts.push_back(piece);
            CHECK(parts == split(kind, text));
            cuts += border > 0;
        }
    CHECK(cuts > 200);
}

TEST_CASE("split: very long pieces") {
    for (SplitKind kind : {SplitKind::nanochat, SplitKind::gpt2}) {
        CHECK(split(kind, std::string(3'000'000, ' ') + "x") == Pieces{std::string(2'999'999, ' '), " x"});
        CHECK(split(kind, std::string(3'000'000, 'x')).size() == 1);
        CHECK(split(kind, std::string(3'000'000, '\xff')).size() == 1);
        CHECK(split(kind, std::string(3'000'000, '\n')).size() == 1);
    }
}

TEST_SUITE_END();
