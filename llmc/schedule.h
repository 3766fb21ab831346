// Learning rate, momentum and weight decay as functions of the step.
#pragma once
#include <cstdint>
#include "llmc/recipe.h"

/// Progress in a schedule: steps, and the tokens and FLOPs that they took.
struct Position {
    int64_t steps = 0, tokens = 0;
    double flops = 0;
};

/// The learning rate schedule of a run. With warmup and warmdown it is warmup-stable-decay (WSD).
struct Schedule {
    int64_t steps;
    int64_t warmup_steps = 0;
    int64_t warmdown_steps = 0;      ///< 0: never decays; more than `steps`: the multiplier starts below 1
    Fall fall = Fall::linear;
};

/// The factor on every learning rate at a step (0 is the first): the smaller one of
///     (step + 1) / warmup_steps            while step < warmup_steps
///     fall((steps - step) / warmdown_steps) from step = steps - warmdown_steps on, so 0 would be reached at `steps`
/// and never above 1.
double lr_multiplier(const Schedule& schedule, int64_t step);

/// Steps of the warmdown, as a fraction of all; rounded, halves to even (as Python rounds, in nanochat).
/// Throws std::invalid_argument unless 0 <= ratio <= 10.
int64_t warmdown_steps(double ratio, int64_t steps);

/// Muon's momentum at a step.
double muon_momentum(const MuonGroup& group, int64_t step);

/// The factor on a group's weight decay at a step of `steps`; lr_multiplier: that of the same step.
double weight_decay_multiplier(DecayRamp ramp, int64_t step, int64_t steps, double lr_multiplier);
