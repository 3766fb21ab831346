// Recipes are data: what every recipe must have; and a third recipe, defined only here, trained against float64.
#include "llmc/recipe.h"
#include <doctest/doctest.h>
#include <algorithm>
#include <cmath>
#include <random>
#include <sstream>
#include "llmc/device/device.h"
#include "llmc/io/error.h"
#include "llmc/optimizer.h"
#include "llmc/plan.h"
#include "llmc/schedule.h"
#include "test/gpt_reference.h"
#include "test/needs.h"

namespace {

constexpr bool FP32 = sizeof(floatX) == 4;

// --------------------------------------------------------------------------------------------------- a third recipe

/// AdamW on everything, matrices too, with a weight decay that follows the learning rate down a cosine; a model with features of both studies. eps is
/// large against the rounding error of a gradient, so that rounding cannot flip the sign of an update.
constexpr AdamWRule EVERYWHERE{.beta1 = 0.9, .beta2 = 0.98, .eps = 1e-3, .decays = true};
const Recipe MIXTURE{
    .name = "mixture",
    .source = "this test",
    .model = {.head_size = 8,
              .width_per_layer = 4,
              .vocab_size = 16,
              .seq_len = 6,
              .window_pattern = "SL",
              .activation = Activation::gelu,
              .tied = false,
              .qk_norm = true,
              .value_embeds = false,
              .lambdas = true,
              .softcap = 10,
              .norm_wte = Norm::layer_norm,
              .norm_lm_head = Norm::rms_norm,
              .norm_eps = 1e-5,
              .attn_scale = BranchScale::by_depth},
    .initial = {{"wte lm_head", {InitialLaw::normal, 0.3}},
                {"q k v proj fc fc_proj ve ve_gate", {InitialLaw::uniform_width}},
                {"resid_lambdas x0_lambdas", {InitialLaw::constant, 0.5}}},
    .groups = {.embedding = {.rate = &Rates::embedding_lr, .optimizer = EVERYWHERE},
               .unembedding = {.rate = &Rates::unembedding_lr, .optimizer = EVERYWHERE, .tuned_width = 32},
               .value_embedding = {.rate = &Rates::embedding_lr, .optimizer = EVERYWHERE},
               .matrix = {.rate = &Rates::matrix_lr, .optimizer = EVERYWHERE, .decay = DecayRamp::with_rate},
               .resid_scalar = {.rate = &Rates::scalar_lr, .optimizer = EVERYWHERE, .factor = 0.1, .decay = DecayRamp::linear},
               .x0_scalar = {.rate = &Rates::scalar_lr, .optimizer = AdamWRule{.beta1 = 0.5, .beta2 = 0.9, .eps = 1e-3}}},
    .rates = {.embedding_lr = 0.01, .unembedding_lr = 0.02, .matrix_lr = 0.03, .scalar_lr = 0.04, .weight_decay = 0.5},
    .schedule = {.warmup_steps = 1, .warmdown_ratio = 0.75, .fall = Fall::cosine},
    .horizon = {.steps = 4},
    .batch_tokens = 12,
    .scaling = {}};

// ------------------------------------------------------------------------------------------------- its float64 loop

/// Training in float64: the reference's gradients, AdamW as in its paper, with the constants of MIXTURE repeated here.
struct Float64Training {
    ReferenceGPT gpt;
    std::map<std::string, Doubles> m, v;

    /// Training step `at` of four, from 0; returns the loss before it.
    double step(int at, const std::vector<int>& idx, const std::vector<int>& targets) {
        const double loss = gpt.loss(idx, targets), pi = std::acos(-1.0);
        const double left = std::min(1.0, (4 - at) / 3.0), multiplier = (1 - std::cos(pi * left)) / 2;   // a warmup of one step has no effect
        Gradients gradients;
        gpt.backward(gradients);
        for (auto& [name, w] : gpt.p) {
            double lr = 0.03, decay = 0.5 * multiplier, b1 = 0.9, b2 = 0.98;
            if (name == "wte") lr = 0.01, decay = 0.5;
            if (name == "lm_head") lr = 0.02 * std::sqrt(32.0 / 8), decay = 0.5;
            if (name == "resid_lambdas") lr = 0.04 * 0.1, decay = 0.5 * (1 - at / 4.0);
            if (name == "x0_lambdas") lr = 0.04, decay = 0, b1 = 0.5, b2 = 0.9;
            lr *= multiplier;
            Doubles &mean = m[name], &square = v[name];
            mean.resize(w.size()), square.resize(w.size());
            for (size_t i = 0; i < w.size(); i++) {
                const double g = gradients[name][i];
                mean[i] = b1 * mean[i] + (1 - b1) * g;
                square[i] = b2 * square[i] + (1 - b2) * g * g;
                w[i] -= lr * decay * w[i];
                w[i] -= lr * (mean[i] / (1 - std::pow(b1, at + 1))) / (std::sqrt(square[i] / (1 - std::pow(b2, at + 1))) + 1e-3);
            }
        }
        return loss;
    }
};

}  // namespace

