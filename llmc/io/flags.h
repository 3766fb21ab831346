// One table of flags: it drives the parser, the help, the start-up table, the log's header and what a checkpoint keeps.
#pragma once
#include <algorithm>
#include <charconv>
#include <CLI/CLI.hpp>
#include <functional>
#include <iostream>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>
#include "llmc/io/error.h"

/// What a flag belongs to. model: fixed once weights exist. training: kept in checkpoints, so that --resume goes on with it.
/// run: of this call alone.
enum class FlagKind { model, training, run };

class Flags {
public:
    Flags(const std::string& program, const std::string& description) : name(program), app(description, program) {
        app.option_defaults()->always_capture_default(false);
        app.get_formatter()->column_width(34);
    }

    /// A number within [low, high].
    template <class Number>
    void number(const std::string& flag, Number& value, Number low, Number high, FlagKind kind, const std::string& group, const std::string& help) {
        add(flag, value, kind, group, help);
        checks.push_back([this, flag, &value, low, high] {
            const std::string limit = high == std::numeric_limits<Number>::max() ? " or more" : concat(" to ", high);
            require(!given(flag) || (value >= low && value <= high), flag, " is ", value, ", but must be ", low, limit);
        });
    }
    template <class Number>
    void at_least(const std::string& flag, Number& value, Number low, FlagKind kind, const std::string& group, const std::string& help) {
        number(flag, value, low, std::numeric_limits<Number>::max(), kind, group, help);
    }
    void text(const std::string& flag, std::string& value, FlagKind kind, const std::string& group, const std::string& help,
              bool may_be_empty = false) {
        add(flag, value, kind, group, help);
        checks.push_back([this, flag, &value, may_be_empty] {
            require(!given(flag) || !value.empty() || may_be_empty, flag, " is empty; give a value, or leave it out");
        });
    }
    /// As many values as follow the flag, until the next one; given again, it adds to them. In JSON one is a text, as text() has it,
    /// several are an array.
    void texts(const std::string& flag, std::vector<std::string>& values, FlagKind kind, const std::string& group, const std::string& help) {
        const CLI::callback_t take = [&values](const CLI::results_t& given) {
            values = given;
            return true;
        };
        // Not as CLI11's vectors, which take [a,b] apart: it may be a pattern of file names.
        CLI::Option* option = app.add_option(flag, take, help)->expected(1, 1 << 24)->allow_extra_args(false)->group(group)->type_name("TEXT");
        auto get = [&values] { return values.empty() ? nlohmann::json("") : values.size() == 1 ? nlohmann::json(values[0]) : nlohmann::json(values); };
        auto set = [&values](const nlohmann::json& j) { values = j.is_string() ? std::vector{j.get<std::string>()} : j.get<std::vector<std::string>>(); };
        table.push_back({flag, kind, option, get, set});
        checks.push_back([flag, &values] {
            bool empty = std::any_of(values.begin(), values.end(), [](const std::string& value) { return value.empty(); });
            require(!empty, flag, " is empty; give a value, or leave it out");
        });
    }
    void choice(const std::string& flag, std::string& value, const std::vector<std::string>& choices, FlagKind kind, const std::string& group,
                const std::string& help) {
        add(flag, value, kind, group, help + ": " + CLI::detail::join(choices, "|"));
        checks.push_back([this, flag, &value, choices] {
            bool known = std::find(choices.begin(), choices.end(), value) != choices.end();
            require(!given(flag) || known, flag, " is '", value, "', but must be one of: ", CLI::detail::join(choices, ", "));
        });
    }
    /// Present or not.
    void toggle(const std::string& flag, bool& value, FlagKind kind, const std::string& group, const std::string& help) {
        CLI::Option* option = app.add_flag(flag, value, help)->group(group);
        table.push_back({flag, kind, option, [&value] { return nlohmann::json(value); }, [&value](const nlohmann::json& j) { value = j; }});
    }

