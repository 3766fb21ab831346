// How long and how fast to train: batch, steps, tokens and FLOPs of a run, and the rules that scale them with the model.
#pragma once
#include <cstdint>
#include <optional>
#include "llmc/config.h"
#include "llmc/schedule.h"

struct PlanInput {
    // The model (reference_params: see below).
    int64_t matmul_params = 0, reference_params = 0, flops_per_token = 0;

    // The horizon: exactly one.
    std::optional<int64_t> steps;
    std::optional<double> total_flops;
    std::optional<double> param_data_ratio;      ///< tokens per matmul parameter

    std::optional<int64_t> batch_tokens;         ///< of one step; else the scaling rule's, or tuned_batch without
    int64_t tuned_batch = 0;                     ///< the recipe's, in tokens: learning rates are for it
    std::optional<ScalingRules> scaling;         ///< the recipe's, unless they are turned off
    int64_t device_batch = 0, seq_len = 0;
    int64_t parts = 1;                           ///< into which a step's micro-batches are cut (llmc/layout.h)
    Position before;                             ///< of the schedule, in runs that this one continues: the horizon counts them
    int64_t coconut_every = 0;                   ///< every n-th step, the first too, counts twice in FLOPs; 0: none
};

struct Plan {
    int64_t batch_tokens;
    int64_t micro_batches;                       ///< of a step
    int64_t steps, tokens;                       ///< of this run
    double total_flops;
    int64_t schedule_steps;                      ///< with those before it
    double lr_scale, weight_decay_scale;         ///< on every learning rate, and on the weight decay
};

/// Scaling rules (nanochat's), with P = matmul_params and P0 = reference_params:
///     batch        = tuned_batch (P / P0)^batch_exponent, to the nearest power of two
///     lr_scale     = sqrt(batch / tuned_batch)          also for a batch that was given
///     weight decay = sqrt(batch / tuned_batch) (P0 / P)
/// and the horizon:
///     ratio        tokens = ratio P, steps = floor(tokens / batch)
///     FLOPs        steps = total_flops / (flops_per_token batch), rounded, halves to even
/// of which those before this run are taken first.
/// Throws std::invalid_argument when there is not exactly one horizon, it is less than one step or more than can be counted, or
/// the batch is not a multiple of device_batch x seq_len x parts.
Plan make_plan(const PlanInput& input);

/// P0: matmul parameters of the model of the scaling rules' depth, by the recipe's laws, with the vocabulary of this model, and as many
/// heads a key/value head; those of the model itself where its recipe has no such rules.
int64_t reference_params(const GPTConfig& config);
