// report DIR: prints the results of make run, from the logs of its runs (dev/run.sh) and the output of --eval on the stacks.
// report --machine: prints the precision and commit of the build, and the processor.
//
// Differences are paired by seed: each seed gives one (the grown model minus the model from scratch of that seed, which saw the same
// text in the same order), and their mean has a 95 % interval by Student's t. A difference whose interval contains 0 is called chance.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <string>
#include <vector>
#include "dev/run_log.h"
#include "llmc/device/device.h"
#include "llmc/device/types.h"
#include "llmc/io/build.h"
#include "llmc/io/error.h"

namespace fs = std::filesystem;

/// DIR/NAME-1, DIR/NAME-2, ...: one per seed.
static std::vector<RunLog> runs(const std::string& dir, const std::string& name) {
    std::vector<RunLog> logs;
    for (int seed = 1; fs::exists(concat(dir, "/", name, "-", seed)); seed++) logs.emplace_back("report", concat(dir, "/", name, "-", seed));
    require(logs.size() >= 2, "report: ", dir, "/", name, "-N: an interval needs the runs of two seeds or more; make run makes them");
    return logs;
}

template <class Value>
static std::vector<double> of_each(const std::vector<RunLog>& logs, Value value) {
    std::vector<double> values;
    for (const RunLog& log : logs) values.push_back(value(log));
    return values;
}

static double mean(const std::vector<double>& x) {
    double sum = 0;
    for (double value : x) sum += value;
    return sum / static_cast<double>(x.size());
}

/// Half the 95 % interval of the mean: t s / sqrt(n).
static double half_interval(const std::vector<double>& x) {
    static constexpr double t[] = {12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262};   // 97.5 % points, 1 to 9 degrees of freedom
    const double m = mean(x), n = static_cast<double>(x.size());
    double squares = 0;
    for (double value : x) squares += (value - m) * (value - m);
    return t[std::min(x.size() - 2, std::size(t) - 1)] * std::sqrt(squares / (n - 1) / n);
}

static std::vector<double> differences(const std::vector<double>& a, const std::vector<double>& b) {
    require(a.size() == b.size(), "report: ", a.size(), " and ", b.size(), " runs, but each seed must have both");
    std::vector<double> d;
    for (size_t i = 0; i < a.size(); i++) d.push_back(a[i] - b[i]);
    return d;
}

static std::string interval(const std::vector<double>& x, const char* format) {
    char text[96];
    const double m = mean(x), half = half_interval(x);
    std::snprintf(text, sizeof text, concat(format, " to ", format).c_str(), m - half, m + half);
    return text;
}

/// -1: significantly below 0; 1: significantly above; 0: chance.
static int verdict(const std::vector<double>& x) {
    const double m = mean(x), half = half_interval(x);
    return m + half < 0 ? -1 : m - half > 0 ? 1 : 0;
}

static void print_rows(const char* name, const std::vector<RunLog>& logs, const char* what) {
    const std::vector<double> bpb = of_each(logs, [](const RunLog& log) { return log.val_bpb(); });
    std::string each;
    char text[64];
    for (double value : bpb) std::snprintf(text, sizeof text, " %.4f", value), each += text;
    std::snprintf(text, sizeof text, "%.4f +- %.4f", mean(bpb), half_interval(bpb));
    std::printf("  %-8s %6d  %-18s %s  %9.2e  %9.0f  %7.1f  %s\n", name, logs[0].layers, text, each.c_str(), logs[0].total_flops(), logs[0].tokens(),
                mean(of_each(logs, [](const RunLog& log) { return log.seconds(); })), what);
}

