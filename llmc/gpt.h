// The model: its memory, its forward and backward pass. Written only in terms of the ops' contracts.
#pragma once
#include <cmath>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>
#include "llmc/config.h"
#include "llmc/device/device.h"
#include "llmc/device/memory.h"
#include "llmc/device/types.h"
#include "llmc/layout.h"
#include "llmc/ops/comm.h"
#include "llmc/ops/reduce.h"
#include "llmc/tensors.h"

/// One pointer per tensor. T is floatX for the weights that the forward and backward pass read, float for master weights and gradients.
template <class T>
struct Weights {
    struct Layer {
        T* qkv = nullptr;        ///< (C + 2 CK, C): q, k, v are contiguous
        T* proj = nullptr;       ///< (C, C)
        T* fc = nullptr;         ///< (4C, C)
        T* fc_proj = nullptr;    ///< (C, 4C)
        T* ve = nullptr;         ///< (V, CK), null in layers without
        T* ve_gate = nullptr;    ///< (HK, 32), null in layers without
    };
    T* wte = nullptr;            ///< (V, C)
    T* head = nullptr;           ///< (V, C): lm_head, or wte when tied
    T* resid_lambdas = nullptr;  ///< (L)
    T* x0_lambdas = nullptr;     ///< (L)
    std::vector<Layer> layers;
};

/// What the forward pass of a layer saves for the backward pass. N = B T; QKV = C + 2 CK.
struct LayerActivations {
    floatX* seam = nullptr;      ///< (N, C) the residual stream after norm_before, where a stack has one
    float* seam_rstd = nullptr;  ///< (N)
    floatX* prev = nullptr;      ///< (N, C) the residual stream before the lambdas, where there are lambdas
    floatX* h1 = nullptr;        ///< (N, C) input of the attention
    float* rstd1 = nullptr;      ///< (N)
    floatX* qkv = nullptr;       ///< (N, QKV) after value embedding, rotary and QK norm
    float* qk_rstd = nullptr;    ///< (N, H + HK)
    float* gate = nullptr;       ///< (N, HK)
    floatX* y = nullptr;         ///< (N, C) output of the attention
    float* lse = nullptr;        ///< (B, H, T)
    floatX* h2 = nullptr;        ///< (N, C) input of the MLP
    float* rstd2 = nullptr;      ///< (N)
    floatX* f = nullptr;         ///< (N, 4C) before the activation
    floatX* activated = nullptr; ///< (N, 4C) after it
};

/// Keys and values of one growing sequence, for sampling.
struct KVCache {
    /// Lays out the memory and allocates nothing yet: arena.bytes() is what it will take.
    explicit KVCache(const GPTConfig& config);
    void allocate() { arena.allocate(); }

    Arena arena{"key/value cache"};
    struct Layer {
        floatX* k = nullptr;     ///< (seq_len, CK)
        floatX* v = nullptr;     ///< (seq_len, CK)
    };
    std::vector<Layer> layers;
    int length = 0;              ///< tokens in the cache
};

/// Sums over the micro-batches of one part of a step. They lie on the device, where the ops accumulate them. Another metric is another member here,
/// and the op that writes it. Means are in nats over the targets that are not -1.
struct PartSums {
    double loss = 0;            ///< weighted by the micro-batches' shares
    double last = 0;            ///< of the last micro-batch alone
    double loop_loss = 0;       ///< the same for the looped passes, on latents
    double loop_last = 0;
};

/// The same for a whole step, all parts and processes together.
struct StepSums : PartSums {
    float squares = 0;          ///< sum over all tensors that have a gradient of g^2
    double norm() const { return std::sqrt(double{squares}); }   ///< |g|
};

/// Forward only, or forward and backward.
enum class Mode { evaluate, train };

class GPT {
public:
    /// Lays out the memory for micro-batches of B x T tokens and allocates nothing yet: --plan needs only the sizes.
    /// Throws std::invalid_argument for what validate() refuses, B < 1, or when nothing trains.
    /// job: the process whose share of the weights, and of a step, this model holds.
    GPT(const GPTConfig& config, int B, Mode mode, const Trained& trained = {}, const Job& job = {});
    GPT(const GPT&) = delete;
    GPT& operator=(const GPT&) = delete;

