// Byte-pair encoding (Sennrich et al. 2016): learning which neighbours to merge.
#pragma once
#include <cstdint>
#include <string_view>
#include <unordered_map>
#include <vector>

/// Neighbouring tokens that become one.
struct Merge {
    uint16_t left, right;
};

/// Longest token, in bytes. It bounds what a vocabulary can weigh, whatever text or file it comes from.
inline constexpr int MAX_TOKEN_BYTES = 1024;

/// Learns up to `merges` merges from pieces of text and how often each occurs. Tokens 0 to 255 are the bytes, merge i makes
/// token 256 + i. Each merge is the most frequent pair of neighbours; of equals, the one with the smallest left token, then
/// the smallest right one: the result does not depend on the order of the map.
/// Fewer come back when no pair is left that would make a token of at most MAX_TOKEN_BYTES.
std::vector<Merge> train_bpe(const std::unordered_map<std::string_view, int64_t>& pieces, int merges);
