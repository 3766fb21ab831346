// The model. Read forward() and backward() first; everything above them lays out memory.
#include "llmc/gpt.h"
#include <algorithm>
#include <bit>
#include <cmath>
#include <numeric>
#include "llmc/device/device.h"
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/ops/attention.h"
#include "llmc/ops/cross_entropy.h"
#include "llmc/ops/embedding.h"
#include "llmc/ops/matmul.h"
#include "llmc/ops/reduce.h"
#include "llmc/ops/residual.h"
#include "llmc/ops/rotary.h"
#include "llmc/ops/value_embedding.h"

static constexpr int UPLOADS = 16;   // copies to the device in flight: two per micro-batch, inputs and targets

KVCache::KVCache(const GPTConfig& config) : layers(config.n_layer) {
    for (Layer& layer : layers) {
        arena.add(layer.k, int64_t{config.seq_len} * config.kv_width());
        arena.add(layer.v, int64_t{config.seq_len} * config.kv_width());
    }
}

/// Checked before any size is computed from the configuration.
static const GPTConfig& checked(const GPTConfig& config, int B) {
    validate(config);
    require(B >= 1, "gpt: batch is ", B, ", but must be 1 or more");
    require(int64_t{B} * config.seq_len <= (int64_t{1} << 30), "gpt: a micro-batch of ", B, " x ", config.seq_len,
            " tokens is too large; use a smaller --device-batch");
    return config;
}

static constexpr int64_t SPAN = 1 << 18;   // elements of a gradient whose squares one thread block sums

static bool owns(const Layout& layout, const Layout::Term& term) { return term.owner < 0 || term.owner == layout.job.rank; }

/// Spans of the terms that this process owns, in their order.
static std::vector<Span> spans_of(const Layout& layout) {
    std::vector<Span> spans;
    for (const Layout::Term& term : layout.terms())
        for (int64_t at = 0; owns(layout, term) && at < term.count; at += SPAN) spans.push_back({term.begin + at, std::min(SPAN, term.count - at)});
    return spans;
}

