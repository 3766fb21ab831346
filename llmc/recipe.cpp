// The recipes.
#include "llmc/recipe.h"
#include <algorithm>
#include <stdexcept>
#include "llmc/io/error.h"

static constexpr AdamWRule SPEEDRUN_ADAMW{.beta1 = 0.9, .beta2 = 0.95, .eps = 1e-8, .decays = true};

const Recipe SPEEDRUN{
    .name = "speedrun",
    .source = "modded-nanogpt's record of October 2024 with Muon (Jordan et al.), with tied embeddings, as in \"Model stacking doesn't work\"",
    .model = {.head_size = 64,
              .width_per_layer = 64,
              .vocab_size = 50304,
              .seq_len = 1024,
              .window_pattern = "L",
              .activation = Activation::gelu,
              .tied = true,
              .qk_norm = false,
              .value_embeds = false,
              .lambdas = false,
              .softcap = 0,
              .norm_wte = Norm::none,
              .norm_lm_head = Norm::rms_norm,
              .norm_eps = 1e-6,
              .attn_scale = BranchScale::by_depth},
    .initial = {{"wte lm_head q k v proj fc fc_proj", {InitialLaw::uniform_fan_in}},
                {"ve", {InitialLaw::uniform_width}},
                {"ve_gate", {InitialLaw::constant, 0}},
                {"resid_lambdas", {InitialLaw::constant, 1}},
                {"x0_lambdas", {InitialLaw::constant, 0.1}}},
    .groups = {.embedding = {.rate = &Rates::embedding_lr, .optimizer = SPEEDRUN_ADAMW},
               .unembedding = {.rate = &Rates::unembedding_lr, .optimizer = SPEEDRUN_ADAMW},
               .value_embedding = {.rate = &Rates::embedding_lr, .optimizer = SPEEDRUN_ADAMW},
               .matrix = {.rate = &Rates::matrix_lr, .optimizer = MuonGroup{.rule = {.averaged_momentum = false,
                                                                .steps = NEWTON_SCHULZ,
                                                                .safety = 1,
                                                                .eps = 1e-7f,
                                                                .scale = MuonScale::root_of_larger},
                                                       .momentum = 0.95}},
               .resid_scalar = {.rate = &Rates::scalar_lr, .optimizer = SPEEDRUN_ADAMW},
               .x0_scalar = {.rate = &Rates::scalar_lr, .optimizer = SPEEDRUN_ADAMW}},
    .rates = {.embedding_lr = 0.0036, .unembedding_lr = 0.0036, .matrix_lr = 0.1 * 0.0036, .scalar_lr = 0.0036, .weight_decay = 0},
    .schedule = {.warmup_steps = 0, .warmdown_ratio = 1800.0 / 6200.0, .fall = Fall::linear},
    .horizon = {.steps = 6200},
    .batch_tokens = 524288,
    .scaling = {}};

static constexpr AdamWRule NANOCHAT_ADAMW{.beta1 = 0.8, .beta2 = 0.95, .eps = 1e-10};

const Recipe NANOCHAT{
    .name = "nanochat",
    .source = "nanochat of February 2026 (Karpathy), as in \"Implementing Transformer Model Growth via Layer Stacking in Nanochat\"",
    .model = {.head_size = 128,
              .width_per_layer = 64,
              .vocab_size = 32768,
              .seq_len = 2048,
              .window_pattern = "SSSL",
              .activation = Activation::relu2,
              .tied = false,
              .qk_norm = true,
              .value_embeds = true,
              .lambdas = true,
              .softcap = 15,
              .norm_wte = Norm::rms_norm,
              .norm_lm_head = Norm::rms_norm,
              .norm_eps = 0x1p-23,
              .attn_scale = BranchScale::one},
    .initial = {{"wte", {InitialLaw::normal, 1}},
                {"lm_head", {InitialLaw::normal, 0.001}},
                {"q k v fc ve", {InitialLaw::uniform_width}},
                {"proj fc_proj ve_gate", {InitialLaw::constant, 0}},
                {"resid_lambdas", {InitialLaw::constant, 1}},
                {"x0_lambdas", {InitialLaw::constant, 0.1}}},
    .groups = {.embedding = {.rate = &Rates::embedding_lr, .optimizer = NANOCHAT_ADAMW, .tuned_width = 768},
               .unembedding = {.rate = &Rates::unembedding_lr, .optimizer = NANOCHAT_ADAMW, .tuned_width = 768},
               .value_embedding = {.rate = &Rates::embedding_lr, .optimizer = NANOCHAT_ADAMW, .tuned_width = 768},
               .matrix = {.rate = &Rates::matrix_lr, .optimizer = MuonGroup{.rule = {.averaged_momentum = true,
                                                                .steps = POLAR_EXPRESS,
                                                                .safety = 1.02f,
                                                                .eps = 1e-6f,
                                                                .beta2 = 0.95f,
                                                                .scale = MuonScale::root_of_ratio,
                                                                .decay = MuonDecay::cautious},
                                                       .momentum = 0.85,
                                                       .rise = 0.10,
                                                       .rise_steps = 300},
                          .decay = DecayRamp::linear},
               .resid_scalar = {.rate = &Rates::scalar_lr, .optimizer = NANOCHAT_ADAMW, .factor = 0.01},
               .x0_scalar = {.rate = &Rates::scalar_lr, .optimizer = AdamWRule{.beta1 = 0.96, .beta2 = 0.95, .eps = 1e-10}}},
    .rates = {.embedding_lr = 0.3, .unembedding_lr = 0.004, .matrix_lr = 0.02, .scalar_lr = 0.5, .weight_decay = 0.2},
    .schedule = {.warmup_steps = 0, .warmdown_ratio = 0.5, .fall = Fall::linear},
    .horizon = {.param_data_ratio = 10.5},
    .batch_tokens = 524288,
    .scaling = ScalingRules{.depth = 12, .batch_exponent = 0.383}};

