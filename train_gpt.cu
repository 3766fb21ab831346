// The trainer. Read it top to bottom: main(), then a run from start to end (open, plan, build, loop, evaluate, save), then details.
#include <malloc.h>
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
#include "llmc/agree.h"
#include "llmc/checkpoint.h"
#include "llmc/describe.h"
#include "llmc/device/device.h"
#include "llmc/device/profile.h"
#include "llmc/generate.h"
#include "llmc/gpt.h"
#include "llmc/io/build.h"
#include "llmc/io/hash.h"
#include "llmc/io/json.h"
#include "llmc/io/launcher.h"
#include "llmc/io/log.h"
#include "llmc/io/process.h"
#include "llmc/lineage.h"
#include "llmc/load.h"
#include "llmc/memory_plan.h"
#include "llmc/ops/comm.h"
#include "llmc/ops/peak.h"
#include "llmc/ops/reduce.h"
#include "llmc/optimizer.h"
#include "llmc/plan.h"
#include "llmc/run_folder.h"
#include "llmc/save.h"
#include "llmc/schedule.h"
#include "llmc/settings.h"
#include "llmc/tensors.h"
#include "llmc/text/dataloader.h"
#include "llmc/text/sampler.h"
#include "llmc/text/tokenizer.h"
#include "llmc/training_data.h"

namespace fs = std::filesystem;
using nlohmann::json;

using Arguments = std::vector<std::string>;
static int run(Settings& s, const Arguments& arguments, Comm& comm);

static volatile std::sig_atomic_t stop_asked = 0;
static void ask_to_stop(int) { stop_asked = 1; }

int main(int argc, char** argv) {
    device_begin(argv);
    mallopt(M_MMAP_THRESHOLD, 1 << 20);   // large blocks go back to the system when they are freed, so that memory stays at what --plan says
    const char* more_memory = "use a smaller --device-batch or model (--plan prints what it needs)";
    return run_program("train_gpt", [&] {
        Settings settings;
        if (!settings.parse(argc, argv)) return 0;
        Comm comm({.deadline = settings.deadline, .meet = settings.meet, .stop = &stop_asked});
        if (comm.rank() > 0) {   // only rank 0 prints what all of them would print
            warnings_on = false;
            if (!std::freopen("/dev/null", "w", stdout)) fail("stdout cannot be turned off: ", std::strerror(errno));
        }
        return run_job(comm, [&] {
            int code = run(settings, {argv, argv + argc}, comm);
            require_printed();
            return code;
        }, more_memory);
    }, more_memory);
}

// ------------------------------------------------------------------------------------------- the parts of a run

/// The model of this call, and the checkpoint that it comes from.
struct Opened {
    std::optional<Checkpoint> parent;    ///< --init or --resume
    bool frozen_embedding = false;       ///< whether the resumed run froze its embedding
    GPTConfig config;
};

/// The plan of a training run; nothing is allocated for it.
struct Planned {
    std::optional<Checkpoint> embedding;   ///< --embeddings-from
    Trained trained;
    Job job;                               ///< rank and number of processes
    json lineage;                          ///< for this run's checkpoints
    Position before;                       ///< progress of earlier runs in the same schedule
    int64_t done;                          ///< steps of this run before this call
    int64_t last;                          ///< step at which this call ends
    Plan plan;
    Schedule schedule;
    StepRange profiled;                    ///< --profile-steps
    bool samples;
};

struct Evaluation {
    double loss = 0;
    std::optional<double> bpb;   ///< nothing when bytes per token are not known
};

/// Mean loss over the first --eval-tokens of the validation data, and bits per byte of their text.
class Evaluator {
public:
    Evaluator(GPT& evaluated, DataLoader& val, const std::optional<Tokenizer>& of_val, int64_t most_tokens, Comm& with)
        : model(evaluated), loader(val), tokenizer(of_val), eval_tokens(most_tokens), comm(with) {}
    /// Nothing when any process was asked to stop meanwhile.
    std::optional<Evaluation> evaluate();

private:
    struct Sums {
        double nats = 0, text_nats = 0;
        int64_t bytes = 0;
        bool stop = false, failed = false;
    };
    Sums sums_of(const std::vector<float>& losses, const std::vector<int>& targets) const;
    int64_t batches();
    GPT& model;
    DataLoader& loader;
    const std::optional<Tokenizer>& tokenizer;
    const int64_t eval_tokens;
    Comm& comm;
    int64_t one_pass = 0;   // micro-batches of the validation data, once they are counted
};

/// One metric of a step: printed, in log.jsonl, or both. A new metric is an entry of step_metrics().
struct Metric {
    std::string key;    ///< in log.jsonl; empty: not logged
    json value;
    std::string text;   ///< on the printed line; empty: not printed
};

/// A training run. The constructor allocates everything; run() goes from the first step, or from where the run was stopped, to the last.
class Training {
public:
    Training(const Settings& settings, const Opened& opened, const Planned& planned, TrainingData& with,
             const Arguments& arguments, Comm& others);
    int run();

private:
    struct StepTime {
        double seconds, tokens_per_second, mfu, left;   // left: seconds until the last step
    };
    json telling(json flags) const;
    json new_identity(const json& of) const;
    void load_optimizer(const Checkpoint& parent);
    void resume(const Checkpoint& parent);
    void log_start(const Arguments& arguments);
    bool step_once();
    std::string train_share(bool loops, bool& finished);
    bool all_finished(const std::string& error, bool finished, const json& place);
    StepTime time_of_step(double seconds, bool loops);
    std::vector<Metric> step_metrics(const StepSums& sums, double lr, const StepTime& time, bool loops) const;
    void report_step(const std::vector<Metric>& metrics, double seconds_left);
    void report_evaluation();
    void report_sample();
    void report_profile();
    void save();
    void save_once();
    void tell(const json& line);
    template <class Work>
    void saved_if_it_fails(const json& place, Work work);
    [[noreturn]] void diagnose(const StepSums& sums, const json& place);
    void require_finite_weights();
    std::string last_checkpoint() const;
    bool loops_at(int64_t at) const { return s.coconut_every > 0 && at % s.coconut_every == 0; }
    bool due(int64_t every) const { return every > 0 && (step % every == 0 || step == plan.steps); }

