// The model and its derivative in plain float64 loops, which whole passes of the engine are checked against. It reads from top to bottom: each
// op with its backward, in the order of the forward pass; then the model, whose backward pass is its forward pass from the last line to the first.
//
// Letters: N = B T rows (batch, time), C channels, OC output channels, H heads, HK key/value heads, D head size, V vocabulary.
// Weights are (out, in). A backward function takes dout, the gradient of the loss with respect to the op's output, and the op's inputs. It returns
// the gradient of the input; what several rows or ops contribute to is marked += and added to.
#pragma once
#include <algorithm>
#include <cmath>
#include <map>
#include <numbers>
#include <string>
#include <vector>
#include "llmc/config.h"
#include "llmc/ops/value_embedding.h"

namespace {   // each test file that includes this has its own copy

using Doubles = std::vector<double>;
using Gradients = std::map<std::string, Doubles>;   // by the name of the weight

int rows_of(const Doubles& x, int width) { return static_cast<int>(x.size()) / width; }

/// out (N, C): out[n] = wte[idx[n]],  wte (V, C)
Doubles embedding_forward(const Doubles& wte, const std::vector<int>& idx, int C) {
    Doubles out;
    for (int token : idx) out.insert(out.end(), &wte[token * C], &wte[token * C] + C);
    return out;
}

/// dwte[idx[n]] += dout[n]: the row of a token adds up the gradients of all its positions.
void embedding_backward(Doubles& dwte, const Doubles& dout, const std::vector<int>& idx, int C) {
    for (size_t n = 0; n < idx.size(); n++)
        for (int c = 0; c < C; c++) dwte[idx[n] * C + c] += dout[n * C + c];
}

/// out = (x - mean) rstd of each row; rms_norm subtracts no mean. x (N, C), or (N, H, D) with D for C. rstd: null, or where to put it
Doubles norm_forward(Doubles x, int C, Norm kind, double eps, Doubles* rstds = nullptr) {
    if (kind == Norm::none) return x;
    if (kind == Norm::layer_norm) eps = 1e-6;
    for (int n = 0; n < rows_of(x, C); n++) {
        double mean = 0, variance = 0;
        if (kind == Norm::layer_norm)
            for (int c = 0; c < C; c++) mean += x[n * C + c] / C;
        for (int c = 0; c < C; c++) variance += std::pow(x[n * C + c] - mean, 2) / C;
        const double rstd = 1 / std::sqrt(variance + eps);
        for (int c = 0; c < C; c++) x[n * C + c] = (x[n * C + c] - mean) * rstd;
        if (rstds) rstds->push_back(rstd);
    }
    return x;
}

/// With g = dout and y = out: dx = rstd (g - mean_c(g) - y mean_c(g y)); rms_norm has no mean, and so no mean_c(g).
Doubles norm_backward(const Doubles& dout, const Doubles& x, int C, Norm kind, double eps) {
    if (kind == Norm::none) return dout;
    Doubles rstd, dx(x.size());
    const Doubles out = norm_forward(x, C, kind, eps, &rstd);
    for (int n = 0; n < rows_of(x, C); n++) {
        double mean_g = 0, mean_gy = 0;
        for (int c = 0; c < C; c++) {
            if (kind == Norm::layer_norm) mean_g += dout[n * C + c] / C;
            mean_gy += dout[n * C + c] * out[n * C + c] / C;
        }
        for (int c = 0; c < C; c++) dx[n * C + c] = rstd[n] * (dout[n * C + c] - mean_g - out[n * C + c] * mean_gy);
    }
    return dx;
}

/// out = resid_lambda x + x0_lambda x0: the residual stream x is mixed with the input of the first layer, x0
Doubles mix_forward(const Doubles& x, const Doubles& x0, double resid_lambda, double x0_lambda) {
    Doubles out(x.size());
    for (size_t i = 0; i < x.size(); i++) out[i] = resid_lambda * x[i] + x0_lambda * x0[i];
    return out;
}

/// dx0 +=, dresid_lambda +=, dx0_lambda +=
Doubles mix_backward(Doubles& dx0, double& dresid_lambda, double& dx0_lambda, const Doubles& dout, const Doubles& x, const Doubles& x0,
                     double resid_lambda, double x0_lambda) {
    Doubles dx(x.size());
    for (size_t i = 0; i < x.size(); i++) {
        dx[i] = resid_lambda * dout[i];
        dx0[i] += x0_lambda * dout[i];
        dresid_lambda += x[i] * dout[i];
        dx0_lambda += x0[i] * dout[i];
    }
    return dx;
}

/// out (N, OC) = x (N, C) w^T,  w (OC, C)
Doubles matmul_forward(const Doubles& x, const Doubles& w, int C, int OC) {
    const int N = rows_of(x, C);
    Doubles out(N * OC);
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++)
            for (int c = 0; c < C; c++) out[n * OC + o] += x[n * C + c] * w[o * C + c];
    return out;
}

