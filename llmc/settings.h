// What a run of train_gpt is told: every flag, and what the recipe, the file it starts from and other flags make of those left
// open.
//
// A flag is one line here, its name, value, limits and help together, and one place that uses it. One of the model is one row of
// MODEL_SWITCHES in settings.cpp besides.
#pragma once
#include <optional>
#include <string>
#include <vector>
#include "llmc/checkpoint.h"
#include "llmc/config.h"
#include "llmc/io/flags.h"
#include "llmc/layout.h"
#include "llmc/plan.h"
#include "llmc/recipe.h"
#include "llmc/schedule.h"
#include "llmc/tensors.h"

// What the help says of a flag that is left out.
inline std::string model_default(auto ModelLaws::*law) {
    return by_recipe([law](const Recipe& recipe) { return recipe.model.*law; });
}
inline std::string switch_default(bool ModelLaws::*law) {
    return by_recipe([law](const Recipe& recipe) { return recipe.model.*law ? "yes" : "no"; });
}
inline std::string rate_default(double Rates::*rate) {
    return by_recipe([rate](const Recipe& recipe) { return recipe.rates.*rate; });
}

/// Values of the flags. One that holds nothing was not given, and is for the recipe, the file or another flag to decide;
/// Nothing<T>{x}: in checkpoints and log.jsonl nothing is written as x.
struct Settings {
    Settings();
    /// False when help was asked for, and printed.
    bool parse(int argc, char** argv) { return flags.parse(argc, argv); }

    using K = FlagKind;
    template <class T>
    using Maybe = std::optional<T>;
    using Text = Nothing<std::string>;
    using Texts = std::vector<std::string>;
    Flags flags{"train_gpt", "Trains a GPT by a recipe, evaluates it, samples from it."};

    const FlagGroup model{K::model, "Model (left out: the recipe's own; with --init and --resume the file's)"};
    std::string& recipe =
        flags.choice("--recipe", recipes().front()->name, recipe_names(),
                     concat("model, initial values, optimizers and rates (", recipes().front()->name, ")"), model);
    int& depth = flags.number("--depth", 12, 0, MAX_LAYERS, "layers (12)", model);
    Maybe<int>& width = flags.number(
        "--width", Nothing<int>{0}, 8, 1 << 20,
        concat("channels (", model_default(&ModelLaws::width_per_layer), " x depth, rounded up to whole heads)"), model);
    Maybe<int>& heads = flags.number("--heads", Nothing<int>{0}, 1, 1 << 17,
                                     concat("heads (of size ", model_default(&ModelLaws::head_size), ")"), model);
    Maybe<int>& kv_heads =
        flags.number("--kv-heads", Nothing<int>{0}, 1, 1 << 17, "key/value heads, a divisor of heads (heads)", model);
    Maybe<int>& seq_len = flags.number("--seq-len", Nothing<int>{0}, 1, 1 << 24,
                                       concat("tokens of a row (", model_default(&ModelLaws::seq_len), ")"), model);
    Maybe<int>& vocab_size = flags.number("--vocab-size", Nothing<int>{0}, 8, 65536,
                                          concat("a multiple of 8 (", model_default(&ModelLaws::vocab_size), ")"), model);
    Maybe<std::string>& window_pattern = flags.text("--window-pattern", Text{""},
                                                    concat("S (half of seq-len) and L (all), repeated; the last layer sees all (",
                                                           model_default(&ModelLaws::window_pattern), ")"),
                                                    model);
    Maybe<std::string>& activation =
        flags.choice("--activation", Text{""}, {"gelu", "relu2"},
                     concat("of the MLP (", by_recipe([](const Recipe& r) { return name_of(r.model.activation); }), ")"), model);
    Maybe<std::string>& tied = flags.choice("--tied", Text{""}, {"yes", "no"},
                                            concat("the head is the embedding (", switch_default(&ModelLaws::tied), ")"), model);
    Maybe<std::string>& qk_norm =
        flags.choice("--qk-norm", Text{""}, {"yes", "no"},
                     concat("RMSNorm of queries and keys (", switch_default(&ModelLaws::qk_norm), ")"), model);
    Maybe<std::string>& value_embeds =
        flags.choice("--value-embeds", Text{""}, {"pattern", "none"},
                     concat("value embeddings in every second layer, the last included (",
                            by_recipe([](const Recipe& r) { return r.model.value_embeds ? "pattern" : "none"; }), ")"),
                     model);
    Maybe<std::string>& lambdas =
        flags.choice("--lambdas", Text{""}, {"yes", "no"},
                     concat("resid_lambdas and x0_lambdas (", switch_default(&ModelLaws::lambdas), ")"), model);
    Maybe<std::string>& norm_wte = flags.choice(
        "--norm-wte", Text{""}, {"none", "rms_norm", "layer_norm"},
        concat("after the embedding (", by_recipe([](const Recipe& r) { return name_of(r.model.norm_wte); }), ")"), model);
    Maybe<std::string>& norm_lm_head = flags.choice(
        "--norm-lm-head", Text{""}, {"none", "rms_norm", "layer_norm"},
        concat("before the head (", by_recipe([](const Recipe& r) { return name_of(r.model.norm_lm_head); }), ")"), model);
    Maybe<double>& softcap = flags.number("--softcap", Nothing<double>{0}, 0.0, 1e6,
                                          concat("of the logits, 0: none (", model_default(&ModelLaws::softcap), ")"), model);
    Maybe<double>& attn_scale = flags.number(
        "--attn-scale", Nothing<double>{0}, -1e6, 1e6,
        concat("of every layer's attention branch (",
               by_recipe([](const Recipe& r) { return r.model.attn_scale == BranchScale::by_depth ? "1/sqrt(2 depth)" : "1"; }),
               ")"),
        model);