    const Settings& s;
    const Planned& planned;
    const Plan& plan;
    TrainingData& data;
    Comm& comm;
    const RunFolder folder;
    const double peak_flops;   // measured before the model takes its memory
    const double token_flops;  // of one token, forward and backward, with what is frozen taken into account
    Sampler sampler;
    std::unique_ptr<GPT> model;
    Optimizer optimizer;
    std::optional<KVCache> cache;         // only with --sample or --sample-every
    std::optional<Evaluator> evaluator;   // only with --val-data
    double origin_flops;                  // FLOPs of all ancestors in its lineage
    int64_t updates;                      // that the kept optimizer state had before this run began
    json identities;                      // training.runs of its checkpoints (llmc/lineage.h)
    std::optional<Log> log;               // only at rank 0
    ProgressBar bar;
    bool stopping = false;                // some process was asked to stop

    int64_t step = 0, tokens = 0;   // updates done, tokens seen
    double flops = 0;               // spent
    double smooth = 0;              // running mean of the last micro-batch's loss, not yet debiased
    int64_t saved_at = -1;          // step of this call's last checkpoint
    double step_seconds = 0;        // running mean
    std::vector<int> inputs, targets, following;
};

static Opened open_model(Settings& s);
static Planned plan_run(Settings& s, const Opened& opened, int rank, int processes);
static std::unique_ptr<GPT> build_model(const Settings& s, const Opened& opened, Mode mode, const Planned* planned);
static std::unique_ptr<GPT> build_models(const Settings& s, const Opened& opened, Mode mode, const Planned* planned, Comm& comm);
static void require_one_job(const Settings& s, const Opened& opened, const Planned& planned, const TrainingData& data, Comm& comm);
static MemoryNeed memory_need(const Settings& s, const Opened& opened, const Planned& planned);
static void print_plan(const GPTConfig& config, const Planned& planned, const MemoryPlan& memory);
static void print_start(const Settings& s, const Opened& opened, const Planned& planned, const TrainingData& data, const Comm& comm);
static std::string bpb_text(const std::optional<double>& bpb);

// ------------------------------------------------------------------------------------------- the modes of a call

static int evaluate_only(Settings& s, const Opened& opened, Comm& comm) {
    require(s.init && !s.val_data.empty(), "--eval needs --init (the checkpoint) and --val-data (the shards)");
    if (!s.device_batch) s.device_batch = 1;
    std::unique_ptr<DataLoader> val;
    std::optional<Tokenizer> tokenizer;
    together(comm, [&] {
        val = open_validation(s, opened.config, comm.rank(), comm.count());
        tokenizer = find_tokenizer(s, opened.parent, opened.config, {val.get()});
    });
    std::unique_ptr<GPT> model = build_models(s, opened, Mode::evaluate, nullptr, comm);
    const Evaluation result = *Evaluator(*model, *val, tokenizer, s.eval_tokens, comm).evaluate();
    std::printf("val_loss: %.7f\nval_bpb: %s\n", result.loss, bpb_text(result.bpb).c_str());
    return 0;
}

static int sample_only(Settings& s, const Opened& opened, Comm& comm) {
    require(opened.parent.has_value(), "--sample without --data needs --init: the checkpoint to sample from");
    s.device_batch = 1;
    std::optional<Tokenizer> tokenizer = find_tokenizer(s, opened.parent, opened.config, {});
    require(tokenizer.has_value(), opened.parent->path, ": no tokenizer in it: give --tokenizer");
    if (comm.rank() > 0) return 0;   // nothing to share
    std::unique_ptr<GPT> model = build_model(s, opened, Mode::evaluate, nullptr);
    KVCache cache(opened.config);
    cache.allocate();
    Sampler sampler(s.temperature, s.top_k, s.seed);
    double rate = generate(*model, cache, sampler, *tokenizer, *s.sample, s.sample_tokens, std::cout, stop_asked);
    std::printf("%.1f tok/s\n", rate);
    return 0;
}

static int describe_only(const Settings& s) {
    require(!s.init && !s.resume, "--describe names a checkpoint itself; leave --init and --resume out");
    const json description = describe(open_checkpoint(*s.describe));
    std::cout << (s.json ? dump_json(description) + "\n" : text_of_description(description));
    return 0;
}

