// Reading, checking and writing of checkpoints. The format is in checkpoint.h.
#include "llmc/checkpoint.h"
#include <algorithm>
#include <bit>
#include <cstring>
#include <iterator>
#include <string_view>
#include <vector>
#include "llmc/io/error.h"
#include "llmc/io/hash.h"
#include "llmc/io/json.h"
#include "llmc/tensors.h"

using nlohmann::json;

static constexpr char MAGIC[8] = {'D', 'E', 'E', 'P', 'E', 'N', '\r', '\n'};
static constexpr uint32_t NEWEST_VERSION = 2;
static const char* const KEYS_OF_VERSION_2[] = {"layers", "schedule", "optimizer", "runs", "mixed"};   // of a lineage
static constexpr int64_t PAGE = 4096;                          // tensors start at multiples of it
static constexpr int64_t MAX_JSON_BYTES = int64_t{64} << 20;
static const char* const DAMAGED = "; the file was cut short, changed or damaged: restore it from a copy";

struct Preamble {
    char magic[8];
    uint32_t version, reserved;
    uint64_t json_bytes, json_xxh3;
};
static_assert(sizeof(Preamble) == 32 && std::endian::native == std::endian::little);

static int64_t round_up(int64_t bytes) { return (bytes + PAGE - 1) / PAGE * PAGE; }

static uint64_t from_hex(const std::string& digits, const std::string& where) {
    bool valid = digits.size() == 16 && digits.find_first_not_of("0123456789abcdef") == std::string::npos;
    require(valid, where, ": is '", digits.substr(0, 40), "', but must be 16 hexadecimal digits");
    return std::stoull(digits, nullptr, 16);
}

static std::string shape_text(const std::vector<int64_t>& shape) {
    std::string text;
    for (int64_t size : shape) text += concat(text.empty() ? "" : " x ", size);
    return text;
}

// -------------------------------------------------------------------------------------------------------------- header

struct Dtype {
    std::string_view name;
    int64_t bytes;
};
static constexpr Dtype DTYPES[] = {{"F32", 4}, {"U8", 1}};

static const Dtype& dtype_named(std::string_view dtype, const std::string& where) {
    for (const Dtype& known : DTYPES)
        if (dtype == known.name) return known;
    fail(where, ": dtype is '", dtype.substr(0, 40), "', but must be F32 or U8");
}

/// Bytes of a tensor of that shape. No product can overflow: they stay below 2^60.
static int64_t tensor_bytes(std::string_view dtype, const std::vector<int64_t>& shape, const std::string& where) {
    int64_t bytes = dtype_named(dtype, where).bytes;
    for (int64_t size : shape) {
        require(size >= 1 && size <= (int64_t{1} << 60) / bytes, where, ": shape ", shape_text(shape), " is empty or larger than any disk");
        bytes *= size;
    }
    return bytes;
}

static TensorEntry entry_from_json(const json& j, const std::string& where) {
    TensorEntry entry;
    entry.name = json_string(json_member(j, "name", where), where + ": name");
    std::string tensor = concat(where, ": ", entry.name.substr(0, 100));
    entry.dtype = dtype_named(json_string(json_member(j, "dtype", tensor), tensor + ": dtype"), tensor).name;
    for (const json& size : json_array(json_member(j, "shape", tensor), tensor + ": shape"))
        entry.shape.push_back(json_integer(size, 1, int64_t{1} << 60, tensor + ": shape"));
    entry.bytes = tensor_bytes(entry.dtype, entry.shape, tensor);
    json_integer(json_member(j, "bytes", tensor), entry.bytes, entry.bytes, tensor + ": bytes");
    entry.offset = json_integer(json_member(j, "offset", tensor), 0, int64_t{1} << 60, tensor + ": offset");
    entry.xxh3 = from_hex(json_string(json_member(j, "xxh3", tensor), tensor + ": xxh3"), tensor + ": xxh3");
    return entry;
}

static json to_json(const TensorEntry& entry) {
    return {{"name", entry.name},     {"dtype", entry.dtype}, {"shape", entry.shape},
            {"offset", entry.offset}, {"bytes", entry.bytes}, {"xxh3", hex_digits(entry.xxh3)}};
}

