// JSON from files that may be damaged or hostile: strict parsing, and values that are checked for their type.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

/// Throws std::invalid_argument, beginning with `where`, when the text is not JSON, has a key twice, or nests too deeply.
/// keep: the parser's callback, called for each value; values for which it returns false are left out of the result.
nlohmann::json parse_json(std::string_view text, const std::string& where, const nlohmann::json::parser_callback_t& keep = nullptr);

/// Invalid UTF-8 is replaced, not refused, so that a header can always be written.
std::string dump_json(const nlohmann::json& json);

/// object[key]. Throws std::invalid_argument when it is not an object or does not have the key.
const nlohmann::json& json_member(const nlohmann::json& object, const char* key, const std::string& where);

/// These return the value if it has the type, and lies within min and max; else they throw std::invalid_argument with `where`, rule and
/// value. A number with a fraction or an exponent (2.0, 1e3) is not an integer; an integer is a number.
int64_t json_integer(const nlohmann::json& value, int64_t min, int64_t max, const std::string& where);
double json_number(const nlohmann::json& value, const std::string& where);
bool json_bool(const nlohmann::json& value, const std::string& where);
const std::string& json_string(const nlohmann::json& value, const std::string& where);
const nlohmann::json& json_array(const nlohmann::json& value, const std::string& where);
const nlohmann::json& json_object(const nlohmann::json& value, const std::string& where);