static int run(Settings& s, const Arguments& arguments, Comm& comm) {
    require(s.plan + s.eval + s.describe.has_value() <= 1, "--plan, --eval and --describe each do nothing else: give one of them");
    require(!s.json || s.describe, "--json is for --describe; give --describe with a checkpoint too");
    require(!s.processes || s.plan, "--processes is for --plan alone; start the processes of a run by a launcher (mpirun -n ", s.processes.value_or(0),
            "), or give --plan too");
    if (s.describe) return comm.rank() == 0 ? describe_only(s) : 0;
    Opened opened;
    together(comm, [&] { opened = open_model(s); });
    if (s.eval) return evaluate_only(s, opened, comm);
    if (!s.plan && s.data.empty() && s.sample) return sample_only(s, opened, comm);

    Planned planned;
    together(comm, [&] { planned = plan_run(s, opened, s.processes ? 0 : comm.rank(), s.processes.value_or(comm.count())); });
    if (s.plan) {
        print_plan(opened.config, planned, plan_memory(memory_need(s, opened, planned)));
        return 0;
    }
    const int64_t steps = planned.plan.steps;
    require(!s.resume || planned.done < steps, s.resume.value_or(""), ": the run is done: it is at step ", planned.done, " of ",
            steps, "; give more --steps to continue it");
    require(!s.data.empty(), "--data is missing: the shards to train on (or --plan, --eval, --sample)");
    TrainingData data;
    together(comm, [&] {
        if (!s.out && s.resume) s.out = fs::canonical(*s.resume).parent_path().string();
        data = open_data(s, opened.parent, opened.config, planned.samples, planned.job, planned.plan.micro_batches);
    });
    require(s.out.has_value(), "--out is missing: the folder for checkpoints and log");
    require_one_job(s, opened, planned, data, comm);
    std::vector<std::string> sources;
    for (const auto& source : {s.init, s.embeddings_from})
        if (source) sources.push_back(*source);
    at_first(comm, [&] { RunFolder{*s.out}.prepare(s.overwrite, s.resume.value_or(""), planned.done, sources); });
    together(comm, [&] { print_start(s, opened, planned, data, comm); });
    return Training(s, opened, planned, data, arguments, comm).run();
}

// ------------------------------------------------------------------------------------------------------- the loop

Training::Training(const Settings& settings, const Opened& opened, const Planned& plans, TrainingData& with,
                   const Arguments& arguments, Comm& others)
    : s(settings), planned(plans), plan(plans.plan), data(with), comm(others), folder{*s.out}, peak_flops(device_peak_flops() * comm.count()),
      token_flops(static_cast<double>(flops_per_token(opened.config, plans.trained))), sampler(s.temperature, s.top_k, s.seed),
      model(build_models(s, opened, Mode::train, &planned, comm)), optimizer(*model), bar(find_launcher().kind == Launcher::Kind::none) {
    optimizer.allocate();
    if (planned.samples) cache.emplace(opened.config).allocate();
    if (data.val) evaluator.emplace(*model, *data.val, data.tokenizer, s.eval_tokens, comm);
    identities = json::array({new_identity(planned.lineage)});
    together(comm, [&] {
        if (s.resume) resume(*opened.parent);
        if (s.optimizer == "keep") load_optimizer(*opened.parent);
    });
    updates = updates_before(planned.lineage);
    const json progress{{"step", step}, {"tokens", tokens}, {"flops", flops}};
    const json header{{"progress", progress}, {"training", {{"runs", identities}}}, {"lineage", planned.lineage}};
    origin_flops = total_spent(header).flops - flops;
    inputs.resize(static_cast<size_t>(model->B) * model->T);
    targets.resize(inputs.size());
    if (s.coconut_every > 0 && s.coconut_targets == "next") following.resize(inputs.size());
    at_first(comm, [&] {
        if (s.overwrite) folder.clear();   // last, when nothing else can be refused any more
        log.emplace(folder.log().string());
        log_start(arguments);
    });
}

int Training::run() {
    // SIGPIPE: nobody reads stdout any more. SIGUSR1: Slurm sends it before the time limit (sbatch --signal).
    for (int signal : {SIGINT, SIGTERM, SIGPIPE, SIGUSR1}) std::signal(signal, ask_to_stop);
    std::printf("matmul peak: %.1f GFLOP/s\n", peak_flops * 1e-9);
    if (!s.resume && s.eval_every > 0 && evaluator) report_evaluation();
    while (step < planned.last && !stopping) {
        if (step + 1 == planned.profiled.first) profile_start();
        if (!step_once()) break;
        if (step == planned.profiled.last) report_profile();
        if (due(s.save_every) || step == plan.steps) save_once();
        saved_if_it_fails(data.train->position(), [&] {
            if (due(s.eval_every) && evaluator) report_evaluation();
            if (due(*s.sample_every)) report_sample();
        });
    }
    bar.clear();
    if (step < plan.steps) {
        save_once();
        std::printf("stopped at step %ld of %ld; go on with --resume %s\n", step, plan.steps, folder.checkpoint(step).c_str());
    }
    std::printf("memory: peak of the process %.1f MiB\n", static_cast<double>(peak_resident_bytes()) / (1 << 20));
    return 0;
}

