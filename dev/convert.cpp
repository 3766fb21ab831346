// Safetensors <-> checkpoint, so that a model goes to Python and comes back bit for bit.
#include <algorithm>
#include <map>
#include <set>
#include "llmc/checkpoint.h"
#include "llmc/io/flags.h"
#include "llmc/io/hash.h"
#include "llmc/io/json.h"
#include "llmc/lineage.h"
#include "llmc/safetensors.h"
#include "llmc/tensors.h"

using nlohmann::json;

// The keys of a checkpoint's header beside config and tensors; each is kept as JSON text in __metadata__.
static const char* const TRAVELLING[] = {"progress", "training", "data", "lineage"};

// ------------------------------------------------------------------------------------------- checkpoint -> safetensors

static void to_safetensors(const std::string& in, const std::string& out) {
    Checkpoint model = open_checkpoint(in);
    verify_tensors(model);
    std::map<std::string, std::string> metadata{{"format", "pt"}, {"config", dump_json(model.header["config"])}, {"hash", model.content_hash()}};
    for (const char* key : TRAVELLING)
        if (model.header.contains(key)) metadata[key] = dump_json(model.header[key]);
    std::vector<TensorSource> sources;
    for (const TensorEntry& entry : model.tensors) sources.push_back(source_from_checkpoint(entry.name, model, entry));
    write_safetensors(out, metadata, sources);
    std::cout << "wrote " << out << ": safetensors, " << sources.size() << " tensors, " << total_params(model.config) << " parameters" << std::endl;
}

// ------------------------------------------------------------------------------------------- safetensors -> checkpoint

using Entries = std::map<std::string, const SafetensorsEntry*>;

static Entries entries_of(const Safetensors& file) {
    Entries entries;
    for (const SafetensorsEntry& entry : file.tensors) entries[entry.name] = &entry;
    return entries;
}

/// A tensor of the file as fp32 (or bytes), read when it is written.
static TensorSource source_of(const Safetensors& file, const SafetensorsEntry& entry) {
    bool bytes = entry.dtype == "U8";
    auto fill = [&file, &entry, bytes](void* dst, int64_t offset, int64_t count) {
        if (bytes) file.file->read(dst, count, entry.offset + offset);
        else read_floats(file, entry, static_cast<float*>(dst), offset / 4, count / 4);
    };
    return {entry.name, bytes ? "U8" : "F32", entry.shape, fill, nullptr, 0, 0};
}

/// The first ten, and how many more there are.
static std::string names_of(const std::vector<std::string>& names) {
    std::string text;
    for (size_t i = 0; i < std::min<size_t>(names.size(), 10); i++) text += concat(i == 0 ? "" : ", ", names[i].substr(0, 100));
    return names.size() <= 10 ? text : concat(text, " and ", names.size() - 10, " more");
}

static std::string shape_of(const std::vector<int64_t>& shape) { return json(shape).dump(); }

/// Reports everything that is wrong with names and shapes in one error.
static void require_tensors(const Safetensors& file, const std::vector<Tensor>& weights) {
    Entries entries = entries_of(file);
    std::set<std::string> known;
    std::vector<std::string> missing, extra, misshapen;
    for (const Tensor& weight : weights) {
        known.insert(weight.name);
        auto found = entries.find(weight.name);
        const SafetensorsEntry* entry = found == entries.end() ? nullptr : found->second;
        if (!entry) missing.push_back(weight.name);
        else if (entry->shape != weight.shape || entry->dtype == "U8")
            misshapen.push_back(concat(weight.name, " (", entry->dtype, " ", shape_of(entry->shape), ", not ", shape_of(weight.shape), ")"));
    }
    for (const SafetensorsEntry& entry : file.tensors)
        if (!known.contains(entry.name) && !known.contains(entry.name.substr(0, entry.name.find('/'))) && entry.name != "tokenizer")
            extra.push_back(entry.name);
    require(missing.empty() && extra.empty() && misshapen.empty(), file.path, ": its tensors are not those of its configuration",
            missing.empty() ? "" : "; missing: " + names_of(missing), extra.empty() ? "" : "; unknown: " + names_of(extra),
            misshapen.empty() ? "" : "; of another shape: " + names_of(misshapen));
}

