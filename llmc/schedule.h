// What changes from step to step: learning rate, momentum and weight decay.
#pragma once
#include <cstdint>
#include "llmc/recipe.h"

/// How far a schedule is: steps, and what they took.
struct Position {
    int64_t steps = 0, tokens = 0;
    double flops = 0;
};

/// A horizon, and where the learning rate rises and falls in it. With warmup and warmdown: warmup-stable-decay.
struct Schedule {
    int64_t steps;
    int64_t warmup_steps = 0;
    int64_t warmdown_steps = 0;      ///< 0: never falls; above `steps`: starts below 1
    Fall fall = Fall::linear;
};

/// By what every learning rate is multiplied at a step (0 is the first): the smaller one of
///     (step + 1) / warmup_steps            while step < warmup_steps
///     fall((steps - step) / warmdown_steps) from step = steps - warmdown_steps on, so 0 would be reached at `steps`
/// and never above 1.
double lr_multiplier(const Schedule& schedule, int64_t step);

/// Steps of the warmdown, as a ratio of all; rounded, halves to even (as Python rounds, in nanochat).
/// Throws std::invalid_argument unless 0 <= ratio <= 10.
int64_t warmdown_steps(double ratio, int64_t steps);

/// Muon's momentum at a step.
double muon_momentum(const MuonGroup& group, int64_t step);

/// By what a group's weight decay is multiplied at a step of so many; lr_multiplier: that of the same step.
double weight_decay_multiplier(DecayRamp ramp, int64_t step, int64_t steps, double lr_multiplier);