    /// False when help was asked for, and printed. Throws std::invalid_argument for anything that cannot be.
    bool parse(int argc, char** argv) {
        try {
            app.parse(argc, argv);
        } catch (const CLI::CallForHelp&) {
            std::cout << app.help();
            return false;
        } catch (const CLI::ParseError& error) {
            fail(error.what(), "; see ", name, " --help");
        }
        for (auto& check : checks) check();
        return true;
    }

    bool given(const std::string& flag) const { return find(flag).option->count() > 0; }
    bool any_given(const std::vector<std::string>& flags) const {
        return std::any_of(flags.begin(), flags.end(), [this](const std::string& flag) { return given(flag); });
    }

    /// Values of all flags of a kind, by name without the dashes.
    nlohmann::json values(FlagKind kind) const {
        nlohmann::json json = nlohmann::json::object();
        for (const Entry& entry : table)
            if (entry.kind == kind) json[entry.flag.substr(2)] = entry.get();
        return json;
    }
    /// Sets the flags of a kind that were not given, and are not in `except`, to what values() once gave; null leaves them.
    /// Returns a line for each that was given and differs.
    std::vector<std::string> restore(FlagKind kind, const nlohmann::json& json, const std::vector<std::string>& except = {}) {
        std::vector<std::string> differing;
        for (Entry& entry : table) {
            std::string key = entry.flag.substr(2);
            if (entry.kind != kind || !json.contains(key)) continue;
            if (entry.option->count() == 0) {
                bool wanted = std::find(except.begin(), except.end(), entry.flag) == except.end();
                if (wanted && !json[key].is_null()) set(entry, json[key]);
            } else if (entry.get() != json[key]) {
                differing.push_back(concat(entry.flag, " ", json[key].dump(), " -> ", entry.get().dump()));
            }
        }
        return differing;
    }
    void footer(const std::string& text) { app.footer(text); }

private:
    struct Entry {
        std::string flag;
        FlagKind kind;
        CLI::Option* option;
        std::function<nlohmann::json()> get;
        std::function<void(const nlohmann::json&)> set;
    };

    template <class Value>
    void add(const std::string& flag, Value& value, FlagKind kind, const std::string& group, const std::string& help) {
        auto parse = [flag, &value](const std::string& text) { value = parsed<Value>(flag, text); };
        CLI::Option* option = app.add_option_function<std::string>(flag, parse, help)->group(group);
        option->type_name(std::is_integral_v<Value> ? "INT" : std::is_floating_point_v<Value> ? "FLOAT" : "TEXT");
        table.push_back({flag, kind, option, [&value] { return nlohmann::json(value); }, [&value](const nlohmann::json& j) { value = j.get<Value>(); }});
    }
    /// The whole text, decimal: 010 is ten, and what does not fit is an error.
    template <class Value>
    static Value parsed(const std::string& flag, const std::string& text) {
        if constexpr (std::is_same_v<Value, std::string>) {
            return text;
        } else {
            Value value{};
            const char* end = text.data() + text.size();
            auto [rest, error] = std::from_chars(text.data(), end, value);
            require(error != std::errc::result_out_of_range, flag, " is ", text, ", which is out of range");
            require(error == std::errc() && rest == end, flag, " is '", text, "', but must be a ",
                    std::is_integral_v<Value> ? "whole number" : "number", std::is_unsigned_v<Value> ? ", 0 or above" : "");
            return value;
        }
    }
    static void set(Entry& entry, const nlohmann::json& value) {
        try {
            entry.set(value);
        } catch (const nlohmann::json::exception&) {
            fail("the checkpoint's value of ", entry.flag, " is ", value.dump(), ", which is of another type");
        }
    }
    const Entry& find(const std::string& flag) const {
        for (const Entry& entry : table)
            if (entry.flag == flag) return entry;
        throw std::logic_error("no such flag: " + flag);
    }

    std::string name;
    CLI::App app;
    std::vector<Entry> table;
    std::vector<std::function<void()>> checks;
};
