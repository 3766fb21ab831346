// What the log.jsonl of a run says, for the programs that make tables of it.
#pragma once
#include <algorithm>
#include <cmath>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>
#include "llmc/io/error.h"

/// A run, from its log. FLOPs count all that the model came from. A resume at step n takes back what was logged of the steps after n.
struct RunLog {
    struct Step {
        double tokens, total_flops, lr, smooth_loss, ms;   ///< smooth_loss: of the last micro-batches, 0.9 and debiased
    };
    struct Evaluation {
        double total_flops, val_loss, val_bpb;
    };
    int layers = 0;
    std::string commit;
    std::map<int64_t, Step> steps;
    std::map<int64_t, Evaluation> evaluations;   ///< never empty

    /// Throws std::invalid_argument where a line is no record, or where nothing was evaluated; half a line, which a run that was killed leaves
    /// behind before it goes on with another "start", is passed over.
    RunLog(const std::string& program, const std::string& folder) {
        const std::string path = folder + "/log.jsonl";
        std::ifstream file(path);
        require(file.good(), program, ": ", path, " cannot be read: a run writes it into its folder");
        int64_t number = 0, bad = 0;
        for (std::string text; std::getline(file, text);) {
            number++;
            const nlohmann::json line = nlohmann::json::parse(text, nullptr, false);
            if (line.is_discarded()) {
                require(bad == 0, program, ": ", path, ": line ", bad, " is no record of a log");
                bad = number;
                continue;
            }
            const std::string event = line.at("event");
            require(bad == 0 || event == "start", program, ": ", path, ": line ", bad, " is no record of a log");
            bad = 0;
            if (event == "start") layers = line.at("config").at("n_layer"), commit = line.value("build", nlohmann::json::object()).value("commit", "unknown");
            if (event == "resume") {
                steps.erase(steps.upper_bound(line.at("step")), steps.end());
                evaluations.erase(evaluations.upper_bound(line.at("step")), evaluations.end());
            }
            if (event == "step")
                steps[line.at("step")] = {line.at("tokens"), line.at("total_flops"), line.value("lr", NAN), line.value("smooth_loss", NAN), line.at("ms")};
            if (event == "eval") evaluations[line.at("step")] = {line.at("total_flops"), line.at("val_loss"), line.at("val_bpb")};
        }
        require(!evaluations.empty(), program, ": ", path, " holds no evaluation");
    }

    double val_loss() const { return evaluations.rbegin()->second.val_loss; }
    double val_bpb() const { return evaluations.rbegin()->second.val_bpb; }
    double total_flops() const { return evaluations.rbegin()->second.total_flops; }
    double tokens() const { return steps.empty() ? 0 : steps.rbegin()->second.tokens; }
    double seconds() const {
        double sum = 0;
        for (auto& [number, step] : steps) sum += step.ms / 1e3;
        return sum;
    }

    /// FLOPs until the validation loss comes to `goal`, by straight lines between evaluations; NaN where it does not.
    double flops_to_val_loss(double goal) const {
        const Evaluation* before = nullptr;
        for (auto& [number, after] : evaluations) {
            if (before && after.val_loss <= goal) {
                const double part = std::clamp((before->val_loss - goal) / (before->val_loss - after.val_loss), 0.0, 1.0);
                return before->total_flops + part * (after.total_flops - before->total_flops);
            }
            before = &after;
        }
        return NAN;
    }
    /// FLOPs until the smoothed training loss is at `goal` or below; NaN where it never is.
    double flops_to_train_loss(double goal) const {
        for (auto& [number, step] : steps)
            if (step.smooth_loss <= goal) return step.total_flops;
        return NAN;
    }
};
