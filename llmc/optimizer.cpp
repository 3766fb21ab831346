// Groups of the tensor table become calls of adamw_update and muon_update.
#include "llmc/optimizer.h"
#include <algorithm>
#include <cmath>
#include "llmc/device/device.h"
#include "llmc/device/profile.h"

static constexpr int UPLOADS = 4;   // two a step

OptimizerOptions default_optimizer_options(Recipe recipe) {
    if (recipe == Recipe::speedrun)
        return {.embedding_lr = 0.0036, .unembedding_lr = 0.0036, .matrix_lr = 0.1 * 0.0036, .scalar_lr = 0.0036, .weight_decay = 0};
    return {.embedding_lr = 0.3, .unembedding_lr = 0.004, .matrix_lr = 0.02, .scalar_lr = 0.5, .weight_decay = 0.2};
}

static bool second_per_row(const Tensor& tensor) { return tensor.shape[0] >= tensor.shape[1]; }

Optimizer::Optimizer(GPT& model_) : model(model_) {
    const bool nanochat = model.config.recipe == Recipe::nanochat;
    for (const Tensor& tensor : model.tensors) {
        if (model.frozen(tensor)) continue;
        auto add = [&](const char* what, std::vector<int64_t> shape, int64_t numel) {
            state.push_back({tensor.name + "/" + what, &tensor, std::move(shape), numel});
        };
        if (tensor.spec->group == Group::matrix) {
            add("momentum", tensor.shape, tensor.numel);
            int64_t n = second_per_row(tensor) ? tensor.shape[0] : tensor.shape[1];
            if (nanochat) add("second", {n}, n);
        } else {
            add("m", tensor.shape, tensor.numel);
            add("v", tensor.shape, tensor.numel);
        }
    }
    for (State& piece : state) memory.add(piece.values, piece.numel);
    list_tensors();
    size_t largest = 0;
    for (const Shape& shape : shapes)
        largest = std::max(largest, muon_scratch(static_cast<int>(shape.matrices.size()), shape.rows, shape.cols));
    scratch.add(muon, static_cast<int64_t>(largest));
    adamw_step.resize(adamw.size());
    scratch.add(adamw_hypers, static_cast<int64_t>(adamw.size()));
    scratch.add(muon_hyper, 1);
}

void Optimizer::allocate() {
    memory.allocate();
    scratch.allocate();
    uploads.emplace(std::max(adamw_step.size() * sizeof(AdamWHyper), sizeof(MuonHyper)), UPLOADS);
    list_tensors();
}

/// Matrices of one shape go together, whichever layer they are of.
void Optimizer::list_tensors() {
    adamw.clear();
    adamw_groups.clear();
    shapes.clear();
    size_t next = 0;
    auto take = [&] { return state[next++].values; };
    for (const Tensor& tensor : model.tensors) {
        if (model.frozen(tensor)) continue;
        float* master = model.master(tensor);
        floatX* weight = model.weight(tensor);
        const float* gradient = model.gradient(tensor);
        if (tensor.spec->group == Group::matrix) {
            int rows = static_cast<int>(tensor.shape[0]), cols = static_cast<int>(tensor.shape[1]);
            auto same = [&](const Shape& shape) { return shape.rows == rows && shape.cols == cols; };
            auto shape = std::find_if(shapes.begin(), shapes.end(), same);
            if (shape == shapes.end()) shape = shapes.insert(shape, {rows, cols, {}});
            float* momentum = take();
            float* second = model.config.recipe == Recipe::nanochat ? take() : nullptr;
            shape->matrices.push_back({master, weight, gradient, momentum, second});
        } else {
            float* m = take();
            float* v = take();
            adamw.push_back({master, weight, gradient, m, v, tensor.numel});
            adamw_groups.push_back(tensor.spec->group);
        }
    }
}

/// The nanochat recipe tunes its AdamW rates at width 768.
static double width_scale(const GPTConfig& config) { return 1 / std::sqrt(config.n_embd / 768.0); }

static AdamWHyper hyper_of(Group group, const GPTConfig& config, const OptimizerOptions& options, const StepSchedule& schedule, int64_t step) {
    if (config.recipe == Recipe::speedrun) {
        double lr = group == Group::embedding || group == Group::value_embedding ? options.embedding_lr
                    : group == Group::unembedding                               ? options.unembedding_lr
                                                                                 : options.scalar_lr;
        return adamw_hyper(static_cast<float>(lr * schedule.lr_multiplier), 0.9f, 0.95f, 1e-8f, static_cast<float>(schedule.weight_decay), step);
    }
    double lr = 0, beta1 = 0.8;
    switch (group) {
        case Group::embedding:
        case Group::value_embedding: lr = options.embedding_lr * width_scale(config); break;
        case Group::unembedding: lr = options.unembedding_lr * width_scale(config); break;
        case Group::resid_scalar: lr = options.scalar_lr * 0.01; break;
        case Group::x0_scalar: lr = options.scalar_lr; beta1 = 0.96; break;
        case Group::matrix: break;
    }
    return adamw_hyper(static_cast<float>(lr * schedule.lr_multiplier), static_cast<float>(beta1), 0.95f, 1e-10f, 0, step);
}

void Optimizer::set_step(const OptimizerOptions& options, const StepSchedule& schedule, int64_t step) {
    for (size_t i = 0; i < adamw.size(); i++) adamw_step[i] = hyper_of(adamw_groups[i], model.config, options, schedule, step);
    uploads->copy(adamw_hypers, adamw_step.data(), adamw_step.size() * sizeof(AdamWHyper), nullptr);

    MuonHyper hyper{.lr = static_cast<float>(options.matrix_lr * schedule.lr_multiplier),
                    .momentum = static_cast<float>(schedule.momentum),
                    .beta2 = 0.95f,
                    .weight_decay = static_cast<float>(schedule.weight_decay)};
    uploads->copy(muon_hyper, &hyper, sizeof hyper, nullptr);
}

void Optimizer::update() {
    Range phase("update");
    recording.run(nullptr, [this] {
        adamw_update(adamw.data(), adamw_hypers, static_cast<int>(adamw.size()), nullptr);
        for (const Shape& shape : shapes)
            muon_update(shape.matrices.data(), muon, muon_hyper, static_cast<int>(shape.matrices.size()), shape.rows, shape.cols, muon_kind(), nullptr);
    });
}
