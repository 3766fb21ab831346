// The two studies (dev/growth.mk, dev/stacking.mk) at the scale smoke: every declared row is made, once; stopped runs resume to the same rows; and
// rows whose declaration has changed are made again.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <map>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <vector>
#include "llmc/io/error.h"
#include "test/expect.h"
#include "test/python.h"

namespace fs = std::filesystem;

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

static std::vector<std::string> split(const std::string& text, char at) {
    std::vector<std::string> parts;
    std::istringstream stream(text);
    for (std::string part; std::getline(stream, part, at);) parts.push_back(part);
    return parts;
}

using Row = std::map<std::string, std::string>;

/// The rows of a CSV without quotes, as the studies write it.
static std::vector<Row> rows_of(const std::string& text) {
    std::vector<Row> rows;
    std::vector<std::string> header;
    for (const std::string& line : split(text, '\n')) {
        const auto fields = split(line + ",", ',');
        if (header.empty()) {
            header = fields;
            continue;
        }
        REQUIRE_MESSAGE(fields.size() == header.size(), line);
        Row& row = rows.emplace_back();
        for (size_t i = 0; i < header.size(); i++) row[header[i]] = fields[i];
    }
    return rows;
}

namespace {   // other suites have a Place of their own

/// A folder with the programs and the files of the studies; rows go to dev/results there, all else to out/studies.
struct Place : TempDir {
    Place() {
        fs::create_directories(*this / "dev/results");
        for (std::string file : {"study.sh", "study.mk", "growth.mk", "stacking.mk", "growth.study", "stacking.study", "tables.py", "figures.py", "studies.py", "plot.py",
                                 "log_lines.py", "script.py",
                                 "results/growth.md", "results/stacking.md", "results/published_growth.csv", "results/published_stacking.csv"})
            fs::copy_file("dev/" + file, *this / ("dev/" + file));
        for (std::string name : {"train_gpt", "grow", "stack", "latents", "data"}) fs::create_symlink(fs::canonical(name), *this / name);
    }
    std::string result(const std::string& name) const { return *this / ("dev/results/" + name); }
    std::string csv(const std::string& name) const { return read_file(result(name + ".csv")); }

    /// Command lines. The test itself may have been started by make, whose variables must not be inherited.
    std::string make(const std::string& study, const std::string& arguments) const {
        return "cd " + path + " && env -u MAKEFLAGS -u MFLAGS -u MAKELEVEL make -s -j2 -f dev/" + study + ".mk SCALE=smoke SEEDS=1 " + arguments;
    }
    std::string script(const std::string& study, const std::string& arguments, const std::string& settings = "") const {
        return "cd " + path + " && STUDY=" + study + " SCALE=smoke SEEDS=1 " + settings + " dev/study.sh " + arguments;
    }
    /// The folder of a study's models.
    std::string models(const std::string& study) const { return fs::directory_iterator(*this / ("out/studies/" + study + "-smoke"))->path().string(); }

    void edit(const std::string& file, const std::string& from, const std::string& to) const {
        std::string text = read_file(*this / file);
        REQUIRE_MESSAGE(contains(text, from), from);
        write_file(*this / file, text.replace(text.find(from), from.size(), to));
    }
    /// The models, and when they were written.
    std::map<std::string, fs::file_time_type> made(const std::string& study) const {
        std::map<std::string, fs::file_time_type> found;
        for (auto& entry : fs::directory_iterator(models(study)))
            if (entry.path().extension() == ".bin") found[entry.path().stem().string()] = entry.last_write_time();
        return found;
    }
};

/// make, running in a process group of its own, with its output in printed.txt.
struct Making {
    pid_t process;

    Making(const Place& place, const std::string& command) : process(fork()) {
        if (process != 0) return;
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        execl("/bin/sh", "sh", "-c", (command + " >" + place.path + "/printed.txt 2>&1 </dev/null").c_str(), nullptr);
        _exit(127);
    }
    /// Sends a signal to all of its processes as soon as `file` exists.
    void stop(int signal, const std::string& file) const {
        while (!fs::exists(file) && waitpid(process, nullptr, WNOHANG) == 0) usleep(2000);
        REQUIRE_MESSAGE(fs::exists(file), file);
        kill(-process, signal);
        waitpid(process, nullptr, 0);
    }
};

}  // namespace