/// In the order of a checkpoint, whatever the order of the file: weights, the optimizer state of each weight, the tokenizer.
static std::vector<TensorSource> sources_of(const Safetensors& file, const std::vector<Tensor>& weights) {
    Entries entries = entries_of(file);
    std::vector<TensorSource> sources;
    for (const Tensor& weight : weights) sources.push_back(source_of(file, *entries.at(weight.name)));
    for (const Tensor& weight : weights) {
        std::string prefix = weight.name + "/";
        for (auto state = entries.lower_bound(prefix); state != entries.end() && state->first.starts_with(prefix); state++)
            sources.push_back(source_of(file, *state->second));
    }
    if (entries.contains("tokenizer")) sources.push_back(source_of(file, *entries.at("tokenizer")));
    return sources;
}

static std::string content_hash_of(const GPTConfig& config, const std::vector<TensorSource>& sources) {
    std::vector<TensorEntry> entries;
    std::vector<char> buffer(static_cast<size_t>(FILE_CHUNK));
    for (const Tensor& weight : tensor_table(config)) {
        Xxh3 hasher;
        for (int64_t at = 0; at < 4 * weight.numel; at += FILE_CHUNK) {
            int64_t piece = std::min(FILE_CHUNK, 4 * weight.numel - at);
            sources[entries.size()].fill(buffer.data(), at, piece);
            hasher.add(buffer.data(), piece);
        }
        entries.push_back({weight.name, "F32", weight.shape, 0, 4 * weight.numel, hasher.value()});
    }
    return content_hash(config, entries);
}

/// The lineage in the file when its weights are unchanged since they were converted from a checkpoint; else a new one.
static json lineage_of(const Safetensors& file, const json& header, const std::string& hash) {
    json lineage{{"operation", "convert"}, {"detail", "from safetensors"}, {"parents", json::array()}};
    if (!header.contains("lineage") || !file.metadata.contains("hash")) return lineage;
    if (file.metadata.at("hash") == hash) return header["lineage"];
    lineage["detail"] = "from safetensors, with other weights than its parent's";
    lineage["parents"].push_back(lineage_entry(header, file.metadata.at("hash"), file.path + ": __metadata__"));
    return lineage;
}

static void to_checkpoint(const std::string& in, const std::string& out) {
    Safetensors file = open_safetensors(in);
    require(file.metadata.contains("config"), in, ": has no 'config' in __metadata__; save it there as JSON text (the keys: convert --help), ",
            "or give a checkpoint");
    json header{{"progress", no_progress()}};
    header["config"] = parse_json(file.metadata.at("config"), in + ": __metadata__: config");
    GPTConfig config = config_from_json(header["config"], in + ": __metadata__");
    for (const char* key : TRAVELLING)
        if (file.metadata.contains(key)) header[key] = parse_json(file.metadata.at(key), concat(in, ": __metadata__: ", key));

    std::vector<Tensor> weights = tensor_table(config);
    require_tensors(file, weights);
    std::vector<TensorSource> sources = sources_of(file, weights);
    header["lineage"] = lineage_of(file, header, content_hash_of(config, sources));
    write_checkpoint(out, header, sources);
    std::cout << "wrote " << out << ": checkpoint, " << sources.size() << " tensors, " << total_params(config) << " parameters" << std::endl;
}

/// The keys of `config`: all properties of a model's configuration.
static std::string config_keys() {
    std::string text;
    const json config = to_json(recipe_config(*recipes().front(), 1, 1, 8, 8, 1));
    for (auto& [key, value] : config.items()) text += concat(text.empty() ? "" : ", ", key);
    return text;
}

static int convert(int argc, char** argv) {
    Flags flags("convert", "Converts safetensors to a checkpoint, or a checkpoint to safetensors; the content of IN decides which. Tensors of safetensors are\n"
                           "named as in a checkpoint (wte, h.0.q) and may be F64 (which is rounded), F32 or BF16; the configuration is JSON in `config` of\n"
                           "__metadata__. A checkpoint that is converted to safetensors and back is the same bytes. Exit code 0, or 2 for any error.");
    const std::string& in = flags.argument("IN", "a safetensors file or a checkpoint");
    const std::string& out = flags.argument("OUT", "the file to write, of the other kind");
    const bool& overwrite = flags.toggle("--overwrite", "replace OUT if it exists");
    flags.footer("Keys of `config`, all of them required (llmc/config.h documents them):\n" + config_keys());
    if (!flags.parse(argc, argv)) return 0;

    check_output(out, {in}, overwrite);
    bool checkpoint = is_checkpoint(in);
    std::cout << in << ": " << (checkpoint ? "a checkpoint" : "not a checkpoint (it lacks the magic); taken as safetensors") << std::endl;
    if (checkpoint) to_safetensors(in, out);
    else to_checkpoint(in, out);
    return 0;
}

int main(int argc, char** argv) {
    return run_to_its_file("convert", [&] { return convert(argc, argv); });
}
