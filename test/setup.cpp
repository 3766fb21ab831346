// dev/setup.sh on other machines: scripts take the place of the compiler, the package managers and the processor. And when the Makefile
// calls it.
#include <doctest/doctest.h>
#include <algorithm>
#include <array>
#include <sstream>
#include <vector>
#include "test/program.h"

namespace fs = std::filesystem;

/// A machine with every part, and apt-get. Its PATH is a folder with nothing but what the test puts there.
struct Machine {
    TempDir dir;

    Machine() {
        fs::create_directories(dir / "bin");
        fs::create_directories(dir / "python");
        fs::create_directories(dir / "headers/CLI");
        write_file(dir / "headers/CLI/CLI.hpp", "");
        write_file(dir / "calls", "");
        for (std::string tool : {"sh", "awk", "cat", "env", "grep", "head", "id", "mktemp", "python3", "rm", "sed", "tail", "uname"})
            if (Result where = run("command -v " + tool); where.code == 0) fs::create_symlink(where.out.substr(0, where.out.find('\n')), dir / ("bin/" + tool));
        // A compiler with every header except those in $LACKS; it also looks in the folder after -isystem, and links only with the library given.
        stand_in("g++", R"(case "$*" in *--version*) echo "g++ (Stand-in) 12.2.0"; exit ;; esac
            case "$*" in *-std=c++20*) ;; *) exit 1 ;; esac
            program=$(cat)
            for header in $LACKS; do
                case "$* $program" in *-isystem\ *"<$header>"*) [ -e "$3/$header" ] || exit 1 ;; *"<$header>"*) exit 1 ;; esac
            done
            case "$* $program" in
                *-ldnnl*dnnl_version*|*-lpcre2-8*pcre2_config_8*|*-lmpi*MPI_Init*|*-fopenmp*omp_get_max_threads*) ;;
                *-E*'#include'*|*-fsyntax-only*'#include'*) ;;
                *) exit 1 ;; esac)");
        for (std::string tool : {"make", "curl"}) stand_in(tool, "exit 0");
        stand_in("mpicc", "[ $1 != --showme:link ] || echo -lmpi");
        stand_in("apt-get", "echo apt-get $* >>\"$CALLS\"");
        stand_in("id", "echo 0");
        stand_in("uname", "echo x86_64");
        stand_in("grep", "exit 0");   // the script uses it only to look for avx2
        write_file(dir / "python/matplotlib.py", "");
    }
    /// Adds the command `name`, a shell script with this body.
    void stand_in(const std::string& name, const std::string& body) {
        lose(name);
        write_file(dir / ("bin/" + name), "#!" + dir / "bin/sh\n" + body + "\n");
        fs::permissions(dir / ("bin/" + name), fs::perms::owner_all);
    }
    void lose(const std::string& name) { fs::remove(dir / ("bin/" + name)); }
    Result setup(const std::string& arguments = "", const std::string& environment = "") const {
        return run("unset CXX THIRD_PARTY TARGET LACKS; export CALLS=" + dir / "calls PYTHONDONTWRITEBYTECODE=1 PYTHONPATH=" + dir / "python PATH=" + dir / "bin " + environment +
                   "; exec sh dev/setup.sh " + arguments);
    }
    std::string calls() const { return read_file(dir / "calls"); }
};

static const std::string ALL_HEADERS = "CLI/CLI.hpp nlohmann/json.hpp xxhash.h oneapi/dnnl/dnnl.h pcre2.h mpi.h doctest/doctest.h";

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

/// Exit code 2, nothing on stdout, and one line of error from setup with these words.
static void check_refused(const Result& result, const std::string& words) {
    CAPTURE(result.err);
    CHECK(result.code == 2);
    CHECK(result.out == "");
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    CHECK(result.err.starts_with("setup: "));
    CHECK(contains(result.err, words));
}

static void check_silent(const Result& result) {
    CAPTURE(result.err);
    CHECK(result.code == 0);
    CHECK(result.out + result.err == "");
}

TEST_CASE("setup.sh: where nothing is missing, it prints nothing and installs nothing") {
    Machine machine;
    for (std::string environment : {"", "CXX='env g++'", "TARGET=cuda", "TARGET=cpu"})
        for (std::string arguments : {"", "--check"}) {
            CAPTURE(environment);
            check_silent(machine.setup(arguments, environment));
        }
    CHECK(machine.calls() == "");
}