/// A row without the columns that differ between two runs of the same model.
static std::string essence(Row row) {
    row.erase("seconds");
    std::string text;
    for (auto& [column, value] : row) text += column + "=" + value + "\n";
    return text;
}
static std::vector<std::string> names(const std::vector<Row>& rows) {
    std::vector<std::string> found;
    for (const Row& row : rows) found.push_back(row.at("model") + "-s" + row.at("seed"));
    std::sort(found.begin(), found.end());
    return found;
}
static std::string fixed_point(const std::string& number, int digits) {
    char text[40];
    std::snprintf(text, sizeof text, "%.*f", digits, std::strtod(number.c_str(), nullptr));
    return text;
}

TEST_SUITE_BEGIN("study");

TEST_CASE("study: at the scale smoke both studies make every declared row, once, and tables and figures show them" * needs_python()) {
    Place place;
    for (std::string study : {"growth", "stacking"}) {
        CAPTURE(study);
        const Result made = run(place.make(study, has_matplotlib() ? "all" : "rows tables"));
        REQUIRE_MESSAGE(made.code == 0, made.err);

        std::vector<Row> wanted, latents;
        for (const Row& row : rows_of(done(place.script(study, "expected")))) (row.at("csv") == study ? wanted : latents).push_back(row);
        const std::vector<Row> rows = rows_of(place.csv(study));
        CHECK(names(rows) == names(wanted));
        std::map<std::string, int> of_experiment;
        for (const Row& row : rows) of_experiment[row.at("experiment")] += study == "growth" || row.at("val_loss_stack") != "";
        std::string counts;
        for (auto& [experiment, count] : of_experiment) counts += concat(experiment, " ", count, " ");
        CHECK(counts == (study == "growth" ? "early 10 factor 3 fixed 10 miniseries 4 noise 3 order 7 state 4 warmdown 7 " : "embeddings 16 long 8 loop 24 loop_norms 16 mix 24 noise 0 norms 32 "));
        // A row has the declared columns, and the measured ones.
        std::map<std::string, Row> declared;
        for (const Row& row : wanted) declared[row.at("model") + row.at("seed")] = row;
        for (const Row& row : rows) {
            for (auto& [column, value] : declared.at(row.at("model") + row.at("seed")))
                if (value != "" && column != "csv") CHECK_MESSAGE(row.at(column) == value, row.at("model"), " ", column);
            for (std::string column : {"val_bpb", "total_flops", "tokens", "commit", "processor", "precision", "threads", "command"}) CHECK_MESSAGE(row.at(column) != "", column);
        }

        // The tables have every number, and report nothing missing.
        const std::string& text = made.out;
        CHECK_MESSAGE(!contains(text, "Missing"), text);
        for (const Row& row : rows) {
            const bool stack = study == "stacking" && row.at("val_loss_stack") != "";
            const std::string cell = study == "growth" ? fixed_point(row.at("val_bpb"), 4) : stack ? fixed_point(row.at("val_loss_stack"), 3) : fixed_point(row.at("mean_val_loss"), 4);
            CHECK_MESSAGE(contains(text, " " + cell + " "), row.at("model"), " ", cell);
            if (study == "growth" ? row.at("baseline") != "" : !stack && row.at("seed") == "1") CHECK_MESSAGE(contains(text, "`" + row.at("model") + "`"), row.at("model"));
        }
        CHECK(contains(text, study == "growth" ? "### Compute acceleration" : "### By layer use"));

        // A second run makes nothing.
        const auto before = place.made(study);
        const std::string csv = place.csv(study);
        CHECK(done(place.make(study, "rows")) == concat(study, ": all ", wanted.size() + latents.size(), " rows of smoke are in dev/results/", study, ".csv\n"));
        CHECK(place.made(study) == before);
        CHECK(place.csv(study) == csv);
        CHECK(contains(done(place.script(study, "status")), concat("  ", wanted.size() + latents.size(), " of them are in dev/results/", study, ".csv, of ")));
        if (study == "stacking") {
            std::set<std::string> found, all;
            for (const Row& row : latents) all.insert(row.at("model"));
            for (const Row& row : rows_of(place.csv("stacking_latents"))) found.insert(row.at("model"));
            CHECK(found == all);
            CHECK(all.size() == 8);
        }
        if (!has_matplotlib()) continue;
        CHECK_MESSAGE(!contains(made.err, "not drawn"), made.err);
        for (std::string name : study == "growth" ? std::vector<std::string>{"miniseries", "starts", "warmdown", "rounds", "early", "fixed", "acceleration", "factor", "order", "state"}
                                                  : std::vector<std::string>{"stacks", "loop", "long", "embeddings", "mix", "latents"}) {
            CAPTURE(name);
            CHECK(fs::file_size(place.result(study + "_smoke_" + name + ".png")) > 5000);
            CHECK(contains(read_file(place.result(study + "_smoke_" + name + ".svg")), "</svg>"));
        }
        if (study == "growth") {
            const std::string drawn = read_file(place.result("growth_smoke_acceleration.svg"));
            for (const Row& row : rows)
                if (row.at("train_acceleration") + row.at("val_acceleration") != "") CHECK_MESSAGE(contains(drawn, ">" + row.at("model") + "<"), row.at("model"));
            const std::string order = read_file(place.result("growth_smoke_order.svg"));
            for (std::string name : {"stack", "interleave", "first", "last", "middle", "random", "zero"}) CHECK_MESSAGE(contains(order, ">" + name + "<"), name);
        }
    }
}

