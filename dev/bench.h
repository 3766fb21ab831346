// What the benches share: the two models that dev/results reports, tensors of noise, a clock. Of the device it uses llmc/device/device.h and memory.h.
#pragma once
#include <algorithm>
#include <chrono>
#include <random>
#include <string>
#include <vector>
#include "llmc/config.h"
#include "llmc/device/device.h"
#include "llmc/device/memory.h"
#include "llmc/io/error.h"
#include "llmc/io/json.h"
#include "llmc/tensors.h"

struct BenchModel {
    std::string name;
    GPTConfig config;
    int batch;               ///< sequences of a micro-batch on one GPU
    int accumulate;          ///< micro-batches of a step of 2^19 tokens, as both recipes train with
    bool trial = false;      ///< done in a moment on any device, the emulator included: to try the benches, not to measure
};

inline std::vector<BenchModel> bench_models() {
    return {{"speedrun124M", recipe_config(SPEEDRUN, 12, 12, 768, 50304, 1024), 64, 8},
            {"nanochat-d12", recipe_config(NANOCHAT, 12, 6, 768, 32768, 2048, "SSSL"), 32, 8},
            {"trial-speedrun", recipe_config(SPEEDRUN, 2, 2, 128, 512, 128), 2, 2, true},
            {"trial-nanochat", recipe_config(NANOCHAT, 2, 1, 128, 512, 128, "SL"), 2, 2, true}};
}

/// The same for dev/bench_torch.py, with what it must agree in: dev/bench_models.json holds what bench --models prints.
inline std::string bench_models_json() {
    std::string lines;
    for (const BenchModel& model : bench_models())
        lines += concat(lines.empty() ? "{" : ",\n ", '"', model.name, "\": ",
                        dump_json({{"config", to_json(model.config)},
                                   {"batch", model.batch},
                                   {"accumulate", model.accumulate},
                                   {"total_params", total_params(model.config)},
                                   {"flops_per_token", flops_per_token(model.config)}}));
    return lines + "}\n";
}

inline BenchModel bench_model(const std::string& name) {
    std::string names;
    for (const BenchModel& model : bench_models()) {
        if (model.name == name) return model;
        names += " " + model.name;
    }
    fail("no model '", name, "'; there are", names);
}

inline void put(float& to, float value) { to = value; }
inline void put(bf16& to, float value) { to = to_bf16(value); }

/// Device tensors of one op's arguments, freed together.
class Tensors {
public:
    Tensors() = default;
    ~Tensors() {
        for (void* memory : blocks) release(memory);
    }
    Tensors(const Tensors&) = delete;
    Tensors& operator=(const Tensors&) = delete;

    /// n elements of normal noise: matmuls of zeros run faster than training's.
    template <class T>
    T* noise(int64_t n, float deviation = 1) {
        static const std::vector<float> normal = [] {
            std::mt19937 generator(1);
            std::normal_distribution<float> draw;
            std::vector<float> values(1 << 20);
            for (float& value : values) value = draw(generator);
            return values;
        }();
        std::vector<T> host(static_cast<size_t>(std::min<int64_t>(n, 1 << 20)));
        for (size_t i = 0; i < host.size(); i++) put(host[i], deviation * normal[i]);
        return repeat(host, n);
    }
    template <class T>
    T* fill(int64_t n, T value) {
        return repeat(std::vector<T>(static_cast<size_t>(std::min<int64_t>(n, 1 << 20)), value), n);
    }
    template <class T>
    T* zeros(int64_t n) {
        void* memory = device_alloc(static_cast<size_t>(n) * sizeof(T));
        blocks.push_back(memory);
        total += n * static_cast<int64_t>(sizeof(T));
        return static_cast<T*>(memory);
    }
    template <class T>
    T* copy_of(const std::vector<T>& host) {
        return repeat(host, static_cast<int64_t>(host.size()));
    }
    int64_t bytes() const { return total; }

private:
    /// n elements: host's, again and again.
    template <class T>
    T* repeat(const std::vector<T>& host, int64_t n) {
        T* to = zeros<T>(n);
        int64_t have = static_cast<int64_t>(host.size());
        copy_to_device(to, host.data(), host.size() * sizeof(T), nullptr);
        for (; have < n; have *= 2) copy_on_device(to + have, to, static_cast<size_t>(std::min(have, n - have)) * sizeof(T), nullptr);
        return to;
    }

    std::vector<void*> blocks;
    int64_t total = 0;
};

/// Seconds of one of `times` runs of work(i), i counting up, between two waits for the device.
double seconds_of(int times, const auto& work) {
    device_wait(nullptr);
    auto start = std::chrono::steady_clock::now();
    for (int i = 0; i < times; i++) work(i);
    device_wait(nullptr);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / times;
}

inline double median(std::vector<double> values) {
    auto middle = values.begin() + static_cast<std::ptrdiff_t>(values.size() / 2);
    std::nth_element(values.begin(), middle, values.end());
    return *middle;
}
