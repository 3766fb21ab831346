// The tensors of a model: shapes from the letters of the table, and initial values.
#include "llmc/tensors.h"
#include <fnmatch.h>
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numbers>
#include <sstream>
#include <utility>
#include "llmc/io/error.h"
#include "llmc/ops/value_embedding.h"

static int64_t size_of(Dim dim, const GPTConfig& config) {
    switch (dim) {
        case Dim::V: return config.vocab_size;
        case Dim::C: return config.n_embd;
        case Dim::CK: return config.kv_width();
        case Dim::C4: return 4 * config.n_embd;
        case Dim::HK: return config.n_kv_head;
        case Dim::GATE: return VE_GATE_CHANNELS;
        case Dim::L: return config.n_layer;
    }
    fail("tensors: unknown dimension");
}

static bool has(const TensorSpec& spec, const GPTConfig& config, int layer) {
    switch (spec.has) {
        case Has::always: return true;
        case Has::untied: return !config.tied;
        case Has::value_embeds: return config.value_embeds[layer];
        case Has::lambdas:
            return config.lambdas && config.n_layer > 0;
    }
    fail("tensors: unknown condition");
}

void for_each_tensor(const GPTConfig& config, const std::function<void(const Tensor&)>& visit) {
    auto add = [&](const TensorSpec& spec, int layer) {
        if (!has(spec, config, layer)) return;
        std::vector<int64_t> shape{size_of(spec.rows, config)};
        if (!spec.vector) shape.push_back(size_of(spec.cols, config));
        int64_t numel = spec.vector ? shape[0] : shape[0] * shape[1];
        std::string name = layer < 0 ? spec.name : concat("h.", layer, ".", spec.name);
        visit({name, &spec, layer, shape, numel});
    };
    const TensorSpec* first = std::begin(TENSORS);
    const TensorSpec* end = std::end(TENSORS);
    const TensorSpec* layers = std::find_if(first, end, [](const TensorSpec& spec) { return spec.per_layer; });
    const TensorSpec* after = std::find_if(layers, end, [](const TensorSpec& spec) { return !spec.per_layer; });
    for (const TensorSpec* spec = first; spec < layers; spec++) add(*spec, -1);
    for (int l = 0; l < config.n_layer; l++)
        for (const TensorSpec* spec = layers; spec < after; spec++) add(*spec, l);
    for (const TensorSpec* spec = after; spec < end; spec++) add(*spec, -1);
}

std::vector<Tensor> tensor_table(const GPTConfig& config) {
    std::vector<Tensor> tensors;
    for_each_tensor(config, [&](const Tensor& tensor) { tensors.push_back(tensor); });
    return tensors;
}

// --------------------------------------------------------------------------------------------------- what a run trains

/// The parts of h.6-11.rest.
struct LayerPattern {
    int first, last;
    std::string rest;
};
static std::optional<LayerPattern> layer_pattern(const std::string& pattern) {
    LayerPattern p;
    int length = 0;
    if (std::sscanf(pattern.c_str(), "h.%5d-%5d.%n", &p.first, &p.last, &length) != 2 || length == 0) return {};
    p.rest = pattern.substr(static_cast<size_t>(length));
    return p;
}

static bool matches(const std::string& pattern, const Tensor& tensor) {
    if (const std::optional<LayerPattern> p = layer_pattern(pattern))
        return tensor.layer >= p->first && tensor.layer <= p->last &&
               fnmatch(p->rest.c_str(), tensor.spec->name, FNM_NOESCAPE) == 0;
    return fnmatch(pattern.c_str(), tensor.name.c_str(), FNM_NOESCAPE) == 0;
}

bool Trained::operator()(const Tensor& tensor) const {
    if (!embedding && tensor.name == "wte") return false;
    return only.empty() ||
           std::any_of(only.begin(), only.end(), [&](const std::string& pattern) { return matches(pattern, tensor); });
}

std::vector<std::string> parse_train_only(const std::string& text, const GPTConfig& config) {
    const std::vector<Tensor> tensors = tensor_table(config);
    std::vector<std::string> patterns;
    std::istringstream rest(text + ',');
    for (std::string pattern; std::getline(rest, pattern, ',');) {
        if (const std::optional<LayerPattern> p = layer_pattern(pattern))
            require(p->first >= 0 && p->first <= p->last && p->last < config.n_layer, "--train-only ", pattern, ": layers ",
                    p->first, " to ", p->last, ", but the model has ",
                    config.n_layer == 0 ? "none" : concat("layers 0 to ", config.n_layer - 1));
        const bool any =
            std::any_of(tensors.begin(), tensors.end(), [&](const Tensor& tensor) { return matches(pattern, tensor); });
        require(any, "--train-only '", pattern,
                "' matches no tensor of the model; their names are like wte, h.0.fc, h.*.proj, h.2-3.*",
                config.tied ? "" : ", lm_head");
        patterns.push_back(pattern);
    }
    return patterns;
}

int place_of(int layer, Place place, int n_layer) {
    constexpr int before = static_cast<int>(Place::qkv), of_a_layer = static_cast<int>(Place::head) - before;
    if (place == Place::head) return before + of_a_layer * n_layer;
    return static_cast<int>(place) + (place >= Place::qkv ? of_a_layer * layer : 0);
}

