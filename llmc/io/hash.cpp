// xxHash as a header, compiled for the vector width of this processor: with 512 bits it hashes faster than memory is read.
#include "llmc/io/hash.h"
#include <cstdio>
#define XXH_INLINE_ALL
#include <xxhash.h>

struct Xxh3::State {
    XXH3_state_t xxh;
};

Xxh3::Xxh3() : state(std::make_unique<State>()) { XXH3_64bits_reset(&state->xxh); }
Xxh3::~Xxh3() = default;
void Xxh3::add(const void* bytes, int64_t count) { XXH3_64bits_update(&state->xxh, bytes, static_cast<size_t>(count)); }
uint64_t Xxh3::value() const { return XXH3_64bits_digest(&state->xxh); }

uint64_t xxh3_64(std::string_view bytes) { return XXH3_64bits(bytes.data(), bytes.size()); }

std::string xxh3_128(std::string_view bytes) {
    XXH128_hash_t hash = XXH3_128bits(bytes.data(), bytes.size());
    return hex_digits(hash.high64) + hex_digits(hash.low64);
}

std::string hex_digits(uint64_t value) {
    char digits[17];
    std::snprintf(digits, sizeof digits, "%016llx", static_cast<unsigned long long>(value));
    return digits;
}
