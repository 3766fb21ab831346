// Arenas: one allocation of device memory per lifetime, cut into pieces. Nothing is allocated later.
#pragma once
#include <cstddef>
#include <functional>
#include <string>
#include <vector>
#include "llmc/device/types.h"

/// device_free() for destructors, which must not throw: an asynchronous error of the device that no call has reported yet ends the
/// program with one line on stderr and exit code 2.
void release(void* memory) noexcept;

/// Pieces are added first, which allocates nothing and gives the size (this is the memory plan), then allocated all at once.
class Arena {
public:
    explicit Arena(std::string name);
    ~Arena();
    Arena(const Arena&) = delete;
    Arena& operator=(const Arena&) = delete;

    /// `pointer` will point to `count` zeroed elements after allocate(). Until then the variable itself must stay where it is.
    /// Throws std::invalid_argument beyond 2^60 bytes.
    template <class T>
    void add(T*& pointer, int64_t count) {
        size_t at = reserve(static_cast<size_t>(count) * sizeof(T));
        place.push_back([&pointer, at](char* block) { pointer = reinterpret_cast<T*>(block + at); });
    }
    void allocate();

    const std::string& name() const { return label; }
    size_t bytes() const { return size; }

private:
    size_t reserve(size_t bytes);

    std::string label;
    size_t size = 0;
    char* base = nullptr;
    std::vector<std::function<void(char*)>> place;
};
