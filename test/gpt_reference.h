// The model in plain float64 loops, with the mathematics of the golden cases' reference: whole forward passes are checked against it.
#pragma once
#include <cmath>
#include <map>
#include <string>
#include <vector>
#include "llmc/config.h"
#include "llmc/ops/value_embedding.h"

namespace {   // each test file that includes this has its own copy

using Doubles = std::vector<double>;

/// The loss of a model on a micro-batch. For small sizes: nothing here is fast.
struct ReferenceGPT {
    GPTConfig c;
    std::map<std::string, Doubles> p;    ///< weights by name, (out, in)
    Doubles latents;                     ///< (N, C), of the last pass: the input of lm_head
    Doubles logits;                      ///< (N, V), of the last pass, after the softcap
    std::vector<Doubles> residual{};     ///< (N, C) each, of the last pass: the residual stream before the first layer and after each layer

    /// Mean cross entropy in nats over the targets that are not -1. latents_in replaces the token embeddings.
    double loss(const std::vector<int>& idx, const std::vector<int>& targets, const Doubles* latents_in = nullptr) {
        forward(idx, latents_in);
        const size_t V = c.vocab_size;
        double sum = 0, valid = 0;
        for (size_t n = 0; n < targets.size(); n++) {
            if (targets[n] == -1) continue;
            double denominator = 0;
            for (size_t v = 0; v < V; v++) denominator += std::exp(logits[n * V + v]);
            sum += std::log(denominator) - logits[n * V + targets[n]];
            valid++;
        }
        return sum / valid;
    }

    /// Normalizes each row of `width` elements.
    static void norm(Doubles& x, size_t width, Norm kind, double eps) {
        if (kind == Norm::none) return;
        for (size_t row = 0; row < x.size(); row += width) {
            double mean = 0, squares = 0;
            if (kind == Norm::layer_norm)
                for (size_t i = 0; i < width; i++) mean += x[row + i] / static_cast<double>(width);
            for (size_t i = 0; i < width; i++) squares += (x[row + i] - mean) * (x[row + i] - mean) / static_cast<double>(width);
            double rstd = 1 / std::sqrt(squares + (kind == Norm::layer_norm ? 1e-6 : eps));
            for (size_t i = 0; i < width; i++) x[row + i] = (x[row + i] - mean) * rstd;
        }
    }

private:
    /// y (n, out) = x (n, in) W^T
    static Doubles matmul(const Doubles& x, const Doubles& w, size_t in) {
        const size_t n = x.size() / in, out = w.size() / in;
        Doubles y(n * out);
        for (size_t i = 0; i < n; i++)
            for (size_t o = 0; o < out; o++) {
                const double *a = &x[i * in], *b = &w[o * in];
                double sum = 0;
#pragma omp simd reduction(+ : sum)
                for (size_t k = 0; k < in; k++) sum += a[k] * b[k];
                y[i * out + o] = sum;
            }
        return y;
    }

    /// Rotary embedding: rotates the two halves of every head by minus position times frequency. x (N, heads, D)
    void rotary(Doubles& x, int heads) const {
        const int D = c.head_size(), half = D / 2;
        for (size_t at = 0; at < x.size(); at += D)
            for (int i = 0; i < half; i++) {
                double position = static_cast<double>(at / D / heads % c.seq_len), angle = position * std::pow(10000.0, -2.0 * i / D);
                double a = x[at + i], b = x[at + half + i];
                x[at + i] = a * std::cos(angle) + b * std::sin(angle);
                x[at + half + i] = b * std::cos(angle) - a * std::sin(angle);
            }
    }