    /// Allocates. Weights are zero until set_tensor() or initialize_weights().
    void allocate();
    void initialize_weights(uint64_t seed);

    /// Copies the part of a tensor's master weights that this process owns from and to the host. values (numel)
    void set_tensor(const Tensor& tensor, const float* values);
    void get_tensor(float* values, const Tensor& tensor) const;
    /// After the owned master weights of a tensor were written: rounds them to floatX for the passes.
    void round_weights(const Tensor& tensor);
    /// All-gather of the weights from their owners, as the passes read them: of all weights, or of those that a step updates.
    void gather_weights(Comm& comm);
    void gather_updated(Comm& comm);

    /// Index of a tensor of `tensors`, in `tensors` and in `layout`.
    size_t index(const Tensor& tensor) const { return static_cast<size_t>(&tensor - tensors.data()); }
    /// The elements whose master weights this process holds and updates.
    Piece owned(const Tensor& tensor) const { return layout.owned(index(tensor)); }
    // The next three return (owned(tensor).count) elements.
    float* master(const Tensor& tensor) const;
    /// The weights that the passes read; null where they read the master weights themselves (fp32 build).
    floatX* weight(const Tensor& tensor) const;
    /// Null for a frozen tensor, and in Mode::evaluate.
    float* gradient(const Tensor& tensor) const;
    bool frozen(const Tensor& tensor) const { return !trained(tensor); }

    /// Sets gradients and sums to zero. This and the next three throw std::invalid_argument in Mode::evaluate.
    void begin_step();
    /// Forward and backward pass of one micro-batch; gradients accumulate. Does not wait for the device: from the third call on,
    /// all its kernels are one launch (a CUDA graph). `share`: weight of this micro-batch in the step's loss, 1 / number of micro-batches.
    ///
    /// inputs, targets (B, T) on the host
    /// loop: after an ordinary pass, a second pass that takes the latents of the first in place of token embeddings (the looping of
    ///       the stacking study, test/golden/README.md); inputs are those of the ordinary pass.
    void train_micro_batch(const int* inputs, const int* targets, double share, bool loop = false);
    /// Called after the micro-batches of each part (Job::own_parts()) but the last, which end_step() ends.
    void end_part();
    /// Waits for the micro-batches since begin_step(), ends the last part, and reduces over all processes: each then has the gradients that it owns.
    StepSums end_step(Comm& comm);
    StepSums end_step();   ///< without other processes

    /// Losses in nats of one micro-batch, forward only. losses, inputs, targets (B, T) on the host.
    void evaluate_micro_batch(float* losses, const int* inputs, const int* targets);

    /// The residual stream of one micro-batch after the first `depth` layers (0: the normed embedding; a norm at a seam belongs to
    /// the layer above it), as it is and after norm_lm_head; forward only. Throws std::invalid_argument unless 0 <= depth <= n_layer.
    ///
    /// residual, normed (B, T, C)  =   on the host
    /// inputs           (B, T)         on the host
    void residual_stream(float* residual, float* normed, const int* inputs, int depth);

    /// Appends up to B T tokens to the cache's sequence; next_logits() then has the logits of the last one.
    void extend(KVCache& cache, const int* tokens, int count);
    /// logits (V) on the host, softcap applied: of the last token that extend() was given.
    void next_logits(float* logits);
    /// The same for one row of the last evaluate_micro_batch().
    void row_logits(float* logits, int64_t row);

    /// After a step whose loss or gradients were not finite: the first tensor, in the order of the passes, that holds NaN or
    /// Inf, with its layer, or an empty string. Runs the forward pass of this micro-batch again.
    std::string find_nonfinite(const int* inputs, const int* targets, bool loop);