/// Runs the micro-batches of this process. finished: false when it was asked to stop. Returns the error of bad data, or an empty string.
std::string Training::train_share(bool loops, bool& finished) {
    const int64_t of_part = plan.micro_batches / planned.job.parts;
    const double share = 1.0 / static_cast<double>(plan.micro_batches);
    int* next_targets = following.empty() ? nullptr : following.data();
    finished = false;
    try {
        for (int part = 0; part < planned.job.own_parts(); part++) {
            if (part > 0) model->end_part();
            for (int64_t i = 0; i < of_part; i++) {
                if (stop_asked) return "";
                {
                    Range reading("data");
                    data.train->next(inputs.data(), targets.data(), next_targets);
                }
                model->train_micro_batch(inputs.data(), targets.data(), share);
                if (loops) model->train_micro_batch(inputs.data(), next_targets ? next_targets : targets.data(), share, true);
            }
        }
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    finished = true;
    return "";
}

/// Whether all processes finished their micro-batches. If the data of any process were bad, all save the state before this step, and end with
/// that error.
bool Training::all_finished(const std::string& error, bool finished, const json& place) {
    struct State {
        bool finished, stop, failed;
    };
    const State mine{finished, stop_asked != 0, !error.empty()};
    std::vector<State> all(static_cast<size_t>(comm.count()));
    comm.collect(all.data(), &mine, sizeof mine);
    auto any = [&](auto what) { return std::any_of(all.begin(), all.end(), what); };
    stopping = any([](const State& state) { return state.stop; });
    if (any([](const State& state) { return state.failed; })) saved_if_it_fails(place, [&] { fail_together(comm, error); });
    if (!any([](const State& state) { return !state.finished; })) return true;
    data.train->restore(place);
    return false;
}

/// One step. False when some process was asked to stop within it: weights and data position are then those before the step.
bool Training::step_once() {
    Range range("step");
    comm.set_place(concat("step ", step + 1));
    auto start = std::chrono::steady_clock::now();
    const json place = data.train->position();
    const bool loops = loops_at(step);
    model->begin_step();
    bool finished;
    const std::string error = train_share(loops, finished);
    if (!all_finished(error, finished, place)) return false;
    const StepSums sums = model->end_step(comm);
    if (!std::isfinite(sums.loss + sums.loop_loss + sums.norm())) diagnose(sums, place);

    const int64_t at = planned.before.steps + step;
    const StepSchedule now{.lr_multiplier = lr_multiplier(planned.schedule, at), .step = at, .steps = plan.schedule_steps};
    const Rates rates = scaled_rates(s, plan);
    optimizer.set_step(rates, now, updates + step + 1);
    optimizer.update();   // asynchronous: the next tokens are read meanwhile
    model->gather_updated(comm);

    step++;
    tokens += plan.batch_tokens;
    flops += static_cast<double>(plan.batch_tokens) * token_flops * (loops ? 2 : 1);
    smooth = 0.9 * smooth + 0.1 * sums.last;
    const StepTime time = time_of_step(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), loops);
    report_step(step_metrics(sums, rates.matrix_lr * now.lr_multiplier, time, loops), time.left);
    return true;
}

/// Formats a number as printf does.
static std::string text_of(const char* format, double value) {
    char text[64];
    std::snprintf(text, sizeof text, format, value);
    return text;
}

/// In the order of the printed line.
std::vector<Metric> Training::step_metrics(const StepSums& sums, double lr, const StepTime& time, bool loops) const {
    std::vector<Metric> metrics{
        {"loss", sums.loss, text_of("loss %.6f", sums.loss)},
        {"smooth_loss", smooth / (1 - std::pow(0.9, static_cast<double>(step))), ""},
        {"lr", lr, text_of("lr %.3e", lr)},
        {"norm", sums.norm(), text_of("norm %.4f", sums.norm())},
        {"ms", time.seconds * 1e3, text_of("ms %.1f", time.seconds * 1e3)},
        {"tok_s", time.tokens_per_second, text_of("tok/s %.0f", time.tokens_per_second)},
        {"mfu", time.mfu, text_of("mfu %.1f%%", time.mfu)},
        {"", json(), "eta " + clock_text(time.left)},
        {"tokens", tokens, ""},
        {"flops", flops, ""},
        {"total_flops", flops + origin_flops, ""},
    };
    if (loops) metrics.push_back({"loop_loss", sums.loop_loss, text_of("loop_loss %g", sums.loop_loss)});
    return metrics;
}

void Training::report_step(const std::vector<Metric>& metrics, double seconds_left) {
    std::string line = concat("step ", step, "/", plan.steps);
    json logged{{"event", "step"}, {"step", step}};
    for (const Metric& metric : metrics) {
        if (!metric.text.empty()) line += " " + metric.text;
        if (!metric.key.empty()) logged[metric.key] = metric.value;
    }
    bar.clear();
    std::printf("%s\n", line.c_str());
    bar.show(step, plan.steps, seconds_left);
    std::fflush(stdout);
    saved_if_it_fails(data.train->position(), [&] { tell(logged); });
}

Training::StepTime Training::time_of_step(double seconds, bool loops) {
    step_seconds = step_seconds == 0 ? seconds : 0.9 * step_seconds + 0.1 * seconds;
    const double rate = static_cast<double>(plan.batch_tokens) / seconds;
    const double spent = rate * (loops ? 2 : 1) * token_flops;
    return {.seconds = seconds,
            .tokens_per_second = rate,
            .mfu = peak_flops > 0 ? 100 * spent / peak_flops : 0,
            .left = step_seconds * static_cast<double>(plan.steps - step)};
}

// ----------------------------------------------------------------------------------------------------- evaluation

Evaluator::Sums Evaluator::sums_of(const std::vector<float>& losses, const std::vector<int>& targets) const {
    Sums sums;
    for (size_t n = 0; n < losses.size(); n++) {
        sums.nats += losses[n];
        int length = tokenizer && targets[n] < tokenizer->vocab_size() ? tokenizer->token_bytes(targets[n]) : 0;
        if (length > 0) sums.text_nats += losses[n], sums.bytes += length;
    }
    return sums;
}

/// Process i mod P evaluates micro-batch i. The sums are added in the order of micro-batches, so that the result is the same for every P.
std::optional<Evaluation> Evaluator::evaluate() {
    const int64_t size = int64_t{model.B} * model.T, count = batches(), P = comm.count();
    std::vector<float> losses(size);
    std::vector<int> x(size), y(size);
    std::vector<Sums> round(static_cast<size_t>(P));
    Sums total;
    loader.rewind();
    for (int64_t i = 0; i < count; i += P) {
        Sums mine;
        std::string error;
        if (i + comm.rank() < count && !stop_asked) try {
            loader.next(x.data(), y.data());
            model.evaluate_micro_batch(losses.data(), x.data(), y.data());
            mine = sums_of(losses, y);
        } catch (const std::invalid_argument& wrong) {
            error = wrong.what();
        }
        mine.stop = stop_asked;
        mine.failed = !error.empty();
        comm.collect(round.data(), &mine, sizeof mine);
        for (const Sums& sums : round) {
            total.nats += sums.nats, total.text_nats += sums.text_nats, total.bytes += sums.bytes;
            total.stop |= sums.stop, total.failed |= sums.failed;
        }
        if (total.failed) fail_together(comm, error);
        if (total.stop) return std::nullopt;
    }
    Evaluation result;
    result.loss = total.nats / static_cast<double>(count * size);
    if (total.bytes > 0) result.bpb = total.text_nats / (std::log(2.0) * static_cast<double>(total.bytes));
    return result;
}

