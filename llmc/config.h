// The configuration of a model: its sizes and switches, and every per-layer property.
#pragma once
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <vector>
#include "llmc/recipe.h"

/// Names of the enumerations, as flags, checkpoints and the reference spell them. The parsers throw
/// std::invalid_argument, listing the valid names.
const char* name_of(Norm norm);
const char* name_of(Activation activation);
Norm norm_named(const std::string& name);
Activation activation_named(const std::string& name);
const char* name_of(Fall fall);
Fall fall_named(const std::string& name);
std::vector<std::string> fall_names();

/// A model, with the keys of `config` in a checkpoint (and in the reference).
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
    std::string window_pattern = "L";    ///< attention window a layer: L full, S half of seq_len; repeated over the layers, the last one is L
    bool lambdas = false;                ///< resid_lambdas and x0_lambdas

    // One entry per layer; a layer that is moved into another model takes its entries along.
    std::vector<double> attn_scale;      ///< of the attention branch
    std::vector<int> windows;            ///< how many earlier tokens a token attends to
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
/// The eps of a norm of that kind in this model.
float norm_eps(const GPTConfig& config, Norm kind);

/// Channels of a model of that depth, and heads of a model of that width, by the recipe's rules.
int64_t default_width(const Recipe& recipe, int n_layer);
int default_heads(const Recipe& recipe, int n_embd);
/// Scale of the attention branch of every layer in a model of n_layer layers.
double default_attn_scale(const Recipe& recipe, int n_layer);

/// A model by the recipe's rules. window_pattern: the recipe's own where it is empty.
GPTConfig recipe_config(const Recipe& recipe, int n_layer, int n_head, int n_embd, int vocab_size, int seq_len, const std::string& window_pattern = "");

/// Windows of a model of n_layer layers by a pattern of S and L.
std::vector<int> window_sizes(int n_layer, int seq_len, const std::string& pattern);
/// Whether layer l of n_layer has a value embedding by the recipes' pattern: every second layer, the last included.
bool has_value_embed(int l, int n_layer);

/// Throws std::invalid_argument for the first rule that the configuration breaks.
void validate(const GPTConfig& config);

nlohmann::json to_json(const GPTConfig& config);
/// Throws std::invalid_argument when a key is missing, unknown or of the wrong type, or when validate() throws. `where` names the file.
GPTConfig config_from_json(const nlohmann::json& json, const std::string& where);
