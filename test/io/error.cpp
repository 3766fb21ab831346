// The error output of every program: one short line, whatever the arguments.
#include "llmc/io/error.h"
#include <doctest/doctest.h>
#include <vector>
#include "test/program.h"

namespace fs = std::filesystem;

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

TEST_CASE("error: readable text is unchanged") {
    for (std::string text : {std::string(), std::string("grow: 'a b' is not there"), std::string("caf\xC3\xA9 \xE2\x82\xAC \xFF"), std::string(600, 'x')}) CHECK(readable(text) == text);
    CHECK(readable("a\nb\rc\td\033[31me\177f\1") == "a b c d [31me f ");
}

TEST_CASE("error: a long text keeps its start and end, and the number of characters left out between") {
    CHECK(readable(std::string(601, 'x')) == std::string(360, 'x') + "... (1 characters left out) ..." + std::string(240, 'x'));
    std::string text = "train_gpt: '" + std::string(100000, 'y') + "' must be a number";
    CHECK(readable(text).size() < 640);
    CHECK(readable(text).starts_with("train_gpt: 'yyyy"));
    CHECK(readable(text).ends_with("yyyy' must be a number"));
    CHECK(contains(readable(text), concat("... (", text.size() - 600, " characters left out) ...")));
    // UTF-8 characters are never cut, and count as one each.
    for (std::string character : {"\xC3\xA9", "\xE2\x82\xAC", "\xF0\x9F\x98\x80"})
        for (int offset = 0; offset < 4; offset++) {
            std::string long_text(offset, 'a'), kept;
            for (int i = 0; i < 1000; i++) long_text += character;
            long_text += std::string(offset / 2, 'z');
            const std::string cut = readable(long_text);
            const size_t open = cut.find("... ("), close = cut.find(" characters left out) ...");
            REQUIRE(open != cut.npos);
            REQUIRE(close != cut.npos);
            const std::string first = cut.substr(0, open), last = cut.substr(close + 25);
            const size_t whole = first.size() - offset + last.size() - offset / 2;
            CHECK(whole % character.size() == 0);
            CHECK(std::stoul(cut.substr(open + 5)) == 1000 - whole / character.size());
            CHECK(long_text.starts_with(first));
            CHECK(long_text.ends_with(last));
        }
    CHECK(contains(readable(std::string(100000, '\x80')), "left out"));   // not UTF-8 at all
}

/// The programs in the folder of ./train_gpt, each with arguments that make it refuse the value of $given.
static std::vector<std::pair<std::string, std::string>> programs() {
    std::string folder = run("dirname \"$(readlink -f train_gpt)\"").out;
    folder.pop_back();
    std::vector<std::pair<std::string, std::string>> all;
    for (std::string arguments : {"$given", "--data $given", "--steps $given", "--recipe $given", "--no-such-flag $given", "--init $given --eval --val-data x", "--plan --depth $given",
                                  "--plan --window-pattern $given", "--resume $given", "--profile-steps $given --plan", "--plan --no-such-flag=$given"})
        all.emplace_back("train_gpt", arguments);
    for (std::string arguments : {"$given", "$given out", "in $given", "in out --order $given", "in out --order stack --factor $given", "$given $given --order stack --factor 2", "in out --$given"})
        all.emplace_back("grow", arguments);
    for (std::string arguments : {"$given", "$given --out x", "a b --out $given", "a b --out x --head $given"}) all.emplace_back("stack", arguments);
    for (std::string arguments : {"$given", "$given x", "x $given", "x y $given"}) all.emplace_back("convert", arguments);
    for (std::string arguments : {"$given", "$given --out x --train-tokenizer 300", "README.md --out x --tokenizer $given", "README.md --out x --train-tokenizer $given",
                                  "README.md --out x --val $given --train-tokenizer 300"})
        all.emplace_back("data/tokenize", arguments);
    for (std::string arguments : {"$given", "$given $given"}) all.emplace_back("report", arguments);
    for (std::string arguments : {"$given", "--mma-sync $given"}) all.emplace_back("bench", arguments);
    for (std::string arguments : {"$given", "speedrun124M --batch $given"}) all.emplace_back("bench_ops", arguments);
    for (auto& [program, arguments] : all) {
        const std::string path = folder + "/" + program;
        REQUIRE_MESSAGE(fs::exists(path), path);
        arguments = path + " " + arguments;
    }
    return all;
}

TEST_CASE("error: every program refuses any argument with one short line and exit code 2") {
    TempDir dir;
    const std::vector<std::pair<std::string, std::string>> given = {
        {"100,000 characters", "given=$(head -c 100000 /dev/zero | tr '\\0' x)"},
        {"100,000 characters of UTF-8", "given=$(head -c 50000 /dev/zero | tr '\\0' x | sed 's/x/\xC3\xA9/g')"},
        {"5000 arguments", "given=$(seq 10000 14999)"},
        {"control characters", "IFS=; given=$(printf 'a\\nb\\r\\033[31mc\\t\\001')"},
    };
    for (auto& [program, command] : programs())
        for (auto& [what, assignment] : given) {
            CAPTURE(what);
            CAPTURE(command);
            Result result = run("export OMP_NUM_THREADS=1; " + assignment + "; " + command);
            CAPTURE(result.err.substr(0, 2000));
            CHECK(result.code == 2);
            CHECK(result.err.size() < 650);
            CHECK(result.err.starts_with(program.substr(program.find('/') + 1) + ": "));
            CHECK(result.err.find_first_of("\n\r\033\t\001") == result.err.size() - 1);
        }
    CHECK(!fs::exists("x"));
}

TEST_CASE("error: the scripts' lines are short too") {
    for (std::string script : {"data/fineweb10B.sh 1", "data/tinyshakespeare.sh"})
        for (std::string given : {"\"$(head -c 100000 /dev/zero | tr '\\0' x)\"", "\"$(printf 'README.md/a\\nb\\033')\""}) {
            Result result = run(script + " " + given);
            CAPTURE(result.err.substr(0, 2000));
            CHECK(result.code == 2);
            CHECK(result.err.size() < 650);
            CHECK(result.err.find_first_of("\n\033") == result.err.size() - 1);
        }
}
