// measure MODEL RUN [BASELINE BASELINE_RUN]: the values of one row of a study (dev/study.sh), as lines `name value`. MODEL is the run's last
// checkpoint, RUN its folder. Tokens and FLOPs are those of the checkpoint's whole family; losses come from the log. With a baseline also the part of
// the baseline's compute that the run saves: 1 - (FLOPs until the run reaches the baseline's final loss, ancestors included) / (FLOPs of the baseline),
// once by smoothed training loss, as in the growth study, and once by validation loss; empty where the run never reaches it.
// measure --curve RUN: the run as lines of CSV, event,step,total_flops,lr,loss: every evaluation, and about a hundred steps with their smoothed
// training loss.
#include <cinttypes>
#include <cstdio>
#include "dev/run_log.h"
#include "llmc/checkpoint.h"
#include "llmc/lineage.h"
#include "llmc/tensors.h"

static void print_saved(const char* name, double flops, double baseline) {
    if (std::isnan(flops))
        std::printf("%s \n", name);
    else
        std::printf("%s %.6f\n", name, 1 - flops / baseline);
}

static void print_curve(const RunLog& log) {
    for (auto& [step, eval] : log.evaluations) std::printf("eval,%" PRId64 ",%.9g,,%.6f\n", step, eval.total_flops, eval.val_loss);
    const int64_t every = std::max<int64_t>(1, static_cast<int64_t>(log.steps.size()) / 100);
    for (auto& [number, step] : log.steps)
        if (number % every == 0 || number == log.steps.rbegin()->first)
            std::printf("step,%" PRId64 ",%.9g,%.6g,%.6f\n", number, step.total_flops, step.lr, step.smooth_loss);
}

int main(int argc, char** argv) {
    return run_program("measure", [&] {
        const std::string first = argc > 1 ? argv[1] : "";
        if (first == "--curve" && argc == 3) {
            print_curve(RunLog("measure", argv[2]));
            return 0;
        }
        require(argc == 3 || argc == 5, "usage: measure MODEL RUN [BASELINE BASELINE_RUN], or measure --curve RUN");
        const Checkpoint model = open_checkpoint(first);
        const RunLog log("measure", argv[2]);
        const Spent spent = total_spent(model.header);
        std::printf("total_flops %.9g\ntokens %" PRId64 "\nparameters %" PRId64 "\n", spent.flops, spent.tokens, total_params(model.config));
        std::printf("start_val_loss %.6f\nval_loss %.6f\nval_bpb %.6f\n", log.evaluations.begin()->second.val_loss, log.val_loss(), log.val_bpb());
        std::printf("train_loss %.6f\n", log.steps.empty() ? NAN : log.steps.rbegin()->second.smooth_loss);
        std::printf("seconds %.1f\ncommit %s\n", log.seconds(), log.commit.c_str());
        if (argc == 5) {
            const double baseline_flops = total_spent(open_checkpoint(argv[3]).header).flops;
            const RunLog baseline("measure", argv[4]);
            require(!baseline.steps.empty(), "measure: ", argv[4], " has no step to compare with");
            print_saved("train_acceleration", log.flops_to_train_loss(baseline.steps.rbegin()->second.smooth_loss), baseline_flops);
            print_saved("val_acceleration", log.flops_to_val_loss(baseline.val_loss()), baseline_flops);
        }
        return 0;
    });
}
