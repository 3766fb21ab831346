// dev/run_tests.sh, with a make and suites that are scripts: what it counts, and what it takes for a failure.
#include <doctest/doctest.h>
#include <filesystem>
#include "test/program.h"

namespace {

/// A folder with run_tests.sh, a make that writes down what it is asked for, and the suites of a build, each of which passes one test.
struct Tree {
    TempDir dir;

    Tree() {
        script("make", "echo \"$*\" >>made");
        for (std::string build : {"cpu-bf16", "cpu-fp32", "cpu-avx2-bf16", "cpu-avx2-fp32"}) script("build/" + build + "/tests", one());
        for (std::string build : {"cpu-fp32", "cpu-avx2-fp32"}) script("build/" + build + "/tests_without_pcre2", one());
    }
    static std::string one() { return "echo 1 passed, 0 failed, 0 skipped"; }
    void script(const std::string& name, const std::string& text) const {
        std::filesystem::create_directories(std::filesystem::path(dir / name).parent_path());
        write_file(dir / name, "#!/bin/sh\n" + text + "\n");
        std::filesystem::permissions(dir / name, std::filesystem::perms::owner_all);
    }
    Result run_tests(const std::string& what, const std::string& variables = "") const {
        return run("script=$PWD/dev/run_tests.sh; cd " + dir.path + " && PATH=.:$PATH SMOKED= " + variables + " bash $script " + what);
    }
};

void ends(const Result& result, int code, const std::string& line) {
    CAPTURE(result.out);
    CAPTURE(result.err);
    CHECK(result.code == code);
    CHECK(result.out.ends_with("\n" + line + "\n"));
}

bool contains(const std::string& text, const std::string& words) { return text.find(words) != text.npos; }

}  // namespace

TEST_CASE("run_tests.sh: the last line adds up, and every part says where it is") {
    Tree tree;
    tree.script("build/cpu-bf16/tests", "echo skipped: something; echo 5 passed, 0 failed, 2 skipped");
    Result result = tree.run_tests("cpu");
    ends(result, 0, "7 passed, 0 failed, 2 skipped");
    CHECK(contains(result.out, "== [1/5] 0:0"));
    CHECK(contains(result.out, "== [5/5] 0:0"));
}

TEST_CASE("run_tests.sh: what fails, crashes, does not build or runs no test is a failure") {
    Tree tree;
    for (auto [suite, line] : {std::pair{"echo 5 passed, 2 failed, 1 skipped; exit 1", "7 passed, 2 failed, 1 skipped"},
                               {"echo 5 passed, 0 failed, 0 skipped; echo a leak; exit 1", "2 passed, 1 failed, 0 skipped"},
                               {"echo 5 passed, 0 failed, 0 skipped; exit 1", "7 passed, 1 failed, 0 skipped"},
                               {"kill -ABRT $$", "2 passed, 1 failed, 0 skipped"},
                               {"echo 0 passed, 0 failed, 0 skipped", "2 passed, 1 failed, 0 skipped"},
                               {"true", "2 passed, 1 failed, 0 skipped"}}) {
        CAPTURE(suite);
        tree.script("build/cpu-fp32/tests", suite);
        ends(tree.run_tests("cpu"), 1, line);
    }
    tree.script("make", "exit 2");
    ends(tree.run_tests("cpu"), 1, "0 passed, 1 failed, 0 skipped");
}

TEST_CASE("run_tests.sh: suites that run the programs run once, in the precision of the programs") {
    Tree tree;
    for (std::string precision : {"bf16", "fp32"}) tree.script("build/cpu-" + precision + "/tests", "echo " + precision + " \"$@\"; " + Tree::one());
    for (std::string programs : {"bf16", "fp32"}) {
        std::string out = tree.run_tests("cpu", "ONCE='*test/a.cpp' PROGRAMS_IN=" + programs).out;
        CHECK(contains(out, "\n" + programs + "\n"));
        CHECK(contains(out, std::string("\n") + (programs == "bf16" ? "fp32" : "bf16") + " --source-file-exclude=*test/a.cpp\n"));
    }
}

TEST_CASE("run_tests.sh: ISA=avx2 has folders of its own") {
    Tree tree;
    tree.script("build/cpu-fp32/tests", "exit 1");
    tree.script("build/cpu-bf16/tests", "exit 1");
    ends(tree.run_tests("avx2 cpu"), 0, "3 passed, 0 failed, 0 skipped");
}

TEST_CASE("run_tests.sh: what a processor with AVX2 has is tested once on any processor, the main job in small too") {
    Tree tree;
    tree.script("build/cpu-avx2-fp32/op_tests", "echo 4 passed, 0 failed, 0 skipped");
    const bool more = contains(read_file("/proc/cpuinfo"), "avx512f");
    Result result = tree.run_tests("isa");
    ends(result, 0, more ? "5 passed, 0 failed, 0 skipped" : "1 passed, 0 failed, 0 skipped");
    CHECK(contains(read_file(tree.dir / "made"), "run SMOKE=1"));
    CHECK(contains(result.out, "this processor has no AVX-512") == !more);
    tree.script("make", "case $* in *SMOKE*) exit 1; esac");
    ends(tree.run_tests("isa"), 1, more ? "4 passed, 1 failed, 0 skipped" : "0 passed, 1 failed, 0 skipped");
}
