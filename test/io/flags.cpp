// The table of flags: parsing a command line, writing to JSON, and restoring from it.
#include "llmc/io/flags.h"
#include <doctest/doctest.h>

using nlohmann::json;

namespace {
bool parse_all(Flags& flags, std::vector<std::string> arguments) {
    arguments.insert(arguments.begin(), "program");
    std::vector<char*> argv;
    for (std::string& argument : arguments) argv.push_back(argument.data());
    return flags.parse(static_cast<int>(argv.size()), argv.data());
}

struct Table {
    Flags flags{"program", "A program."};
    int& rows = flags.number("--rows", 8, 1, 64, "rows (8)", {FlagKind::training, "Sizes"});
    std::optional<int>& width = flags.number("--width", Nothing<int>{0}, 8, 4096, "channels", {FlagKind::model, "Sizes"});
    std::optional<double>& rate = flags.number("--rate", Nothing<double>{-1}, 0.0, 1e30, "rate", {FlagKind::training, "Rates"});
    std::optional<double>& clip = flags.number("--clip", Nothing<double>{}, 0.0, 1e30, "came later", {FlagKind::training, "Rates"});
    std::optional<std::string>& name = flags.text("--name", Nothing<std::string>{""}, "name", {FlagKind::training, "Rates"});
    std::optional<std::string>& start = flags.text("--start", Nothing<std::string>{""}, "may be empty", {}, true);
    std::optional<std::string>& tied = flags.choice("--tied", Nothing<std::string>{""}, {"yes", "no"}, "tied", {FlagKind::model, "Sizes"});
    std::string& order = flags.choice("--order", "up", {"up", "down"}, "order (up)");
    std::vector<std::string>& data = flags.texts("--data", "paths");
    std::vector<std::string>& extra = flags.repeated("--extra", "one path each time");
    bool& dry = flags.toggle("--dry", "nothing is written");

