// Memory of the device and what it says of itself.
#include "llmc/device/device.h"
#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
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

TEST_CASE("device_alloc throws bad_alloc beyond the memory that there is") {
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

TEST_CASE("uploads take their bytes at the call, however many are under way") {
    const int n = 1000, copies = 40;   // more than there are slots
    std::vector<std::unique_ptr<Ints>> to;   // made before, as that waits for the device
    for (int i = 0; i < copies; i++) to.push_back(std::make_unique<Ints>(n));
    Uploads uploads(n * sizeof(int), 3);
    std::vector<int> host(n);
    uploads.copy(nullptr, nullptr, 0, nullptr);
    for (int i = 0; i < copies; i++) {
        std::fill(host.begin(), host.end(), i);
        uploads.copy(to[i]->data(), host.data(), (n - i) * sizeof(int), nullptr);
        std::fill(host.begin(), host.end(), -1);
    }
    for (int i = 0; i < copies; i++) {
        std::vector<int> got = to[i]->read();
        CHECK(std::count(got.begin(), got.begin() + n - i, i) == n - i);
        CHECK(std::count(got.begin() + n - i, got.end(), i) == 0);
    }
}

TEST_CASE("a capture does its work at every run, on what memory holds then, and captures again after forget()") {
    const int n = 100;
    Floats from(n), middle(n), to(n);
    Capture capture;
    const void* source = from.data();
    for (int run = 0; run < 8; run++) {
        CAPTURE(run);
        from.write(Values(n, run));
        to.write(Values(n, -1));
        if (run == 5) capture.forget();
        capture.run(nullptr, [&] {
            copy_on_device(middle, source, n * sizeof(float), nullptr);
            copy_on_device(to, middle, n / 2 * sizeof(float), nullptr);
        });
        Values want(n, -1);
        std::fill(want.begin(), want.begin() + n / 2, run);
        CHECK(to.values() == want);
    }
    // Work that throws leaves the stream as it was.
    for (int run = 0; run < 3; run++) {
        Capture fails;
        fails.run(nullptr, [] {});
        CHECK_THROWS_AS(fails.run(nullptr, [] { throw std::invalid_argument("no"); }), std::invalid_argument);
        fails.run(nullptr, [&] { copy_on_device(to, from, n * sizeof(float), nullptr); });
        CHECK(to.same_bytes(from));
    }
}

TEST_CASE("the device says what it is") {
    CHECK(!device_name().empty());
    CHECK(device_name().find('\n') == std::string::npos);
    size_t before = device_free_bytes();
    CHECK(before > (size_t{1} << 20));
    CHECK(before < (size_t{1} << 50));
}
