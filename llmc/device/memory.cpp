// An arena adds up sizes, then makes one allocation.
#include "llmc/device/memory.h"
#include <cstdlib>
#include <iostream>
#include <utility>
#include "llmc/device/device.h"
#include "llmc/io/error.h"

static constexpr size_t PIECE_ALIGNMENT = 256;   // a cache line on the CPU, a full coalesced access on a GPU
static constexpr size_t MOST = size_t{1} << 60;   // of one arena: sums of a few stay far from overflow

void release(void* memory) noexcept {
    try {
        if (memory) device_free(memory);
    } catch (const std::exception& error) {
        std::cout.flush();
        std::cerr << error.what() << std::endl;
        std::_Exit(2);
    }
}

Arena::Arena(std::string name) : label(std::move(name)) {}

Arena::~Arena() { release(base); }

size_t Arena::reserve(size_t bytes) {
    size_t at = size;
    require(bytes < MOST && size < MOST, label, ": more memory than any machine has; use a smaller model or --device-batch");
    size += (bytes + PIECE_ALIGNMENT - 1) / PIECE_ALIGNMENT * PIECE_ALIGNMENT;
    return at;
}

void Arena::allocate() {
    if (size == 0) return;
    base = static_cast<char*>(device_alloc(size));
    for (auto& set : place) set(base);
}