GPT::GPT(const GPTConfig& c, int batch, Mode mode_, const Trained& trained_, const Job& job)
    : config(checked(c, batch)), B(batch), T(c.seq_len), tensors(tensor_table(c)), trained(trained_), layout(c, tensors, trained_, job), mode(mode_),
      lowest(lowest_trained(tensors, trained_, c.n_layer)), N(int64_t{batch} * c.seq_len), chunk(logits_rows(N, c.vocab_size)),
      rms_eps(norm_eps(c, Norm::rms_norm)), layers(c.n_layer) {
    const int64_t C = c.n_embd, V = c.vocab_size, H = c.n_head, HK = c.n_kv_head, D = c.head_size(), QKV = c.qkv_width();

    constexpr bool rounds = sizeof(floatX) < sizeof(float);
    parameters.add(masters, rounds ? layout.owned_size() : layout.size());
    if (rounds) parameters.add(rounded, layout.size());

    for (size_t i = 0; i < tensors.size(); i++)
        if (is_of_qkv(tensors[i]) && layout.has_gradient(i) && !trained(tensors[i])) beside.push_back(i);
    require(mode == Mode::evaluate || std::any_of(tensors.begin(), tensors.end(), trained), "gpt: nothing trains: every tensor of the model is frozen");
    if (mode == Mode::train) {
        gradients.add(gradient_values, layout.with_gradient());
        subtrees.resize(std::bit_width(static_cast<unsigned>(job.own_parts())) - 1u);
        for (float*& subtree : subtrees) gradients.add(subtree, layout.with_gradient());
    }

    activations.add(inputs, N);
    activations.add(targets, N);
    activations.add(x0, N * C);
    activations.add(x0_rstd, N);
    activations.add(x, N * C);
    activations.add(latents, N * C);
    activations.add(latents_rstd, N);
    activations.add(losses, N);
    activations.add(rotary, T * D);
    for (int l = 0; l < c.n_layer; l++) {
        LayerActivations& a = layers[l];
        if (c.norm_before[l] != Norm::none) {
            activations.add(a.seam, N * C);
            activations.add(a.seam_rstd, N);
        }
        if (c.lambdas) activations.add(a.prev, N * C);
        activations.add(a.h1, N * C);
        activations.add(a.rstd1, N);
        activations.add(a.qkv, N * QKV);
        if (c.qk_norm) activations.add(a.qk_rstd, N * (H + HK));
        if (c.value_embeds[l]) activations.add(a.gate, N * HK);
        activations.add(a.y, N * C);
        activations.add(a.lse, N * H);
        activations.add(a.h2, N * C);
        activations.add(a.rstd2, N);
        activations.add(a.f, N * 4 * C);
        activations.add(a.activated, N * 4 * C);
    }

    scratch.add(branch, N * C);
    // The logits' memory also receives the gradients of other processes at the end of a step: it must hold a piece from each, and all lambdas.
    const int64_t least = job.processes == 1 ? 0 : job.processes * std::max(TENSOR_ALIGNMENT, layout.replicated.segment);
    const int64_t logits_size = std::max(chunk * V, least * static_cast<int64_t>(sizeof(float) / sizeof(floatX)));
    received_size = logits_size * static_cast<int64_t>(sizeof(floatX)) / static_cast<int64_t>(sizeof(float));
    scratch.add(logits, logits_size);
    scratch.add(attention, static_cast<int64_t>(attention_scratch(B, T, H, HK, D)));
    if (mode == Mode::train) {
        scratch.add(order, N);
        scratch.add(order_scratch, V + 1);
        scratch.add(dx, N * C);
        if (c.lambdas) scratch.add(dx0, N * C);
        scratch.add(dh, N * C);
        scratch.add(dy, N * C);
        scratch.add(dqkv, N * QKV);
        scratch.add(df, N * 4 * C);
        scratch.add(sums, N * std::max<int64_t>(2, HK));
        if (!trained.only.empty()) scratch.add(unwanted, HK * VE_GATE_CHANNELS);
        own_spans = spans_of(layout);
        scratch.add(spans, static_cast<int64_t>(own_spans.size()));
        scratch.add(squares, static_cast<int64_t>(own_spans.size()));
        scratch.add(part_sums, 1);
        scratch.add(ended_sums, job.own_parts());
    }
}

/// Points the members of `weights` at the tensors; `at` returns a tensor's address, by its index in the table.
template <class Element, class At>
static void bind(Weights<Element>& weights, const GPTConfig& config, const std::vector<Tensor>& tensors, At at) {
    using Layer = typename Weights<Element>::Layer;
    weights.layers.assign(config.n_layer, Layer{});
    for (size_t i = 0; i < tensors.size(); i++) {
        const Tensor& tensor = tensors[i];
        std::string name = tensor.spec->name;
        Element* address = at(i);
        if (name == "wte") weights.wte = address;
        if (name == "lm_head" || (name == "wte" && config.tied)) weights.head = address;
        if (name == "resid_lambdas") weights.resid_lambdas = address;
        if (name == "x0_lambdas") weights.x0_lambdas = address;
        if (tensor.layer < 0) continue;
        Layer& layer = weights.layers[tensor.layer];
        if (name == "q") layer.qkv = address;
        if (name == "proj") layer.proj = address;
        if (name == "fc") layer.fc = address;
        if (name == "fc_proj") layer.fc_proj = address;
        if (name == "ve") layer.ve = address;
        if (name == "ve_gate") layer.ve_gate = address;
    }
}

