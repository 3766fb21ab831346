// Which layers of which models make a deeper one: the pure part of grow and stack, configurations in, configuration and map out.
#pragma once
#include <string>
#include <vector>
#include "llmc/config.h"

/// A layer of a new model: a copy of layer `layer` of model `model`.
struct LayerFrom {
    int model, layer;
    bool operator==(const LayerFrom&) const = default;
};

/// A new model: what it is, and where its layers come from, one entry a layer.
struct LayerMap {
    GPTConfig config;
    std::vector<LayerFrom> layers;
};

/// A way to make a model deeper: layer n of the deeper one, factor times as deep, is a copy of layer source(n, n_layer, factor).
/// A new way is a new row in layers.cpp.
struct GrowthOrder {
    const char* name;
    const char* help;
    int (*source)(int n, int n_layer, int factor);
};
const std::vector<GrowthOrder>& growth_orders();

/// The layers in the order that --order and --factor ask for: the name of a growth order with a factor of 1 or more, or a list
/// like 0,1,2,0,1,2 with factor 0 (none given). Throws std::invalid_argument for anything else.
std::vector<int> growth_order(const std::string& order, int factor, int n_layer);

/// Which layers keep value embeddings when a model grows.
enum class ValueEmbeds {
    layer,     ///< every copy of a layer that has one
    pattern    ///< of these, the layers where a model of the new depth has them
};

/// The model whose layer n is a copy of layer order[n]; windows are those of the deeper model's own pattern (the depth growth study).
/// Throws std::invalid_argument when order is empty or names a layer that is not there.
LayerMap grow_map(const GPTConfig& config, const std::vector<int>& order, ValueEmbeds value_embeds);

struct StackOptions {
    bool use_first_layer = false;          ///< of every model but the first
    bool use_last_layer = false;           ///< of every model but the last
    Norm norm_inter_model = Norm::none;    ///< before the first layer of every model but the first
    Norm norm_wte = Norm::none;
    Norm norm_lm_head = Norm::none;
};

/// The layers of several models on each other, properties with their layer; the rest is the first model's.
/// Throws std::invalid_argument, with `names` of the models and both values, for two that cannot be one model, and when no
/// layer is left.
LayerMap stack_map(const std::vector<GPTConfig>& models, const std::vector<std::string>& names, const StackOptions& options);