int place_of(const Tensor& tensor, int n_layer) { return place_of(tensor.layer, tensor.spec->place, n_layer); }

int lowest_trained(const std::vector<Tensor>& tensors, const Trained& trained, int n_layer) {
    int lowest = place_of(-1, Place::head, n_layer);
    for (const Tensor& tensor : tensors)
        if (trained(tensor)) lowest = std::min(lowest, place_of(tensor, n_layer));
    return lowest;
}

// ------------------------------------------------------------------------------------------------------- the accounting

int64_t total_params(const GPTConfig& config) {
    int64_t total = 0;
    for_each_tensor(config, [&](const Tensor& tensor) { total += tensor.numel; });
    return total;
}

int64_t frozen_params(const GPTConfig& config, const Trained& trained) {
    int64_t frozen = 0;
    for (const Tensor& tensor : tensor_table(config))
        if (!trained(tensor)) frozen += tensor.numel;
    return frozen;
}

int64_t free_params(const GPTConfig& config) {
    int64_t total = 0;
    for (const Tensor& tensor : tensor_table(config)) {
        const bool by_recipe = config.recipe->model.value_embeds && has_value_embed(tensor.layer, config.n_layer);
        if (tensor.spec->group == Group::value_embedding && !by_recipe) total += tensor.numel;
    }
    return total;
}

/// In a tied model the head is the embedding.
static bool is_head(const Tensor& tensor, const GPTConfig& config) { return tensor.name == (config.tied ? "wte" : "lm_head"); }
static bool multiplies(const Tensor& tensor, const GPTConfig& config) {
    return tensor.spec->group == Group::matrix || is_head(tensor, config);
}

int64_t matmul_params(const GPTConfig& config) {
    int64_t total = 0;
    for (const Tensor& tensor : tensor_table(config))
        if (multiplies(tensor, config)) total += tensor.numel;
    return total;
}

int64_t flops_per_token(const GPTConfig& config, const Trained& trained) {
    const std::vector<Tensor> tensors = tensor_table(config);
    const bool all = trained.only.empty();
    const int lowest = all ? 0 : lowest_trained(tensors, trained, config.n_layer);
    auto of_matrix = [&](const Tensor& tensor, int place) { return all || trained(tensor) ? 6 : lowest < place ? 4 : 2; };
    int64_t flops = 0;
    for (const Tensor& tensor : tensors) {
        if (!multiplies(tensor, config)) continue;
        const int place = is_head(tensor, config) ? place_of(-1, Place::head, config.n_layer) : place_of(tensor, config.n_layer);
        flops += of_matrix(tensor, place) * tensor.numel;
    }
    for (int l = 0; l < config.n_layer; l++) {
        const bool backward = all || lowest <= place_of(l, Place::qkv, config.n_layer);
        flops += int64_t{backward ? 12 : 4} * config.n_embd * std::min(config.windows[l], config.seq_len);
    }
    return flops;
}

// ------------------------------------------------------------------------------------------------------ initial values

// The C++ standard fixes the output of mt19937_64, but not that of its distributions; so these are written out.
static double uniform(std::mt19937_64& generator) { return static_cast<double>(generator() >> 11) * 0x1p-53; }

static std::mt19937_64 generator_of(const std::string& name, uint64_t seed) {
    std::vector<uint32_t> words{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
    words.insert(words.end(), name.begin(), name.end());
    std::seed_seq sequence(words.begin(), words.end());
    return std::mt19937_64(sequence);
}

InitialValues::InitialValues(const Tensor& tensor, const GPTConfig& config, uint64_t seed) : generator(generator_of(tensor.name, seed)) {
    const InitialLaw& law = initial_law(*config.recipe, tensor.spec->name);
    size = law.value;
    switch (law.kind) {
        case InitialLaw::constant: return;
        case InitialLaw::normal: draw = Draw::normal; return;
        case InitialLaw::uniform_fan_in: draw = Draw::uniform, size = 1 / std::sqrt(static_cast<double>(tensor.shape.back())); return;
        case InitialLaw::uniform_width: draw = Draw::uniform, size = std::sqrt(3.0 / config.n_embd); return;
    }
}

void InitialValues::next(float* values, int64_t n) {
    switch (draw) {
        case Draw::uniform:
            for (int64_t i = 0; i < n; i++) values[i] = static_cast<float>((2 * uniform(generator) - 1) * size);
            return;
        case Draw::normal: return next_normal(values, n);
        case Draw::constant: std::fill_n(values, n, static_cast<float>(size)); return;
    }
}

/// Box & Muller (1958): numbers come in pairs; the second of a pair may be the first value of the next piece.
void InitialValues::next_normal(float* values, int64_t n) {
    int64_t i = 0;
    if (second && n > 0) {
        values[i++] = *second;
        second.reset();
    }
    for (; i < n; i += 2) {
        double radius = size * std::sqrt(-2 * std::log(1 - uniform(generator)));
        double angle = 2 * std::numbers::pi * uniform(generator);
        values[i] = static_cast<float>(radius * std::cos(angle));
        const float sine = static_cast<float>(radius * std::sin(angle));
        if (i + 1 < n)
            values[i + 1] = sine;
        else
            second = sine;
    }
}

void initialize(float* values, const Tensor& tensor, const GPTConfig& config, uint64_t seed) {
    InitialValues(tensor, config, seed).next(values, tensor.numel);
}
