// Whole training steps of tiny models on one backend, and on another: make test writes the CPU's results and compares those of the CUDA
// files on the emulator with them. step OUT: trains both recipes, writes losses, gradients and updates. step OUT REFERENCE: compares
// them with those of an earlier call, too. Where the device has no matmul in this precision, no OUT is left.
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <random>
#include "llmc/device/device.h"
#include "llmc/io/error.h"
#include "llmc/ops/matmul.h"
#include "llmc/optimizer.h"
#include "test/golden.h"

namespace {

constexpr bool FP32 = sizeof(floatX) == 4;
// Enough for both the pass and the update to be done directly, captured, and replayed.
constexpr int STEPS = 3, MICRO_BATCHES = 2;

// Both backends round at the same places and differ in the order of their fp32 sums alone: by some fp32 roundings (6e-8) in fp32; in
// bf16 by those elements that fall to the other side of a rounding of 2^-9. Through forward and backward pass that adds up to less
// than half of what either is away from float64 (test/golden.cpp). Losses of later steps see the updates' differences too.
constexpr double LOSS = FP32 ? 1e-6 : 5e-4, LATER_LOSS = FP32 ? 2e-6 : 3e-3, GRADIENT = FP32 ? 5e-6 : 1.5e-2;
// AdamW's first update is the sign of the gradient, which is arbitrary where that is near zero: each element's update is weighted with
// its gradient, and then agrees as well as that. Muon's is the gradient with its singular values brought to one: the small ones, and
// their rounding errors, are multiplied by 3.4 in each of five iterations, so that the whole differs some ten times more.
constexpr double MUON = FP32 ? 5e-5 : 2e-1;

struct Numbers {
    std::string name;
    std::vector<float> values;
    double tolerance;   ///< of the difference, relative to the norm
};

// Sizes that fill no tile: 37 tokens, heads of 24, a width of 72.
GPTConfig tiny(const Recipe& recipe) {
    if (!recipe.model.value_embeds) return recipe_config(recipe, 2, 3, 72, 88, 37);
    GPTConfig config = recipe_config(recipe, 3, 4, 96, 88, 37, "SL");
    config.n_kv_head = 2;
    return config;
}

struct Case {
    const Recipe& recipe;
    int steps;
    std::vector<std::string> only;   ///< what trains; none: all of it
};

std::vector<Numbers> train(const Case& run) {
    const Recipe& recipe = run.recipe;
    const GPTConfig config = tiny(recipe);
    const int B = 2, N = B * config.seq_len;
    GPT model(config, B, Mode::train, {.only = run.only});
    Optimizer optimizer(model);
    model.allocate();
    optimizer.allocate();
    std::mt19937_64 generator(3);
    std::normal_distribution<float> normal;
    for (const Tensor& tensor : model.tensors) {   // moved off the zeros that some tensors start from
        std::vector<float> values(tensor.numel);
        for (float& value : values) value = (tensor.spec->has == Has::lambdas ? 1 : 0) + 0.1f * normal(generator);
        model.set_tensor(tensor, values.data());
    }
    Rates rates = recipe.rates;
    rates.weight_decay = 0;   // nanochat's depends on the sign of an update, which is arbitrary where the update is near zero. The golden cases have it.
    std::vector<Numbers> all;
    for (int step = 1; step <= run.steps; step++) {
        model.begin_step();
        for (int i = 0; i < MICRO_BATCHES; i++) {
            std::vector<int> inputs(N), targets(N);
            for (int& token : inputs) token = static_cast<int>(generator() % config.vocab_size);
            for (int& token : targets) token = static_cast<int>(generator() % config.vocab_size);
            targets[5] = -1;
            if (step == 1 && i == 0) {
                std::vector<float> residual(int64_t{N} * config.n_embd), normed(residual.size());
                for (int depth = 0; depth <= config.n_layer; depth++) {
                    model.residual_stream(residual.data(), normed.data(), inputs.data(), depth);
                    all.push_back({concat("residual stream behind ", depth, " layers"), residual, GRADIENT});
                    all.push_back({concat("normed residual stream behind ", depth, " layers"), normed, GRADIENT});
                }
            }
            model.train_micro_batch(inputs.data(), targets.data(), 1.0 / MICRO_BATCHES);
        }
        const StepSums sums = model.end_step();
        all.push_back({concat("loss of step ", step), {static_cast<float>(sums.loss)}, step == 1 ? LOSS : LATER_LOSS});
        auto update = [&] {
            optimizer.set_step(rates, {}, step);
            optimizer.update();
        };
        if (step > 1) {
            update();
            continue;
        }
        std::vector<std::vector<float>> gradients, weights;
        std::vector<const Tensor*> trained;
        for (const Tensor& tensor : model.tensors) {
            if (model.frozen(tensor)) continue;
            trained.push_back(&tensor);
            copy_to_host(gradients.emplace_back(tensor.numel).data(), model.gradient(tensor), tensor.numel * sizeof(float), nullptr);
            model.get_tensor(weights.emplace_back(tensor.numel).data(), tensor);
            all.push_back({"gradient of " + tensor.name, gradients.back(), GRADIENT});
        }
        update();
        for (size_t t = 0; t < trained.size(); t++) {
            const Tensor& tensor = *trained[t];
            const bool matrix = tensor.spec->group == Group::matrix;
            std::vector<float> values(tensor.numel);
            model.get_tensor(values.data(), tensor);
            for (size_t i = 0; i < values.size(); i++) values[i] = (values[i] - weights[t][i]) * (matrix ? 1 : std::abs(gradients[t][i]));
            all.push_back({"update of " + tensor.name, values, matrix ? MUON : GRADIENT});
        }
    }
    return all;
}

}  // namespace

