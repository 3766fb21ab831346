// make run SMOKE=1 (dev/run.sh), stopped and killed at any point; and the statistics of its report.
#include <doctest/doctest.h>
#include <signal.h>
#include <sys/prctl.h>
#include <unistd.h>
#include <algorithm>
#include <array>
#include <filesystem>
#include <random>
#include <regex>
#include <vector>
#include "llmc/text/tokenizer.h"
#include "test/program.h"

namespace fs = std::filesystem;

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

/// A folder with dev/run.sh and the programs; it writes to out/ there.
struct Place : TempDir {
    Place() {
        for (std::string name : {"train_gpt", "grow", "stack", "data", "dev"}) fs::create_symlink(fs::canonical(name), *this / name);
        fs::create_symlink(fs::canonical("train_gpt").parent_path() / "report", *this / "report");
    }
    std::string smoke(const std::string& name) const { return *this / ("out/smoke/" + name); }
    Result run(const std::string& settings = "") const { return ::run("cd " + path + " && SMOKE=1 " + settings + " dev/run.sh"); }
    /// No program that the script started still runs.
    bool idle() const { return ::run("flock -n " + *this / "out/smoke.lock true").code == 0; }
    /// The printed report, without the seconds that runs took.
    std::string results() const { return std::regex_replace(read_file(smoke("results.txt")), std::regex(" +[0-9.]+  (nanochat|speedrun)"), " $1"); }
};

/// dev/run.sh, running in a process group of its own, with its output in printed.txt.
struct Script {
    const Place& place;
    pid_t process;

    explicit Script(const Place& where) : place(where), process(fork()) {
        if (process != 0) return;
        setpgid(0, 0);
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        const std::string command = "cd " + place.path + " && SMOKE=1 exec dev/run.sh >printed.txt 2>&1 </dev/null";
        execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
        _exit(127);
    }
    int ended() {
        int status = 0;
        waitpid(process, &status, 0);
        return WIFSIGNALED(status) ? 128 + WTERMSIG(status) : WEXITSTATUS(status);
    }
    std::string printed() const { return read_file(place / "printed.txt"); }
};

static void pause_ms(int64_t ms) { usleep(static_cast<useconds_t>(1000 * ms)); }

TEST_SUITE_BEGIN("run" * doctest::skip(!can_split()));

TEST_CASE("make run: killed and stopped at any point, it resumes, to the results of an uninterrupted run") {
    Place whole, place;
    Result result = whole.run();
    REQUIRE_MESSAGE(result.code == 0, result.err, result.out);
    for (std::string line : {"growing 2 layers to 8", "stacking one and two", "== a sample of the best"}) CHECK_MESSAGE(contains(result.out, line), result.out);
    CHECK(fs::exists(whole.smoke("curves.png")));

    // The delays are random, with a fixed seed; the point that they reach depends on the machine's speed.
    std::mt19937_64 generator(8);
    for (int i = 0; i < 6; i++) {
        CAPTURE(i);
        Script script(place);
        pause_ms(static_cast<int64_t>(300 + generator() % 2500));
        // The signal goes to all processes, or to the script alone: then the programs that it started must end by themselves.
        const int signal = std::array{SIGKILL, SIGTERM, SIGINT, SIGKILL}[i % 4];
        const bool all = i % 4 == 0 || signal == SIGINT;
        kill(all ? -script.process : script.process, signal);
        const int code = script.ended();
        if (code == 0) break;   // it had finished
        CHECK_MESSAGE(code == 128 + signal, script.printed());
        if (signal == SIGKILL || script.printed().empty()) continue;   // empty: it had not started
        CHECK_MESSAGE(contains(script.printed(), "make run SMOKE=1 goes on from the last checkpoints"), script.printed());
        CHECK(place.idle());
    }
    result = place.run();
    REQUIRE_MESSAGE(result.code == 0, result.err, result.out);
    CHECK(place.results() == whole.results());

    // A finished run prints its results again, and trains nothing.
    const std::string log = read_file(place.smoke("grown-2/log.jsonl"));
    const auto trained = fs::last_write_time(place.smoke("grown-2/log.jsonl"));
    Result again = place.run("MINUTES=3");
    CHECK(again.code == 0);
    CHECK(contains(again.out, read_file(whole.smoke("results.txt")).substr(0, 60)));
    CHECK(place.results() == whole.results());
    CHECK(fs::last_write_time(place.smoke("grown-2/log.jsonl")) == trained);

    // A half-written line of a killed run is ignored: at the end of the log, and before the lines of the resumed run.
    const std::string start = log.substr(0, log.find('\n') + 1);
    for (std::string more : {std::string("{\"event\":\"st"), "{\"event\":\"st\n" + start}) {
        write_file(place.smoke("grown-2/log.jsonl"), log + more);
        CHECK(run("cd " + place.path + " && ./report out/smoke").out == read_file(place.smoke("results.txt")));
        CHECK(run("cd " + place.path + " && for p in /usr/bin/python3 python3; do $p dev/plot.py out/smoke/grown-2 -o c.png && exit; done").code == 0);
    }
    write_file(place.smoke("grown-2/log.jsonl"), log + "{\"event\":\"st\n" + log.substr(start.size()));
    CHECK(contains(run("cd " + place.path + " && ./report out/smoke").err, "is no record of a log"));
    write_file(place.smoke("grown-2/log.jsonl"), log);

    for (auto [settings, why] : {std::pair{"RESTART=1", "RESTART=1: starting over"}, {"MINUTES=2", "was made with MINUTES=3: starting over"}}) {
        Result stopped = run("cd " + place.path + " && SMOKE=1 " + settings + " timeout -s TERM 1 dev/run.sh");
        CHECK_MESSAGE(contains(stopped.out, why), stopped.out);
        CHECK(!fs::exists(place.smoke("grown-2")));
        fs::create_directories(place.smoke("grown-2"));
        fs::copy_file(whole.smoke("plan"), place.smoke("plan"), fs::copy_options::overwrite_existing);
    }
    // A plan of another machine.
    write_file(place.smoke("plan"), std::regex_replace(read_file(place.smoke("plan")), std::regex("processor .*"), "processor another"));
    CHECK(contains(run("cd " + place.path + " && SMOKE=1 timeout -s TERM 1 dev/run.sh").out, "(another, "));
}