    const FlagGroup of_data{K::run, "Data"}, of_data_kept{K::training, of_data.title};
    Texts& data = flags.texts("--data", "shards to train on: paths and patterns, as in corpus/train_*.bin", of_data);
    Texts& val_data = flags.texts("--val-data", "shards to evaluate on, likewise", of_data);
    Maybe<std::string>& tokenizer =
        flags.text("--tokenizer", Text{""},
                   "tokenizer file, or GPT-2's vocab.bpe (the one beside the shards, else the checkpoint's)", of_data);
    std::string& packing = flags.choice(
        "--packing", "stream", {"stream", "bos-bestfit"},
        "how rows are cut out of the shards of --data (stream; with --init the file's, on the same shards)", of_data_kept);
    Maybe<int64_t>& data_seed =
        flags.at_least("--data-seed", Nothing<int64_t>{-1}, int64_t{0},
                       "shuffles the order of the shards (read sorted; with --init the file's, on the same shards)", of_data_kept);

    const FlagGroup horizon{K::training, concat("Horizon: one of the first three (", by_recipe([](const Recipe& r) {
                                                    return r.horizon.steps > 0 ? concat(r.horizon.steps, " steps")
                                                                               : concat("ratio ", r.horizon.param_data_ratio);
                                                }),
                                                ")")};
    Maybe<int64_t>& steps = flags.at_least("--steps", Nothing<int64_t>{0}, int64_t{1}, "updates", horizon);
    Maybe<double>& total_flops = flags.number("--total-flops", Nothing<double>{0}, 1.0, 1e30, "train for this many FLOPs", horizon);
    Maybe<double>& param_data_ratio = flags.number("--param-data-ratio", Nothing<double>{0}, 1e-9, 1e9,
                                                   "tokens per scaling parameter (block matrices, gates and head)", horizon);
    Maybe<int64_t>& batch_tokens = flags.at_least(
        "--batch-tokens", Nothing<int64_t>{0}, int64_t{1},
        concat("tokens of a step (",
               by_recipe([](const Recipe& r) { return r.scaling ? "by its scaling rule" : concat(r.batch_tokens); }), ")"),
        horizon);
    Maybe<int>& device_batch = flags.at_least("--device-batch", Nothing<int>{0}, 1,
                                              "rows of a micro-batch (the largest up to 8 that divides the batch)", horizon);

