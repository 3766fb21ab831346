// What grow and stack share.
#include "llmc/rewrite.h"
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <functional>
#include <iomanip>
#include <iostream>
#include <memory>
#include <numeric>
#include <optional>
#include <set>
#include <stdexcept>
#include "llmc/io/error.h"
#include "llmc/io/process.h"
#include "llmc/tensors.h"

static bool a_number_a_layer(const TensorSpec& spec) { return spec.rows == Dim::L; }

/// The rules of layer n for its tensors, as text: " (proj 0, fc_proj x 0.5)"; empty when there are none.
static std::string rules_text(const LayerMap& map, int n, const std::set<std::string>& tensors) {
    std::string all;
    for (const TensorRule& own : map.layers[n].rules) {
        if (!tensors.contains(own.tensor) && !tensors.contains(concat("h.", n, ".", own.tensor))) continue;   // not in this model
        all += concat(all.empty() ? " (" : ", ", own.tensor, " ", text_of(own.rule));
    }
    return all.empty() ? all : all + ")";
}

void print_map(const LayerMap& map, const std::vector<const Checkpoint*>& models) {
    const GPTConfig& c = map.config;
    int digits = static_cast<int>(std::to_string(c.n_layer - 1).size());
    std::set<std::string> tensors;
    for (const Tensor& tensor : tensor_table(c)) tensors.insert(tensor.name);
    for (int n = 0; n < c.n_layer; n++) {
        const LayerFrom& from = map.layers[n];
        std::cout << "layer " << std::setw(digits) << n << " <- ";
        if (from.is_new())
            std::cout << "new, initial values of seed " << map.seed;
        else
            std::cout << "layer " << std::left << std::setw(digits) << from.layer << std::right << " of " << models[from.model]->path;
        std::cout << rules_text(map, n, tensors) << "   window " << c.windows[n] << ", scale " << c.attn_scale[n]
                  << ", value embedding " << (c.value_embeds[n] ? "yes" : "no") << ", norm before " << name_of(c.norm_before[n]) << "\n";
    }
    std::cout << "norm_wte " << name_of(c.norm_wte) << ", norm_lm_head " << name_of(c.norm_lm_head) << "\n";
    std::cout << "parameters: " << total_params(c) << std::endl;
}

/// A checkpoint's tensors by name, as a sorted vector: with thousands of layers a map would take as much memory as everything else.
class Entries {
public:
    explicit Entries(const Checkpoint& model) {
        for (const TensorEntry& entry : model.tensors) by_name.push_back(&entry);
        std::sort(by_name.begin(), by_name.end(), [](const TensorEntry* a, const TensorEntry* b) { return a->name < b->name; });
    }
    /// Null when there is no such tensor.
    const TensorEntry* find(const std::string& name) const {
        auto found = std::lower_bound(by_name.begin(), by_name.end(), name,
                                      [](const TensorEntry* a, const std::string& b) { return a->name < b; });
        return found == by_name.end() || (*found)->name != name ? nullptr : *found;
    }
    const TensorEntry& at(const std::string& name) const {
        const TensorEntry* found = find(name);
        if (!found) throw std::logic_error("rewrite: no tensor " + name);
        return *found;
    }

private:
    std::vector<const TensorEntry*> by_name;
};

/// A source that calls next(values, first, n) for elements [first, first + n) of the tensor, in order.
static TensorSource source_of_numbers(const Tensor& tensor, std::function<void(float* values, int64_t first, int64_t n)> next) {
    auto fill = [next = std::move(next)](void* dst, int64_t offset, int64_t bytes) { next(static_cast<float*>(dst), offset / 4, bytes / 4); };
    return {tensor.name, "F32", tensor.shape, fill, nullptr, 0, 0};
}

static float scaled(float value, double number) { return static_cast<float>(value * number); }

static TensorSource scaled_source(const Tensor& tensor, const Checkpoint& checkpoint, const TensorEntry& entry, double number) {
    return source_of_numbers(tensor, [file = checkpoint.file, from = entry.offset, number](float* values, int64_t first, int64_t n) {
        file->read(values, n * 4, from + first * 4);
        for (int64_t i = 0; i < n; i++) values[i] = scaled(values[i], number);
    });
}

static TensorSource constant_source(const Tensor& tensor, double number) {
    return source_of_numbers(tensor, [number](float* values, int64_t, int64_t n) { std::fill_n(values, n, static_cast<float>(number)); });
}

static TensorSource source_from_numbers(const Tensor& tensor, std::vector<float> numbers) {
    return source_of_numbers(
        tensor, [numbers = std::move(numbers)](float* dst, int64_t first, int64_t n) { std::copy_n(&numbers[first], n, dst); });
}

