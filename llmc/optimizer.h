// The optimizers of a model: every tensor is updated by its group's rule in the recipe; and their state.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>
#include "llmc/device/device.h"
#include "llmc/gpt.h"
#include "llmc/recipe.h"

/// The schedule at one step.
struct StepSchedule {
    double lr_multiplier = 1;
    int64_t step = 0;            ///< 0 for the first
    int64_t steps = 1;           ///< of the whole schedule, over which a weight decay may fall
};

class Optimizer {
public:
    /// Lays out the state of every tensor of the model that is not frozen, and allocates nothing. The model must outlive it.
    explicit Optimizer(GPT& model);
    ~Optimizer();
    void allocate();

    /// Writes the rates and coefficients of the next updates to the device. step: AdamW's count of updates, 1 for the first.
    void set_step(const Rates& rates, const StepSchedule& schedule, int64_t step);
    /// One update of every tensor that is not frozen, from the model's gradients. Launches the same kernels every time, with the
    /// numbers that change in device memory, so that a captured graph can be replayed after each set_step().
    void update();

    /// One tensor of state, as a checkpoint names it: h.3.fc/momentum. This process holds the part that it owns, which may be empty.
    struct State {
        std::string name;
        const Tensor* tensor;
        std::vector<int64_t> shape;
        float* values = nullptr;   ///< (owned().count)
    };
    Piece owned(const State& piece, int rank) const;
    Piece owned(const State& piece) const { return owned(piece, model.layout.job.rank); }
    const std::vector<State>& states() const { return state; }
    std::vector<const Arena*> arenas() const { return {&memory, &scratch}; }

private:
    class Kind;                              // AdamW, Muon: optimizer.cpp
    class AdamW;
    class Muon;
    const GroupRule& rule(const Tensor& tensor) const { return rule_of(*model.config.recipe, tensor.spec->group); }
    Kind& kind(const Tensor& tensor) const;
    void list_tensors();

    GPT& model;
    Arena memory{"optimizer"}, scratch{"optimizer scratch"};
    std::vector<State> state;
    std::vector<std::unique_ptr<Kind>> kinds;
    std::optional<Uploads> uploads;
    Capture capture;
};
