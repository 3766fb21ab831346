// An optimizer is a Kind: which groups it trains, what it sets before a step, and the ops of an update. A new optimizer is a new Kind
// here, a struct of its hyperparameters and state among the alternatives of GroupRule::optimizer, and an op.
#include "llmc/optimizer.h"
#include <algorithm>
#include <cmath>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/adamw.h"
#include "llmc/ops/muon.h"
#include "llmc/schedule.h"

/// What a Kind needs to know about a step.
struct Step {
    const GPTConfig& config;
    const Rates& rates;
    const StepSchedule& schedule;
    int64_t number;   // 1 for the first

    double rate(const GroupRule& rule) const {
        const double by_width = rule.tuned_width > 0 ? 1 / std::sqrt(config.n_embd / rule.tuned_width) : 1;
        return rates.*rule.rate * by_width * rule.factor * schedule.lr_multiplier;
    }
    double weight_decay(const GroupRule& rule) const {
        return rates.weight_decay * weight_decay_multiplier(rule.decay, schedule.step, schedule.steps, schedule.lr_multiplier);
    }
};

class Optimizer::Kind {
public:
    virtual ~Kind() = default;
    virtual bool trains(const GroupRule& rule) const = 0;

    /// Lists its tensors, one after another; addresses are null until memory is allocated. n: number of owned elements, which is all where the rule
    /// is not by element; state: as the rule's state() lists it.
    virtual void clear() = 0;
    virtual void add(const Tensor& tensor, int64_t n, const GroupRule& rule, float* master, floatX* weight, const float* gradient,
                     const std::vector<float*>& state) = 0;

    /// Called once all tensors are listed: scratch for an update, and device memory for the numbers of a step.
    virtual void add_scratch(Arena& scratch) = 0;
    virtual size_t upload_bytes() const = 0;
    virtual void set_step(const Step& step, Uploads& uploads) = 0;
    virtual void update() = 0;
};

// ------------------------------------------------------------------------------------------------------------- AdamW

/// Updates all tensors in one call.
class Optimizer::AdamW : public Kind {
public:
    bool trains(const GroupRule& rule) const override { return std::holds_alternative<AdamWRule>(rule.optimizer); }
    void clear() override {
        tensors.clear();
        rules.clear();
    }
    void add(const Tensor&, int64_t n, const GroupRule& rule, float* master, floatX* weight, const float* gradient,
             const std::vector<float*>& state) override {
        tensors.push_back({master, weight, gradient, state[0], state[1], n});
        rules.push_back(&rule);
    }
    void add_scratch(Arena& scratch) override {
        hypers.resize(tensors.size());
        scratch.add(device_hypers, static_cast<int64_t>(hypers.size()));
    }
    size_t upload_bytes() const override { return hypers.size() * sizeof(AdamWHyper); }
    void set_step(const Step& step, Uploads& uploads) override {
        for (size_t i = 0; i < tensors.size(); i++) {
            const AdamWRule& own = std::get<AdamWRule>(rules[i]->optimizer);
            const double decay = own.decays ? step.weight_decay(*rules[i]) : 0;
            hypers[i] =
                adamw_hyper(static_cast<float>(step.rate(*rules[i])), static_cast<float>(own.beta1), static_cast<float>(own.beta2),
                            static_cast<float>(own.eps), static_cast<float>(decay), step.number);
        }
        uploads.copy(device_hypers, hypers.data(), upload_bytes(), nullptr);
    }
    void update() override { adamw_update(tensors.data(), device_hypers, static_cast<int>(tensors.size()), nullptr); }

private:
    std::vector<AdamWTensor> tensors;
    std::vector<const GroupRule*> rules;   // of each tensor
    std::vector<AdamWHyper> hypers;
    AdamWHyper* device_hypers = nullptr;
};

// -------------------------------------------------------------------------------------------------------------- Muon

