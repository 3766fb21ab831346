// Sampling by hand-made logits, and printing text whose characters arrive in pieces.
#include "llmc/text/sampler.h"
#include <doctest/doctest.h>
#include <cmath>
#include <limits>
#include <sstream>
#include <stdexcept>
#include <vector>

static const float INF = std::numeric_limits<float>::infinity();

static std::vector<int> draws(Sampler& sampler, const std::vector<float>& logits, int count) {
    std::vector<int> tokens;
    for (int i = 0; i < count; i++) tokens.push_back(sampler.pick(logits.data(), static_cast<int>(logits.size())));
    return tokens;
}

TEST_CASE("sampler: temperature 0 takes the largest logit, and of equal ones the lowest id") {
    Sampler sampler(0, 0, 1);
    CHECK(draws(sampler, {1, 3, 2, 3}, 3) == std::vector<int>{1, 1, 1});
    CHECK(draws(sampler, {-INF, -5, -INF}, 1) == std::vector<int>{1});
    CHECK(draws(sampler, {7}, 1) == std::vector<int>{0});
}

TEST_CASE("sampler: draws follow softmax(logits / temperature)") {
    for (double temperature : {0.5, 1.0, 2.0}) {
        Sampler sampler(temperature, 0, 42);
        const std::vector<float> logits{0, 1, -INF, 2, -1};
        double sum = 0;
        for (float l : logits) sum += std::exp(l / temperature);
        std::vector<int> count(logits.size());
        const int n = 100000;
        for (int token : draws(sampler, logits, n)) count[token]++;
        // Five standard deviations of a count; the seed is fixed, so the test is deterministic.
        for (size_t i = 0; i < logits.size(); i++) {
            const double p = std::exp(logits[i] / temperature) / sum;
            CHECK(std::fabs(count[i] - n * p) <= 5 * std::sqrt(n * p * (1 - p)));
        }
        CHECK(count[2] == 0);
    }
}

TEST_CASE("sampler: the random numbers are SplitMix64's") {
    // For seed 42 another implementation gives 0.7416, 0.1599, 0.2786. With 100 equal logits these are the tokens 74, 15 and 27.
    Sampler sampler(1, 0, 42);
    CHECK(draws(sampler, std::vector<float>(100, 0.5f), 3) == std::vector<int>{74, 15, 27});
}

TEST_CASE("sampler: top-k draws only from the k largest, and of equal ones from the lowest ids") {
    Sampler sampler(5, 2, 3);
    std::vector<int> count(5);
    for (int token : draws(sampler, {1, 2, 2, 3, 2}, 1000)) count[token]++;
    CHECK(count[3] > 300);
    CHECK(count[1] > 300);
    CHECK(count[1] + count[3] == 1000);

    Sampler one(100, 1, 3);
    CHECK(draws(one, {1, 2, 2}, 3) == std::vector<int>{1, 1, 1});

    // A k of all logits, or more, is no restriction.
    Sampler all(1, 0, 9), five(1, 5, 9), many(1, 1000, 9);
    const std::vector<float> logits{0.1f, 0.2f, 0.3f, 0.4f, 0.5f};
    const std::vector<int> expected = draws(all, logits, 100);
    CHECK(draws(five, logits, 100) == expected);
    CHECK(draws(many, logits, 100) == expected);
}

TEST_CASE("sampler: the draws depend on the seed, and a restored state continues them") {
    const std::vector<float> logits(50, 0.0f);
    Sampler a(1, 0, 7), b(1, 0, 7), other(1, 0, 8);
    const std::vector<int> first = draws(a, logits, 20);
    CHECK(draws(b, logits, 20) == first);
    CHECK(draws(other, logits, 20) != first);
    const uint64_t state = a.state();
    const std::vector<int> second = draws(a, logits, 20);
    other.restore(state);
    CHECK(draws(other, logits, 20) == second);
}

TEST_CASE("sampler: extremes of temperature and of logits") {
    Sampler cold(1e-300, 0, 1);
    CHECK(draws(cold, {1, 3, 2}, 10) == std::vector<int>(10, 1));
    Sampler hot(1e300, 0, 1);
    std::vector<int> count(2);
    for (int token : draws(hot, {-3e38f, 3e38f}, 1000)) count[token]++;
    CHECK(count[0] > 400);
    CHECK(count[1] > 400);
}

