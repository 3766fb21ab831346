// Shared by the op tests: guarded device memory, comparison with float64, and gradients by finite differences.
// The tests use a device only through the ops' headers, so the same files test the CPU's ops and CUDA's.
#pragma once
#include <cmath>
#include <cstring>
#include <doctest/doctest.h>
#include <functional>
#include <omp.h>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>
#include "llmc/device/device.h"
#include "llmc/device/types.h"

/// Defined where the emulator is the device: it ends a kernel that touches these bytes of device memory.
__attribute__((weak)) void emulator_guard(const void* memory, size_t bytes);

namespace {   // each test file has its own copy, so that names do not collide

using Values = std::vector<double>;

/// The maximal relative error of one rounding to the storage type, and to fp32 (which sums are accumulated in).
constexpr double FP32_ROUND = 1.0 / (1 << 24);
constexpr double ROUND = sizeof(floatX) == 4 ? FP32_ROUND : 1.0 / (1 << 8);
constexpr bool FP32 = sizeof(floatX) == 4;

/// Device memory of `size` elements between two guards. Memory and guards are filled with a NaN pattern (-7995515 as an int), so that an
/// unwritten element, or one read out of bounds, shows in the result; a write out of bounds changes a guard. (The NaN is a signalling one:
/// any arithmetic changes it, so a guard that is read, computed with and written back is detected.) On the emulator, reading a guard alone
/// ends the kernel with an error of AddressSanitizer.
template <class Number>
class Guarded {
public:
    explicit Guarded(size_t count) : size(count), memory(static_cast<char*>(device_alloc(GUARD + bytes() + GUARD))) {
        std::vector<char> poison(GUARD + bytes() + GUARD);
        for (size_t i = 0; i < poison.size(); i++) poison[i] = pattern(i);
        copy_to_device(memory, poison.data(), poison.size(), nullptr);
        if (emulator_guard) {
            emulator_guard(memory, GUARD);
            emulator_guard(memory + GUARD + bytes(), GUARD);
        }
    }
    /// Memory that holds these values, rounded to Number.
    explicit Guarded(const Values& values) : Guarded(values.size()) { write(values); }
    Guarded(const Guarded&) = delete;
    Guarded& operator=(const Guarded&) = delete;
    ~Guarded() { device_free(memory); }

    operator Number*() { return reinterpret_cast<Number*>(memory + GUARD); }
    Number* data() { return *this; }

    void write(const Values& values) {
        REQUIRE(values.size() == size);
        std::vector<Number> host(size);
        for (size_t i = 0; i < size; i++) host[i] = convert(values[i]);
        copy_to_device(memory + GUARD, host.data(), bytes(), nullptr);
    }

    /// The present values, after a check of the guards.
    std::vector<Number> read() const {
        device_wait(nullptr);
        std::vector<char> all(GUARD + bytes() + GUARD);
        copy_to_host(all.data(), memory, all.size(), nullptr);
        bool before = true, after = true;
        for (size_t i = 0; i < GUARD; i++) {
            before = before && all[i] == pattern(i);
            after = after && all[GUARD + bytes() + i] == pattern(GUARD + bytes() + i);
        }
        CHECK_MESSAGE(before, "something was written before the beginning of a tensor");
        CHECK_MESSAGE(after, "something was written beyond the end of a tensor");
        std::vector<Number> host(size);
        if (size > 0) std::memcpy(host.data(), all.data() + GUARD, bytes());
        return host;
    }

    Values values() const {
        Values out(size);
        std::vector<Number> host = read();
        for (size_t i = 0; i < size; i++) {
            if constexpr (std::is_same_v<Number, int> || std::is_same_v<Number, double>) out[i] = host[i];
            else out[i] = to_float(host[i]);
        }
        return out;
    }

    /// Whether the bytes equal another's: for results that must be exact, and inputs that must not change.
    bool same_bytes(const Guarded& other) const {
        std::vector<Number> mine = read(), theirs = other.read();
        return mine.size() == theirs.size() && (size == 0 || std::memcmp(mine.data(), theirs.data(), bytes()) == 0);
    }

    const size_t size;

private:
    static constexpr size_t GUARD = 4096;

