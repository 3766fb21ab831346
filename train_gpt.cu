// The trainer: flags, plan, loop, evaluation, sampling, saving. One file, read top to bottom.
#include <fcntl.h>
#include <malloc.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cerrno>
#include <cmath>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <filesystem>
#include <memory>
#include <optional>
#include <set>
#include "llmc/checkpoint.h"
#include "llmc/device/device.h"
#include "llmc/device/profile.h"
#include "llmc/gpt.h"
#include "llmc/io/build.h"
#include "llmc/io/flags.h"
#include "llmc/io/json.h"
#include "llmc/io/log.h"
#include "llmc/io/process.h"
#include "llmc/ops/peak.h"
#include "llmc/ops/reduce.h"
#include "llmc/optimizer.h"
#include "llmc/plan.h"
#include "llmc/schedule.h"
#include "llmc/tensors.h"
#include "llmc/text/dataloader.h"
#include "llmc/text/sampler.h"
#include "llmc/text/shard.h"
#include "llmc/text/tokenizer.h"

namespace fs = std::filesystem;
using nlohmann::json;

// ------------------------------------------------------------------------------------------------------- settings

/// Every flag's value. Empty texts, 0 and -1 stand for the recipe's own.
struct Settings {
    // model
    std::string recipe = recipes().front()->name;
    int depth = 12, width = 0, heads = 0, kv_heads = 0, seq_len = 0, vocab_size = 0;
    std::string window_pattern, activation, tied, qk_norm, value_embeds, lambdas, norm_wte, norm_lm_head;
    double softcap = 0, attn_scale = 0;
    // data
    std::vector<std::string> data, val_data;   // paths and patterns
    std::string tokenizer, packing = "stream";
    int64_t data_seed = -1;   // -1: shards are read sorted
    // horizon
    int64_t steps = 0, batch_tokens = 0;
    double total_flops = 0, param_data_ratio = 0;
    int device_batch = 0;
    // learning rates and schedule; -1: the recipe's own
    double embedding_lr = -1, unembedding_lr = -1, matrix_lr = -1, scalar_lr = -1, weight_decay = -1, warmdown_ratio = -1;
    int64_t warmup_steps = 0, warmdown_steps = -1;
    bool no_scaling = false;
    // looping and shared embeddings
    int64_t coconut_every = 0;
    std::string coconut_targets = "same", embeddings_from;
    // this call
    std::string init, resume, out, sample, profile_steps;
    bool overwrite = false, plan = false, eval = false;
    int64_t save_every = 0, eval_every = 250, eval_tokens = 10485760, sample_every = 0, keep = 0;
    uint64_t seed = 42;
    int sample_tokens = 128, top_k = 50;
    double temperature = 0.8;
};

/// What a flag is where it is left out, as its help says it: "nanochat 2048, speedrun 1024", or one value where all recipes agree.
template <class Value>
static std::string by_recipe(Value value) {
    std::string text, first;
    bool equal = true;
    for (const Recipe* recipe : recipes()) {
        const std::string own = concat(value(*recipe));
        text += concat(text.empty() ? "" : ", ", recipe->name, " ", own);
        if (recipe == recipes().front()) first = own;
        equal = equal && own == first;
    }
    return equal ? first : text;
}
static std::string model_default(auto ModelLaws::*member) {
    return by_recipe([&](const Recipe& recipe) { return recipe.model.*member; });
}
static std::string rate_default(double Rates::*rate) {
    return by_recipe([&](const Recipe& recipe) { return recipe.rates.*rate; });
}
static const char* yes_or_no(bool on) { return on ? "yes" : "no"; }

