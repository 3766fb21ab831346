// From logits to the next token, and from the bytes of tokens to valid UTF-8.
#pragma once
#include <cstdint>
#include <iosfwd>
#include <string>
#include <string_view>
#include <vector>

/// Samples tokens from softmax(logits / temperature) over the top_k largest logits.
class Sampler {
public:
    /// temperature: 0 takes the largest logit. top_k: 0 samples from all. Ties between equal logits go to the lower id.
    /// Throws std::invalid_argument when temperature is negative or not finite, or top_k negative.
    Sampler(double temperature, int top_k, uint64_t seed);

    /// Returns a token id below `count`, the size of the tokenizer's vocabulary (without the rows that pad it to a multiple of 8).
    /// logits (count)   fp32; -inf is never sampled
    /// Throws std::invalid_argument for NaN or +inf, or when all are -inf.
    int pick(const float* logits, int count);

    /// State of the random number generator; restore() continues its sequence.
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

/// Prints a stream of bytes as valid UTF-8: an incomplete character is held back until its next bytes come, invalid bytes become U+FFFD
/// (one for each maximal subpart of a character, as the Unicode Standard recommends in chapter 3.9).
class Utf8Printer {
public:
    explicit Utf8Printer(std::ostream& stream) : out(stream) {}
    void print(std::string_view bytes);
    /// Ends the stream: a character that is still incomplete becomes U+FFFD.
    void finish();

private:
    std::ostream& out;
    std::string held;        ///< the beginning of a character, valid so far
};