    bool parse(std::vector<std::string> arguments) { return parse_all(flags, std::move(arguments)); }
};

/// The message of the exception that parsing throws; empty if it throws none.
std::string refusal(Flags& flags, std::vector<std::string> arguments) {
    try {
        parse_all(flags, std::move(arguments));
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}
std::string refusal(const std::vector<std::string>& arguments) {
    Table table;
    return refusal(table.flags, arguments);
}
}  // namespace

TEST_CASE("flags: an absent flag has no value; JSON has its placeholder, or leaves it out") {
    Table table;
    REQUIRE(table.parse({}));
    CHECK(table.rows == 8);
    CHECK(!table.width);
    CHECK(!table.clip);
    CHECK(table.flags.values(FlagKind::training).dump() == R"({"name":"","rate":-1.0,"rows":8})");
    CHECK(table.flags.values(FlagKind::model).dump() == R"({"tied":"","width":0})");
    CHECK(table.flags.values(FlagKind::run).dump() == R"({"data":"","dry":false,"extra":"","order":"up","start":""})");
}

TEST_CASE("flags: given values") {
    Table table;
    REQUIRE(table.parse({"--rows", "010", "--width=64", "--rate", "0", "--clip", "2.5", "--start", "", "--tied", "no", "--order", "down", "--data", "a", "[b,c]", "--dry", "--data", "d",
                         "--extra", "x", "--extra", "y"}));
    CHECK(table.rows == 10);
    CHECK(table.width == 64);
    CHECK(table.rate == 0.0);
    CHECK(table.start == "");
    CHECK(table.tied == "no");
    CHECK(table.order == "down");
    CHECK(table.data == std::vector<std::string>{"a", "[b,c]", "d"});
    CHECK(table.extra == std::vector<std::string>{"x", "y"});
    CHECK(table.dry);
    CHECK(table.flags.values(FlagKind::training).dump() == R"({"clip":2.5,"name":"","rate":0.0,"rows":10})");
}

TEST_CASE("flags: JSON is restored; placeholders become absent flags; given flags win, and differences are reported") {
    Table first;
    REQUIRE(first.parse({"--rows", "3", "--clip", "2"}));
    const json kept = json::parse(first.flags.values(FlagKind::training).dump());
    Table next;
    REQUIRE(next.parse({}));
    next.rate = 7;
    CHECK(next.flags.restore(FlagKind::training, kept).empty());
    CHECK(next.rows == 3);
    CHECK(next.clip == 2.0);
    CHECK(!next.rate);
    CHECK(!next.name);
    CHECK(next.flags.values(FlagKind::training) == kept);

    Table other;
    REQUIRE(other.parse({"--rows", "4", "--rate", "1", "--clip", "2"}));
    CHECK(other.flags.restore(FlagKind::training, kept) == std::vector<std::string>{"--rows 3 -> 4", "--rate -1.0 -> 1.0"});
    CHECK(other.rows == 4);
    CHECK(other.flags.restore(FlagKind::training, {{"rows", 4}}) == std::vector<std::string>{"--clip not given -> 2.0"});   // from a file without --clip
    Table replaced;
    REQUIRE(replaced.parse({}));
    replaced.flags.restore(FlagKind::training, {{"rows", 5}, {"name", nullptr}, {"clip", 3}}, {"--clip"});
    CHECK(replaced.rows == 5);
    CHECK(!replaced.name);
    CHECK(!replaced.clip);
    CHECK_THROWS_WITH_AS(replaced.flags.restore(FlagKind::training, {{"rows", "many"}}), "the checkpoint's value of --rows is \"many\", which is of another type",
                         std::invalid_argument);
}

TEST_CASE("flags: a wrong value is refused with the flag, the value and the rule") {
    CHECK(refusal({"--rows", "65"}) == "--rows is 65, but must be 1 to 64");
    CHECK(refusal({"--rows", "2x"}) == "--rows is '2x', but must be a whole number");
    CHECK(refusal({"--width", "7"}) == "--width is 7, but must be 8 to 4096");
    CHECK(refusal({"--rate", "-1"}) == "--rate is -1, but must be 0 to 1e+30");   // the placeholder for an absent flag cannot be given
    CHECK(refusal({"--rate", "nan"}) == "--rate is nan, but must be 0 to 1e+30");
    CHECK(refusal({"--rows", "99999999999"}) == "--rows is 99999999999, which is out of range");
    CHECK(refusal({"--name", ""}) == "--name is empty; give a value, or leave it out");
    CHECK(refusal({"--data", "a", ""}) == "--data is empty; give a value, or leave it out");
    CHECK(refusal({"--tied", "maybe"}) == "--tied is 'maybe', but must be one of: yes, no");
    CHECK(refusal({"--order", "left"}) == "--order is 'left', but must be one of: up, down");
    CHECK(refusal({"--extra", "x", "y"}).ends_with("; see program --help"));
    CHECK(refusal({"--none"}).ends_with("; see program --help"));
}

TEST_CASE("flags: positional arguments, and rules between flags") {
    auto parse = [](std::vector<std::string> arguments) {
        Flags flags("program", "A program.");
        const std::string& in = flags.argument("IN", "a file");
        const std::vector<std::string>& more = flags.arguments("MORE", "files");
        const std::string& out = flags.text("--out", "", "a file");
        flags.toggle("--quick", "faster");
        flags.toggle("--exact", "slower");
        flags.require_given("--out");
        flags.exclude("--quick", "--exact");
        if (const std::string refused = refusal(flags, std::move(arguments)); !refused.empty()) return refused;
        return concat(in, " ", more.size(), " ", more.back(), " ", out);
    };
    CHECK(parse({"a", "b", "c", "--out", "d"}) == "a 2 c d");
    CHECK(parse({"a", "b", "--out", ""}) == "--out is empty; give a value");
    CHECK(parse({"a", "b"}) == "--out is required; see program --help");
    CHECK(parse({"--out", "d"}).find("IN is required") != std::string::npos);
    CHECK(parse({"a", "b", "--out", "d", "--quick", "--exact"}).find("excludes") != std::string::npos);
}

TEST_CASE("flags: an optional argument, a fixed number of values, and a flag that excludes all others") {
    auto parse = [](std::vector<std::string> arguments) {
        Flags flags("program", "A program.");
        const std::optional<std::string>& in = flags.optional_argument("IN", "a file");
        const std::vector<double>& pair = flags.numbers("--pair", 2, "two numbers");
        flags.toggle("--quick", "faster");
        flags.alone("--pair");
        if (const std::string refused = refusal(flags, std::move(arguments)); !refused.empty()) return refused;
        return concat(in.value_or("nothing"), " ", flags.values(FlagKind::run).dump(), " ", pair.size());
    };
    CHECK(parse({}) == R"(nothing {"pair":[],"quick":false} 0)");
    CHECK(parse({"", "--quick"}) == R"( {"pair":[],"quick":true} 0)");
    CHECK(parse({"--pair", "1e3", "-2.5"}) == R"(nothing {"pair":[1000.0,-2.5],"quick":false} 2)");
    CHECK(parse({"--pair", "1", "x"}) == "--pair is 'x', but must be a number");
    CHECK(parse({"--pair", "1"}).ends_with("; see program --help"));
    CHECK(parse({"--pair", "1", "2", "a"}) == "--pair is given alone; leave IN out");
    CHECK(parse({"a", "--pair", "1", "2"}) == "--pair is given alone; leave IN out");
    CHECK(parse({"--pair", "1", "2", "--quick"}) == "--pair is given alone; leave --quick out");
    CHECK(parse({"a", "b"}).ends_with("; see program --help"));
}