/// dx (N, C) = dout (N, OC) w
Doubles matmul_backward_input(const Doubles& dout, const Doubles& w, int C, int OC) {
    const int N = rows_of(dout, OC);
    Doubles dx(N * C);
    for (int n = 0; n < N; n++)
        for (int o = 0; o < OC; o++)
            for (int c = 0; c < C; c++) dx[n * C + c] += dout[n * OC + o] * w[o * C + c];
    return dx;
}

/// dw (OC, C) += dout^T x
void matmul_backward_weight(Doubles& dw, const Doubles& dout, const Doubles& x, int C, int OC) {
    for (int n = 0; n < rows_of(x, C); n++)
        for (int o = 0; o < OC; o++)
            for (int c = 0; c < C; c++) dw[o * C + c] += dout[n * OC + o] * x[n * C + c];
}

/// 2 sigmoid(h . w): h the first VE_GATE_CHANNELS channels of a row, w those of a head's gate
double gate_of(const double* h, const double* w) {
    double sum = 0;
    for (int i = 0; i < VE_GATE_CHANNELS; i++) sum += h[i] * w[i];
    return 2 / (1 + std::exp(-sum));
}

/// v[n,g] += gate[n,g] ve[idx[n],g];  v (N, HK, D), h (N, C), ve (V, HK, D), w (HK, VE_GATE_CHANNELS)
void value_embedding_forward(Doubles& v, const Doubles& h, const std::vector<int>& idx, const Doubles& ve, const Doubles& w, int C, int HK, int D) {
    for (size_t n = 0; n < idx.size(); n++)
        for (int g = 0; g < HK; g++) {
            const double gate = gate_of(&h[n * C], &w[g * VE_GATE_CHANNELS]);
            for (int d = 0; d < D; d++) v[(n * HK + g) * D + d] += gate * ve[(idx[n] * HK + g) * D + d];
        }
}

/// dh +=, dve +=, dw +=; the gradient of v passes through unchanged. (2 sigmoid)' = gate (1 - gate / 2)
void value_embedding_backward(Doubles& dh, Doubles& dve, Doubles& dw, const Doubles& dv, const Doubles& h, const std::vector<int>& idx,
                              const Doubles& ve, const Doubles& w, int C, int HK, int D) {
    for (size_t n = 0; n < idx.size(); n++)
        for (int g = 0; g < HK; g++) {
            const double gate = gate_of(&h[n * C], &w[g * VE_GATE_CHANNELS]);
            double dgate = 0;
            for (int d = 0; d < D; d++) {
                dgate += ve[(idx[n] * HK + g) * D + d] * dv[(n * HK + g) * D + d];
                dve[(idx[n] * HK + g) * D + d] += gate * dv[(n * HK + g) * D + d];
            }
            const double dsum = dgate * gate * (1 - gate / 2);
            for (int i = 0; i < VE_GATE_CHANNELS; i++) {
                dh[n * C + i] += dsum * w[g * VE_GATE_CHANNELS + i];
                dw[g * VE_GATE_CHANNELS + i] += dsum * h[n * C + i];
            }
        }
}

