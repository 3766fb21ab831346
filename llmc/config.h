// What a model is: its sizes and switches, and every property that a layer has of its own.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>
#include "llmc/recipe.h"

/// Names of the enumerations, as flags, checkpoints and the reference spell them. The parsers throw
/// std::invalid_argument with the names that exist.
const char* name_of(Norm norm);
const char* name_of(Activation activation);
Norm norm_named(const std::string& name);
Activation activation_named(const std::string& name);
const char* name_of(Fall fall);
Fall fall_named(const std::string& name);
std::vector<std::string> fall_names();

/// A model, as `config` of a checkpoint spells it (and of the reference: the keys are the same).
struct GPTConfig {
    const Recipe* recipe = nullptr;      ///< of recipes(), or a constant that outlives the model
    int n_layer = 0, n_head = 0, n_kv_head = 0;
    int n_embd = 0;                      ///< C, the width
    int vocab_size = 0;                  ///< V, a multiple of 8 (50304 holds GPT-2's 50257)
    int seq_len = 0;                     ///< T
    Activation activation = Activation::relu2;
    bool tied = false;                   ///< the head is the embedding
    bool qk_norm = false;
    double softcap = 0;                  ///< 0: none
    Norm norm_wte = Norm::none, norm_lm_head = Norm::rms_norm;
    double norm_eps = 0;                 ///< of every rms_norm; layer_norm always has LAYER_NORM_EPS
    std::string window_pattern = "L";    ///< L sees all, S half of seq_len; repeated over the layers, the last sees all
    bool lambdas = false;                ///< resid_lambdas and x0_lambdas

    // One entry a layer; a layer that is moved into another model takes its entries along.
    std::vector<double> attn_scale;      ///< of the attention branch
    std::vector<int> windows;            ///< tokens seen before the token itself
    std::vector<bool> value_embeds;
    std::vector<Norm> norm_before;       ///< of the residual stream, at the seam of a stack

    int head_size() const { return n_embd / n_head; }
    int kv_width() const { return head_size() * n_kv_head; }
    int qkv_width() const { return n_embd + 2 * kv_width(); }
    bool operator==(const GPTConfig&) const = default;
};

inline constexpr double LAYER_NORM_EPS = 1e-6;
/// With the other limits of validate(): parameters, bytes and FLOPs a token of any model fit 63 bits.
inline constexpr int MAX_LAYERS = 10000;
/// The eps of a norm of this model.
float norm_eps(const GPTConfig& config, Norm kind);

/// Channels of a model of that depth, and heads of that width, by the recipe's laws.
int64_t default_width(const Recipe& recipe, int n_layer);
int default_heads(const Recipe& recipe, int n_embd);
/// Scale of the attention branch of each layer of so many.
double default_attn_scale(const Recipe& recipe, int n_layer);

/// A model by the recipe's laws. window_pattern: the recipe's own where it is empty.
GPTConfig recipe_config(const Recipe& recipe, int n_layer, int n_head, int n_embd, int vocab_size, int seq_len, const std::string& window_pattern = "");

/// Windows of a model of n_layer layers by a pattern of S and L.
std::vector<int> window_sizes(int n_layer, int seq_len, const std::string& pattern);
/// Whether layer l of n_layer has a value embedding by the pattern: every second one, the last included.
bool has_value_embed(int l, int n_layer);

/// Throws std::invalid_argument for the first rule that the configuration breaks.
void validate(const GPTConfig& config);

nlohmann::json to_json(const GPTConfig& config);
/// Throws std::invalid_argument when a key is missing, unknown or of another type, or validate() does. `where` names the file.
GPTConfig config_from_json(const nlohmann::json& json, const std::string& where);
