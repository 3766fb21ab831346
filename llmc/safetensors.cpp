// Reading and writing of safetensors.
#include "llmc/safetensors.h"
#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <set>
#include <utility>
#include "llmc/device/types.h"
#include "llmc/io/error.h"
#include "llmc/io/json.h"

using nlohmann::json;

static constexpr int64_t MAX_HEADER_BYTES = 100'000'000;   // the format's own limit

static const std::pair<const char*, int64_t> DTYPES[] = {
    {"BOOL", 1}, {"U8", 1},  {"I8", 1},  {"F8_E4M3", 1}, {"F8_E5M2", 1}, {"I16", 2}, {"U16", 2}, {"F16", 2},
    {"BF16", 2}, {"I32", 4}, {"U32", 4}, {"F32", 4},     {"F64", 8},     {"I64", 8}, {"U64", 8}};

static int64_t dtype_bytes(std::string_view dtype, const std::string& where) {
    for (auto& [name, bytes] : DTYPES)
        if (dtype == name) return bytes;
    fail(where, ": dtype is '", dtype.substr(0, 40), "', which the format does not know");
}

// ------------------------------------------------------------------------------------------------------------- reading

static SafetensorsEntry entry_from_json(const std::string& name, const json& j, int64_t data_begin, int64_t data_bytes, const std::string& path) {
    std::string where = concat(path, ": tensor '", name.substr(0, 100), "'");
    SafetensorsEntry entry;
    entry.name = name;
    entry.dtype = json_string(json_member(j, "dtype", where), where + ": dtype");
    int64_t size = dtype_bytes(entry.dtype, where);
    entry.numel = 1;
    for (const json& extent : json_array(json_member(j, "shape", where), where + ": shape")) {
        entry.shape.push_back(json_integer(extent, 0, int64_t{1} << 60, where + ": shape"));
        require(entry.shape.back() == 0 || entry.numel <= (int64_t{1} << 60) / size / entry.shape.back(), where, ": has a shape too big for any file");
        entry.numel *= entry.shape.back();
    }
    const json& offsets = json_array(json_member(j, "data_offsets", where), where + ": data_offsets");
    require(offsets.size() == 2, where, ": data_offsets must be two numbers");
    int64_t begin = json_integer(offsets[0], 0, data_bytes, where + ": data_offsets");
    int64_t end = json_integer(offsets[1], begin, data_bytes, where + ": data_offsets");
    entry.bytes = end - begin;
    entry.offset = data_begin + begin;
    require(entry.bytes == entry.numel * size, where, ": has ", entry.bytes, " bytes, but its shape and dtype need ", entry.numel * size);
    return entry;
}

static json read_header(const File& file, int64_t& data_begin) {
    const std::string& path = file.path();
    uint64_t bytes = 0;
    require(file.size() >= 10, path, ": has ", file.size(), " bytes, too few for a safetensors file");
    file.read(&bytes, sizeof bytes, 0);
    require(bytes >= 2 && bytes <= MAX_HEADER_BYTES && static_cast<int64_t>(bytes) <= file.size() - 8, path,
            ": is not a safetensors file, or was cut short: its first 8 bytes say that a header of ", bytes, " bytes follows, the file has ", file.size());
    std::string text(bytes, '\0');
    file.read(text.data(), static_cast<int64_t>(bytes), sizeof bytes);
    require(text[0] == '{', path, ": is not a safetensors file: byte 8 is not '{'");
    data_begin = static_cast<int64_t>(sizeof bytes + bytes);
    return json_object(parse_json(text, path + ": header"), path + ": header");
}

Safetensors open_safetensors(const std::string& path) {
    Safetensors s;
    s.path = path;
    s.file = std::make_shared<const File>(path);
    int64_t data_begin = 0;
    json header = read_header(*s.file, data_begin);
    for (auto& [key, value] : header.items()) {
        if (key != "__metadata__") {
            s.tensors.push_back(entry_from_json(key, value, data_begin, s.file->size() - data_begin, path));
            continue;
        }
        for (auto& [name, text] : json_object(value, path + ": __metadata__").items())
            s.metadata[name] = json_string(text, concat(path, ": __metadata__: ", name.substr(0, 100)));
    }
    auto place = [](const SafetensorsEntry& entry) { return std::pair(entry.offset, entry.bytes); };
    std::stable_sort(s.tensors.begin(), s.tensors.end(), [&](auto& a, auto& b) { return place(a) < place(b); });
    int64_t end = data_begin;
    for (const SafetensorsEntry& entry : s.tensors) {
        require(entry.offset == end, path, ": tensor '", entry.name.substr(0, 100), "' starts at byte ", entry.offset,
                ", but the one before ends at ", end);
        end += entry.bytes;
    }
    require(end == s.file->size(), path, ": has ", s.file->size(), " bytes, but its tensors end at ", end, "; restore it from a copy");
    return s;
}

