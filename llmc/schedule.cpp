// Learning rate, momentum and weight decay from step to step.
#include "llmc/schedule.h"
#include <algorithm>
#include <cmath>
#include <numbers>
#include <stdexcept>
#include "llmc/io/error.h"

static double fallen(Fall fall, double left) {
    switch (fall) {
        case Fall::linear:
            return left;
        case Fall::cosine:
            return (1 - std::cos(std::numbers::pi * left)) / 2;
        case Fall::one_minus_sqrt:
            return 1 - std::sqrt(1 - left);
    }
    throw std::logic_error("schedule: unknown shape of the warmdown");
}

double lr_multiplier(const Schedule& s, int64_t step) {
    double multiplier = 1;
    if (step < s.warmup_steps) multiplier = double(step + 1) / double(s.warmup_steps);
    if (step >= s.steps - s.warmdown_steps && s.warmdown_steps > 0) {
        const double left = double(s.steps - step) / double(s.warmdown_steps);
        multiplier = std::min(multiplier, left >= 1 ? 1.0 : fallen(s.fall, left));
    }
    return std::max(multiplier, 0.0);
}

int64_t warmdown_steps(double ratio, int64_t steps) {
    require(ratio >= 0 && ratio <= 10, "--warmdown-ratio is ", ratio, ", but must be 0 (never decays) to 10");
    return static_cast<int64_t>(std::nearbyint(ratio * double(steps)));
}

double muon_momentum(const MuonGroup& group, int64_t step) {
    if (group.rise_steps == 0) return group.momentum;
    return group.momentum + group.rise * std::min(double(step) / double(group.rise_steps), 1.0);
}

double weight_decay_multiplier(DecayRamp ramp, int64_t step, int64_t steps, double lr_multiplier) {
    switch (ramp) {
        case DecayRamp::constant:
            return 1;
        case DecayRamp::linear:
            return 1 - double(step) / double(steps);
        case DecayRamp::with_rate:
            return lr_multiplier;
    }
    throw std::logic_error("schedule: unknown ramp of the weight decay");
}
