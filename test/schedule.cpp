// Schedules against values worked out by hand from the two studies' rules.
#include "llmc/schedule.h"
#include <doctest/doctest.h>
#include <cmath>
#include <stdexcept>
#include <vector>

// The rules have one or two divisions: a few ulp in double.
static doctest::Approx close(double value) { return doctest::Approx(value).epsilon(1e-14); }

static std::vector<double> multipliers(const Schedule& schedule) {
    std::vector<double> all;
    for (int64_t step = 0; step < schedule.steps; step++) all.push_back(lr_multiplier(schedule, step));
    return all;
}

TEST_CASE("learning rate: constant") {
    CHECK(multipliers({.steps = 4}) == std::vector<double>{1, 1, 1, 1});
}

TEST_CASE("learning rate: warmup, stable, decay") {
    CHECK(multipliers({.steps = 10, .warmup_steps = 4, .warmdown_steps = 4}) == std::vector<double>{0.25, 0.5, 0.75, 1, 1, 1, 1, 0.75, 0.5, 0.25});
}

TEST_CASE("learning rate: the speedrun's 6200 steps, the last 1800 linear to 0") {
    Schedule schedule{.steps = 6200, .warmup_steps = 0, .warmdown_steps = 1800};
    CHECK(lr_multiplier(schedule, 0) == 1);
    CHECK(lr_multiplier(schedule, 4400) == 1);
    CHECK(lr_multiplier(schedule, 4401) == close(1799.0 / 1800));
    CHECK(lr_multiplier(schedule, 5300) == close(0.5));
    CHECK(lr_multiplier(schedule, 6199) == close(1.0 / 1800));
    CHECK(lr_multiplier(schedule, 6200) == 0);
    CHECK(lr_multiplier(schedule, 6300) == 0);
}

TEST_CASE("learning rate: a warmdown longer than the run starts below 1") {
    // The growth study's sweep: at ratio 2 the rate starts at 1/2.
    Schedule schedule{.steps = 500, .warmdown_steps = warmdown_steps(2.0, 500)};
    CHECK(lr_multiplier(schedule, 0) == close(0.5));
    CHECK(lr_multiplier(schedule, 250) == close(0.25));
    CHECK(lr_multiplier(schedule, 499) == close(0.001));
    // With ratio 1 the rate decays from the first step.
    schedule.warmdown_steps = warmdown_steps(1.0, 500);
    CHECK(lr_multiplier(schedule, 0) == 1);
    CHECK(lr_multiplier(schedule, 1) == close(0.998));
}

TEST_CASE("learning rate: warmup into a warmdown has no jump") {
    CHECK(multipliers({.steps = 5, .warmup_steps = 5, .warmdown_steps = 5}) == std::vector<double>{0.2, 0.4, 0.6, 0.4, 0.2});
}

TEST_CASE("1 - sqrt decays fast at first: 1 - sqrt of the elapsed share of the warmdown") {
    const Schedule schedule{.steps = 10, .warmdown_steps = 8, .fall = Fall::one_minus_sqrt};
    CHECK(lr_multiplier(schedule, 0) == 1);
    CHECK(lr_multiplier(schedule, 2) == 1);
    CHECK(lr_multiplier(schedule, 3) == close(1 - std::sqrt(1.0 / 8)));
    CHECK(lr_multiplier(schedule, 4) == close(0.5));
    CHECK(lr_multiplier(schedule, 9) == close(1 - std::sqrt(7.0 / 8)));
    CHECK(lr_multiplier(schedule, 10) == 0);
    // A warmdown of 4/3 of the run: at the first step a quarter of it has elapsed.
    CHECK(lr_multiplier({.steps = 6, .warmdown_steps = 8, .fall = Fall::one_minus_sqrt}, 0) == close(0.5));
    CHECK(lr_multiplier({.steps = 4, .warmup_steps = 4, .warmdown_steps = 4, .fall = Fall::one_minus_sqrt}, 1) ==
          close(0.5));   // the smaller one
}

TEST_CASE("a cosine decays from 1 to 0 over the warmdown, with 1/2 in the middle") {
    const Schedule cosine{.steps = 10, .warmdown_steps = 8, .fall = Fall::cosine};
    CHECK(lr_multiplier(cosine, 0) == 1);
    CHECK(lr_multiplier(cosine, 2) == 1);
    CHECK(lr_multiplier(cosine, 4) == close((1 + std::sqrt(0.5)) / 2));
    CHECK(lr_multiplier(cosine, 6) == close(0.5));
    CHECK(lr_multiplier(cosine, 9) == close((1 - std::cos(std::acos(-1.0) / 8)) / 2));
    CHECK(lr_multiplier({.steps = 4, .warmdown_steps = 8, .fall = Fall::cosine}, 0) == close(0.5));   // longer than the run: it starts in the middle
    CHECK(lr_multiplier({.steps = 4, .fall = Fall::cosine}, 3) == 1);
}

TEST_CASE("warmdown steps round as nanochat's do, and 0 never decays") {
    CHECK(warmdown_steps(0.5, 2205) == 1102);        // 1102.5, to even
    CHECK(warmdown_steps(0.5, 2207) == 1104);        // 1103.5
    CHECK(warmdown_steps(0.2, 6) == 1);
    CHECK(warmdown_steps(10, 7) == 70);
    CHECK(warmdown_steps(0, 1000) == 0);
    CHECK(multipliers({.steps = 3, .warmdown_steps = warmdown_steps(0, 3)}) == std::vector<double>{1, 1, 1});
    CHECK_THROWS_AS(warmdown_steps(-0.1, 10), std::invalid_argument);
    CHECK_THROWS_AS(warmdown_steps(10.1, 10), std::invalid_argument);
    CHECK_THROWS_AS(warmdown_steps(std::nan(""), 10), std::invalid_argument);
}

static const MuonGroup& momentum_of(const Recipe& recipe) { return std::get<MuonGroup>(recipe.groups.matrix.optimizer); }

TEST_CASE("Muon's momentum") {
    CHECK(muon_momentum(momentum_of(NANOCHAT), 0) == close(0.85));
    CHECK(muon_momentum(momentum_of(NANOCHAT), 150) == close(0.90));
    CHECK(muon_momentum(momentum_of(NANOCHAT), 300) == close(0.95));
    CHECK(muon_momentum(momentum_of(NANOCHAT), 5000) == close(0.95));
    CHECK(muon_momentum(momentum_of(SPEEDRUN), 0) == 0.95);
    CHECK(muon_momentum(momentum_of(SPEEDRUN), 5000) == 0.95);
}

TEST_CASE("weight decay") {
    CHECK(weight_decay_multiplier(DecayRamp::linear, 0, 2205, 0.5) == 1);
    CHECK(weight_decay_multiplier(DecayRamp::linear, 441, 2205, 0.5) == close(0.8));
    CHECK(weight_decay_multiplier(DecayRamp::linear, 2204, 2205, 0.5) == doctest::Approx(1.0 / 2205).epsilon(1e-12));   // 1 - x cancels
    CHECK(weight_decay_multiplier(DecayRamp::constant, 2204, 2205, 0.5) == 1);
    CHECK(weight_decay_multiplier(DecayRamp::with_rate, 2204, 2205, 0.25) == 0.25);
    CHECK(NANOCHAT.groups.matrix.decay == DecayRamp::linear);
}
