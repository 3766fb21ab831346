// JSON that someone else wrote: what the parser leaves to its caller to refuse.
#include "llmc/json.h"
#include <cmath>
#include <set>
#include <vector>
#include "llmc/error.h"

using nlohmann::json;

// Copying and printing JSON recurse; this many levels are safe on any stack. A family tree of 400 generations fits.
static constexpr int MAX_LEVELS = 1000;

json parse_json(std::string_view text, const std::string& where) {
    std::vector<std::set<std::string>> keys;   // of the objects around the place that is being parsed
    auto watch = [&](int depth, json::parse_event_t event, json& parsed) {
        require(depth < MAX_LEVELS, where, ": nests more than ", MAX_LEVELS, " levels deep");
        if (event == json::parse_event_t::object_start) keys.emplace_back();
        if (event == json::parse_event_t::object_end) keys.pop_back();
        if (event == json::parse_event_t::key) {
            const std::string& key = parsed.get_ref<const std::string&>();
            require(keys.back().insert(key).second, where, ": has '", key, "' twice");
        }
        return true;
    };
    require(text.find('\0') == std::string_view::npos, where, ": is not JSON: holds a zero byte");   // the parser would stop there
    try {
        return json::parse(text, watch);
    } catch (const json::exception& error) {
        fail(where, ": is not JSON: ", error.what());
    }
}

std::string dump_json(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

static std::string excerpt(const json& value) {
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);   // ASCII: cut anywhere
    return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

const json& json_member(const json& object, const char* key, const std::string& where) {
    json_object(object, where);
    auto found = object.find(key);
    require(found != object.end(), where, ": '", key, "' is missing");
    return *found;
}

int64_t json_integer(const json& value, int64_t min, int64_t max, const std::string& where) {
    // is_number_integer() is also true of unsigned numbers, of which the upper half does not fit.
    bool fits = value.is_number_integer() && !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
    require(fits && value.get<int64_t>() >= min && value.get<int64_t>() <= max,
            where, ": is ", excerpt(value), ", but must be an integer, ", min, " to ", max);
    return value.get<int64_t>();
}

double json_number(const json& value, const std::string& where) {
    require(value.is_number() && std::isfinite(value.get<double>()), where, ": is ", excerpt(value), ", but must be a number");
    return value.get<double>();
}

bool json_bool(const json& value, const std::string& where) {
    require(value.is_boolean(), where, ": is ", excerpt(value), ", but must be true or false");
    return value.get<bool>();
}

const std::string& json_string(const json& value, const std::string& where) {
    require(value.is_string(), where, ": is ", excerpt(value), ", but must be a string");
    return value.get_ref<const std::string&>();
}

const json& json_array(const json& value, const std::string& where) {
    require(value.is_array(), where, ": is ", excerpt(value), ", but must be an array");
    return value;
}

const json& json_object(const json& value, const std::string& where) {
    require(value.is_object(), where, ": is ", excerpt(value), ", but must be an object");
    return value;
}
