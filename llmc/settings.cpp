// From flags to a model and a plan.
#include "llmc/settings.h"
#include <algorithm>
#include <cstdio>
#include "llmc/io/error.h"
#include "llmc/tensors.h"

using nlohmann::json;

Settings::Settings() {
    flags.footer(
        "Examples:\n"
        "  ./train_gpt --depth 4 --width 256 --seq-len 256 --vocab-size 4096 --data corpus/train_*.bin\n"
        "      --val-data corpus/val_*.bin --steps 500 --batch-tokens 8192 --out out/d4\n"
        "  ./train_gpt --resume out/d4/step_0000250.bin --data corpus/train_*.bin\n"
        "  ./train_gpt --init out/d4/step_0000500.bin --sample 'int main('\n");
}

// ---------------------------------------------------------------------------------------------------------- model

/// A flag that changes one property of the recipe's model.
struct ModelSwitch {
    const char* flag;
    void (*set)(GPTConfig& config, const Settings& s);   // if the flag was given
    json (*get)(const GPTConfig& config);   // null where no single value describes the model (a stack of models with different scales, say)
};

static void set_switch(bool& on, const std::optional<std::string>& given) {
    if (given) on = *given == "yes";
}
static json yes_or_no(bool on) { return on ? "yes" : "no"; }

static json value_embeds_flag(const GPTConfig& c) {
    if (c.n_layer == 0) return {};
    bool none = true, pattern = true;
    for (int l = 0; l < c.n_layer; l++) {
        none = none && !c.value_embeds[l];
        pattern = pattern && c.value_embeds[l] == has_value_embed(l, c.n_layer);
    }
    return none ? json("none") : pattern ? json("pattern") : json();
}

static json attn_scale_flag(const GPTConfig& c) {
    bool one = c.n_layer > 0 &&
               std::all_of(c.attn_scale.begin(), c.attn_scale.end(), [&](double scale) { return scale == c.attn_scale[0]; });
    return one ? json(c.attn_scale[0]) : json();
}

static const ModelSwitch MODEL_SWITCHES[] = {
    {"activation",
     [](GPTConfig& c, const Settings& s) {
         if (s.activation) c.activation = activation_named(*s.activation);
     },
     [](const GPTConfig& c) { return json(name_of(c.activation)); }},
    {"norm-wte",
     [](GPTConfig& c, const Settings& s) {
         if (s.norm_wte) c.norm_wte = norm_named(*s.norm_wte);
     },
     [](const GPTConfig& c) { return json(name_of(c.norm_wte)); }},
    {"norm-lm-head",
     [](GPTConfig& c, const Settings& s) {
         if (s.norm_lm_head) c.norm_lm_head = norm_named(*s.norm_lm_head);
     },
     [](const GPTConfig& c) { return json(name_of(c.norm_lm_head)); }},
    {"tied", [](GPTConfig& c, const Settings& s) { set_switch(c.tied, s.tied); },
     [](const GPTConfig& c) { return yes_or_no(c.tied); }},
    {"qk-norm", [](GPTConfig& c, const Settings& s) { set_switch(c.qk_norm, s.qk_norm); },
     [](const GPTConfig& c) { return yes_or_no(c.qk_norm); }},
    {"lambdas", [](GPTConfig& c, const Settings& s) { set_switch(c.lambdas, s.lambdas); },
     [](const GPTConfig& c) { return yes_or_no(c.lambdas); }},
    {"softcap", [](GPTConfig& c, const Settings& s) { c.softcap = s.softcap.value_or(c.softcap); },
     [](const GPTConfig& c) { return json(c.softcap); }},
    {"attn-scale",
     [](GPTConfig& c, const Settings& s) {
         if (s.attn_scale) c.attn_scale.assign(s.depth, *s.attn_scale);
     },
     attn_scale_flag},
    {"value-embeds",
     [](GPTConfig& c, const Settings& s) {
         if (!s.value_embeds) return;
         for (int l = 0; l < s.depth; l++) c.value_embeds[l] = *s.value_embeds == "pattern" && has_value_embed(l, s.depth);
     },
     value_embeds_flag},
};