/// Turns the pairs (i, i + D/2) of every head by direction times position times frequency. x (N, H, D)
Doubles rotate(Doubles x, int T, int H, int D, double direction) {
    const int half = D / 2;
    for (int row = 0; row < rows_of(x, D); row++)
        for (int i = 0; i < half; i++) {
            const int position = row / H % T;
            const double angle = direction * position * std::pow(10000.0, -2.0 * i / D);
            double &a = x[row * D + i], &b = x[row * D + half + i];
            const double old_a = a, old_b = b;
            a = old_a * std::cos(angle) - old_b * std::sin(angle);
            b = old_a * std::sin(angle) + old_b * std::cos(angle);
        }
    return x;
}

Doubles rotary_forward(const Doubles& x, int T, int H, int D) { return rotate(x, T, H, D, -1); }
/// The transpose of a rotation is the rotation back.
Doubles rotary_backward(const Doubles& dout, int T, int H, int D) { return rotate(dout, T, H, D, 1); }

/// The first row that row n sees: of its own sequence, and of its window.
int first_seen(int n, int T, int window) { return std::max(n / T * T, n - window); }

/// p[s - first], first <= s <= n: softmax over s of q[n,h] . k[s,g] / sqrt(D)
Doubles attention_weights(const Doubles& q, const Doubles& k, int n, int h, int g, int first, int H, int HK, int D) {
    Doubles p;
    double sum = 0;
    for (int s = first; s <= n; s++) {
        double score = 0;
        for (int d = 0; d < D; d++) score += q[(n * H + h) * D + d] * k[(s * HK + g) * D + d];
        p.push_back(std::exp(score / std::sqrt(D)));
        sum += p.back();
    }
    for (double& weight : p) weight /= sum;
    return p;
}

/// y[n,h] = sum_s p[s] v[s];  y and q (N, H, D), k and v (N, HK, D)
Doubles attention_forward(const Doubles& q, const Doubles& k, const Doubles& v, int T, int H, int HK, int D, int window) {
    Doubles y(q.size());
    for (int n = 0; n < rows_of(q, H * D); n++)
        for (int h = 0; h < H; h++) {
            const int g = h / (H / HK), first = first_seen(n, T, window);   // g: the key/value head that a group of heads shares
            const Doubles p = attention_weights(q, k, n, h, g, first, H, HK, D);
            for (int s = first; s <= n; s++)
                for (int d = 0; d < D; d++) y[(n * H + h) * D + d] += p[s - first] * v[(s * HK + g) * D + d];
        }
    return y;
}

/// dq, dk, dv +=. Of the softmax: dscore[s] = p[s] (dp[s] - sum_s p[s] dp[s])
void attention_backward(Doubles& dq, Doubles& dk, Doubles& dv, const Doubles& dy, const Doubles& q, const Doubles& k, const Doubles& v, int T, int H,
                        int HK, int D, int window) {
    for (int n = 0; n < rows_of(q, H * D); n++)
        for (int h = 0; h < H; h++) {
            const int g = h / (H / HK), first = first_seen(n, T, window);   // g: the key/value head that a group of heads shares
            const Doubles p = attention_weights(q, k, n, h, g, first, H, HK, D);
            Doubles dp(p.size());
            double sum = 0;
            for (int s = first; s <= n; s++) {
                for (int d = 0; d < D; d++) {
                    dp[s - first] += v[(s * HK + g) * D + d] * dy[(n * H + h) * D + d];
                    dv[(s * HK + g) * D + d] += p[s - first] * dy[(n * H + h) * D + d];
                }
                sum += p[s - first] * dp[s - first];
            }
            for (int s = first; s <= n; s++) {
                const double dscore = p[s - first] * (dp[s - first] - sum);
                for (int d = 0; d < D; d++) {
                    dq[(n * H + h) * D + d] += dscore * k[(s * HK + g) * D + d] / std::sqrt(D);
                    dk[(s * HK + g) * D + d] += dscore * q[(n * H + h) * D + d] / std::sqrt(D);
                }
            }
        }
}