static void declare(Flags& flags, Settings& s) {
    using K = FlagKind;
    std::vector<std::string> names_of_recipes;
    for (const Recipe* recipe : recipes()) names_of_recipes.push_back(recipe->name);
    auto switch_default = [](bool ModelLaws::*member) { return by_recipe([&](const Recipe& r) { return yes_or_no(r.model.*member); }); };
    const int max_int = std::numeric_limits<int>::max();
    const std::string model = "Model (left out: the recipe's own; with --init and --resume the file's)";
    flags.choice("--recipe", s.recipe, names_of_recipes, K::model, model,
                 concat("which model, initial values, optimizers and rates (", names_of_recipes.front(), ")"));
    flags.number("--depth", s.depth, 1, MAX_LAYERS, K::model, model, "layers (12)");
    flags.number("--width", s.width, 8, 1 << 20, K::model, model,
                 concat("channels (by depth: ", model_default(&ModelLaws::width_per_layer), " x depth, rounded up to whole heads)"));
    flags.number("--heads", s.heads, 1, 1 << 17, K::model, model, concat("heads (width / head size: ", model_default(&ModelLaws::head_size), ")"));
    flags.number("--kv-heads", s.kv_heads, 1, 1 << 17, K::model, model, "key/value heads, a divisor of heads (heads)");
    flags.number("--seq-len", s.seq_len, 1, 1 << 24, K::model, model, concat("tokens of a row (", model_default(&ModelLaws::seq_len), ")"));
    flags.number("--vocab-size", s.vocab_size, 8, 65536, K::model, model, concat("a multiple of 8 (", model_default(&ModelLaws::vocab_size), ")"));
    flags.text("--window-pattern", s.window_pattern, K::model, model,
               concat("S (half of seq-len) and L (all), repeated; the last layer sees all (", model_default(&ModelLaws::window_pattern), ")"));
    flags.choice("--activation", s.activation, {"gelu", "relu2"}, K::model, model, concat("of the MLP (", by_recipe([](const Recipe& r) { return name_of(r.model.activation); }), ")"));
    flags.choice("--tied", s.tied, {"yes", "no"}, K::model, model, concat("the head is the embedding (", switch_default(&ModelLaws::tied), ")"));
    flags.choice("--qk-norm", s.qk_norm, {"yes", "no"}, K::model, model, concat("RMSNorm of queries and keys (", switch_default(&ModelLaws::qk_norm), ")"));
    flags.choice("--value-embeds", s.value_embeds, {"pattern", "none"}, K::model, model,
                 concat("value embeddings in every second layer, the last included (",
                        by_recipe([](const Recipe& r) { return r.model.value_embeds ? "pattern" : "none"; }), ")"));
    flags.choice("--lambdas", s.lambdas, {"yes", "no"}, K::model, model, concat("resid_lambdas and x0_lambdas (", switch_default(&ModelLaws::lambdas), ")"));
    flags.choice("--norm-wte", s.norm_wte, {"none", "rms_norm", "layer_norm"}, K::model, model,
                 concat("after the embedding (", by_recipe([](const Recipe& r) { return name_of(r.model.norm_wte); }), ")"));
    flags.choice("--norm-lm-head", s.norm_lm_head, {"none", "rms_norm", "layer_norm"}, K::model, model,
                 concat("before the head (", by_recipe([](const Recipe& r) { return name_of(r.model.norm_lm_head); }), ")"));
    flags.number("--softcap", s.softcap, 0.0, 1e6, K::model, model, concat("of the logits, 0: none (", model_default(&ModelLaws::softcap), ")"));
    flags.number("--attn-scale", s.attn_scale, -1e6, 1e6, K::model, model,
                 concat("of every layer's attention branch (",
                        by_recipe([](const Recipe& r) { return r.model.attn_scale == BranchScale::by_depth ? "1/sqrt(2 depth)" : "1"; }), ")"));

    const std::string data = "Data";
    flags.texts("--data", s.data, K::run, data, "shards to train on: paths and patterns, as in corpus/train_*.bin");
    flags.texts("--val-data", s.val_data, K::run, data, "shards to evaluate on, likewise");
    flags.text("--tokenizer", s.tokenizer, K::run, data,
               "tokenizer file, or GPT-2's vocab.bpe (the one beside the shards, else the checkpoint's)");
    flags.choice("--packing", s.packing, {"stream", "bos-bestfit"}, K::training, data,
                 "how rows are cut out of the shards of --data (stream; with --init the file's, on the same shards)");
    flags.at_least("--data-seed", s.data_seed, int64_t{0}, K::training, data,
                   "shuffles the order of the shards (read sorted; with --init the file's, on the same shards)");

    const std::string horizon = concat("Horizon: one of the first three (", by_recipe([](const Recipe& r) {
                                           return r.horizon.steps > 0 ? concat(r.horizon.steps, " steps") : concat("ratio ", r.horizon.param_data_ratio);
                                       }), ")");
    flags.at_least("--steps", s.steps, int64_t{1}, K::training, horizon, "updates");
    flags.number("--total-flops", s.total_flops, 1.0, 1e30, K::training, horizon, "train for this many FLOPs");
    flags.number("--param-data-ratio", s.param_data_ratio, 1e-9, 1e9, K::training, horizon,
                 "tokens per scaling parameter (block matrices, gates and head)");
    flags.at_least("--batch-tokens", s.batch_tokens, int64_t{1}, K::training, horizon,
                   concat("tokens of a step (", by_recipe([](const Recipe& r) { return r.scaling ? "by its scaling rule" : concat(r.batch_tokens); }), ")"));
    flags.number("--device-batch", s.device_batch, 1, max_int, K::training, horizon,
                 "rows of a micro-batch (the largest up to 8 that divides the batch)");

    const std::string rates = "Learning rates and schedule";
    flags.number("--embedding-lr", s.embedding_lr, 0.0, 1e30, K::training, rates,
                 concat("of the embedding and value embeddings (", rate_default(&Rates::embedding_lr), ")"));
    flags.number("--unembedding-lr", s.unembedding_lr, 0.0, 1e30, K::training, rates,
                 concat("of the head where it is not tied (", rate_default(&Rates::unembedding_lr), ")"));
    flags.number("--matrix-lr", s.matrix_lr, 0.0, 1e30, K::training, rates,
                 concat("of the layers' matrices (", rate_default(&Rates::matrix_lr), ")"));
    flags.number("--scalar-lr", s.scalar_lr, 0.0, 1e30, K::training, rates,
                 concat("of the lambdas (", rate_default(&Rates::scalar_lr), "; resid_lambdas get it times ",
                        by_recipe([](const Recipe& r) { return r.groups.resid_scalar.factor; }), ")"));
    flags.number("--weight-decay", s.weight_decay, 0.0, 1e6, K::training, rates,
                 concat("of the groups that decay in the recipe (", rate_default(&Rates::weight_decay), ")"));
    flags.at_least("--warmup-steps", s.warmup_steps, int64_t{0}, K::training, rates, concat("steps of linear warmup (", by_recipe([](const Recipe& r) { return r.schedule.warmup_steps; }), ")"));
    flags.number("--warmdown-ratio", s.warmdown_ratio, 0.0, 10.0, K::training, rates,
                 concat("part of the steps over which the rate falls to 0; above 1 it starts at 1/ratio, 0: never decays (",
                        by_recipe([](const Recipe& r) { return r.schedule.warmdown_ratio; }), ")"));
    flags.at_least("--warmdown-steps", s.warmdown_steps, int64_t{0}, K::training, rates, "the same in steps");
    flags.toggle("--no-scaling", s.no_scaling, K::training, rates,
                 concat("turns the scaling rules for batch, learning rates and decay off (which has them: ", by_recipe([](const Recipe& r) { return yes_or_no(r.scaling.has_value()); }), ")"));

    const std::string stacking = "Looping and shared embeddings (the stacking study)";
    flags.at_least("--coconut-every", s.coconut_every, int64_t{0}, K::training, stacking,
                   "every n-th step, the first too, adds a pass on the latents; 0: never (0)");
    flags.choice("--coconut-targets", s.coconut_targets, {"same", "next"}, K::training, stacking,
                 "whose targets that pass gets, this micro-batch's or the next one's (same)");
    flags.text("--embeddings-from", s.embeddings_from, K::run, stacking, "takes wte from this checkpoint and freezes it");

    const std::string run = "Run (0 in --save-every, --eval-every, --sample-every: never)";
    flags.text("--out", s.out, K::run, run, "folder for checkpoints and log.jsonl (with --resume: the checkpoint's own)");
    flags.toggle("--overwrite", s.overwrite, K::run, run, "removes the run that --out already holds");
    flags.text("--resume", s.resume, K::run, run, "goes on exactly where this checkpoint's run stopped, with its settings");
    flags.text("--init", s.init, K::run, run,
               "starts from this checkpoint's weights: data goes on, optimizer and schedules start again");
    flags.at_least("--seed", s.seed, uint64_t{0}, K::training, run, "of initial weights and samples (42)");
    flags.at_least("--save-every", s.save_every, int64_t{0}, K::run, run,
                   "steps between checkpoints; there is always one at the end (0)");
    flags.at_least("--keep", s.keep, int64_t{0}, K::run, run, "keeps only the last n checkpoints; 0: all (0)");
    flags.at_least("--eval-every", s.eval_every, int64_t{0}, K::run, run, "steps between evaluations; also at start and end (250)");
    flags.at_least("--eval-tokens", s.eval_tokens, int64_t{1}, K::run, run, "tokens of an evaluation, at most one pass (10485760)");
    flags.at_least("--sample-every", s.sample_every, int64_t{0}, K::run, run,
                   "steps between samples of text; also at the end (0; with --sample: only at the end)");
    flags.text("--sample", s.sample, K::run, run, "beginning of the samples; without --data: print one and exit", true);
    flags.number("--sample-tokens", s.sample_tokens, 1, 1 << 24, K::run, run, "length of a sample (128)");
    flags.number("--temperature", s.temperature, 0.0, 1e6, K::run, run, "of sampling; 0 takes the likeliest token (0.8)");
    flags.number("--top-k", s.top_k, 0, 65536, K::run, run, "sample among the k likeliest tokens; 0: among all (50)");
    flags.text("--profile-steps", s.profile_steps, K::run, run,
               "first:last, steps to profile: on the CPU a table of where their time went; on a GPU the profiler that waits for it starts "
               "and stops there (make profile)");
    flags.toggle("--plan", s.plan, K::run, run, "prints sizes, FLOPs, steps and memory, and does nothing else");
    flags.toggle("--eval", s.eval, K::run, run, "prints loss and bits per byte of --init on --val-data, and does nothing else");
    flags.footer(
        "Examples:\n"
        "  ./train_gpt --depth 4 --width 256 --seq-len 256 --vocab-size 4096 --data corpus/train_*.bin\n"
        "      --val-data corpus/val_*.bin --steps 500 --batch-tokens 8192 --out out/d4\n"
        "  ./train_gpt --resume out/d4/step_0000250.bin --data corpus/train_*.bin\n"
        "  ./train_gpt --init out/d4/step_0000500.bin --sample 'int main('\n");
}

