#include "llmc/memory_plan.h"
#include <algorithm>
#include "llmc/device/device.h"
#include "llmc/gpt.h"
#include "llmc/ops/peak.h"
#include "llmc/optimizer.h"

/// The memory of the run itself.
static MemoryPlan arenas_of(const MemoryNeed& need) {
    GPT model(need.config, need.device_batch, Mode::train, need.trained, need.job);
    Optimizer optimizer(model);
    KVCache cache(need.config);
    std::vector<const Arena*> arenas = model.arenas();
    for (const Arena* arena : optimizer.arenas()) arenas.push_back(arena);
    if (need.samples) arenas.push_back(&cache.arena);

    MemoryPlan plan;
    for (const Arena* arena : arenas) plan.parts.emplace_back(arena->name(), device_alloc_bytes(arena->bytes()));
    plan.parts.emplace_back("program", device_overhead_bytes(int64_t{need.device_batch} * need.config.seq_len));
    if (need.job.processes > 1 && !need.met) plan.parts.emplace_back("communication", comm_bytes());
    for (auto& [name, bytes] : plan.parts) plan.total += bytes;
    return plan;
}

MemoryPlan plan_memory(const MemoryNeed& need) {
    MemoryPlan plan = arenas_of(need);
    // The measurement of the peak runs first, and may take more memory than a small model.
    const size_t before = device_peak_bytes();
    if (before > plan.total) plan.parts.emplace_back("peak measurement", before - plan.total);
    plan.total = std::max(plan.total, before);
    return plan;
}

int64_t largest_device_batch(const MemoryNeed& need, size_t bytes) {
    auto total = [&](int rows) {
        MemoryNeed other = need;
        other.device_batch = rows;
        return static_cast<double>(arenas_of(other).total);
    };
    double one = total(1), row = total(2) - one;
    double rows = 1 + (static_cast<double>(bytes) - one) / row;
    return rows < 1 ? 0 : static_cast<int64_t>(rows);
}
