// JSON that someone else wrote: parsed without surprises, its values read by their type.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>

/// Throws std::invalid_argument, `where` first, when the text is not JSON, has a key twice, or nests deeper than any header does.
/// keep: the parser's, asked of each value that is read; those that it takes itself need no memory in what is returned.
nlohmann::json parse_json(std::string_view text, const std::string& where, const nlohmann::json::parser_callback_t& keep = nullptr);

/// UTF-8 that is not valid is replaced, never refused: a header can always be written.
std::string dump_json(const nlohmann::json& json);

/// object[key]. Throws std::invalid_argument when it is no object or has no such key.
const nlohmann::json& json_member(const nlohmann::json& object, const char* key, const std::string& where);

/// The value, if it is of that type and within min and max; else they throw std::invalid_argument with `where`, rule and value.
/// A number with a fraction or an exponent (2.0, 1e3) is no integer; an integer is a number.
int64_t json_integer(const nlohmann::json& value, int64_t min, int64_t max, const std::string& where);
double json_number(const nlohmann::json& value, const std::string& where);
bool json_bool(const nlohmann::json& value, const std::string& where);
const std::string& json_string(const nlohmann::json& value, const std::string& where);
const nlohmann::json& json_array(const nlohmann::json& value, const std::string& where);
const nlohmann::json& json_object(const nlohmann::json& value, const std::string& where);