/// The JSON text of a header and its tensors, written without a json value of the tensors: that of thousands of layers would take more
/// memory than everything else.
static std::string header_text(const json& header, const std::vector<TensorEntry>& tensors) {
    std::string text;
    text.reserve(tensors.size() * 160 + 4096);   // 160 bytes per entry; growing the string would hold it twice for a moment
    auto add = [&](const std::string& key, const std::string& value) {
        text += text.empty() ? '{' : ',';
        text += dump_json(key);
        text += ':';
        text += value;
    };
    auto add_tensors = [&] {
        add("tensors", "[");
        for (size_t i = 0; i < tensors.size(); i++) {
            if (i > 0) text += ',';
            text += dump_json(to_json(tensors[i]));
        }
        text += ']';
    };
    bool done = false;
    for (auto& [key, value] : header.items()) {   // in alphabetical order
        if (!done && key > "tensors") add_tensors(), done = true;
        add(key, dump_json(value));
    }
    if (!done) add_tensors();
    return text + '}';
}

/// Follows the parser: each entry of the top-level array `tensors` goes to `entries` as soon as it is parsed, and is left out of the
/// returned value. A value of `tensors` that is not an array stays in it.
static json header_from_text(const std::string& text, const std::string& path, std::vector<TensorEntry>& entries) {
    constexpr size_t shortest = 80;   // characters of the shortest entry
    entries.reserve(std::min(static_cast<size_t>(std::count(text.begin(), text.end(), '{')), text.size() / shortest));
    bool its_value = false, inside = false;   // the last top-level key was `tensors`; the parser is inside its array
    return parse_json(text, path + ": header", [&](int depth, json::parse_event_t event, json& parsed) {
        using Event = json::parse_event_t;
        if (depth == 1 && event == Event::key) its_value = parsed == "tensors";
        if (depth == 1 && event == Event::array_start) inside = its_value;
        if (depth == 1 && event == Event::array_end) inside = false;
        const bool ends = event == Event::object_end || event == Event::array_end || event == Event::value;
        if (!inside || depth != 2 || !ends) return true;
        entries.push_back(entry_from_json(parsed, path + ": tensors"));
        return false;
    });
}

/// The weights must be those of the configuration, in its order; every tensor after them is the state of a weight, or the tokenizer.
static void check_names(const std::vector<TensorEntry>& tensors, const GPTConfig& config, const std::string& path) {
    size_t weights = 0;
    for_each_tensor(config, [&](const Tensor& weight) {
        const size_t i = weights++;
        require(i < tensors.size(), path, ": has no tensor ", weight.name, ", which its configuration needs");
        const TensorEntry& entry = tensors[i];
        require(entry.name == weight.name, path, ": tensor ", i, " is ", entry.name.substr(0, 100), ", but its configuration has ",
                weight.name, " there");
        require(entry.dtype == "F32" && entry.shape == weight.shape, path, ": tensor ", entry.name, " is ", entry.dtype, " ",
                shape_text(entry.shape), ", but its configuration says F32 ", shape_text(weight.shape));
    });
    auto sorted = [&](size_t begin, size_t end) {
        std::vector<std::string_view> names;
        for (size_t i = begin; i < end; i++) names.push_back(tensors[i].name);
        std::sort(names.begin(), names.end());
        return names;
    };
    const std::vector<std::string_view> of_weights = sorted(0, weights), others = sorted(weights, tensors.size());
    for (size_t i = weights; i < tensors.size(); i++) {
        const std::string_view name = tensors[i].name;
        size_t slash = name.find('/');
        bool state = slash != name.npos && slash + 1 < name.size() && tensors[i].dtype == "F32" &&
                     std::binary_search(of_weights.begin(), of_weights.end(), name.substr(0, slash));
        bool tokenizer = name == "tokenizer" && tensors[i].dtype == "U8";
        require(state || tokenizer, path, ": tensor ", name.substr(0, 100), " (", tensors[i].dtype,
                ") is neither a weight of its configuration, nor the optimizer state of one, nor the tokenizer");
    }
    auto twice = std::adjacent_find(others.begin(), others.end());
    require(twice == others.end(), path, ": has tensor ", twice == others.end() ? "" : twice->substr(0, 100), " twice");
}

