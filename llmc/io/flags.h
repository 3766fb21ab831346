// One table of flags: it holds their values, and drives the parser, the help, the start-up table, the header of the log and the
// settings in checkpoints. One declaration gives a flag and its value:
//     const int& batch = flags.number("--batch", 8, 1, 64, "rows of a batch (8)");
#pragma once
#include <algorithm>
#include <charconv>
#include <CLI/CLI.hpp>
#include <functional>
#include <iostream>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <type_traits>
#include <vector>
#include "llmc/io/error.h"

/// What a flag sets. model: fixed once weights exist. training: kept in checkpoints, so that --resume uses the same values. run: for
/// this call alone.
enum class FlagKind { model, training, run };

/// The kind of a flag, and its heading in the help.
struct FlagGroup {
    FlagKind kind = FlagKind::run;
    std::string title = "Options";
};

/// In place of a default value: the flag is empty until it is given or set. JSON then has `written` for it, or leaves the flag out if there
/// is no `written`; so a new flag does not change the JSON of runs that do not use it.
template <class Value>
struct Nothing {
    std::optional<Value> written = std::nullopt;
};

class Flags {
public:
    Flags(const std::string& program, const std::string& description) : name(program), app(description, program) {
        app.option_defaults()->always_capture_default(false);
        app.get_formatter()->column_width(34);
    }
    Flags(const Flags&) = delete;
    Flags& operator=(const Flags&) = delete;

    // Each of these declares a flag and returns a reference to its value, which lives as long as the table. `first`: the default; with
    // Nothing the value is a std::optional.

    /// A number within [low, high].
    template <class Number>
    Number& number(const std::string& flag, Number first, std::type_identity_t<Number> low, std::type_identity_t<Number> high,
                   const std::string& help, const FlagGroup& group = {}) {
        Number& value = add(flag, first, help, group);
        check_range(
            flag, [&value] { return value; }, low, high);
        return value;
    }
    template <class Number>
    std::optional<Number>& number(const std::string& flag, Nothing<Number> first, std::type_identity_t<Number> low,
                                  std::type_identity_t<Number> high, const std::string& help, const FlagGroup& group = {}) {
        std::optional<Number>& value = add(flag, first, help, group);
        check_range(
            flag, [&value] { return *value; }, low, high);
        return value;
    }
    /// First: a number, or Nothing<number>.
    template <class First, class Number>
    auto& at_least(const std::string& flag, First first, Number low, const std::string& help, const FlagGroup& group = {}) {
        return number(flag, first, low, std::numeric_limits<Number>::max(), help, group);
    }

    std::string& text(const std::string& flag, const std::string& first, const std::string& help, const FlagGroup& group = {}) {
        std::string& value = add(flag, first, help, group);
        check_not_empty(flag, [&value] { return value.empty(); });
        return value;
    }
    std::optional<std::string>& text(const std::string& flag, Nothing<std::string> first, const std::string& help,
                                     const FlagGroup& group = {}, bool may_be_empty = false) {
        std::optional<std::string>& value = add(flag, first, help, group);
        if (!may_be_empty) check_not_empty(flag, [&value] { return value->empty(); });
        return value;
    }

    /// One or more values, up to the next flag; a flag that is given again adds more. In JSON a single value is a string, as with text(),
    /// several are an array.
    std::vector<std::string>& texts(const std::string& flag, const std::string& help, const FlagGroup& group = {}) {
        return several(flag, 1 << 24, help, group);
    }
    /// One value each time the flag is given.
    std::vector<std::string>& repeated(const std::string& flag, const std::string& help, const FlagGroup& group = {}) {
        return several(flag, CLI::detail::expected_max_vector_size, help, group);   // with this limit CLI11 takes one value at a time
    }

    /// Exactly `count` numbers; empty until the flag is given.
    std::vector<double>& numbers(const std::string& flag, int count, const std::string& help, const FlagGroup& group = {}) {
        std::vector<double>& values = hold(std::vector<double>());
        const CLI::callback_t take = [&values, flag](const CLI::results_t& given) {
            values.clear();
            for (const std::string& text : given) values.push_back(parsed<double>(flag, text));
            return true;
        };
        CLI::Option* option = app.add_option(flag, take, help)->expected(count)->group(group.title)->type_name("FLOAT");
        table.push_back({flag, group.kind, option, [&values] { return nlohmann::json(values); },
                         [&values](const nlohmann::json& j) { values = j.get<std::vector<double>>(); }});
        return values;
    }

