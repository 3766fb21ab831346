// Which layers a deeper model is made of: the pure part of grow and stack, configurations in, configuration and map out.
#pragma once
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <string>
#include <vector>
#include "llmc/config.h"

/// How one tensor of a layer gets its values.
struct Rule {
    enum Kind {
        copy,       ///< the bytes of the tensor that the layer comes from
        scaled,     ///< those numbers times `number`, rounded once to fp32
        constant,   ///< each is `number`
        initial     ///< the recipe's initial values of a tensor of its new name (llmc/tensors.h), by the map's seed
    } kind;
    double number = 0;
    bool operator==(const Rule&) const = default;
};
/// A rule as maps and lineages spell it: "copied", "x 0.5", "0", "initial"; numbers so that they read back as they are.
std::string text_of(const Rule& rule);

/// A rule for the tensor that the table calls so: fc_proj, ve; resid_lambdas for the layer's own number in it.
struct TensorRule {
    std::string tensor;
    Rule rule;
    bool operator==(const TensorRule&) const = default;
};

/// A layer of a new model: where it comes from, and what is otherwise with some of its tensors.
struct LayerFrom {
    int model = -1, layer = -1;        ///< layer `layer` of model `model`; -1: it is new, of none
    std::vector<TensorRule> rules{};   ///< without one a tensor of a new layer is initial, any other is a copy

    bool is_new() const { return model < 0; }
    Rule rule(const std::string& tensor) const;
    bool operator==(const LayerFrom&) const = default;
};

/// Which layers keep value embeddings when a model grows.
enum class ValueEmbeds {
    layer,    ///< every copy of a layer that has one
    pattern   ///< of these, the layers where a model of the new depth has them
};

/// Where new layers stand.
enum class NewAt {
    bottom,   ///< before all old ones
    middle,   ///< behind the first half of them, rounded down
    top       ///< behind all
};

/// The optimizer's state of a model that grew. New layers have one of zeros, but for reset.
enum class GrownState {
    reset,   ///< none: the optimizer starts afresh
    copy,    ///< each copy of a layer has the layer's
    zero     ///< the first copy of a layer has the layer's, further ones zeros
};

/// As flags spell them, in this order.
const std::vector<std::string>& spellings(ValueEmbeds);
const std::vector<std::string>& spellings(NewAt);
const std::vector<std::string>& spellings(GrownState);

/// A new model: what it is, and where its layers come from, one entry a layer.
struct LayerMap {
    GPTConfig config;
    std::vector<LayerFrom> layers;
    uint64_t seed = 0;                 ///< of initial values
    GrownState state = GrownState::reset;   ///< another only where all layers are of one model, or new
};

/// The map as `layers` of a lineage keeps it: an entry a layer, [model, layer], or [model, layer, {"fc_proj": "x 0.5"}] where
/// tensors have rules of their own, or null for a new layer.
nlohmann::json layers_json(const LayerMap& map);

/// What grow's flags ask for. An operator takes some of the optional ones, and none of the others.
struct GrowthOptions {
    std::string order;                           ///< an operator's name, or a list of layers like 0,1,2,0,1,2
    std::optional<int> factor{}, depth{};        ///< how many times deeper, or how deep: one of them
    std::optional<std::string> middle{};         ///< layers a to b of the model, both included, as a:b; all but its first and last
    std::optional<int> drop{};                   ///< layers that solar leaves out of each of its two copies; no default
    std::optional<NewAt> at{};                   ///< top
    std::optional<ValueEmbeds> value_embeds{};   ///< layer
    std::optional<std::string> damp{};           ///< a number above 0, or 1/copies; none
    std::optional<uint64_t> seed{};              ///< of initial values: 42
    std::optional<GrownState> optimizer{};       ///< reset
};

/// A way to make a model deeper: a row in layers.cpp.
struct GrowthOperator {
    const char* name;                           ///< --order
    const char* help;
    std::vector<std::string> flags;             ///< those of GrowthOptions that it takes, beside --order
    /// The deeper model, layer by layer: the layer that it is a copy of, or NEW_LAYER.
    std::vector<int> (*layers)(const GrowthOptions& options, int n_layer);
    /// follow_pattern: all windows are those of the deeper model's own pattern, as the depth growth study has it. keep: old layers
    /// keep theirs, and new ones see all.
    enum Windows { follow_pattern, keep } windows;
    /// What a new layer is: its tensors' rules, and whether it has a value embedding where the deeper model's own pattern has one,
    /// if the model has any. What is its own besides: no norm before it, and the scale that the attention branch has by the recipe
    /// in a model of the new depth.
    struct NewLayers {
        bool value_embeds;
        std::vector<TensorRule> rules;
    };
    std::optional<NewLayers> adds;   ///< nothing for an operator that only copies
};
inline constexpr int NEW_LAYER = -1;
const std::vector<GrowthOperator>& growth_operators();
/// Names of those that take a flag: stack, interleave.
std::string operators_that_take(const std::string& flag);
/// Whether the operator of an order takes it. Throws std::invalid_argument for an order that is none.
bool order_takes(const std::string& order, const std::string& flag);

/// The deeper model. Throws std::invalid_argument for an order that is none, an option that the operator needs or does not take or
/// that is out of its range, a layer that is not there, and a model of no layers where the operator copies some.
LayerMap grow_map(const GPTConfig& config, const GrowthOptions& options);

/// --order and all that the operator takes, defaults too, as `detail` of a lineage keeps it.
std::string growth_detail(const GrowthOptions& options);

/// For each layer of a map: whether it is new, or the first in it that comes from where it comes from.
std::vector<bool> first_uses(const LayerMap& map);

/// Tokens d that a small model is best trained on before it grows by stacking, by arXiv 2405.15319:
///     log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74
/// params: N, of the grown model; flops: C, of the whole training. Fitted on models of about 1e9 parameters and more.
/// Throws std::invalid_argument unless N >= 1, C > 10, and C is enough for a token, 6 N; d is finite then.
double tokens_before_growth(double params, double flops);

struct StackOptions {
    bool use_first_layer = false;          ///< of every model but the first
    bool use_last_layer = false;           ///< of every model but the last
    Norm norm_inter_model = Norm::none;    ///< at each seam: before the first layer of every model, or slice, but the first
    Norm norm_wte = Norm::none;
    Norm norm_lm_head = Norm::none;
    std::string layers{};   ///< slices instead of whole models, "A:0-3,B:2-7": A is the first model, both ends are included
};

/// The layers of several models on each other, properties with their layer; the rest is the first model's.
/// Throws std::invalid_argument, with `names` of the models and both values, for two that cannot be one model; for slices that are
/// none, or leave out a model that is not the first or the last; and when no layer is left.
LayerMap stack_map(const std::vector<GPTConfig>& models, const std::vector<std::string>& names, const StackOptions& options);