TEST_CASE("setup.sh: on this machine, which built the tests, nothing is missing; a part that does not compile or link is") {
    check_silent(run("unset THIRD_PARTY; TARGET=cpu dev/setup.sh --check"));
    TempDir dir;
    fs::create_directories(dir / "CLI");
    fs::create_directories(dir / "oneapi/dnnl");
    const std::string check = "THIRD_PARTY=" + dir.path + " TARGET=cpu dev/setup.sh --check";
    check_silent(run(check));
    write_file(dir / "CLI/CLI.hpp", "#include \"no/such/header\"\n");
    check_refused(run(check), "setup: not here: CLI11; make deps installs");
    fs::remove_all(dir / "CLI");
    write_file(dir / "oneapi/dnnl/dnnl.h", "extern \"C\" int dnnl_of_no_library();\n#define dnnl_version dnnl_of_no_library\n");
    check_refused(run(check), "setup: not here: oneDNN; make deps installs");
    check_silent(run("THIRD_PARTY=" + dir.path + " TARGET=cuda dev/setup.sh --check"));
}

TEST_CASE("setup.sh --check prints what is missing for a build and how to install it, and installs nothing") {
    Machine machine;
    const std::vector<std::array<std::string, 3>> parts = {{"CLI/CLI.hpp", "CLI11", "libcli11-dev"}, {"nlohmann/json.hpp", "nlohmann-json", "nlohmann-json3-dev"},
                                                          {"xxhash.h", "xxHash", "libxxhash-dev"}, {"oneapi/dnnl/dnnl.h", "oneDNN", "libdnnl-dev"}};
    for (auto& [header, part, package] : parts) {
        Result result = machine.setup("--check", "LACKS=" + header);
        CHECK(result.err == "setup: not here: " + part + "; make deps installs what building and testing need, or: apt-get install " + package + "\n");
        CHECK(result.code == 2);
    }
    // PCRE2, MPI, tests and curves are not needed to build.
    for (std::string header : {"pcre2.h", "mpi.h", "doctest/doctest.h"}) check_silent(machine.setup("--check", "LACKS=" + header));
    write_file(machine.dir / "python/matplotlib.py", "raise ImportError('none')");
    machine.lose("curl");
    check_silent(machine.setup("--check"));
    check_silent(machine.setup("--check", "TARGET=cuda LACKS=oneapi/dnnl/dnnl.h"));
    // Test suites need doctest.
    check_silent(machine.setup("--check doctest", "LACKS=CLI/CLI.hpp"));
    check_refused(machine.setup("--check doctest", "LACKS=doctest/doctest.h"),
                  "setup: not here: doctest; make deps installs what building and testing need, or: apt-get install doctest-dev\n");
    check_refused(machine.setup("--check", "LACKS='" + ALL_HEADERS + "'"), "not here: CLI11, nlohmann-json, xxHash, oneDNN; make deps");
    CHECK(machine.calls() == "");
}

TEST_CASE("setup.sh prints what it installs, and calls apt-get only for that") {
    Machine machine;
    SUBCASE("one part") {
        Result result = machine.setup("", "LACKS=pcre2.h");
        CHECK(result.out == "setup: installing libpcre2-dev\n");
        CHECK(result.err == "");
        CHECK(result.code == 0);
        CHECK(machine.calls() == "apt-get update -qq\napt-get install -y -qq --no-install-recommends libpcre2-dev\n");
    }
    SUBCASE("MPI, which has its own compiler wrapper") {
        machine.lose("mpicc");
        CHECK(machine.setup().out == "setup: installing libopenmpi-dev\n");
    }
    SUBCASE("everything but the compiler") {
        write_file(machine.dir / "python/matplotlib.py", "raise ImportError('none')");
        machine.lose("curl");
        machine.lose("make");
        const std::string names = " make libcli11-dev nlohmann-json3-dev libxxhash-dev libdnnl-dev libpcre2-dev libopenmpi-dev doctest-dev python3-matplotlib curl ca-certificates\n";
        CHECK(machine.setup("", "LACKS='" + ALL_HEADERS + "'").out == "setup: installing" + names);
        CHECK(contains(machine.calls(), "--no-install-recommends" + names));
    }
    SUBCASE("a machine with nothing") {
        machine.lose("g++");
        CHECK(contains(machine.setup().out, "setup: installing g++ libcli11-dev nlohmann-json3-dev"));
        CHECK(contains(machine.calls(), "install -y -qq --no-install-recommends g++ libcli11-dev"));
    }
    SUBCASE("not root, with sudo") {
        machine.stand_in("id", "echo 1000");
        machine.stand_in("sudo", "echo sudo >>\"$CALLS\"; exec \"$@\"");
        CHECK(machine.setup("", "LACKS=pcre2.h").code == 0);
        CHECK(machine.calls() == "sudo\napt-get update -qq\nsudo\napt-get install -y -qq --no-install-recommends libpcre2-dev\n");
    }
    SUBCASE("not root, without sudo") {
        machine.stand_in("id", "echo 1000");
        check_refused(machine.setup("", "LACKS=pcre2.h"), "not here: PCRE2; not root, and no sudo here; as root: apt-get install libpcre2-dev\n");
        CHECK(machine.calls() == "");
    }
    SUBCASE("apt-get fails") {
        machine.stand_in("apt-get", "echo 'E: Unable to locate package'; exit 100");
        Result result = machine.setup("", "LACKS=pcre2.h");
        CHECK(result.code == 2);
        CHECK(result.err == "E: Unable to locate package\nsetup: apt-get could not install libpcre2-dev (the end of its output is above)\n");
    }
}