TEST_CASE("study: a changed declaration makes again what depends on it, and nothing else; LAUNCH precedes each run") {
    Place place;
    write_file(place / "launch", "#!/bin/sh\necho \"$*\" >>launched\nexec \"$@\"\n");
    fs::permissions(place / "launch", fs::perms::owner_all);
    const std::string make = place.make("growth", "rows LAUNCH=./launch ONLY='fixed-[12]*-w0'");
    auto launched = [&] {
        std::vector<std::string> targets;
        for (const std::string& line : split(read_file(place / "launched"), '\n')) {
            CHECK(line.rfind("dev/study.sh do ", 0) == 0);
            targets.push_back(line.substr(16));
        }
        std::sort(targets.begin(), targets.end());
        fs::remove(place / "launched");
        return targets;
    };
    using List = std::vector<std::string>;
    done(make);
    CHECK(launched() == List{"base-s1", "base-s1.row", "fixed-1.25-w0-s1", "fixed-1.25-w0-s1.row", "fixed-1.25-w0-start-s1", "fixed-2.25-w0-s1", "fixed-2.25-w0-s1.row",
                             "fixed-2.25-w0-start-s1", "shallow-2-of-4-r1.25-w0-s1", "shallow-2-of-4-r2.25-w0-s1"});

    // Another value of a sweep is another row.
    place.edit("dev/growth.study", "for x in 1.25 2.25", "for x in 1.5 2.25");
    done(make);
    CHECK(launched() == List{"fixed-1.5-w0-s1", "fixed-1.5-w0-s1.row", "fixed-1.5-w0-start-s1", "shallow-2-of-4-r1.5-w0-s1"});
    CHECK(names(rows_of(place.csv("growth"))) == List{"base-s1", "fixed-1.25-w0-s1", "fixed-1.5-w0-s1", "fixed-2.25-w0-s1"});

    // Another schedule in one deep round: its row is replaced, and its shallow round stays.
    const std::string old = place.csv("growth");
    place.edit("dev/growth.study", "do grown \"fixed-$x-w$w\" base", "do [ $x = 2.25 ] && warm=2 || warm=1; grown \"fixed-$x-w$w\" base warmdown=$warm");
    done(make);
    CHECK(launched() == List{"fixed-2.25-w0-s1", "fixed-2.25-w0-s1.row"});
    const std::vector<Row> rows = rows_of(place.csv("growth"));
    CHECK(names(rows) == List{"base-s1", "fixed-1.25-w0-s1", "fixed-1.5-w0-s1", "fixed-2.25-w0-s1"});
    for (const Row& row : rows) CHECK(row.at("warmdown") == (row.at("model") == "fixed-2.25-w0" ? "2" : row.at("model") == "base" ? "0.5" : "1"));
    CHECK(split(place.csv("growth"), '\n').size() == split(old, '\n').size());
    for (const Row& row : rows_of(place.csv("growth_curves"))) CHECK(row.at("model") != "");

    // A missing row is measured again, from the existing models; so is a row whose columns have changed.
    write_file(place.result("growth.csv"), std::regex_replace(place.csv("growth"), std::regex("smoke,fixed,fixed-1.5[^\n]*\n"), ""));
    place.edit("dev/growth.study", "row \"$1\" depth=", "row \"$1\" order=mine depth=");
    done(make);
    CHECK(launched() == List{"base-s1.row", "fixed-1.5-w0-s1.row"});
    CHECK(names(rows_of(place.csv("growth"))) == List{"base-s1", "fixed-1.25-w0-s1", "fixed-1.5-w0-s1", "fixed-2.25-w0-s1"});

    // If its models no longer exist the row stays: a changed column does not cause training.
    fs::remove(place.models("growth") + "/base-s1.bin");
    place.edit("dev/growth.study", "order=mine", "order=yours");
    done(make);
    CHECK(!fs::exists(place / "launched"));
}