    /// y (N, H, D) of q (N, H, D), k and v (N, HK, D)
    Doubles attention(const Doubles& q, const Doubles& k, const Doubles& v, int window) const {
        const int D = c.head_size(), H = c.n_head, HK = c.n_kv_head, T = c.seq_len;
        const int N = static_cast<int>(q.size()) / (H * D);
        Doubles y(q.size()), weight(T);
        for (int n = 0; n < N; n++)
            for (int h = 0; h < H; h++) {
                const int first = std::max(n / T * T, n - window), g = h / (H / HK);
                double sum = 0;
                for (int s = first; s <= n; s++) {
                    double score = 0;
                    for (int d = 0; d < D; d++) score += q[(n * H + h) * D + d] * k[(s * HK + g) * D + d];
                    sum += weight[s - first] = std::exp(score / std::sqrt(D));
                }
                for (int s = first; s <= n; s++)
                    for (int d = 0; d < D; d++) y[(n * H + h) * D + d] += weight[s - first] / sum * v[(s * HK + g) * D + d];
            }
        return y;
    }

    void add_value_embedding(Doubles& v, const Doubles& h, const std::vector<int>& idx, const std::string& layer) const {
        const size_t C = c.n_embd, HK = c.n_kv_head, D = c.head_size();
        const Doubles &ve = p.at(layer + "ve"), &gate = p.at(layer + "ve_gate");
        for (size_t n = 0; n < idx.size(); n++)
            for (size_t g = 0; g < HK; g++) {
                double sum = 0;
                for (size_t i = 0; i < VE_GATE_CHANNELS; i++) sum += h[n * C + i] * gate[g * VE_GATE_CHANNELS + i];
                for (size_t d = 0; d < D; d++) v[(n * HK + g) * D + d] += 2 / (1 + std::exp(-sum)) * ve[(idx[n] * HK + g) * D + d];
            }
    }

    double activation(double x) const {
        if (c.activation == Activation::gelu) return 0.5 * x * (1 + std::erf(x / std::sqrt(2.0)));
        return x > 0 ? x * x : 0;
    }

    void forward(const std::vector<int>& idx, const Doubles* latents_in) {
        const size_t C = c.n_embd, N = idx.size();
        const double eps = c.norm_eps;
        Doubles x(N * C);
        for (size_t i = 0; i < x.size(); i++) x[i] = latents_in ? (*latents_in)[i] : p["wte"][idx[i / C] * C + i % C];
        norm(x, C, c.norm_wte, eps);
        const Doubles x0 = x;
        residual = {x};
        for (int l = 0; l < c.n_layer; l++) {
            const std::string layer = "h." + std::to_string(l) + ".";
            norm(x, C, c.norm_before[l], eps);
            if (c.lambdas)
                for (size_t i = 0; i < x.size(); i++) x[i] = p["resid_lambdas"][l] * x[i] + p["x0_lambdas"][l] * x0[i];
            Doubles h = x;
            norm(h, C, Norm::rms_norm, eps);
            Doubles q = matmul(h, p[layer + "q"], C), k = matmul(h, p[layer + "k"], C), v = matmul(h, p[layer + "v"], C);
            if (c.value_embeds[l]) add_value_embedding(v, h, idx, layer);
            rotary(q, c.n_head);
            rotary(k, c.n_kv_head);
            if (c.qk_norm) {
                norm(q, c.head_size(), Norm::rms_norm, eps);
                norm(k, c.head_size(), Norm::rms_norm, eps);
            }
            Doubles branch = matmul(attention(q, k, v, c.windows[l]), p[layer + "proj"], C);
            for (size_t i = 0; i < x.size(); i++) x[i] += c.attn_scale[l] * branch[i];
            h = x;
            norm(h, C, Norm::rms_norm, eps);
            Doubles f = matmul(h, p[layer + "fc"], C);
            for (double& value : f) value = activation(value);
            branch = matmul(f, p[layer + "fc_proj"], 4 * C);
            for (size_t i = 0; i < x.size(); i++) x[i] += branch[i];
            residual.push_back(x);
        }
        norm(x, C, c.norm_lm_head, eps);
        logits = matmul(x, p[c.tied ? "wte" : "lm_head"], C);
        if (c.softcap > 0)
            for (double& z : logits) z = c.softcap * std::tanh(z / c.softcap);
        latents = std::move(x);
    }
};

}  // namespace