// ---------------------------------------------------------------------------------------------------------- model

static int or_default(int value, int otherwise) { return value ? value : otherwise; }
static bool switched(const std::string& text, bool otherwise) { return text.empty() ? otherwise : text == "yes"; }

/// The model that the flags describe.
static GPTConfig config_from(const Settings& s, const Flags& flags) {
    const Recipe& recipe = recipe_named(s.recipe);
    const int64_t wide = default_width(recipe, s.depth);
    require(s.width || wide <= (1 << 20), "--depth ", s.depth, " gives a width of ", wide, ", too large; give --width");
    const int width = or_default(s.width, static_cast<int>(wide)), heads = or_default(s.heads, default_heads(recipe, width));
    GPTConfig c = recipe_config(recipe, s.depth, heads, width, or_default(s.vocab_size, recipe.model.vocab_size),
                                or_default(s.seq_len, recipe.model.seq_len), s.window_pattern);
    c.n_kv_head = or_default(s.kv_heads, heads);
    if (!s.activation.empty()) c.activation = activation_named(s.activation);
    if (!s.norm_wte.empty()) c.norm_wte = norm_named(s.norm_wte);
    if (!s.norm_lm_head.empty()) c.norm_lm_head = norm_named(s.norm_lm_head);
    c.tied = switched(s.tied, c.tied);
    c.qk_norm = switched(s.qk_norm, c.qk_norm);
    c.lambdas = switched(s.lambdas, c.lambdas);
    if (flags.given("--softcap")) c.softcap = s.softcap;
    if (flags.given("--attn-scale")) c.attn_scale.assign(s.depth, s.attn_scale);
    if (!s.value_embeds.empty())
        for (int l = 0; l < s.depth; l++) c.value_embeds[l] = s.value_embeds == "pattern" && has_value_embed(l, s.depth);
    validate(c);
    return c;
}

/// The flags that describe a model; null where no single value does (a stack of models with scales of their own, say).
static json model_flags(const GPTConfig& c) {
    auto yes = [](bool on) { return on ? "yes" : "no"; };
    bool one_scale = std::all_of(c.attn_scale.begin(), c.attn_scale.end(), [&](double scale) { return scale == c.attn_scale[0]; });
    bool no_ve = std::none_of(c.value_embeds.begin(), c.value_embeds.end(), [](bool has) { return has; });
    bool pattern_ve = true;
    for (int l = 0; l < c.n_layer; l++) pattern_ve = pattern_ve && c.value_embeds[l] == has_value_embed(l, c.n_layer);
    bool pattern_windows = c.windows == window_sizes(c.n_layer, c.seq_len, c.window_pattern);
    return {{"recipe", c.recipe->name},
            {"depth", c.n_layer},
            {"width", c.n_embd},
            {"heads", c.n_head},
            {"kv-heads", c.n_kv_head},
            {"seq-len", c.seq_len},
            {"vocab-size", c.vocab_size},
            {"window-pattern", pattern_windows ? json(c.window_pattern) : json()},
            {"activation", name_of(c.activation)},
            {"tied", yes(c.tied)},
            {"qk-norm", yes(c.qk_norm)},
            {"value-embeds", no_ve        ? json("none")
                             : pattern_ve ? json("pattern")
                                          : json()},
            {"lambdas", yes(c.lambdas)},
            {"norm-wte", name_of(c.norm_wte)},
            {"norm-lm-head", name_of(c.norm_lm_head)},
            {"softcap", c.softcap},
            {"attn-scale", one_scale ? json(c.attn_scale[0]) : json()}};
}

/// The model of this call: the file's, or else the flags'. Flags that were left open get its values.
static GPTConfig resolve_model(Settings& s, Flags& flags, const std::optional<Checkpoint>& from) {
    GPTConfig config = from ? from->config : config_from(s, flags);
    std::vector<std::string> differing = flags.restore(FlagKind::model, model_flags(config));
    require(differing.empty(), from ? from->path : "",
            ": the model is the file's, and a flag contradicts it (file -> flag): ", differing.empty() ? "" : differing[0],
            "; leave the flag out");
    return config;
}

// ----------------------------------------------------------------------------------------------------------- plan

/// Fills what the flags left to the recipe, and gives the horizon.
static Plan resolve_plan(Settings& s, const GPTConfig& config) {
    const Recipe& recipe = *config.recipe;
    const Rates& own = recipe.rates;
    auto fill = [](double& value, double otherwise) {
        if (value < 0) value = otherwise;
    };
    fill(s.embedding_lr, own.embedding_lr);
    fill(s.unembedding_lr, own.unembedding_lr);
    fill(s.matrix_lr, own.matrix_lr);
    fill(s.scalar_lr, own.scalar_lr);
    fill(s.weight_decay, own.weight_decay);

    int horizons = (s.steps > 0) + (s.total_flops > 0) + (s.param_data_ratio > 0);
    require(horizons <= 1, "--steps, --total-flops and --param-data-ratio each set the horizon: give one of them");
    if (horizons == 0) s.param_data_ratio = recipe.horizon.param_data_ratio, s.steps = recipe.horizon.steps;

    PlanInput input;
    input.matmul_params = matmul_params(config);
    input.reference_params = reference_params(config);
    input.flops_per_token = flops_per_token(config);
    if (s.steps > 0) input.steps = s.steps;
    if (s.total_flops > 0) input.total_flops = s.total_flops;
    if (s.param_data_ratio > 0) input.param_data_ratio = s.param_data_ratio;
    if (s.batch_tokens > 0) input.batch_tokens = s.batch_tokens;
    input.tuned_batch = recipe.batch_tokens;
    if (!s.no_scaling) input.scaling = recipe.scaling;
    input.seq_len = config.seq_len;
    input.coconut_every = s.coconut_every;
    input.device_batch = s.device_batch;
    if (s.device_batch == 0) {   // the largest up to 8 that divides the batch; where none does, make_plan says so for 1
        input.device_batch = 1;
        Plan plan = make_plan(input);
        for (int rows = 2; rows <= 8; rows++)
            if (plan.micro_batches % rows == 0) input.device_batch = rows;
    }
    Plan plan = make_plan(input);
    s.device_batch = static_cast<int>(input.device_batch);
    s.batch_tokens = plan.batch_tokens;

    require(s.warmdown_ratio < 0 || s.warmdown_steps < 0, "--warmdown-ratio and --warmdown-steps say the same: give one of them");
    if (s.warmdown_ratio < 0 && s.warmdown_steps < 0) s.warmdown_ratio = recipe.schedule.warmdown_ratio;
    return plan;
}

static Schedule make_schedule(const Settings& s, const Recipe& recipe, const Plan& plan) {
    int64_t down = s.warmdown_steps >= 0 ? s.warmdown_steps : warmdown_steps(s.warmdown_ratio, plan.steps);
    return {.steps = plan.steps, .warmup_steps = s.warmup_steps, .warmdown_steps = down, .fall = recipe.schedule.fall};
}

/// The two numbers of --profile-steps; 0 and 0 when nothing is to be profiled.
struct StepRange {
    int64_t first = 0, last = 0;
};
static StepRange profiled_steps(const std::string& text, int64_t done, int64_t steps) {
    if (text.empty()) return {};
    StepRange range;
    char rest = 0;
    bool digits = text.find_first_not_of("0123456789:") == std::string::npos && text.size() < 38;
    require(digits && std::sscanf(text.c_str(), "%ld:%ld%c", &range.first, &range.last, &rest) == 2,
            "--profile-steps is '", text, "', but must be first:last, as in 3:5");
    require(range.first > done && range.first <= range.last && range.last <= steps, "--profile-steps is ", text, ", but first and last must lie within ",
            done + 1, " and ", steps, ", the steps of this call, in order");
    return range;
}