static void check_id(const json& run, const std::string& where) {
    const std::string& id = json_string(json_member(run, "id", where), where + ": id");
    require(id.size() == 32 && id.find_first_not_of("0123456789abcdef") == id.npos, where, ": id is '", id.substr(0, 40),
            "', but must be 32 hexadecimal digits");
}

static int64_t tokens_of(const json& entry, const std::string& where) {
    return json_integer(json_member(entry, "tokens", where), 0, INT64_MAX, where + ": tokens");
}
static double flops_of(const json& entry, const std::string& where) {
    const double flops = json_number(json_member(entry, "flops", where), where + ": flops");
    require(flops >= 0, where, ": flops is ", flops, ", but must be 0 or above");
    return flops;
}

static void check_progress(const json& progress, const std::string& where) {
    json_integer(json_member(progress, "step", where), 0, INT64_MAX, where + ": step");
    tokens_of(progress, where);
    flops_of(progress, where);
}

/// `layers` of a lineage: where each layer came from.
static void check_layers(const json& layers, size_t parents, const std::string& where) {
    for (const json& layer : json_array(layers, where)) {
        if (layer.is_null()) continue;
        const size_t size = json_array(layer, where).size();
        require(size == 2 || size == 3, where, ": an entry has ", size,
                " elements, but must be null, [parent, layer] or [parent, layer, rules]");
        require(parents > 0, where, ": names a parent, but there are none");
        json_integer(layer[0], 0, static_cast<int64_t>(parents) - 1, where);
        json_integer(layer[1], 0, MAX_LAYERS - 1, where);
        if (size == 3)
            for (auto& [tensor, rule] : json_object(layer[2], where).items()) json_string(rule, where);
    }
}

static bool has_key_of_version_2(const json& entry) {
    return std::any_of(std::begin(KEYS_OF_VERSION_2), std::end(KEYS_OF_VERSION_2),
                       [&](const char* key) { return entry.contains(key); });
}

static void check_keys_of_version_2(const json& entry, const std::string& where) {
    if (!has_key_of_version_2(entry)) return;
    if (entry.contains("layers"))
        check_layers(entry["layers"], entry.contains("parents") ? entry["parents"].size() : 0, where + ": layers");
    for (const char* key : {"schedule", "optimizer"})
        if (entry.contains(key)) json_string(entry[key], concat(where, ": ", key));
    if (entry.contains("runs")) {
        const std::string runs = where + ": runs";
        int64_t left = tokens_of(entry, where);
        for (const json& run : json_array(entry["runs"], runs)) {
            check_id(run, runs);
            flops_of(run, runs);
            const int64_t tokens = tokens_of(run, runs);
            require(tokens <= left, runs, ": they spent more tokens than the ", entry["tokens"], " of the file");
            left -= tokens;
        }
    }
    if (entry.contains("mixed")) {
        const std::string mixed = where + ": mixed";
        json_number(json_member(entry["mixed"], "weight", mixed), mixed + ": weight");
        json_integer(json_member(entry["mixed"], "step", mixed), 0, INT64_MAX, mixed + ": step");
    }
}

static void check_parents(const json& lineage, const std::string& where) {
    json_string(json_member(lineage, "operation", where), where + ": operation");
    json_string(json_member(lineage, "detail", where), where + ": detail");
    if (lineage.contains("parents"))
        for (const json& parent : json_array(lineage["parents"], where + ": parents")) {
            json_string(json_member(parent, "hash", where), where + ": hash");
            check_progress(parent, where);
            check_parents(parent, where);
        }
    check_keys_of_version_2(lineage, where);
}

/// Identities of a run, in order: the progress at which each began must not be less than that of the one before.
static void check_runs(const json& training, const json& progress, const std::string& where) {
    if (!training.is_object() || !training.contains("runs")) return;
    int64_t tokens = 0;
    double flops = 0;
    auto goes_on = [&](const json& next, const std::string& what) {
        const int64_t next_tokens = tokens_of(next, where);
        const double next_flops = flops_of(next, where);
        require(tokens <= next_tokens && flops <= next_flops, where, ": ", what, " begins before the one before it ends");
        tokens = next_tokens;
        flops = next_flops;
    };
    for (const json& run : json_array(training["runs"], where)) {
        check_id(run, where);
        goes_on(run, "an identity");
    }
    goes_on(progress, "the progress of the file");
}