TEST_CASE("study: killed and stopped, a run resumes to the same row") {
    Place place, whole;
    for (const Place* each : {&place, &whole}) each->edit("dev/growth.study", "unit=0.002", "unit=0.012");
    done(whole.make("growth", "rows ONLY=base"));
    const Row wanted = rows_of(whole.csv("growth")).at(0);
    std::string folder;
    for (int signal : {SIGKILL, SIGTERM}) {
        CAPTURE(signal);
        done(place.script("growth", "graph", "ONLY=base"));
        folder = place.models("growth") + "/base-s1";
        for (auto& entry : fs::directory_iterator(place.models("growth")))
            if (entry.path().filename().string().rfind("base-s1", 0) == 0) fs::remove_all(entry.path());
        fs::remove_all(place / "dev/results/growth.csv");
        const int64_t first = (std::stoll(std::regex_replace(read_file(place.models("growth") + "/base.node"), std::regex("[^]*steps_of=([0-9]+)[^]*"), "$1")) + 2) / 3;
        char step[40];
        std::snprintf(step, sizeof step, "/step_%07d.bin", static_cast<int>(first));
        Making(place, place.make("growth", "rows ONLY=base")).stop(signal, folder + step);
        CHECK(!fs::exists(place.result("growth.csv")));
        const std::string status = done(place.script("growth", "status", "ONLY=base"));
        CHECK_MESSAGE(contains(status, "stopped; they go on from:\n  base-s1: step_"), status);
        done(place.make("growth", "rows ONLY=base"));
        const std::string log = read_file(folder + ".txt");
        CHECK_MESSAGE(log.find("\nstep 1/") == log.rfind("\nstep 1/"), log);   // it did not start over
        CHECK(essence(rows_of(place.csv("growth")).at(0)) == essence(wanted));
    }
    // Killed after a row was written and before it was marked as done: the row counts as present.
    fs::remove(folder + ".done");
    CHECK(contains(done(place.make("growth", "rows ONLY=base")), "growth: all 1 rows of smoke"));
    CHECK(rows_of(place.csv("growth")).size() == 1);

    // A target is locked: a second process is refused, and so is a machine of another kind.
    const std::string models = "STUDY_DIR=" + place.models("growth");
    refused("flock " + folder + ".lock sh -c '" + place.script("growth", "do base-s1", models) + "'", "growth: base-s1 is being made by another process; wait for it, or stop it");
    write_file(place.models("growth") + "/kind", "another processor bf16 1\n");
    refused(place.script("growth", "do base-s1", models), "growth: base-s1 belongs to runs on 'another processor bf16 1', and this is '");
    refused(place.script("growth", "do nothing-s1", models), "growth: 'nothing-s1' is no target of this study");
}

TEST_CASE("study: mixed models resume after a kill") {
    Place place, whole;
    done(whole.make("stacking", "rows ONLY=mix-3"));
    done(place.script("stacking", "graph", "ONLY=mix-3"));
    const std::string folder = place.models("stacking") + "/mix-2-s1/";
    Making(place, place.make("stacking", "rows ONLY=mix-3")).stop(SIGKILL, folder + "mixed_10.bin");
    CHECK(!fs::exists(place.models("stacking") + "/mix-3-s1.bin"));
    done(place.make("stacking", "rows ONLY=mix-3"));
    CHECK(essence(rows_of(place.csv("stacking")).at(0)) == essence(rows_of(whole.csv("stacking")).at(0)));
}

TEST_CASE("study: KEEP=rows keeps rows and logs, and makes nothing again") {
    Place place;
    const std::string make = place.make("growth", "rows KEEP=rows ONLY=mini-d2");
    const Result first = run(make);
    REQUIRE_MESSAGE(first.code == 0, first.err);
    CHECK(place.made("growth").empty());
    CHECK(names(rows_of(place.csv("growth"))) == std::vector<std::string>{"base-d2-s1", "mini-d2-s1"});
    for (std::string model : {"base-d2", "shallow-1-of-2-r10.5-w0.5", "mini-d2"}) CHECK_MESSAGE(fs::exists(place.models("growth") + "/" + model + "-s1/log.jsonl"), model);
    CHECK(done(make) == "growth: all 2 rows of smoke are in dev/results/growth.csv\n");
    CHECK(place.made("growth").empty());
}

