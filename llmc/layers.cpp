// Which layers a deeper model is made of.
#include "llmc/layers.h"
#include <algorithm>
#include <charconv>
#include <cmath>
#include <functional>
#include <iterator>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include "llmc/io/error.h"

// ------------------------------------------------------------------------------------------------- ways to make a model deeper

/// Parses "0,1,2"; empty when the text is not such a list.
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

/// The depth that --factor or --depth asks for.
static int deeper(const GrowthOptions& options, int n_layer) {
    require(options.factor || options.depth, "--order ", options.order,
            " needs --factor, how many times deeper the model gets, or --depth, its number of layers");
    require(!options.factor || !options.depth, "--factor and --depth are both given; leave one of them out");
    require(!options.factor || *options.factor >= 1, "--factor is ", options.factor.value_or(1), ", but must be 1 or more");
    require(!options.factor || n_layer > 0, "--factor ", options.factor.value_or(1),
            " makes 0 layers of a model of 0 layers; give --depth, its number of layers");
    const int64_t depth = options.depth ? *options.depth : int64_t{*options.factor} * n_layer;
    require(depth <= MAX_LAYERS, options.factor ? "--factor " : "--depth ", options.factor ? *options.factor : depth, " makes ",
            depth, " layers of ", n_layer, ", but a model has at most ", MAX_LAYERS);
    require(depth >= n_layer, "--depth is ", depth, ", but the model has ", n_layer, " layers; give as many or more");
    return static_cast<int>(depth);
}

/// A vector of `depth` layers: place(n) at each n.
template <class Place>
static std::vector<int> each_of(int depth, Place place) {
    std::vector<int> layers(depth);
    for (int n = 0; n < depth; n++) layers[n] = place(n);
    return layers;
}

static std::vector<int> stack_order(const GrowthOptions& options, int L) {
    return each_of(deeper(options, L), [L](int n) { return n % L; });
}
static std::vector<int> interleave_order(const GrowthOptions& options, int L) {
    const int D = deeper(options, L);
    return each_of(D, [L, D](int n) { return static_cast<int>(int64_t{n} * L / D); });
}
static std::vector<int> first_order(const GrowthOptions& options, int L) {
    const int D = deeper(options, L);
    return each_of(D, [L, D](int n) { return std::max(0, n - (D - L)); });
}
static std::vector<int> last_order(const GrowthOptions& options, int L) {
    return each_of(deeper(options, L), [L](int n) { return std::min(n, L - 1); });
}

/// The two numbers of "a:b"; nothing for any other text.
static std::optional<std::pair<int, int>> parse_range(const std::string& text) {
    const size_t colon = text.find(':');
    if (colon == std::string::npos) return {};
    const std::vector<int> a = parse_list(text.substr(0, colon)), b = parse_list(text.substr(colon + 1));
    if (a.size() != 1 || b.size() != 1) return {};
    return {{a[0], b[0]}};
}

static std::vector<int> middle_order(const GrowthOptions& options, int L) {
    const int D = deeper(options, L);
    require(options.middle || L >= 3, "--order middle needs --middle a:b here: a model of ", L, L == 1 ? " layer" : " layers",
            " has no layers between its first and last");
    const std::string text = options.middle.value_or(concat("1:", L - 2));
    const auto range = parse_range(text);
    require(range && range->first <= range->second, "--middle is '", text.substr(0, 60),
            "', but must be two layers a:b, like 1:4, both included, the lower one first");
    const auto [a, b] = *range;
    require(b < L, "--middle ", text, " names layer ", b, ", but the model has layers 0 to ", L - 1);
    return each_of(D, [=, behind = D - (L - 1 - b)](int n) {
        return n < a ? n : n < behind ? a + (n - a) % (b - a + 1) : n - (D - L);
    });
}

static std::vector<int> solar_order(const GrowthOptions& options, int L) {
    require(options.drop.has_value(), "--order solar needs --drop: how many layers each of the two copies leaves out");
    const int m = *options.drop;
    require(m >= 0 && m <= L / 2, "--drop is ", m, ", but must be 0 to ", L / 2,
            ": with more the model would not get deeper than its ", L, " layers");
    require(2 * (L - m) <= MAX_LAYERS, "--drop ", m, " makes ", 2 * (L - m), " layers of ", L, ", but a model has at most ",
            MAX_LAYERS);
    return each_of(2 * (L - m), [L, m](int n) { return n < L - m ? n : n - (L - m) + m; });
}