static TensorSource initial_source(const Tensor& tensor, const LayerMap& map) {
    auto values_left = std::make_shared<std::unique_ptr<InitialValues>>();   // lives only while the tensor is written: a generator has 2.5 kB
    return source_of_numbers(tensor, [tensor, &map, values_left](float* values, int64_t first, int64_t n) {
        if (first == 0) *values_left = std::make_unique<InitialValues>(tensor, map.config, map.seed);
        (*values_left)->next(values, n);
        if (first + n == tensor.numel) values_left->reset();
    });
}

/// A tensor of layer tensor.layer.
static TensorSource layer_source(const LayerMap& map, const std::vector<const Checkpoint*>& models, const std::vector<Entries>& entries,
                                 const Tensor& tensor) {
    const LayerFrom& from = map.layers[tensor.layer];
    const Rule rule = from.rule(tensor.spec->name);
    if (rule.kind == Rule::constant) return constant_source(tensor, rule.number);
    if (rule.kind == Rule::initial) return initial_source(tensor, map);
    const TensorEntry& entry = entries.at(from.model).at(concat("h.", from.layer, ".", tensor.spec->name));
    if (rule.kind == Rule::scaled) return scaled_source(tensor, *models[from.model], entry, rule.number);
    return source_from_checkpoint(tensor.name, *models[from.model], entry);
}

/// The elements of a tensor with one number per layer; empty for a model without layers, which has no such tensor.
static std::vector<float> numbers_of(const Checkpoint& model, const Entries& entries, const std::string& tensor) {
    const TensorEntry* found = entries.find(tensor);
    if (!found) return {};
    std::vector<float> numbers(static_cast<size_t>(found->numel()));
    read_tensor(model, *found, numbers.data());
    return numbers;
}

/// A tensor with one number per layer: each follows its layer, by the layer's rule.
static TensorSource numbers_source(const LayerMap& map, const std::vector<const Checkpoint*>& models, const std::vector<Entries>& entries,
                                   const Tensor& tensor) {
    std::vector<std::vector<float>> values;
    for (size_t m = 0; m < models.size(); m++) values.push_back(numbers_of(*models[m], entries[m], tensor.name));
    std::vector<float> numbers(static_cast<size_t>(tensor.numel));
    initialize(numbers.data(), tensor, map.config, map.seed);
    for (size_t n = 0; n < numbers.size(); n++) {
        const LayerFrom& from = map.layers[n];
        const Rule rule = from.rule(tensor.name);
        if (rule.kind == Rule::constant) numbers[n] = static_cast<float>(rule.number);
        if (rule.kind == Rule::copy) numbers[n] = values.at(from.model)[from.layer];
        if (rule.kind == Rule::scaled) numbers[n] = scaled(values.at(from.model)[from.layer], rule.number);
    }
    return source_from_numbers(tensor, std::move(numbers));
}

// ------------------------------------------------------------------------------------------------------- the optimizer's state

/// The optimizer state of the source model, mapped to the new model.
class States {
public:
    States(const LayerMap& map_, const Checkpoint& model_, const Entries& entries_)
        : map(map_), model(model_), entries(entries_), first(first_uses(map_)) {
        const bool any = std::any_of(model.tensors.begin(), model.tensors.end(),
                                     [](const TensorEntry& entry) { return entry.name.find('/') != std::string::npos; });
        require(any, model.path, ": holds no state of an optimizer (it was grown, stacked or converted); give --optimizer reset");
    }

    /// One tensor of state of a weight; nothing where the source has none, because the weight was frozen.
    std::optional<TensorSource> source(const Tensor& tensor, const StatePiece& piece) const {
        Tensor state = tensor;
        state.name = concat(tensor.name, "/", piece.name);
        state.shape = piece.shape;
        state.numel = std::accumulate(piece.shape.begin(), piece.shape.end(), int64_t{1}, std::multiplies<int64_t>());
        if (a_number_a_layer(*tensor.spec)) return of_numbers(tensor.name, state);
        if (tensor.layer < 0) return copied(state, state.name);
        const LayerFrom& from = map.layers[tensor.layer];
        if (no_history(from, tensor.spec->name)) return constant_source(state, 0);
        const std::string name = concat("h.", from.layer, ".", tensor.spec->name, "/", piece.name);
        std::optional<TensorSource> copy = copied(state, name);
        return copy && starts_at_zero(tensor.layer) ? constant_source(state, 0) : copy;
    }

private:
    /// Whether the tensor's values are new, so that the optimizer never updated them.
    static bool no_history(const LayerFrom& from, const std::string& tensor) {
        const Rule::Kind kind = from.rule(tensor).kind;
        return kind == Rule::constant || kind == Rule::initial;
    }
    bool starts_at_zero(int n) const { return map.state == GrownState::zero && !first[n]; }