void GPT::allocate() {
    parameters.allocate();
    gradients.allocate();
    activations.allocate();
    scratch.allocate();

    floatX* read = rounded ? rounded : reinterpret_cast<floatX*>(masters);
    bind(w, config, tensors, [&](size_t i) { return read + layout.offset(i); });
    bind(w32, config, tensors, [&](size_t i) { return master(tensors[i]); });
    bind(g, config, tensors, [&](size_t i) { return mode == Mode::train && layout.has_gradient(i) ? gradient_values + layout.offset(i) : nullptr; });
    if (unwanted)
        for (auto& layer : g.layers)
            if (!layer.ve_gate) layer.ve_gate = unwanted;
    received = reinterpret_cast<float*>(logits);
    if (spans) copy_to_device(spans, own_spans.data(), own_spans.size() * sizeof(Span), stream);

    uploads.emplace(static_cast<size_t>(N) * sizeof(int), UPLOADS);
    std::vector<float> table(static_cast<size_t>(T) * config.head_size());
    rotary_table(table.data(), T, config.head_size());
    copy_to_device(rotary, table.data(), table.size() * sizeof(float), stream);
}

void GPT::initialize_weights(uint64_t seed) {
    ParallelErrors errors;
#pragma omp parallel for schedule(dynamic)
    for (size_t i = 0; i < tensors.size(); i++) errors.run([&] {   // in any order: each tensor has its own generator
        if (owned(tensors[i]).count == 0) return;
        std::vector<float> values(tensors[i].numel);
        initialize(values.data(), tensors[i], config, seed);
        set_tensor(tensors[i], values.data());
    });
    errors.rethrow();
}

void GPT::set_tensor(const Tensor& tensor, const float* values) {
    const Piece own = owned(tensor);
    if (own.count > 0) copy_to_device(master(tensor), values + own.begin, own.count * sizeof(float), stream);
    round_weights(tensor);
    device_wait(stream);   // threads that initialize weights have streams of their own
}

void GPT::round_weights(const Tensor& tensor) {
    if (const int64_t n = owned(tensor).count; rounded && n > 0) cast(weight(tensor), master(tensor), n, stream);
}

void GPT::get_tensor(float* values, const Tensor& tensor) const {
    if (const Piece own = owned(tensor); own.count > 0) copy_to_host(values + own.begin, master(tensor), own.count * sizeof(float), stream);
}

/// All-gather of a block of the weights that the passes read, in place.
void GPT::gather(Comm& comm, const Layout::Block& block) {
    if (block.segment == 0) return;
    if (rounded) comm.gather(rounded + block.begin, block.segment * static_cast<int64_t>(sizeof *rounded), stream);
    else comm.gather(masters + block.begin, block.segment * static_cast<int64_t>(sizeof *masters), stream);
}

void GPT::gather_updated(Comm& comm) {
    if (layout.job.processes == 1) return;
    Range phase("gather");
    for (const Layout::Block* block : {&layout.sliced, &layout.whole}) gather(comm, *block);
}

void GPT::gather_weights(Comm& comm) {
    if (layout.job.processes == 1) return;
    gather_updated(comm);
    gather(comm, layout.frozen);
    comm.wait(stream);
}

float* GPT::master(const Tensor& tensor) const {
    const size_t i = index(tensor);
    return masters + (rounded ? layout.owned_offset(i) : layout.offset(i) + layout.owned(i).begin);
}

floatX* GPT::weight(const Tensor& tensor) const {
    const size_t i = index(tensor);
    return rounded ? rounded + layout.offset(i) + layout.owned(i).begin : nullptr;
}

float* GPT::gradient(const Tensor& tensor) const {
    const size_t i = index(tensor);
    return mode == Mode::evaluate || frozen(tensor) ? nullptr : gradient_values + layout.offset(i) + layout.owned(i).begin;
}

void GPT::require_training() const { require(mode == Mode::train, "gpt: there are no gradients in a model that only evaluates"); }

void GPT::upload(const int* host_inputs, const int* host_targets) {
    uploads->copy(inputs, host_inputs, N * sizeof(int), stream);
    uploads->copy(targets, host_targets, N * sizeof(int), stream);
}

// ------------------------------------------------------------------------------------------------------ forward

/// The input of the first layer: token embeddings, or the latents of the previous pass; normed.
void GPT::embed(Input input, int64_t n) {
    const int C = config.n_embd;
    if (input == Input::tokens)
        embedding_forward(x0, inputs, w.wte, n, C, stream);
    else
        copy_on_device(x0, latents, n * C * sizeof(floatX), stream);
    norm_forward(x0, x0_rstd, x0, n, C, config.norm_wte, norm_eps(config, config.norm_wte), stream);
    copy_on_device(x, x0, n * C * sizeof(floatX), stream);
}