TEST_CASE("sampler: refusals") {
    CHECK_THROWS_AS(Sampler(-0.1, 0, 0), std::invalid_argument);
    CHECK_THROWS_AS(Sampler(std::nan(""), 0, 0), std::invalid_argument);
    CHECK_THROWS_AS(Sampler(INF, 0, 0), std::invalid_argument);
    CHECK_THROWS_AS(Sampler(1, -1, 0), std::invalid_argument);
    for (double temperature : {0.0, 1.0}) {
        Sampler sampler(temperature, 0, 0);
        CHECK_THROWS_WITH_AS(draws(sampler, {1, std::nanf(""), 2}, 1), doctest::Contains("token 1"), std::invalid_argument);
        CHECK_THROWS_AS(draws(sampler, {1, 2, INF}, 1), std::invalid_argument);
        CHECK_THROWS_AS(draws(sampler, {-INF, -INF}, 1), std::invalid_argument);
        CHECK_THROWS_AS(draws(sampler, {}, 1), std::invalid_argument);
    }
}

/// The printed text of these bytes, which must be the same when they arrive one by one.
static std::string printed(const std::string& bytes) {
    std::ostringstream whole, single;
    Utf8Printer at_once(whole), one_by_one(single);
    at_once.print(bytes);
    at_once.finish();
    for (char c : bytes) one_by_one.print({&c, 1});
    one_by_one.finish();
    CHECK(whole.str() == single.str());
    return whole.str();
}

#define FFFD "\xEF\xBF\xBD"

TEST_CASE("UTF-8: valid text is unchanged") {
    for (const std::string& text : {std::string("plain\n"), std::string("\0 nul", 5), std::string("\xC2\x80 \xDF\xBF \xC3\xA9"),
                                    std::string("\xE0\xA0\x80 \xED\x9F\xBF \xEE\x80\x80 \xEF\xBF\xBF \xE6\xBC\xA2"),
                                    std::string("\xF0\x90\x80\x80 \xF4\x8F\xBF\xBF \xF0\x9F\x99\x82"), std::string()})
        CHECK(printed(text) == text);
}

TEST_CASE("UTF-8: invalid bytes are replaced, with one replacement character per maximal subpart") {
    CHECK(printed("a\x80z") == "a" FFFD "z");                                       // a stray continuation byte
    CHECK(printed("\xC0\xAF") == FFFD FFFD);                                        // overlong
    CHECK(printed("\xE0\x9F\xBF") == FFFD FFFD FFFD);
    CHECK(printed("\xED\xA0\x80") == FFFD FFFD FFFD);                               // a surrogate
    CHECK(printed("\xF0\x8F\xBF\xBF") == FFFD FFFD FFFD FFFD);
    CHECK(printed("\xF4\x90\x80\x80") == FFFD FFFD FFFD FFFD);                      // beyond U+10FFFF
    CHECK(printed("\xF5\xFF") == FFFD FFFD);
    CHECK(printed("\xF0\x9F\x99") == FFFD);                                         // cut at the end
    CHECK(printed("\xF0\x9F\x99 x") == FFFD " x");
    CHECK(printed("\xE6\xBC\xC3\xA9") == FFFD "\xC3\xA9");                          // the next character is not lost
    // The example of the Unicode Standard, table 3-8.
    CHECK(printed("\x61\xF1\x80\x80\xE1\x80\xC2\x62\x80\x63\x80\xBF\x64") == "a" FFFD FFFD FFFD "b" FFFD "c" FFFD FFFD "d");
}

TEST_CASE("UTF-8: a character that is not complete is held back until it is") {
    std::ostringstream out;
    Utf8Printer printer(out);
    printer.print("a\xF0\x9F");
    CHECK(out.str() == "a");
    printer.print("\x99");
    CHECK(out.str() == "a");
    printer.print("\x82" "b");
    CHECK(out.str() == "a\xF0\x9F\x99\x82" "b");
    printer.print("\xE6");
    printer.finish();
    CHECK(out.str() == "a\xF0\x9F\x99\x82" "b" FFFD);
    printer.finish();
    CHECK(out.str() == "a\xF0\x9F\x99\x82" "b" FFFD);
}