TEST_CASE("study: wrong settings and declarations give one line of error") {
    Place place;
    for (auto [settings, words] : {std::pair{"SCALE=tiny", "growth: SCALE is 'tiny', but must be smoke, nano, small or paper"},
                                   {"SEEDS=0", "growth: SEEDS is '0', but must be a number"},
                                   {"SEEDS=3-2", "growth: SEEDS is '3-2', but its first is above its last"},
                                   {"SEEDS=all", "growth: SEEDS is 'all'"},
                                   {"ONLY=fixd", "growth: ONLY is 'fixd', which is no row and none of the experiments early factor fixed"},
                                   {"KEEP=none", "growth: KEEP is 'none', but must be models or rows"},
                                   {"WORK='a b'", "growth: WORK is 'a b', but must be a path of letters"},
                                   {"WORK=/proc/none", "growth: cannot write into the folder /proc/none"}}) {
        CAPTURE(settings);
        refused(place.script("growth", "graph", settings), words);
    }
    const Result made = run(place.make("growth", "rows KEEP=none"));
    CHECK(made.code == 2);
    CHECK_MESSAGE(made.err.rfind("growth: KEEP is 'none', but must be models or rows\ndev/study.mk:", 0) == 0, made.err);
    CHECK_MESSAGE(contains(made.err, "growth: stopped; the line above says why"), made.err);
    CHECK(!fs::exists(place / "out/studies/data"));
    refused(place.script("growth", "grph"), "growth: dev/study.sh takes graph, do TARGET, expected");
    refused(place.script("growth", ""), "not ''");

    const std::string study = read_file(place / "dev/growth.study");
    for (auto [from, to, words] : {std::tuple{"row \"$1\" depth=", "row \"$1\" depht=", "dev/growth.study: the row base has 'depht', which is none of its columns"},
                                   {"row \"$1\" depth=", "row \"$1\" order=a,b depth=", "the row base has order=a,b, but a value holds no comma"},
                                   {"grow \"$name-start\" \"$source\"", "grow \"$name-start\" \"shalow\"", "dev/growth.study: warmdown-0.5-start names the model shalow, which is not declared before it"},
                                   {"horizon=in-all:0.98*base", "horizon=in-all:0.98*bse", "dev/growth.study: warmdown-0.5 names the model bse, which is not declared"},
                                   {"horizon=in-all:0.98*base", "horizon=in-all:0.001*base", "dev/growth.study: warmdown-0.5 is to have spent "},
                                   {"horizon=in-all:0.98*base", "horizon=all", "the horizon of warmdown-0.5 is 'all', but must be ratio:R"},
                                   {"grown factor-4 base", "grown factor-4 bse horizon=ratio:1", "dev/growth.study: the row factor-4 is of the model bse, which is not declared"},
                                   {"$(ratio_of \"$1\")", "$(ratio_of \"$1-none\")", "the row base asks for the ratio of base-none, which is not declared before it"},
                                   {"train \"$1\" -", "train \"$1 x\" -", "a model is called 'base x', but a name may have only letters"},
                                   {"--no-scaling --matrix-lr", "--no-scaling --matrx-lr", "growth: there is no plan for "},
                                   {"base \"base-d$x\" \"$x\"", "base base \"$x\"", "dev/growth.study declares base twice, with different settings"}}) {
        CAPTURE(to);
        write_file(place / "dev/growth.study", study);
        place.edit("dev/growth.study", from, to);
        refused(place.script("growth", "graph"), words);
    }
    write_file(place / "dev/growth.study", study);

    // A truncated row must not count as present.
    done(place.script("growth", "graph"));
    const std::string header = split(done(place.script("growth", "expected")), '\n').at(0).substr(4) + "\n";
    for (auto [text, words] : {std::pair{header + "smoke,noise,base,,1", "growth.csv does not end with a whole line; remove the last one"},
                               {header + "smoke,noise,base,,1\n", "growth.csv: line 2 has 5 fields, and there are 32 columns; remove the line"}}) {
        write_file(place.result("growth.csv"), text);
        refused(place.script("growth", "graph"), words);
        refused(place.script("growth", "status"), words);
    }
}

