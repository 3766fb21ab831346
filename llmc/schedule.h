// What changes from step to step: learning rate, momentum and weight decay of both recipes.
#pragma once
#include <cstdint>
#include "llmc/config.h"

/// A horizon, and where the learning rate rises and falls in it. With warmup and warmdown: warmup-stable-decay.
struct Schedule {
    int64_t steps;
    int64_t warmup_steps = 0;
    int64_t warmdown_steps = 0;      ///< 0: never falls; above `steps`: starts below 1
};

/// By what every learning rate is multiplied at a step (0 is the first): the smaller one of
///     (step + 1) / warmup_steps            while step < warmup_steps
///     (steps - step) / warmdown_steps      from step = steps - warmdown_steps on, so 0 would be reached at `steps`
/// and never above 1.
double lr_multiplier(const Schedule& schedule, int64_t step);

/// Steps of the warmdown, as a ratio of all; rounded, halves to even (as Python rounds, in nanochat).
/// Throws std::invalid_argument unless 0 <= ratio <= 10.
int64_t warmdown_steps(double ratio, int64_t steps);

/// Muon's momentum. speedrun: 0.95. nanochat: from 0.85 to 0.95 over the first 300 steps.
double muon_momentum(Recipe recipe, int64_t step);

/// By what the weight decay is multiplied. speedrun: 1. nanochat: 1 - step / steps.
double weight_decay_multiplier(Recipe recipe, int64_t step, int64_t steps);