/// Updates all matrices of one rule and shape together, across layers.
class Optimizer::Muon : public Kind {
public:
    bool trains(const GroupRule& rule) const override { return std::holds_alternative<MuonGroup>(rule.optimizer); }
    void clear() override { batches.clear(); }
    void add(const Tensor& tensor, int64_t, const GroupRule& rule, float* master, floatX* weight, const float* gradient,
             const std::vector<float*>& state) override {
        const int rows = static_cast<int>(tensor.shape[0]), cols = static_cast<int>(tensor.shape[1]);
        auto same = [&](const Batch& batch) { return batch.rule == &rule && batch.rows == rows && batch.cols == cols; };
        auto batch = std::find_if(batches.begin(), batches.end(), same);
        if (batch == batches.end()) batch = batches.insert(batch, {&rule, rows, cols, {}});
        batch->matrices.push_back({master, weight, gradient, state[0], state.size() > 1 ? state[1] : nullptr});
    }
    void add_scratch(Arena& arena) override {
        size_t largest = 0;
        for (const Batch& batch : batches) largest = std::max(largest, muon_scratch(batch.count(), batch.rows, batch.cols));
        arena.add(scratch, static_cast<int64_t>(largest));
        hypers.resize(batches.size());
        arena.add(device_hypers, static_cast<int64_t>(hypers.size()));
    }
    size_t upload_bytes() const override { return hypers.size() * sizeof(MuonHyper); }
    void set_step(const Step& step, Uploads& uploads) override {
        for (size_t i = 0; i < batches.size(); i++) {
            const GroupRule& rule = *batches[i].rule;
            hypers[i] = {.lr = static_cast<float>(step.rate(rule)),
                         .momentum = static_cast<float>(muon_momentum(std::get<MuonGroup>(rule.optimizer), step.schedule.step)),
                         .weight_decay = static_cast<float>(step.weight_decay(rule))};
        }
        uploads.copy(device_hypers, hypers.data(), upload_bytes(), nullptr);
    }
    void update() override {
        for (size_t i = 0; i < batches.size(); i++)
            muon_update(batches[i].matrices.data(), scratch, device_hypers + i, batches[i].count(), batches[i].rows,
                        batches[i].cols, muon(*batches[i].rule), nullptr);
    }

private:
    struct Batch {
        const GroupRule* rule;
        int rows, cols;
        std::vector<MuonTensor> matrices;
        int count() const { return static_cast<int>(matrices.size()); }
    };
    static const MuonRule& muon(const GroupRule& rule) { return std::get<MuonGroup>(rule.optimizer).rule; }

    std::vector<Batch> batches;
    std::vector<MuonHyper> hypers;   // of each batch
    MuonHyper* device_hypers = nullptr;
    char* scratch = nullptr;   // muon_scratch bytes of the largest batch
};

// --------------------------------------------------------------------------------------------------------------- all

static constexpr int UPLOADS = 4;   // copies to the device in flight, two per step

Optimizer::Kind& Optimizer::kind(const Tensor& tensor) const {
    for (const std::unique_ptr<Kind>& kind : kinds)
        if (kind->trains(rule(tensor))) return *kind;
    throw std::logic_error("optimizer: no optimizer trains " + tensor.name);
}

Optimizer::Optimizer(GPT& model_) : model(model_) {
    kinds.push_back(std::make_unique<AdamW>());
    kinds.push_back(std::make_unique<Muon>());
    for (const Tensor& tensor : model.tensors) {
        if (model.frozen(tensor)) continue;
        for (StatePiece& piece : rule(tensor).state(tensor.name, tensor.shape))
            state.push_back({tensor.name + "/" + piece.name, &tensor, std::move(piece.shape)});
    }
    for (State& piece : state) memory.add(piece.values, owned(piece).count);
    list_tensors();
    for (auto& kind : kinds) kind->add_scratch(scratch);
}

Optimizer::~Optimizer() = default;

/// State of the tensor's own shape is owned as the tensor is; other state is owned whole by the process that owns the tensor.
Piece Optimizer::owned(const State& piece, int rank) const {
    const Piece of_tensor = model.layout.owned(model.index(*piece.tensor), rank);
    if (piece.shape == piece.tensor->shape || of_tensor.count == 0) return of_tensor;
    int64_t numel = 1;
    for (int64_t extent : piece.shape) numel *= extent;
    return {0, numel};
}

void Optimizer::allocate() {
    memory.allocate();
    scratch.allocate();
    size_t largest = 0;
    for (auto& kind : kinds) largest = std::max(largest, kind->upload_bytes());
    uploads.emplace(largest, UPLOADS);
    list_tensors();
}

/// Called once for the sizes, and again for the addresses.
void Optimizer::list_tensors() {
    for (auto& kind : kinds) kind->clear();
    auto next = state.begin();
    for (const Tensor& tensor : model.tensors) {
        if (model.frozen(tensor)) continue;
        std::vector<float*> own;
        for (; next != state.end() && next->tensor == &tensor; ++next) own.push_back(next->values);
        if (const int64_t n = model.owned(tensor).count; n > 0)
            kind(tensor).add(tensor, n, rule(tensor), model.master(tensor), model.weight(tensor), model.gradient(tensor), own);
    }
}

void Optimizer::set_step(const Rates& rates, const StepSchedule& schedule, int64_t step) {
    for (auto& kind : kinds)
        if (kind->upload_bytes() > 0) kind->set_step({model.config, rates, schedule, step}, *uploads);
}

void Optimizer::update() {
    Range phase("update");
    capture.run(nullptr, [this] {
        for (auto& kind : kinds) kind->update();
    });
}