/// x + scale branch
Doubles residual_forward(Doubles x, const Doubles& branch, double scale) {
    for (size_t i = 0; i < x.size(); i++) x[i] += scale * branch[i];
    return x;
}

/// The gradient of the branch; that of x is dout itself.
Doubles residual_backward(Doubles dout, double scale) {
    for (double& d : dout) d *= scale;
    return dout;
}

/// The gradient of a value that two ops read is the sum of theirs.
void add(Doubles& to, const Doubles& from) {
    for (size_t i = 0; i < to.size(); i++) to[i] += from[i];
}

/// gelu: x Phi(x), with the normal distribution's own Phi;  relu2: max(x, 0)^2
Doubles activation_forward(Doubles x, Activation kind) {
    for (double& a : x) a = kind == Activation::gelu ? a * 0.5 * (1 + std::erf(a / std::sqrt(2.0))) : std::pow(std::max(a, 0.0), 2);
    return x;
}

/// gelu' = Phi(x) + x phi(x);  relu2' = 2 max(x, 0)
Doubles activation_backward(Doubles dout, const Doubles& x, Activation kind) {
    for (size_t i = 0; i < x.size(); i++) {
        const double a = x[i], phi = std::exp(-a * a / 2) / std::sqrt(2 * std::numbers::pi);
        dout[i] *= kind == Activation::gelu ? 0.5 * (1 + std::erf(a / std::sqrt(2.0))) + a * phi : 2 * std::max(a, 0.0);
    }
    return dout;
}

/// cap tanh(z / cap), or z itself where cap is 0
Doubles softcap_forward(Doubles z, double cap) {
    if (cap > 0)
        for (double& logit : z) logit = cap * std::tanh(logit / cap);
    return z;
}

/// tanh' = 1 - tanh^2, of the capped logits
Doubles softcap_backward(Doubles dlogits, const Doubles& logits, double cap) {
    if (cap > 0)
        for (size_t i = 0; i < logits.size(); i++) dlogits[i] *= 1 - std::pow(logits[i] / cap, 2);
    return dlogits;
}

double sum_of_exponentials(const double* logits, int V) {
    double sum = 0;
    for (int v = 0; v < V; v++) sum += std::exp(logits[v]);
    return sum;
}

double valid_targets(const std::vector<int>& targets) {
    return static_cast<double>(std::count_if(targets.begin(), targets.end(), [](int target) { return target != -1; }));
}

/// Mean over the targets that are not -1 of -log softmax(logits)[target], in nats. logits (N, V)
double cross_entropy_forward(const Doubles& logits, const std::vector<int>& targets, int V) {
    double loss = 0;
    for (size_t n = 0; n < targets.size(); n++)
        if (targets[n] != -1) loss += (std::log(sum_of_exponentials(&logits[n * V], V)) - logits[n * V + targets[n]]) / valid_targets(targets);
    return loss;
}

/// dlogits = (softmax(logits) - 1 at the target) / valid targets; 0 in the rows of targets that are -1
Doubles cross_entropy_backward(const Doubles& logits, const std::vector<int>& targets, int V) {
    Doubles dlogits(logits.size());
    for (size_t n = 0; n < targets.size(); n++) {
        if (targets[n] == -1) continue;
        const double sum = sum_of_exponentials(&logits[n * V], V);
        for (int v = 0; v < V; v++) dlogits[n * V + v] = (std::exp(logits[n * V + v]) / sum - (v == targets[n])) / valid_targets(targets);
    }
    return dlogits;
}

// ------------------------------------------------------------------------------------------------------------ the model

/// A configuration and weights. Sizes must be small: nothing here is fast.
struct ReferenceGPT {
    GPTConfig c;
    std::map<std::string, Doubles> p;    ///< weights by name, (out, in)
    Doubles latents;                     ///< (N, C) of the last pass: what the head is applied to
    Doubles logits;                      ///< (N, V) of the last pass, softcap applied
    std::vector<Doubles> residual{};     ///< (N, C) of the last pass: the residual stream before the layers, and after each of them