    const FlagGroup rates{K::training, "Learning rates and schedule"};
    Maybe<double>& embedding_lr =
        flags.number("--embedding-lr", Nothing<double>{-1}, 0.0, 1e30,
                     concat("of the embedding and value embeddings (", rate_default(&Rates::embedding_lr), ")"), rates);
    Maybe<double>& unembedding_lr =
        flags.number("--unembedding-lr", Nothing<double>{-1}, 0.0, 1e30,
                     concat("of the head where it is not tied (", rate_default(&Rates::unembedding_lr), ")"), rates);
    Maybe<double>& matrix_lr = flags.number("--matrix-lr", Nothing<double>{-1}, 0.0, 1e30,
                                            concat("of the layers' matrices (", rate_default(&Rates::matrix_lr), ")"), rates);
    Maybe<double>& scalar_lr =
        flags.number("--scalar-lr", Nothing<double>{-1}, 0.0, 1e30,
                     concat("of the lambdas (", rate_default(&Rates::scalar_lr), "); resid_lambdas get of it ",
                            by_recipe([](const Recipe& r) { return r.groups.resid_scalar.factor; })),
                     rates);
    Maybe<double>& weight_decay =
        flags.number("--weight-decay", Nothing<double>{-1}, 0.0, 1e6,
                     concat("of what decays in the recipe (", rate_default(&Rates::weight_decay), ")"), rates);
    Maybe<int64_t>& warmup_steps = flags.at_least(
        "--warmup-steps", Nothing<int64_t>{-1}, int64_t{0},
        concat("steps of linear warmup (", by_recipe([](const Recipe& r) { return r.schedule.warmup_steps; }), ")"), rates);
    Maybe<double>& warmdown_ratio =
        flags.number("--warmdown-ratio", Nothing<double>{-1}, 0.0, 10.0,
                     concat("part of the steps over which the rate falls to 0; above 1 the fall began before step 1, 0: never decays (",
                            by_recipe([](const Recipe& r) { return r.schedule.warmdown_ratio; }), ")"),
                     rates);
    Maybe<int64_t>& warmdown_steps =
        flags.at_least("--warmdown-steps", Nothing<int64_t>{-1}, int64_t{0}, "the same in steps", rates);
    Maybe<std::string>& warmdown_shape =
        flags.choice("--warmdown-shape", Text{}, fall_names(),
                     concat("how they fall (", by_recipe([](const Recipe& r) { return name_of(r.schedule.fall); }), ")"), rates);
    bool& no_scaling = flags.toggle("--no-scaling",
                                    concat("turns the scaling rules for batch, learning rates and decay off (has them: ",
                                           by_recipe([](const Recipe& r) { return r.scaling ? "yes" : "no"; }), ")"),
                                    rates);

    Maybe<std::string>& train_only =
        flags.text("--train-only", Text{},
                   "trains these tensors alone, the others are frozen: names with * for any characters and a-b for layers, as in\n"
                   "h.6-11.*,lm_head (all)",
                   FlagGroup{K::training, rates.title});

    const FlagGroup stacking{K::run, "Looping and shared embeddings (the stacking study)"},
        stacking_kept{K::training, stacking.title};
    int64_t& coconut_every =
        flags.at_least("--coconut-every", int64_t{0}, int64_t{0},
                       "every n-th step, the first too, adds a pass on the latents; 0: never (0)", stacking_kept);
    std::string& coconut_targets =
        flags.choice("--coconut-targets", "same", {"same", "next"},
                     "whose targets that pass gets, this micro-batch's or the next one's (same)", stacking_kept);
    Maybe<std::string>& embeddings_from =
        flags.text("--embeddings-from", Text{""}, "takes wte from this checkpoint and freezes it", stacking);

