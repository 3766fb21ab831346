// How much memory a training run will take, computed before anything is allocated.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>
#include "llmc/layout.h"

/// What the memory of a training run depends on.
struct MemoryNeed {
    const GPTConfig& config;
    int device_batch;   ///< rows of a micro-batch
    Trained trained;
    bool samples;   ///< it keeps a key/value cache
    Job job;        ///< the process that is planned for
    bool met;       ///< its processes are connected already: the memory of that is part of the process's own
};

/// Bytes of each arena, by name, and their total.
struct MemoryPlan {
    std::vector<std::pair<std::string, size_t>> parts;
    size_t total = 0;
};

/// Lays everything out and allocates nothing. Throws std::invalid_argument when the model's constructor does.
MemoryPlan plan_memory(const MemoryNeed& need);

/// Rows of the largest micro-batch whose plan is within `bytes`; 0 when not even one row is.
int64_t largest_device_batch(const MemoryNeed& need, size_t bytes);