    std::string& choice(const std::string& flag, const std::string& first, const std::vector<std::string>& choices,
                        const std::string& help, const FlagGroup& group = {}) {
        std::string& value = add(flag, first, help + ": " + CLI::detail::join(choices, "|"), group);
        check_choice(
            flag, [&value] { return value; }, choices);
        return value;
    }
    std::optional<std::string>& choice(const std::string& flag, Nothing<std::string> first, const std::vector<std::string>& choices,
                                       const std::string& help, const FlagGroup& group = {}) {
        std::optional<std::string>& value = add(flag, first, help + ": " + CLI::detail::join(choices, "|"), group);
        check_choice(
            flag, [&value] { return *value; }, choices);
        return value;
    }

    /// Present or not.
    bool& toggle(const std::string& flag, const std::string& help, const FlagGroup& group = {}) {
        bool& value = hold(false);
        CLI::Option* option = app.add_flag(flag, value, help)->group(group.title);
        table.push_back({flag, group.kind, option, [&value] { return nlohmann::json(value); },
                         [&value](const nlohmann::json& j) { value = j; }});
        return value;
    }

    /// A required positional argument.
    std::string& argument(const std::string& what, const std::string& help) {
        std::string& value = hold(std::string());
        app.add_option(what, value, help)->required();
        return value;
    }
    /// An optional positional argument.
    std::optional<std::string>& optional_argument(const std::string& what, const std::string& help) {
        std::optional<std::string>& value = hold(std::optional<std::string>());
        app.add_option_function<std::string>(
               what, [&value](const std::string& text) { value = text; }, help)
            ->type_name("TEXT");
        return value;
    }
    /// One or more positional arguments.
    std::vector<std::string>& arguments(const std::string& what, const std::string& help) {
        std::vector<std::string>& values = hold(std::vector<std::string>());
        app.add_option(what, values, help)->required();
        return values;
    }

    /// Rules for declared flags: this one is required; these two exclude each other.
    void require_given(const std::string& flag) { find(flag).option->required(); }
    void exclude(const std::string& flag, const std::string& other) { find(flag).option->excludes(find(other).option); }
    /// `flag` is refused without `other`.
    void need(const std::string& flag, const std::string& other) { find(flag).option->needs(find(other).option); }
    /// When this flag is given, no other flag or argument may be.
    void alone(const std::string& flag) {
        check(flag, [this, flag, option = find(flag).option] {
            for (const CLI::Option* other : app.get_options())
                require(other == option || other->count() == 0, flag, " is given alone; leave ", other->get_name(), " out");
        });
    }
    void footer(const std::string& text) { app.footer(text); }

    /// False when help was asked for, and printed. Throws std::invalid_argument for an invalid command line.
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

    /// Values of all flags of a kind, by name without the dashes.
    nlohmann::json values(FlagKind kind) const {
        nlohmann::json json = nlohmann::json::object();
        for (const Entry& entry : table)
            if (std::optional<nlohmann::json> value = entry.get(); entry.kind == kind && value) json[entry.flag.substr(2)] = *value;
        return json;
    }
    /// Sets flags of a kind from the JSON of an earlier values(): those that were not given and are not in `except`; null changes nothing.
    /// Returns a line for each flag that was given and differs.
    std::vector<std::string> restore(FlagKind kind, const nlohmann::json& json, const std::vector<std::string>& except = {}) {
        std::vector<std::string> differing;
        for (Entry& entry : table) {
            const std::string key = entry.flag.substr(2);
            if (entry.kind != kind || !(json.contains(key) || entry.may_be_left_out)) continue;
            if (entry.option->count() == 0) {
                bool wanted = std::find(except.begin(), except.end(), entry.flag) == except.end();
                if (wanted && json.contains(key) && !json[key].is_null()) set(entry, json[key]);
            } else if (!json.contains(key)) {
                differing.push_back(concat(entry.flag, " not given -> ", entry.get()->dump()));
            } else if (*entry.get() != json[key]) {
                differing.push_back(concat(entry.flag, " ", json[key].dump(), " -> ", entry.get()->dump()));
            }
        }
        return differing;
    }

private:
    struct Entry {
        std::string flag;
        FlagKind kind;
        CLI::Option* option;
        std::function<std::optional<nlohmann::json>()> get;   // nothing: left out of the JSON
        std::function<void(const nlohmann::json&)> set;
        bool may_be_left_out = false;
    };

