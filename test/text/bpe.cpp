// llmc/text/bpe: learned merges, against the definition.
#include <doctest/doctest.h>
#include <algorithm>
#include <map>
#include <random>
#include <string>
#include <utility>
#include "llmc/text/bpe.h"

using Words = std::unordered_map<std::string_view, int64_t>;
using Pair = std::pair<int, int>;

/// The definition: counts all pairs again for every merge.
static std::vector<Pair> train_plainly(const Words& words, int merges) {
    std::vector<std::pair<std::vector<int>, int64_t>> state;
    for (auto [word, count] : words) {
        std::vector<int> bytes;
        for (unsigned char byte : word) bytes.push_back(byte);
        state.emplace_back(bytes, count);
    }
    std::vector<Pair> done;
    while (static_cast<int>(done.size()) < merges) {
        std::map<Pair, int64_t> counts;
        for (auto& [tokens, count] : state)
            for (size_t i = 0; i + 1 < tokens.size(); i++) counts[{tokens[i], tokens[i + 1]}] += count;
        if (counts.empty()) break;
        Pair best = counts.begin()->first;
        for (auto [pair, count] : counts)
            if (count > counts[best]) best = pair;
        int made = 256 + static_cast<int>(done.size());
        for (auto& [tokens, count] : state) {
            std::vector<int> next;
            for (size_t i = 0; i < tokens.size(); i++) {
                bool here = i + 1 < tokens.size() && tokens[i] == best.first && tokens[i + 1] == best.second;
                next.push_back(here ? made : tokens[i]);
                i += here;
            }
            tokens = next;
        }
        done.push_back(best);
    }
    return done;
}

static std::vector<Pair> train(const Words& words, int merges) {
    std::vector<Pair> pairs;
    for (Merge merge : train_bpe(words, merges)) pairs.emplace_back(merge.left, merge.right);
    return pairs;
}

TEST_CASE("bpe: by hand") {
    // hug pug pun bun hugs (Hugging Face's course): ug 20, then un 16, then h+ug 15.
    Words words{{"hug", 10}, {"pug", 5}, {"pun", 12}, {"bun", 4}, {"hugs", 5}};
    CHECK(train(words, 3) == std::vector<Pair>{{'u', 'g'}, {'u', 'n'}, {'h', 256}});
}

TEST_CASE("bpe: of equally frequent pairs, the smallest is merged first") {
    CHECK(train({{"dc", 3}, {"ab", 3}, {"aa", 3}}, 3) == std::vector<Pair>{{'a', 'a'}, {'a', 'b'}, {'d', 'c'}});
}

TEST_CASE("bpe: the same merges as counting all pairs again each time") {
    std::mt19937 random(1);
    for (int letters : {1, 2, 4}) {
        std::vector<std::string> texts;
        for (int i = 0; i < 60; i++) {
            std::string text(1 + random() % 25, ' ');
            for (char& c : text) c = static_cast<char>('a' + random() % static_cast<unsigned>(letters));
            texts.push_back(text);
        }
        Words words;
        for (const std::string& text : texts) words[text] += 1 + random() % 3;
        CHECK(train(words, 150) == train_plainly(words, 150));
    }
}

TEST_CASE("bpe: it ends when there is nothing left to merge, and makes no token longer than the limit") {
    CHECK(train({{"abc", 1}}, 10).size() == 2);
    CHECK(train({}, 10).empty());
    CHECK(train({{"abc", 1}}, 0).empty());

    std::string line(5000, '-');
    std::vector<int> length(256, 1);
    for (Pair pair : train({{line, 7}}, 1000)) length.push_back(length[pair.first] + length[pair.second]);
    CHECK(*std::max_element(length.begin(), length.end()) <= MAX_TOKEN_BYTES);
    CHECK(length.size() > 256 + 9);  // 2, 4, ..., 512, 1024
}
