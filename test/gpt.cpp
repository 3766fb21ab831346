// The model: every switch of its configuration against float64; stacks and growth; the KV cache of sampling; what must be exact to the
// bit; no allocations in a step; the report of NaN and Inf.
#include "llmc/gpt.h"
#include <doctest/doctest.h>
#include <malloc.h>
#include <omp.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <limits>
#include <numeric>
#include <random>
#include "llmc/device/device.h"
#include "llmc/io/error.h"
#include "llmc/layers.h"
#include "llmc/lineage.h"
#include "llmc/optimizer.h"
#include "llmc/rewrite.h"
#include "llmc/tensors.h"
#include "test/golden.h"
#include "test/gpt_reference.h"
#include "test/needs.h"
#include "test/small_model.h"

namespace {

constexpr bool FP32 = sizeof(floatX) == 4;
constexpr int SEQ = 12, VOCAB = 40, BATCH = 2;

// ------------------------------------------------------------------------------------------------------ small models

/// Random weights, exact in bf16, at a scale at which every tensor affects the loss, also those that are initialized to zero.
Doubles random_weights(const Tensor& tensor, std::mt19937_64& generator) {
    std::string name = tensor.spec->name;
    double scale = tensor.spec->group == Group::matrix ? 1 / std::sqrt(static_cast<double>(tensor.shape.back())) : name == "lm_head" ? 0.3 : 0.5;
    double mean = name == "resid_lambdas" ? 1 : 0;
    std::normal_distribution<double> normal;
    Doubles values(tensor.numel);
    for (double& value : values) value = to_float(to_bf16(static_cast<float>(mean + scale * normal(generator))));
    return values;
}

/// A model with random weights, a micro-batch for it (one target is -1), and the same model in float64.
struct SmallModel {
    explicit SmallModel(const GPTConfig& config, int B = BATCH, Mode mode = Mode::train, const Trained& trained = {})
        : model(config, B, mode, trained), optimizer(model), reference{config, {}, {}, {}} {
        model.allocate();
        optimizer.allocate();
        std::mt19937_64 generator(7);
        for (const Tensor& tensor : model.tensors) {
            Doubles values = random_weights(tensor, generator);
            std::vector<float> floats(values.begin(), values.end());
            model.set_tensor(tensor, floats.data());
            reference.p[tensor.name] = values;
        }
        for (int i = 0; i < B * config.seq_len; i++) {
            idx.push_back(static_cast<int>(generator() % config.vocab_size));
            targets.push_back(static_cast<int>(generator() % config.vocab_size));
        }
        if (targets.size() > 1) targets[1] = -1;
    }

    double train(bool loop = false) {
        model.begin_step();
        model.train_micro_batch(idx.data(), targets.data(), 1);
        if (loop) model.train_micro_batch(idx.data(), targets.data(), 1, true);
        sums = model.end_step();
        return sums.loss + sums.loop_loss;
    }
    std::vector<float> gradient(const Tensor& tensor) const {
        std::vector<float> values(tensor.numel);
        copy_to_host(values.data(), model.gradient(tensor), values.size() * sizeof(float), nullptr);
        return values;
    }
    std::vector<std::vector<float>> gradients() const {
        std::vector<std::vector<float>> all;
        for (const Tensor& tensor : model.tensors) all.push_back(gradient(tensor));
        return all;
    }
    std::vector<float> weights(const Tensor& tensor) const {
        std::vector<float> values(tensor.numel);
        model.get_tensor(values.data(), tensor);
        return values;
    }
    const Tensor& tensor(const std::string& name) const {
        return *std::find_if(model.tensors.begin(), model.tensors.end(), [&](const Tensor& t) { return t.name == name; });
    }
    void poison(const Tensor& t, int64_t element, float value) {
        std::vector<float> values = weights(t);
        values[element] = value;
        model.set_tensor(t, values.data());
    }

