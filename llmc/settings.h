// The settings of a run of train_gpt: every flag, and how flags that were not given are resolved from the recipe, the checkpoint
// and other flags.
//
// A flag is one declaration here, with name, default, limits and help, and one place that uses it. A flag of the model also needs a
// row of MODEL_SWITCHES in settings.cpp.
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

// The recipes' defaults, as the help shows them.
inline std::string model_default(auto ModelLaws::*law) {
    return by_recipe([law](const Recipe& recipe) { return recipe.model.*law; });
}
inline std::string switch_default(bool ModelLaws::*law) {
    return by_recipe([law](const Recipe& recipe) { return recipe.model.*law ? "yes" : "no"; });
}
inline std::string rate_default(double Rates::*rate) {
    return by_recipe([rate](const Recipe& recipe) { return recipe.rates.*rate; });
}

/// Values of the flags. An empty optional was not given: the recipe, the checkpoint or another flag decides.
/// Nothing<T>{x}: checkpoints and log.jsonl hold x for a flag that was not given.
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

    const FlagGroup model{K::model, "Model (defaults: the recipe's; with --init and --resume the checkpoint's)"};
    std::string& recipe =
        flags.choice("--recipe", recipes().front()->name, recipe_names(),
                     concat("model, initial values, optimizers and rates (", recipes().front()->name, ")"), model);
    int& depth = flags.number("--depth", 12, 0, MAX_LAYERS, "layers (12)", model);
    Maybe<int>& width = flags.number(
        "--width", Nothing<int>{0}, 8, 1 << 20,
        concat("channels (", model_default(&ModelLaws::width_per_layer), " x depth, rounded up to whole heads)"), model);
    Maybe<int>& heads = flags.number("--heads", Nothing<int>{0}, 1, 1 << 17,
                                     concat("attention heads (width / head size, which is ", model_default(&ModelLaws::head_size), ")"), model);
    Maybe<int>& kv_heads =
        flags.number("--kv-heads", Nothing<int>{0}, 1, 1 << 17, "key/value heads, a divisor of --heads (as many as --heads)", model);
    Maybe<int>& seq_len = flags.number("--seq-len", Nothing<int>{0}, 1, 1 << 24,
                                       concat("sequence length: tokens per row (", model_default(&ModelLaws::seq_len), ")"), model);
    Maybe<int>& vocab_size = flags.number("--vocab-size", Nothing<int>{0}, 8, 65536,
                                          concat("vocabulary size, a multiple of 8 (", model_default(&ModelLaws::vocab_size), ")"), model);
    Maybe<std::string>& window_pattern = flags.text("--window-pattern", Text{""},
                                                    concat("attention windows, a letter per layer, repeated: L full, S half of seq-len; the last layer is L (",
                                                           model_default(&ModelLaws::window_pattern), ")"),
                                                    model);
    Maybe<std::string>& activation =
        flags.choice("--activation", Text{""}, {"gelu", "relu2"},
                     concat("activation of the MLP (", by_recipe([](const Recipe& r) { return name_of(r.model.activation); }), ")"), model);
    Maybe<std::string>& tied = flags.choice("--tied", Text{""}, {"yes", "no"},
                                            concat("ties the head to the embedding (", switch_default(&ModelLaws::tied), ")"), model);
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
                     concat("learned scalars per layer: resid_lambdas on the residual stream, x0_lambdas on the embedding (",
                            switch_default(&ModelLaws::lambdas), ")"),
                     model);
    Maybe<std::string>& norm_wte = flags.choice(
        "--norm-wte", Text{""}, {"none", "rms_norm", "layer_norm"},
        concat("norm after the embedding (", by_recipe([](const Recipe& r) { return name_of(r.model.norm_wte); }), ")"), model);
    Maybe<std::string>& norm_lm_head = flags.choice(
        "--norm-lm-head", Text{""}, {"none", "rms_norm", "layer_norm"},
        concat("norm before the head (", by_recipe([](const Recipe& r) { return name_of(r.model.norm_lm_head); }), ")"), model);
    Maybe<double>& softcap = flags.number("--softcap", Nothing<double>{0}, 0.0, 1e6,
                                          concat("softcap of the logits; 0: none (", model_default(&ModelLaws::softcap), ")"), model);
    Maybe<double>& attn_scale = flags.number(
        "--attn-scale", Nothing<double>{0}, -1e6, 1e6,
        concat("scale of every layer's attention branch (",
               by_recipe([](const Recipe& r) { return r.model.attn_scale == BranchScale::by_depth ? "1/sqrt(2 depth)" : "1"; }),
               ")"),
        model);

    const FlagGroup of_data{K::run, "Data"}, of_data_kept{K::training, of_data.title};
    Texts& data = flags.texts("--data", "shards to train on: paths and glob patterns, as in corpus/train_*.bin", of_data);
    Texts& val_data = flags.texts("--val-data", "shards to evaluate on, likewise", of_data);
    Maybe<std::string>& tokenizer =
        flags.text("--tokenizer", Text{""},
                   "tokenizer file, or GPT-2's vocab.bpe (the one beside the shards, else the checkpoint's)", of_data);
    std::string& packing = flags.choice(
        "--packing", "stream", {"stream", "bos-bestfit"},
        "how rows are made of documents: stream cuts one stream of tokens; bos-bestfit begins every row with bos and packs documents by best fit\n"
        "(stream; with --init the checkpoint's, on the same shards)", of_data_kept);
    Maybe<int64_t>& data_seed =
        flags.at_least("--data-seed", Nothing<int64_t>{-1}, int64_t{0},
                       "seed that shuffles the order of the shards (not shuffled; with --init the checkpoint's, on the same shards)", of_data_kept);

    const FlagGroup horizon{K::training, concat("Length of the run: one of the first three (", by_recipe([](const Recipe& r) {
                                                    return r.horizon.steps > 0 ? concat(r.horizon.steps, " steps")
                                                                               : concat("ratio ", r.horizon.param_data_ratio);
                                                }),
                                                ")")};
    Maybe<int64_t>& steps = flags.at_least("--steps", Nothing<int64_t>{0}, int64_t{1}, "train for this many steps", horizon);
    Maybe<double>& total_flops = flags.number("--total-flops", Nothing<double>{0}, 1.0, 1e30, "train for this many FLOPs", horizon);
    Maybe<double>& param_data_ratio = flags.number("--param-data-ratio", Nothing<double>{0}, 1e-9, 1e9,
                                                   "train for this many tokens per matmul parameter (matrices of the layers, gates and head)", horizon);
    Maybe<int64_t>& batch_tokens = flags.at_least(
        "--batch-tokens", Nothing<int64_t>{0}, int64_t{1},
        concat("tokens per step (",
               by_recipe([](const Recipe& r) { return r.scaling ? "by its scaling rule" : concat(r.batch_tokens); }), ")"),
        horizon);
    Maybe<int>& device_batch = flags.at_least("--device-batch", Nothing<int>{0}, 1,
                                              "rows per micro-batch (the largest up to 8 that divides the batch)", horizon);

    const FlagGroup rates{K::training, "Learning rates and schedule"};
    Maybe<double>& embedding_lr =
        flags.number("--embedding-lr", Nothing<double>{-1}, 0.0, 1e30,
                     concat("learning rate of the embedding and value embeddings (", rate_default(&Rates::embedding_lr), ")"), rates);
    Maybe<double>& unembedding_lr =
        flags.number("--unembedding-lr", Nothing<double>{-1}, 0.0, 1e30,
                     concat("learning rate of the head where it is not tied (", rate_default(&Rates::unembedding_lr), ")"), rates);
    Maybe<double>& matrix_lr = flags.number("--matrix-lr", Nothing<double>{-1}, 0.0, 1e30,
                                            concat("learning rate of the layers' matrices (", rate_default(&Rates::matrix_lr), ")"), rates);
    Maybe<double>& scalar_lr =
        flags.number("--scalar-lr", Nothing<double>{-1}, 0.0, 1e30,
                     concat("learning rate of the lambdas (", rate_default(&Rates::scalar_lr), "); that of resid_lambdas is multiplied by ",
                            by_recipe([](const Recipe& r) { return r.groups.resid_scalar.factor; })),
                     rates);
    Maybe<double>& weight_decay =
        flags.number("--weight-decay", Nothing<double>{-1}, 0.0, 1e6,
                     concat("weight decay of the tensors that the recipe decays (", rate_default(&Rates::weight_decay), ")"), rates);
    Maybe<int64_t>& warmup_steps = flags.at_least(
        "--warmup-steps", Nothing<int64_t>{-1}, int64_t{0},
        concat("steps of linear warmup (", by_recipe([](const Recipe& r) { return r.schedule.warmup_steps; }), ")"), rates);
    Maybe<double>& warmdown_ratio =
        flags.number("--warmdown-ratio", Nothing<double>{-1}, 0.0, 10.0,
                     concat("last fraction of the steps, over which the learning rates fall to 0; above 1: they start already partly decayed;\n"
                            "0: they never decay (",
                            by_recipe([](const Recipe& r) { return r.schedule.warmdown_ratio; }), ")"),
                     rates);
    Maybe<int64_t>& warmdown_steps =
        flags.at_least("--warmdown-steps", Nothing<int64_t>{-1}, int64_t{0}, "the same in steps", rates);
    Maybe<std::string>& warmdown_shape =
        flags.choice("--warmdown-shape", Text{}, fall_names(),
                     concat("how the learning rates fall during warmdown (", by_recipe([](const Recipe& r) { return name_of(r.schedule.fall); }), ")"), rates);
    bool& no_scaling = flags.toggle("--no-scaling",
                                    concat("turns off the scaling of batch, learning rates and weight decay with the model's size (has it: ",
                                           by_recipe([](const Recipe& r) { return r.scaling ? "yes" : "no"; }), ")"),
                                    rates);

    Maybe<std::string>& train_only =
        flags.text("--train-only", Text{},
                   "trains only these tensors and freezes the others: names, with * for any characters and a-b for a range of layers,\n"
                   "as in h.6-11.*,lm_head (all)",
                   FlagGroup{K::training, rates.title});

    const FlagGroup stacking{K::run, "Looping and shared embeddings (the stacking study)"},
        stacking_kept{K::training, stacking.title};
    int64_t& coconut_every =
        flags.at_least("--coconut-every", int64_t{0}, int64_t{0},
                       "every n-th step, the first too, adds a second pass that takes the latents of the first in place of token\n"
                       "embeddings; 0: never (0)",
                       stacking_kept);
    std::string& coconut_targets =
        flags.choice("--coconut-targets", "same", {"same", "next"},
                     "targets of that pass: those of this micro-batch, or of the next one (same)", stacking_kept);
    Maybe<std::string>& embeddings_from =
        flags.text("--embeddings-from", Text{""}, "takes the embedding (wte) from this checkpoint and freezes it", stacking);

    const FlagGroup run{K::run, "Run (0 in --save-every, --eval-every, --sample-every: never)"}, run_kept{K::training, run.title};
    Maybe<std::string>& out =
        flags.text("--out", Text{""}, "folder for checkpoints and log.jsonl (with --resume: the checkpoint's folder)", run);
    bool& overwrite = flags.toggle("--overwrite", "removes the run that --out already holds", run);
    Maybe<std::string>& resume =
        flags.text("--resume", Text{""}, "continues this checkpoint's run exactly where it stopped, with its settings", run);
    Maybe<std::string>& init = flags.text(
        "--init", Text{""}, "starts a new run from this checkpoint's weights and data position; optimizer and schedule: see --optimizer, --schedule", run);
    uint64_t& seed = flags.at_least("--seed", uint64_t{42}, uint64_t{0}, "seed of initial weights and samples (42)", run_kept);
    Maybe<std::string>& optimizer = flags.choice("--optimizer", Text{}, {"reset", "keep"},
                                                 "with --init: resets the optimizer's state, or keeps the checkpoint's (reset)", run);
    Maybe<std::string>& schedule =
        flags.choice("--schedule", Text{}, {"restart", "continue"},
                     "with --init: restart starts the schedule at step 0; continue resumes the checkpoint's schedule, also through grow and\n"
                     "stack, and --steps, --total-flops and --param-data-ratio then include the earlier runs (restart)",
                     run);
    Maybe<int64_t>& stop_at_step =
        flags.at_least("--stop-at-step", Nothing<int64_t>{}, int64_t{1},
                       "saves after this step and ends; the schedule stays that of the whole run, which --resume can finish", run);
    int64_t& save_every = flags.at_least("--save-every", int64_t{0}, int64_t{0},
                                         "steps between checkpoints; there is always one at the end (0)", run);
    int64_t& keep = flags.at_least("--keep", int64_t{0}, int64_t{0}, "keeps only the last n checkpoints; 0: all (0)", run);
    int64_t& eval_every =
        flags.at_least("--eval-every", int64_t{250}, int64_t{0}, "steps between evaluations; also at start and end (250)", run);
    int64_t& eval_tokens =
        flags.at_least("--eval-tokens", int64_t{10485760}, int64_t{1}, "tokens per evaluation, at most one pass over --val-data (10485760)", run);
    Maybe<int64_t>& sample_every =
        flags.at_least("--sample-every", Nothing<int64_t>{0}, int64_t{0},
                       "steps between samples of text; also at the end (0; with --sample: only at the end)", run);
    Maybe<std::string>& sample =
        flags.text("--sample", Text{""}, "prompt of the samples; without --data: print one and exit", run, true);
    int& sample_tokens = flags.number("--sample-tokens", 128, 1, 1 << 24, "tokens per sample (128)", run);
    double& temperature = flags.number("--temperature", 0.8, 0.0, 1e6, "temperature of sampling; 0: always the most likely token (0.8)", run);
    int& top_k = flags.number("--top-k", 50, 0, 65536, "sample from the k most likely tokens; 0: from all (50)", run);
    Maybe<std::string>& profile_steps = flags.text(
        "--profile-steps", Text{""},
        "first:last, steps to profile: on the CPU prints a table of where their time went; on a GPU starts and stops an attached profiler\n"
        "there (Nsight, as make profile does)",
        run);
    const FlagGroup several{K::run, "Several processes (started by mpirun or srun: dev/cluster.md)"}, several_kept{K::training, several.title};
    Maybe<int>& parts = flags.number("--parts", Nothing<int>{}, 1, MAX_PROCESSES,
                                     "parts into which the micro-batches of a step are divided, a power of two; every number of processes that\n"
                                     "divides it gives bitwise equal results (the number of processes that the run began with)",
                                     several_kept);
    std::string& meet = flags.text("--meet", "", "a file on a shared disk, through which processes on GPUs find each other without MPI", several);
    double& deadline = flags.number("--deadline", 600.0, 1.0, 1e6, "seconds that a process waits for the others before it ends the job (600)", several);
    Maybe<int>& processes = flags.number("--processes", Nothing<int>{}, 1, MAX_PROCESSES, "with --plan: plans for this many processes", several);

    bool& plan = flags.toggle("--plan", "prints sizes, FLOPs, steps and memory, and does nothing else", run);
    Maybe<std::string>& describe =
        flags.text("--describe", Text{},
                   "prints a checkpoint's configuration, the origin of its layers, its family tree, and the tokens and FLOPs\n"
                   "spent on the whole family, and does nothing else",
                   run);
    bool& json = flags.toggle("--json", "prints --describe as JSON, on one line", run);
    bool& eval = flags.toggle("--eval", "prints loss and bits per byte of --init on --val-data, and does nothing else", run);
};