    std::optional<TensorSource> copied(const Tensor& state, const std::string& name) const {
        const TensorEntry* found = entries.find(name);
        if (!found) return {};
        require(found->shape == state.shape, model.path, ": ", name,
                " has another shape than its optimizer's: it is the state of another training; "
                "give --optimizer reset");
        return source_from_checkpoint(state.name, model, *found);
    }
    std::optional<TensorSource> of_numbers(const std::string& tensor, const Tensor& state) const {
        const std::vector<float> had = numbers_of(model, entries, state.name);
        if (had.empty() && model.config.n_layer > 0) return {};
        require(static_cast<int>(had.size()) == model.config.n_layer, model.path, ": ", state.name, " has ", had.size(),
                " numbers, but the model has ", model.config.n_layer,
                " layers: it is the state of another training; give --optimizer reset");
        std::vector<float> numbers(static_cast<size_t>(state.numel));
        for (size_t n = 0; n < numbers.size(); n++) {
            const LayerFrom& from = map.layers[n];
            if (!no_history(from, tensor) && !starts_at_zero(static_cast<int>(n))) numbers[n] = had[from.layer];
        }
        return source_from_numbers(state, std::move(numbers));
    }

    const LayerMap& map;
    const Checkpoint& model;
    const Entries& entries;
    std::vector<bool> first;
};

/// In the trainer's order, which is that of the table.
static void add_state(std::vector<TensorSource>& sources, const LayerMap& map, const Checkpoint& model, const Entries& entries) {
    const States states(map, model, entries);
    for_each_tensor(map.config, [&](const Tensor& tensor) {
        for (const StatePiece& piece : rule_of(*map.config.recipe, tensor.spec->group).state(tensor.name, tensor.shape))
            if (std::optional<TensorSource> source = states.source(tensor, piece)) sources.push_back(std::move(*source));
    });
}

// ---------------------------------------------------------------------------------------------------------- the whole model

const Checkpoint* tokenizer_owner(const std::vector<const Checkpoint*>& models, const char* models_are) {
    const Checkpoint* owner = nullptr;
    for (const Checkpoint* model : models) {
        const TensorEntry* tokenizer = model->find("tokenizer");
        if (!tokenizer) continue;
        if (!owner) owner = model;
        require(owner->at("tokenizer").xxh3 == tokenizer->xxh3, models_are, " must have the same tokenizer, but those in ", owner->path,
                " and ", model->path, " differ: their tokens mean different text");
    }
    return owner;
}

/// A rule for a tensor that no layer has would silently do nothing.
static void check_rules(const LayerMap& map) {
    auto of_a_layer = [](const TensorRule& own) {
        return std::any_of(std::begin(TENSORS), std::end(TENSORS),
                           [&](const TensorSpec& spec) { return own.tensor == spec.name && (spec.per_layer || a_number_a_layer(spec)); });
    };
    for (const LayerFrom& layer : map.layers)
        for (const TensorRule& own : layer.rules) require(of_a_layer(own), "a layer of the map has a rule for '", own.tensor, "', which no layer has");
}

std::vector<TensorSource> mapped_tensors(const LayerMap& map, const std::vector<const Checkpoint*>& models, const Checkpoint& head) {
    std::vector<Entries> entries;
    for (const Checkpoint* model : models) entries.emplace_back(*model);
    check_rules(map);
    size_t count = 1;   // and the tokenizer
    for_each_tensor(map.config, [&](const Tensor&) { count++; });
    std::vector<TensorSource> sources;
    sources.reserve(count);
    for_each_tensor(map.config, [&](const Tensor& tensor) {
        if (tensor.layer >= 0) {
            sources.push_back(layer_source(map, models, entries, tensor));
        } else if (a_number_a_layer(*tensor.spec)) {
            sources.push_back(numbers_source(map, models, entries, tensor));
        } else if (tensor.spec->has == Has::untied) {
            sources.push_back(source_from_checkpoint(tensor.name, head, head.at(head.config.tied ? "wte" : "lm_head")));
        } else {
            sources.push_back(source_from_checkpoint(tensor.name, *models[0], entries[0].at(tensor.name)));
        }
    });
    if (map.state != GrownState::reset) add_state(sources, map, *models.at(0), entries.at(0));
    if (const Checkpoint* owner = tokenizer_owner(models, "models of a stack"))
        sources.push_back(source_from_checkpoint("tokenizer", *owner, owner->at("tokenizer")));
    return sources;
}

void verify_and_write(const std::string& out, const nlohmann::json& header, const std::vector<TensorSource>& sources,
                      const std::vector<const Checkpoint*>& models) {
    auto start = std::chrono::steady_clock::now();
    for (const Checkpoint* model : std::set<const Checkpoint*>(models.begin(), models.end())) verify_tensors(*model);
    write_checkpoint(out, header, sources);
    double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    int64_t bytes = File(out).size();
    char line[128];
    std::snprintf(line, sizeof line, "%s in %.2f s (%s/s), peak memory %s", human_bytes(bytes).c_str(), seconds,
                  human_bytes(static_cast<int64_t>(static_cast<double>(bytes) / seconds)).c_str(), human_bytes(static_cast<int64_t>(peak_resident_bytes())).c_str());
    std::cout << "wrote " << out << ": " << line << std::endl;
}