/// Adds the output of the layer before to the residual stream, and applies the layer's first norm.
void GPT::begin_layer(int l, const floatX* from_before, int64_t n) {
    const int C = config.n_embd;
    LayerActivations& a = layers[l];
    if (a.seam) {
        if (from_before) residual_add(x, from_before, n * C, stream);
        from_before = nullptr;
        norm_forward(a.seam, a.seam_rstd, x, n, C, config.norm_before[l], norm_eps(config, config.norm_before[l]), stream);
        copy_on_device(x, a.seam, n * C * sizeof(floatX), stream);
    }
    if (config.lambdas)
        mix_norm_forward(a.h1, a.rstd1, a.prev, x, from_before, x0, w32.resid_lambdas + l, w32.x0_lambdas + l, n, C, rms_eps,
                         stream);
    else
        add_norm_forward(a.h1, a.rstd1, x, from_before, n, C, 1, rms_eps, stream);
}

/// From the attention's output a.y to the output of the MLP in `branch`, which the next layer adds to the residual stream.
void GPT::mlp(int l, int64_t n) {
    const int C = config.n_embd;
    LayerActivations& a = layers[l];
    matmul_forward(branch, a.y, w.layers[l].proj, n, C, C, stream);
    add_norm_forward(a.h2, a.rstd2, x, branch, n, C, static_cast<float>(config.attn_scale[l]), rms_eps, stream);
    matmul_forward(a.f, a.h2, w.layers[l].fc, n, C, 4 * C, stream);
    activation_forward(a.activated, a.f, n * 4 * C, config.activation, stream);
    matmul_forward(branch, a.activated, w.layers[l].fc_proj, n, 4 * C, C, stream);
}

/// cache: null, and the tokens are `rows` rows of `length`; or with a cache one row, which continues the cached sequence and is appended
/// to it. depth: the number of layers to run.
void GPT::forward(Input input, int rows, int length, KVCache* cache, int depth) {
    const int C = config.n_embd, H = config.n_head, HK = config.n_kv_head, D = config.head_size();
    const int64_t n = int64_t{rows} * length;
    const int before = cache ? cache->length : 0;
    Range phase("forward");
    embed(input, n);
    for (int l = 0; l < depth; l++) {
        Range layer("forward of layer", l);
        LayerActivations& a = layers[l];
        auto& weights = w.layers[l];
        begin_layer(l, l == 0 ? nullptr : branch, n);
        matmul_forward(a.qkv, a.h1, weights.qkv, n, C, config.qkv_width(), stream);
        if (weights.ve) value_embedding_forward(a.qkv, a.gate, a.h1, inputs, weights.ve, weights.ve_gate, n, C, H, HK, D, stream);
        rotary_forward(a.qkv, a.qk_rstd, rotary, rows, length, H, HK, D, before, config.qk_norm, rms_eps, stream);
        if (cache)
            attention_cached(a.y, cache->layers[l].k, cache->layers[l].v, a.qkv, length, T, H, HK, D, before, config.windows[l],
                             stream);
        else
            attention_forward(a.y, a.lse, attention, a.qkv, rows, length, H, HK, D, config.windows[l], stream);
        mlp(l, n);
    }
    if (depth > 0) residual_add(x, branch, n * C, stream);
    norm_forward(latents, latents_rstd, x, n, C, config.norm_lm_head, norm_eps(config, config.norm_lm_head), stream);
}

static constexpr float LOSSES_ONLY = 0;   // for head(): no gradients