static Rates scaled_rates(const Settings& s, const Plan& plan) {
    return {.embedding_lr = s.embedding_lr * plan.lr_scale,
            .unembedding_lr = s.unembedding_lr * plan.lr_scale,
            .matrix_lr = s.matrix_lr * plan.lr_scale,
            .scalar_lr = s.scalar_lr * plan.lr_scale,
            .weight_decay = s.weight_decay * plan.weight_decay_scale};
}

/// Memory by lifetime. Laying a model out allocates nothing.
struct MemoryPlan {
    std::vector<std::pair<std::string, size_t>> parts;
    size_t total = 0;

    MemoryPlan(const GPTConfig& config, const Settings& s, bool frozen_embedding) {
        GPT model(config, s.device_batch, Mode::train, frozen_embedding);
        Optimizer optimizer(model);
        for (const Arena* arena : model.arenas()) parts.emplace_back(arena->name(), device_alloc_bytes(arena->bytes()));
        for (const Arena* arena : optimizer.arenas()) parts.emplace_back(arena->name(), device_alloc_bytes(arena->bytes()));
        if (s.sample_every > 0)
            parts.emplace_back("key/value cache", size_t{2} * config.n_layer * config.seq_len * config.kv_width() * sizeof(floatX));
        parts.emplace_back("program", device_overhead_bytes(int64_t{s.device_batch} * config.seq_len));
        for (auto& [name, bytes] : parts) total += bytes;
        // What measures the peak has the memory first; a small model takes less.
        const size_t before = device_peak_bytes();
        if (before > total) parts.emplace_back("peak measurement", before - total);
        total = std::max(total, before);
    }
};

/// Rows of the largest micro-batch whose plan is within `bytes`; 0 when not even one row is.
static int64_t largest_device_batch(const GPTConfig& config, const Settings& s, bool frozen_embedding, size_t bytes) {
    auto total = [&](int rows) {
        Settings other = s;
        other.device_batch = rows;
        return static_cast<double>(MemoryPlan(config, other, frozen_embedding).total);
    };
    double one = total(1), row = total(2) - one;
    double rows = 1 + (static_cast<double>(bytes) - one) / row;
    return rows < 1 ? 0 : static_cast<int64_t>(rows);
}

static void print_plan(const GPTConfig& config, const Plan& plan, const MemoryPlan& memory) {
    std::printf("matmul_params: %ld\n", matmul_params(config));
    std::printf("total_params: %ld\n", total_params(config));
    std::printf("flops_per_token: %ld\n", flops_per_token(config));
    std::printf("batch_tokens: %ld\n", plan.batch_tokens);
    std::printf("steps: %ld\n", plan.steps);
    std::printf("tokens: %ld\n", plan.tokens);
    std::printf("memory_bytes: %zu\n", memory.total);
    std::printf("total_flops: %.4e\n", plan.total_flops);
}

// ---------------------------------------------------------------------------------------------- what is printed

template <class... Pieces>
static void warn(const Pieces&... pieces) {
    std::cout.flush();
    std::cerr << readable(concat("train_gpt: warning: ", pieces...)) << std::endl;
}

// ------------------------------------------------------------------------------------------- files of a run

/// step_NNNNNNN.bin
static std::string checkpoint_name(int64_t step) {
    char name[32];
    std::snprintf(name, sizeof name, "step_%07ld.bin", step);
    return name;
}

/// Checkpoints in a run's folder, oldest step first.
static std::vector<fs::path> checkpoints_in(const std::string& folder) {
    std::vector<std::pair<int64_t, fs::path>> found;
    if (fs::is_directory(folder))
        for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
            std::string name = entry.path().filename();
            long step = 0;
            if (std::sscanf(name.c_str(), "step_%ld.bin", &step) == 1 && name == checkpoint_name(step))
                found.emplace_back(step, entry.path());
        }
    std::sort(found.begin(), found.end());
    std::vector<fs::path> paths;
    for (auto& [step, path] : found) paths.push_back(path);
    return paths;
}

static fs::path log_path(const std::string& folder) { return fs::path(folder) / "log.jsonl"; }

/// Makes the folder if it is not there. Throws where this run may not or cannot write to it; a run that it holds stays.
static void prepare_folder(const Settings& s) {
    require(!s.out.empty(), "--out is missing: the folder for checkpoints and log");
    std::error_code error;
    const bool there = fs::status(s.out, error).type() != fs::file_type::not_found;
    require(!there || access(s.out.c_str(), R_OK | W_OK) == 0, s.out, ": cannot be written to: ", std::strerror(errno),
            "; choose another --out");
    bool continues = !s.resume.empty() && fs::equivalent(fs::canonical(s.resume).parent_path(), s.out, error) && !error;
    bool holds_run = !checkpoints_in(s.out).empty() || fs::exists(log_path(s.out));
    require(!s.overwrite || !continues, "--overwrite would remove the run that --resume continues; leave one of them out");
    require(!holds_run || s.overwrite || continues, s.out,
            " already holds a run; choose another --out, --resume one of its checkpoints, or say --overwrite");
    fs::create_directories(s.out, error);
    require(!error && fs::is_directory(s.out), s.out, ": cannot be made a folder: ", error ? error.message() : "it is a file");
    std::string probe = (fs::path(s.out) / concat("probe.", getpid(), ".tmp")).string();
    int fd = open(probe.c_str(), O_CREAT | O_EXCL | O_WRONLY, 0600);
    require(fd >= 0, s.out, ": cannot be written to: ", std::strerror(errno), "; choose another --out");
    close(fd);
    unlink(probe.c_str());
    for (const fs::path& path : checkpoints_in(s.out))
        for (const std::string& source : {s.init, s.embeddings_from}) {
            bool needed = s.overwrite && !source.empty() && fs::equivalent(path, source, error);
            require(!needed, "--overwrite would remove ", source, ", which this run starts from; choose another --out");
        }
}

/// --overwrite: removes the run that the folder holds, once all else is known to be well.
static void clear_folder(const Settings& s) {
    for (const fs::path& path : checkpoints_in(s.out)) fs::remove(path);
    fs::remove(log_path(s.out));
}

// --------------------------------------------------------------------------------------------------- the run

static volatile std::sig_atomic_t stop_asked = 0;
static void ask_to_stop(int) { stop_asked = 1; }

struct Evaluation {
    double loss = 0;
    std::optional<double> bpb;   ///< nothing when bytes per token are not known
};

/// All that a training run, an evaluation or a sample works on.
class Run {
public:
    Run(Settings& settings, Flags& flag_table, int argc, char** argv)
        : s(settings), flags(flag_table), arguments(argv, argv + argc) {}
    int main();

private:
    void open_parent();
    void open_embedding();
    void find_tokenizer();
    void print_start();
    void build_model(Mode mode);
    void load_weights(const Checkpoint& checkpoint);
    void take_embedding();
    void resume_state();
    void warn_of_shared_shards() const;
    bool takes_data_order();
    void start_data();
    int evaluate_only();
    int sample_only();
    int train();
    bool step_once();
    void diagnose(double loss, double norm, const json& place);
    void require_finite_weights();
    std::string last_checkpoint() const;
    void save();
    void save_once();
    template <class Work>
    void saved_if_it_fails(const json& place, Work work);
    Evaluation evaluate(DataLoader& loader);
    void report_evaluation();
    double sample();
    void report_sample();
    void report_profile();
    bool due(int64_t every) const { return every > 0 && (step % every == 0 || step == plan.steps); }