/// The number of micro-batches of an evaluation.
int64_t Evaluator::batches() {
    const int64_t size = int64_t{model.B} * model.T, wanted = std::max<int64_t>(1, eval_tokens / size);
    if (one_pass == 0) {
        one_pass = loader.batches_per_epoch();
        if (one_pass < wanted)
            std::printf("note: --eval-tokens %ld is capped at one pass: %ld tokens\n", eval_tokens, one_pass * size);
    }
    return std::min(wanted, one_pass);
}

static std::string bpb_text(const std::optional<double>& bpb) { return bpb ? text_of("%.6f", *bpb) : "unknown"; }

void Training::report_evaluation() {
    comm.set_place(concat("the evaluation at step ", step));
    const std::optional<Evaluation> result = evaluator->evaluate();
    if (!result) return;
    bar.clear();
    std::printf("eval step %ld val_loss %.6f val_bpb %s\n", step, result->loss, bpb_text(result->bpb).c_str());
    std::fflush(stdout);
    tell({{"event", "eval"},
          {"step", step},
          {"val_loss", or_null(result->loss)},
          {"val_bpb", result->bpb ? or_null(*result->bpb) : json()},
          {"tokens", tokens},
          {"flops", flops},
          {"total_flops", flops + origin_flops}});
}

void Training::report_sample() {
    bar.clear();
    std::cout << "sample at step " << step << ": ";
    at_first(comm, [&] {
        generate(*model, *cache, sampler, *data.tokenizer, s.sample.value_or(""), s.sample_tokens, std::cout, stop_asked);
    });
}

/// Ends --profile-steps and prints where the time went; on a GPU the attached profiler has that.
void Training::report_profile() {
    const std::string table = profile_stop();
    bar.clear();
    std::printf("profile: steps %ld to %ld\n%s", planned.profiled.first, planned.profiled.last, table.c_str());
    std::fflush(stdout);
}

// --------------------------------------------------------------------------------------------------------- saving

void Training::save() {
    comm.set_place(concat("the checkpoint of step ", step));
    require_finite_weights();
    json header{{"config", to_json(model->config)},
                {"progress", {{"step", step}, {"tokens", tokens}, {"flops", flops}}},
                {"training",
                 {{"flags", s.flags.values(FlagKind::training)},
                  {"frozen_embedding", !planned.trained.embedding},
                  {"runs", identities},
                  {"smooth", smooth},
                  {"sampler", sampler.state()},
                  {"precision", PRECISION_NAME},
                  {"device", device_name()}}},
                {"data", data.train->position()},
                {"lineage", planned.lineage}};
    std::vector<SharedTensor> shared;
    for (const Tensor& tensor : model->tensors)
        shared.push_back({tensor.name, tensor.shape, [this, i = model->index(tensor)](int rank) { return model->layout.owned(i, rank); },
                          model->master(tensor)});
    for (const Optimizer::State& state : optimizer.states())
        shared.push_back({state.name, state.shape, [this, &state](int rank) { return optimizer.owned(state, rank); }, state.values});
    std::vector<TensorSource> beside;
    if (data.tokenizer) beside.push_back(source_from_bytes("tokenizer", data.tokenizer->serialize()));
    const std::string path = folder.checkpoint(step).string();
    write_checkpoint(comm, path, header, shared, beside);
    bar.clear();
    saved_at = step;
    std::cout << "saved " << path << std::endl;
    tell({{"event", "save"}, {"step", step}, {"path", path}});
    if (s.keep > 0) at_first(comm, [&] { folder.keep(s.keep, step); });
}

/// Writes a line to log.jsonl, at rank 0.
void Training::tell(const json& line) {
    at_first(comm, [&] { log->write(line); });
}

void Training::save_once() {
    if (saved_at != step) save();
}

/// Runs work that can fail because of its data (a bad token, a shard that was cut short meanwhile). On failure the run is first saved, with `place` as
/// its data position.
template <class Work>
void Training::saved_if_it_fails(const json& place, Work work) {
    try {
        work();
    } catch (const std::invalid_argument& error) {
        data.train->restore(place);
        try {
            if (step > 0) save_once();
        } catch (const std::invalid_argument& second) {
            fail(error.what(), "; the steps since the last checkpoint could not be saved: ", second.what());
        }
        throw;
    }
}

/// A checkpoint with NaN or Inf must not follow a good one as the newest.
void Training::require_finite_weights() {
    together(comm, [&] {
        for (const Tensor& tensor : model->tensors)
            require(first_nonfinite(model->master(tensor), model->owned(tensor).count, nullptr) < 0, "step ", step,
                    ": its update left NaN or Inf in the weights ", tensor.name,
                    tensor.layer < 0 ? "" : concat(" (layer ", tensor.layer, ")"),
                    "; lower the learning rates; last good checkpoint: ", last_checkpoint());
    });
}

