// The tensors of a model: shapes from the table's letters, and their initial values.
#include "llmc/tensors.h"
#include <algorithm>
#include <cmath>
#include <numbers>
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
        case Has::lambdas: return config.lambdas && config.n_layer > 0;
    }
    fail("tensors: unknown condition");
}

std::vector<Tensor> tensor_table(const GPTConfig& config) {
    std::vector<Tensor> tensors;
    int64_t offset = 0;
    auto add = [&](const TensorSpec& spec, int layer) {
        if (!has(spec, config, layer)) return;
        std::vector<int64_t> shape{size_of(spec.rows, config)};
        if (!spec.vector) shape.push_back(size_of(spec.cols, config));
        int64_t numel = spec.vector ? shape[0] : shape[0] * shape[1];
        std::string name = layer < 0 ? spec.name : concat("h.", layer, ".", spec.name);
        tensors.push_back({name, &spec, layer, shape, numel, offset});
        offset += (numel + TENSOR_ALIGNMENT - 1) / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT;
    };
    const TensorSpec* first = std::begin(TENSORS);
    const TensorSpec* end = std::end(TENSORS);
    const TensorSpec* layers = std::find_if(first, end, [](const TensorSpec& spec) { return spec.per_layer; });
    const TensorSpec* after = std::find_if(layers, end, [](const TensorSpec& spec) { return !spec.per_layer; });
    for (const TensorSpec* spec = first; spec < layers; spec++) add(*spec, -1);
    for (int l = 0; l < config.n_layer; l++)
        for (const TensorSpec* spec = layers; spec < after; spec++) add(*spec, l);
    for (const TensorSpec* spec = after; spec < end; spec++) add(*spec, -1);
    return tensors;
}

int64_t total_params(const GPTConfig& config) {
    int64_t total = 0;
    for (const Tensor& tensor : tensor_table(config)) total += tensor.numel;
    return total;
}

int64_t free_params(const GPTConfig& config) {
    int64_t total = 0;
    for (const Tensor& tensor : tensor_table(config)) {
        const bool by_recipe = config.recipe->model.value_embeds && has_value_embed(tensor.layer, config.n_layer);
        if (tensor.spec->group == Group::value_embedding && !by_recipe) total += tensor.numel;
    }
    return total;
}

int64_t matmul_params(const GPTConfig& config) {
    int64_t total = int64_t{config.vocab_size} * config.n_embd;   // the head, which may be the embedding
    for (const Tensor& tensor : tensor_table(config))
        if (tensor.spec->group == Group::matrix) total += tensor.numel;
    return total;
}

int64_t flops_per_token(const GPTConfig& config) {
    int64_t flops = 6 * matmul_params(config);
    for (int window : config.windows) flops += int64_t{12} * config.n_embd * std::min(window, config.seq_len);
    return flops;
}

int64_t block_size(const std::vector<Tensor>& tensors) {
    if (tensors.empty()) return 0;
    const Tensor& last = tensors.back();
    return last.offset + (last.numel + TENSOR_ALIGNMENT - 1) / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT;
}

// The standard fixes what mt19937_64 gives, but not what its distributions make of it; these do.
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

/// Box & Muller (1958): numbers come in pairs, and the second of a pair may be the first of the next piece.
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