    const FlagGroup run{K::run, "Run (0 in --save-every, --eval-every, --sample-every: never)"}, run_kept{K::training, run.title};
    Maybe<std::string>& out =
        flags.text("--out", Text{""}, "folder for checkpoints and log.jsonl (with --resume: the checkpoint's own)", run);
    bool& overwrite = flags.toggle("--overwrite", "removes the run that --out already holds", run);
    Maybe<std::string>& resume =
        flags.text("--resume", Text{""}, "goes on exactly where this checkpoint's run stopped, with its settings", run);
    Maybe<std::string>& init = flags.text(
        "--init", Text{""}, "starts from this checkpoint's weights: data goes on, optimizer and schedule as the next two say", run);
    uint64_t& seed = flags.at_least("--seed", uint64_t{42}, uint64_t{0}, "of initial weights and samples (42)", run_kept);
    Maybe<std::string>& optimizer = flags.choice("--optimizer", Text{}, {"reset", "keep"},
                                                 "with --init: its state, from nothing or from the checkpoint (reset)", run);
    Maybe<std::string>& schedule =
        flags.choice("--schedule", Text{}, {"restart", "continue"},
                     "with --init: restart counts from step 0; continue goes on where the checkpoint's runs were since the last\n"
                     "restart, grown or not, and --steps, --total-flops and --param-data-ratio count these too (restart)",
                     run);
    Maybe<int64_t>& stop_at_step =
        flags.at_least("--stop-at-step", Nothing<int64_t>{}, int64_t{1},
                       "saves after this step and ends; the schedule stays that of the whole run, which --resume finishes", run);
    int64_t& save_every = flags.at_least("--save-every", int64_t{0}, int64_t{0},
                                         "steps between checkpoints; there is always one at the end (0)", run);
    int64_t& keep = flags.at_least("--keep", int64_t{0}, int64_t{0}, "keeps only the last n checkpoints; 0: all (0)", run);
    int64_t& eval_every =
        flags.at_least("--eval-every", int64_t{250}, int64_t{0}, "steps between evaluations; also at start and end (250)", run);
    int64_t& eval_tokens =
        flags.at_least("--eval-tokens", int64_t{10485760}, int64_t{1}, "tokens of an evaluation, at most one pass (10485760)", run);
    Maybe<int64_t>& sample_every =
        flags.at_least("--sample-every", Nothing<int64_t>{0}, int64_t{0},
                       "steps between samples of text; also at the end (0; with --sample: only at the end)", run);
    Maybe<std::string>& sample =
        flags.text("--sample", Text{""}, "beginning of the samples; without --data: print one and exit", run, true);
    int& sample_tokens = flags.number("--sample-tokens", 128, 1, 1 << 24, "length of a sample (128)", run);
    double& temperature = flags.number("--temperature", 0.8, 0.0, 1e6, "of sampling; 0 takes the likeliest token (0.8)", run);
    int& top_k = flags.number("--top-k", 50, 0, 65536, "sample among the k likeliest tokens; 0: among all (50)", run);
    Maybe<std::string>& profile_steps = flags.text(
        "--profile-steps", Text{""},
        "first:last, steps to profile: on the CPU a table of where their time went; on a GPU the profiler that waits for it starts "
        "and stops there (make profile)",
        run);
    const FlagGroup several{K::run, "Several processes (started by mpirun or srun: dev/cluster.md)"}, several_kept{K::training, several.title};
    Maybe<int>& parts = flags.number("--parts", Nothing<int>{}, 1, MAX_PROCESSES,
                                     "into which a step's micro-batches are cut, a power of two; any number of processes that divides it gives the\n"
                                     "same bits (the number of processes where the run began)",
                                     several_kept);
    std::string& meet = flags.text("--meet", "", "a file that all processes see, by which those on GPUs meet where there is no MPI", several);
    double& deadline = flags.number("--deadline", 600.0, 1.0, 1e6, "seconds that a process waits for others before it ends the job (600)", several);
    Maybe<int>& processes = flags.number("--processes", Nothing<int>{}, 1, MAX_PROCESSES, "with --plan: what each of so many would hold and send", several);

    bool& plan = flags.toggle("--plan", "prints sizes, FLOPs, steps and memory, and does nothing else", run);
    Maybe<std::string>& describe =
        flags.text("--describe", Text{},
                   "prints a checkpoint's configuration, where its layers come from, its family and what was spent\n"
                   "on all of it, and does nothing else",
                   run);
    bool& json = flags.toggle("--json", "prints --describe as JSON, on one line", run);
    bool& eval = flags.toggle("--eval", "prints loss and bits per byte of --init on --val-data, and does nothing else", run);
};

/// The model of this call: the file's, or else the flags'. Flags that were left open get its values. Throws std::invalid_argument
/// when a flag contradicts the file, or the flags describe no model.
GPTConfig resolve_model(Settings& s, const std::optional<Checkpoint>& from);

/// --resume: flags that were not given become those that the run was started with. Returns a line for each that was given and
/// differs. `training`: what the checkpoint kept of them.
std::vector<std::string> resume_flags(Settings& s, const nlohmann::json& training);

/// What trains, by --train-only; frozen_embedding: wte does not.
Trained resolve_trained(const Settings& s, const GPTConfig& config, bool frozen_embedding);

/// Whose share of the run this process has. Throws std::invalid_argument where so many processes cannot share it.
Job resolve_job(Settings& s, int rank, int processes);

/// Fills what the flags left to the recipe, and gives the horizon. before: of the schedule that this run continues. Throws
/// std::invalid_argument for what cannot be planned.
Plan resolve_plan(Settings& s, const GPTConfig& config, const Trained& trained, const Position& before);
Schedule make_schedule(const Settings& s, const Recipe& recipe, const Plan& plan);
/// Learning rates and decay of the run, before the schedule.
Rates scaled_rates(const Settings& s, const Plan& plan);

/// Steps `first` to `last`, counted from 1; 0 and 0: none.
struct StepRange {
    int64_t first = 0, last = 0;
};
/// Of --profile-steps. done, steps: of the run, before this call and in all.
StepRange profiled_steps(const Settings& s, int64_t done, int64_t steps);