static void print_growth(const std::vector<RunLog>& shallow, const std::vector<RunLog>& grown, const std::vector<RunLog>& scratch) {
    const auto bpb = [](const RunLog& log) { return log.val_bpb(); };
    const std::vector<double> gain = differences(of_each(grown, bpb), of_each(scratch, bpb));
    const int beyond_chance = verdict(gain);
    std::printf("growing %d layers to %d, against %d from scratch with the same FLOPs: %+.4f val bpb (95 %% interval %s): %s\n", shallow[0].layers,
                grown[0].layers, scratch[0].layers, mean(gain), interval(gain, "%+.4f").c_str(),
                beyond_chance < 0 ? "better" : beyond_chance > 0 ? "worse" : "within chance");
    // The growth study asks for the smoothed training loss (dev/measure.cpp); a run this short is too noisy for that.
    std::vector<double> saved;
    for (size_t i = 0; i < grown.size(); i++) saved.push_back(100 * (1 - grown[i].flops_to_val_loss(scratch[i].val_loss()) / scratch[i].total_flops()));
    const auto missed = std::count_if(saved.begin(), saved.end(), [](double part) { return std::isnan(part); });
    if (missed > 0)
        std::printf("growing: with %ld of %zu seeds it does not reach the final val bpb of scratch: no saving of compute is reported\n",
                    static_cast<long>(missed), saved.size());
    else if (beyond_chance < 0 && verdict(saved) > 0)
        std::printf("growing: reaches the final val bpb of scratch after %.0f %% of its FLOPs: %.0f %% of the compute saved (95 %% interval %s %%)\n",
                    100 - mean(saved), mean(saved), interval(saved, "%.0f").c_str());
    else
        std::printf("growing: the compute that it saves is within chance (95 %% interval %s %%)\n", interval(saved, "%.0f").c_str());
}

/// `val_loss: x` from the output of --eval in a file.
static double evaluated_loss(const std::string& path) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
        if (line.rfind("val_loss: ", 0) == 0) return std::stod(line.substr(10));
    fail("report: ", path, " holds no val_loss");
}

static void print_stacking(const std::string& dir, const std::vector<RunLog>& one, const std::vector<RunLog>& two) {
    std::vector<double> stack, parts;
    for (size_t i = 0; i < one.size(); i++) {
        stack.push_back(evaluated_loss(concat(dir, "/stack-", i + 1, ".eval")));
        parts.push_back((one[i].val_loss() + two[i].val_loss()) / 2);
    }
    const std::vector<double> lost = differences(stack, parts);
    const int beyond_chance = verdict(lost);
    std::printf("stacking one and two, without training: val loss %.4f against %.4f, the mean of the parts: %+.4f (95 %% interval %s): %s\n", mean(stack),
                mean(parts), mean(lost), interval(lost, "%+.4f").c_str(), beyond_chance < 0 ? "better" : beyond_chance > 0 ? "worse" : "within chance");
}

static void print_best(const std::vector<RunLog>& grown, const std::vector<RunLog>& scratch) {
    std::string best;
    double least = INFINITY;
    for (auto [name, logs] : {std::pair{"grown", &grown}, {"scratch", &scratch}})
        for (size_t i = 0; i < logs->size(); i++)
            if ((*logs)[i].val_bpb() < least) least = (*logs)[i].val_bpb(), best = concat(name, "-", i + 1);
    std::printf("best: %s\n", best.c_str());
}

int main(int argc, char** argv) {
    return run_program("report", [&] {
        require(argc == 2, "usage: report DIR, or report --machine");
        const std::string dir = argv[1];
        if (dir == "--machine") {
            std::printf("precision %s\nprocessor %s\ncommit %s\n", PRECISION_NAME, device_name().c_str(), build_commit());
            return 0;
        }
        const std::vector<RunLog> shallow = runs(dir, "shallow"), grown = runs(dir, "grown"), scratch = runs(dir, "scratch"), one = runs(dir, "one"),
                                  two = runs(dir, "two");
        std::printf("  %-8s %6s  %-18s %-*s  %9s  %9s  %7s\n", "run", "layers", "val bpb, mean", static_cast<int>(7 * grown.size()), " of each seed", "FLOPs",
                    "tokens", "seconds");
        print_rows("shallow", shallow, "nanochat");
        print_rows("grown", grown, "nanochat, grown from shallow (whose FLOPs are counted)");
        print_rows("scratch", scratch, "nanochat, the FLOPs of grown");
        print_rows("one", one, "speedrun");
        print_rows("two", two, "speedrun, on the frozen embedding of one");
        std::printf("+- and intervals: 95 %% by Student's t over the seeds; a difference whose interval contains 0 is called chance\n");
        print_growth(shallow, grown, scratch);
        print_stacking(dir, one, two);
        print_best(grown, scratch);
        return 0;
    });
}