    Settings& s;
    Flags& flags;
    std::vector<std::string> arguments;

    std::optional<Checkpoint> parent;      // --init or --resume
    std::optional<Checkpoint> embedding;   // --embeddings-from
    std::optional<Tokenizer> tokenizer;
    GPTConfig config;
    Plan plan{};
    Schedule schedule{};
    bool frozen_embedding = false;

    std::unique_ptr<GPT> model;
    std::unique_ptr<Optimizer> optimizer;
    std::unique_ptr<DataLoader> data, val;
    std::unique_ptr<KVCache> cache;
    std::unique_ptr<Sampler> sampler;
    std::unique_ptr<Log> log;
    ProgressBar bar;

    int64_t step = 0, tokens = 0;   // updates done, tokens seen in them
    int64_t saved_at = -1;          // step of this call's last checkpoint
    double flops = 0;               // spent on them
    double smooth = 0;              // running mean of the last micro-batch's loss, not yet debiased
    double peak_flops = 0;
    double step_seconds = 0;   // running mean
    StepRange profiled;        // steps of --profile-steps
    int64_t one_pass = 0;      // micro-batches of the validation data, once they are counted
    json origin;               // lineage of this run's checkpoints
    double origin_flops = 0;   // spent on all that it names
    std::vector<int> inputs, targets;
};

// -------------------------------------------------------------------------------------------- starting a run

/// A checkpoint of which every tensor is what it was when it was written, those that are not used too.
static Checkpoint open_whole(const std::string& path) {
    Checkpoint checkpoint = open_checkpoint(path);
    verify_tensors(checkpoint);
    return checkpoint;
}

void Run::open_parent() {
    require(s.init.empty() || s.resume.empty(),
            "--init and --resume both name a checkpoint: --resume goes on exactly, --init takes the weights alone");
    const std::string& path = s.resume.empty() ? s.init : s.resume;
    if (!path.empty()) parent = open_whole(path);
    if (s.resume.empty()) return;

    require(parent->can_resume(), path,
            ": holds no state of a training (it was grown, stacked or converted): start from its weights with --init");
    const std::string where = path + ": training";
    const json& training = json_object(parent->header["training"], where);
    std::vector<std::string> given_instead;   // one horizon replaces another, one warmdown the other
    if (flags.any_given({"--steps", "--total-flops", "--param-data-ratio"}))
        given_instead = {"--steps", "--total-flops", "--param-data-ratio"};
    if (flags.any_given({"--warmdown-ratio", "--warmdown-steps"}))
        given_instead.insert(given_instead.end(), {"--warmdown-ratio", "--warmdown-steps"});
    for (const std::string& change : flags.restore(FlagKind::training, json_member(training, "flags", where), given_instead))
        warn("--resume goes on with another setting: ", change);
    frozen_embedding = json_bool(json_member(training, "frozen_embedding", where), where + ": frozen_embedding");
    const std::string& precision = json_string(json_member(training, "precision", where), where + ": precision");
    const std::string& device = json_string(json_member(training, "device", where), where + ": device");
    if (precision != PRECISION_NAME)
        warn("the run was trained in ", precision, ", this program is built for ", PRECISION_NAME, ": not bit for bit the same");
    if (device != device_name())
        warn("the run was trained on ", device, ", this is ", device_name(), ": it may not be bit for bit the same");
}

/// --embeddings-from. A run that is resumed has its frozen embedding already; the flag may say again which.
void Run::open_embedding() {
    if (s.embeddings_from.empty()) return;
    embedding = open_whole(s.embeddings_from);
    require(embedding->config.vocab_size == config.vocab_size && embedding->config.n_embd == config.n_embd, embedding->path,
            ": its embedding is ", embedding->config.vocab_size, " x ", embedding->config.n_embd, ", but the model's is ",
            config.vocab_size, " x ", config.n_embd, " (vocabulary x width)");
    bool again = frozen_embedding && embedding->at("wte").xxh3 == parent->at("wte").xxh3;
    require(s.resume.empty() || again, s.embeddings_from, ": --resume goes on with the embedding of the run, which is ",
            frozen_embedding ? "another one" : "not frozen", "; leave --embeddings-from out");
    frozen_embedding = true;
}

/// The one that was named, else the one beside the shards, else the checkpoint's.
void Run::find_tokenizer() {
    auto beside = [](const std::unique_ptr<DataLoader>& loader) {
        return loader ? tokenizer_beside(loader->first_shard()).string() : std::string();
    };
    for (const std::string& path : {s.tokenizer, beside(data), beside(val)}) {
        if (path.empty() || (path != s.tokenizer && !fs::exists(path))) continue;
        tokenizer = Tokenizer::load(path);
        break;
    }
    const TensorEntry* kept = parent ? parent->find("tokenizer") : nullptr;
    if (kept) {
        std::string bytes(kept->bytes, '\0');
        read_tensor(*parent, *kept, bytes.data());
        if (!tokenizer)
            tokenizer = Tokenizer::parse(bytes, parent->path + ": tokenizer");
        else if (tokenizer->serialize() != bytes)
            warn("the tokenizer of the data is not the one that ", parent->path, " was trained with");
    }
    if (tokenizer)
        require(tokenizer->vocab_size() <= config.vocab_size, "the tokenizer has ", tokenizer->vocab_size(),
                " tokens, but --vocab-size is ", config.vocab_size, ": give one that is at least as large, or another --tokenizer");
}

void Run::build_model(Mode mode) {
    model = std::make_unique<GPT>(config, s.device_batch, mode, frozen_embedding);
    if (mode == Mode::train) optimizer = std::make_unique<Optimizer>(*model);
    model->allocate();
    if (parent)
        load_weights(*parent);
    else
        model->initialize_weights(s.seed);
    if (embedding) take_embedding();
    if (optimizer) optimizer->allocate();
}

/// Reads tensors of a checkpoint straight into the device's memory.
static void read_to_device(const Checkpoint& checkpoint, const std::string& name, float* destination) {
    read_tensor(checkpoint, checkpoint.at(name), [&](const void* bytes, int64_t offset, int64_t count) {
        copy_to_device(reinterpret_cast<char*>(destination) + offset, bytes, count, nullptr);
    });
}

void Run::load_weights(const Checkpoint& checkpoint) {
    for (const Tensor& tensor : model->tensors) {
        read_to_device(checkpoint, tensor.name, model->master(tensor));
        model->round_weights(tensor);
    }
}

void Run::take_embedding() {
    const Tensor& wte = model->tensors.front();
    read_to_device(*embedding, wte.name, model->master(wte));
    model->round_weights(wte);
}