/// Losses of all rows, one chunk of the logits at a time; unless dloss is LOSSES_ONLY, also the gradient of the latents in dx, and that
/// of the head.
void GPT::head(float dloss) {
    const int C = config.n_embd, V = config.vocab_size;
    Range phase("head");
    for (int64_t row = 0; row < N; row += chunk) {
        int64_t n = std::min(chunk, N - row);
        matmul_forward(logits, latents + row * C, w.head, n, C, V, stream);
        cross_entropy(losses + row, logits, targets + row, n, V, dloss, static_cast<float>(config.softcap), stream);
        if (dloss == LOSSES_ONLY) continue;
        if (trains_below(-1, Place::head)) matmul_backward_input(dx + row * C, logits, w.head, n, C, V, stream);
        if (g.head) matmul_backward_weight(g.head, logits, latents + row * C, n, C, V, stream);
    }
}

// ----------------------------------------------------------------------------------------------------- backward

/// Whether any tensor trains that the forward pass uses before this place: only then the backward pass continues below it.
bool GPT::trains_below(int l, Place place) const { return lowest < place_of(l, place, config.n_layer); }

/// From the gradient of the latents in dx to the gradients of all weights that train; it stops at the lowest of them.
void GPT::backward(Input input) {
    const int C = config.n_embd, H = config.n_head, HK = config.n_kv_head, D = config.head_size(), QKV = config.qkv_width();
    Range phase("backward");
    if (!trains_below(-1, Place::head)) return;
    norm_backward(dx, dx, latents, latents_rstd, N, C, config.norm_lm_head, stream);
    if (config.lambdas) device_zero(dx0, N * C * sizeof(floatX), stream);
    for (int l = config.n_layer - 1; l >= 0; l--) {
        Range layer("backward of layer", l);
        LayerActivations& a = layers[l];
        auto& weights = w.layers[l];
        auto& grads = g.layers[l];
        // MLP: dx is the gradient of the residual stream after it, and so that of the MLP's output.
        if (grads.fc_proj) matmul_backward_weight(grads.fc_proj, dx, a.activated, N, 4 * C, C, stream);
        if (!trains_below(l, Place::fc_proj)) return;
        matmul_backward_input(df, dx, weights.fc_proj, N, 4 * C, C, stream);
        activation_backward(df, df, a.f, N * 4 * C, config.activation, stream);
        if (grads.fc) matmul_backward_weight(grads.fc, df, a.h2, N, C, 4 * C, stream);
        if (!trains_below(l, Place::fc)) return;
        matmul_backward_input(dh, df, weights.fc, N, C, 4 * C, stream);
        const float scale = static_cast<float>(config.attn_scale[l]);
        add_norm_backward(dx, scale == 1 ? nullptr : branch, dh, a.h2, a.rstd2, N, C, scale, stream);
        // Attention.
        const floatX* dproj = scale == 1 ? dx : branch;
        if (grads.proj) matmul_backward_weight(grads.proj, dproj, a.y, N, C, C, stream);
        if (!trains_below(l, Place::proj)) return;
        matmul_backward_input(dy, dproj, weights.proj, N, C, C, stream);
        attention_backward(dqkv, attention, dy, a.y, a.lse, a.qkv, B, T, H, HK, D, config.windows[l], stream);
        rotary_backward(dqkv, a.qkv, a.qk_rstd, rotary, B, T, H, HK, D, config.qk_norm, stream);
        if (grads.qkv) matmul_backward_weight(grads.qkv, dqkv, a.h1, N, C, QKV, stream);
        if (!weights.ve && !trains_below(l, Place::qkv)) return;
        matmul_backward_input(dh, dqkv, weights.qkv, N, C, QKV, stream);
        if (weights.ve)
            value_embedding_backward(dh, grads.ve, grads.ve_gate, sums, dqkv, a.gate, a.h1, inputs, order, weights.ve, weights.ve_gate,
                                     N, C, H, HK, D, stream);
        if (!trains_below(l, Place::qkv)) return;
        // The beginning of the layer.
        if (config.lambdas)
            mix_norm_backward(dx, dx0, g.resid_lambdas + l, g.x0_lambdas + l, sums, dh, a.h1, a.rstd1, a.prev, x0,
                              w32.resid_lambdas + l, w32.x0_lambdas + l, N, C, stream);
        else
            add_norm_backward(dx, nullptr, dh, a.h1, a.rstd1, N, C, 1, stream);
        if (a.seam) norm_backward(dx, dx, a.seam, a.seam_rstd, N, C, config.norm_before[l], stream);
    }
    if (input == Input::latents || !g.wte) return;   // latents are detached; a frozen embedding needs no gradient
    if (config.lambdas) residual_add(dx, dx0, N * C, stream);
    norm_backward(dx, dx, x0, x0_rstd, N, C, config.norm_wte, stream);
    embedding_backward(g.wte, dx, inputs, order, N, C, stream);
}

