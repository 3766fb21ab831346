// Strict JSON parsing: refuses what nlohmann's parser accepts silently.
#include "llmc/io/json.h"
#include <cmath>
#include <set>
#include <vector>
#include "llmc/io/error.h"

using nlohmann::json;

// Copying and printing JSON is recursive; this many levels fit on any stack. A family tree of 400 generations fits in them.
static constexpr size_t MAX_LEVELS = 1000;

/// A SAX pass over the text that refuses duplicate keys and deep nesting.
class Watcher : public nlohmann::json_sax<json> {
public:
    explicit Watcher(const std::string& where_) : where(where_) {}
    bool null() override { return true; }
    bool boolean(bool) override { return true; }
    bool number_integer(int64_t) override { return true; }
    bool number_unsigned(uint64_t) override { return true; }
    bool number_float(double, const std::string&) override { return true; }
    bool string(std::string&) override { return true; }
    bool binary(binary_t&) override { return true; }
    bool start_object(size_t) override { return enter(); }
    bool start_array(size_t) override { return enter(); }
    bool end_object() override { return leave(); }
    bool end_array() override { return leave(); }
    bool key(std::string& key) override {
        require(levels.back().insert(key).second, where, ": has '", key.substr(0, 100), "' twice");
        return true;
    }
    bool parse_error(size_t, const std::string&, const json::exception& error) override {
        // Without the parser's own name and line number (everything is one line to it), and with at most 200 characters of quoted text.
        std::string text = error.what();
        if (size_t column = text.find("column "); column != text.npos) text.erase(0, column);
        fail(where, ": is not JSON: ", text.size() <= 200 ? text : text.substr(0, 200) + "...");
    }

private:
    bool enter() {
        levels.emplace_back();
        require(levels.size() <= MAX_LEVELS, where, ": nests more than ", MAX_LEVELS, " levels deep");
        return true;
    }
    bool leave() {
        levels.pop_back();
        return true;
    }

    const std::string& where;
    std::vector<std::set<std::string>> levels;   // the keys so far of each enclosing object; arrays have none
};

json parse_json(std::string_view text, const std::string& where, const json::parser_callback_t& keep) {
    require(text.find('\0') == std::string_view::npos, where, ": is not JSON: holds a zero byte");   // at which the parser would stop
    Watcher watcher(where);
    json::sax_parse(text, &watcher);
    return json::parse(text, keep);
}

std::string dump_json(const json& value) { return value.dump(-1, ' ', false, json::error_handler_t::replace); }

static std::string excerpt(const json& value) {
    std::string text = value.dump(-1, ' ', true, json::error_handler_t::replace);   // ASCII, so that it can be cut anywhere
    return text.size() <= 60 ? text : text.substr(0, 60) + "...";
}

const json& json_member(const json& object, const char* key, const std::string& where) {
    json_object(object, where);
    auto found = object.find(key);
    require(found != object.end(), where, ": '", key, "' is missing");
    return *found;
}

int64_t json_integer(const json& value, int64_t min, int64_t max, const std::string& where) {
    // is_number_integer() is also true for unsigned numbers, whose upper half does not fit int64_t.
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
