// Models by the rules of their recipes, and the limits that every model must respect.
#include "llmc/config.h"
#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>
#include <utility>
#include "llmc/io/error.h"
#include "llmc/io/json.h"
#include "llmc/ops/value_embedding.h"

using nlohmann::json;

template <class Enum>
using Names = std::vector<std::pair<const char*, Enum>>;

static const Names<Norm> NORMS{{"none", Norm::none}, {"rms_norm", Norm::rms_norm}, {"layer_norm", Norm::layer_norm}};
static const Names<Activation> ACTIVATIONS{{"gelu", Activation::gelu}, {"relu2", Activation::relu2}};

static const Names<Fall> FALLS{{"linear", Fall::linear}, {"cosine", Fall::cosine}, {"1-sqrt", Fall::one_minus_sqrt}};

template <class Enum>
static const char* name_in(const Names<Enum>& names, Enum value) {
    for (auto& [name, entry] : names)
        if (entry == value) return name;
    return "?";
}

template <class Enum>
static Enum value_in(const Names<Enum>& names, const char* what, const std::string& wanted) {
    std::string all;
    for (auto& [name, entry] : names) {
        if (wanted == name) return entry;
        all += concat(all.empty() ? "" : ", ", name);
    }
    fail(what, " is '", wanted, "', but must be one of: ", all);
}

const char* name_of(Norm norm) { return name_in(NORMS, norm); }
const char* name_of(Activation activation) { return name_in(ACTIVATIONS, activation); }
Norm norm_named(const std::string& name) { return value_in(NORMS, "norm", name); }
const char* name_of(Fall fall) { return name_in(FALLS, fall); }
Fall fall_named(const std::string& name) { return value_in(FALLS, "fall of the learning rates", name); }
std::vector<std::string> fall_names() {
    std::vector<std::string> names;
    for (auto& [name, fall] : FALLS) names.push_back(name);
    return names;
}
Activation activation_named(const std::string& name) { return value_in(ACTIVATIONS, "activation", name); }

float norm_eps(const GPTConfig& config, Norm kind) {
    return static_cast<float>(kind == Norm::layer_norm ? LAYER_NORM_EPS : config.norm_eps);
}

std::vector<int> window_sizes(int n_layer, int seq_len, const std::string& pattern) {
    require(!pattern.empty() && pattern.find_first_not_of("SL") == std::string::npos, "window pattern is '", pattern,
            "', but must be letters S (half of seq_len) and L (full), like SSSL");
    std::vector<int> windows;
    for (int l = 0; l < n_layer; l++) {
        bool all = l == n_layer - 1 || pattern[l % pattern.size()] == 'L';
        windows.push_back(all ? seq_len : seq_len / 2);
    }
    return windows;
}

bool has_value_embed(int l, int n_layer) { return l % 2 == (n_layer - 1) % 2; }

int64_t default_width(const Recipe& recipe, int n_layer) {
    const int64_t head = recipe.model.head_size, width = int64_t{recipe.model.width_per_layer} * n_layer;
    return (width + head - 1) / head * head;
}

int default_heads(const Recipe& recipe, int n_embd) { return std::max(1, n_embd / recipe.model.head_size); }

double default_attn_scale(const Recipe& recipe, int n_layer) {
    return recipe.model.attn_scale == BranchScale::by_depth ? 1 / std::sqrt(2.0 * n_layer) : 1;
}

GPTConfig recipe_config(const Recipe& recipe, int n_layer, int n_head, int n_embd, int vocab_size, int seq_len, const std::string& window_pattern) {
    require(n_layer >= 0 && n_layer <= MAX_LAYERS, "depth is ", n_layer, ", but must be 0 to ", MAX_LAYERS, " layers");
    const ModelLaws& laws = recipe.model;
    GPTConfig c;
    c.recipe = &recipe;
    c.n_layer = n_layer;
    c.n_head = c.n_kv_head = n_head;
    c.n_embd = n_embd;
    c.vocab_size = vocab_size;
    c.seq_len = seq_len;
    c.activation = laws.activation;
    c.tied = laws.tied;
    c.qk_norm = laws.qk_norm;
    c.softcap = laws.softcap;
    c.norm_wte = laws.norm_wte;
    c.norm_lm_head = laws.norm_lm_head;
    c.norm_eps = laws.norm_eps;
    c.window_pattern = window_pattern.empty() ? laws.window_pattern : window_pattern;
    c.lambdas = laws.lambdas;
    c.attn_scale.assign(n_layer, default_attn_scale(recipe, n_layer));
    c.windows = window_sizes(n_layer, seq_len, c.window_pattern);
    for (int l = 0; l < n_layer; l++) c.value_embeds.push_back(laws.value_embeds && has_value_embed(l, n_layer));
    c.norm_before.assign(n_layer, Norm::none);
    return c;
}

