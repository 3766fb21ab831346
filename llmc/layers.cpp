// Which layers a deeper model is made of.
#include "llmc/layers.h"
#include <algorithm>
#include <charconv>
#include <iterator>
#include <nlohmann/json.hpp>
#include <stdexcept>
#include "llmc/io/error.h"

// ------------------------------------------------------------------------------------------------- ways to make a model deeper

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

/// Layers that --factor asks for.
static int deeper(const GrowthOptions& options, int n_layer) {
    require(options.factor && *options.factor >= 1, "--order ", options.order, " needs --factor: how many times deeper the model gets");
    require(*options.factor <= MAX_LAYERS / n_layer, "--factor ", *options.factor, " makes ", int64_t{*options.factor} * n_layer,
            " layers of ", n_layer, ", but a model has at most ", MAX_LAYERS);
    return *options.factor * n_layer;
}

static std::vector<int> stack_order(const GrowthOptions& options, int n_layer) {
    std::vector<int> layers(deeper(options, n_layer));
    for (size_t n = 0; n < layers.size(); n++) layers[n] = static_cast<int>(n) % n_layer;
    return layers;
}

static std::vector<int> interleave_order(const GrowthOptions& options, int n_layer) {
    std::vector<int> layers(deeper(options, n_layer));
    for (size_t n = 0; n < layers.size(); n++) layers[n] = static_cast<int>(n) / *options.factor;
    return layers;
}

static std::vector<int> new_layers_on_top(const GrowthOptions& options, int n_layer) {
    std::vector<int> layers(deeper(options, n_layer), NEW_LAYER);
    for (int n = 0; n < n_layer; n++) layers[n] = n;
    return layers;
}

static std::vector<int> listed_order(const GrowthOptions& options, int) { return parse_list(options.order); }

static const char* const LIST = "LIST";   // stands in --help for any list

const std::vector<GrowthOperator>& growth_operators() {
    using Op = GrowthOperator;
    static const Rule ZERO{Rule::constant, 0}, ONE{Rule::constant, 1};
    static const std::vector<Op> operators{
        {"stack", "the whole model again and again: 0 1 2 0 1 2", {"--factor", "--value-embeds"}, stack_order, Op::follow_pattern, {}},
        {"interleave", "every layer again and again: 0 0 1 1 2 2", {"--factor", "--value-embeds"}, interleave_order, Op::follow_pattern, {}},
        // The residual stream passes a new layer unchanged: both of its branches add 0, and x = 1 x + 0 x0 before them.
        {"zero", "new layers on top that change nothing at first: proj and fc_proj are 0, other matrices start as the recipe's,\n"
         "resid_lambda 1, x0_lambda 0, no value embedding, the recipe's attention scale, a window that sees all; old layers\n"
         "keep what is theirs, windows too", {"--factor", "--seed"}, new_layers_on_top, Op::keep,
         {{"proj", ZERO}, {"fc_proj", ZERO}, {"resid_lambdas", ONE}, {"x0_lambdas", ZERO}}},
        {LIST, "the layers themselves, like 0,1,2,0,1,2, without --factor", {"--value-embeds"}, listed_order, Op::follow_pattern, {}},
    };
    return operators;
}

static const GrowthOperator& operator_of(const std::string& order) {
    const bool list = !parse_list(order).empty();
    std::string names;
    for (const GrowthOperator& known : growth_operators()) {
        if (known.name == LIST ? list : order == known.name) return known;
        if (known.name != LIST) names += concat(known.name, ", ");
    }
    fail("--order is '", order.substr(0, 60), "', but must be ", names, "or a list of layers like 0,1,2,0,1,2");
}

static bool takes(const GrowthOperator& op, const std::string& flag) { return std::find(op.flags.begin(), op.flags.end(), flag) != op.flags.end(); }

std::string operators_that_take(const std::string& flag) {
    std::string names;
    for (const GrowthOperator& known : growth_operators())
        if (takes(known, flag)) names += concat(names.empty() ? "" : ", ", known.name);
    return names;
}

static constexpr uint64_t SEED = 42;