/// Finds where NaN or Inf first appears, and ends the run; the weights are not updated, and no checkpoint is written. With several processes
/// the lowest rank that finds one has the first such micro-batch.
void Training::diagnose(const StepSums& sums, const json& place) {
    std::string found;
    data.train->restore(place);
    const int64_t share = plan.micro_batches / planned.job.processes;
    for (int64_t i = 0; i < share && found.empty(); i++) {
        data.train->next(inputs.data(), targets.data());
        found = model->find_nonfinite(inputs.data(), targets.data(), loops_at(step));
        if (!found.empty() && comm.count() > 1) found += concat(", in micro-batch ", comm.rank() * share + i, ", which ", name_of(comm), " has");
    }
    const std::vector<std::string> all = collect_texts(comm, found);
    const auto first = std::find_if(all.begin(), all.end(), [](const std::string& text) { return !text.empty(); });
    found = first == all.end() ? "" : *first;
    tell({{"event", "nonfinite"}, {"step", step + 1}, {"found", found}});
    fail("step ", step + 1, ": loss is ", sums.loss + sums.loop_loss, ", gradient norm ", sums.norm(), ": first NaN or Inf in ",
         found.empty() ? "no tensor: only their sum of squares overflows" : found,
         "; lower the learning rates; last good checkpoint: ", last_checkpoint());
}

/// Path of the newest checkpoint of the folder.
std::string Training::last_checkpoint() const {
    std::vector<fs::path> saved = folder.checkpoints();
    return saved.empty() ? "none was saved yet" : saved.back().string();
}

// -------------------------------------------------------------------------------- details: opening files and model

/// Opens a checkpoint and verifies the hash of every tensor, also of those that are not used.
static Checkpoint open_whole(const std::string& path) {
    Checkpoint checkpoint = open_checkpoint(path);
    verify_tensors(checkpoint);
    return checkpoint;
}

/// Takes the settings of the resumed run; warns where this call continues it differently.
static void take_training(Settings& s, Opened& opened) {
    const Checkpoint& parent = *opened.parent;
    require(parent.can_resume(), parent.path,
            ": holds no training state (it was grown, stacked or converted): start from its weights with --init");
    const std::string where = parent.path + ": training";
    const json& training = json_object(parent.header["training"], where);
    for (const std::string& change : resume_flags(s, json_member(training, "flags", where)))
        warn("train_gpt", "--resume continues with another setting: ", change);
    opened.frozen_embedding = json_bool(json_member(training, "frozen_embedding", where), where + ": frozen_embedding");
    const std::string& precision = json_string(json_member(training, "precision", where), where + ": precision");
    const std::string& device = json_string(json_member(training, "device", where), where + ": device");
    if (precision != PRECISION_NAME)
        warn("train_gpt", "the run was trained in ", precision, ", this program is built for ", PRECISION_NAME,
             ": not bit for bit the same");
    if (device != device_name())
        warn("train_gpt", "the run was trained on ", device, ", this is ", device_name(), ": it may not be bit for bit the same");
}

static Opened open_model(Settings& s) {
    require(!s.init || !s.resume,
            "--init and --resume are both given: --resume continues a run exactly, --init starts a new one from the weights; give one of them");
    for (const auto& [flag, given] : {std::pair{"--optimizer", s.optimizer}, {"--schedule", s.schedule}})
        require(!given || s.init, flag, " is for --init, which is not given", s.resume ? ": --resume keeps what its run has" : "", "; leave it out");
    Opened opened;
    if (s.init || s.resume) opened.parent = open_whole(s.resume ? *s.resume : *s.init);
    if (s.resume) take_training(s, opened);
    opened.config = resolve_model(s, opened.parent);
    return opened;
}

/// Opens --embeddings-from. A resumed run has its frozen embedding already; the flag may name the same one again.
static Checkpoint open_embedding(const Settings& s, const Opened& opened) {
    Checkpoint embedding = open_whole(*s.embeddings_from);
    const GPTConfig &config = opened.config, &other = embedding.config;
    require(other.vocab_size == config.vocab_size && other.n_embd == config.n_embd, embedding.path, ": its embedding is ",
            other.vocab_size, " x ", other.n_embd, ", but the model's is ", config.vocab_size, " x ", config.n_embd,
            " (vocabulary x width)");
    bool again = opened.frozen_embedding && embedding.at("wte").xxh3 == opened.parent->at("wte").xxh3;
    require(!s.resume || again, *s.embeddings_from, ": --resume keeps the embedding of the run, which is ",
            opened.frozen_embedding ? "another one" : "not frozen", "; leave --embeddings-from out");
    return embedding;
}

/// The lineage of this run's checkpoints.
static json lineage_of(const Settings& s, const Opened& opened, const std::optional<Checkpoint>& embedding) {
    if (s.resume) return opened.parent->header["lineage"];
    std::vector<const Checkpoint*> parents;
    if (opened.parent) parents.push_back(&*opened.parent);
    json lineage = make_lineage("train", embedding ? concat("frozen wte of ", embedding->content_hash()) : "", parents);
    if (s.schedule == "continue") lineage["schedule"] = *s.schedule;
    if (s.optimizer == "keep") lineage["optimizer"] = *s.optimizer;
    return lineage;
}

/// Throws, before anything is allocated, unless the checkpoint holds all optimizer state that this run takes from it.
static void require_optimizer_state(const Settings& s, const Opened& opened, const Trained& trained) {
    if (!s.resume && s.optimizer != "keep") return;
    const Checkpoint& parent = *opened.parent;
    GPT model(opened.config, 1, Mode::train, trained);
    const Optimizer optimizer(model);
    for (const Optimizer::State& state : optimizer.states()) {
        const TensorEntry* kept = parent.find(state.name);
        require(kept, parent.path, ": holds no ", state.name, ", which is optimizer state",
                s.resume ? ": it was trained by another optimizer; start from the weights with --init"
                         : "; reset it with --optimizer reset, or grow with --optimizer copy");
        require(kept->shape == state.shape, parent.path, ": ", state.name, " has shape ", json(kept->shape), ", but its optimizer needs ",
                json(state.shape), ": it was trained by another optimizer; start from the weights with --init");
    }
}

