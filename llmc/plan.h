// How long and how fast to train: batch, steps, tokens and FLOPs of a run, and nanochat's scaling rules.
#pragma once
#include <cstdint>
#include <optional>
#include "llmc/config.h"

/// The batch that learning rates are given for, in tokens: 2^19.
inline constexpr int64_t REFERENCE_BATCH = 524288;

struct PlanInput {
    // The model (reference_params: see below).
    int64_t matmul_params = 0, reference_params = 0, flops_per_token = 0;

    // The horizon: exactly one.
    std::optional<int64_t> steps;
    std::optional<double> total_flops;
    std::optional<double> param_data_ratio;      ///< tokens per matmul parameter

    std::optional<int64_t> batch_tokens;         ///< of one step; else the scaling rule's, or REFERENCE_BATCH without
    bool scaling = false;                        ///< nanochat's rules; the speedrun recipe has none
    int64_t device_batch = 0, seq_len = 0, processes = 1;
    int64_t coconut_every = 0;                   ///< every n-th step, the first too, counts twice in FLOPs; 0: none
};

struct Plan {
    int64_t batch_tokens;
    int64_t micro_batches;                       ///< of one process in a step
    int64_t steps, tokens;
    double total_flops;
    double lr_scale, weight_decay_scale;         ///< on every learning rate, and on the weight decay
};

/// nanochat's rules, with P = matmul_params and P12 = reference_params:
///     batch        = 2^19 (P / P12)^0.383, to the nearest power of two
///     lr_scale     = sqrt(batch / 2^19)                 also for a batch that was given
///     weight decay = sqrt(batch / 2^19) (P12 / P)
/// and the horizon:
///     ratio        tokens = ratio P, steps = floor(tokens / batch)
///     FLOPs        steps = total_flops / (flops_per_token batch), rounded, halves to even
/// Throws std::invalid_argument when there is not exactly one horizon, it is less than one step or more than can be counted, or
/// the batch is not a multiple of device_batch x seq_len x processes.
Plan make_plan(const PlanInput& input);

/// P12: matmul parameters of nanochat's depth 12 (width 768, head size 128) with the vocabulary of this model, and as many heads
/// a key/value head.
int64_t reference_params(const GPTConfig& config);