    GPT model;
    Optimizer optimizer;
    ReferenceGPT reference;
    std::vector<int> idx, targets;
    StepSums sums{};   // of the last train()
};

GPTConfig small_speedrun(int heads = 2, int width = 32) { return recipe_config(SPEEDRUN, 3, heads, width, VOCAB, SEQ); }
GPTConfig small_nanochat(int heads = 2, int width = 32) { return recipe_config(NANOCHAT, 3, heads, width, VOCAB, SEQ, "SL"); }

struct NamedConfig {
    std::string name;
    GPTConfig config;
};

/// Both recipes, and each recipe with one setting changed at a time.
std::vector<NamedConfig> every_switch() {
    std::vector<NamedConfig> all{{"speedrun", small_speedrun()}, {"nanochat", small_nanochat()}};
    auto add = [&](const std::string& name, GPTConfig config, auto change) {
        change(config);
        all.push_back({name, config});
    };
    for (const NamedConfig& recipe : {all[0], all[1]}) {
        const GPTConfig& c = recipe.config;
        const std::string name = recipe.name + ": ";
        add(name + "tied, or not", c, [](GPTConfig& x) { x.tied = !x.tied; });
        add(name + "other activation", c, [](GPTConfig& x) { x.activation = x.activation == Activation::gelu ? Activation::relu2 : Activation::gelu; });
        add(name + "QK norm, or not", c, [](GPTConfig& x) { x.qk_norm = !x.qk_norm; });
        add(name + "lambdas, or not", c, [](GPTConfig& x) { x.lambdas = !x.lambdas; });
        add(name + "softcap, or not", c, [](GPTConfig& x) { x.softcap = x.softcap > 0 ? 0 : 15; });
        add(name + "no value embeddings, or all", c, [](GPTConfig& x) { x.value_embeds.assign(3, !x.value_embeds[2]); });
        add(name + "mixed value embeddings", c, [](GPTConfig& x) { x.value_embeds = {false, true, true}; });
        add(name + "scales of each layer", c, [](GPTConfig& x) { x.attn_scale = {1, -0.25, 2}; });
        add(name + "windows", c, [](GPTConfig& x) { x.windows = {0, 5, 1000}; });
        for (Norm kind : {Norm::none, Norm::rms_norm, Norm::layer_norm}) {
            add(name + "norm_wte " + name_of(kind), c, [&](GPTConfig& x) { x.norm_wte = kind; });
            add(name + "norm_lm_head " + name_of(kind), c, [&](GPTConfig& x) { x.norm_lm_head = kind; });
            if (kind != Norm::none) add(name + "seams " + name_of(kind), c, [&](GPTConfig& x) { x.norm_before = {kind, Norm::none, kind}; });
        }
    }
    auto grouped = [](GPTConfig& x) { x.n_kv_head = 2; };
    add("grouped heads, size 8, speedrun", small_speedrun(4), grouped);
    add("grouped heads, size 8, nanochat", small_nanochat(4), grouped);
    add("no layers, speedrun", recipe_config(SPEEDRUN, 0, 2, 32, VOCAB, SEQ), [](GPTConfig&) {});
    add("no layers, nanochat", recipe_config(NANOCHAT, 0, 2, 32, VOCAB, SEQ), [](GPTConfig&) {});
    add("head size 24", small_nanochat(2, 48), [](GPTConfig&) {});
    add("head size 64", small_nanochat(1, 64), [](GPTConfig&) {});
    all.push_back({"the smallest", recipe_config(SPEEDRUN, 1, 1, 8, 8, 1)});
    return all;
}

// ----------------------------------------------------------------------------------- forward and backward, against float64

/// Where a looping pass starts: the latents of the pass before, which are constants of the loss. A step without such a pass has none.
Doubles latents_of(SmallModel& small, bool loop) {
    if (!loop) return {};
    small.reference.loss(small.idx, small.targets);
    return small.reference.latents;
}

/// The reference's loss of a step, the looping pass included where there are latents for it; its gradients, where they are asked for.
double reference_step(SmallModel& small, const Doubles& latents, Gradients* gradients = nullptr) {
    double loss = small.reference.loss(small.idx, small.targets);
    if (gradients) small.reference.backward(*gradients);
    if (latents.empty()) return loss;
    loss += small.reference.loss(small.idx, small.targets, &latents);
    if (gradients) small.reference.backward(*gradients);
    return loss;
}

double dot(const Gradients& a, const Gradients& b) {
    double sum = 0;
    for (const auto& [name, values] : a)
        for (size_t i = 0; i < values.size(); i++) sum += values[i] * b.at(name)[i];
    return sum;
}

/// How fast the loss grows as the tensors of `direction` move along it, by central differences, is what their gradients say.
void check_slope(SmallModel& small, const Doubles& latents, const Gradients& gradients, Gradients direction) {
    const double length = std::sqrt(dot(direction, direction));
    for (auto& [name, values] : direction)
        for (double& d : values) d /= length;
    const std::map<std::string, Doubles> before = small.reference.p;
    const double h = 1e-5;
    auto moved = [&](double by) {
        for (const auto& [name, values] : direction)
            for (size_t i = 0; i < values.size(); i++) small.reference.p[name][i] = before.at(name)[i] + by * values[i];
        return reference_step(small, latents);
    };
    const double slope = (moved(h) - moved(-h)) / (2 * h), predicted = dot(direction, gradients);
    small.reference.p = before;
    // Along a unit vector: h^2 / 6 times the third derivative, and roundings of 2^-53 of a loss of about 5, over h. Both are some 1e-10.
    CHECK_MESSAGE(std::abs(slope - predicted) <= 2e-9, "slope ", slope, ", the gradient says ", predicted);
}

Doubles random_direction(size_t size, std::mt19937_64& generator) {
    std::normal_distribution<double> normal;
    Doubles direction(size);
    for (double& d : direction) d = normal(generator);
    return direction;
}

TEST_CASE("gpt: the reference's gradients are the slopes of its loss, with every switch") {
    for (const NamedConfig& named : every_switch()) {
        CAPTURE(named.name);
        SmallModel small(named.config);
        std::mt19937_64 generator(3);
        Gradients gradients;
        reference_step(small, {}, &gradients);
        for (int i = 0; i < 2; i++) {
            Gradients direction;
            for (const auto& [name, gradient] : gradients) direction[name] = random_direction(gradient.size(), generator);
            check_slope(small, {}, gradients, direction);
        }
    }
}

/// A recipe's model with all that stacks and switches can add to it.
GPTConfig with_everything(GPTConfig config) {
    config.n_kv_head = 2;
    config.windows = {0, 5, 1000};
    config.attn_scale = {1, -0.25, 2};
    config.norm_before = {Norm::none, Norm::rms_norm, Norm::layer_norm};
    return config;
}

TEST_CASE("gpt: the reference's gradients are the slopes of its loss, tensor by tensor") {
    for (const GPTConfig& config : {with_everything(small_speedrun(4)), with_everything(small_nanochat(4))})
        for (bool loop : {false, true}) {
            SmallModel small(config);
            std::mt19937_64 generator(5);
            const Doubles latents = latents_of(small, loop);
            Gradients gradients;
            reference_step(small, latents, &gradients);
            for (const auto& [name, gradient] : gradients) {
                CAPTURE(name);
                for (int i = 0; i < 2; i++) {
                    check_slope(small, latents, gradients, {{name, random_direction(gradient.size(), generator)}});
                    Doubles element(gradient.size());
                    element[generator() % element.size()] = 1;
                    check_slope(small, latents, gradients, {{name, element}});
                }
            }
        }
}

void check_gradient(const SmallModel& small, const Tensor& tensor, const Doubles& expected) {
    CAPTURE(tensor.name);
    const std::vector<float> gradient = small.gradient(tensor);
    REQUIRE(gradient.size() == expected.size());
    double error = 0, norm = 0;
    for (size_t i = 0; i < gradient.size(); i++) {
        error += std::pow(gradient[i] - expected[i], 2);
        norm += std::pow(expected[i], 2);
    }
    error = std::sqrt(error);
    norm = std::sqrt(norm);
    // fp32: some hundred roundings of 6e-8. bf16: some ten of 2^-9 that add up, not all of them independent.
    const double relative = FP32 ? 1e-5 : 3e-2;
    // What cancels (q and k where a token sees only itself; a lambda, which adds up the whole residual stream) leaves roundings of larger parts.
    const double floor = small.sums.norm() * (FP32 ? 2e-7 : 5e-3);
    CHECK_MESSAGE(error <= relative * norm + floor, "the error's norm is ", error, ", the gradient's ", norm);
}

void check_against_float64(const NamedConfig& named, bool loop) {
    CAPTURE(named.name);
    SmallModel small(named.config);
    Gradients gradients;
    const double expected = reference_step(small, latents_of(small, loop), &gradients);
    const double loss = small.train(loop);
    CHECK(loss == doctest::Approx(expected).epsilon(FP32 ? 2e-6 : 5e-3));   // as in golden.cpp; bf16 with larger logits
    for (const Tensor& tensor : small.model.tensors) check_gradient(small, tensor, gradients.at(tensor.name));
}

TEST_CASE("gpt: loss and gradients with every switch, against float64" * needs_matmul()) {
    for (const NamedConfig& named : every_switch()) check_against_float64(named, false);
}

TEST_CASE("gpt: loss and gradients of a looping pass, against float64" * needs_matmul()) {
    check_against_float64({"speedrun", small_speedrun()}, true);
    check_against_float64({"nanochat", small_nanochat()}, true);
    check_against_float64({"speedrun, with everything", with_everything(small_speedrun(4))}, true);
    check_against_float64({"nanochat, with everything", with_everything(small_nanochat(4))}, true);
}

TEST_CASE("gpt: the residual stream after every layer, and after norm_lm_head, against float64" * needs_matmul()) {
    for (const NamedConfig& named : every_switch()) {
        SmallModel small(named.config);
        ReferenceGPT& r = small.reference;
        r.loss(small.idx, small.targets);
        REQUIRE(static_cast<int>(r.residual.size()) == named.config.n_layer + 1);
        std::vector<float> residual(r.residual[0].size()), normed(residual.size());
        for (int depth = named.config.n_layer; depth >= 0; depth--) {   // the longest pass first: nothing of it may remain
            CAPTURE(named.name);
            CAPTURE(depth);
            std::fill(normed.begin(), normed.end(), std::numeric_limits<float>::quiet_NaN());
            residual = normed;
            small.model.residual_stream(residual.data(), normed.data(), small.idx.data(), depth);
            Doubles expected = r.residual[depth];
            // fp32: some hundred roundings of 6e-8. bf16: some ten of 2^-9 per layer.
            const double tolerance = FP32 ? 1e-5 : 3e-2;
            CHECK(relative_error(residual, {expected.begin(), expected.end()}) <= tolerance);
            expected = norm_forward(expected, named.config.n_embd, named.config.norm_lm_head, named.config.norm_eps);
            CHECK(relative_error(normed, {expected.begin(), expected.end()}) <= tolerance);
        }
    }
}

TEST_CASE("gpt: the residual stream after a layer that does not exist is refused, and asking for it does not change later results" *
          needs_matmul()) {
    SmallModel small(small_nanochat());
    std::vector<float> losses(small.idx.size()), again(losses.size()), residual(losses.size() * 32), normed(residual.size());
    small.model.evaluate_micro_batch(losses.data(), small.idx.data(), small.targets.data());
    for (int depth : {0, 2}) small.model.residual_stream(residual.data(), normed.data(), small.idx.data(), depth);
    small.model.evaluate_micro_batch(again.data(), small.idx.data(), small.targets.data());
    CHECK(again == losses);
    for (int depth : {-1, 4})
        CHECK(refusal([&] { small.model.residual_stream(residual.data(), normed.data(), small.idx.data(), depth); }) ==
              concat("gpt: the residual stream after ", depth, " layers, of a model that has 3; ask for 0 to 3"));
}

TEST_CASE("gpt: with every switch the model overfits a micro-batch" * needs_matmul()) {
    for (const NamedConfig& named : every_switch()) {
        CAPTURE(named.name);
        SmallModel small(named.config);
        Rates rates = named.config.recipe->rates;
        rates.embedding_lr /= 10;   // the nanochat recipe's is for batches of 2^19 tokens
        rates.scalar_lr /= 10;
        rates.weight_decay = 0;
        double before = small.train();
        for (int step = 1; step <= 15; step++) {
            small.optimizer.set_step(rates, {}, step);
            small.optimizer.update();
            small.train();
        }
        CHECK(small.train() < before - 0.1);
    }
}

// ------------------------------------------------------------------------------------------------ tables and accounting

/// The names under `prefix` in a golden file, in file order: the reference's own order.
std::vector<std::string> names_in_order(const std::string& file, const std::string& prefix) {
    std::string bytes = read_file("test/golden/" + file + ".safetensors");
    uint64_t length;
    std::memcpy(&length, bytes.data(), 8);
    std::map<size_t, std::string> by_offset;
    nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
    for (auto& [key, value] : header.items())
        if (key.starts_with(prefix)) by_offset[value["data_offsets"][0]] = key.substr(prefix.size());
    std::vector<std::string> names;
    for (auto& [offset, name] : by_offset) names.push_back(name);
    return names;
}

TEST_CASE("gpt: tensors have the reference's names, sizes and order") {
    for (const char* file : {"speedrun_none", "nanochat"}) {
        Golden golden(file);
        std::vector<std::string> names;
        for (const Tensor& tensor : tensor_table(golden.config())) {
            names.push_back(tensor.name);
            CHECK(tensor.numel == static_cast<int64_t>(golden.at("init/" + tensor.name).size()));
        }
        CHECK(names == names_in_order(file, "init/"));
    }
}

TEST_CASE("gpt: parameters and FLOPs of the studies' models") {
    GPTConfig d12 = recipe_config(NANOCHAT, 12, 6, 768, 32768, 2048, "SSSL");
    CHECK(matmul_params(d12) == 110101632);
    CHECK(flops_per_token(d12) == 802167552);
    // wte and lm_head 2 x 32768 x 768; blocks 12 x 12 x 768^2; 6 value embeddings 32768 x 768 and gates 6 x 32; 2 x 12 lambdas
    CHECK(total_params(d12) == 286262424);
    CHECK(flops_per_token(recipe_config(NANOCHAT, 6, 6, 768, 32768, 2048, "SSSL")) == 481299840);
    GPTConfig speedrun = recipe_config(SPEEDRUN, 12, 12, 768, 50304, 1024);
    CHECK(matmul_params(speedrun) == 123568128);    // 50304 x 768 + 12 x 12 x 768^2
    CHECK(total_params(speedrun) == 123568128);     // the head is the embedding
    CHECK(flops_per_token(speedrun) == 854654976);  // 6 x that + 12 x 12 x 768 x 1024
}

// ------------------------------------------------------------------------------------------------- stacks and growth

std::vector<float> layer_values(const Golden& golden, const std::string& prefix, const LayerFrom& from, const Tensor& tensor) {
    return golden.at(concat(prefix, "h.", from.layer, ".", tensor.spec->name));
}

/// Sets the weights of a mapped model: layers and lambdas from the models that the map names, the rest from the first model.
void set_mapped(GPT& model, const LayerMap& map, const std::vector<const Golden*>& models) {
    for (const Tensor& tensor : model.tensors) {
        std::vector<float> values;
        if (tensor.layer >= 0)
            values = layer_values(*models[map.layers[tensor.layer].model], "init/", map.layers[tensor.layer], tensor);
        else if (tensor.spec->vector)
            for (LayerFrom from : map.layers) values.push_back(models[from.model]->at("init/" + tensor.name)[from.layer]);
        else
            values = models[0]->at("init/" + tensor.name);
        REQUIRE(static_cast<int64_t>(values.size()) == tensor.numel);
        model.set_tensor(tensor, values.data());
    }
}

double mapped_loss(const LayerMap& map, const std::vector<const Golden*>& models, const Golden& data) {
    GPT model(map.config, static_cast<int>(data.at("idx").size()) / map.config.seq_len, Mode::evaluate);
    model.allocate();
    set_mapped(model, map, models);
    return mean_loss(model, data.ids("idx"), data.ids("targets"));
}

// fp32: the bound of the golden cases. bf16: as in golden.cpp, but wider: blocks that were not trained together give larger activations.
const double STACK_TOLERANCE = FP32 ? 2e-6 : 5e-3;

TEST_CASE("gpt: golden stacks" * needs_matmul()) {
    for (const char* kind : {"none", "rms_norm", "layer_norm"}) {
        Golden one(concat("speedrun_", kind)), two(concat("speedrun_", kind, "_frozen")), stacks(concat("stack_", kind));
        for (bool same : {false, true})
            for (bool first : {false, true})
                for (bool last : {false, true}) {
                    std::string name = concat("loss/", same ? "same" : "different", "/first_", first, "/last_", last);
                    CAPTURE(kind);
                    CAPTURE(name);
                    GPTConfig config = one.config();
                    StackOptions options{first, last, norm_named(kind), config.norm_wte, config.norm_lm_head};
                    LayerMap map = stack_map({config, config}, {"one", "two"}, options);
                    double loss = mapped_loss(map, {&one, same ? &one : &two}, stacks);
                    CHECK(std::abs(loss - stacks.at(name)[0]) <= STACK_TOLERANCE * stacks.at(name)[0]);
                }
    }
}

TEST_CASE("gpt: golden growth" * needs_matmul()) {
    Golden parent("nanochat"), grown("grow");
    for (auto& [name, order] : grown.meta["orders"].items()) {
        CAPTURE(name);
        std::string list;
        for (const auto& layer : order) list += concat(list.empty() ? "" : ",", layer);
        LayerMap map = grow_map(parent.config(), {.order = list});
        CHECK(to_json(map.config) == grown.meta["configs"][name]);
        const double expected = grown.at("loss/" + name)[0];
        CHECK(std::abs(mapped_loss(map, {&parent}, grown) - expected) <= STACK_TOLERANCE * expected);
    }
}

std::vector<float> all_logits(GPT& model) {
    std::vector<float> logits(static_cast<size_t>(model.B) * model.T * model.config.vocab_size);
    for (int row = 0; row < model.B * model.T; row++) model.row_logits(&logits[static_cast<size_t>(row) * model.config.vocab_size], row);
    return logits;
}

// A looping pass runs the layers again on their own output, after norm_lm_head and norm_wte. That equals the stack of the whole model
// with itself, with those norms at the seam.
TEST_CASE("gpt: the stack of a model with itself is that model run in a loop, bit for bit" * needs_matmul()) {
    for (Norm seam : {Norm::none, Norm::rms_norm, Norm::layer_norm})
        for (bool after : {false, true}) {   // the norm at the seam is the loop's norm_lm_head, or its norm_wte
            GPTConfig config = small_speedrun();
            config.norm_lm_head = after ? seam : Norm::none;
            config.norm_wte = after ? Norm::none : seam;
            SmallModel looped(config);
            looped.train();
            looped.model.begin_step();
            looped.model.train_micro_batch(looped.idx.data(), looped.targets.data(), 1, true);
            const double loop_loss = looped.model.end_step().loop_loss;

            StackOptions options{true, true, seam, config.norm_wte, config.norm_lm_head};
            LayerMap map = stack_map({config, config}, {"a", "a"}, options);
            REQUIRE(map.config.n_layer == 6);
            SmallModel stacked(map.config);
            for (const Tensor& tensor : stacked.model.tensors) {
                std::string name = tensor.layer < 0 ? tensor.name : concat("h.", tensor.layer % 3, ".", tensor.spec->name);
                stacked.model.set_tensor(tensor, looped.weights(looped.tensor(name)).data());
            }
            stacked.model.begin_step();
            stacked.model.train_micro_batch(looped.idx.data(), looped.targets.data(), 1);
            const double stack_loss = stacked.model.end_step().loss;
            CHECK(loop_loss == stack_loss);
            CHECK(all_logits(looped.model) == all_logits(stacked.model));
            // With the looping pass's input detached, its gradients are those of the stack's second half.
            for (int l = 0; l < 3; l++) {
                std::string name = concat("h.", l, ".fc"), upper = concat("h.", l + 3, ".fc");
                CHECK(looped.gradient(looped.tensor(name)) == stacked.gradient(stacked.tensor(upper)));
            }
        }
}

/// The logits of a micro-batch of BATCH rows, by the model of a checkpoint.
std::vector<float> logits_of(const Checkpoint& checkpoint, const std::vector<int>& idx, const std::vector<int>& targets) {
    GPT model(checkpoint.config, BATCH, Mode::evaluate);
    model.allocate();
    for (const Tensor& tensor : model.tensors) model.set_tensor(tensor, values_of(checkpoint, tensor.name).data());
    mean_loss(model, idx, targets);
    return all_logits(model);
}

Checkpoint write_model(const std::string& path, const SmallModel& small) {
    Values values;
    for (const Tensor& tensor : small.model.tensors) values[tensor.name] = small.weights(tensor);
    write_checkpoint(path, small_header(small.model.config), small_sources(small.model.config, values));
    return open_checkpoint(path);
}

Checkpoint write_mapped(const std::string& path, const LayerMap& map, const std::vector<const Checkpoint*>& models) {
    nlohmann::json header{{"config", to_json(map.config)}, {"progress", no_progress()}, {"lineage", make_lineage("grow", "", models)}};
    write_checkpoint(path, header, mapped_tensors(map, models, *models[0]));
    return open_checkpoint(path);
}

// A new layer adds 0 to the residual stream, and its lambdas give 1 x + 0 x0 = x: no value is rounded differently, in either precision.
TEST_CASE("gpt: growth by zero changes no logit by a bit, with every switch" * needs_matmul()) {
    TempDir dir;
    auto check_grown = [&](const Checkpoint& model, const SmallModel& data) {
        const std::vector<float> before = logits_of(model, data.idx, data.targets);
        CHECK(std::all_of(before.begin(), before.end(), [](float logit) { return std::isfinite(logit); }));
        CHECK(*std::max_element(before.begin(), before.end()) > *std::min_element(before.begin(), before.end()));
        const int depth = std::max(2, 2 * model.config.n_layer);
        Checkpoint grown = write_mapped(dir / "grown.bin", grow_map(model.config, {.order = "zero", .depth = depth}), {&model});
        REQUIRE(grown.config.n_layer == depth);
        CHECK(logits_of(grown, data.idx, data.targets) == before);
        Checkpoint again =
            write_mapped(dir / "again.bin", grow_map(grown.config, {.order = "zero", .factor = 3, .seed = 7}), {&grown});
        REQUIRE(again.config.n_layer == 3 * depth);
        CHECK(logits_of(again, data.idx, data.targets) == before);
    };
    for (const NamedConfig& named : every_switch()) {
        CAPTURE(named.name);
        SmallModel small(named.config);
        check_grown(write_model(dir / "model.bin", small), small);
    }
    for (const GPTConfig& config : {small_speedrun(), small_nanochat()}) {
        SmallModel small(config);
        Checkpoint model = write_model(dir / "model.bin", small);
        Checkpoint copied = write_mapped(dir / "copied.bin", grow_map(config, {.order = "interleave", .factor = 2}), {&model});
        check_grown(copied, small);
        StackOptions options{true, false, Norm::layer_norm, config.norm_wte, config.norm_lm_head};
        check_grown(write_mapped(dir / "stack.bin", stack_map({config, copied.config}, {"a", "b"}, options), {&model, &copied}), small);
    }
}

// ------------------------------------------------------------------------------------------------ the key/value cache

/// Models with every feature that the KV cache must handle.
std::vector<NamedConfig> sampled_models() {
    GPTConfig windows = small_nanochat(4);
    windows.n_kv_head = 2;
    windows.windows = {0, 3, 1000};
    windows.value_embeds = {true, false, true};
    GPTConfig seam = small_nanochat();
    seam.norm_before = {Norm::none, Norm::rms_norm, Norm::layer_norm};
    return {{"speedrun", small_speedrun()}, {"nanochat", small_nanochat()}, {"windows, grouped heads", windows}, {"seams", seam}};
}

/// The largest difference, divided by the largest logit (both absolute).
double logits_error(const std::vector<float>& a, const std::vector<float>& b) {
    double error = 0, size = 0;
    for (size_t i = 0; i < a.size(); i++) {
        error = std::max(error, std::abs(double{a[i]} - b[i]));
        size = std::max(size, std::abs(double{b[i]}));
    }
    return error / size;
}

// fp32: matmuls and softmaxes of other shapes sum in another order. bf16: such a sum may round to the neighbouring bf16 value, and the
// difference propagates through the layers.
const double CACHE_TOLERANCE = FP32 ? 1e-5 : 2e-2;

TEST_CASE("gpt: with the cache, every position has the logits of the full forward pass" * needs_matmul()) {
    for (const NamedConfig& named : sampled_models()) {
        CAPTURE(named.name);
        SmallModel small(named.config, 1, Mode::evaluate);
        std::vector<float> losses(SEQ), logits(VOCAB);
        small.model.evaluate_micro_batch(losses.data(), small.idx.data(), small.targets.data());
        const std::vector<float> full = all_logits(small.model);
        auto expected = [&](int position) { return std::vector<float>(&full[position * VOCAB], &full[position * VOCAB] + VOCAB); };

        KVCache cache(named.config);
        cache.allocate();
        for (int chunk = 1; chunk <= SEQ; chunk++) {
            cache.length = 0;   // the contents left by the sequence before must not matter
            for (int at = 0; at < SEQ; at += chunk) {
                CAPTURE(chunk);
                CAPTURE(at);
                int n = std::min(chunk, SEQ - at);
                small.model.extend(cache, &small.idx[at], n);
                small.model.next_logits(logits.data());
                CHECK(logits_error(logits, expected(at + n - 1)) <= CACHE_TOLERANCE);
                for (int row = 0; row < n; row++) {
                    small.model.row_logits(logits.data(), row);
                    CHECK(logits_error(logits, expected(at + row)) <= CACHE_TOLERANCE);
                }
            }
            CHECK(cache.length == SEQ);
        }
        CHECK_THROWS_AS(small.model.extend(cache, small.idx.data(), 1), std::invalid_argument);   // it is full
        cache.length = 0;
        CHECK_THROWS_AS(small.model.extend(cache, small.idx.data(), 0), std::invalid_argument);
    }
}

TEST_CASE("gpt: a reset cache gives the same bytes again, whatever was in it" * needs_matmul()) {
    SmallModel small(sampled_models()[2].config, 1, Mode::evaluate);
    KVCache cache(small.model.config);
    cache.allocate();
    auto sequence = [&](int shift) {
        std::vector<float> all, logits(VOCAB);
        cache.length = 0;
        for (int i = 0; i < SEQ; i++) {
            int token = (small.idx[i] + shift) % VOCAB;
            small.model.extend(cache, &token, 1);
            small.model.next_logits(logits.data());
            all.insert(all.end(), logits.begin(), logits.end());
        }
        return all;
    };
    std::vector<float> first = sequence(0), other = sequence(1);
    CHECK(first != other);
    CHECK(sequence(0) == first);
}

// -------------------------------------------------------------------------------------------- micro-batches, exactness

TEST_CASE("gpt: repeating micro-batches gives the same bytes" * needs_matmul()) {
    const int before = omp_get_max_threads();
    for (int threads : {1, 2}) {
        omp_set_num_threads(threads);
        for (const GPTConfig& config : {small_speedrun(), small_nanochat()}) {
            SmallModel small(config), again(config);
            auto run = [](SmallModel& s) {
                s.model.begin_step();
                for (int i = 0; i < 3; i++) {
                    std::rotate(s.idx.begin(), s.idx.begin() + 1, s.idx.end());
                    s.model.train_micro_batch(s.idx.data(), s.targets.data(), 1.0 / 3);
                    s.model.train_micro_batch(s.idx.data(), s.targets.data(), 1.0 / 3, true);
                }
                std::rotate(s.idx.begin(), s.idx.end() - 3, s.idx.end());
                const StepSums sums = s.model.end_step();
                return std::vector<double>{sums.loss, sums.loop_loss, sums.last, sums.norm()};
            };
            std::vector<double> losses = run(small);
            std::vector<std::vector<float>> gradients = small.gradients();
            CHECK(run(small) == losses);
            CHECK(small.gradients() == gradients);
            CHECK(run(again) == losses);   // another model, at other addresses
            CHECK(again.gradients() == gradients);
        }
    }
    omp_set_num_threads(before);
}

TEST_CASE("gpt: the gradient of two micro-batches is the mean of both gradients, and that of one micro-batch with twice the rows" * needs_matmul()) {
    for (const GPTConfig& config : {small_speedrun(), small_nanochat()}) {
        SmallModel small(config), both(config, 2 * BATCH);
        both.targets[1] = 0;   // no -1: both halves have the same number of targets
        std::vector<int> idx[2], targets[2];
        for (int i = 0; i < 2; i++) {
            idx[i].assign(both.idx.begin() + i * BATCH * SEQ, both.idx.begin() + (i + 1) * BATCH * SEQ);
            targets[i].assign(both.targets.begin() + i * BATCH * SEQ, both.targets.begin() + (i + 1) * BATCH * SEQ);
        }
        std::vector<std::vector<float>> parts[2];
        double losses[2];
        for (int i = 0; i < 2; i++) {
            small.model.begin_step();
            small.model.train_micro_batch(idx[i].data(), targets[i].data(), 1);
            losses[i] = small.model.end_step().loss;
            parts[i] = small.gradients();
        }
        small.model.begin_step();
        for (int i = 0; i < 2; i++) small.model.train_micro_batch(idx[i].data(), targets[i].data(), 0.5);
        std::vector<std::vector<float>> sum = small.gradients();
        const StepSums sums = small.model.end_step();
        CHECK(sums.loss == doctest::Approx((losses[0] + losses[1]) / 2).epsilon(1e-12));   // sums in double
        CHECK(sums.last == losses[1]);
        double loss = both.train();
        CHECK(loss == doctest::Approx((losses[0] + losses[1]) / 2).epsilon(1e-6));
        for (size_t t = 0; t < sum.size(); t++) {
            CAPTURE(small.model.tensors[t].name);
            std::vector<float> mean(sum[t].size());
            for (size_t i = 0; i < mean.size(); i++) mean[i] = (parts[0][t][i] + parts[1][t][i]) / 2;
            // Halving is exact; but fp32 sums start from another value.
            CHECK(relative_error(sum[t], mean) <= 1e-6);
            // One matmul sums over twice as many rows, in another order; in bf16 some of the sums (lambdas, norms) are stored rounded.
            CHECK(relative_error(sum[t], both.gradient(both.model.tensors[t])) <= (FP32 ? 1e-5 : 1e-3));
        }
    }
}

TEST_CASE("gpt: a frozen embedding has no gradient and no optimizer state, and does not change by a bit" * needs_matmul()) {
    for (const GPTConfig& config : {small_speedrun(), small_nanochat()}) {
        SmallModel free(config), frozen(config, BATCH, Mode::train, {.only = {}, .embedding = false});
        const Tensor& wte = frozen.model.tensors[0];
        CHECK(frozen.model.gradient(wte) == nullptr);
        for (const Optimizer::State& state : frozen.optimizer.states()) CHECK(!state.name.starts_with("wte/"));
        auto bytes = [](const auto& arenas) { return std::accumulate(arenas.begin(), arenas.end(), size_t{0}, [](size_t n, auto* a) { return n + a->bytes(); }); };
        // The memory of its gradient, of its spans in the sum of squares (at most 1024, each of 16 bytes and a sum), and of alignment.
        const size_t less = bytes(free.model.arenas()) - bytes(frozen.model.arenas());
        CHECK(less >= wte.numel * sizeof(float));
        CHECK(less <= wte.numel * sizeof(float) + 1024 * (sizeof(Span) + sizeof(float)) + 4 * 256);
        CHECK(free.optimizer.arenas()[0]->bytes() - frozen.optimizer.arenas()[0]->bytes() == 2 * wte.numel * sizeof(float));   // the state

        const std::vector<float> before = frozen.weights(wte), other = frozen.weights(frozen.model.tensors[1]);
        free.train();
        for (int step = 1; step <= 3; step++) {
            frozen.train();
            if (step == 1)   // the other gradients equal those of the model without a frozen embedding
                for (size_t t = 1; t < frozen.model.tensors.size(); t++)
                    CHECK(frozen.gradient(frozen.model.tensors[t]) == free.gradient(free.model.tensors[t]));
            frozen.optimizer.set_step(config.recipe->rates, {}, step);
            frozen.optimizer.update();
        }
        CHECK(frozen.weights(wte) == before);
        CHECK(frozen.weights(frozen.model.tensors[1]) != other);
    }
}

/// Every trained tensor has the same gradient, bit for bit, as when all tensors train; frozen ones have no gradient, no optimizer state,
/// and do not change.
void check_trained(const GPTConfig& config, const std::string& patterns, bool loop) {
    CAPTURE(patterns);
    SmallModel all(config), some(config, BATCH, Mode::train, {.only = parse_train_only(patterns, config)});
    all.train(loop);
    double squares = 0;
    std::vector<std::vector<float>> before;
    for (const Tensor& tensor : some.model.tensors) before.push_back(some.weights(tensor));
    for (int step = 1; step <= 2; step++) {
        const double loss = some.train(loop);
        if (step == 1) CHECK(loss == all.sums.loss + all.sums.loop_loss);
        for (const Tensor& tensor : some.model.tensors) {
            CAPTURE(tensor.name);
            if (step > 1 || some.model.frozen(tensor)) continue;
            const std::vector<float> gradient = some.gradient(tensor);
            CHECK(gradient == all.gradient(all.tensor(tensor.name)));
            for (float g : gradient) squares += double{g} * g;
        }
        if (step == 1) CHECK(some.sums.norm() == doctest::Approx(std::sqrt(squares)).epsilon(1e-6));   // a sum in fp32
        some.optimizer.set_step(config.recipe->rates, {}, step);
        some.optimizer.update();
    }
    for (size_t t = 0; t < some.model.tensors.size(); t++) {
        const Tensor& tensor = some.model.tensors[t];
        CAPTURE(tensor.name);
        const bool frozen = some.model.frozen(tensor);
        CHECK((some.model.gradient(tensor) == nullptr) == frozen);
        CHECK((some.weights(tensor) == before[t]) == frozen);
        for (const Optimizer::State& state : some.optimizer.states()) CHECK(!(frozen && state.tensor == &tensor));
    }
}

TEST_CASE("gpt: with --train-only, trained tensors have the gradients of full training, and frozen ones none" * needs_matmul()) {
    GPTConfig seams = small_speedrun(), nanochat = small_nanochat();
    seams.norm_before = {Norm::none, Norm::rms_norm, Norm::layer_norm};
    for (std::string patterns : {"h.2.*", "h.1-2.*", "h.0-1.*", "h.2.fc_proj", "h.1.fc", "h.1.proj", "h.2.q", "h.*.v",
                                 "h.1.k,h.2.fc", "wte", "h.0.[qkv]", "*"})
        check_trained(seams, patterns, false);
    for (std::string patterns : {"lm_head", "h.2.*", "h.2.ve", "h.0.ve_gate", "h.1.fc_proj,lm_head", "x0_lambdas", "resid_lambdas",
                                 "*lambdas", "wte", "h.1.q,h.2.ve", "h.0.v", "wte,*lambdas,lm_head"}) {
        check_trained(nanochat, patterns, false);
        check_trained(nanochat, patterns, true);
    }
    CHECK(refusal([] { GPT(small_speedrun(), 1, Mode::train, {.only = {"wte"}, .embedding = false}); }) ==
          "gpt: nothing trains: every tensor of the model is frozen");
}

TEST_CASE("gpt: a micro-batch without targets has no loss and no gradient") {
    SmallModel small(small_nanochat());
    std::fill(small.targets.begin(), small.targets.end(), -1);
    CHECK(small.train() == 0);
    CHECK(small.sums.norm() == 0);
}

TEST_CASE("gpt: a model in evaluation mode has no gradients, and the same loss" * needs_matmul()) {
    SmallModel trained(small_nanochat()), evaluated(small_nanochat(), BATCH, Mode::evaluate);
    CHECK_THROWS_AS(evaluated.model.begin_step(), std::invalid_argument);
    CHECK_THROWS_AS(evaluated.model.end_step(), std::invalid_argument);
    CHECK_THROWS_AS(evaluated.model.train_micro_batch(trained.idx.data(), trained.targets.data(), 1), std::invalid_argument);
    CHECK(evaluated.model.gradient(evaluated.model.tensors[0]) == nullptr);
    // On a GPU in bf16 the pass with gradients takes exponentials and the cap's tanh from the special function unit: 2^-22 of e^z, and of the cap's 15.
    const double training = trained.train();
    CHECK(std::abs(mean_loss(evaluated.model, trained.idx, trained.targets) - training) <= (FP32 ? 0 : 16 * 0x1p-22));
}

// ------------------------------------------------------------------------------------------------------------ NaN

TEST_CASE("gpt: NaN and Inf are traced to the tensor that they come from" * needs_matmul()) {
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    GPTConfig config = small_nanochat();
    config.norm_before[1] = Norm::rms_norm;
    for (bool loop : {false, true}) {
        SmallModel small(config);
        auto found = [&] { return small.model.find_nonfinite(small.idx.data(), small.targets.data(), loop); };
        small.train(loop);
        CHECK(found() == "");
        for (const Tensor& tensor : small.model.tensors) {
            CAPTURE(tensor.name);
            std::string layer = tensor.layer < 0 ? "" : concat(" (layer ", tensor.layer, ")");
            std::vector<float> whole = small.weights(tensor);
            for (float bad : {nan, inf}) {
                small.poison(tensor, tensor.numel - 1, bad);
                CHECK(found() == concat("the weights ", tensor.name, layer));
            }
            small.model.set_tensor(tensor, whole.data());
            small.train(loop);
            CHECK(found() == "");
            copy_to_device(small.model.gradient(tensor) + tensor.numel / 2, &nan, sizeof nan, nullptr);
            CHECK(found() == concat("the gradient of ", tensor.name, layer));
            small.train(loop);
        }
        // A row of the embedding that no token of the micro-batch reads.
        const Tensor& wte = small.tensor("wte");
        int unread = 0;
        while (std::count(small.idx.begin(), small.idx.end(), unread)) unread++;
        REQUIRE(unread < VOCAB);
        small.poison(wte, int64_t{unread} * config.n_embd, nan);
        CHECK(found() == "the weights wte");
    }
}

TEST_CASE("gpt: an overflow is traced to the layer in which it happens" * needs_matmul()) {
    SmallModel small(small_nanochat());
    std::vector<float> huge = small.weights(small.tensor("h.1.fc"));
    for (float& x : huge) x *= 1e30f;   // finite, but their squares are not
    small.model.set_tensor(small.tensor("h.1.fc"), huge.data());
    std::string found = small.model.find_nonfinite(small.idx.data(), small.targets.data(), false);
    CHECK(found.find("of layer 1") != std::string::npos);
    CHECK(found.find("activation") != std::string::npos);
}

// ------------------------------------------------------------------------------------------------------ allocations

std::atomic<bool> counting{false};
std::atomic<size_t> largest_allocation{0};

void count_allocation(size_t bytes) {
    if (!counting) return;
    size_t largest = largest_allocation;
    while (bytes > largest && !largest_allocation.compare_exchange_weak(largest, bytes)) {}
}

}  // namespace

