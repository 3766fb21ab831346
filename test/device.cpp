// Memory of the device and what it says of itself.
#include "llmc/device.h"
#include <cstdint>
#include <limits>
#include <new>
#include "test/reference.h"

TEST_CASE("device_alloc gives zeroed memory, aligned for any access") {
    for (size_t bytes : {size_t{0}, size_t{1}, size_t{4097}, size_t{3} << 20}) {
        CAPTURE(bytes);
        void* memory = device_alloc(bytes);
        CHECK(reinterpret_cast<uintptr_t>(memory) % 256 == 0);
        std::vector<char> host(bytes, 1);
        copy_to_host(host.data(), memory, bytes, nullptr);
        CHECK(host == std::vector<char>(bytes, 0));
        device_free(memory);
    }
    device_free(nullptr);
}

TEST_CASE("device_alloc refuses what is not there") {
    CHECK_THROWS_AS(device_alloc(size_t{1} << 60), std::bad_alloc);
    CHECK_THROWS_AS(device_alloc(std::numeric_limits<size_t>::max()), std::bad_alloc);
}

TEST_CASE("copies and zeroing move exactly their bytes") {
    for (int n : {0, 1, 1000, 200003}) {
        CAPTURE(n);
        Values x = Random(n).floats(n);
        Floats a(x), b(n);
        copy_on_device(b, a, n * sizeof(float), nullptr);
        CHECK(b.same_bytes(a));
        device_zero(b, n * sizeof(float), nullptr);
        CHECK(b.values() == Values(n, 0));
        CHECK(a.values() == x);
    }
}

TEST_CASE("the device says what it is") {
    CHECK(!device_name().empty());
    CHECK(device_name().find('\n') == std::string::npos);
    size_t before = device_free_bytes();
    CHECK(before > (size_t{1} << 20));
    CHECK(before < (size_t{1} << 50));
}