    /// Activations of a layer in the last pass, as backward() reads them.
    struct Layer {
        Doubles prev;                    ///< (N, C) the residual stream after norm_before
        Doubles x1;                      ///< (N, C) after the lambdas, where the attention branch begins
        Doubles h1;                      ///< (N, C) input of the attention
        Doubles q_rotated, k_rotated;    ///< (N, H, D), (N, HK, D) before QK norm
        Doubles q, k, v;                 ///< (N, H, D), (N, HK, D), (N, HK, D) after value embedding, rotary and QK norm
        Doubles y;                       ///< (N, C) output of the attention
        Doubles x2;                      ///< (N, C) the residual stream after the attention branch
        Doubles h2;                      ///< (N, C) input of the MLP
        Doubles f, activated;            ///< (N, 4C) before and after the activation
    };
    std::vector<Layer> layers{};
    std::vector<int> idx{}, targets{};
    bool detached = false;               ///< the pass began from latents, which are constants
    Doubles embedded{};                  ///< (N, C) token embeddings or latents, before norm_wte

    /// The mean loss of a micro-batch. latents_in: constants in place of the token embeddings, as in a looping pass.
    double loss(const std::vector<int>& inputs, const std::vector<int>& outputs, const Doubles* latents_in = nullptr) {
        idx = inputs;
        targets = outputs;
        forward(latents_in);
        return cross_entropy_forward(logits, targets, c.vocab_size);
    }

    void forward(const Doubles* latents_in) {
        const int C = c.n_embd, H = c.n_head, HK = c.n_kv_head, D = c.head_size(), T = c.seq_len, CK = HK * D;
        const double eps = c.norm_eps;
        const Norm qk_norm = c.qk_norm ? Norm::rms_norm : Norm::none;
        detached = latents_in != nullptr;
        embedded = detached ? *latents_in : embedding_forward(p.at("wte"), idx, C);
        Doubles x = norm_forward(embedded, C, c.norm_wte, eps);
        residual = {x};   // residual[0] is x0
        layers.assign(c.n_layer, {});
        for (int l = 0; l < c.n_layer; l++) {
            Layer& a = layers[l];
            auto weight = [&](const char* name) -> const Doubles& { return p.at(of_layer(l, name)); };
            // The beginning of the layer.
            a.prev = norm_forward(x, C, c.norm_before[l], eps);
            a.x1 = c.lambdas ? mix_forward(a.prev, residual[0], p.at("resid_lambdas")[l], p.at("x0_lambdas")[l]) : a.prev;
            // Attention.
            a.h1 = norm_forward(a.x1, C, Norm::rms_norm, eps);
            a.v = matmul_forward(a.h1, weight("v"), C, CK);
            if (c.value_embeds[l]) value_embedding_forward(a.v, a.h1, idx, weight("ve"), weight("ve_gate"), C, HK, D);
            a.q_rotated = rotary_forward(matmul_forward(a.h1, weight("q"), C, C), T, H, D);
            a.k_rotated = rotary_forward(matmul_forward(a.h1, weight("k"), C, CK), T, HK, D);
            a.q = norm_forward(a.q_rotated, D, qk_norm, eps);
            a.k = norm_forward(a.k_rotated, D, qk_norm, eps);
            a.y = attention_forward(a.q, a.k, a.v, T, H, HK, D, c.windows[l]);
            a.x2 = residual_forward(a.x1, matmul_forward(a.y, weight("proj"), C, C), c.attn_scale[l]);
            // MLP.
            a.h2 = norm_forward(a.x2, C, Norm::rms_norm, eps);
            a.f = matmul_forward(a.h2, weight("fc"), C, 4 * C);
            a.activated = activation_forward(a.f, c.activation);
            x = residual_forward(a.x2, matmul_forward(a.activated, weight("fc_proj"), 4 * C, C), 1);
            residual.push_back(x);
        }
        // Head.
        latents = norm_forward(x, C, c.norm_lm_head, eps);
        logits = softcap_forward(matmul_forward(latents, p.at(head()), C, c.vocab_size), c.softcap);
    }