/// The lowest version of the format that can hold the lineage.
static uint32_t version_of(const json& lineage) {
    if (has_key_of_version_2(lineage)) return 2;
    if (lineage.contains("parents"))
        for (const json& parent : lineage["parents"])
            if (version_of(parent) == 2) return 2;
    return 1;
}

/// Parses the header and checks all that can be checked without the rest of the file. `header_end`: where the first tensor must start.
static void take_header(Checkpoint& c, const std::string& text, int64_t header_end) {
    c.header = header_from_text(text, c.path, c.tensors);
    json_object(c.header, c.path + ": header");
    c.config = config_from_json(json_member(c.header, "config", c.path), c.path);
    check_progress(json_member(c.header, "progress", c.path), c.path + ": progress");
    check_parents(json_member(c.header, "lineage", c.path), c.path + ": lineage");
    const json& lineage = c.header["lineage"];
    json_member(lineage, "parents", c.path + ": lineage");
    const size_t mapped = lineage.value("layers", json()).size();
    require(!lineage.contains("layers") || mapped == static_cast<size_t>(c.config.n_layer), c.path, ": lineage: layers: has ",
            mapped, " entries, but the model has ", c.config.n_layer, " layers");
    if (c.can_resume()) check_runs(c.header["training"], c.header["progress"], c.path + ": training: runs");
    json_array(json_member(c.header, "tensors", c.path), c.path + ": tensors");
    c.header.erase("tensors");
    int64_t end = header_end;
    for (const TensorEntry& entry : c.tensors) {
        require(entry.offset == end, c.path, ": tensor ", entry.name.substr(0, 100), " starts at byte ", entry.offset,
                ", but must start at ", end, ", where the one before ends");
        require(entry.bytes <= (int64_t{1} << 60) - end, c.path, ": tensors are bigger than any disk");
        end = round_up(entry.offset + entry.bytes);
    }
    check_names(c.tensors, c.config, c.path);
}

static int64_t end_of(const std::vector<TensorEntry>& tensors) { return round_up(tensors.back().offset + tensors.back().bytes); }

// ------------------------------------------------------------------------------------------------------------- reading

static void require_zeros(const File& file, int64_t begin, int64_t end) {
    char bytes[PAGE];
    file.read(bytes, end - begin, begin);
    const char* other = std::find_if(bytes, bytes + (end - begin), [](char byte) { return byte != 0; });
    require(other == bytes + (end - begin), file.path(), ": byte ", begin + (other - bytes), " is padding, but not zero", DAMAGED);
}

bool is_checkpoint(const std::string& path) {
    File file(path);
    char magic[sizeof MAGIC] = {};
    if (file.size() >= static_cast<int64_t>(sizeof magic)) file.read(magic, sizeof magic, 0);
    return std::memcmp(magic, MAGIC, sizeof MAGIC) == 0;
}

static Preamble read_preamble(const File& file) {
    const std::string& path = file.path();
    Preamble p;
    int64_t size = file.size();
    require(size >= static_cast<int64_t>(sizeof p), path, ": has ", size, " bytes, too few for a checkpoint", DAMAGED);
    file.read(&p, sizeof p, 0);
    require(std::memcmp(p.magic, MAGIC, sizeof MAGIC) == 0, path,
            ": is not a checkpoint: its first 8 bytes are not the magic; ./convert makes checkpoints of safetensors");
    require(p.version >= 1 && p.version <= NEWEST_VERSION, path, ": is a checkpoint of version ", p.version,
            ", but this program reads versions 1 to ", NEWEST_VERSION,
            "; use the program that wrote it, or restore it from a copy if it is damaged");
    require(p.reserved == 0, path, ": bytes 12 to 15 are not zero", DAMAGED);
    bool fits = p.json_bytes >= 2 && p.json_bytes <= MAX_JSON_BYTES && static_cast<int64_t>(p.json_bytes) <= size - 32;
    require(fits, path, ": its header says it is ", p.json_bytes, " bytes long, but the file has ", size, DAMAGED);
    return p;
}