    /// A value at a stable address.
    template <class Value>
    Value& hold(Value first) {
        auto held = std::make_shared<Value>(std::move(first));
        values_held.push_back(held);
        return *held;
    }

    template <class Value>
    Value& add(const std::string& flag, const Value& first, const std::string& help, const FlagGroup& group) {
        Value& value = hold(first);
        CLI::Option* option = add_option<Value>(
            flag, [&value](Value given) { value = std::move(given); }, help, group);
        table.push_back({flag, group.kind, option, [&value] { return nlohmann::json(value); },
                         [&value](const nlohmann::json& j) { value = j.get<Value>(); }});
        return value;
    }
    template <class Value>
    std::optional<Value>& add(const std::string& flag, const Nothing<Value>& first, const std::string& help,
                              const FlagGroup& group) {
        std::optional<Value>& value = hold(std::optional<Value>());
        CLI::Option* option = add_option<Value>(
            flag, [&value](Value given) { value = std::move(given); }, help, group);
        std::optional<nlohmann::json> nothing;
        if (first.written) nothing = *first.written;
        auto get = [&value, nothing]() -> std::optional<nlohmann::json> {
            if (!value) return nothing;
            return nlohmann::json(*value);
        };
        auto set = [&value, nothing](const nlohmann::json& j) {
            if (nothing && j == *nothing)
                value.reset();
            else
                value = j.get<Value>();
        };
        table.push_back({flag, group.kind, option, get, set, !nothing});
        return value;
    }
    template <class Value, class Take>
    CLI::Option* add_option(const std::string& flag, Take take, const std::string& help, const FlagGroup& group) {
        auto parse = [flag, take](const std::string& text) { take(parsed<Value>(flag, text)); };
        CLI::Option* option = app.add_option_function<std::string>(flag, parse, help)->group(group.title);
        return option->type_name(std::is_integral_v<Value> ? "INT" : std::is_floating_point_v<Value> ? "FLOAT" : "TEXT");
    }
    std::vector<std::string>& several(const std::string& flag, int most_at_once, const std::string& help, const FlagGroup& group) {
        std::vector<std::string>& values = hold(std::vector<std::string>());
        const CLI::callback_t take = [&values](const CLI::results_t& given) {
            values = given;
            return true;
        };
        // Not as a CLI11 vector, which would split [a,b]: it may be a glob pattern.
        CLI::Option* option = app.add_option(flag, take, help)
                                  ->expected(1, most_at_once)
                                  ->allow_extra_args(false)
                                  ->group(group.title)
                                  ->type_name("TEXT");
        auto get = [&values] {
            return values.empty() ? nlohmann::json("") : values.size() == 1 ? nlohmann::json(values[0]) : nlohmann::json(values);
        };
        auto set = [&values](const nlohmann::json& j) {
            values = j.is_string() ? std::vector{j.get<std::string>()} : j.get<std::vector<std::string>>();
        };
        table.push_back({flag, group.kind, option, get, set});
        check_not_empty(flag, [&values] { return std::find(values.begin(), values.end(), "") != values.end(); });
        return values;
    }

    /// Adds a check that runs if the flag was given.
    void check(const std::string& flag, std::function<void()> rule) {
        checks.push_back([option = find(flag).option, rule] {
            if (option->count() > 0) rule();
        });
    }
    template <class Get, class Number>
    void check_range(const std::string& flag, Get value, Number low, Number high) {
        check(flag, [flag, value, low, high] {
            const std::string limit = high == std::numeric_limits<Number>::max() ? " or more" : concat(" to ", high);
            require(value() >= low && value() <= high, flag, " is ", value(), ", but must be ", low, limit);
        });
    }
    template <class Empty>
    void check_not_empty(const std::string& flag, Empty empty) {
        check(flag, [flag, empty, option = find(flag).option] {
            require(!empty(), flag, " is empty; give a value", option->get_required() ? "" : ", or leave it out");
        });
    }
    template <class Get>
    void check_choice(const std::string& flag, Get value, const std::vector<std::string>& choices) {
        check(flag, [flag, value, choices] {
            bool known = std::find(choices.begin(), choices.end(), value()) != choices.end();
            require(known, flag, " is '", value(), "', but must be one of: ", CLI::detail::join(choices, ", "));
        });
    }

    /// Parses the whole text as decimal: 010 is ten, and a number out of range is an error.
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
    std::vector<std::shared_ptr<void>> values_held;
    std::vector<Entry> table;
    std::vector<std::function<void()>> checks;
};
