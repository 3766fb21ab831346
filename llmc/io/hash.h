// XXH3, the checksum of checkpoints: 64 bits for a tensor's bytes, 128 bits for a model.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

uint64_t xxh3_64(std::string_view bytes);
/// 32 hexadecimal digits.
std::string xxh3_128(std::string_view bytes);
/// 16 hexadecimal digits.
std::string hex_digits(uint64_t value);

/// XXH3-64 of bytes that come in pieces.
class Xxh3 {
public:
    Xxh3();
    ~Xxh3();
    void add(const void* bytes, int64_t count);
    uint64_t value() const;

private:
    struct State;
    std::unique_ptr<State> state;
};