TEST_CASE("setup.sh without apt-get: prints the command of the package manager that is there, or of all four; exit code 2") {
    Machine machine;
    machine.lose("apt-get");
    machine.lose("curl");
    check_silent(machine.setup("--check"));
    write_file(machine.dir / "python/matplotlib.py", "raise ImportError('none')");
    const std::string lacks = "LACKS='" + ALL_HEADERS + "'", parts = "setup: not here: CLI11, nlohmann-json, xxHash, oneDNN, PCRE2, MPI, doctest, matplotlib, curl; install it, as root: ";
    const std::string dnf = "dnf install cli11-devel json-devel xxhash-devel onednn-devel pcre2-devel openmpi-devel doctest-devel python3-matplotlib curl";
    const std::string pacman = "pacman -S cli11 nlohmann-json xxhash onednn pcre2 openmpi doctest python-matplotlib curl";
    const std::string zypper = "zypper install cli11-devel nlohmann_json-devel xxhash-devel onednn-devel pcre2-devel openmpi-devel doctest-devel python3-matplotlib curl";
    const std::string apt = "apt-get install libcli11-dev nlohmann-json3-dev libxxhash-dev libdnnl-dev libpcre2-dev libopenmpi-dev doctest-dev python3-matplotlib curl ca-certificates";
    check_refused(machine.setup("", lacks), parts + apt + ", or " + dnf + ", or " + pacman + ", or " + zypper + "\n");
    for (const std::string& command : {dnf, pacman, zypper}) {
        const std::string manager = command.substr(0, command.find(' '));
        machine.stand_in(manager, "echo " + manager + " $* >>\"$CALLS\"");
        check_refused(machine.setup("", lacks), parts + command + "\n");
        check_refused(machine.setup("--check", "LACKS=xxhash.h"), "or: " + manager + (manager == "pacman" ? " -S xxhash\n" : " install xxhash-devel\n"));
        machine.lose(manager);
    }
    CHECK(machine.calls() == "");
    machine.lose("g++");
    machine.stand_in("dnf", "exit 0");
    check_refused(machine.setup(), "no compiler here (g++), and without one the other parts cannot be checked; install it, as root: dnf install gcc-c++ cli11-devel");
}

TEST_CASE("setup.sh with THIRD_PARTY: headers there count as present, and nothing is installed") {
    Machine machine;
    const std::string there = "THIRD_PARTY=" + machine.dir / "headers ";
    check_silent(machine.setup("--check", there + "LACKS=CLI/CLI.hpp"));
    check_silent(machine.setup("", there + "LACKS=CLI/CLI.hpp"));
    check_refused(machine.setup("--check", there + "LACKS=xxhash.h"), "not here: xxHash");
    check_refused(machine.setup("", there + "LACKS=xxhash.h"), "not here: xxHash, neither in " + machine.dir / "headers nor elsewhere; put it there, or: apt-get install libxxhash-dev");
    Result tests = machine.setup("", there + "LACKS=doctest/doctest.h");
    CHECK(tests.code == 0);
    CHECK(tests.err == "setup: not here: doctest; nothing is installed, since THIRD_PARTY is given\n");
    CHECK(machine.calls() == "");
}

