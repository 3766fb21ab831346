// Sampling, and printing what was sampled.
#include "llmc/text/sampler.h"
#include <algorithm>
#include <cmath>
#include <numeric>
#include <ostream>
#include "llmc/io/error.h"

Sampler::Sampler(double heat, int k, uint64_t seed) : temperature(heat), top_k(k), generator(seed) {
    require(heat >= 0 && std::isfinite(heat), "--temperature is ", heat, ", but must be 0 (always the most likely token) or above");
    require(k >= 0, "--top-k is ", k, ", but must be 0 (all tokens) or above");
}

/// SplitMix64 (Steele, Lea & Flood 2014): uniform in [0, 1), 53 bits.
double Sampler::random() {
    uint64_t z = generator += 0x9e3779b97f4a7c15u;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return double((z ^ (z >> 31)) >> 11) * 0x1p-53;
}

int Sampler::pick(const float* logits, int count) {
    require(count >= 1, "there are no logits to sample from");
    for (int i = 0; i < count; i++)
        require(logits[i] < INFINITY, "the logit of token ", i, " is ", logits[i], ", so nothing can be sampled; the model's weights are not finite");
    const int best = static_cast<int>(std::max_element(logits, logits + count) - logits);
    require(logits[best] > -INFINITY, "all logits are -inf, so nothing can be sampled");
    if (temperature == 0) return best;

    candidates.resize(count);
    std::iota(candidates.begin(), candidates.end(), 0);
    if (top_k > 0 && top_k < count) {
        auto larger = [&](int a, int b) { return logits[a] > logits[b] || (logits[a] == logits[b] && a < b); };
        std::nth_element(candidates.begin(), candidates.begin() + top_k, candidates.end(), larger);
        candidates.resize(top_k);
        std::sort(candidates.begin(), candidates.end());     // the order after nth_element differs between libraries
    }

    // Inverse transform sampling: the token into whose part of the cumulative sum a random point falls.
    weights.resize(candidates.size());
    double sum = 0;
    for (size_t i = 0; i < candidates.size(); i++)
        weights[i] = sum += std::exp((double(logits[candidates[i]]) - logits[best]) / temperature);
    auto chosen = std::upper_bound(weights.begin(), weights.end(), random() * sum);
    return candidates[chosen - weights.begin()];
}

// ------------------------------------------------------------------------------------------ UTF-8

static const char* REPLACEMENT = "\xEF\xBF\xBD";             // U+FFFD

/// Length of the character that begins with this byte; 0: no character begins with it.
static size_t character_bytes(unsigned char lead) {
    if (lead < 0x80) return 1;
    if (lead >= 0xC2 && lead <= 0xDF) return 2;
    if (lead >= 0xE0 && lead <= 0xEF) return 3;
    if (lead >= 0xF0 && lead <= 0xF4) return 4;
    return 0;
}

/// Whether `byte` can follow the beginning of a character (table 3-7: no overlong forms, no surrogates, at most U+10FFFF).
static bool continues(const std::string& beginning, unsigned char byte) {
    unsigned char lead = beginning[0], low = 0x80, high = 0xBF;
    if (beginning.size() == 1) {
        if (lead == 0xE0) low = 0xA0;
        if (lead == 0xED) high = 0x9F;
        if (lead == 0xF0) low = 0x90;
        if (lead == 0xF4) high = 0x8F;
    }
    return byte >= low && byte <= high;
}

void Utf8Printer::print(std::string_view bytes) {
    for (char c : bytes) {
        const unsigned char byte = c;
        if (!held.empty() && !continues(held, byte)) finish();
        if (held.empty() && character_bytes(byte) == 0) {
            out << REPLACEMENT;
            continue;
        }
        held += c;
        if (held.size() == character_bytes(held[0])) {
            out << held;
            held.clear();
        }
    }
    out.flush();
}

void Utf8Printer::finish() {
    if (!held.empty()) out << REPLACEMENT;
    held.clear();
    out.flush();
}
