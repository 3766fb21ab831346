// Batch, steps, tokens and FLOPs of a run, and the rules that scale them and the learning rates with the size of the model.
#pragma once
#include <cstdint>
#include <optional>
#include "llmc/config.h"
#include "llmc/schedule.h"

struct PlanInput {
    // The model. reference_params: P0 below.
    int64_t matmul_params = 0, reference_params = 0, flops_per_token = 0;

    // The horizon: exactly one.
    std::optional<int64_t> steps;
    std::optional<double> total_flops;
    std::optional<double> param_data_ratio;      ///< tokens per matmul parameter

    std::optional<int64_t> batch_tokens;         ///< of one step; if not given, by the scaling rules, or tuned_batch without them
    int64_t tuned_batch = 0;                     ///< tokens of the batch that the recipe's learning rates were tuned for
    std::optional<ScalingRules> scaling;         ///< the recipe's, unless --no-scaling
    int64_t device_batch = 0, seq_len = 0;
    int64_t parts = 1;                           ///< into which the micro-batches of a step are divided (llmc/layout.h)
    Position before;                             ///< done in earlier runs of the same schedule; the horizon includes it
    int64_t coconut_every = 0;                   ///< every n-th step, the first too, has a looped pass and costs twice the FLOPs; 0: none
};

struct Plan {
    int64_t batch_tokens;
    int64_t micro_batches;                       ///< of a step
    int64_t steps, tokens;                       ///< of this run
    double total_flops;
    int64_t schedule_steps;                      ///< of the whole schedule, earlier runs included
    double lr_scale, weight_decay_scale;         ///< factors on every learning rate, and on the weight decay
};

/// Scaling rules (nanochat's), with P = matmul_params and P0 = reference_params:
///     batch        = tuned_batch (P / P0)^batch_exponent, to the nearest power of two
///     lr_scale     = sqrt(batch / tuned_batch)          also for a batch given by flag
///     weight decay = sqrt(batch / tuned_batch) (P0 / P)
/// and the horizon:
///     ratio        tokens = ratio P, steps = floor(tokens / batch)
///     FLOPs        steps = total_flops / (flops_per_token batch), rounded, halves to even
/// minus what `before` says is done already.
/// Throws std::invalid_argument unless exactly one horizon is given, when it is less than one step or overflows, or when the batch
/// is not a multiple of device_batch x seq_len x parts.
Plan make_plan(const PlanInput& input);

/// P0: matmul parameters of the recipe's model at the depth of the scaling rules, with the vocabulary of this model and the same number
/// of heads per key/value head; those of the model itself where its recipe has no scaling rules.
int64_t reference_params(const GPTConfig& config);