TEST_CASE("study: plans at all scales") {
    Place place;
    for (std::string study : {"growth", "stacking"})
        for (std::string scale : {"smoke", "nano", "small", "paper"}) {
            CAPTURE(scale);
            const std::string text = done(place.script(study, "plan", "SCALE=" + scale));
            CHECK_MESSAGE(std::regex_search(text, std::regex(study + ", " + scale + ": [0-9]+ rows of [0-9]+ runs, seeds 1 to 1; on ")), text);
            CHECK_MESSAGE(std::regex_search(text, std::regex("\nin all [0-9.]+e\\+[0-9]+ FLOPs(: [0-9.]+ hours of |; hours are not known)")), text);
            if (study != "growth" || scale != "paper") continue;
            // The published study's own numbers.
            CHECK_MESSAGE(std::regex_search(text, std::regex("\nbase +8 +d12-w768 +2205 +[0-9.e+]+ +9\\.27e\\+17 ")), text);
            CHECK_MESSAGE(std::regex_search(text, std::regex("\nshallow-6-of-12-r3.25-w0 +1 +d6-w768 +419 +[0-9.e+]+ +1\\.06e\\+17 ")), text);
        }
    // Without data no speed is measured, and a plan downloads none; the data of smoke is made locally.
    CHECK(contains(done(place.make("growth", "plan SCALE=nano ONLY=base")), "hours are not known: steps are measured once the data are there (make -f dev/growth.mk SCALE=nano data)\n"));
    const std::string plan = done(place.make("growth", "plan ONLY=base"));
    CHECK_MESSAGE(std::regex_search(plan, std::regex("\nbase +1 +d4-w64 +[0-9]+ +[0-9.e+]+ +[0-9.e+]+ +[0-9]+ +[0-9.]+\n")), plan);
}

TEST_CASE("study: tables and status show the rows that exist, and train nothing" * needs_python()) {
    Place place;
    fs::remove(place / "train_gpt");
    for (std::string study : {"growth", "stacking"}) {
        CHECK(done(place.make(study, "tables")) == "No row of smoke yet; make -f dev/" + study + ".mk makes them.\n");
        CHECK(contains(done(place.make(study, "status")), "is not known: ./train_gpt is not built; make builds it\nleft:\n"));
        refused(place.script(study, "graph"), study + ": ./train_gpt is not built; make builds it");
    }
    std::string line;
    for (const std::string& name : split(split(done(place.script("growth", "expected", "SCALE=nano")), '\n').at(0).substr(4), ','))
        line += (line.empty() ? "" : ",") + (name == "scale" ? "nano" : name == "experiment" ? "noise" : name == "model" ? "base" : name == "processor" ? "cpu" : name == "precision" ? "fp32" : name == "seed" || name == "threads" ? "1"
                                             : name.rfind("val_", 0) == 0 && name != "val_acceleration" ? "2.5" : std::string());
    write_file(place.result("growth.csv"), split(done(place.script("growth", "expected")), '\n').at(0).substr(4) + "\n" + line + "\n");
    const std::string status = done(place.make("growth", "status SCALE=nano"));
    CHECK_MESSAGE(contains(status, "  1 of them are in dev/results/growth.csv, of cpu fp32 1 thread(s)\n"), status);
    CHECK(!contains(status, "  base-s1\n"));
    CHECK(contains(status, "  base-s2\n"));
    // The page has marks for nano, and none for smoke.
    CHECK(done(place.make("growth", "tables SCALE=nano")) == "dev/results/growth.md\n");
    CHECK(contains(read_file(place.result("growth.md")), "| `base`, val_bpb (bpb) | 2.5000 | 2.5000 | 1 |"));
    CHECK(contains(read_file(place.result("growth.md")), "Missing: 7 of 8 seeds of `base`."));
    if (has_matplotlib()) CHECK(contains(run(place.make("growth", "figures SCALE=nano")).err, "no row for it yet; not drawn"));
    CHECK(!fs::exists(place / "out"));

    // A sweep that is added to the .study file appears in the page.
    place.edit("dev/growth.study", "    experiment miniseries", "    experiment mine\n    for x in 1 2; do grown \"mine-$x\" base warmdown=$x; done\n\n    experiment miniseries");
    done(place.make("growth", "tables SCALE=nano"));
    CHECK(contains(read_file(place.result("growth.md")), "### Mine\n\nMissing: all of it; no row yet."));
}

TEST_SUITE_END();
