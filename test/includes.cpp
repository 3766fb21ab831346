// The layers of the source tree, here called floors: io < text and device < ops < llmc < programs. Nothing includes a floor above its own, and no
// two modules (a header with its sources) include each other, not even indirectly.
#include <doctest/doctest.h>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>
#include "test/program.h"

namespace fs = std::filesystem;

namespace {
/// The folders that a folder may include, besides itself.
const std::map<std::string, std::set<std::string>> BELOW{{"llmc/io", {}},
                                                         {"llmc/text", {"llmc/io"}},
                                                         {"llmc/device", {"llmc/io"}},
                                                         {"llmc/ops", {"llmc/io", "llmc/device"}},
                                                         {"llmc", {"llmc/io", "llmc/text", "llmc/device", "llmc/ops"}}};

using Modules = std::map<std::string, std::set<std::string>>;   // path without extension -> the headers that it includes

std::string module_of(const fs::path& file) { return (file.parent_path() / file.stem()).string(); }

/// The headers of this tree that the text of a source file includes.
std::set<std::string> included(const std::string& source) {
    std::set<std::string> found;
    static const std::regex line("(^|\n)[ \t]*#[ \t]*include[ \t]*\"([^\"]+)\"");
    for (std::sregex_iterator at(source.begin(), source.end(), line), end; at != end; ++at) found.insert((*at)[2]);
    return found;
}

Modules modules_of_llmc() {
    Modules modules;
    for (const fs::directory_entry& entry : fs::recursive_directory_iterator("llmc")) {
        if (!entry.is_regular_file() || entry.path().extension() == ".md") continue;
        std::set<std::string>& includes = modules[module_of(entry.path())];
        for (const std::string& path : included(read_file(entry.path()))) includes.insert(module_of(path));
    }
    for (auto& [module, includes] : modules) includes.erase(module);
    return modules;
}

/// The violations of the rules, one line each.
std::vector<std::string> broken(const Modules& modules) {
    std::vector<std::string> lines;
    for (auto& [module, includes] : modules) {
        const std::string folder = fs::path(module).parent_path();
        const auto below = BELOW.find(folder);
        if (below == BELOW.end()) {
            lines.push_back(module + " is in none of the known folders");
            continue;
        }
        for (const std::string& other : includes) {
            const std::string theirs = fs::path(other).parent_path();
            if (theirs != folder && !below->second.contains(theirs)) lines.push_back(module + " includes " + other + ", which is on a higher or a sibling floor");
        }
    }
    std::map<std::string, int> state;   // 1: on the path of the depth-first search, 2: done
    std::vector<std::string> way;
    auto walk = [&](auto&& self, const std::string& module) -> void {
        if (state[module] == 2 || !modules.contains(module)) return;
        way.push_back(module);
        if (state[module] == 1) {
            std::string circle;
            for (auto at = std::find(way.begin(), way.end(), module); at != way.end(); ++at) circle += (circle.empty() ? "" : " -> ") + *at;
            lines.push_back("a cycle: " + circle);
        } else {
            state[module] = 1;
            for (const std::string& other : modules.at(module)) self(self, other);
            state[module] = 2;
        }
        way.pop_back();
    };
    for (auto& [module, ignored] : modules) walk(walk, module);
    return lines;
}
}  // namespace

TEST_CASE("includes: nothing in llmc includes a floor above its own, and there are no cycles") {
    const Modules modules = modules_of_llmc();
    REQUIRE(modules.size() > 40);
    CHECK(modules.at("llmc/ops/muon").contains("llmc/ops/matmul"));
    for (const std::string& line : broken(modules)) FAIL_CHECK(line);
}

TEST_CASE("includes: the rules detect an include of a higher floor, of a sibling floor, a cycle, and a file outside the floors") {
    CHECK(broken({{"llmc/io/file", {"llmc/device/types"}}}) ==
          std::vector<std::string>{"llmc/io/file includes llmc/device/types, which is on a higher or a sibling floor"});
    CHECK(broken({{"llmc/text/shard", {"llmc/device/types"}}}).size() == 1);
    CHECK(broken({{"llmc/ops/norm", {"llmc/config"}}}).size() == 1);
    CHECK(broken({{"llmc/gpt", {"train_gpt"}}}).size() == 1);
    CHECK(broken({{"llmc/more/deeper/file", {}}}).size() == 1);
    CHECK(broken({{"llmc/a", {"llmc/b"}}, {"llmc/b", {"llmc/c"}}, {"llmc/c", {"llmc/a"}}}) ==
          std::vector<std::string>{"a cycle: llmc/a -> llmc/b -> llmc/c -> llmc/a"});
    CHECK(broken({{"llmc/gpt", {"llmc/ops/norm", "llmc/text/shard"}}, {"llmc/ops/norm", {"llmc/device/types"}}, {"llmc/device/types", {}}}).empty());
    CHECK(included("#include <a>\n  # include \"llmc/b.h\"\n// #include \"no\"\n#include \"llmc/c.cuh\"\n") == std::set<std::string>{"llmc/b.h", "llmc/c.cuh"});
}

TEST_CASE("includes: every folder has a README.md, which names its modules") {
    for (const std::string folder : {"llmc", "llmc/io", "llmc/text", "llmc/device", "llmc/ops", "data", "dev", "dev/kernels", "test", "test/emulator", "test/golden"}) {
        INFO(folder);
        const std::string text = read_file(folder + "/README.md");
        CHECK(text.size() > 200);
        for (const fs::directory_entry& entry : fs::directory_iterator(folder))   // it names every module of the folder
            if (folder.starts_with("llmc") && entry.path().extension() == ".h") CHECK_MESSAGE(text.find("`" + entry.path().stem().string()) != std::string::npos, entry.path().string());
    }
}