/// The model that the flags describe.
static GPTConfig config_from(const Settings& s) {
    const Recipe& recipe = recipe_named(s.recipe);
    const int64_t wide = default_width(recipe, s.depth);
    require(s.width || s.depth > 0, "--depth 0 gives no default width; give --width");
    for (const auto& [flag, given] : {std::pair{"--value-embeds", s.value_embeds.has_value()}, {"--attn-scale", s.attn_scale.has_value()}})
        require(s.depth > 0 || !given, flag, " is for layers, and --depth 0 has none; leave it out (grow decides for the layers that it adds)");
    require(s.width || wide <= (1 << 20), "--depth ", s.depth, " gives a width of ", wide, ", too large; give --width");
    const int width = s.width.value_or(static_cast<int>(wide)), heads = s.heads.value_or(default_heads(recipe, width));
    GPTConfig c = recipe_config(recipe, s.depth, heads, width, s.vocab_size.value_or(recipe.model.vocab_size),
                                s.seq_len.value_or(recipe.model.seq_len), s.window_pattern.value_or(""));
    c.n_kv_head = s.kv_heads.value_or(heads);
    for (const ModelSwitch& each : MODEL_SWITCHES) each.set(c, s);
    validate(c);
    return c;
}

/// The flags that describe a model; null for a flag of which no single value does.
static json model_flags(const GPTConfig& c) {
    bool pattern_windows = c.windows == window_sizes(c.n_layer, c.seq_len, c.window_pattern);
    json flags{{"recipe", c.recipe->name},
               {"depth", c.n_layer},
               {"width", c.n_embd},
               {"heads", c.n_head},
               {"kv-heads", c.n_kv_head},
               {"seq-len", c.seq_len},
               {"vocab-size", c.vocab_size},
               {"window-pattern", pattern_windows ? json(c.window_pattern) : json()}};
    for (const ModelSwitch& each : MODEL_SWITCHES)
        if (const json value = each.get(c); c.n_layer > 0 || !value.is_null())
            flags[each.flag] = value;   // a model without layers fits every value of a per-layer flag
    return flags;
}

GPTConfig resolve_model(Settings& s, const std::optional<Checkpoint>& from) {
    GPTConfig config = from ? from->config : config_from(s);
    std::vector<std::string> differing = s.flags.restore(FlagKind::model, model_flags(config));
    require(differing.empty(), from ? from->path : "",
            ": the model is the checkpoint's, and a flag contradicts it (file -> flag): ", differing.empty() ? "" : differing[0],
            "; leave the flag out");
    return config;
}

// ----------------------------------------------------------------------------------------------------------- plan

std::vector<std::string> resume_flags(Settings& s, const json& training) {
    std::vector<std::string> given_instead;   // a given horizon replaces the run's, and a given warmdown the run's
    if (s.steps || s.total_flops || s.param_data_ratio) given_instead = {"--steps", "--total-flops", "--param-data-ratio"};
    if (s.warmdown_ratio || s.warmdown_steps) given_instead.insert(given_instead.end(), {"--warmdown-ratio", "--warmdown-steps"});
    return s.flags.restore(FlagKind::training, training, given_instead);
}

Trained resolve_trained(const Settings& s, const GPTConfig& config, bool frozen_embedding) {
    Trained trained;
    if (s.train_only) trained.only = parse_train_only(*s.train_only, config);
    trained.embedding = !frozen_embedding;
    const std::vector<Tensor> tensors = tensor_table(config);
    auto any_trains = [&](const Trained& these) { return std::any_of(tensors.begin(), tensors.end(), these); };
    for (const std::string& pattern : trained.only)
        require(any_trains({{pattern}, trained.embedding}), "--train-only ", pattern, " is frozen by --embeddings-from; name other tensors, or leave one of the two out");
    require(any_trains(trained), "nothing would train: the embedding is all that the model has, and --embeddings-from freezes it; leave that out");
    return trained;
}

Job resolve_job(Settings& s, int rank, int processes) {
    if (!s.parts && processes > 1 && !s.resume) s.parts = processes;
    const Job job{rank, processes, s.parts.value_or(1)};
    validate(job);
    return job;
}