TEST_CASE("make run: two signals at once, and it still ends after its programs have ended") {
    Place place;
    Script script(place);
    for (int tick = 0; tick < 600 && !fs::exists(place.smoke("scratch-1/log.jsonl")); tick++) pause_ms(100);
    REQUIRE_MESSAGE(fs::exists(place.smoke("scratch-1/log.jsonl")), script.printed());
    // It is stopped meanwhile, so that both are pending when it goes on.
    for (int signal : {SIGSTOP, SIGINT, SIGTERM, SIGCONT}) kill(script.process, signal);
    const int code = script.ended();
    CHECK_MESSAGE((code == 128 + SIGINT || code == 128 + SIGTERM), code);
    CHECK_MESSAGE(contains(script.printed(), "make run SMOKE=1 goes on from the last checkpoints"), script.printed());
    CHECK(place.idle());
}

TEST_CASE("make run: a trainer that stops early stops the script, with an error") {
    Place place;
    const std::string trainer = fs::canonical("train_gpt").string();
    fs::remove(place / "train_gpt");
    auto pretend = [&](const std::string& instead) {
        write_file(place / "train_gpt", "#!/bin/sh\nlog=out/smoke/scratch-1/log.jsonl\ncase \"$*\" in *\"--depth 8 --total-flops\"*\"--seed 1 \"*--out*)\n" + instead +
                                            "\n;; esac\nexec " + trainer + " \"$@\"\n");
        fs::permissions(place / "train_gpt", fs::perms::owner_all);
    };
    SUBCASE("by a signal, after which the trainer exits with 0") {
        // Enough steps for the signal to come during training on any machine.
        pretend("set -f\nset -- $(echo \"$*\" | sed 's/--total-flops [^ ]*/--steps 100000/')\n" + trainer + " \"$@\" &\nuntil grep -qs '\"step\":2,' $log; do :; done\nkill -TERM $!\nwait $!\nexit");
        Result result = place.run();
        CHECK(result.code == 1);
        CHECK_MESSAGE(contains(result.err, "run: scratch-1: stopped at step "), result.err);
        CHECK_MESSAGE(contains(result.err, "make run SMOKE=1 goes on from the last checkpoints"), result.err);
        CHECK(!fs::exists(place.smoke("results.txt")));
    }
    SUBCASE("by an error") {
        pretend("echo 'train_gpt: the disk is full' >&2\nexit 2");
        Result result = place.run();
        CHECK(result.code == 1);
        CHECK_MESSAGE(contains(result.err, "run: scratch-1: train_gpt: the disk is full"), result.err);
    }
    CHECK(place.idle());
}

TEST_CASE("make run: wrong settings give one line of error") {
    Place place;
    for (auto [settings, found] : {std::pair{"MINUTES=0", "MINUTES is '0'"}, {"MINUTES=-1", "MINUTES is '-1'"}, {"MINUTES=two", "MINUTES is 'two'"},
                                   {"RESTART=yes", "RESTART is 'yes'"}, {"SMOKE=2", "SMOKE is '2'"}}) {
        Result result = run("cd " + place.path + " && env " + settings + " dev/run.sh");
        CHECK(result.code == 2);
        CHECK_MESSAGE(contains(result.err, found), result.err);
        CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    }
    CHECK(!fs::exists(place / "out"));
}

