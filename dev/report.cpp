// report DIR: the table at the end of make run, from the logs of its runs (dev/run.sh) and what --eval said of the stack.
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>
#include <vector>
#include "llmc/error.h"

using nlohmann::json;

struct Step {
    double smooth_loss, total_flops;
};

/// What a log tells of a run.
struct RunLog {
    int layers = 0;
    double tokens = 0, total_flops = 0, seconds = 0;
    double val_loss = NAN, val_bpb = NAN;
    std::vector<Step> steps;

    explicit RunLog(const std::string& folder) {
        std::ifstream file(folder + "/log.jsonl");
        require(file.good(), "report: ", folder, "/log.jsonl cannot be read: make run writes it");
        for (std::string text; std::getline(file, text);) {
            json line = json::parse(text);
            if (line["event"] == "start") layers = line["config"]["n_layer"];
            if (line["event"] == "step") {
                tokens = line["tokens"];
                total_flops = line["total_flops"];
                seconds += line["ms"].get<double>() / 1e3;
                steps.push_back({line["smooth_loss"], total_flops});
            }
            if (line["event"] == "eval") {
                val_loss = line["val_loss"];
                val_bpb = line["val_bpb"];
            }
        }
        require(!steps.empty(), "report: ", folder, "/log.jsonl holds no step");
    }
};

static void print_row(const char* name, const RunLog& run, const char* what) {
    std::printf("  %-9s %6d  %8.4f  %8.4f  %9.2e  %9.0f  %7.1f  %s\n", name, run.layers, run.val_bpb, run.val_loss, run.total_flops, run.tokens, run.seconds, what);
}

/// The growth study's measure: FLOPs, those of the shallow model with them, until the grown model's smoothed training loss
/// reaches the one that the model from scratch ends with.
static void print_growth(const RunLog& grown, const RunLog& scratch) {
    double goal = scratch.steps.back().smooth_loss;
    std::optional<double> reached;
    for (const Step& step : grown.steps)
        if (!reached && step.smooth_loss <= goal) reached = step.total_flops;
    std::printf("growing: %+.4f val bpb against training from scratch with the same FLOPs\n", grown.val_bpb - scratch.val_bpb);
    if (reached)
        std::printf("growing: reaches the training loss that scratch ends with (%.4f) after %.2e FLOPs: %.1f %% of the compute %s\n", goal, *reached,
                    100 * std::abs(1 - *reached / scratch.total_flops), *reached < scratch.total_flops ? "saved" : "lost");
    else
        std::printf("growing: does not reach the training loss that scratch ends with (%.4f; %.4f at its own end): nothing saved\n", goal,
                    grown.steps.back().smooth_loss);
}

/// `val_loss: x` of a file that holds what --eval printed.
static double evaluated_loss(const std::string& path) {
    std::ifstream file(path);
    for (std::string line; std::getline(file, line);)
        if (line.rfind("val_loss: ", 0) == 0) return std::stod(line.substr(10));
    fail("report: ", path, " holds no val_loss");
}

int main(int argc, char** argv) {
    return run_program("report", [&] {
        require(argc == 2, "usage: report DIR");
        std::string dir = argv[1];
        RunLog shallow(dir + "/shallow"), grown(dir + "/grown"), scratch(dir + "/scratch"), one(dir + "/one"), two(dir + "/two");
        std::printf("  %-9s %6s  %8s  %8s  %9s  %9s  %7s\n", "run", "layers", "val bpb", "val loss", "FLOPs", "tokens", "seconds");
        print_row("shallow", shallow, "nanochat");
        print_row("grown", grown, "nanochat, grown from shallow (whose FLOPs are counted)");
        print_row("scratch", scratch, "nanochat, the FLOPs of grown");
        print_row("one", one, "speedrun");
        print_row("two", two, "speedrun, on the frozen embedding of one");
        print_growth(grown, scratch);
        double stack = evaluated_loss(dir + "/stack.eval"), parts = (one.val_loss + two.val_loss) / 2;
        std::printf("stacking: val loss %.4f of one and two on each other, against %.4f of the parts (mean)\n", stack, parts);
        return 0;
    });
}