int main(int argc, char** argv) {
    return run_program("step", [&] {
        require(argc == 2 || argc == 3, "usage: step OUT [REFERENCE]");
        if (!matmul_supported()) {
            std::filesystem::remove(argv[1]);
            std::printf("no matmul in %s here, and so no %s\n", PRECISION_NAME, argv[1]);
            return 0;
        }
        std::ofstream out(argv[1], std::ios::binary);
        std::ifstream reference;
        if (argc == 3) reference.open(argv[2], std::ios::binary);
        require(argc == 2 || reference.good(), argv[2], ": cannot be read; the CPU's build writes it");
        int passed = 0, failed = 0, skipped = 0;
        // Not nanochat_nonzero, whose initial values alone are others. The last one: what is frozen above, beside and below what
        // trains.
        for (const Case& each :
             {Case{NANOCHAT, STEPS, {}}, Case{SPEEDRUN, STEPS, {}}, Case{NANOCHAT, 1, {"h.1.v", "h.2.ve_gate", "h.1.fc"}}}) {
            const std::string name = concat(each.recipe.name, each.only.empty() ? "" : ", some of it");
            const Numbers* worst = nullptr;
            double worst_share = 0, worst_error = 0;
            const std::vector<Numbers> all = train(each);
            for (const Numbers& numbers : all) {
                const auto bytes = static_cast<std::streamsize>(numbers.values.size() * sizeof(float));
                out.write(reinterpret_cast<const char*>(numbers.values.data()), bytes);
                if (argc == 2) {
                    skipped++;
                    continue;
                }
                std::vector<float> expected(numbers.values.size());
                reference.read(reinterpret_cast<char*>(expected.data()), bytes);
                require(reference.gcount() == bytes, argv[2], ": ends in the middle of the ", numbers.name, "; build both anew");
                const double error = relative_error(numbers.values, expected);
                const bool fine = error <= numbers.tolerance;
                (fine ? passed : failed)++;
                if (!fine)
                    std::printf("%s, %s: the %s differs by %.2g of its norm, more than %.2g\n", name.c_str(), PRECISION_NAME,
                                numbers.name.c_str(), error, numbers.tolerance);
                if (!(error / numbers.tolerance <= worst_share)) worst = &numbers, worst_share = error / numbers.tolerance, worst_error = error;
            }
            if (worst)
                std::printf("%s, %s: nearest to its tolerance: the %s, %.2g of %.2g\n", name.c_str(), PRECISION_NAME,
                            worst->name.c_str(), worst_error, worst->tolerance);
        }
        require(out.flush().good(), argv[1], ": cannot be written");
        std::printf("%d passed, %d failed, %d skipped\n", passed, failed, skipped);
        return failed == 0 ? 0 : 1;
    });
}