void Run::resume_state() {
    for (const Optimizer::State& state : optimizer->states()) {
        require(parent->at(state.name).shape == state.shape, parent->path, ": ", state.name, " has another shape than its optimizer's ",
                json(state.shape), ": it is the state of another training; start from the weights with --init");
        read_to_device(*parent, state.name, state.values);
    }
    const json& progress = parent->header["progress"];
    const json& training = parent->header["training"];
    const std::string where = parent->path + ": training";
    step = progress["step"];
    tokens = progress["tokens"];
    flops = progress["flops"];
    smooth = json_number(json_member(training, "smooth", where), where + ": smooth");
    const json& drawn = json_member(training, "sampler", where);
    require(drawn.is_number_unsigned(), where, ": sampler is ", drawn, ", but must be a whole number");
    sampler->restore(drawn);
}

/// Training and evaluating on the same file is allowed.
void Run::warn_of_shared_shards() const {
    if (!val) return;
    std::set<fs::path> trained;
    for (const std::string& path : data->paths()) trained.insert(fs::canonical(path));
    for (const std::string& path : val->paths())
        if (trained.contains(fs::canonical(path)))
            return warn("--val-data shares ", path, " with --data: its loss will not tell of new text");
}

/// --init on the shards of before goes on in their order, unless flags ask for another. True when it is another than until now.
bool Run::takes_data_order() {
    if (s.init.empty() || !parent->header.contains("data")) return false;
    const json& place = json_object(parent->header["data"], s.init + ": position in the data");
    if (!place.contains("fingerprint") || place["fingerprint"] != data->fingerprint()) return false;
    const json before = flags.values(FlagKind::training);
    flags.restore(FlagKind::training, {{"packing", place.value("packing", json())}, {"data-seed", place.value("shuffle_seed", json())}});
    return flags.values(FlagKind::training) != before;
}

void Run::start_data() {
    LoaderOptions options;
    options.B = s.device_batch;
    options.T = config.seq_len;
    options.vocab_size = config.vocab_size;
    if (!s.val_data.empty()) {
        options.patterns = s.val_data;
        val = std::make_unique<DataLoader>(options);
    }
    if (s.data.empty()) return find_tokenizer();
    options.patterns = s.data;
    auto open = [&] {
        options.packing = packing_named(s.packing);
        if (s.data_seed >= 0) options.shuffle_seed = static_cast<uint64_t>(s.data_seed);
        data = std::make_unique<DataLoader>(options);
    };
    open();
    if (takes_data_order()) open();
    find_tokenizer();
    if (options.packing == Packing::bos_bestfit && tokenizer) {
        options.bos = tokenizer->bos();
        data = std::make_unique<DataLoader>(options);
    }
    warn_of_shared_shards();
    if (!parent || !parent->header.contains("data")) return;
    try {
        data->restore(parent->header["data"]);
    } catch (const std::invalid_argument& error) {
        if (!s.resume.empty()) throw;
        warn("the data starts at its first token: ", error.what());
    }
}

/// A value on a line of the start-up table: of several, the first, the last and how many.
static std::string text_of(const json& value) {
    if (value.is_array()) return concat(text_of(value.front()), " ... ", text_of(value.back()), " (", value.size(), ")");
    return readable(value.is_string() ? value.get<std::string>() : value.dump());
}

void Run::print_start() {
    std::cout << "deepen train_gpt " << build_commit() << ", " << PRECISION_NAME << ", " << device_name() << "\n";
    for (FlagKind kind : {FlagKind::model, FlagKind::training, FlagKind::run}) {
        const json values = flags.values(kind);
        for (auto& [name, value] : values.items())
            if (const std::string text = text_of(value); !text.empty()) std::printf("  %-18s %s\n", name.c_str(), text.c_str());
    }
    if (parent)
        std::cout << "from " << parent->path << ", " << parent->header["lineage"]["operation"].get<std::string>() << ", step "
                  << parent->header["progress"]["step"] << "\n";
    std::printf("data: %ld tokens in %d shards%s%s; tokenizer: %s\n", data->total_tokens(), data->shards(),
                val ? "; validation: " : "", val ? concat(val->total_tokens(), " tokens").c_str() : "",
                tokenizer ? concat(tokenizer->vocab_size(), " tokens").c_str() : "unknown");
    MemoryPlan memory(config, s, frozen_embedding);
    for (auto& [name, bytes] : memory.parts)
        std::printf("memory: %-18s %10.1f MiB\n", name.c_str(), static_cast<double>(bytes) / (1 << 20));
    size_t available = device_free_bytes();
    int64_t largest = largest_device_batch(config, s, frozen_embedding, available);
    std::printf("memory: %-18s %10.1f MiB of %.1f free; the largest --device-batch that would fit: %ld\n", "all",
                static_cast<double>(memory.total) / (1 << 20), static_cast<double>(available) / (1 << 20), largest);
    print_plan(config, plan, memory);
    std::fflush(stdout);
    require(memory.total <= available, "the run needs ", memory.total >> 20, " MiB, but ", available >> 20, " MiB are free; ",
            largest > 0 ? concat("--device-batch ", largest, " would fit") : "use a smaller model");
}

// ------------------------------------------------------------------------------------- evaluation and samples

/// Mean loss over the first --eval-tokens of the validation data, and bits per byte of their text.
Evaluation Run::evaluate(DataLoader& loader) {
    int64_t size = static_cast<int64_t>(s.device_batch) * config.seq_len;
    int64_t wanted = std::max<int64_t>(1, s.eval_tokens / size);
    if (one_pass == 0) {
        one_pass = loader.batches_per_epoch();
        if (one_pass < wanted)
            std::printf("note: --eval-tokens %ld is capped at one pass: %ld tokens\n", s.eval_tokens, one_pass * size);
    }
    int64_t batches = std::min(wanted, one_pass);
    std::vector<float> losses(size);
    std::vector<int> x(size), y(size);
    double nats = 0, text_nats = 0;
    int64_t bytes = 0;
    loader.rewind();
    for (int64_t i = 0; i < batches && !stop_asked; i++) {
        loader.next(x.data(), y.data());
        model->evaluate_micro_batch(losses.data(), x.data(), y.data());
        for (int64_t n = 0; n < size; n++) {
            nats += losses[n];
            int length = tokenizer && y[n] < tokenizer->vocab_size() ? tokenizer->token_bytes(y[n]) : 0;
            if (length > 0) text_nats += losses[n], bytes += length;
        }
    }
    Evaluation result;
    result.loss = nats / static_cast<double>(batches * size);
    if (bytes > 0) result.bpb = text_nats / (std::log(2.0) * static_cast<double>(bytes));
    return result;
}

static std::string bpb_text(const std::optional<double>& bpb) {
    if (!bpb) return "unknown";
    char text[32];
    std::snprintf(text, sizeof text, "%.6f", *bpb);
    return text;
}

void Run::report_evaluation() {
    Evaluation result = evaluate(*val);
    if (stop_asked) return;
    bar.clear();
    std::printf("eval step %ld val_loss %.6f val_bpb %s\n", step, result.loss, bpb_text(result.bpb).c_str());
    std::fflush(stdout);
    log->write({{"event", "eval"},
                {"step", step},
                {"val_loss", or_null(result.loss)},
                {"val_bpb", result.bpb ? or_null(*result.bpb) : json()},
                {"tokens", tokens},
                {"flops", flops},
                {"total_flops", flops + origin_flops}});
}