// ------------------------------------------------------------------------------------------------ what callers use

void GPT::begin_step() {
    require_training();
    ended_parts = 0;
    device_zero(gradient_values, layout.with_gradient() * sizeof(float), stream);
    device_zero(part_sums, sizeof *part_sums, stream);
}

void GPT::train_micro_batch(const int* host_inputs, const int* host_targets, double share, bool loop) {
    require_training();
    const int64_t valid = N - std::count(host_targets, host_targets + N, -1);
    if (valid == 0) return;
    upload(host_inputs, host_targets);
    MicroBatch& kept = micro_batch[loop];
    if (kept.valid != valid || kept.share != share) kept.capture.forget();
    kept.valid = valid;
    kept.share = share;
    kept.capture.run(stream, [&] {
        const Input input = loop ? Input::latents : Input::tokens;
        if (!loop) token_order(order, order_scratch, inputs, N, config.vocab_size, stream);
        forward(input, B, T, nullptr);
        head(static_cast<float>(share / static_cast<double>(valid)));
        backward(input);
        double *total = loop ? &part_sums->loop_loss : &part_sums->loss, *last = loop ? &part_sums->loop_last : &part_sums->last;
        mean_loss(total, last, losses, N, static_cast<double>(valid), share, stream);
    });
}

/// Sums the parts in a binary tree, as a binary counter carries: bit i of ended_parts is set when subtrees[i] holds a sum of 2^i parts. A part that
/// ends is added to the part before it, their sum to the sum of the two before them, and so on.
void GPT::end_part() {
    require_training();
    require(ended_parts < layout.job.own_parts(), "gpt: a step has ", layout.job.own_parts(), " parts here, and all have ended");
    const int64_t n = layout.with_gradient();
    size_t level = 0;
    for (; ended_parts >> level & 1; level++) add(gradient_values, subtrees[level], n, stream);
    copy_on_device(ended_sums + ended_parts, part_sums, sizeof *part_sums, stream);
    if (++ended_parts == layout.job.own_parts()) return;
    device_zero(part_sums, sizeof *part_sums, stream);
    copy_on_device(subtrees[level], gradient_values, n * sizeof(float), stream);
    device_zero(gradient_values, n * sizeof(float), stream);
}

/// Reduce-scatter of the gradients: those that this process owns become the sum over all processes.
void GPT::add_up(Comm& comm) {
    const int P = layout.job.processes, rank = layout.job.rank;
    if (const int64_t n = layout.replicated.segment; n > 0) {
        float* gradient = gradient_values + layout.replicated.begin;
        copy_on_device(received + rank * n, gradient, n * sizeof(float), stream);
        comm.gather(received, n * static_cast<int64_t>(sizeof(float)), stream);
        tree_sum(gradient, received, P, n, stream);
    }
    const int64_t most = received_size / P / TENSOR_ALIGNMENT * TENSOR_ALIGNMENT;
    for (const Layout::Block* block : {&layout.sliced, &layout.whole}) {
        float* gradient = gradient_values + block->begin;
        for (int64_t at = 0; at < block->segment; at += most) {
            const int64_t n = std::min(most, block->segment - at);
            comm.exchange(received, gradient, block->segment, at, n, stream);
            tree_sum(gradient + rank * block->segment + at, received, P, n, stream);
        }
    }
}

StepSums GPT::end_step() {
    require(layout.job.processes == 1, "gpt: end_step() of ", layout.job.processes, " processes needs their Comm; call end_step(comm)");
    return finish(nullptr);
}

StepSums GPT::end_step(Comm& comm) { return finish(&comm); }

