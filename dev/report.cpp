// report DIR: the table at the end of make run, from the logs of its runs (dev/run.sh) and what --eval said of the stack.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <fstream>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>
#include "llmc/error.h"

using nlohmann::json;

struct Evaluation {
    double total_flops, val_bpb;
};

/// What a log tells of a run.
struct RunLog {
    int layers = 0;
    double tokens = 0, total_flops = 0, seconds = 0;
    double val_loss = NAN, val_bpb = NAN;
    std::vector<Evaluation> evaluations;

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
            }
            if (line["event"] == "eval") {
                val_loss = line["val_loss"];
                val_bpb = line["val_bpb"];
                evaluations.push_back({line["total_flops"], val_bpb});
            }
        }
        require(!evaluations.empty(), "report: ", folder, "/log.jsonl holds no evaluation");
    }
};

static void print_row(const char* name, const RunLog& run, const char* what) {
    std::printf("  %-9s %6d  %8.4f  %8.4f  %9.2e  %9.0f  %7.1f  %s\n", name, run.layers, run.val_bpb, run.val_loss, run.total_flops, run.tokens, run.seconds, what);
}

/// FLOPs, those of the shallow model with them, until the grown model's validation reaches what the model from scratch ends
/// with; straight lines between evaluations. (The growth study asks it of the smoothed training loss; a run this short is too
/// noisy for that.)
static void print_growth(const RunLog& grown, const RunLog& scratch) {
    double goal = scratch.val_bpb;
    std::printf("growing: %+.4f val bpb against training from scratch with the same FLOPs\n", grown.val_bpb - goal);
    for (size_t i = 1; i < grown.evaluations.size(); i++) {
        Evaluation before = grown.evaluations[i - 1], after = grown.evaluations[i];
        if (after.val_bpb > goal) continue;
        double part = std::clamp((before.val_bpb - goal) / (before.val_bpb - after.val_bpb), 0.0, 1.0);
        double reached = before.total_flops + part * (after.total_flops - before.total_flops);
        std::printf("growing: has the val bpb that scratch ends with after %.2e of its %.2e FLOPs: %.1f %% of the compute %s\n", reached,
                    scratch.total_flops, 100 * std::abs(1 - reached / scratch.total_flops), reached < scratch.total_flops ? "saved" : "lost");
        return;
    }
    std::printf("growing: does not come to the val bpb that scratch ends with: no compute saved\n");
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
