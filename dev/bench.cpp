// make bench: speed of the training step on this machine, against the peak that oneDNN's matrix products reach on it.
// One line a case:  bench NAME TOKENS_PER_S tok/s SHARE %   (gradients zeroed, forward, backward; FLOPs a token as in the
// accounting), with the optimizer's step on a line of its own.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <random>
#include <string>
#include <vector>
#include "llmc/device.h"
#include "llmc/error.h"
#include "llmc/matmul.h"
#include "llmc/optimizer.h"

static double seconds_of(const auto& work) {
    auto start = std::chrono::steady_clock::now();
    work();
    device_wait(nullptr);
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

/// Median of `repeats` runs after one that is not counted.
static double median_seconds(int repeats, const auto& work) {
    work();
    std::vector<double> seconds;
    for (int i = 0; i < repeats; i++) seconds.push_back(seconds_of(work));
    std::nth_element(seconds.begin(), seconds.begin() + repeats / 2, seconds.end());
    return seconds[repeats / 2];
}

/// FLOP/s of the best product of shapes that these models have (rows x out x in).
static double matmul_peak(int repeats) {
    return std::max({matmul_flops(2048, 768, 3072, repeats), matmul_flops(2048, 3072, 768, repeats), matmul_flops(2048, 768, 32768, repeats)});
}

static double bench(const char* name, const GPTConfig& config, int batch, int repeats, double peak_before) {
    GPT model(config, batch, Mode::train);
    Optimizer optimizer(model);
    model.allocate();
    model.initialize_weights(1);
    optimizer.allocate();
    int64_t tokens = int64_t{batch} * config.seq_len;
    std::mt19937 generator(1);
    std::vector<int> inputs(tokens), targets(tokens);
    for (int& token : inputs) token = static_cast<int>(generator() % config.vocab_size);
    for (int& token : targets) token = static_cast<int>(generator() % config.vocab_size);

    OptimizerOptions rates = default_optimizer_options(config.recipe);
    int64_t step = 0;
    auto update = [&] {
        optimizer.set_step(rates, {.lr_multiplier = 1e-3, .weight_decay = rates.weight_decay}, ++step);
        optimizer.update();
    };
    update();   // off the zeros that some tensors start from
    double seconds = median_seconds(repeats, [&] {
        model.begin_step();
        model.train_micro_batch(inputs.data(), targets.data(), 1);
        model.end_step();
    });
    double update_seconds = median_seconds(std::max(1, repeats / 4), update);
    double peak = std::max(peak_before, matmul_peak(3));
    double rate = static_cast<double>(tokens) / seconds;
    std::printf("bench %s %.0f tok/s %.1f %%\n", name, rate, 100 * rate * static_cast<double>(flops_per_token(config)) / peak);
    std::printf("optimizer %s %.1f ms\n", name, update_seconds * 1e3);
    std::fflush(stdout);
    return peak;
}

int main(int argc, char** argv) {
    return run_program("bench", [&] {
        std::string only = argc > 1 ? argv[1] : "";
        require(argc <= 2 && (only.empty() || only == "nano" || only == "d12" || only == "speedrun"), "usage: bench [nano|d12|speedrun]");
        double peak = matmul_peak(5);
        std::printf("%s, %s\npeak %.1f GFLOP/s: the best %s product of 2048x768x3072, 2048x3072x768, 2048x768x32768\n", device_name().c_str(), PRECISION_NAME,
                    peak * 1e-9, PRECISION_NAME);
        if (only.empty() || only == "nano") peak = bench("nano", nanochat_config(4, 2, 256, 4096, 256, "SSSL"), 16, 20, peak);
        if (only.empty() || only == "d12") peak = bench("d12", nanochat_config(12, 6, 768, 32768, 1024, "SSSL"), 2, 5, peak);
        if (only.empty() || only == "speedrun") bench("speedrun", speedrun_config(12, 12, 768, 50304, 1024), 2, 5, peak);
        return 0;
    });
}
