// Putting things in an order that a seed decides, the same on every machine.
#pragma once
#include <cstdint>
#include <random>
#include <utility>
#include <vector>

/// Fisher and Yates, written out: what std::shuffle does differs from library to library.
template <class T>
void shuffle(std::vector<T>& items, uint64_t seed) {
    std::mt19937_64 generator(seed);
    for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[generator() % i]);
}