TEST_CASE("recipe: a third recipe, one constant, is planned, initialized and trained as in the float64 loop" * needs_matmul()) {
    const ModelLaws& laws = MIXTURE.model;
    const int depth = 2, width = static_cast<int>(default_width(MIXTURE, depth)), B = 2;
    const GPTConfig config = recipe_config(MIXTURE, depth, default_heads(MIXTURE, width), width, laws.vocab_size, laws.seq_len);
    CHECK(config.n_embd == 8);
    CHECK(config.n_head == 1);
    CHECK(config.windows == std::vector<int>{3, 6});
    CHECK(config.attn_scale == std::vector<double>{0.5, 0.5});
    PlanInput in;
    in.matmul_params = matmul_params(config);
    in.flops_per_token = flops_per_token(config);
    in.steps = MIXTURE.horizon.steps;
    in.tuned_batch = MIXTURE.batch_tokens;
    in.scaling = MIXTURE.scaling;
    in.device_batch = B;
    in.seq_len = config.seq_len;
    const Plan plan = make_plan(in);
    CHECK(plan.batch_tokens == B * config.seq_len);
    CHECK(plan.lr_scale == 1);

    GPT model(config, B, Mode::train);
    Optimizer optimizer(model);
    model.allocate();
    optimizer.allocate();
    Float64Training reference{{config, {}, {}, {}}, {}, {}};
    auto weights_of = [&](const Tensor& tensor) {
        std::vector<float> values(tensor.numel);
        model.get_tensor(values.data(), tensor);
        return values;
    };
    for (const Tensor& tensor : model.tensors) {
        std::vector<float> values(tensor.numel);
        initialize(values.data(), tensor, config, 5);
        for (float& value : values) value = to_float(to_floatX(value));   // both start from values that the storage type holds exactly
        model.set_tensor(tensor, values.data());
        reference.gpt.p[tensor.name] = Doubles(values.begin(), values.end());
    }
    const std::map<std::string, Doubles> start = reference.gpt.p;
    const Schedule schedule{.steps = plan.steps,
                            .warmup_steps = MIXTURE.schedule.warmup_steps,
                            .warmdown_steps = warmdown_steps(MIXTURE.schedule.warmdown_ratio, plan.steps),
                            .fall = MIXTURE.schedule.fall};
    std::mt19937_64 generator(11);
    for (int step = 0; step < plan.steps; step++) {
        CAPTURE(step);
        std::vector<int> idx(plan.batch_tokens), targets(plan.batch_tokens);
        for (int& token : idx) token = static_cast<int>(generator() % config.vocab_size);
        for (int& token : targets) token = static_cast<int>(generator() % config.vocab_size);
        model.begin_step();
        model.train_micro_batch(idx.data(), targets.data(), 1);
        const double loss = model.end_step().loss, expected = reference.step(step, idx, targets);
        CHECK(loss == doctest::Approx(expected).epsilon(FP32 ? 2e-6 : 1e-2));   // as in test/gpt.cpp; bf16: the gradients of earlier steps were rounded
        optimizer.set_step(MIXTURE.rates, {.lr_multiplier = lr_multiplier(schedule, step), .step = step, .steps = plan.steps}, step + 1);
        optimizer.update();
    }
    for (const Tensor& tensor : model.tensors) {
        CAPTURE(tensor.name);
        const std::vector<float> values = weights_of(tensor);
        const Doubles &expected = reference.gpt.p[tensor.name], &before = start.at(tensor.name);
        double error = 0, moved = 0;
        for (size_t i = 0; i < values.size(); i++) {
            error += std::pow(values[i] - expected[i], 2);
            moved += std::pow(expected[i] - before[i], 2);
        }
        // An element's update is g / (|g| + 1e-3), which amplifies an error of g up to 1000 times. In fp32 errors are near 1e-7, in bf16 a hundredth
        // of gradients of about 1e-2.
        CHECK(std::sqrt(error) <= (FP32 ? 2e-4 : 0.15) * std::sqrt(moved));
    }
}