/// The model of this call: the checkpoint's, or else that of the flags. Flags that were not given get its values. Throws
/// std::invalid_argument when a flag contradicts the checkpoint, or the flags make no valid model.
GPTConfig resolve_model(Settings& s, const std::optional<Checkpoint>& from);

/// --resume: flags that were not given get the values that the run was started with. Returns a line for each that was given and
/// differs. `training`: the values in the checkpoint.
std::vector<std::string> resume_flags(Settings& s, const nlohmann::json& training);

/// The tensors that train, by --train-only; frozen_embedding: wte does not train.
Trained resolve_trained(const Settings& s, const GPTConfig& config, bool frozen_embedding);

/// The job that this process is part of. Throws std::invalid_argument when so many processes cannot share the run.
Job resolve_job(Settings& s, int rank, int processes);

/// Fills in the flags that were left to the recipe, and returns the plan of the run. before: progress in a schedule that this run
/// continues. Throws std::invalid_argument for what cannot be planned.
Plan resolve_plan(Settings& s, const GPTConfig& config, const Trained& trained, const Position& before);
Schedule make_schedule(const Settings& s, const Recipe& recipe, const Plan& plan);
/// Learning rates and weight decay of the run after the scaling rules, before the schedule.
Rates scaled_rates(const Settings& s, const Plan& plan);

/// Steps `first` to `last`, counted from 1; 0 and 0: none.
struct StepRange {
    int64_t first = 0, last = 0;
};
/// Parses --profile-steps. done: steps of the run before this call; steps: its last one.
StepRange profiled_steps(const Settings& s, int64_t done, int64_t steps);