static std::vector<int> with_new_layers(const GrowthOptions& options, int L) {
    const int D = deeper(options, L);
    const NewAt at = options.at.value_or(NewAt::top);
    const int first = at == NewAt::bottom ? 0 : at == NewAt::middle ? L / 2 : L, behind = first + D - L;
    return each_of(D, [=](int n) { return n < first ? n : n < behind ? NEW_LAYER : n - (D - L); });
}

static std::vector<int> listed_order(const GrowthOptions& options, int) { return parse_list(options.order); }

static const char* const LIST = "LIST";   // stands in --help for any list

/// Concatenates lists of flags.
static std::vector<std::string> flags_of(const std::vector<std::vector<std::string>>& lists) {
    std::vector<std::string> flags;
    for (const auto& list : lists) flags.insert(flags.end(), list.begin(), list.end());
    return flags;
}

const std::vector<GrowthOperator>& growth_operators() {
    using Op = GrowthOperator;
    static const Rule ZERO{Rule::constant, 0}, ONE{Rule::constant, 1};
    static const std::vector<std::string> DEEPER{"--factor", "--depth"}, COPIES{"--value-embeds", "--damp", "--optimizer"},
        NEW{"--at", "--seed", "--optimizer"}, DEEPER_COPIES = flags_of({DEEPER, COPIES});
    static const std::vector<Op> operators{
        {"stack", "repeats the whole model: 0 1 2 0 1 2", DEEPER_COPIES, stack_order, Op::follow_pattern, {}},
        {"interleave", "repeats each layer in place: 0 0 1 1 2 2", DEEPER_COPIES, interleave_order, Op::follow_pattern, {}},
        {"first", "repeats the first layer: 0 0 0 0 1 2", DEEPER_COPIES, first_order, Op::follow_pattern, {}},
        {"last", "repeats the last layer: 0 1 2 2 2 2", DEEPER_COPIES, last_order, Op::follow_pattern, {}},
        {"middle", "repeats all layers but the first and the last, or those of --middle: 0 1 2 1 2 3",
         flags_of({{"--middle"}, DEEPER_COPIES}), middle_order, Op::follow_pattern, {}},
        {"solar", "two copies (SOLAR's depth up-scaling): the first without its last --drop layers, the second without its first\n"
         "--drop layers: 0 1 2 1 2 3; without --factor and --depth", flags_of({{"--drop"}, COPIES}), solar_order, Op::follow_pattern, {}},
        {"random", "adds layers with the recipe's initial values, with value embeddings where the deeper model's own pattern has\n"
         "them. In nanochat proj and fc_proj start at 0, so that the grown model computes nearly the same function (it differs\n"
         "by x0_lambdas, and by windows that follow the new depth); in nanochat_nonzero no matrix starts at 0",
         flags_of({DEEPER, NEW, {"--value-embeds"}}), with_new_layers, Op::follow_pattern, {{true, {}}}},
        // The residual stream passes a new layer unchanged: both of its branches add 0, and x = 1 x + 0 x0 before them.
        {"zero", "adds layers that change nothing at first: proj and fc_proj are 0, other matrices have the recipe's initial\n"
         "values, resid_lambda is 1, x0_lambda 0; no value embedding, the recipe's attention scale, full attention. Old layers\n"
         "stay as they are, windows too", flags_of({DEEPER, NEW}), with_new_layers, Op::keep,
         {{false, {{"proj", ZERO}, {"fc_proj", ZERO}, {"resid_lambdas", ONE}, {"x0_lambdas", ZERO}}}}},
        {LIST, "any list of layers, like 0,1,2,0,1,2; without --factor and --depth", COPIES, listed_order, Op::follow_pattern,
         {}},
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

bool order_takes(const std::string& order, const std::string& flag) { return takes(operator_of(order), flag); }

std::string operators_that_take(const std::string& flag) {
    std::string names;
    for (const GrowthOperator& known : growth_operators())
        if (takes(known, flag)) names += concat(names.empty() ? "" : ", ", known.name);
    return names;
}

const std::vector<std::string>& spellings(ValueEmbeds) {
    static const std::vector<std::string> names{"layer", "pattern"};
    return names;
}
const std::vector<std::string>& spellings(NewAt) {
    static const std::vector<std::string> names{"bottom", "middle", "top"};
    return names;
}
const std::vector<std::string>& spellings(GrownState) {
    static const std::vector<std::string> names{"reset", "copy", "zero"};
    return names;
}

static constexpr uint64_t SEED = 42;

/// An optional flag of growth: whether it was given, and its value or default as text; empty where there is neither.
struct GrowthFlag {
    std::string flag;
    std::function<bool(const GrowthOptions&)> given;
    std::function<std::string(const GrowthOptions&)> value;
};

template <class Value>
static GrowthFlag growth_flag(const char* flag, std::optional<Value> GrowthOptions::*member, std::optional<Value> otherwise = {}) {
    auto value = [=](const GrowthOptions& options) -> std::string {
        const std::optional<Value> own = options.*member ? options.*member : otherwise;
        if (!own) return "";
        if constexpr (std::is_enum_v<Value>)
            return spellings(*own).at(static_cast<size_t>(*own));
        else
            return concat(*own);
    };
    return {flag, [=](const GrowthOptions& options) { return (options.*member).has_value(); }, value};
}

static const std::vector<GrowthFlag>& growth_flags() {
    using Options = GrowthOptions;
    static const std::vector<GrowthFlag> flags{
        growth_flag("--factor", &Options::factor),
        growth_flag("--depth", &Options::depth),
        growth_flag("--middle", &Options::middle),
        growth_flag("--drop", &Options::drop),
        growth_flag<NewAt>("--at", &Options::at, NewAt::top),
        growth_flag<ValueEmbeds>("--value-embeds", &Options::value_embeds, ValueEmbeds::layer),
        growth_flag("--damp", &Options::damp),
        growth_flag<uint64_t>("--seed", &Options::seed, SEED),
        growth_flag<GrownState>("--optimizer", &Options::optimizer, GrownState::reset),
    };
    return flags;
}

std::string growth_detail(const GrowthOptions& options) {
    std::string detail = "--order " + options.order;
    for (const GrowthFlag& known : growth_flags()) {
        const std::string value = known.value(options);
        if (order_takes(options.order, known.flag) && !value.empty()) detail += concat(" ", known.flag, " ", value);
    }
    return detail;
}

double tokens_before_growth(double params, double flops) {
    require(std::isfinite(params) && params >= 1, "--timing: N is ", params, ", but must be a number of parameters, 1 or more");
    require(std::isfinite(flops) && flops > 10 && flops >= 6 * params, "--timing: C is ", flops,
            ", but must be a number of FLOPs above 10, and enough to train N = ", params, " parameters on a token, 6 N");
    return std::pow(10, 0.88 * std::log10(params) + 163.27 / std::log10(flops) - 5.74);
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

/// Appends layer l of `from` with its per-layer properties. (Its lambdas are tensors, and go with it as such.)
static void add_layer(LayerMap& map, const GPTConfig& from, int model, int l) {
    map.config.n_layer++;
    map.config.attn_scale.push_back(from.attn_scale[l]);
    map.config.windows.push_back(from.windows[l]);
    map.config.value_embeds.push_back(from.value_embeds[l]);
    map.config.norm_before.push_back(from.norm_before[l]);
    map.layers.push_back({model, l, {}});
}

static void add_new_layer(LayerMap& map, const std::vector<TensorRule>& rules, double attn_scale, bool value_embeds) {
    map.config.n_layer++;
    map.config.attn_scale.push_back(attn_scale);
    map.config.windows.push_back(map.config.seq_len);
    map.config.value_embeds.push_back(value_embeds);
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

std::vector<bool> first_uses(const LayerMap& map) {
    std::set<std::pair<int, int>> seen;
    std::vector<bool> first;
    for (const LayerFrom& from : map.layers) first.push_back(from.is_new() || seen.insert({from.model, from.layer}).second);
    return first;
}

/// Whether the model has value embeddings at all; the recipe decides for a model without layers.
static bool has_value_embeds(const GPTConfig& config) {
    if (config.n_layer == 0) return config.recipe->model.value_embeds;
    return std::find(config.value_embeds.begin(), config.value_embeds.end(), true) != config.value_embeds.end();
}

static constexpr double MIN_DAMP = 1e-6, MAX_DAMP = 1000;

/// Scales the branches of copied layers: with 1/copies all uses of a layer by 1 / (number of uses); with a number all uses but the first
/// by that number. The configuration has a scale for attention; the MLP is linear in fc_proj, so these weights are scaled.
static void damp_branches(LayerMap& map, const std::string& damp) {
    const bool by_copies = damp == "1/copies";
    double number = 1;
    if (!by_copies) {
        const char* end = damp.data() + damp.size();
        auto [rest, error] = std::from_chars(damp.data(), end, number);
        require(error == std::errc() && rest == end && number >= MIN_DAMP && number <= MAX_DAMP, "--damp is '", damp.substr(0, 60),
                "', but must be a number, ", MIN_DAMP, " to ", MAX_DAMP, ", or 1/copies");
    }
    std::map<int, int> uses;
    for (const LayerFrom& from : map.layers) uses[from.layer]++;
    const std::vector<bool> first = first_uses(map);
    for (size_t n = 0; n < map.layers.size(); n++) {
        if (map.layers[n].is_new()) continue;
        const double factor = by_copies ? 1.0 / uses[map.layers[n].layer] : first[n] ? 1 : number;
        if (factor == 1) continue;
        map.config.attn_scale[n] *= factor;
        map.layers[n].rules.push_back({"fc_proj", {Rule::scaled, factor}});
    }
}

LayerMap grow_map(const GPTConfig& config, const GrowthOptions& options) {
    const GrowthOperator& op = operator_of(options.order);
    for (const GrowthFlag& known : growth_flags())
        require(!known.given(options) || takes(op, known.flag), "--order ", options.order.substr(0, 60), " does not take ", known.flag, "; leave ",
                known.flag, " out, or use --order ", operators_that_take(known.flag));
    require(config.n_layer > 0 || op.adds, "--order ", options.order.substr(0, 60),
            ": the model has no layers to copy; use --order random or zero, with --depth");

    LayerMap map = without_layers(config);
    map.seed = options.seed.value_or(SEED);
    map.state = options.optimizer.value_or(GrownState::reset);
    const std::vector<int> layers = op.layers(options, config.n_layer);
    const int depth = static_cast<int>(layers.size());
    for (int n = 0; n < depth; n++) {
        if (layers[n] == NEW_LAYER) {
            const bool value_embeds = op.adds->value_embeds && has_value_embeds(config) && has_value_embed(n, depth);
            add_new_layer(map, op.adds->rules, default_attn_scale(*config.recipe, depth), value_embeds);
            continue;
        }
        require(layers[n] < config.n_layer, "--order names layer ", layers[n], ", but the model has layers 0 to ",
                config.n_layer - 1);
        add_layer(map, config, 0, layers[n]);
    }
    if (op.windows == GrowthOperator::follow_pattern) map.config.windows = window_sizes(depth, config.seq_len, config.window_pattern);
    if (options.value_embeds == ValueEmbeds::pattern)
        for (int n = 0; n < depth; n++) map.config.value_embeds[n] = map.config.value_embeds[n] && has_value_embed(n, depth);
    if (options.damp) damp_branches(map, *options.damp);
    validate(map.config);
    return map;
}

/// The properties that all models of a stack must share: all but those of layers, and those that stack's flags set.
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

/// Parses A:0-3, or A:3 for one layer.
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
    require(fits, wrong, " is not a slice; write a model's letter and its layers, A:0-3 or A:3, with commas between slices");

    slice.model = text[0] - 'A';
    const size_t count = models.size();
    require(static_cast<size_t>(slice.model) < count, wrong, ": there is no model ", letter_of(slice.model), "; the ", count,
            " given are A to ", letter_of(count - 1), ", in their order");
    const int n_layer = models[slice.model].n_layer;
    const std::string has = n_layer == 0 ? "no layers" : concat("layers 0 to ", n_layer - 1);
    for (int layer : {slice.first, slice.last})
        require(layer < n_layer, wrong, ": layer ", layer, " of ", letter_of(slice.model), " (", names[slice.model],
                "), which has ", has);
    require(slice.first <= slice.last, wrong, ": its last layer comes before its first; write ", letter_of(slice.model), ":",
            slice.last, "-", slice.first);
    return slice;
}

static std::vector<Slice> parse_slices(const std::string& text, const std::vector<GPTConfig>& models,
                                       const std::vector<std::string>& names) {
    require(models.size() <= 26, "--layers names models by the letters A to Z, but there are ", models.size(),
            "; stack some of them first");
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

/// Whole models, without the layers at the seams unless options keep them.
static std::vector<Slice> slices_of(const std::vector<GPTConfig>& models, const StackOptions& options) {
    std::vector<Slice> slices;
    const int last_model = static_cast<int>(models.size()) - 1;
    for (int m = 0; m <= last_model; m++)
        slices.push_back({m, m == 0 || options.use_first_layer ? 0 : 1,
                          models[m].n_layer - (m == last_model || options.use_last_layer ? 1 : 2)});
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
    const std::vector<Slice> slices =
        options.layers.empty() ? slices_of(models, options) : parse_slices(options.layers, models, names);
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
