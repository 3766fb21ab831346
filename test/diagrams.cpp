// dev/diagrams.py: it makes each file that dev/figures holds, and the growth orders that it draws are those that ./grow makes.
#include <doctest/doctest.h>
#include <filesystem>
#include <regex>
#include <set>
#include <sstream>
#include "llmc/layers.h"
#include "test/python.h"
#include "test/small_model.h"

namespace fs = std::filesystem;

static const std::string DIAGRAMS = PYTHON + " dev/diagrams.py";

static std::set<std::string> files_in(const std::string& folder) {
    std::set<std::string> names;
    for (const auto& entry : fs::directory_iterator(folder)) names.insert(entry.path().filename().string());
    return names;
}

/// "0 1 2 + + +" from the layer map that ./grow prints.
static std::string layers_printed(const std::string& out) {
    static const std::regex layer("layer +\\d+ <- (?:layer +(\\d+) of|new)");
    std::string layers;
    for (std::sregex_iterator at(out.begin(), out.end(), layer), end; at != end; ++at)
        layers += (layers.empty() ? "" : " ") + ((*at)[1].matched ? (*at)[1].str() : "+");
    return layers;
}

TEST_SUITE_BEGIN("diagrams");

TEST_CASE("diagrams: the growth orders that are drawn are those that grow makes" * needs_python()) {
    TempDir dir;
    write_small_model(dir / "3.bin", nano(3), 1);
    write_small_model(dir / "4.bin", nano(4), 1);
    std::istringstream orders(done(DIAGRAMS + " --orders"));
    static const std::regex form("(\\d) layers: (--order (\\w+) .*): ([0-9+ ]+)");
    std::set<std::string> drawn;
    for (std::string line; std::getline(orders, line);) {
        std::smatch match;
        REQUIRE_MESSAGE(std::regex_match(line, match, form), line);
        const std::string out = done("./grow " + dir / match[1].str() + ".bin " + dir / "out.bin" + " --dry-run " + match[2].str());
        CHECK_MESSAGE(layers_printed(out) == match[4].str(), line << "\n" << out);
        drawn.insert(match[3]);
    }
    // All that grow has, but for lists.
    std::set<std::string> known;
    for (const GrowthOperator& op : growth_operators()) known.insert(op.name);
    known.erase("LIST");
    CHECK(drawn == known);
}

TEST_CASE("diagrams: the script makes every file of dev/figures, and no other" * needs_matplotlib()) {
    TempDir dir;
    done(DIAGRAMS + " -o " + dir.path);
    std::set<std::string> committed;
    for (const std::string& name : files_in("dev/figures"))
        if (fs::path(name).extension() == ".svg") committed.insert(name);
    CHECK(files_in(dir.path) == committed);
    for (const std::string& name : committed)
        for (const std::string& folder : {dir.path, std::string("dev/figures")}) {
            const std::string svg = read_file(folder + "/" + name);
            CHECK_MESSAGE(svg.size() < 150000, name);
            CHECK_MESSAGE(svg.find("</svg>") != svg.npos, name);
        }
    // The same bytes again, and only what was asked for.
    TempDir again;
    done(DIAGRAMS + " stack -o " + again.path);
    CHECK(files_in(again.path) == std::set<std::string>{"stack.svg"});
    CHECK(read_file(again / "stack.svg") == read_file(dir / "stack.svg"));
}

TEST_CASE("diagrams: refusals" * needs_matplotlib()) {
    refused(DIAGRAMS + " blocks arena", "there is no diagram 'arena', only blocks, growth_orders, stack, arenas, attention_tiles, hopper_pipeline");
    refused(DIAGRAMS + " stack -o /nowhere", "/nowhere/stack.svg: cannot be written: No such file or directory; give another folder with --out");
}

TEST_SUITE_END();