/// In nanochat a new layer changes little at first, since its proj and fc_proj are 0. Here it starts as a random block, as in most other
/// recipes, so that growth by new layers can be compared between the two.
const Recipe NANOCHAT_NONZERO = [] {
    Recipe recipe = NANOCHAT;
    recipe.name = "nanochat_nonzero";
    recipe.source =
        "nanochat's, but for proj, fc_proj and ve_gate, which start by the uniform law of all other matrices and not at 0";
    for (InitialRow& row : recipe.initial) {
        if (!row.tensors) continue;
        const std::string tensors = row.tensors;
        if (tensors == "q k v fc ve") row.tensors = "q k v proj fc fc_proj ve ve_gate";
        if (tensors == "proj fc_proj ve_gate") row = {};
    }
    return recipe;
}();

const std::vector<const Recipe*>& recipes() {
    static const std::vector<const Recipe*> all{&NANOCHAT, &NANOCHAT_NONZERO, &SPEEDRUN};
    return all;
}

std::vector<std::string> recipe_names() {
    std::vector<std::string> names;
    for (const Recipe* recipe : recipes()) names.push_back(recipe->name);
    return names;
}

const Recipe& recipe_named(const std::string& name) {
    std::string names;
    for (const Recipe* recipe : recipes()) {
        if (name == recipe->name) return *recipe;
        names += concat(names.empty() ? "" : ", ", recipe->name);
    }
    fail("recipe is '", name, "', but must be one of: ", names);
}

std::vector<StatePiece> AdamWRule::state(const std::string&, const std::vector<int64_t>& shape) const {
    return {{"m", shape}, {"v", shape}};
}

std::vector<StatePiece> MuonGroup::state(const std::string& tensor, const std::vector<int64_t>& shape) const {
    require(shape.size() == 2, "Muon is for matrices, and ", tensor, " is a vector; give its group AdamW in the recipe");
    std::vector<StatePiece> pieces{{"momentum", shape}};
    if (rule.beta2 > 0) pieces.push_back({"second", {std::max(shape[0], shape[1])}});
    return pieces;
}

double MuonGroup::update_flops(const std::vector<int64_t>& shape) const {
    return shape.size() == 2 ? muon_flops(shape[0], shape[1]) : 0;   // a vector is refused by state(), which knows its name
}

const GroupRule& rule_of(const Recipe& recipe, Group group) {
    switch (group) {
        case Group::embedding: return recipe.groups.embedding;
        case Group::unembedding: return recipe.groups.unembedding;
        case Group::value_embedding: return recipe.groups.value_embedding;
        case Group::matrix: return recipe.groups.matrix;
        case Group::resid_scalar: return recipe.groups.resid_scalar;
        case Group::x0_scalar: return recipe.groups.x0_scalar;
    }
    throw std::logic_error("recipe: no such group");
}

const InitialLaw& initial_law(const Recipe& recipe, const std::string& tensor) {
    for (const InitialRow& row : recipe.initial)
        if (row.tensors && concat(" ", row.tensors, " ").find(concat(" ", tensor, " ")) != std::string::npos) return row.law;
    throw std::logic_error(concat("recipe ", recipe.name, ": no initial law for ", tensor));
}