StepSums GPT::finish(Comm* comm) {
    require_training();
    Range phase("sums");
    end_part();
    require(ended_parts == layout.job.own_parts(), "gpt: a step has ", layout.job.own_parts(), " parts here, and only ", ended_parts, " have ended");
    for (size_t i : beside) device_zero(gradient_values + layout.offset(i), tensors[i].numel * sizeof(float), stream);
    if (layout.job.processes > 1) add_up(*comm);
    sums_of_squares(squares, gradient_values, spans, static_cast<int>(own_spans.size()), stream);
    if (comm) comm->wait(stream);

    std::vector<PartSums> parts(static_cast<size_t>(layout.job.own_parts()));
    std::vector<float> of_spans(own_spans.size());
    copy_to_host(parts.data(), ended_sums, parts.size() * sizeof(PartSums), stream);
    copy_to_host(of_spans.data(), squares, of_spans.size() * sizeof(float), stream);
    std::vector<double> terms;   // the owned ones
    auto next = of_spans.begin();
    for (const Layout::Term& term : layout.terms()) {
        if (!owns(layout, term)) continue;
        const int64_t count = (term.count + SPAN - 1) / SPAN;
        terms.push_back(std::accumulate(next, next + count, 0.0));
        next += count;
    }
    return sum_of_all(comm, parts, terms);
}

/// Sums the results of all processes, in the order of parts and of terms.
StepSums GPT::sum_of_all(Comm* comm, const std::vector<PartSums>& parts, const std::vector<double>& terms) const {
    const size_t P = static_cast<size_t>(layout.job.processes);
    size_t of_all = 0;
    std::vector<size_t> owned_terms(P);
    for (const Layout::Term& term : layout.terms()) term.owner < 0 ? of_all++ : owned_terms[static_cast<size_t>(term.owner)]++;
    const size_t most_terms = of_all + *std::max_element(owned_terms.begin(), owned_terms.end());

    std::vector<PartSums> all_parts(P * parts.size());
    std::vector<double> all_terms(P * most_terms), mine(terms);
    mine.resize(most_terms);
    if (comm) {
        comm->collect(all_parts.data(), parts.data(), static_cast<int64_t>(parts.size() * sizeof(PartSums)));
        comm->collect(all_terms.data(), mine.data(), static_cast<int64_t>(most_terms * sizeof(double)));
    } else {
        all_parts = parts;
        all_terms = mine;
    }

    StepSums total;
    for (const PartSums& part : all_parts) {
        total.loss += part.loss;
        total.loop_loss += part.loop_loss;
    }
    total.last = all_parts.back().last;
    total.loop_last = all_parts.back().loop_last;
    double squares_of_all = 0;
    std::vector<size_t> taken(P);
    for (const Layout::Term& term : layout.terms()) {
        const size_t owner = static_cast<size_t>(std::max(term.owner, 0));
        squares_of_all += all_terms[owner * most_terms + taken[owner]++];
        if (term.owner < 0)
            for (size_t rank = 1; rank < P; rank++) taken[rank]++;
    }
    total.squares = static_cast<float>(squares_of_all);
    return total;
}

void GPT::evaluate_micro_batch(float* host_out, const int* host_inputs, const int* host_targets) {
    upload(host_inputs, host_targets);
    forward(Input::tokens, B, T, nullptr);
    head(LOSSES_ONLY);
    copy_to_host(host_out, losses, N * sizeof(float), stream);
}

static void floats_to_host(float* host, const floatX* device, int64_t n, Stream stream) {
    std::vector<floatX> copied(n);
    copy_to_host(copied.data(), device, n * sizeof(floatX), stream);
    std::transform(copied.begin(), copied.end(), host, [](floatX value) { return to_float(value); });
}

void GPT::residual_stream(float* residual, float* normed, const int* host_inputs, int depth) {
    require(depth >= 0 && depth <= config.n_layer, "gpt: the residual stream after ", depth, " layers, of a model that has ",
            config.n_layer, "; ask for 0 to ", config.n_layer);
    copy_to_device(inputs, host_inputs, N * sizeof(int), stream);
    forward(Input::tokens, B, T, nullptr, depth);
    floats_to_host(residual, x, N * config.n_embd, stream);
    floats_to_host(normed, latents, N * config.n_embd, stream);
}