Checkpoint open_checkpoint(const std::string& path) {
    Checkpoint c;
    c.path = path;
    c.file = std::make_shared<const File>(path);
    Preamble preamble = read_preamble(*c.file);
    int64_t json_end = static_cast<int64_t>(sizeof preamble + preamble.json_bytes);
    std::string text(preamble.json_bytes, '\0');
    c.file->read(text.data(), static_cast<int64_t>(text.size()), sizeof preamble);
    require(xxh3_64(text) == preamble.json_xxh3, path, ": the header does not match its hash", DAMAGED);
    take_header(c, text, round_up(json_end));
    const uint32_t needed = version_of(c.header["lineage"]);
    require(preamble.version == needed, path, ": says that it is of version ", preamble.version, ", but its header is of version ",
            needed, DAMAGED);
    require(c.file->size() == end_of(c.tensors), path, ": has ", c.file->size(), " bytes, but its header says ", end_of(c.tensors), DAMAGED);
    require_zeros(*c.file, json_end, round_up(json_end));
    for (const TensorEntry& entry : c.tensors) require_zeros(*c.file, entry.offset + entry.bytes, round_up(entry.offset + entry.bytes));
    return c;
}

const TensorEntry* Checkpoint::find(const std::string& name) const {
    auto found = std::find_if(tensors.begin(), tensors.end(), [&](const TensorEntry& entry) { return entry.name == name; });
    return found == tensors.end() ? nullptr : &*found;
}

const TensorEntry& Checkpoint::at(const std::string& name) const {
    const TensorEntry* entry = find(name);
    require(entry, path, ": has no tensor ", name);
    return *entry;
}

std::string content_hash(const GPTConfig& config, const std::vector<TensorEntry>& tensors) {
    std::string text = dump_json(to_json(config));
    size_t i = 0;
    for_each_tensor(config, [&](const Tensor&) {   // the weights come first
        const TensorEntry& weight = tensors[i++];
        text += concat("\n", weight.name, " ", weight.dtype, " ", shape_text(weight.shape), " ", hex_digits(weight.xxh3));
    });
    return xxh3_128(text);
}

std::string Checkpoint::content_hash() const { return ::content_hash(config, tensors); }

void read_tensor(const Checkpoint& checkpoint, const TensorEntry& entry, const TakeBytes& take) {
    auto buffer = std::make_unique_for_overwrite<char[]>(static_cast<size_t>(std::min(entry.bytes, FILE_CHUNK)));
    Xxh3 hasher;
    for (int64_t at = 0; at < entry.bytes; at += FILE_CHUNK) {
        int64_t piece = std::min(FILE_CHUNK, entry.bytes - at);
        checkpoint.file->read(buffer.get(), piece, entry.offset + at);
        hasher.add(buffer.get(), piece);
        take(buffer.get(), at, piece);
    }
    require(hasher.value() == entry.xxh3, checkpoint.path, ": tensor ", entry.name, " (bytes ", entry.offset, " to ",
            entry.offset + entry.bytes - 1, ") does not match its hash: XXH3 is ", hex_digits(hasher.value()), ", the header says ",
            hex_digits(entry.xxh3), DAMAGED);
}

void read_tensor(const Checkpoint& checkpoint, const TensorEntry& entry, void* dst) {
    read_tensor(checkpoint, entry, [dst](const void* src, int64_t offset, int64_t bytes) {
        std::memcpy(static_cast<char*>(dst) + offset, src, static_cast<size_t>(bytes));
    });
}

void verify_tensors(const Checkpoint& checkpoint) {
    for (const TensorEntry& entry : checkpoint.tensors) read_tensor(checkpoint, entry, [](const void*, int64_t, int64_t) {});
}

// ------------------------------------------------------------------------------------------------------------- writing

TensorSource source_from_memory(const std::string& name, const std::vector<int64_t>& shape, const float* values) {
    auto fill = [values](void* dst, int64_t offset, int64_t bytes) {
        std::memcpy(dst, reinterpret_cast<const char*>(values) + offset, static_cast<size_t>(bytes));
    };
    return {name, "F32", shape, fill, nullptr, 0, 0};
}