static Planned plan_run(Settings& s, const Opened& opened, int rank, int processes) {
    Planned planned{};
    planned.job = resolve_job(s, rank, processes);
    if (s.embeddings_from) planned.embedding = open_embedding(s, opened);
    planned.trained = resolve_trained(s, opened.config, opened.frozen_embedding || planned.embedding);
    require_optimizer_state(s, opened, planned.trained);
    planned.lineage = lineage_of(s, opened, planned.embedding);
    planned.before = schedule_before(planned.lineage);
    planned.plan = resolve_plan(s, opened.config, planned.trained, planned.before);
    planned.schedule = make_schedule(s, *opened.config.recipe, planned.plan);
    if (!s.sample_every) s.sample_every = s.sample ? planned.plan.steps : 0;
    planned.samples = *s.sample_every > 0;
    planned.done = s.resume ? opened.parent->header["progress"]["step"].get<int64_t>() : 0;
    planned.last = s.stop_at_step.value_or(planned.plan.steps);
    require(planned.last <= planned.plan.steps && (!s.stop_at_step || planned.last > planned.done), "--stop-at-step is ",
            planned.last, ", but must be within ", planned.done + 1, " and ", planned.plan.steps, ", the steps of this call");
    planned.profiled = profiled_steps(s, planned.done, planned.last);
    return planned;
}

/// Builds the model, with the checkpoint's weights or initial ones. planned: null for a model that is not trained.
static std::unique_ptr<GPT> build_model(const Settings& s, const Opened& opened, Mode mode, const Planned* planned) {
    auto model = std::make_unique<GPT>(opened.config, *s.device_batch, mode, planned ? planned->trained : Trained{}, planned ? planned->job : Job{});
    model->allocate();
    if (opened.parent)
        load_weights(*model, *opened.parent);
    else
        model->initialize_weights(s.seed);
    if (planned && planned->embedding) load_weight(*model, model->tensors.front(), *planned->embedding);   // wte
    return model;
}

/// The same at each process, followed by an all-gather of the weights.
static std::unique_ptr<GPT> build_models(const Settings& s, const Opened& opened, Mode mode, const Planned* planned, Comm& comm) {
    std::unique_ptr<GPT> model;
    together(comm, [&] { model = build_model(s, opened, mode, planned); });
    model->gather_weights(comm);
    return model;
}

/// Throws unless all processes of a job run the same program with the same settings on the same files.
static void require_one_job(const Settings& s, const Opened& opened, const Planned& planned, const TrainingData& data, Comm& comm) {
    std::vector<std::pair<std::string, std::string>> facts{
        {"the commit of train_gpt", build_commit()},
        {"its precision", PRECISION_NAME},
        {"the model", dump_json(to_json(opened.config))},
    };
    // The files are compared below; their paths may differ from host to host.
    const std::set<std::string> paths{"data", "val-data", "tokenizer", "init", "resume", "embeddings-from", "out", "meet"};
    for (FlagKind kind : {FlagKind::model, FlagKind::training, FlagKind::run}) {
        const json values = s.flags.values(kind);
        for (auto& [name, value] : values.items())
            if (!paths.contains(name)) facts.emplace_back("--" + name, value.dump());
    }
    facts.emplace_back("the checkpoint that the run starts from", opened.parent ? opened.parent->content_hash() : "none");
    facts.emplace_back("the checkpoint of --embeddings-from", planned.embedding ? planned.embedding->content_hash() : "none");
    facts.emplace_back("the shards of --data", data.train->fingerprint());
    facts.emplace_back("the shards of --val-data", data.val ? data.val->fingerprint() : "none");
    require_alike(comm, facts);
}

/// The settings that identify a run. The horizon is among them only where learning rates or weight decay depend on it.
json Training::telling(json flags) const {
    if (planned.schedule.warmdown_steps == 0 && *s.weight_decay == 0)
        for (const char* horizon : {"steps", "total-flops", "param-data-ratio"}) flags.erase(horizon);
    return flags;
}

/// A new identity of the run in a family tree, from its origin, model, settings and data. A run that is resumed with other settings gets
/// another one, so that the steps which two branches have in common are counted once.
json Training::new_identity(const json& of) const {
    const json what{of, to_json(model->config), telling(s.flags.values(FlagKind::training)), data.train->fingerprint(), step};
    return {{"id", xxh3_128(dump_json(what))}, {"tokens", tokens}, {"flops", flops}};
}

/// Loads optimizer state from a checkpoint.
void Training::load_optimizer(const Checkpoint& parent) {
    for (const Optimizer::State& state : optimizer.states()) read_to_device(parent, state.name, state.values, optimizer.owned(state));
}

void Training::resume(const Checkpoint& parent) {
    load_optimizer(parent);
    const json& progress = parent.header["progress"];
    const json& training = parent.header["training"];
    const std::string where = parent.path + ": training";
    step = progress["step"];
    tokens = progress["tokens"];
    flops = progress["flops"];
    smooth = json_number(json_member(training, "smooth", where), where + ": smooth");
    const json& drawn = json_member(training, "sampler", where);
    require(drawn.is_number_unsigned(), where, ": sampler is ", drawn, ", but must be a whole number");
    sampler.restore(drawn);
    identities = json_array(identities_of(parent.header), where + ": runs");
    if (telling(training["flags"]) != telling(s.flags.values(FlagKind::training))) identities.push_back(new_identity(identities));
}

// ----------------------------------------------------------------------------------- details: what is printed at the start

static MemoryNeed memory_need(const Settings& s, const Opened& opened, const Planned& planned) {
    return {opened.config, *s.device_batch, planned.trained, planned.samples, planned.job, !s.processes};
}