/// Prints --sample and what the model makes of it. Returns tokens a second.
double Run::sample() {
    std::vector<int> sequence{tokenizer->bos()};
    for (uint16_t token : tokenizer->encode(s.sample)) sequence.push_back(token);
    Utf8Printer printer(std::cout);
    printer.print(s.sample);
    std::vector<float> logits(config.vocab_size);
    auto start = std::chrono::steady_clock::now();
    size_t fed = 0;
    cache->length = 0;
    int drawn = 0;
    for (; drawn < s.sample_tokens && !stop_asked; drawn++) {
        // Where the model sees no further, it goes on from the last half of what it has seen.
        if (cache->length + static_cast<int64_t>(sequence.size() - fed) > config.seq_len) {
            size_t kept = std::max(config.seq_len / 2, 1);
            fed = sequence.size() - std::min(kept, sequence.size());
            cache->length = 0;
        }
        model->extend(*cache, sequence.data() + fed, static_cast<int>(sequence.size() - fed));
        fed = sequence.size();
        model->next_logits(logits.data());
        int token = sampler->pick(logits.data(), tokenizer->vocab_size());
        if (token == tokenizer->bos()) break;   // the document ends here
        sequence.push_back(token);
        uint16_t id = static_cast<uint16_t>(token);
        printer.print(tokenizer->decode({&id, 1}));
        std::cout.flush();
    }
    printer.finish();
    std::cout << std::endl;
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    return std::max(drawn, 1) / seconds;
}

/// Where the time of --profile-steps went; on a GPU the profiler tells.
void Run::report_profile() {
    const std::string table = profile_stop();
    bar.clear();
    std::printf("profile: steps %ld to %ld\n%s", profiled.first, profiled.last, table.c_str());
    std::fflush(stdout);
}

void Run::report_sample() {
    bar.clear();
    std::cout << "sample at step " << step << ": ";
    sample();
}

// ------------------------------------------------------------------------------------------------- training

/// Work that can fail by its data (a bad token, a shard cut short meanwhile): what was trained is kept, with `place` in the data.
template <class Work>
void Run::saved_if_it_fails(const json& place, Work work) {
    try {
        work();
    } catch (const std::invalid_argument& error) {
        data->restore(place);
        try {
            if (step > 0) save_once();
        } catch (const std::invalid_argument& second) {
            fail(error.what(), "; the steps since the last checkpoint could not be saved: ", second.what());
        }
        throw;
    }
}

/// One update. False when it was asked to stop in the middle: the weights are those of before, and so is the data's position.
bool Run::step_once() {
    Range range("step");
    auto start = std::chrono::steady_clock::now();
    json place = data->position();
    bool loops = s.coconut_every > 0 && step % s.coconut_every == 0;
    const double share = 1.0 / static_cast<double>(plan.micro_batches);
    model->begin_step();
    for (int64_t i = 0; i < plan.micro_batches; i++) {
        if (stop_asked) {
            data->restore(place);
            return false;
        }
        const int* loop_targets = targets.data();
        saved_if_it_fails(place, [&] {
            Range reading("data");
            data->next(inputs.data(), targets.data());
            if (loops && s.coconut_targets == "next") loop_targets = data->peek_targets();
        });
        model->train_micro_batch(inputs.data(), targets.data(), share);
        if (loops) model->train_micro_batch(inputs.data(), loop_targets, share, true);
    }
    const auto [loss, loop_loss, last, norm] = model->end_step();
    if (!std::isfinite(loss + loop_loss + norm)) diagnose(loss + loop_loss, norm, place);

    const StepSchedule now{.lr_multiplier = lr_multiplier(schedule, step), .step = step, .steps = plan.steps};
    const Rates rates = scaled_rates(s, plan);
    optimizer->set_step(rates, now, step + 1);
    optimizer->update();   // the device goes on with it while the next tokens are read

    step++;
    tokens += plan.batch_tokens;
    flops += static_cast<double>(plan.batch_tokens) * static_cast<double>(flops_per_token(config)) * (loops ? 2 : 1);
    smooth = 0.9 * smooth + 0.1 * last;
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    step_seconds = step_seconds == 0 ? seconds : 0.9 * step_seconds + 0.1 * seconds;
    double rate = static_cast<double>(plan.batch_tokens) / seconds;
    double mfu = peak_flops > 0 ? 100 * rate * (loops ? 2 : 1) * static_cast<double>(flops_per_token(config)) / peak_flops : 0;
    double left = step_seconds * static_cast<double>(plan.steps - step), lr = rates.matrix_lr * now.lr_multiplier;

    bar.clear();
    std::printf("step %ld/%ld loss %.6f lr %.3e norm %.4f ms %.1f tok/s %.0f mfu %.1f%% eta %s%s\n", step, plan.steps, loss, lr,
                norm, seconds * 1e3, rate, mfu, clock_text(left).c_str(), loops ? concat(" loop_loss ", loop_loss).c_str() : "");
    bar.show(step, plan.steps, left);
    std::fflush(stdout);
    json line{{"event", "step"},
              {"step", step},
              {"loss", loss},
              {"smooth_loss", smooth / (1 - std::pow(0.9, static_cast<double>(step)))},
              {"lr", lr},
              {"norm", norm},
              {"ms", seconds * 1e3},
              {"tok_s", rate},
              {"mfu", mfu},
              {"tokens", tokens},
              {"flops", flops},
              {"total_flops", flops + origin_flops}};
    if (loops) line["loop_loss"] = loop_loss;
    saved_if_it_fails(data->position(), [&] { log->write(line); });
    return true;
}

/// Says where NaN or Inf came from, and ends the run: the weights are not updated, the last checkpoint stays the last.
void Run::diagnose(double loss, double norm, const json& place) {
    bool loops = s.coconut_every > 0 && step % s.coconut_every == 0;
    std::string found;
    data->restore(place);
    for (int64_t i = 0; i < plan.micro_batches && found.empty(); i++) {
        data->next(inputs.data(), targets.data());
        found = model->find_nonfinite(inputs.data(), targets.data(), loops);
    }
    log->write({{"event", "nonfinite"}, {"step", step + 1}, {"found", found}});
    fail("step ", step + 1, ": loss is ", loss, ", gradient norm ", norm, ": first NaN or Inf in ",
         found.empty() ? "no tensor, only in their sum of squares" : found,
         "; lower the learning rates; last good checkpoint: ", last_checkpoint());
}

/// A checkpoint with NaN or Inf in it would take the place of a good one.
void Run::require_finite_weights() {
    for (const Tensor& tensor : model->tensors)
        require(first_nonfinite(model->master(tensor), tensor.numel, nullptr) < 0, "step ", step, ": its update made NaN or Inf of the weights ",
                tensor.name, tensor.layer < 0 ? "" : concat(" (layer ", tensor.layer, ")"),
                "; lower the learning rates; last good checkpoint: ", last_checkpoint());
}

/// The newest one of the folder, as a path.
std::string Run::last_checkpoint() const {
    std::vector<fs::path> saved = checkpoints_in(s.out);
    return saved.empty() ? "none was saved yet" : saved.back().string();
}