    const GPTConfig config;
    const int B, T;
    const std::vector<Tensor> tensors;
    const Trained trained;
    const Layout layout;
    std::vector<const Arena*> arenas() const { return {&parameters, &gradients, &activations, &scratch}; }

private:
    enum class Input { tokens, latents };
    void embed(Input input, int64_t n);
    void forward(Input input, int rows, int length, KVCache* cache) { forward(input, rows, length, cache, config.n_layer); }
    void forward(Input input, int rows, int length, KVCache* cache, int depth);
    void begin_layer(int l, const floatX* branch, int64_t n);
    void mlp(int l, int64_t n);
    void head(float dloss);
    void backward(Input input);
    bool trains_below(int l, Place place) const;
    std::string nonfinite_weight_or_activation() const;
    void upload(const int* host_inputs, const int* host_targets);
    void require_training() const;
    void add_up(Comm& comm);
    StepSums finish(Comm* comm);
    StepSums sum_of_all(Comm* comm, const std::vector<PartSums>& parts, const std::vector<double>& terms) const;
    void gather(Comm& comm, const Layout::Block& block);

    const Mode mode;
    const int lowest;                        // place of the first trained tensor: the backward pass ends there
    const int64_t N;                         // tokens of a micro-batch
    const int64_t chunk;                     // rows of logits held at once
    const float rms_eps;                     // of the two norms that every layer has, and of QK norm
    const Stream stream = nullptr;
    std::vector<size_t> beside;              // frozen, but with a gradient buffer: dW of q, k and v is one matmul, which writes all three

    Arena parameters{"parameters"}, gradients{"gradients"}, activations{"activations"}, scratch{"scratch"};

    float* masters = nullptr;                // master weights that are owned; in the fp32 build all weights, which the passes read
    floatX* rounded = nullptr;               // the weights in floatX; null in the fp32 build
    float* gradient_values = nullptr;        // (layout.with_gradient())
    std::vector<float*> subtrees;            // sums of gradients of finished parts, waiting to be added in the tree: number i sums 2^i parts
    Weights<floatX> w;                       // what the passes read
    Weights<float> w32;                      // master weights of all tensors; the passes read the lambdas there
    Weights<float> g;                        // gradients

    // Activations.
    int* inputs = nullptr;                   // (N)
    int* targets = nullptr;                  // (N)
    int* order = nullptr;                    // (N) positions sorted by token
    floatX* x0 = nullptr;                    // (N, C) the normed embedding
    float* x0_rstd = nullptr;                // (N)
    floatX* x = nullptr;                     // (N, C) the residual stream
    floatX* latents = nullptr;               // (N, C) input of the head
    float* latents_rstd = nullptr;           // (N)
    float* losses = nullptr;                 // (N)
    float* rotary = nullptr;                 // (T, D)
    std::vector<LayerActivations> layers;

    // Scratch.
    floatX* branch = nullptr;                // (N, C) output of a branch, before it is added to the residual stream; its gradient
    floatX* logits = nullptr;                // (chunk, V) and in their place their gradient
    char* attention = nullptr;               // (attention_scratch bytes)
    int* order_scratch = nullptr;            // (V + 1)
    floatX* dx = nullptr;                    // (N, C) gradient of the latents, then of the residual stream
    floatX* dx0 = nullptr;                   // (N, C) gradient of x0 through the lambdas
    floatX* dh = nullptr;                    // (N, C) gradient of h1 or h2
    floatX* dy = nullptr;                    // (N, C) gradient of y, the output of the attention
    floatX* dqkv = nullptr;                  // (N, QKV)
    floatX* df = nullptr;                    // (N, 4C)
    float* sums = nullptr;                   // (2, N), (N, HK)
    float* unwanted = nullptr;               // (HK, 32): where an op writes the gradient of a frozen gate, which nobody reads
    std::vector<Span> own_spans;             // terms of the gradient norm that this process owns
    Span* spans = nullptr;                   // the same on the device
    float* squares = nullptr;                // the sum of squares of each span
    PartSums* part_sums = nullptr;           // (1) of the current part
    PartSums* ended_sums = nullptr;          // (own_parts) of the parts that ended
    float* received = nullptr;               // receive buffer of the reduction: the memory of logits, which is idle at the end of a step
    int64_t received_size = 0;

    // A micro-batch as a captured CUDA graph; it is captured again when a number that the graph holds changes.
    struct MicroBatch {
        Capture capture;
        int64_t valid = 0;                   // targets that are not -1
        double share = 0;
    };
    MicroBatch micro_batch[2];               // an ordinary one, a looped one
    std::optional<Uploads> uploads;
    int64_t last_row = 0;                    // of the latents: the last token that extend() was given
    int ended_parts = 0;                     // of this step
};