TEST_CASE("setup.sh refuses an unsuitable machine or compiler, before anything else, in one line") {
    Machine machine;
    const std::string lacks = "LACKS='" + ALL_HEADERS + "'";
    auto refused = [&](const std::string& environment, const std::string& words) {
        for (std::string arguments : {"", "--check"}) check_refused(machine.setup(arguments, environment), words);
    };
    SUBCASE("not x86-64") {
        machine.stand_in("uname", "echo aarch64");
        refused(lacks, "this processor is aarch64; the CPU engine needs x86-64 with AVX2");
        check_silent(machine.setup("--check", "TARGET=cuda"));
    }
    SUBCASE("without AVX2") {
        machine.stand_in("grep", "case \"$*\" in *avx2*/proc/cpuinfo) exit 1 ;; esac");
        refused(lacks, "this processor has no AVX2, which the CPU engine needs");
        check_silent(machine.setup("--check", "TARGET=cuda"));
    }
    SUBCASE("no compiler of that name") { refused("CXX=clang++-99", "no compiler clang++-99 here; install it, or name another one: make CXX=g++"); }
    SUBCASE("a compiler that is too old") {
        for (std::string target : {"cpu", "cuda"})
            refused("LACKS=charconv TARGET=" + target, "the compiler g++ (g++ (Stand-in) 12.2.0) is too old for the C++20 of these sources: g++ 11 is the first");
    }
    SUBCASE("a compiler without OpenMP") { refused("LACKS=omp.h", "has no OpenMP"); }
    SUBCASE("no compiler at all") {
        machine.lose("g++");
        check_refused(machine.setup("--check"), "no compiler here (g++), and without one the other parts cannot be checked; make deps installs what building and testing need, or: apt-get install g++");
    }
    CHECK(machine.calls() == "");
}

TEST_CASE("make checks for missing parts before it compiles, once, and installs only in the goals that say so") {
    TempDir dir;   // the tree, with a setup.sh that writes down its arguments and fails
    fs::create_directories(dir / "dev");
    for (const fs::directory_entry& entry : fs::directory_iterator("."))
        if (std::string name = entry.path().filename(); name != "build" && name != "dev" && name != "out" && name[0] != '.')
            fs::create_symlink(fs::absolute(entry.path()), dir / name);
    for (const fs::directory_entry& entry : fs::directory_iterator("dev"))
        if (entry.path().filename() != "setup.sh") fs::create_symlink(fs::absolute(entry.path()), dir / ("dev/" + entry.path().filename().string()));
    for (std::string program : {"train_gpt", "grow", "stack", "convert"}) fs::remove(dir / program);
    write_file(dir / "dev/setup.sh", "#!/bin/sh\necho \"called $*\" >>calls\necho 'setup: not here' >&2\nexit 2\n");
    fs::permissions(dir / "dev/setup.sh", fs::perms::owner_all);
    auto make = [&](const std::string& arguments) {
        fs::remove(dir / "calls");
        return run("unset MAKEFLAGS MAKELEVEL MFLAGS CHECKED; cd " + dir.path + " && PCRE2=yes MPI=no make V=1 DEVICE=cpu " + arguments);
    };
    for (std::string goal : {"", "all", "parts", "build/cpu-fp32/tests PRECISION=fp32", "build/emulator-fp32/tests PRECISION=fp32"}) {
        CAPTURE(goal);
        Result result = make("-j4 " + goal);
        CHECK(result.code == 2);
        CHECK(contains(result.err, "setup: not here\n"));
        CHECK(read_file(dir / "calls") == "called --check\n");
        CHECK(!contains(result.out, "-std=c++20"));
        CHECK(run("find " + dir / "build -name '*.o' 2>/dev/null").out == "");
    }
    for (std::string goal : {"deps", "run", "test", "bench"}) {
        CAPTURE(goal);
        CHECK(make(goal).code == 2);
        CHECK(read_file(dir / "calls") == "called \n");
    }
    // Suites need doctest, too.
    write_file(dir / "dev/setup.sh", "#!/bin/sh\necho \"called $*\" >>calls\n[ $# != 2 ] || { echo 'setup: not here' >&2; exit 2; }\n");
    for (std::string object : {"build/plain/test/main.o", "build/host-fp32/test/gpt.o", "build/emulator-fp32/dev/kernels/test.o"}) {
        CAPTURE(object);
        CHECK(make("PRECISION=fp32 " + object).code == 2);
        CHECK(read_file(dir / "calls") == "called --check\ncalled --check doctest\n");
    }
    CHECK(run("find " + dir / "build -name '*.o'").out == "");
    std::istringstream plan(make("-n run").out);   // with its sub-makes
    int looks = 0;
    for (std::string line; std::getline(plan, line);) looks += contains(line, "dev/setup.sh");
    CHECK(looks == 1);
    CHECK(contains(make("help").out, "make deps"));
}