TEST_CASE("recipe: each has one initial law for every tensor of the table, and Muon only for matrices") {
    for (const Recipe* recipe : recipes()) {
        CAPTURE(recipe->name);
        std::map<std::string, int> rows;
        for (const InitialRow& row : recipe->initial) {
            std::istringstream names(row.tensors ? row.tensors : "");
            for (std::string name; names >> name;) rows[name]++;
        }
        for (const TensorSpec& spec : TENSORS) {
            CAPTURE(spec.name);
            CHECK(rows[spec.name] == 1);
            if (spec.vector) CHECK(std::holds_alternative<AdamWRule>(rule_of(*recipe, spec.group).optimizer));
        }
        CHECK(rows.size() == std::size(TENSORS));
        CHECK((recipe->horizon.steps > 0) != (recipe->horizon.param_data_ratio > 0));
        CHECK(&recipe_named(recipe->name) == recipe);
        const int width = static_cast<int>(default_width(*recipe, 12));
        CHECK_NOTHROW(validate(recipe_config(*recipe, 12, default_heads(*recipe, width), width, recipe->model.vocab_size, recipe->model.seq_len)));
    }
}

TEST_CASE("recipe: the error for an unknown name lists the known ones") {
    CHECK_THROWS_WITH_AS(recipe_named("gpt5"), "recipe is 'gpt5', but must be one of: nanochat, nanochat_nonzero, speedrun",
                         std::invalid_argument);
    CHECK_THROWS_AS(initial_law(MIXTURE, "gate"), std::logic_error);
}

TEST_CASE("recipe: nanochat_nonzero is nanochat, except for the matrices that nanochat initializes to 0") {
    CHECK(recipe_named("nanochat_nonzero").name == std::string("nanochat_nonzero"));
    const GPTConfig config = recipe_config(NANOCHAT, 2, 2, 64, 128, 32),
                    nonzero = recipe_config(NANOCHAT_NONZERO, 2, 2, 64, 128, 32);
    const std::vector<Tensor> table = tensor_table(config);
    REQUIRE(tensor_table(nonzero).size() == table.size());
    for (const Tensor& tensor : table) {
        CAPTURE(tensor.name);
        const std::string name = tensor.spec->name;
        std::vector<float> values(tensor.numel), other(tensor.numel);
        initialize(values.data(), tensor, config, 5);
        initialize(other.data(), tensor, nonzero, 5);
        if (name != "proj" && name != "fc_proj" && name != "ve_gate") {
            CHECK(other == values);
            continue;
        }
        CHECK(values == std::vector<float>(values.size(), 0));
        const double bound = std::sqrt(3.0 / 64);   // U(-b, b) has a variance of b^2 / 3
        double squares = 0;
        for (float value : other) squares += double{value} * value;
        CHECK(*std::max_element(other.begin(), other.end()) <= bound);
        CHECK(*std::min_element(other.begin(), other.end()) >= -bound);
        // The mean of n squares of such numbers has a relative standard deviation of 0.9 / sqrt(n): five of these.
        CHECK(squares / static_cast<double>(other.size()) ==
              doctest::Approx(bound * bound / 3).epsilon(4.5 / std::sqrt(other.size())));
    }
    CHECK(NANOCHAT_NONZERO.rates.matrix_lr == NANOCHAT.rates.matrix_lr);
    CHECK(NANOCHAT_NONZERO.model.value_embeds);
}

TEST_CASE("recipe: Muon for a group of vectors is refused") {
    Recipe wrong = MIXTURE;
    wrong.groups.resid_scalar.optimizer = MuonGroup{.rule = {.averaged_momentum = false, .steps = NEWTON_SCHULZ, .safety = 1, .eps = 1e-7f, .scale = MuonScale::root_of_larger}, .momentum = 0.95};
    GPT model(recipe_config(wrong, 2, 1, 8, 16, 6), 1, Mode::train);
    CHECK_THROWS_WITH_AS(Optimizer{model}, "Muon is for matrices, and resid_lambdas is a vector; give its group AdamW in the recipe", std::invalid_argument);
}
