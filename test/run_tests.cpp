// dev/run_tests.sh, with scripts in place of make and the suites: its counts, and what it counts as a failure.
#include <doctest/doctest.h>
#include <filesystem>
#include "test/program.h"

namespace {

/// A folder with a make that writes down its arguments, and the suites of a build, each of which passes one test.
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
        return run("script=$PWD/dev/run_tests.sh; cd " + dir.path + " && PATH=.:$PATH SMOKED= ONCE= PROGRAMS_IN= " + variables + " bash $script " + what);
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

TEST_CASE("run_tests.sh: the last line is the sum of the counts, and every part prints the progress") {
    Tree tree;
    tree.script("build/cpu-bf16/tests", "echo skipped: something; echo 5 passed, 0 failed, 2 skipped");
    Result result = tree.run_tests("cpu");
    ends(result, 0, "7 passed, 0 failed, 2 skipped");
    CHECK(contains(result.out, "== [1/3] 0:0"));
    CHECK(contains(result.out, "== [3/3] 0:0"));
}

TEST_CASE("run_tests.sh: a suite that fails, crashes, does not build or runs no test is a failure") {
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

TEST_CASE("run_tests.sh: the end names every failure, and its log") {
    Tree tree;
    tree.script("build/cpu-fp32/tests", "echo 'failed: a case: a.cpp:1: CHECK( 1 == 2 )'; echo more; echo 'failed: another'; echo 5 passed, 2 failed, 0 skipped; exit 1");
    tree.script("build/cpu-bf16/tests", "exit 3");
    Result result = tree.run_tests("cpu");
    ends(result, 1, "6 passed, 3 failed, 0 skipped");
    const std::string last = result.out.substr(result.out.find(" in all\n"));
    for (std::string line : {"failed: build/cpu-fp32/tests.log: a case: a.cpp:1: CHECK( 1 == 2 )", "failed: build/cpu-fp32/tests.log: another",
                             "failed: build/cpu-bf16/tests.log ends without a test (exit 3)"})
        CHECK_MESSAGE(contains(last, "\n" + line + "\n"), last);
}

TEST_CASE("run_tests.sh: suites that run the programs run once, in the precision of the programs") {
    Tree tree;
    for (std::string precision : {"bf16", "fp32"}) tree.script("build/cpu-" + precision + "/tests", "echo " + precision + " \"$@\"; " + Tree::one());
    for (std::string programs : {"bf16", "fp32"}) {
        Result result = tree.run_tests("cpu", "ONCE='*test/a.cpp' PROGRAMS_IN=" + programs);
        for (std::string precision : {"bf16", "fp32"}) {
            CHECK(contains(result.out, "\n" + precision + " --source-file-exclude=*test/a.cpp\n"));
            CHECK(contains(result.out, "\n" + precision + " --source-file=*test/a.cpp\n") == (precision == programs));
        }
        ends(result, 0, "4 passed, 0 failed, 0 skipped");
    }
}

TEST_CASE("run_tests.sh: as many jobs in parallel as there are processors, no more") {
    Tree tree;
    // Each waits until the other has started, and fails alone.
    auto meets = [](const std::string& own, const std::string& other) {
        return "touch " + own + "\nfor i in $(seq 400); do [ -e " + other + " ] && break; sleep 0.05; done\n[ -e " + other + " ] && " + Tree::one();
    };
    tree.script("nproc", "echo 2");
    tree.script("build/cpu-fp32/tests", meets("fp32", "bf16"));
    tree.script("build/cpu-bf16/tests", meets("bf16", "fp32"));
    ends(tree.run_tests("cpu"), 0, "3 passed, 0 failed, 0 skipped");
    // Each fails if another one runs at the same time.
    const std::string alone = "mkdir busy && sleep 0.1 && rmdir busy && " + Tree::one();
    tree.script("nproc", "echo 1");
    for (std::string suite : {"build/cpu-fp32/tests", "build/cpu-bf16/tests", "build/cpu-fp32/tests_without_pcre2"}) tree.script(suite, alone);
    ends(tree.run_tests("cpu"), 0, "3 passed, 0 failed, 0 skipped");
}

TEST_CASE("run_tests.sh: ISA=avx2 has folders of its own") {
    Tree tree;
    tree.script("build/cpu-fp32/tests", "exit 1");
    tree.script("build/cpu-bf16/tests", "exit 1");
    ends(tree.run_tests("avx2 cpu"), 0, "3 passed, 0 failed, 0 skipped");
}

TEST_CASE("run_tests.sh: on any processor, a build for AVX2 is tested once, and make run SMOKE=1 too") {
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

namespace {

/// With the emulator's programs, too. Its suites print their precision and arguments; steps write a file.
struct EmulatorTree : Tree {
    EmulatorTree() {
        for (std::string precision : {"bf16", "fp32"}) {
            script("build/emulator-" + precision + "/tests", "echo " + precision + " \"$@\"; " + one());
            for (std::string device : {"cpu-", "emulator-"}) script("build/" + device + precision + "/step", "echo weights >$1; " + one());
        }
    }
};

}  // namespace

TEST_CASE("run_tests.sh: each suite of the emulator runs once in each precision, split into jobs, and whole steps too") {
    EmulatorTree tree;
    tree.script("build/emulator-fp32/step", "echo weights >$1; echo compared with $2; " + Tree::one());
    Result result = tree.run_tests("emulator");
    // Four jobs and a step in each precision, comm.cpp in one, and the step in another thread order.
    ends(result, 0, "12 passed, 0 failed, 0 skipped");
    for (std::string precision : {"bf16", "fp32"})
        for (std::string piece : {"--source-file=*golden.cpp", "--source-file=*ops/attention.cpp", "--source-file=*emulator/processes.cpp",
                                  "--source-file-exclude=*golden.cpp,*ops/attention.cpp,*emulator/comm.cpp,*emulator/processes.cpp"})
            CHECK_MESSAGE(contains(result.out, "\n" + precision + " " + piece + "\n"), piece);
    CHECK(contains(result.out, "\nbf16 --source-file=*emulator/comm.cpp\n"));
    CHECK(contains(result.out, "\ncompared with build/cpu-fp32/step.out\n"));
    CHECK(contains(result.out, "-- [1/12] 0:0"));
    CHECK(contains(result.out, "-- [12/12] 0:0"));

    // A job that crashes, or has no cases, is a failure, and its output is shown.
    for (std::string end : {"kill -ABRT $$", "echo 0 passed, 0 failed, 0 skipped"}) {
        tree.script("build/emulator-bf16/tests", "case $* in --source-file=*golden*) echo words of golden; " + end + ";; *) " + Tree::one() + ";; esac");
        result = tree.run_tests("emulator");
        ends(result, 1, "11 passed, 1 failed, 0 skipped");
        CHECK(contains(result.out, "\nwords of golden\n"));
    }
}

TEST_CASE("run_tests.sh: whole steps that fail, or differ in another thread order, are failures") {
    EmulatorTree tree;
    tree.script("build/emulator-bf16/step", "echo weights $EMULATOR_SEED >$1; " + Tree::one());
    ends(tree.run_tests("emulator"), 1, "11 passed, 1 failed, 0 skipped");
    tree.script("build/emulator-bf16/step", "[ -n \"$EMULATOR_SEED\" ] || echo weights >$1; " + Tree::one());   // in the other order it writes no file
    ends(tree.run_tests("emulator"), 1, "11 passed, 1 failed, 0 skipped");
    tree.script("build/emulator-bf16/step", "echo weights >$1; " + Tree::one());
    tree.script("build/cpu-fp32/step", "exit 1");
    ends(tree.run_tests("emulator"), 1, "11 passed, 1 failed, 0 skipped");
    // Without matmuls in this precision the CPU writes no step; the emulator still runs its own.
    tree.script("build/cpu-fp32/step", "true");
    tree.script("build/emulator-fp32/step", "echo compared with ${2:-nothing}; " + Tree::one());
    Result result = tree.run_tests("emulator");
    ends(result, 0, "12 passed, 0 failed, 0 skipped");
    CHECK(contains(result.out, "\ncompared with nothing\n"));
}

TEST_CASE("run_tests.sh: the emulator is built while the suites of the CPU run, and a failed build ends the script") {
    EmulatorTree tree;
    ends(tree.run_tests("cpu emulator"), 0, "15 passed, 0 failed, 0 skipped");
    // The build waits for a suite: both run at the same time.
    tree.script("make", "case $* in *emulator_tests*) for i in $(seq 400); do [ -e fp32 ] && exit; sleep 0.05; done; exit 1;; esac");
    tree.script("build/cpu-fp32/tests", "touch fp32; " + Tree::one());
    tree.script("nproc", "echo 2");
    ends(tree.run_tests("cpu emulator"), 0, "15 passed, 0 failed, 0 skipped");
    // Suites that run when the build fails are counted; with four processors, all suites.
    tree.script("nproc", "echo 4");
    tree.script("make", "case $* in *emulator_tests*) echo no such header; exit 2;; esac");
    for (std::string suite : {"build/cpu-fp32/tests", "build/cpu-bf16/tests", "build/cpu-fp32/tests_without_pcre2"}) tree.script(suite, "sleep 0.3; " + Tree::one());
    Result result = tree.run_tests("cpu emulator");
    ends(result, 1, "3 passed, 1 failed, 0 skipped");
    CHECK(contains(result.out, "\nno such header\n"));
    CHECK(!contains(result.out, "--source-file=*golden.cpp"));
}

TEST_CASE("run_tests.sh: the count of planted faults is taken from make's output, also when some are not found") {
    Tree tree;
    tree.script("make", "case $* in *planted_faults*) echo ok: a fault; echo 3 passed, 0 failed, 0 skipped;; esac");
    std::filesystem::create_directories(tree.dir / "build/emulator-bf16");
    ends(tree.run_tests("faults"), 0, "3 passed, 0 failed, 0 skipped");
    tree.script("make", "case $* in *planted_faults*) echo 2 passed, 1 failed, 0 skipped; echo 'make: *** [Makefile:1: planted_faults] Error 1' >&2; exit 2;; esac");
    ends(tree.run_tests("faults"), 1, "2 passed, 1 failed, 0 skipped");
    tree.script("make", "echo 'make: *** no compiler' >&2; exit 2");
    ends(tree.run_tests("faults"), 1, "0 passed, 1 failed, 0 skipped");
}
