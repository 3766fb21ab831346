// Golden cases: results of a PyTorch reference in float64, stored in F32 (test/golden/README.md).
#pragma once
#include <cmath>
#include <cstring>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>
#include "llmc/gpt.h"
#include "test/program.h"

struct Golden {
    std::map<std::string, std::vector<float>> tensors;
    nlohmann::json meta;   ///< the metadata, with its JSON values parsed

    explicit Golden(const std::string& name) {
        std::string bytes = read_file("test/golden/" + name + ".safetensors");
        uint64_t length;
        std::memcpy(&length, bytes.data(), 8);
        nlohmann::json header = nlohmann::json::parse(bytes.substr(8, length));
        for (auto& [key, value] : header.items()) {
            if (key == "__metadata__") {
                for (auto& [what, text] : value.items()) meta[what] = nlohmann::json::parse(text.get<std::string>());
                continue;
            }
            size_t begin = value["data_offsets"][0], end = value["data_offsets"][1];
            std::vector<float>& tensor = tensors[key];
            tensor.resize((end - begin) / sizeof(float));
            std::memcpy(tensor.data(), bytes.data() + 8 + length + begin, end - begin);
        }
    }

    const std::vector<float>& at(const std::string& name) const { return tensors.at(name); }
    GPTConfig config() const { return config_from_json(meta["config"], "golden case"); }
    /// idx or targets, (B, T).
    std::vector<int> ids(const std::string& name) const { return {at(name).begin(), at(name).end()}; }
};

/// |a - b| / |b|
inline double relative_error(const std::vector<float>& a, const std::vector<float>& b) {
    double difference = 0, norm = 0;
    for (size_t i = 0; i < b.size(); i++) {
        difference += (double{a[i]} - b[i]) * (double{a[i]} - b[i]);
        norm += double{b[i]} * b[i];
    }
    return std::sqrt(difference) / std::sqrt(norm);
}

/// Sets every tensor of a model from `<prefix><name>`.
inline void set_weights(GPT& model, const Golden& golden, const std::string& prefix = "init/") {
    for (const Tensor& tensor : model.tensors) model.set_tensor(tensor, golden.at(prefix + tensor.name).data());
}

inline double mean_loss(GPT& model, const std::vector<int>& idx, const std::vector<int>& targets) {
    std::vector<float> losses(targets.size());
    model.evaluate_micro_batch(losses.data(), idx.data(), targets.data());
    double sum = 0;
    int64_t valid = 0;
    for (size_t i = 0; i < targets.size(); i++)
        if (targets[i] != -1) sum += losses[i], valid++;
    return sum / static_cast<double>(valid);
}