void Run::save() {
    require_finite_weights();
    json header{{"config", to_json(config)},
                {"progress", {{"step", step}, {"tokens", tokens}, {"flops", flops}}},
                {"training",
                 {{"flags", flags.values(FlagKind::training)},
                  {"frozen_embedding", frozen_embedding},
                  {"smooth", smooth},
                  {"sampler", sampler->state()},
                  {"precision", PRECISION_NAME},
                  {"device", device_name()}}},
                {"data", data->position()},
                {"lineage", origin}};
    std::vector<TensorSource> sources;
    auto from_device = [](const float* values) {
        return [values](void* dst, int64_t offset, int64_t bytes) {
            copy_to_host(dst, reinterpret_cast<const char*>(values) + offset, bytes, nullptr);
        };
    };
    for (const Tensor& tensor : model->tensors)
        sources.push_back({tensor.name, "F32", tensor.shape, from_device(model->master(tensor)), nullptr, 0, 0});
    for (const Optimizer::State& state : optimizer->states())
        sources.push_back({state.name, "F32", state.shape, from_device(state.values), nullptr, 0, 0});
    if (tokenizer) sources.push_back(source_from_bytes("tokenizer", tokenizer->serialize()));
    std::string path = (fs::path(s.out) / checkpoint_name(step)).string();
    write_checkpoint(path, header, sources);
    bar.clear();
    saved_at = step;
    std::cout << "saved " << path << std::endl;
    log->write({{"event", "save"}, {"step", step}, {"path", path}});
    if (s.keep == 0) return;
    std::vector<fs::path> all = checkpoints_in(s.out);
    auto newest = std::find(all.begin(), all.end(), fs::path(path));
    for (auto old = all.begin(); newest - old >= s.keep; ++old) fs::remove(*old);
}

void Run::save_once() {
    if (saved_at != step) save();
}

int Run::train() {
    for (int signal : {SIGINT, SIGTERM, SIGPIPE}) std::signal(signal, ask_to_stop);   // SIGPIPE: nobody reads stdout any more
    inputs.resize(static_cast<size_t>(s.device_batch) * config.seq_len);
    targets.resize(inputs.size());
    std::printf("peak of matrix products: %.1f GFLOP/s\n", peak_flops * 1e-9);
    if (s.resume.empty() && s.eval_every > 0 && val) report_evaluation();
    while (step < plan.steps && !stop_asked) {
        if (step + 1 == profiled.first) profile_start();
        if (!step_once()) break;
        if (step == profiled.last) report_profile();
        if (due(s.save_every) || step == plan.steps) save_once();
        saved_if_it_fails(data->position(), [&] {
            if (due(s.eval_every) && val) report_evaluation();
            if (due(s.sample_every)) report_sample();
        });
    }
    bar.clear();
    if (step < plan.steps) {
        save_once();
        std::printf("stopped at step %ld of %ld; go on with --resume %s\n", step, plan.steps,
                    (fs::path(s.out) / checkpoint_name(step)).string().c_str());
    }
    std::printf("memory: peak of the process %.1f MiB\n", static_cast<double>(peak_resident_bytes()) / (1 << 20));
    return 0;
}

// ---------------------------------------------------------------------------------------------- what a call does

int Run::evaluate_only() {
    require(parent && s.resume.empty() && !s.val_data.empty(), "--eval needs --init (the checkpoint) and --val-data (the shards)");
    if (s.device_batch == 0) s.device_batch = 1;
    start_data();
    build_model(Mode::evaluate);
    Evaluation result = evaluate(*val);
    std::printf("val_loss: %.7f\nval_bpb: %s\n", result.loss, bpb_text(result.bpb).c_str());
    return 0;
}

int Run::sample_only() {
    require(parent.has_value(), "--sample without --data needs --init: the checkpoint to sample from");
    s.device_batch = 1;
    find_tokenizer();
    require(tokenizer.has_value(), parent->path, ": no tokenizer in it: give --tokenizer");
    build_model(Mode::evaluate);
    cache = std::make_unique<KVCache>(config);
    sampler = std::make_unique<Sampler>(s.temperature, s.top_k, s.seed);
    double rate = sample();
    std::printf("%.1f tok/s\n", rate);
    return 0;
}

int Run::main() {
    require(!s.plan || !s.eval, "--plan and --eval each do nothing else: give one of them");
    open_parent();
    config = resolve_model(s, flags, parent);
    if (s.eval) return evaluate_only();
    if (!s.plan && s.data.empty() && flags.given("--sample")) return sample_only();
    open_embedding();
    plan = resolve_plan(s, config);
    schedule = make_schedule(s, *config.recipe, plan);
    if (flags.given("--sample") && !flags.given("--sample-every")) s.sample_every = plan.steps;
    const int64_t done = s.resume.empty() ? 0 : parent->header["progress"]["step"].get<int64_t>();
    profiled = profiled_steps(s.profile_steps, done, plan.steps);
    if (s.plan) {
        print_plan(config, plan, MemoryPlan(config, s, frozen_embedding));
        return 0;
    }
    require(s.resume.empty() || done < plan.steps, s.resume, ": the run is done: it is at step ", done, " of ", plan.steps, "; give more --steps to go on");

    require(!s.data.empty(), "--data is missing: the shards to train on (or --plan, --eval, --sample)");
    if (s.out.empty() && !s.resume.empty()) s.out = fs::canonical(s.resume).parent_path().string();
    start_data();
    const bool samples = s.sample_every > 0;
    require(!samples || tokenizer,
            "samples need a tokenizer: none lies beside the shards or in the checkpoint; give --tokenizer, or --sample-every 0");
    if (samples) tokenizer->encode(s.sample);   // a build without the encoder refuses it now, not in the middle of the run
    prepare_folder(s);
    print_start();

    peak_flops = device_peak_flops();   // before the model takes its memory
    sampler = std::make_unique<Sampler>(s.temperature, s.top_k, s.seed);
    build_model(Mode::train);
    if (samples) cache = std::make_unique<KVCache>(config);
    if (!s.resume.empty()) {
        resume_state();
        origin = parent->header["lineage"];
    } else {
        std::vector<const Checkpoint*> parents;
        if (parent) parents.push_back(&*parent);
        origin = make_lineage("train", embedding ? concat("frozen wte of ", embedding->content_hash()) : "", parents);
    }
    origin_flops = lineage_flops(origin);
    if (s.overwrite) clear_folder(s);
    log = std::make_unique<Log>(log_path(s.out).string());
    json all = flags.values(FlagKind::model);
    for (FlagKind kind : {FlagKind::training, FlagKind::run}) all.update(flags.values(kind));
    log->write({{"event", "start"},
                {"argv", arguments},
                {"flags", all},
                {"config", to_json(config)},
                {"machine", device_name()},
                {"build", {{"commit", build_commit()}, {"precision", PRECISION_NAME}}},
                {"steps", plan.steps},
                {"flops_per_token", flops_per_token(config)}});
    if (!s.resume.empty()) log->write({{"event", "resume"}, {"step", step}, {"from", s.resume}});
    return train();
}

int main(int argc, char** argv) {
    device_begin(argv);
    mallopt(M_MMAP_THRESHOLD, 1 << 20);   // a large piece goes back to the system when it is freed: memory stays what --plan says
    return run_program("train_gpt", [&] {
        Settings settings;
        Flags flags("train_gpt", "Trains a GPT by a recipe, evaluates it, samples from it.");
        declare(flags, settings);
        if (!flags.parse(argc, argv)) return 0;
        int code = Run(settings, flags, argc, argv).main();
        // Output that nobody reads any more is no error; output that was lost is. (std::cout is stdout.)
        bool printed = std::fflush(stdout) == 0 ? !std::ferror(stdout) : errno == EPIPE;
        require(printed, "stdout: cannot be written: ", std::strerror(errno), "; make room, or send it elsewhere");
        return code;
    }, "use a smaller --device-batch or model (--plan tells the need)");
}
