// For tests of files: small checkpoints with optimizer state, a tokenizer and a data position, made without training.
#pragma once
#include <fstream>
#include <algorithm>
#include <map>
#include "llmc/checkpoint.h"
#include "llmc/lineage.h"
#include "llmc/tensors.h"
#include "test/expect.h"

using Values = std::map<std::string, std::vector<float>>;

/// Small models of both recipes.
inline GPTConfig nano(int layers) { return recipe_config(NANOCHAT, layers, 2, 32, 64, 16, "SL"); }
inline GPTConfig speed(int layers) { return recipe_config(SPEEDRUN, layers, 2, 16, 24, 8); }

/// Random weights, with one generator per tensor; tensors that a recipe initializes to zero or one are random, too.
inline Values small_weights(const GPTConfig& config, uint64_t seed) {
    Values values;
    for (const Tensor& tensor : tensor_table(config)) {
        std::vector<float>& v = values[tensor.name];
        v.resize(static_cast<size_t>(tensor.numel));
        initialize(v.data(), tensor, config, seed);
        for (size_t i = 0; i < v.size(); i++) v[i] += 0.01f * static_cast<float>((i * 2654435761u + seed * 40503u) % 1000);
    }
    return values;
}

inline nlohmann::json small_header(const GPTConfig& config) {
    return {{"config", to_json(config)},
            {"progress", {{"step", 7}, {"tokens", 4096}, {"flops", 9007199254740993}}},   // 2^53 + 1, which is not a double
            {"training", {{"seed", 1}, {"lr", 0.1}}},
            {"data", {{"shard", 0}, {"position", 123}}},
            {"lineage", make_lineage("train", "", {})}};
}

inline std::vector<TensorSource> small_sources(const GPTConfig& config, const Values& values) {
    std::vector<TensorSource> sources;
    for (const Tensor& tensor : tensor_table(config)) sources.push_back(source_from_memory(tensor.name, tensor.shape, values.at(tensor.name).data()));
    return sources;
}

/// The tensors of a file: weights, `wte/m` and `wte/v`, and a tokenizer.
inline void write_small_model(const std::string& path, const GPTConfig& config, const Values& values, const std::string& tokenizer = "a tokenizer") {
    std::vector<TensorSource> sources = small_sources(config, values);
    const std::vector<float>& wte = values.at("wte");
    sources.push_back(source_from_memory("wte/m", {config.vocab_size, config.n_embd}, wte.data()));
    sources.push_back(source_from_memory("wte/v", {config.vocab_size, config.n_embd}, wte.data()));
    if (!tokenizer.empty()) sources.push_back(source_from_bytes("tokenizer", tokenizer));
    write_checkpoint(path, small_header(config), sources);
}

inline void write_small_model(const std::string& path, const GPTConfig& config, uint64_t seed) {
    write_small_model(path, config, small_weights(config, seed));
}

inline std::vector<float> values_of(const Checkpoint& checkpoint, const std::string& name) {
    const TensorEntry& entry = checkpoint.at(name);
    std::vector<float> values(static_cast<size_t>(entry.numel()));
    read_tensor(checkpoint, entry, values.data());
    return values;
}

inline std::string bytes_of(const Checkpoint& checkpoint, const std::string& name) {
    std::string bytes(static_cast<size_t>(checkpoint.at(name).bytes), '\0');
    read_tensor(checkpoint, checkpoint.at(name), bytes.data());
    return bytes;
}

/// The message of the exception that the call throws; empty if it throws none.
template <class Call>
std::string refusal(Call call) {
    try {
        call();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

inline bool contains(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

/// The names of all files in a folder.
inline std::vector<std::string> names_in(const std::string& folder) {
    std::vector<std::string> names;
    for (auto& entry : std::filesystem::directory_iterator(folder)) names.push_back(entry.path().filename().string());
    std::sort(names.begin(), names.end());
    return names;
}
