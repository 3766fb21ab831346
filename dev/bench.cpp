// bench [--mma-sync] [CASE...]: speed of the training step on this machine, against the peak that its matmuls reach.
// One line a case:  bench NAME TOKENS_PER_S tok/s SHARE %   (gradients zeroed, forward, backward; FLOPs a token as in the
// accounting), with the optimizer's step on a line of its own:
//     optimizer NAME MS ms, bound BOUND ms, ratio RATIO     (bound: the FLOPs of Muon's matmuls, symmetric ones counted whole, at the peak)
// Medians of five rounds. Each round measures the peak first, and its shares are of that, since a machine's speed changes while
// it works. For the models of dev/results whole steps too:
//     step NAME TOKENS tokens MS ms TOKENS_PER_S tok/s SHARE % of the best matmul, SHARE % of device_peak_flops
// --mma-sync: on Hopper, attention by the kernels for every GPU.
// bench --models: the models of dev/results as JSON (dev/bench_models.json), and nothing else.
#include <cstdio>
#include "dev/bench.h"
#include "llmc/ops/attention.h"
#include "llmc/ops/matmul.h"
#include "llmc/ops/peak.h"
#include "llmc/optimizer.h"

/// The peak that shares are of, and the matmuls that it is the best of.
static void print_peak(double peak, int64_t rows) {
    std::printf("peak %.1f GFLOP/s: the best %s matmul of %ldx768x3072, %ldx3072x768, %ldx768x32768\n", peak * 1e-9, PRECISION_NAME, rows, rows, rows);
}

/// FLOP/s of the best matmul of shapes that these models have, with so many rows.
static double matmul_peak(int64_t rows, int repeats) {
    double best = 0;
    for (auto [out, in] : {std::pair<int64_t, int64_t>{768, 3072}, {3072, 768}, {32768, 768}}) {
        Tensors tensors;
        floatX *y = tensors.zeros<floatX>(rows * out), *x = tensors.noise<floatX>(rows * in), *w = tensors.noise<floatX>(out * in);
        for (int i = 0; i <= repeats; i++) {   // the first run sets up
            double seconds = seconds_of(1, [&](int) { matmul_forward(y, x, w, rows, in, out, nullptr); });
            if (i > 0) best = std::max(best, 2.0 * static_cast<double>(rows * out * in) / seconds);
        }
    }
    return best;
}

struct Case {
    BenchModel model;
    int64_t peak_rows;
    int repeats;   // in a round
    bool whole_steps = false;
};

static std::vector<Case> cases() {
    std::vector<Case> all{{{"nano", recipe_config(NANOCHAT, 4, 2, 256, 4096, 256, "SSSL"), 16, 1}, 2048, 4},
                          {{"d12", recipe_config(NANOCHAT, 12, 6, 768, 32768, 1024, "SSSL"), 2, 1}, 2048, 1},
                          {{"speedrun", recipe_config(SPEEDRUN, 12, 12, 768, 50304, 1024), 2, 1}, 2048, 1}};
    for (const BenchModel& model : bench_models()) all.push_back({model, model.trial ? 64 : 65536, model.trial ? 1 : 2, true});
    return all;
}

static constexpr int ROUNDS = 5;

static void bench(const Case& c) {
    GPT model(c.model.config, c.model.batch, Mode::train);
    Optimizer optimizer(model);
    model.allocate();
    model.initialize_weights(1);
    optimizer.allocate();
    const char* name = c.model.name.c_str();
    const int64_t tokens = int64_t{model.B} * model.T;
    const double flops = static_cast<double>(flops_per_token(model.config));
    std::mt19937 generator(1);
    std::vector<int> inputs(tokens), targets(tokens);
    for (int& token : inputs) token = static_cast<int>(generator() % model.config.vocab_size);
    for (int& token : targets) token = static_cast<int>(generator() % model.config.vocab_size);

    Rates rates = model.config.recipe->rates;
    int64_t step = 0;
    auto update = [&](int) {
        optimizer.set_step(rates, {.lr_multiplier = 1e-3}, ++step);
        optimizer.update();
    };
    auto gradients = [&](int micro_batches) {
        model.begin_step();
        for (int i = 0; i < micro_batches; i++) model.train_micro_batch(inputs.data(), targets.data(), 1.0 / micro_batches);
        model.end_step();
    };
    /// Median of single runs.
    auto measure = [](int repeats, const auto& work) {
        std::vector<double> seconds;
        for (int i = 0; i < repeats; i++) seconds.push_back(seconds_of(1, work));
        return median(seconds);
    };
    double muon = 0;
    for (const Tensor& tensor : model.tensors)
        if (tensor.spec->group == Group::matrix) muon += muon_flops(tensor.shape[0], tensor.shape[1]);
    update(0);   // off the zeros that some tensors start from
    gradients(1);
    std::vector<double> peaks, seconds, shares, updates, bounds, ratios;
    for (int round = 0; round < ROUNDS; round++) {
        const double peak = matmul_peak(c.peak_rows, 3);
        peaks.push_back(peak);
        seconds.push_back(measure(c.repeats, [&](int) { gradients(1); }));
        shares.push_back(100 * static_cast<double>(tokens) * flops / seconds.back() / peak);
        updates.push_back(measure(c.repeats, update));
        bounds.push_back(muon / peak);
        ratios.push_back(updates.back() / bounds.back());
    }
    print_peak(median(peaks), c.peak_rows);
    std::printf("bench %s %.0f tok/s %.1f %%\n", name, static_cast<double>(tokens) / median(seconds), median(shares));
    std::printf("optimizer %s %.1f ms, bound %.1f ms, ratio %.2f\n", name, median(updates) * 1e3, median(bounds) * 1e3, median(ratios));
    std::fflush(stdout);
    if (!c.whole_steps) return;

    const double sheet = device_peak_flops(), peak = median(peaks);
    for (int micro_batches : {1, c.model.accumulate}) {
        auto whole = [&](int) {
            gradients(micro_batches);
            update(0);
        };
        whole(0);
        const double step_seconds = measure(std::max(3, c.repeats * ROUNDS / micro_batches), whole);
        const double step_rate = static_cast<double>(tokens) * micro_batches / step_seconds;
        std::printf("step %s %ld tokens %.1f ms %.0f tok/s %.1f %% of the best matmul", name, tokens * micro_batches, step_seconds * 1e3, step_rate,
                    100 * step_rate * flops / peak);
        if (sheet > 0) std::printf(", %.1f %% of device_peak_flops", 100 * step_rate * flops / sheet);
        std::printf("\n");
        std::fflush(stdout);
    }
}

int main(int argc, char** argv) {
    device_begin(argv);
    return run_program("bench", [&] {
        std::vector<std::string> names(argv + 1, argv + argc);
        if (names == std::vector<std::string>{"--models"}) return std::printf("%s", bench_models_json().c_str()) > 0 ? 0 : 2;
        if (std::erase(names, "--mma-sync") > 0) attention_use_hopper(false);
        if (names.empty()) names = {"nano", "d12", "speedrun"};
        std::vector<Case> wanted;
        for (const std::string& name : names) {
            std::string known;
            for (const Case& c : cases()) {
                known += " " + c.model.name;
                if (c.model.name == name) wanted.push_back(c);
            }
            require(!wanted.empty() && wanted.back().model.name == name, "no case '", name, "'; usage: bench [--mma-sync] [CASE...] or bench --models, with the cases", known);
        }
        std::printf("%s, %s\n", device_name().c_str(), PRECISION_NAME);
        for (const Case& c : wanted) bench(c);
        return 0;
    });
}