/// The optional flags of growth: whether one was given, and its value or what it is otherwise.
struct GrowthFlag {
    const char* flag;
    bool (*given)(const GrowthOptions&);
    std::string (*value)(const GrowthOptions&);
};
static const GrowthFlag GROWTH_FLAGS[] = {
    {"--factor", [](const GrowthOptions& o) { return o.factor.has_value(); }, [](const GrowthOptions& o) { return std::to_string(o.factor.value()); }},
    {"--value-embeds", [](const GrowthOptions& o) { return o.value_embeds.has_value(); },
     [](const GrowthOptions& o) { return std::string(o.value_embeds == ValueEmbeds::pattern ? "pattern" : "layer"); }},
    {"--seed", [](const GrowthOptions& o) { return o.seed.has_value(); }, [](const GrowthOptions& o) { return std::to_string(o.seed.value_or(SEED)); }},
};

std::string growth_detail(const GrowthOptions& options) {
    std::string detail = "--order " + options.order;
    for (const GrowthFlag& known : GROWTH_FLAGS)
        if (takes(operator_of(options.order), known.flag)) detail += concat(" ", known.flag, " ", known.value(options));
    return detail;
}

// ----------------------------------------------------------------------------------------------------------------- layer maps

std::string text_of(const Rule& rule) {
    char number[32];
    const std::string shortest(number, std::to_chars(number, std::end(number), rule.number).ptr);
    switch (rule.kind) {
        case Rule::copy: return "copied";
        case Rule::scaled: return "x " + shortest;
        case Rule::constant: return shortest;
        case Rule::initial: return "initial";
    }
    throw std::logic_error("layers: no such rule");
}

nlohmann::json layers_json(const LayerMap& map) {
    nlohmann::json layers = nlohmann::json::array();
    for (const LayerFrom& from : map.layers) {
        nlohmann::json entry;   // null
        if (!from.is_new()) entry = {from.model, from.layer};
        if (!from.is_new() && !from.rules.empty()) {
            nlohmann::json rules = nlohmann::json::object();
            for (const TensorRule& own : from.rules) rules[own.tensor] = text_of(own.rule);
            entry.push_back(std::move(rules));
        }
        layers.push_back(std::move(entry));
    }
    return layers;
}

Rule LayerFrom::rule(const std::string& tensor) const {
    for (const TensorRule& own : rules)
        if (own.tensor == tensor) return own.rule;
    return {is_new() ? Rule::initial : Rule::copy};
}

/// Appends layer l of `from`, with everything that is its own. (Lambdas are tensors and go with it too.)
static void add_layer(LayerMap& map, const GPTConfig& from, int model, int l) {
    map.config.n_layer++;
    map.config.attn_scale.push_back(from.attn_scale[l]);
    map.config.windows.push_back(from.windows[l]);
    map.config.value_embeds.push_back(from.value_embeds[l]);
    map.config.norm_before.push_back(from.norm_before[l]);
    map.layers.push_back({model, l, {}});
}