void GPT::extend(KVCache& cache, const int* tokens, int count) {
    require(count >= 1 && cache.length + count <= config.seq_len, "gpt: a sequence of ", cache.length, " tokens cannot grow by ", count,
            ": the model's context is ", config.seq_len);
    for (int done = 0; done < count;) {
        int n = static_cast<int>(std::min<int64_t>(count - done, N));
        copy_to_device(inputs, tokens + done, n * sizeof(int), stream);
        forward(Input::tokens, 1, n, &cache);
        cache.length += n;
        last_row = n - 1;
        done += n;
    }
}

void GPT::row_logits(float* out, int64_t row) {
    const int C = config.n_embd, V = config.vocab_size;
    matmul_forward(logits, latents + row * C, w.head, 1, C, V, stream);
    floats_to_host(out, logits, V, stream);
    if (const float cap = static_cast<float>(config.softcap); cap > 0)
        for (int v = 0; v < V; v++) out[v] = cap * std::tanh(out[v] / cap);
}

void GPT::next_logits(float* out) { row_logits(out, last_row); }

// --------------------------------------------------------------------------------------------------- diagnosis

std::string GPT::find_nonfinite(const int* host_inputs, const int* host_targets, bool loop) {
    upload(host_inputs, host_targets);
    forward(Input::tokens, B, T, nullptr);
    std::string found = nonfinite_weight_or_activation();
    if (found.empty() && loop) {
        forward(Input::latents, B, T, nullptr);
        found = nonfinite_weight_or_activation();
    }
    if (!found.empty()) return found;
    head(LOSSES_ONLY);
    if (first_nonfinite(losses, N, stream) >= 0) return "the logits, after the last layer";
    for (auto tensor = tensors.rbegin(); tensor != tensors.rend(); ++tensor)
        if (gradient(*tensor) && first_nonfinite(gradient(*tensor), owned(*tensor).count, stream) >= 0)
            return concat("the gradient of ", tensor->name, tensor->layer < 0 ? "" : concat(" (layer ", tensor->layer, ")"));
    return "";
}

std::string GPT::nonfinite_weight_or_activation() const {
    const int64_t C = config.n_embd;
    auto bad_weights = [&](int layer, const char* except) -> std::string {
        for (const Tensor& tensor : tensors)
            if (tensor.layer == layer && tensor.name != except && first_nonfinite(master(tensor), owned(tensor).count, stream) >= 0)
                return concat("the weights ", tensor.name, layer < 0 ? "" : concat(" (layer ", layer, ")"));
        return "";
    };
    std::string found = bad_weights(-1, "lm_head");
    if (!found.empty()) return found;
    if (first_nonfinite(x0, N * C, stream) >= 0) return "the embedded tokens, before layer 0";
    for (int l = 0; l < config.n_layer; l++) {
        found = bad_weights(l, "");
        if (!found.empty()) return found;
        const LayerActivations& a = layers[l];
        struct { const char* name; const floatX* values; int64_t n; } kept[] = {
            {"seam (the norm before the layer)", a.seam, N * C},
            {"prev (the residual stream before the layer)", a.prev, N * C},
            {"h1 (the attention's input)", a.h1, N * C},
            {"qkv (queries, keys and values)", a.qkv, N * config.qkv_width()},
            {"y (the attention's output)", a.y, N * C},
            {"h2 (the MLP's input)", a.h2, N * C},
            {"f (the MLP before its activation)", a.f, N * 4 * C},
            {"a (the MLP after its activation)", a.activated, N * 4 * C}};
        for (auto& [name, values, n] : kept)
            if (values && first_nonfinite(values, n, stream) >= 0) return concat("the activations ", name, " of layer ", l);
    }
    if (first_nonfinite(latents, N * C, stream) >= 0) return "the latents, after the last layer";
    return bad_weights(-1, "");
}
