// Recipes: everything in which the models and the training of the studies differ, as data, one constant per recipe. A new recipe is a new constant
// in recipe.cpp, listed in recipes(). No other code asks which recipe it has.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <variant>
#include <vector>
#include "llmc/io/error.h"
#include "llmc/ops/activation.h"
#include "llmc/ops/muon.h"
#include "llmc/ops/norm.h"

// ------------------------------------------------------------------------------------------------------ the model

/// The scale of the attention branches.
enum class BranchScale {
    one,
    by_depth               ///< 1/sqrt(2 depth)
};

/// The model's defaults, which flags override.
struct ModelLaws {
    int head_size;                      ///< heads = width / head_size
    int width_per_layer;                ///< width = width_per_layer x depth, rounded up to whole heads
    int vocab_size, seq_len;
    const char* window_pattern;         ///< as GPTConfig has it
    Activation activation;
    bool tied, qk_norm;
    bool value_embeds;                  ///< in every second layer, the last included
    bool lambdas;
    double softcap;                     ///< 0: none
    Norm norm_wte, norm_lm_head;
    double norm_eps;
    BranchScale attn_scale;
};

/// The distribution of a tensor's initial values.
struct InitialLaw {
    enum Kind {
        constant,          ///< value
        normal,            ///< N(0, value^2)
        uniform_fan_in,    ///< U(-1/sqrt(in), 1/sqrt(in)), in = columns
        uniform_width      ///< U(-sqrt(3/C), sqrt(3/C)), C = width
    } kind;
    double value = 0;
};

/// Tensors that are initialized by one law: their names in the table (llmc/tensors.h), separated by spaces.
struct InitialRow {
    const char* tensors;
    InitialLaw law;
};

// --------------------------------------------------------------------------------------------------- the optimizers

/// Base learning rates and weight decay of a run, before the schedule; flags override them.
struct Rates {
    double embedding_lr, unembedding_lr, matrix_lr, scalar_lr, weight_decay;
};

/// A tensor of optimizer state that belongs to a weight: the name after the weight's own (h.3.fc/momentum), and its shape.
struct StatePiece {
    const char* name;
    std::vector<int64_t> shape;
};

/// AdamW's hyperparameters for a group of tensors.
struct AdamWRule {
    double beta1, beta2, eps;
    bool decays = false;                ///< whether the run's weight decay applies

    static constexpr bool by_element = true;
    std::vector<StatePiece> state(const std::string& tensor, const std::vector<int64_t>& shape) const;
};

/// Muon's hyperparameters. The momentum rises linearly from `momentum` to `momentum + rise` over the first `rise_steps` steps.
struct MuonGroup {
    MuonRule rule;
    double momentum, rise = 0;
    int64_t rise_steps = 0;

    static constexpr bool by_element = false;
    /// Throws std::invalid_argument, with the tensor's name, for a vector: Muon updates matrices only.
    std::vector<StatePiece> state(const std::string& tensor, const std::vector<int64_t>& shape) const;
    double update_flops(const std::vector<int64_t>& shape) const;
};

/// How a group's weight decay changes over the run.
enum class DecayRamp {
    constant,
    linear,                ///< times 1 - step / steps
    with_rate              ///< times the multiplier of the learning rates
};

/// How the tensors of a group are trained.
struct GroupRule {
    double Rates::*rate;
    std::variant<AdamWRule, MuonGroup> optimizer;
    double factor = 1;                  ///< multiplies that rate
    double tuned_width = 0;             ///< width that the rate was tuned for; at others it is scaled by sqrt(tuned_width / width); 0: no scaling
    DecayRamp decay = DecayRamp::constant;

    /// The optimizer state of a tensor of that name and shape.
    std::vector<StatePiece> state(const std::string& tensor, const std::vector<int64_t>& shape) const {
        return std::visit([&](const auto& own) { return own.state(tensor, shape); }, optimizer);
    }
    /// Whether an element's update depends on no other element, so that several processes can share a tensor.
    bool by_element() const {
        return std::visit([](const auto& own) { return own.by_element; }, optimizer);
    }
    /// FLOPs of one update of a matrix, by which matrices are balanced over the processes; 0 for element-wise updates, which are split evenly.
    double update_flops(const std::vector<int64_t>& shape) const {
        return std::visit([&](const auto& own) {
            if constexpr (own.by_element) return 0.0;
            else return own.update_flops(shape);
        }, optimizer);
    }
};

/// Groups of the tensors in the table.
enum class Group { embedding, unembedding, value_embedding, matrix, resid_scalar, x0_scalar };
struct GroupRules {
    GroupRule embedding, unembedding, value_embedding, matrix, resid_scalar, x0_scalar;
};

// ------------------------------------------------------------------------------------------------------ the training

/// The default horizon, one of the two.
struct HorizonLaw {
    int64_t steps = 0;
    double param_data_ratio = 0;        ///< tokens per matmul parameter
};

/// The shape in which a learning rate falls from 1 to 0 during warmdown; left: the fraction of the warmdown that remains.
enum class Fall {
    linear,          ///< left
    cosine,          ///< (1 - cos(pi left)) / 2
    one_minus_sqrt   ///< 1 - sqrt(1 - left) (arXiv 2405.18392)
};

struct ScheduleLaws {
    int64_t warmup_steps;
    double warmdown_ratio;              ///< fraction of the steps
    Fall fall;
};

/// Rules that scale batch and rates with the size of the model (nanochat's; llmc/plan.h has the formulas). The recipe's batch and rates
/// were tuned for its model of `depth` layers.
struct ScalingRules {
    int depth;
    double batch_exponent;
};

// -------------------------------------------------------------------------------------------------------- the recipe

struct Recipe {
    const char* name;                   ///< as flags and checkpoints spell it
    const char* source;                 ///< paper, commit
    ModelLaws model;
    InitialRow initial[8];              ///< each tensor of the table is in one of them
    GroupRules groups;
    Rates rates;
    ScheduleLaws schedule;
    HorizonLaw horizon;
    int64_t batch_tokens;               ///< tokens per step; the rates are tuned for it
    std::optional<ScalingRules> scaling;
};

extern const Recipe NANOCHAT, NANOCHAT_NONZERO, SPEEDRUN;

/// All recipes that flags and files can name; the first is the default of --recipe.
const std::vector<const Recipe*>& recipes();
std::vector<std::string> recipe_names();
/// Throws std::invalid_argument, listing the valid names.
const Recipe& recipe_named(const std::string& name);

const GroupRule& rule_of(const Recipe& recipe, Group group);
/// The law of a tensor of the table, by its name there. Throws std::logic_error for a name that no row has.
const InitialLaw& initial_law(const Recipe& recipe, const std::string& tensor);

/// A value of each recipe as help shows it: "nanochat 2048, speedrun 1024", or one text where all have the same.
template <class Value>
std::string by_recipe(Value value) {
    std::string each, first = concat(value(*recipes().front()));
    bool same = true;
    for (const Recipe* recipe : recipes()) {
        const std::string own = concat(value(*recipe));
        each += concat(each.empty() ? "" : ", ", recipe->name, " ", own);
        same = same && own == first;
    }
    return same ? first : each;
}