Plan resolve_plan(Settings& s, const GPTConfig& config, const Trained& trained, const Position& before) {
    const Recipe& recipe = *config.recipe;
    const Rates& own = recipe.rates;
    auto fill = [](auto& value, auto otherwise) {
        if (!value) value = otherwise;
    };
    fill(s.embedding_lr, own.embedding_lr);
    fill(s.unembedding_lr, own.unembedding_lr);
    fill(s.matrix_lr, own.matrix_lr);
    fill(s.scalar_lr, own.scalar_lr);
    fill(s.weight_decay, own.weight_decay);
    fill(s.warmup_steps, recipe.schedule.warmup_steps);

    int horizons = s.steps.has_value() + s.total_flops.has_value() + s.param_data_ratio.has_value();
    require(horizons <= 1, "--steps, --total-flops and --param-data-ratio each set the horizon: give one of them");
    if (horizons == 0 && recipe.horizon.steps > 0) s.steps = recipe.horizon.steps;
    if (horizons == 0 && recipe.horizon.steps == 0) s.param_data_ratio = recipe.horizon.param_data_ratio;

    PlanInput input;
    input.matmul_params = matmul_params(config);
    input.reference_params = reference_params(config);
    input.flops_per_token = flops_per_token(config, trained);
    input.steps = s.steps;
    input.total_flops = s.total_flops;
    input.param_data_ratio = s.param_data_ratio;
    input.batch_tokens = s.batch_tokens;
    input.tuned_batch = recipe.batch_tokens;
    if (!s.no_scaling) input.scaling = recipe.scaling;
    input.seq_len = config.seq_len;
    input.before = before;
    input.coconut_every = s.coconut_every;
    input.parts = s.parts.value_or(1);
    input.device_batch = s.device_batch.value_or(1);
    if (!s.device_batch) {   // the largest up to 8 that divides the batch; if not even 1 does, make_plan() throws
        Plan plan = make_plan(input);
        for (int rows = 2; rows <= 8; rows++)
            if (plan.micro_batches % (rows * input.parts) == 0) input.device_batch = rows;
    }
    Plan plan = make_plan(input);
    s.device_batch = static_cast<int>(input.device_batch);
    s.batch_tokens = plan.batch_tokens;

    require(!s.warmdown_ratio || !s.warmdown_steps, "--warmdown-ratio and --warmdown-steps say the same: give one of them");
    if (!s.warmdown_ratio && !s.warmdown_steps) s.warmdown_ratio = recipe.schedule.warmdown_ratio;
    return plan;
}

Schedule make_schedule(const Settings& s, const Recipe& recipe, const Plan& plan) {
    int64_t down = s.warmdown_steps ? *s.warmdown_steps : warmdown_steps(*s.warmdown_ratio, plan.schedule_steps);
    return {.steps = plan.schedule_steps,
            .warmup_steps = *s.warmup_steps,
            .warmdown_steps = down,
            .fall = s.warmdown_shape ? fall_named(*s.warmdown_shape) : recipe.schedule.fall};
}

Rates scaled_rates(const Settings& s, const Plan& plan) {
    return {.embedding_lr = *s.embedding_lr * plan.lr_scale,
            .unembedding_lr = *s.unembedding_lr * plan.lr_scale,
            .matrix_lr = *s.matrix_lr * plan.lr_scale,
            .scalar_lr = *s.scalar_lr * plan.lr_scale,
            .weight_decay = *s.weight_decay * plan.weight_decay_scale};
}

StepRange profiled_steps(const Settings& s, int64_t done, int64_t steps) {
    if (!s.profile_steps) return {};
    const std::string& text = *s.profile_steps;
    StepRange range;
    char rest = 0;
    bool digits = text.find_first_not_of("0123456789:") == std::string::npos && text.size() < 38;
    require(digits && std::sscanf(text.c_str(), "%ld:%ld%c", &range.first, &range.last, &rest) == 2, "--profile-steps is '", text,
            "', but must be first:last, as in 3:5");
    require(range.first > done && range.first <= range.last && range.last <= steps, "--profile-steps is ", text,
            ", but first and last must lie within ", done + 1, " and ", steps, ", the steps of this call, in order");
    return range;
}