void validate(const GPTConfig& c) {
    require(c.recipe, "the model has no recipe");
    require(c.n_layer >= 0 && c.n_layer <= MAX_LAYERS, "depth is ", c.n_layer, ", but must be 0 to ", MAX_LAYERS, " layers");
    require(c.n_embd >= 8 && c.n_embd <= (1 << 20) && c.n_embd % 8 == 0, "width is ", c.n_embd, ", but must be a multiple of 8, 8 to 1048576");
    require(c.n_head >= 1 && c.n_embd % c.n_head == 0, "width (", c.n_embd, ") must be a multiple of heads (", c.n_head, ")");
    require(c.head_size() % 8 == 0, "head size, width / heads = ", c.n_embd, " / ", c.n_head, " = ", c.head_size(),
            ", must be a multiple of 8; choose other --heads");
    require(c.n_kv_head >= 1 && c.n_head % c.n_kv_head == 0, "heads (", c.n_head, ") must be a multiple of key/value heads (", c.n_kv_head, ")");
    require(c.vocab_size >= 8 && c.vocab_size % 8 == 0 && c.vocab_size <= 65536, "vocabulary is ", c.vocab_size,
            ", but must be a multiple of 8 up to 65536 (tokens are 16 bits); round up, as 50257 to 50304");
    require(c.seq_len >= 1 && c.seq_len <= (1 << 24), "sequence length is ", c.seq_len, ", but must be 1 to 16777216 tokens");
    require(c.softcap >= 0 && std::isfinite(c.softcap), "softcap is ", c.softcap, ", but must be 0 (none) or above");
    require(c.norm_eps > 0 && c.norm_eps < 1, "norm_eps is ", c.norm_eps, ", but must be above 0 and below 1");
    size_t L = static_cast<size_t>(c.n_layer);
    require(c.attn_scale.size() == L && c.windows.size() == L && c.value_embeds.size() == L && c.norm_before.size() == L,
            "attn_scale, windows, value_embeds and norm_before must have an entry for each of the ", L, " layers, but have ",
            c.attn_scale.size(), ", ", c.windows.size(), ", ", c.value_embeds.size(), " and ", c.norm_before.size());
    for (size_t l = 0; l < L; l++) {
        require(std::isfinite(c.attn_scale[l]), "attn_scale of layer ", l, " is not a finite number");
        require(c.windows[l] >= 0, "window of layer ", l, " is ", c.windows[l], ", but must be 0 or more tokens");
    }
    bool any_ve = std::find(c.value_embeds.begin(), c.value_embeds.end(), true) != c.value_embeds.end();
    require(!any_ve || c.n_embd >= VE_GATE_CHANNELS, "width is ", c.n_embd, ", but value embeddings need ", VE_GATE_CHANNELS, " channels or more");
    window_sizes(1, c.seq_len, c.window_pattern);
}

// ------------------------------------------------------------------------------------------------------- as JSON

/// Every property with its key in files: to_json() writes, and config_from_json() reads, by this list.
template <class Config, class Each>
static void for_each_property(Config& c, Each each) {
    each("recipe", c.recipe);
    each("n_layer", c.n_layer);
    each("n_head", c.n_head);
    each("n_kv_head", c.n_kv_head);
    each("n_embd", c.n_embd);
    each("vocab_size", c.vocab_size);
    each("seq_len", c.seq_len);
    each("activation", c.activation);
    each("tied", c.tied);
    each("qk_norm", c.qk_norm);
    each("softcap", c.softcap);
    each("norm_wte", c.norm_wte);
    each("norm_lm_head", c.norm_lm_head);
    each("norm_eps", c.norm_eps);
    each("attn_scale", c.attn_scale);
    each("window_pattern", c.window_pattern);
    each("windows", c.windows);
    each("value_embeds", c.value_embeds);
    each("lambdas", c.lambdas);
    each("norm_before", c.norm_before);
}

static json value_of(const Recipe* recipe) { return recipe->name; }
static json value_of(Norm norm) { return name_of(norm); }
static json value_of(Activation activation) { return name_of(activation); }
template <class Plain>
static json value_of(const Plain& value) { return value; }
static json value_of(const std::vector<Norm>& norms) {
    json names = json::array();
    for (Norm norm : norms) names.push_back(name_of(norm));
    return names;
}

static void read(int& to, const json& value, const char* key) { to = static_cast<int>(json_integer(value, 0, INT32_MAX, key)); }
static void read(double& to, const json& value, const char* key) { to = json_number(value, key); }
static void read(std::string& to, const json& value, const char* key) { to = json_string(value, key); }
static void read(const Recipe*& to, const json& value, const char* key) { to = &recipe_named(json_string(value, key)); }
static void read(Norm& to, const json& value, const char* key) { to = norm_named(json_string(value, key)); }
static void read(Activation& to, const json& value, const char* key) { to = activation_named(json_string(value, key)); }
static void read(bool& to, const json& value, const char* key) { to = json_bool(value, key); }
template <class Element>
static void read(std::vector<Element>& to, const json& values, const char* key) {
    for (const json& value : json_array(values, key)) {
        Element element{};
        read(element, value, key);
        to.push_back(element);
    }
}

json to_json(const GPTConfig& c) {
    json properties = json::object();
    for_each_property(c, [&](const char* key, const auto& value) { properties[key] = value_of(value); });
    return properties;
}

GPTConfig config_from_json(const json& j, const std::string& where) try {
    GPTConfig c;
    for_each_property(c, [&](const char* key, auto& value) { read(value, json_member(j, key, "its JSON"), key); });
    json known = to_json(c);
    for (auto& [key, ignored] : j.items())
        require(known.contains(key), "'", key, "' is not a property this version knows; it was written by a newer one");
    validate(c);
    return c;
} catch (const std::invalid_argument& error) {
    fail(where, ": config: ", error.what());
}
