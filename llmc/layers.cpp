// Which layers of which models make a deeper one.
#include "llmc/layers.h"
#include <charconv>
#include <nlohmann/json.hpp>
#include "llmc/io/error.h"

const std::vector<GrowthOrder>& growth_orders() {
    static const std::vector<GrowthOrder> orders{
        {"stack", "the whole model again and again: 0 1 2 0 1 2", [](int n, int n_layer, int) { return n % n_layer; }},
        {"interleave", "every layer again and again: 0 0 1 1 2 2", [](int n, int, int factor) { return n / factor; }},
    };
    return orders;
}

/// "0,1,2" as numbers; empty when it is no such list.
static std::vector<int> parse_list(const std::string& text) {
    std::vector<int> numbers;
    const char* at = text.data();
    const char* end = at + text.size();
    for (;;) {
        int number = 0;
        auto [rest, error] = std::from_chars(at, end, number);
        if (error != std::errc() || number < 0) return {};
        numbers.push_back(number);
        if (rest == end) return numbers;
        if (*rest != ',') return {};
        at = rest + 1;
    }
}

std::vector<int> growth_order(const std::string& order, int factor, int n_layer) {
    std::string names;
    for (const GrowthOrder& known : growth_orders()) {
        names += concat(known.name, ", ");
        if (order != known.name) continue;
        require(factor >= 1, "--order ", order, " needs --factor: how many times deeper the model gets");
        require(factor <= MAX_LAYERS / n_layer, "--factor ", factor, " makes ", int64_t{factor} * n_layer, " layers of ", n_layer,
                ", but a model has at most ", MAX_LAYERS);
        std::vector<int> layers;
        for (int n = 0; n < n_layer * factor; n++) layers.push_back(known.source(n, n_layer, factor));
        return layers;
    }
    std::vector<int> list = parse_list(order);
    require(!list.empty(), "--order is '", order.substr(0, 60), "', but must be ", names, "or a list of layers like 0,1,2,0,1,2");
    require(factor == 0, "--order names every layer; leave --factor out, or use --order stack or interleave");
    return list;
}

/// Appends layer l of `from`, with everything that is its own. (Lambdas are tensors and go with it too.)
static void add_layer(LayerMap& map, const GPTConfig& from, int model, int l) {
    map.config.n_layer++;
    map.config.attn_scale.push_back(from.attn_scale[l]);
    map.config.windows.push_back(from.windows[l]);
    map.config.value_embeds.push_back(from.value_embeds[l]);
    map.config.norm_before.push_back(from.norm_before[l]);
    map.layers.push_back({model, l});
}

static LayerMap without_layers(const GPTConfig& config) {
    LayerMap map{config, {}};
    map.config.n_layer = 0;
    map.config.attn_scale.clear();
    map.config.windows.clear();
    map.config.value_embeds.clear();
    map.config.norm_before.clear();
    return map;
}

LayerMap grow_map(const GPTConfig& config, const std::vector<int>& order, ValueEmbeds value_embeds) {
    LayerMap map = without_layers(config);
    int depth = static_cast<int>(order.size());
    for (int layer : order) {
        require(layer >= 0 && layer < config.n_layer, "--order names layer ", layer, ", but the model has layers 0 to ", config.n_layer - 1);
        add_layer(map, config, 0, layer);
    }
    map.config.windows = window_sizes(depth, config.seq_len, config.window_pattern);
    if (value_embeds == ValueEmbeds::pattern)
        for (int n = 0; n < depth; n++) map.config.value_embeds[n] = map.config.value_embeds[n] && has_value_embed(n, depth);
    validate(map.config);
    return map;
}

/// What all models of a stack have in common: all of a configuration but its layers, and what stack's flags decide.
static nlohmann::json common_properties(const GPTConfig& config) {
    nlohmann::json common = to_json(config);
    for (const char* own : {"n_layer", "attn_scale", "windows", "window_pattern", "value_embeds", "norm_before", "norm_wte", "norm_lm_head"})
        common.erase(own);
    return common;
}

static void require_equal(const std::string& key, const nlohmann::json& first, const nlohmann::json& other, const std::string& first_name,
                          const std::string& other_name) {
    const char* meaning = key == "n_embd" ? " (width)" : key == "vocab_size" ? " (vocabulary)" : "";
    require(first.at(key) == other.at(key), "models of a stack must agree in ", key, meaning, ", but it is ", first.at(key).dump(), " in ", first_name, " and ",
            other.at(key).dump(), " in ", other_name);
}

LayerMap stack_map(const std::vector<GPTConfig>& models, const std::vector<std::string>& names, const StackOptions& options) {
    require(models.size() >= 2, "a stack needs two models or more; the same file may be given twice");
    nlohmann::json first = common_properties(models[0]);
    for (size_t m = 1; m < models.size(); m++) {
        nlohmann::json other = common_properties(models[m]);
        require_equal("recipe", first, other, names[0], names[m]);   // where it differs, most others do
        for (auto& [key, ignored] : first.items()) require_equal(key, first, other, names[0], names[m]);
    }

    LayerMap map = without_layers(models[0]);
    map.config.norm_wte = options.norm_wte;
    map.config.norm_lm_head = options.norm_lm_head;
    int last_model = static_cast<int>(models.size()) - 1;
    for (int m = 0; m <= last_model; m++) {
        int begin = m == 0 || options.use_first_layer ? 0 : 1;
        int end = models[m].n_layer - (m == last_model || options.use_last_layer ? 0 : 1);
        for (int l = begin; l < end; l++) {
            add_layer(map, models[m], m, l);
            if (m > 0 && l == begin) map.config.norm_before.back() = options.norm_inter_model;
        }
    }
    require(!map.layers.empty(), "no layer is left for the stack; give --use-first-layer or --use-last-layer");
    validate(map.config);
    return map;
}
