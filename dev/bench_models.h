// The two models that dev/results reports, as both benches and dev/bench_torch.py build them.
#pragma once
#include <string>
#include <vector>
#include "llmc/config.h"
#include "llmc/error.h"

struct BenchModel {
    std::string name;
    GPTConfig config;
    int batch;               ///< sequences of a micro-batch on one GPU
    int accumulate;          ///< micro-batches of a step of 2^19 tokens, as both recipes train with
    bool trial = false;      ///< done in a moment on any device, the emulator included: to try the benches, not to measure
};

inline std::vector<BenchModel> bench_models() {
    return {{"speedrun124M", speedrun_config(12, 12, 768, 50304, 1024), 64, 8},
            {"nanochat-d12", nanochat_config(12, 6, 768, 32768, 2048, "SSSL"), 32, 8},
            {"trial-speedrun", speedrun_config(2, 2, 128, 512, 128), 2, 2, true},
            {"trial-nanochat", nanochat_config(2, 1, 128, 512, 128, "SL"), 2, 2, true}};
}

inline BenchModel bench_model(const std::string& name) {
    std::string names;
    for (const BenchModel& model : bench_models()) {
        if (model.name == name) return model;
        names += " " + model.name;
    }
    fail("no model '", name, "'; there are", names);
}