    /// g += the gradient of the last loss()
    void backward(Gradients& g) const {
        for (const auto& [name, weight] : p) g[name].resize(weight.size());   // a gradient that is not there yet begins at 0
        const int C = c.n_embd, H = c.n_head, HK = c.n_kv_head, D = c.head_size(), T = c.seq_len, V = c.vocab_size, CK = HK * D;
        const double eps = c.norm_eps;
        const Norm qk_norm = c.qk_norm ? Norm::rms_norm : Norm::none;
        // Head.
        const Doubles dlogits = softcap_backward(cross_entropy_backward(logits, targets, V), logits, c.softcap);
        matmul_backward_weight(g[head()], dlogits, latents, C, V);
        Doubles dx = norm_backward(matmul_backward_input(dlogits, p.at(head()), C, V), residual.back(), C, c.norm_lm_head, eps);
        Doubles dx0(dx.size());
        for (int l = c.n_layer - 1; l >= 0; l--) {
            const Layer& a = layers[l];
            auto weight = [&](const char* name) -> const Doubles& { return p.at(of_layer(l, name)); };
            auto gradient = [&](const char* name) -> Doubles& { return g.at(of_layer(l, name)); };
            // MLP: dx is the gradient of the residual stream after it, and so of what it gave.
            matmul_backward_weight(gradient("fc_proj"), dx, a.activated, 4 * C, C);
            const Doubles df = activation_backward(matmul_backward_input(dx, weight("fc_proj"), 4 * C, C), a.f, c.activation);
            matmul_backward_weight(gradient("fc"), df, a.h2, C, 4 * C);
            add(dx, norm_backward(matmul_backward_input(df, weight("fc"), C, 4 * C), a.x2, C, Norm::rms_norm, eps));
            // Attention.
            const Doubles dbranch = residual_backward(dx, c.attn_scale[l]);
            matmul_backward_weight(gradient("proj"), dbranch, a.y, C, C);
            Doubles dq(a.q.size()), dk(a.k.size()), dv(a.v.size());
            attention_backward(dq, dk, dv, matmul_backward_input(dbranch, weight("proj"), C, C), a.q, a.k, a.v, T, H, HK, D, c.windows[l]);
            dq = rotary_backward(norm_backward(dq, a.q_rotated, D, qk_norm, eps), T, H, D);
            dk = rotary_backward(norm_backward(dk, a.k_rotated, D, qk_norm, eps), T, HK, D);
            matmul_backward_weight(gradient("q"), dq, a.h1, C, C);
            matmul_backward_weight(gradient("k"), dk, a.h1, C, CK);
            matmul_backward_weight(gradient("v"), dv, a.h1, C, CK);
            Doubles dh = matmul_backward_input(dq, weight("q"), C, C);
            add(dh, matmul_backward_input(dk, weight("k"), C, CK));
            add(dh, matmul_backward_input(dv, weight("v"), C, CK));
            if (c.value_embeds[l])
                value_embedding_backward(dh, gradient("ve"), gradient("ve_gate"), dv, a.h1, idx, weight("ve"), weight("ve_gate"), C, HK, D);
            add(dx, norm_backward(dh, a.x1, C, Norm::rms_norm, eps));
            // The beginning of the layer.
            if (c.lambdas)
                dx = mix_backward(dx0, g["resid_lambdas"][l], g["x0_lambdas"][l], dx, a.prev, residual[0], p.at("resid_lambdas")[l],
                                  p.at("x0_lambdas")[l]);
            dx = norm_backward(dx, residual[l], C, c.norm_before[l], eps);
        }
        if (detached) return;
        add(dx, dx0);
        embedding_backward(g["wte"], norm_backward(dx, embedded, C, c.norm_wte, eps), idx, C);
    }

    std::string head() const { return c.tied ? "wte" : "lm_head"; }
    static std::string of_layer(int l, const char* name) { return "h." + std::to_string(l) + "." + name; }
};

}  // namespace
