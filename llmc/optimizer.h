// Which optimizer each tensor gets, and its state: AdamW on embeddings, head and lambdas, Muon on the matrices of the layers.
#pragma once
#include <optional>
#include <string>
#include <vector>
#include "llmc/device/device.h"
#include "llmc/gpt.h"
#include "llmc/ops/adamw.h"
#include "llmc/ops/muon.h"

/// Learning rates and decay of a run, before the schedule. Defaults are the recipe's.
struct OptimizerOptions {
    double embedding_lr, unembedding_lr, matrix_lr, scalar_lr;
    double weight_decay;         ///< speedrun: AdamW's; nanochat: Muon's cautious decay
};
OptimizerOptions default_optimizer_options(Recipe recipe);

/// What the schedule says of one step.
struct StepSchedule {
    double lr_multiplier = 1;
    double momentum = 0.95;      ///< Muon's
    double weight_decay = 0;     ///< in place of OptimizerOptions::weight_decay, after its ramp
};

class Optimizer {
public:
    /// Lays out the state of every tensor of the model that is not frozen, and allocates nothing. The model must outlive it.
    explicit Optimizer(GPT& model);
    void allocate();

    /// What the next updates do, written to the device. step: 1 at the first.
    void set_step(const OptimizerOptions& options, const StepSchedule& schedule, int64_t step);
    /// One update of every tensor that is not frozen, from the model's gradients. Only starts work on the device, always the same:
    /// a recording of it can be run again after another set_step.
    void update();

    /// One piece of state, as a checkpoint names it: h.3.fc/momentum.
    struct State {
        std::string name;
        const Tensor* tensor;
        std::vector<int64_t> shape;
        int64_t numel;
        float* values = nullptr;
    };
    const std::vector<State>& states() const { return state; }
    std::vector<const Arena*> arenas() const { return {&memory, &scratch}; }

private:
    struct Shape {
        int rows, cols;
        std::vector<MuonTensor> matrices;
    };
    void list_tensors();
    MuonKind muon_kind() const { return model.config.recipe == Recipe::speedrun ? MuonKind::speedrun : MuonKind::nanochat; }

    GPT& model;
    Arena memory{"optimizer"}, scratch{"optimizer scratch"};
    std::vector<State> state;
    std::optional<Uploads> uploads;
    Recording recording;
    char* muon = nullptr;                    // muon_scratch bytes of the largest shape
    std::vector<AdamWTensor> adamw;
    std::vector<Group> adamw_groups;         // of each entry of adamw
    std::vector<AdamWHyper> adamw_step;      // the same, as set_step makes it
    AdamWHyper* adamw_hypers = nullptr;      // a copy of adamw_step on the device
    MuonHyper* muon_hyper = nullptr;         // on the device
    std::vector<Shape> shapes;
};
