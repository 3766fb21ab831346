// Byte-pair encoding (Sennrich et al. 2016): learning the merges.
#pragma once
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

/// A pair of adjacent tokens that is merged into one.
struct Merge {
    uint16_t left, right;
};

/// Longest token, in bytes. It bounds the memory of a vocabulary, whatever text or file it comes from.
inline constexpr int MAX_TOKEN_BYTES = 1024;

/// Learns up to `merges` merges from pieces of text and their counts. Tokens 0 to 255 are the bytes, merge i makes token 256 + i. Each
/// merge is the most frequent pair of adjacent tokens; ties go to the smallest left token, then to the smallest right one, so that
/// the result does not depend on the order of the map. Returns fewer when no pair is left that makes a token of at most
/// MAX_TOKEN_BYTES.
std::vector<Merge> train_bpe(const std::unordered_map<std::string_view, int64_t>& pieces, int merges);
