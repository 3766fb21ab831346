// A shuffle by a seed that is the same on every machine.
#pragma once
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

/// The Fisher-Yates shuffle, written out because the result of std::shuffle differs between standard libraries.
template <class T>
void shuffle(std::vector<T>& items, uint64_t seed) {
    std::mt19937_64 generator(seed);
    for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[generator() % i]);
}
