// From logits to the next token, and from tokens' bytes to text.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

/// Draws tokens from softmax(logits / temperature) over the top_k largest logits.
class Sampler {
public:
    /// temperature: 0 takes the largest logit. top_k: 0 draws from all. Of equal logits the lower id counts as larger.
    /// Throws std::invalid_argument when temperature is negative or not finite, or top_k negative.
    Sampler(double temperature, int top_k, uint64_t seed);

    /// A token's id, below `count`: the vocabulary, without the rows that only round it up.
    /// logits (count)   fp32; -inf is never drawn
    /// Throws std::invalid_argument for NaN or +inf, or when all are -inf.
    int pick(const float* logits, int count);

    /// State of the generator. A sampler that is given it goes on alike.
    uint64_t state() const { return generator; }
    void restore(uint64_t state) { generator = state; }

private:
    double random();

    double temperature;
    int top_k;
    uint64_t generator;
    std::vector<int> candidates;
    std::vector<double> weights;
};

/// Prints bytes that come in pieces as UTF-8: a character that is not complete yet is held back, bytes that can be none become
/// U+FFFD (one for each longest beginning of a character, as the Unicode Standard recommends, chapter 3.9).
class Utf8Printer {
public:
    explicit Utf8Printer(std::ostream& stream) : out(stream) {}
    void print(std::string_view bytes);
    /// At the end: what was held back will not be completed.
    void finish();

private:
    std::ostream& out;
    std::string held;        ///< the beginning of a character, valid so far
};