    static char pattern(size_t i) { return static_cast<char>(i % 2 == 0 ? 0x85 : 0xff); }
    static Number convert(double value) {
        if constexpr (std::is_same_v<Number, int>) return static_cast<int>(value);
        else if constexpr (std::is_same_v<Number, double>) return value;
        else if constexpr (std::is_same_v<Number, bf16>) return to_bf16(static_cast<float>(value));
        else return static_cast<float>(value);
    }
    size_t bytes() const { return size * sizeof(Number); }

    char* memory;
};

/// Host values of any type, copied to device memory.
template <class T>
class OnDevice {
public:
    explicit OnDevice(const std::vector<T>& host) : memory(device_alloc(host.size() * sizeof(T))) {
        copy_to_device(memory, host.data(), host.size() * sizeof(T), nullptr);
    }
    OnDevice(const OnDevice&) = delete;
    OnDevice& operator=(const OnDevice&) = delete;
    ~OnDevice() { device_free(memory); }

    operator const T*() const { return static_cast<const T*>(memory); }

private:
    void* memory;
};

using Floats = Guarded<float>;
using FloatXs = Guarded<floatX>;
using Ints = Guarded<int>;

/// A generator with a fixed seed.
class Random {
public:
    explicit Random(unsigned seed) : generator(seed) {}
    double normal() { return std::normal_distribution<double>()(generator); }
    int below(int n) { return static_cast<int>(generator() % static_cast<unsigned>(n)); }

    /// Normal values times `scale`, rounded to fp32.
    Values floats(size_t n, double scale = 1) {
        Values x(n);
        for (double& v : x) v = static_cast<float>(normal() * scale);
        return x;
    }
    /// The same, rounded to the storage type: the input of both an op and its reference.
    Values floatXs(size_t n, double scale = 1) {
        Values x(n);
        for (double& v : x) v = to_float(to_floatX(static_cast<float>(normal() * scale)));
        return x;
    }
    Values ints(size_t n, int end) {
        Values x(n);
        for (double& v : x) v = below(end);
        return x;
    }

private:
    std::mt19937 generator;
};

/// Checks |got - want| <= relative * |want| + absolute, element by element; names the worst.
inline void check_close(const std::string& what, const Values& got, const Values& want, double relative, double absolute) {
    REQUIRE(got.size() == want.size());
    double worst = 0;
    size_t at = 0;
    for (size_t i = 0; i < got.size(); i++) {
        double excess = std::abs(got[i] - want[i]) / (relative * std::abs(want[i]) + absolute + 1e-300);
        if (excess > worst || std::isnan(excess)) {
            worst = excess;
            at = i;
            if (std::isnan(excess)) break;
        }
    }
    CHECK_MESSAGE(worst <= 1, what, "[", at, "] is ", got[at], ", should be ", want[at], ": ", worst, " times the tolerance");
}

inline double dot(const Values& a, const Values& b) {
    double sum = 0;
    for (size_t i = 0; i < a.size(); i++) sum += a[i] * b[i];
    return sum;
}

/// Checks a gradient against central differences of `loss` along a few random directions, which have a component in every element.
/// `tolerance` is relative to the gradient's norm (the slope along a random direction is about as large).
inline void check_gradient(const std::string& what, const Values& x, const Values& gradient, double h, double tolerance,
                           const std::function<double(const Values&)>& loss) {
    Random random(7);
    double norm = std::sqrt(dot(gradient, gradient));
    for (int i = 0; i < 3; i++) {
        Values direction(x.size()), up = x, down = x;
        for (size_t j = 0; j < x.size(); j++) {
            direction[j] = random.normal();
            up[j] = static_cast<float>(x[j] + h * direction[j]);
            down[j] = static_cast<float>(x[j] - h * direction[j]);
            direction[j] = (up[j] - down[j]) / (2 * h);
        }
        double slope = (loss(up) - loss(down)) / (2 * h), predicted = dot(gradient, direction);
        CHECK_MESSAGE(std::abs(slope - predicted) <= tolerance * norm, what, ": slope ", slope, ", gradient says ", predicted);
    }
}

/// Runs `body` with another number of threads: for results that must not depend on it.
inline void with_threads(int threads, const std::function<void()>& body) {
    int before = omp_get_max_threads();
    omp_set_num_threads(threads);
    body();
    omp_set_num_threads(before);
}

}  // namespace

/// The call is refused with a text that begins with the op's name and a colon.
#define CHECK_REFUSED(op, ...) CHECK_THROWS_WITH_AS(__VA_ARGS__, doctest::Contains(op ": "), std::invalid_argument)
