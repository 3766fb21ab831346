// Learning rate, momentum and weight decay from step to step.
#include "llmc/schedule.h"
#include <algorithm>
#include <cmath>
#include "llmc/io/error.h"

double lr_multiplier(const Schedule& s, int64_t step) {
    double multiplier = 1;
    if (step < s.warmup_steps) multiplier = double(step + 1) / double(s.warmup_steps);
    if (step >= s.steps - s.warmdown_steps && s.warmdown_steps > 0)
        multiplier = std::min(multiplier, double(s.steps - step) / double(s.warmdown_steps));
    return std::max(multiplier, 0.0);
}

int64_t warmdown_steps(double ratio, int64_t steps) {
    require(ratio >= 0 && ratio <= 10, "--warmdown-ratio is ", ratio, ", but must be 0 (never decays) to 10");
    return static_cast<int64_t>(std::nearbyint(ratio * double(steps)));
}

double muon_momentum(Recipe recipe, int64_t step) {
    if (recipe == Recipe::speedrun) return 0.95;
    return 0.85 + 0.10 * std::min(double(step) / 300, 1.0);
}

double weight_decay_multiplier(Recipe recipe, int64_t step, int64_t steps) {
    if (recipe == Recipe::speedrun) return 1;
    return 1 - double(step) / double(steps);
}