TensorSource source_from_bytes(const std::string& name, std::string bytes) {
    int64_t size = static_cast<int64_t>(bytes.size());
    auto fill = [bytes = std::move(bytes)](void* dst, int64_t offset, int64_t count) {
        std::memcpy(dst, bytes.data() + offset, static_cast<size_t>(count));
    };
    return {name, "U8", {size}, fill, nullptr, 0, 0};
}

TensorSource source_from_checkpoint(const std::string& name, const Checkpoint& checkpoint, const TensorEntry& entry) {
    return {name, entry.dtype, entry.shape, nullptr, checkpoint.file, entry.offset, entry.xxh3};
}

/// Lays the tensors out one after another after the header, and returns the checkpoint as open_checkpoint() would. The offsets are part
/// of the header and depend on its length: the start of the tensors moves back until the header fits before them.
static Checkpoint lay_out(const std::string& path, const json& header, const std::vector<TensorSource>& sources) {
    std::vector<TensorEntry> tensors;
    tensors.reserve(sources.size());
    for (const TensorSource& source : sources) {
        int64_t bytes = tensor_bytes(source.dtype, source.shape, concat(path, ": ", source.name));
        tensors.push_back({source.name, source.dtype, source.shape, 0, bytes, source.xxh3});
    }
    for (int64_t header_end = PAGE;;) {
        int64_t offset = header_end;
        for (TensorEntry& tensor : tensors) {
            tensor.offset = offset;
            require(tensor.bytes < (int64_t{1} << 60) - offset, path, ": tensors are bigger than any disk");
            offset = round_up(offset + tensor.bytes);
        }
        std::string text = header_text(header, tensors);
        int64_t needed = round_up(static_cast<int64_t>(sizeof(Preamble) + text.size()));
        if (needed > header_end) {
            header_end = needed;
            continue;
        }
        require(needed <= MAX_JSON_BYTES, path, ": its header would have ", needed, " bytes, but may have ", MAX_JSON_BYTES);
        tensors.clear();
        tensors.shrink_to_fit();
        Checkpoint c;
        c.path = path;
        take_header(c, text, header_end);
        return c;
    }
}

int64_t checkpoint_bytes(const json& header, const std::vector<TensorSource>& sources) {
    return end_of(lay_out("checkpoint", header, sources).tensors);
}

static uint64_t write_tensor(NewFile& file, const TensorEntry& entry, const TensorSource& source, std::vector<char>& buffer) {
    if (source.file) {
        // With its padding (which is zero), in whole pages: file systems that can share blocks between files then do (reflinks).
        file.copy(*source.file, source.offset, round_up(entry.bytes), entry.offset);
        return source.xxh3;
    }
    Xxh3 hasher;
    for (int64_t at = 0; at < entry.bytes; at += FILE_CHUNK) {
        int64_t piece = std::min(FILE_CHUNK, entry.bytes - at);
        source.fill(buffer.data(), at, piece);
        hasher.add(buffer.data(), piece);
        file.write(buffer.data(), piece, entry.offset + at);
    }
    return hasher.value();
}

void write_checkpoint(const std::string& path, const json& header, const std::vector<TensorSource>& sources) {
    Checkpoint c = lay_out(path, header, sources);
    NewFile file(path, end_of(c.tensors));
    std::vector<char> buffer(static_cast<size_t>(FILE_CHUNK));
    for (size_t i = 0; i < sources.size(); i++) c.tensors[i].xxh3 = write_tensor(file, c.tensors[i], sources[i], buffer);
    const std::string text = header_text(c.header, c.tensors);   // as long as before: a hash always has as many digits
    Preamble preamble{{}, version_of(c.header["lineage"]), 0, text.size(), xxh3_64(text)};
    std::memcpy(preamble.magic, MAGIC, sizeof MAGIC);
    file.write(&preamble, sizeof preamble, 0);
    file.write(text.data(), static_cast<int64_t>(text.size()), sizeof preamble);
    file.commit(end_of(c.tensors));
}