/// A folder with logs as make run writes them.
struct Logs : TempDir {
    void write(const std::string& name, int layers, const std::vector<std::pair<double, double>>& flops_and_bpb) const {
        fs::create_directories(*this / name);
        std::string log = "{\"event\":\"start\",\"config\":{\"n_layer\":" + std::to_string(layers) + "}}\n";
        for (size_t i = 0; i < flops_and_bpb.size(); i++) {
            auto [flops, bpb] = flops_and_bpb[i];
            std::string common = "\"step\":" + std::to_string(i) + ",\"total_flops\":" + std::to_string(flops) + ",\"tokens\":1";
            log += "{\"event\":\"step\",\"ms\":1000," + common + "}\n{\"event\":\"eval\"," + common + ",\"val_loss\":" + std::to_string(bpb) +
                   ",\"val_bpb\":" + std::to_string(bpb) + "}\n";
        }
        write_file(*this / (name + "/log.jsonl"), log);
    }
    /// The report on runs with these differences between grown and scratch, and between stack and parts, one per seed.
    std::string report(const std::vector<double>& grown, const std::vector<double>& stacked) const {
        for (size_t i = 0; i < grown.size(); i++) {
            const std::string seed = std::to_string(i + 1);
            write("shallow-" + seed, 2, {{0, 3}, {50, 2.5}});
            write("scratch-" + seed, 4, {{0, 3}, {100, 2}});
            write("grown-" + seed, 4, {{50, 2.5}, {100, 2 + grown[i]}});
            write("one-" + seed, 2, {{0, 3}, {10, 2}});
            write("two-" + seed, 2, {{0, 3}, {10, 3}});
            write_file(*this / ("stack-" + seed + ".eval"), "val_loss: " + std::to_string(2.5 + stacked[i]) + "\nval_bpb: 1\n");
        }
        Result result = run(fs::canonical("train_gpt").parent_path().string() + "/report " + path);
        REQUIRE_MESSAGE(result.code == 0, result.err);
        return result.out;
    }
};

TEST_CASE("report: a difference is significant over its seeds, or within chance") {
    Logs logs;
    // Three seeds with mean -0.2 and deviation 0.01: t = 4.303, half the interval is 0.0248.
    std::string text = logs.report({-0.19, -0.20, -0.21}, {0.1, 0.2, 0.3});
    CHECK_MESSAGE(contains(text, "growing 2 layers to 4, against 4 from scratch with the same FLOPs: -0.2000 val bpb (95 % interval -0.2248 to -0.1752): better"), text);
    // It falls from 2.5 to 1.8 over 50 FLOPs, and meets 2 after 50 + 50 x 0.5 / 0.7.
    CHECK_MESSAGE(contains(text, "after 86 % of its FLOPs: 14 % of the compute saved (95 % interval 13 to 16 %)"), text);
    CHECK_MESSAGE(contains(text, "val loss 2.7000 against 2.5000, the mean of the parts: +0.2000 (95 % interval -0.0484 to +0.4484): within chance"), text);
    CHECK_MESSAGE(contains(text, "1.8000 +- 0.0248"), text);
    CHECK(contains(text, "best: grown-3"));

    text = logs.report({-0.1, -0.2, -0.3}, {0.19, 0.2, 0.21});
    CHECK_MESSAGE(contains(text, "-0.2000 val bpb (95 % interval -0.4484 to +0.0484): within chance"), text);
    CHECK_MESSAGE(contains(text, "the compute that it saves is within chance"), text);
    CHECK_MESSAGE(contains(text, "+0.2000 (95 % interval +0.1752 to +0.2248): worse"), text);

    text = logs.report({0.19, 0.20, 0.21}, {-0.19, -0.2, -0.21});
    CHECK_MESSAGE(contains(text, "+0.2000 val bpb (95 % interval +0.1752 to +0.2248): worse"), text);
    CHECK_MESSAGE(contains(text, "with 3 of 3 seeds it does not reach the final val bpb of scratch: no saving of compute is reported"), text);
    CHECK_MESSAGE(contains(text, "-0.2000 (95 % interval -0.2248 to -0.1752): better"), text);
    CHECK(contains(text, "best: scratch-1"));
}

TEST_CASE("report: one seed has no spread, which is an error") {
    Logs logs;
    logs.write("shallow-1", 2, {{0, 3}, {50, 2.5}});
    Result result = run(fs::canonical("train_gpt").parent_path().string() + "/report " + logs.path);
    CHECK(result.code == 2);
    CHECK_MESSAGE(contains(result.err, "an interval needs the runs of two seeds"), result.err);
}

TEST_SUITE_END();