/// Prints what each process sends in a step, and which tensors it updates.
static void print_shares(const GPTConfig& config, const Planned& planned) {
    const std::vector<Tensor> tensors = tensor_table(config);
    const Layout layout(config, tensors, planned.trained, planned.job);
    const int64_t others = layout.job.processes - 1, shared = layout.sliced.segment + layout.whole.segment;
    std::printf("processes: %d, parts of a step: %d\n", layout.job.processes, layout.job.parts);
    if (others == 0) return;
    std::printf("sent by each in a step: %ld bytes of gradients, %ld bytes of weights\n",
                others * (shared + layout.replicated.segment) * static_cast<int64_t>(sizeof(float)), others * shared * static_cast<int64_t>(sizeof(floatX)));
    for (int rank = 0; rank < layout.job.processes; rank++) {
        int64_t elements = 0;
        std::string matrices;
        for (size_t i = 0; i < tensors.size(); i++) {
            if (!planned.trained(tensors[i])) continue;
            if (rule_of(*config.recipe, tensors[i].spec->group).by_element()) elements += layout.owned(i, rank).count;
            else if (layout.owned(i, rank).count > 0) matrices += " " + tensors[i].name;
        }
        std::printf("rank %d updates %ld elements, and %s%s\n", rank, elements, matrices.empty() ? "no matrices" : "the matrices", matrices.c_str());
    }
}

static void print_plan(const GPTConfig& config, const Planned& planned, const MemoryPlan& memory) {
    const Plan& plan = planned.plan;
    std::printf("matmul_params: %ld\n", matmul_params(config));
    std::printf("total_params: %ld\n", total_params(config));
    if (const int64_t frozen = frozen_params(config, planned.trained); frozen > 0)
        std::printf("frozen_params: %ld (no gradient, no optimizer state)\n", frozen);
    std::printf("flops_per_token: %ld\n", flops_per_token(config, planned.trained));
    std::printf("batch_tokens: %ld\n", plan.batch_tokens);
    std::printf("steps: %ld\n", plan.steps);
    if (planned.before.steps > 0)
        std::printf("schedule: %ld steps, of which %ld steps, %ld tokens and %.4e FLOPs lie before this run\n", plan.schedule_steps,
                    planned.before.steps, planned.before.tokens, planned.before.flops);
    std::printf("tokens: %ld\n", plan.tokens);
    std::printf("memory_bytes: %zu\n", memory.total);   // per process
    std::printf("total_flops: %.4e\n", plan.total_flops);
    if (planned.job.parts > 1) print_shares(config, planned);
}

/// A value in the start-up table; an array as its first and last value and their number.
static std::string table_text(const json& value) {
    if (value.is_array()) return concat(table_text(value.front()), " ... ", table_text(value.back()), " (", value.size(), ")");
    return readable(value.is_string() ? value.get<std::string>() : value.dump());
}

static void print_start(const Settings& s, const Opened& opened, const Planned& planned, const TrainingData& data, const Comm& comm) {
    std::cout << "deepen train_gpt " << build_commit() << ", " << PRECISION_NAME << ", " << device_name() << "\n";
    for (FlagKind kind : {FlagKind::model, FlagKind::training, FlagKind::run}) {
        const json values = s.flags.values(kind);
        for (auto& [name, value] : values.items())
            if (const std::string text = table_text(value); !text.empty()) std::printf("  %-18s %s\n", name.c_str(), text.c_str());
    }
    if (opened.parent)
        std::cout << "from " << opened.parent->path << ", " << opened.parent->header["lineage"]["operation"].get<std::string>()
                  << ", step " << opened.parent->header["progress"]["step"] << "\n";
    std::printf("data: %ld tokens in %d shards%s%s; tokenizer: %s\n", data.train->total_tokens(), data.train->shards(),
                data.val ? "; validation: " : "", data.val ? concat(data.val->total_tokens(), " tokens").c_str() : "",
                data.tokenizer ? concat(data.tokenizer->vocab_size(), " tokens").c_str() : "unknown");
    const MemoryNeed need = memory_need(s, opened, planned);
    const MemoryPlan memory = plan_memory(need);
    for (auto& [name, bytes] : memory.parts)
        std::printf("memory: %-18s %10.1f MiB\n", name.c_str(), static_cast<double>(bytes) / (1 << 20));
    const size_t available = device_free_bytes(comm.local_count());
    const int64_t largest = largest_device_batch(need, available);
    std::printf("memory: %-18s %10.1f MiB of %.1f free; the largest --device-batch that would fit: %ld\n", "all",
                static_cast<double>(memory.total) / (1 << 20), static_cast<double>(available) / (1 << 20), largest);
    print_plan(opened.config, planned, memory);
    std::fflush(stdout);
    require(memory.total <= available, "the run needs ", memory.total >> 20, " MiB, but ", available >> 20, " MiB are free; ",
            largest > 0 ? concat("--device-batch ", largest, " would fit") : "use a smaller model");
}

void Training::log_start(const Arguments& arguments) {
    json all = s.flags.values(FlagKind::model);
    for (FlagKind kind : {FlagKind::training, FlagKind::run}) all.update(s.flags.values(kind));
    log->write({{"event", "start"},
                {"argv", arguments},
                {"flags", all},
                {"config", to_json(model->config)},
                {"machine", device_name()},
                {"build", {{"commit", build_commit()}, {"precision", PRECISION_NAME}}},
                {"steps", plan.steps},
                {"flops_per_token", flops_per_token(model->config, planned.trained)}});
    if (s.resume) log->write({{"event", "resume"}, {"step", step}, {"from", *s.resume}});
}