// Every allocation of the program, also by operator new and the libraries, is counted here and passed on to glibc.
extern "C" {
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t bytes) {
    count_allocation(bytes);
    return __libc_malloc(bytes);
}
void* calloc(size_t count, size_t bytes) {
    count_allocation(count * bytes);
    return __libc_calloc(count, bytes);
}
void* realloc(void* old, size_t bytes) {
    count_allocation(bytes);
    return __libc_realloc(old, bytes);
}
void* aligned_alloc(size_t alignment, size_t bytes) {
    count_allocation(bytes);
    return __libc_memalign(alignment, bytes);
}
int posix_memalign(void** memory, size_t alignment, size_t bytes) {
    count_allocation(bytes);
    *memory = __libc_memalign(alignment, bytes);
    return *memory ? 0 : ENOMEM;
}
void* mmap(void* address, size_t bytes, int protection, int flags, int file, off_t offset) noexcept {
    count_allocation(bytes);
    return reinterpret_cast<void*>(syscall(SYS_mmap, address, bytes, protection, flags, file, offset));
}
}

namespace {

/// The bytes that are allocated now, by the model and the libraries.
size_t allocated_bytes() {
    struct mallinfo2 info = mallinfo2();
    return info.uordblks + info.hblkhd;
}

TEST_CASE("gpt: a training step allocates nothing" * needs_matmul()) {
    // Within a call, oneDNN allocates memory to pack its operands (up to 320 KB here), and OpenMP for its thread teams (2 KB); all but a few
    // hundred bytes of OpenMP's is freed. Anything of the model that grows with the batch is larger: (N, C) of floatX is 512 KiB or more.
    const size_t libraries = 500'000, kept = 4096;
    for (GPTConfig config : {recipe_config(SPEEDRUN, 1, 2, 128, 512, 512), recipe_config(NANOCHAT, 1, 2, 128, 512, 512, "L")}) {
        SmallModel small(config, 4);
        auto step = [&](int number) {
            small.train(true);
            small.optimizer.set_step(config.recipe->rates, {}, number);
            small.optimizer.update();
        };
        step(1);   // oneDNN compiles each matmul once
        step(2);
        const size_t before = allocated_bytes();
        largest_allocation = 0;
        counting = true;
        for (int number = 3; number <= 6; number++) step(number);
        counting = false;
        CHECK(allocated_bytes() <= before + kept);
        CHECK(largest_allocation.load() <= libraries);
        counting = true;
        std::vector<char> block(libraries + 1);   // the counter works
        counting = false;
        CHECK(largest_allocation.load() == block.size());
    }
}

}  // namespace