const SafetensorsEntry* Safetensors::find(const std::string& name) const {
    auto found = std::find_if(tensors.begin(), tensors.end(), [&](const SafetensorsEntry& entry) { return entry.name == name; });
    return found == tensors.end() ? nullptr : &*found;
}

template <class Number>
static std::vector<Number> read_numbers(const Safetensors& s, const SafetensorsEntry& entry, int64_t first, int64_t count) {
    std::vector<Number> numbers(static_cast<size_t>(count));
    int64_t size = static_cast<int64_t>(sizeof(Number));
    s.file->read(numbers.data(), count * size, entry.offset + first * size);
    return numbers;
}

static float to_fp32(double value, const std::string& where) {
    constexpr double LIMIT = std::numeric_limits<float>::max();
    require(!std::isfinite(value) || std::abs(value) <= LIMIT, where, ": holds ", value, ", which fp32 cannot");
    return static_cast<float>(value);
}

void read_floats(const Safetensors& s, const SafetensorsEntry& entry, float* dst, int64_t first, int64_t count) {
    std::string where = concat(s.path, ": tensor '", entry.name.substr(0, 100), "'");
    require(first >= 0 && count >= 0 && first <= entry.numel - count, where, ": has ", entry.numel, " numbers, not ", first, " + ", count);
    if (entry.dtype == "F32") {
        s.file->read(dst, count * 4, entry.offset + first * 4);
    } else if (entry.dtype == "F64") {
        for (double value : read_numbers<double>(s, entry, first, count)) *dst++ = to_fp32(value, where);
    } else if (entry.dtype == "BF16") {
        for (bf16 value : read_numbers<bf16>(s, entry, first, count)) *dst++ = to_float(value);
    } else {
        fail(where, ": dtype is ", entry.dtype, ", but must be F64, F32 or BF16; convert it in Python");
    }
}

// ------------------------------------------------------------------------------------------------------------- writing

static int64_t bytes_of(const TensorSource& source) {
    int64_t bytes = dtype_bytes(source.dtype, source.name);
    for (int64_t size : source.shape) bytes *= size;
    return bytes;
}

static std::string header_text(const std::map<std::string, std::string>& metadata, const std::vector<TensorSource>& sources, const std::string& path) {
    std::string text = metadata.empty() ? "" : ",\"__metadata__\":" + dump_json(metadata);
    std::set<std::string> names;
    int64_t begin = 0;
    for (const TensorSource& source : sources) {
        require(names.insert(source.name).second, path, ": would have '", source.name, "' twice");
        int64_t end = begin + bytes_of(source);
        text += concat(",", dump_json(source.name), ":{\"dtype\":\"", source.dtype, "\",\"shape\":", dump_json(source.shape), ",\"data_offsets\":[",
                       begin, ",", end, "]}");
        begin = end;
    }
    text = concat("{", text.empty() ? "" : text.substr(1), "}");
    text.resize((text.size() + 7) / 8 * 8, ' ');
    require(static_cast<int64_t>(text.size()) <= MAX_HEADER_BYTES, path, ": its header would have ", text.size(), " bytes, but the format allows ", MAX_HEADER_BYTES);
    return text;
}

void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata, const std::vector<TensorSource>& sources) {
    std::string header = header_text(metadata, sources, path);
    int64_t end = 8 + static_cast<int64_t>(header.size());
    for (const TensorSource& source : sources) end += bytes_of(source);

    NewFile file(path, end);
    uint64_t header_bytes = header.size();
    file.write(&header_bytes, sizeof header_bytes, 0);
    file.write(header.data(), static_cast<int64_t>(header.size()), 8);
    std::vector<char> buffer(static_cast<size_t>(FILE_CHUNK));
    int64_t offset = 8 + static_cast<int64_t>(header.size());
    for (const TensorSource& source : sources) {
        int64_t bytes = bytes_of(source);
        if (source.file) file.copy(*source.file, source.offset, bytes, offset);
        for (int64_t at = 0; !source.file && at < bytes; at += FILE_CHUNK) {
            int64_t piece = std::min(FILE_CHUNK, bytes - at);
            source.fill(buffer.data(), at, piece);
            file.write(buffer.data(), piece, offset + at);
        }
        offset += bytes;
    }
    file.commit(end);
}
