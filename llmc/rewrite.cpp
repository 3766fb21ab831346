// What grow and stack share.
#include "llmc/rewrite.h"
#include <chrono>
#include <cstdio>
#include <iomanip>
#include <iostream>
#include <map>
#include <set>
#include "llmc/io/error.h"
#include "llmc/io/process.h"
#include "llmc/tensors.h"

void print_map(const LayerMap& map, const std::vector<const Checkpoint*>& models) {
    const GPTConfig& c = map.config;
    size_t digits = std::to_string(c.n_layer - 1).size();
    for (int n = 0; n < c.n_layer; n++) {
        LayerFrom from = map.layers[n];
        std::cout << "layer " << std::setw(static_cast<int>(digits)) << n << " <- layer " << std::left << std::setw(static_cast<int>(digits))
                  << from.layer << std::right << " of " << models[from.model]->path << "   window " << c.windows[n] << ", scale " << c.attn_scale[n]
                  << ", value embedding " << (c.value_embeds[n] ? "yes" : "no") << ", norm before " << name_of(c.norm_before[n]) << "\n";
    }
    std::cout << "norm_wte " << name_of(c.norm_wte) << ", norm_lm_head " << name_of(c.norm_lm_head) << "\n";
    std::cout << "parameters: " << total_params(c) << std::endl;
}

using Entries = std::map<std::string, const TensorEntry*>;

static Entries entries_of(const Checkpoint& model) {
    Entries entries;
    for (const TensorEntry& entry : model.tensors) entries[entry.name] = &entry;
    return entries;
}

/// A tensor with a number a layer: each number goes with its layer.
static TensorSource gather_layers(const LayerMap& map, const std::vector<const Checkpoint*>& models, const std::vector<Entries>& entries,
                                  const std::string& name) {
    std::vector<std::vector<float>> values;
    for (size_t m = 0; m < models.size(); m++) {
        const TensorEntry& entry = *entries[m].at(name);
        values.emplace_back(static_cast<size_t>(entry.numel()));
        read_tensor(*models[m], entry, values.back().data());
    }
    auto gathered = std::make_shared<std::vector<float>>();
    for (LayerFrom from : map.layers) gathered->push_back(values[from.model][from.layer]);
    TensorSource source = source_from_memory(name, {map.config.n_layer}, gathered->data());
    source.fill = [gathered, fill = source.fill](void* dst, int64_t offset, int64_t bytes) { fill(dst, offset, bytes); };
    return source;
}

static void add_tokenizer(std::vector<TensorSource>& sources, const std::vector<const Checkpoint*>& models, const std::vector<Entries>& entries) {
    const TensorEntry* first = nullptr;
    size_t owner = 0;
    for (size_t m = 0; m < models.size(); m++) {
        auto found = entries[m].find("tokenizer");
        if (found == entries[m].end()) continue;
        require(!first || first->xxh3 == found->second->xxh3, "models of a stack must have the same tokenizer, but those in ", models[owner]->path,
                " and ", models[m]->path, " differ: their tokens mean different text");
        if (first) continue;
        first = found->second;
        owner = m;
    }
    if (first) sources.push_back(source_from_checkpoint("tokenizer", *models[owner], *first));
}

std::vector<TensorSource> mapped_tensors(const LayerMap& map, const std::vector<const Checkpoint*>& models, const Checkpoint& head) {
    std::vector<Entries> entries;
    for (const Checkpoint* model : models) entries.push_back(entries_of(*model));
    std::vector<TensorSource> sources;
    for (const Tensor& tensor : tensor_table(map.config)) {
        if (tensor.layer >= 0) {
            LayerFrom from = map.layers[tensor.layer];
            std::string name = concat("h.", from.layer, ".", tensor.spec->name);
            sources.push_back(source_from_checkpoint(tensor.name, *models[from.model], *entries[from.model].at(name)));
        } else if (tensor.spec->rows == Dim::L) {
            sources.push_back(gather_layers(map, models, entries, tensor.name));
        } else if (tensor.spec->has == Has::untied) {
            sources.push_back(source_from_checkpoint(tensor.name, head, head.at(head.config.tied ? "wte" : "lm_head")));
        } else {
            sources.push_back(source_from_checkpoint(tensor.name, *models[0], *entries[0].at(tensor.name)));
        }
    }
    add_tokenizer(sources, models, entries);
    return sources;
}

void verify_and_write(const std::string& out, const nlohmann::json& header, const std::vector<TensorSource>& sources,
                      const std::vector<const Checkpoint*>& models) {
    auto start = std::chrono::steady_clock::now();
    for (const Checkpoint* model : std::set<const Checkpoint*>(models.begin(), models.end())) verify_tensors(*model);
    write_checkpoint(out, header, sources);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    int64_t bytes = File(out).size();
    char line[128];
    std::snprintf(line, sizeof line, "%s in %.2f s (%s/s), peak memory %s", human_bytes(bytes).c_str(), seconds,
                  human_bytes(static_cast<int64_t>(static_cast<double>(bytes) / seconds)).c_str(), human_bytes(static_cast<int64_t>(peak_resident_bytes())).c_str());
    std::cout << "wrote " << out << ": " << line << std::endl;
}
