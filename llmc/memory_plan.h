// How much memory a training run takes, before it takes any.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>
#include "llmc/layout.h"

/// A training run as its memory is concerned.
struct MemoryNeed {
    const GPTConfig& config;
    int device_batch;   ///< rows of a micro-batch
    Trained trained;
    bool samples;   ///< it keeps a key/value cache
    Job job;        ///< whose share of it
    bool met;       ///< its processes have met: what that took is in what the process takes
};

/// Bytes by lifetime, named, and all of them.
struct MemoryPlan {
    std::vector<std::pair<std::string, size_t>> parts;
    size_t total = 0;
};

/// Lays everything out and allocates nothing. Throws std::invalid_argument for what the model refuses.
MemoryPlan plan_memory(const MemoryNeed& need);

/// Rows of the largest micro-batch whose plan is within `bytes`; 0 when not even one row is.
int64_t largest_device_batch(const MemoryNeed& need, size_t bytes);
