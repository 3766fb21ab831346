// Models of one configuration, mixed by weight.
#include "llmc/mix.h"
#include <algorithm>
#include <charconv>
#include <cmath>
#include "llmc/io/error.h"
#include "llmc/io/hash.h"
#include "llmc/io/json.h"
#include "llmc/lineage.h"
#include "llmc/rewrite.h"
#include "llmc/tensors.h"

using nlohmann::json;

std::vector<double> parse_weights(const std::string& text, size_t models) {
    std::vector<double> weights;
    const char* at = text.data();
    const char* const end = at + text.size();
    for (bool more = true; more;) {
        double weight = 0;
        auto [rest, error] = std::from_chars(at, end, weight);
        require(error == std::errc() && std::isfinite(weight) && (rest == end || *rest == ','), "--mix is '", text.substr(0, 60),
                "', but must be numbers with commas between them, one per model, like 0.9,0.1");
        require(weight != 0, "a weight of --mix is 0, which leaves its model out; leave out the model too");
        weights.push_back(weight);
        more = rest != end;
        at = rest + 1;
    }
    require(models >= 2, "a mix needs two models or more");
    require(weights.size() == models, "--mix has ", weights.size(), " weights, but there are ", models,
            " models; give one per model");
    double sum = 0;
    for (double weight : weights) sum += weight;
    require(std::fabs(sum - 1) <= 1e-6, "the weights of --mix sum to ", sum, ", but must sum to 1");
    return weights;
}

void require_one_shape(const std::vector<const Checkpoint*>& models) {
    const json first = to_json(models[0]->config);
    for (const Checkpoint* model : models) {
        const json other = to_json(model->config);
        auto require_equal = [&](const std::string& key) {
            require(first[key] == other[key], "models that are mixed must agree in ", key, ", but it is ", first[key].dump(), " in ",
                    models[0]->path, " and ", other[key].dump(), " in ", model->path);
        };
        for (const char* key : {"recipe", "n_layer"}) require_equal(key);   // where these differ, most others do
        for (auto& [key, ignored] : first.items()) require_equal(key);
    }
    tokenizer_owner(models, "models that are mixed");
}

struct Mix {
    std::vector<const Checkpoint*> models;
    std::vector<double> weights;
};

/// Tensor i as the weighted sum over all models.
static TensorSource mixed_source(const std::shared_ptr<const Mix>& mix, size_t i) {
    const TensorEntry& entry = mix->models[0]->tensors[i];
    auto fill = [mix, i](void* dst, int64_t offset, int64_t bytes) {
        constexpr int64_t piece = 1 << 15;   // elements at a time: sums of a whole chunk, in double, would take twice its memory
        std::vector<double> sums(piece);
        std::vector<float> values(piece);
        for (int64_t at = 0; at < bytes / 4; at += piece) {
            const int64_t n = std::min(piece, bytes / 4 - at);
            std::fill(sums.begin(), sums.end(), -0.0);   // -0 + x == x for every x, -0 too
            for (size_t m = 0; m < mix->models.size(); m++) {
                const Checkpoint& model = *mix->models[m];
                model.file->read(values.data(), n * 4, model.tensors[i].offset + offset + at * 4);
                for (int64_t k = 0; k < n; k++) sums[k] += mix->weights[m] * double{values[k]};
            }
            for (int64_t k = 0; k < n; k++) static_cast<float*>(dst)[at + k] = static_cast<float>(sums[k]);
        }
    };
    return {entry.name, entry.dtype, entry.shape, fill, nullptr, 0, 0};
}

std::vector<TensorSource> mixed_tensors(const std::vector<const Checkpoint*>& models, const std::vector<double>& weights) {
    const Checkpoint& first = *models[0];
    const auto mix = std::make_shared<const Mix>(Mix{models, weights});
    std::vector<TensorSource> sources;
    sources.reserve(first.tensors.size() + 1);
    for_each_tensor(first.config,
                    [&](const Tensor&) { sources.push_back(mixed_source(mix, sources.size())); });   // they come first
    for (size_t i = sources.size(); i < first.tensors.size(); i++)
        sources.push_back(source_from_checkpoint(first.tensors[i].name, first, first.tensors[i]));
    const Checkpoint* owner = tokenizer_owner(models, "models that are mixed");
    if (owner && owner != &first) sources.push_back(source_from_checkpoint("tokenizer", *owner, owner->at("tokenizer")));
    return sources;
}

json mixed_header(const std::vector<const Checkpoint*>& models, const std::vector<double>& weights) {
    json header = models[0]->header;
    const std::vector<const Checkpoint*> others(models.begin() + 1, models.end());
    header["lineage"] = mixed_lineage(*models[0], others, {weights.begin() + 1, weights.end()});
    const json training = header.value("training", json());
    if (training.is_object() && !training.value("runs", json()).empty()) {
        json& runs = header["training"]["runs"];   // from here on the mixed run differs from the first model's own run: a new identity
        json what{runs.back()["id"], weights};
        for (const Checkpoint* model : models) what.push_back(model->content_hash());
        runs.push_back(
            {{"id", xxh3_128(dump_json(what))}, {"tokens", header["progress"]["tokens"]}, {"flops", header["progress"]["flops"]}});
    }
    return header;
}