static void add_new_layer(LayerMap& map, const std::vector<TensorRule>& rules, double attn_scale) {
    map.config.n_layer++;
    map.config.attn_scale.push_back(attn_scale);
    map.config.windows.push_back(map.config.seq_len);
    map.config.value_embeds.push_back(false);
    map.config.norm_before.push_back(Norm::none);
    map.layers.push_back({-1, -1, rules});
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

LayerMap grow_map(const GPTConfig& config, const GrowthOptions& options) {
    const GrowthOperator& op = operator_of(options.order);
    for (const GrowthFlag& known : GROWTH_FLAGS)
        require(!known.given(options) || takes(op, known.flag), "--order ", options.order.substr(0, 60), " does not take ", known.flag, "; leave ",
                known.flag, " out, or use --order ", operators_that_take(known.flag));

    LayerMap map = without_layers(config);
    map.seed = options.seed.value_or(SEED);
    const std::vector<int> layers = op.layers(options, config.n_layer);
    const int depth = static_cast<int>(layers.size());
    for (int layer : layers) {
        if (layer == NEW_LAYER) {
            add_new_layer(map, op.new_layer, default_attn_scale(*config.recipe, depth));
            continue;
        }
        require(layer < config.n_layer, "--order names layer ", layer, ", but the model has layers 0 to ", config.n_layer - 1);
        add_layer(map, config, 0, layer);
    }
    if (op.windows == GrowthOperator::follow_pattern) map.config.windows = window_sizes(depth, config.seq_len, config.window_pattern);
    if (options.value_embeds == ValueEmbeds::pattern)
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

/// Layers `first` to `last` of a model, both included.
struct Slice {
    int model, first, last;
};

static std::string letter_of(size_t model) { return std::string(1, static_cast<char>('A' + model)); }

/// One of A:0-3, or A:3 for one layer.
static Slice parse_slice(const std::string& text, const std::vector<GPTConfig>& models, const std::vector<std::string>& names) {
    const std::string wrong = concat("--layers '", text.substr(0, 60), "'");
    Slice slice{};
    const char* at = text.data() + std::min<size_t>(text.size(), 2);
    const char* const end = text.data() + text.size();
    auto number = [&](int& to) {
        auto [rest, error] = std::from_chars(at, end, to);
        const bool is = at < end && *at != '-' && error == std::errc();
        at = rest;
        return is;
    };
    bool fits = text.size() > 2 && text[0] >= 'A' && text[0] <= 'Z' && text[1] == ':' && number(slice.first);
    slice.last = slice.first;
    if (fits && at < end) fits = *at++ == '-' && number(slice.last) && at == end;
    require(fits, wrong, " is no slice; write a model's letter and its layers, A:0-3 or A:3, with commas between slices");

    slice.model = text[0] - 'A';
    const size_t count = models.size();
    require(static_cast<size_t>(slice.model) < count, wrong, ": there is no model ", letter_of(slice.model), "; the ", count, " given are A to ",
            letter_of(count - 1), ", in their order");
    const int n_layer = models[slice.model].n_layer;
    const std::string has = n_layer == 0 ? "no layers" : concat("layers 0 to ", n_layer - 1);
    for (int layer : {slice.first, slice.last})
        require(layer < n_layer, wrong, ": layer ", layer, " of ", letter_of(slice.model), " (", names[slice.model], "), which has ", has);
    require(slice.first <= slice.last, wrong, ": its last layer stands before its first; write ", letter_of(slice.model), ":", slice.last, "-", slice.first);
    return slice;
}

static std::vector<Slice> parse_slices(const std::string& text, const std::vector<GPTConfig>& models, const std::vector<std::string>& names) {
    require(models.size() <= 26, "--layers names models by the letters A to Z, but there are ", models.size(), "; stack some of them first");
    std::vector<Slice> slices;
    std::vector<bool> named(models.size(), false);
    for (size_t begin = 0; begin <= text.size();) {
        const size_t comma = std::min(text.find(',', begin), text.size());
        slices.push_back(parse_slice(text.substr(begin, comma - begin), models, names));
        named[slices.back().model] = true;
        begin = comma + 1;
    }
    for (size_t m = 1; m + 1 < models.size(); m++)   // the first has the embedding, the last the head
        require(named[m], "--layers has no slice of ", letter_of(m), " (", names[m], "); add one, or leave the model out");
    return slices;
}

/// Whole models, but for the layers at their seams.
static std::vector<Slice> slices_of(const std::vector<GPTConfig>& models, const StackOptions& options) {
    std::vector<Slice> slices;
    const int last_model = static_cast<int>(models.size()) - 1;
    for (int m = 0; m <= last_model; m++)
        slices.push_back({m, m == 0 || options.use_first_layer ? 0 : 1, models[m].n_layer - (m == last_model || options.use_last_layer ? 1 : 2)});
    return slices;
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
    const std::vector<Slice> slices = options.layers.empty() ? slices_of(models, options) : parse_slices(options.layers, models, names);
    int64_t depth = 0;
    for (const Slice& slice : slices) depth += std::max(0, slice.last - slice.first + 1);
    require(depth <= MAX_LAYERS, "the stack would have ", depth, " layers, but a model has at most ", MAX_LAYERS);
    for (size_t i = 0; i < slices.size(); i++)
        for (int l = slices[i].first; l <= slices[i].last; l++) {
            add_layer(map, models[slices[i].model], slices[i].model, l);
            if (i > 0 && l == slices[i].first) map.config.norm_before.back() = options.norm_inter_model;
        }
    require(!map.layers.empty(), "no layer is left for the stack; give --use-first-layer or --use-last-layer");
    validate(map.config);
    return map;
}
