// llmc/EXTENDING.md, as a reader uses it: its patches and files go into a copy of the tree, which is built; what they add must run.
#include <doctest/doctest.h>
#include <nlohmann/json.hpp>
#include "llmc/checkpoint.h"
#include "test/needs.h"
#include "test/small_model.h"
#include "test/small_run.h"

namespace fs = std::filesystem;

namespace {

/// Code between two fences: what follows the first one's backticks, what stands between, and the line before it that is not empty.
struct CodeBlock {
    std::string language, text, before;
};

std::vector<CodeBlock> code_blocks(const std::string& page) {
    std::vector<CodeBlock> blocks;
    std::istringstream lines(page);
    std::string last;
    bool inside = false;
    for (std::string line; std::getline(lines, line);) {
        if (line.starts_with("```")) {
            inside = !inside;
            if (inside) blocks.push_back({line.substr(3), "", last});
        } else if (inside) {
            blocks.back().text += line + "\n";
        } else if (!line.empty()) {
            last = line;
        }
    }
    return blocks;
}

/// A copy of the tree and of what is built of it, with the times of the files: make then builds what the page changes, and no more.
struct Tree : TempDir {
    fs::path programs = fs::relative(fs::canonical("train_gpt").parent_path());   // build/cpu-avx2-fp32
    std::string kind = programs.filename();

    Tree() {
        const size_t dash = kind.find('-');
        const std::string target = kind.substr(0, dash), numbers = kind.substr(dash + 1), isa = numbers.starts_with("avx2") ? "avx2" : "";
        settings = " DEVICE=" + target + " PRECISION=" + numbers.substr(numbers.find('-') + 1) + " ISA=" + isa;
        const std::string plain = "build/plain" + (isa.empty() ? "" : "-" + isa);
        // Sources; objects, programs and the files by which make knows its settings. What builds the emulator may be at work beside this.
        shell("cp -a Makefile *.cu llmc test " + path + " && find build/commit " + plain + " build/host-" + numbers + " " + programs.string() +
              " -type f -not -path '*/test/emulator/*' \\( -name '*.[od]' -o -not -name '*.*' \\) -print0 | xargs -0 cp -a --parents -t " + path);
        emulator = "build/emulator-" + numbers;
    }
    /// Applies the page. A file's name stands before its block, in backticks.
    void extend(const std::string& page) const {
        for (const CodeBlock& block : code_blocks(page)) {
            if (block.language == "diff") {
                write_file(*this / "page.patch", block.text);
                // Whatever repository holds the folder is not this tree's.
                const std::string above = fs::path(path).parent_path();
                const Result result = run("cd " + path + " && GIT_CEILING_DIRECTORIES=" + above + " git apply page.patch");
                REQUIRE_MESSAGE(result.code == 0, "a patch of llmc/EXTENDING.md does not apply: ", result.err, block.text);
            } else {
                const std::string name = block.before.substr(1, block.before.find('`', 1) - 1);
                REQUIRE_MESSAGE((block.before.starts_with("`") && !fs::exists(*this / name)),
                                "no new file is named before a block of llmc/EXTENDING.md: ", block.before);
                write_file(*this / name, block.text);
            }
        }
    }
    /// With the compiler and the parts that this tree was built with, but none of what a make around this test was told.
    void make(const std::string& goals) const {
        shell("cd " + path + " && commit=$(cat build/commit) && env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL CHECKED=yes make -s -j2 COMMIT=\"$commit\"" + settings +
              " " + goals);
    }
    std::string shell(const std::string& command) const {
        const Result result = run(command);
        REQUIRE_MESSAGE(result.code == 0, command, "\n", result.out, result.err);
        return result.out;
    }

    std::string settings, emulator;
};

Needs needs_git() {
    static const bool there = run("git --version").code == 0;
    return {there, "git"};
}

}  // namespace

TEST_CASE("EXTENDING.md: its recipe trains, its operator grows a model, its op passes its suite" * needs_git()) {
    Tree tree;
    tree.extend(read_file("llmc/EXTENDING.md"));
    const std::string tests = tree.programs / "op_tests";
    tree.make("train_gpt grow " + tests + " " + tree.emulator + "/llmc/ops/silu.cu.o");

    // The recipe: AdamW keeps the state of a matrix.
    Workplace work;
    const std::string run_folder = tree / "run";
    tree.shell(tree / "train_gpt --recipe nanochat_adamw --depth 2 --width 32 --heads 2 --seq-len 32 --vocab-size 72" +
               " --device-batch 2 --batch-tokens 128 --steps 2 --out " + run_folder + work.data);
    const std::string checkpoint = read_file(step_file(run_folder, 2));   // this program cannot open it: it does not know the recipe
    CHECK(contains(checkpoint, "\"nanochat_adamw\""));
    CHECK(contains(checkpoint, "\"h.0.q/m\""));
    CHECK(!contains(checkpoint, "/momentum\""));

    // The growth operator, with an odd number of added layers, an even one, and none.
    write_small_model(tree / "small.bin", nano(3), 1);
    for (const auto& [depth, layers] :
         {std::pair{6, "[[0,0],[0,0],[0,0],[0,1],[0,2],[0,2]]"}, {5, "[[0,0],[0,0],[0,1],[0,2],[0,2]]"}, {3, "[[0,0],[0,1],[0,2]]"}}) {
        CAPTURE(depth);
        tree.shell(tree / "grow --overwrite " + tree / "small.bin " + tree / "grown.bin --order ends --depth " + std::to_string(depth));
        CHECK(open_checkpoint(tree / "grown.bin").header["lineage"]["layers"] == nlohmann::json::parse(layers));
    }
    CHECK(contains(tree.shell(tree / "grow --help"), "0 0 0 1 2 2"));

    // The op.
    const Result suite = run("cd " + tree.path + " && " + tests + " --source-file='*test/ops/silu.cpp'");
    CHECK_MESSAGE(contains(suite.out, "3 passed, 0 failed, 0 skipped"), suite.out);
}
