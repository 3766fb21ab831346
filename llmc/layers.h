// Which layers a deeper model is made of: the pure part of grow and stack, from configurations to a new configuration and a layer map.
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
        scaled,     ///< the same values times `number`, rounded once to fp32
        constant,   ///< every element is `number`
        initial     ///< the recipe's initial values for a tensor of its new name (llmc/tensors.h), from the map's seed
    } kind;
    double number = 0;
    bool operator==(const Rule&) const = default;
};
/// A rule as maps and lineages spell it: "copied", "x 0.5", "0", "initial"; numbers with the digits that read back exactly.
std::string text_of(const Rule& rule);

/// A rule for a tensor, by its name in the table: fc_proj, ve; resid_lambdas means the layer's entry in it.
struct TensorRule {
    std::string tensor;
    Rule rule;
    bool operator==(const TensorRule&) const = default;
};

/// A layer of a new model: the layer that it comes from, and rules for tensors that are not plain copies.
struct LayerFrom {
    int model = -1, layer = -1;        ///< layer `layer` of model `model`; -1: a new layer
    std::vector<TensorRule> rules{};   ///< a tensor without a rule is `initial` in a new layer, else `copy`

    bool is_new() const { return model < 0; }
    Rule rule(const std::string& tensor) const;
    bool operator==(const LayerFrom&) const = default;
};

/// Which layers keep value embeddings when a model grows.
enum class ValueEmbeds {
    layer,    ///< every copy of a layer that has one
    pattern   ///< of these copies, only those at layers where a model of the new depth has value embeddings
};

/// Where new layers are inserted.
enum class NewAt {
    bottom,   ///< before all old layers
    middle,   ///< after the first half of them, rounded down
    top       ///< after all of them
};

/// The optimizer state of a grown model. The state of new layers is zero, except with `reset`.
enum class GrownState {
    reset,   ///< none: the optimizer starts from scratch
    copy,    ///< every copy of a layer gets the layer's state
    zero     ///< the first copy of a layer gets the layer's state, further copies start at zero
};

/// The names that flags use, in the order of the enumeration.
const std::vector<std::string>& spellings(ValueEmbeds);
const std::vector<std::string>& spellings(NewAt);
const std::vector<std::string>& spellings(GrownState);

/// A new model: its configuration, and where its layers come from, one entry per layer.
struct LayerMap {
    GPTConfig config;
    std::vector<LayerFrom> layers;
    uint64_t seed = 0;                 ///< for initial values
    GrownState state = GrownState::reset;   ///< anything else only where every layer is new or from one and the same model
};

/// The map as `layers` of a lineage keeps it, an entry per layer: [model, layer], or [model, layer, {"fc_proj": "x 0.5"}] where
/// tensors have rules of their own, or null for a new layer.
nlohmann::json layers_json(const LayerMap& map);

/// The flags of grow. Each operator accepts some of the optional ones and refuses the others.
struct GrowthOptions {
    std::string order;                           ///< an operator's name, or a list of layers like 0,1,2,0,1,2
    std::optional<int> factor{}, depth{};        ///< how many times deeper, or the new depth: one of them
    std::optional<std::string> middle{};         ///< layers a to b of the model, both included, as a:b; all but its first and last
    std::optional<int> drop{};                   ///< layers that solar leaves out of each of its two copies; no default
    std::optional<NewAt> at{};                   ///< default top
    std::optional<ValueEmbeds> value_embeds{};   ///< default layer
    std::optional<std::string> damp{};           ///< a number above 0, or 1/copies; default no damping
    std::optional<uint64_t> seed{};              ///< for initial values; default 42
    std::optional<GrownState> optimizer{};       ///< default reset
};

/// A way to make a model deeper: a row in layers.cpp.
struct GrowthOperator {
    const char* name;                           ///< --order
    const char* help;
    std::vector<std::string> flags;             ///< the flags that it accepts, beside --order
    /// For each layer of the deeper model: the layer that it is a copy of, or NEW_LAYER.
    std::vector<int> (*layers)(const GrowthOptions& options, int n_layer);
    /// follow_pattern: all windows follow the pattern at the new depth, as in the depth growth study. keep: old layers keep their
    /// windows, and new layers have full attention.
    enum Windows { follow_pattern, keep } windows;
    /// New layers: rules for their tensors, and whether they have value embeddings where the pattern at the new depth has them (in
    /// a model that has any). Besides, a new layer has no norm before it, and the recipe's attention scale at the new depth.
    struct NewLayers {
        bool value_embeds;
        std::vector<TensorRule> rules;
    };
    std::optional<NewLayers> adds;   ///< nothing for an operator that only copies
};
inline constexpr int NEW_LAYER = -1;
const std::vector<GrowthOperator>& growth_operators();
/// Names of the operators that accept a flag: "stack, interleave".
std::string operators_that_take(const std::string& flag);
/// Whether the operator of an order accepts a flag. Throws std::invalid_argument for an unknown order.
bool order_takes(const std::string& order, const std::string& flag);

/// The deeper model. Throws std::invalid_argument for an unknown order, an option that the operator needs but lacks, does not accept
/// or that is out of range, a layer that the model does not have, and a model without layers where the operator copies some.
LayerMap grow_map(const GPTConfig& config, const GrowthOptions& options);

/// --order and all options of the operator, defaults included, as `detail` of a lineage keeps them.
std::string growth_detail(const GrowthOptions& options);

/// For each layer of a map: whether it is new, or the first copy of its source layer.
std::vector<bool> first_uses(const LayerMap& map);

/// How many tokens d to train a small model on before it is grown by stacking, by arXiv 2405.15319:
///     log10 d = 0.88 log10 N + 163.27 / log10 C - 5.74
/// params: N, of the grown model; flops: C, of the whole training. Fitted on models of about 1e9 parameters and more.
/// Throws std::invalid_argument unless N >= 1, C > 10, and C >= 6 N, the cost of one token; d is then finite.
double tokens_before_growth(double params, double flops);

struct StackOptions {
    bool use_first_layer = false;          ///< of every model but the first
    bool use_last_layer = false;           ///< of every model but the last
    Norm norm_inter_model = Norm::none;    ///< at each seam: before the first layer of every model, or slice, but the first
    Norm norm_wte = Norm::none;
    Norm norm_lm_head = Norm::none;
    std::string layers{};   ///< slices instead of whole models, "A:0-3,B:2-7": A is the first model, both ends are included
};

/// Stacks the layers of several models, each with its per-layer properties; everything else is the first model's.
/// Throws std::invalid_argument for two models that do not fit together (with their `names` and both values); for slices that are
/// malformed, or leave out a model that is not the first or the last; and when no layer is left.
LayerMap stack_map(const std::vector<GPTConfig>& models, const std::vector<std::string>& names, const StackOptions& options);
