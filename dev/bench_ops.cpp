// bench_ops MODEL: every op of a training step by itself, at the model's shapes: time, and the share of what the device can do at
// most. Both ceilings are measured first, by the same clock: memory by a copy and by a sum of two large tensors, whichever is faster;
// matmul by the best of large squares.
//
// A time is the median of five rounds; a round runs the op many times between two waits for the device. Before it comes back to the
// same tensors, an op has touched at least 256 MiB of others (its own, or those of further copies of its arguments), so that what
// it reads comes from memory, as in training.
//
// Bytes are the algorithm's: every input read once and every output written once, whatever the kernel really moves. FLOPs are those of
// matmuls alone; in attention only pairs of tokens that see each other count (forward 2 matmuls, backward 5), and the rate by the
// studies' accounting, which counts the whole window for every token, stands beside it.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <functional>
#include <random>
#include <set>
#include <string>
#include <vector>
#include "dev/bench.h"
#include "llmc/device/device.h"
#include "llmc/gpt.h"
#include "llmc/io/flags.h"
#include "llmc/layout.h"
#include "llmc/ops/adamw.h"
#include "llmc/ops/attention.h"
#include "llmc/ops/cross_entropy.h"
#include "llmc/ops/embedding.h"
#include "llmc/ops/matmul.h"
#include "llmc/ops/muon.h"
#include "llmc/ops/peak.h"
#include "llmc/ops/reduce.h"
#include "llmc/ops/residual.h"
#include "llmc/ops/rotary.h"
#include "llmc/ops/value_embedding.h"

// ----------------------------------------------------------------------------------------------------------------- the clock

using Run = std::function<void()>;

/// How long is measured, and with how much; a trial does with less.
struct Clock {
    int64_t cache = int64_t{256} << 20;          // bytes: several times the last-level cache (L2) of any GPU
    int64_t large_tensor = int64_t{512} << 20;   // bytes
    double round_seconds = 0.02;

    /// Seconds of one work(i), i counting up.
    double median_seconds(const auto& work) const {
        seconds_of(1, work);   // what is set up at the first call
        double once = seconds_of(2, work);
        int times = static_cast<int>(std::clamp(round_seconds / once, 1.0, 500.0));
        std::vector<double> rounds;
        for (int i = 0; i < 5; i++) rounds.push_back(seconds_of(times, work));
        return median(rounds);
    }

    /// Seconds of what `prepare` makes ready, over as many copies of its tensors as leave the caches cold.
    double time_op(const std::function<Run(Tensors&)>& prepare) const {
        Tensors tensors;
        std::vector<Run> copies;
        do copies.push_back(prepare(tensors));
        while (tensors.bytes() < cache && copies.size() < 64);
        return median_seconds([&](int i) { copies[static_cast<size_t>(i) % copies.size()](); });
    }
};

// -------------------------------------------------------------------------------------------------------------- what is printed

struct Ceilings {
    double bytes = 0, flops = 0;   // a second
};

struct Report {
    bool markdown, mma_sync;
    std::string only;
    Clock clock;
    Ceilings ceilings;
    double step_seconds = 0;

    void head() const {
        if (markdown) std::printf("| op | shape | us | GB/s | of copy | TFLOP/s | of matmul | calls a step | ms a step | |\n"
                                  "|---|---|--:|--:|--:|--:|--:|--:|--:|---|\n");
        else std::printf("%-28s %-30s %10s %8s %7s %8s %7s %6s %9s\n", "op", "shape", "us", "GB/s", "share", "TFLOP/s", "share", "calls", "ms a step");
    }

    /// One op: `bytes` and `flops` of one call; 0 where that is not what bounds it. calls: in a step of one micro-batch.
    void op(const std::string& name, const std::string& shape, double calls, double bytes, double flops, const std::function<Run(Tensors&)>& prepare,
            double accounted_flops = 0) {
        if (!only.empty() && name.find(only) == std::string::npos) return;
        double seconds = clock.time_op(prepare);
        step_seconds += calls * seconds;
        std::string note = accounted_flops > 0 ? rate(accounted_flops / seconds * 1e-12) + " TFLOP/s as accounted" : "";
        std::string gbs = bytes > 0 ? rate(bytes / seconds * 1e-9) : "", of_copy = bytes > 0 ? share(bytes / seconds, ceilings.bytes) : "";
        std::string tflops = flops > 0 ? rate(flops / seconds * 1e-12) : "", of_peak = flops > 0 ? share(flops / seconds, ceilings.flops) : "";
        const char* format = markdown ? "| %s | %s | %.1f | %s | %s | %s | %s | %g | %.2f | %s |\n" : "%-28s %-30s %10.1f %8s %7s %8s %7s %6g %9.2f  %s\n";
        std::printf(format, name.c_str(), shape.c_str(), seconds * 1e6, gbs.c_str(), of_copy.c_str(), tflops.c_str(), of_peak.c_str(), calls,
                    calls * seconds * 1e3, note.c_str());
        std::fflush(stdout);
    }

    static std::string rate(double value) {
        char text[32];
        std::snprintf(text, sizeof text, value >= 100 ? "%.0f" : "%.3g", value);
        return text;
    }
    static std::string share(double value, double of) {
        char text[32];
        std::snprintf(text, sizeof text, "%.1f %%", 100 * value / of);
        return text;
    }
};

/// Every line gives what was measured; the ceiling of each kind is the best.
static Ceilings measure_ceilings(const Clock& clock, bool markdown) {
    Ceilings best;
    const char* start = markdown ? "- " : "";
    auto bandwidth = [&](const std::string& name, double moved, const std::function<Run(Tensors&)>& prepare) {
        double rate = moved / clock.time_op(prepare);
        best.bytes = std::max(best.bytes, rate);
        std::printf("%sceiling %s: %.0f GB/s\n", start, name.c_str(), rate * 1e-9);
    };
    const int64_t large_tensor = clock.large_tensor, n = large_tensor / static_cast<int64_t>(sizeof(floatX));
    const double bytes = static_cast<double>(large_tensor);
    bandwidth(concat("copy_on_device, ", large_tensor >> 20, " MiB read and written"), 2 * bytes, [&](Tensors& t) {
        floatX *to = t.zeros<floatX>(n), *from = t.noise<floatX>(n);
        return [=] { copy_on_device(to, from, n * sizeof(floatX), nullptr); };
    });
    bandwidth(concat("residual_add, two tensors of ", large_tensor >> 20, " MiB read, one written"), 3 * bytes, [&](Tensors& t) {
        floatX *x = t.noise<floatX>(n), *branch = t.noise<floatX>(n);
        return [=] { residual_add(x, branch, n, nullptr); };
    });
    // Larger squares, as long as one matmul takes no more than a few hundredths of a second.
    double seconds = 0;
    for (int64_t side = large_tensor >> 20 << 2; side <= 16384 && seconds < clock.round_seconds; side *= 2) {
        const double flops = 2.0 * static_cast<double>(side) * static_cast<double>(side) * static_cast<double>(side);
        seconds = clock.time_op([&](Tensors& t) {
            floatX *out = t.zeros<floatX>(side * side), *x = t.noise<floatX>(side * side), *w = t.noise<floatX>(side * side);
            return [=] { matmul_forward(out, x, w, side, side, side, nullptr); };
        });
        best.flops = std::max(best.flops, flops / seconds);
        std::printf("%sceiling matmul_forward %ldx%ldx%ld: %.1f TFLOP/s\n", start, side, side, side, flops / seconds * 1e-12);
    }
    double sheet = device_peak_flops();
    std::printf("%sceilings: %.0f GB/s, %.1f TFLOP/s in %s", start, best.bytes * 1e-9, best.flops * 1e-12, PRECISION_NAME);
    if (sheet > 0) std::printf(" (device_peak_flops: %.1f)", sheet * 1e-12);
    std::printf("\n%s", markdown ? "\n" : "");
    std::fflush(stdout);
    return best;
}

// ------------------------------------------------------------------------------------------------------------------ the ops

struct Step {
    const GPTConfig& c;
    int B;
    Report& report;
    const int64_t N = int64_t{B} * c.seq_len;
    const int C = c.n_embd, V = c.vocab_size, T = c.seq_len, H = c.n_head, HK = c.n_kv_head, D = c.head_size(), CK = c.kv_width(), L = c.n_layer;
    const double n = static_cast<double>(N), X = sizeof(floatX);
    const MuonRule& muon = std::get<MuonGroup>(rule_of(*c.recipe, Group::matrix).optimizer).rule;
    const float eps = norm_eps(c, Norm::rms_norm);

    void run() {
        embeddings();
        norms();
        matmuls();
        heads();
        mlp_and_loss();
        updates();
        attention();   // last: a kernel that hangs would lose the lines after it
    }

    std::string rows(int64_t channels) const { return concat(N, " x ", channels); }

    /// Tokens of a micro-batch, drawn evenly, and how many different ones there are.
    std::vector<int> tokens(double& different) const {
        std::mt19937 generator(7);
        std::vector<int> ids(static_cast<size_t>(N));
        for (int& id : ids) id = static_cast<int>(generator() % static_cast<unsigned>(V));
        different = static_cast<double>(std::set<int>(ids.begin(), ids.end()).size());
        return ids;
    }

    void embeddings() {
        double different = 0;
        const std::vector<int> ids = tokens(different);
        report.op("token_order", concat(N), 1, 8 * n, 0, [&](Tensors& t) {
            int *order = t.zeros<int>(N), *scratch = t.zeros<int>(V + 1), *idx = t.copy_of(ids);
            return [=, this] { token_order(order, scratch, idx, N, V, nullptr); };
        });
        report.op("embedding_forward", rows(C), 1, n * C * X + different * C * X + 4 * n, 0, [&](Tensors& t) {
            floatX *out = t.zeros<floatX>(N * C), *wte = t.noise<floatX>(int64_t{V} * C);
            int* idx = t.copy_of(ids);
            return [=, this] { embedding_forward(out, idx, wte, N, C, nullptr); };
        });
        report.op("embedding_backward", rows(C), 1, n * C * X + 8 * different * C + 8 * n, 0, [&](Tensors& t) {
            float* dwte = t.zeros<float>(int64_t{V} * C);
            floatX* dout = t.noise<floatX>(N * C);
            int *idx = t.copy_of(ids), *order = t.zeros<int>(N), *scratch = t.zeros<int>(V + 1);
            token_order(order, scratch, idx, N, V, nullptr);
            return [=, this] { embedding_backward(dwte, dout, idx, order, N, C, nullptr); };
        });
        const double layers = static_cast<double>(std::count(c.value_embeds.begin(), c.value_embeds.end(), true));
        if (layers == 0) return;
        const double gates = 4 * n * HK, head = n * VE_GATE_CHANNELS * X;
        report.op("value_embedding_forward", rows(CK), layers, 2 * n * CK * X + different * CK * X + gates + head + 4 * n, 0, [&](Tensors& t) {
            floatX *qkv = t.noise<floatX>(N * c.qkv_width()), *h = t.noise<floatX>(N * C), *ve = t.noise<floatX>(int64_t{V} * CK),
                   *w = t.noise<floatX>(int64_t{HK} * VE_GATE_CHANNELS, 0.1f);
            float* gate = t.zeros<float>(N * HK);
            int* idx = t.copy_of(ids);
            return [=, this] { value_embedding_forward(qkv, gate, h, idx, ve, w, N, C, H, HK, D, nullptr); };
        });
        report.op("value_embedding_backward", rows(CK), layers, n * CK * X + different * CK * (X + 8) + 2 * gates + 3 * head + 8 * n, 0, [&](Tensors& t) {
            float *dve = t.zeros<float>(int64_t{V} * CK), *dw = t.zeros<float>(int64_t{HK} * VE_GATE_CHANNELS), *sums = t.zeros<float>(N * HK),
                  *gate = t.fill<float>(N * HK, 1.0f);
            floatX *dh = t.noise<floatX>(N * C), *dqkv = t.noise<floatX>(N * c.qkv_width()), *h = t.noise<floatX>(N * C),
                   *ve = t.noise<floatX>(int64_t{V} * CK), *w = t.noise<floatX>(int64_t{HK} * VE_GATE_CHANNELS, 0.1f);
            int *idx = t.copy_of(ids), *order = t.zeros<int>(N), *scratch = t.zeros<int>(V + 1);
            token_order(order, scratch, idx, N, V, nullptr);
            return [=, this] { value_embedding_backward(dh, dve, dw, sums, dqkv, gate, h, idx, order, ve, w, N, C, H, HK, D, nullptr); };
        });
    }

    void norms() {
        const double row = n * C * X, f = 4 * n;   // bytes of a tensor (N, C), and of one float a row
        const int64_t NC = N * C;
        const double normed = (c.norm_wte == Norm::none ? 0 : 1) + (c.norm_lm_head == Norm::none ? 0 : 1);
        report.op("copy_on_device", rows(C), 1, 2 * row, 0, [&](Tensors& t) {
            floatX *to = t.zeros<floatX>(NC), *from = t.noise<floatX>(NC);
            return [=] { copy_on_device(to, from, NC * sizeof(floatX), nullptr); };
        });
        report.op("residual_add", rows(C), c.lambdas ? 2 : 1, 3 * row, 0, [&](Tensors& t) {
            floatX *x = t.noise<floatX>(NC), *branch = t.noise<floatX>(NC);
            return [=] { residual_add(x, branch, NC, nullptr); };
        });
        report.op("norm_forward", rows(C), normed, 2 * row + f, 0, [&](Tensors& t) {
            floatX *out = t.zeros<floatX>(NC), *x = t.noise<floatX>(NC);
            float* rstd = t.zeros<float>(N);
            return [=, this] { norm_forward(out, rstd, x, N, C, Norm::rms_norm, eps, nullptr); };
        });
        report.op("norm_backward", rows(C), normed, 3 * row + f, 0, [&](Tensors& t) {
            floatX *dx = t.zeros<floatX>(NC), *dout = t.noise<floatX>(NC), *out = t.noise<floatX>(NC);
            float* rstd = t.fill<float>(N, 1.0f);
            return [=, this] { norm_backward(dx, dout, out, rstd, N, C, Norm::rms_norm, nullptr); };
        });
        report.op("add_norm_forward", rows(C), c.lambdas ? L : 2 * L - 1, 4 * row + f, 0, [&](Tensors& t) {
            floatX *h = t.zeros<floatX>(NC), *x = t.noise<floatX>(NC), *branch = t.noise<floatX>(NC);
            float* rstd = t.zeros<float>(N);
            return [=, this] { add_norm_forward(h, rstd, x, branch, N, C, 0.2f, eps, nullptr); };
        });
        const bool scaled = c.attn_scale[0] != 1;
        if (scaled)
            report.op("add_norm_backward, scaled", rows(C), L, 5 * row + f, 0, [&](Tensors& t) {
                floatX *dx = t.noise<floatX>(NC), *dbranch = t.zeros<floatX>(NC), *dh = t.noise<floatX>(NC), *h = t.noise<floatX>(NC);
                float* rstd = t.fill<float>(N, 1.0f);
                return [=, this] { add_norm_backward(dx, dbranch, dh, h, rstd, N, C, 0.2f, nullptr); };
            });
        report.op("add_norm_backward", rows(C), L, 4 * row + f, 0, [&](Tensors& t) {
            floatX *dx = t.noise<floatX>(NC), *dh = t.noise<floatX>(NC), *h = t.noise<floatX>(NC);
            float* rstd = t.fill<float>(N, 1.0f);
            return [=, this] { add_norm_backward(dx, nullptr, dh, h, rstd, N, C, 1, nullptr); };
        });
        if (!c.lambdas) return;
        report.op("mix_norm_forward", rows(C), L, 6 * row + f, 0, [&](Tensors& t) {
            floatX *h = t.zeros<floatX>(NC), *prev = t.zeros<floatX>(NC), *x = t.noise<floatX>(NC), *branch = t.noise<floatX>(NC),
                   *x0 = t.noise<floatX>(NC);
            float *rstd = t.zeros<float>(N), *resid = t.fill<float>(1, 0.9f), *skip = t.fill<float>(1, 0.1f);
            return [=, this] { mix_norm_forward(h, rstd, prev, x, branch, x0, resid, skip, N, C, eps, nullptr); };
        });
        report.op("mix_norm_backward", rows(C), L, 8 * row + 3 * f, 0, [&](Tensors& t) {
            floatX *dx = t.noise<floatX>(NC), *dx0 = t.zeros<floatX>(NC), *dh = t.noise<floatX>(NC), *h = t.noise<floatX>(NC),
                   *prev = t.noise<floatX>(NC), *x0 = t.noise<floatX>(NC);
            float *rstd = t.fill<float>(N, 1.0f), *resid = t.fill<float>(1, 0.9f), *skip = t.fill<float>(1, 0.1f), *dresid = t.zeros<float>(1),
                  *dskip = t.zeros<float>(1), *sums = t.zeros<float>(2 * N);
            return [=, this] { mix_norm_backward(dx, dx0, dresid, dskip, sums, dh, h, rstd, prev, x0, resid, skip, N, C, nullptr); };
        });
        report.op("device_zero", rows(C), 1, row, 0, [&](Tensors& t) {
            floatX* dx0 = t.noise<floatX>(NC);
            return [=] { device_zero(dx0, NC * sizeof(floatX), nullptr); };
        });
    }

    void matmuls() {
        struct Matmul {
            const char* name;
            int64_t rows, in, out;
            double calls;
        };
        const int64_t chunk = logits_rows(N, V);
        for (auto [name, m, in, out, calls] :
             {Matmul{"qkv", N, C, c.qkv_width(), double(L)}, Matmul{"proj", N, C, C, double(L)}, Matmul{"fc", N, C, 4 * C, double(L)},
              Matmul{"fc_proj", N, 4 * C, C, double(L)}, Matmul{"head", chunk, C, V, std::ceil(n / double(chunk))}}) {
            const double flops = 2.0 * static_cast<double>(m) * static_cast<double>(in) * static_cast<double>(out);
            const std::string shape = concat(m, " x ", in, " x ", out);
            report.op(concat("matmul_forward ", name), shape, calls, 0, flops, [=](Tensors& t) {
                floatX *y = t.zeros<floatX>(m * out), *x = t.noise<floatX>(m * in), *w = t.noise<floatX>(out * in, 0.03f);
                return [=] { matmul_forward(y, x, w, m, in, out, nullptr); };
            });
            report.op(concat("matmul_bwd_input ", name), shape, calls, 0, flops, [=](Tensors& t) {
                floatX *dx = t.zeros<floatX>(m * in), *dy = t.noise<floatX>(m * out), *w = t.noise<floatX>(out * in, 0.03f);
                return [=] { matmul_backward_input(dx, dy, w, m, in, out, nullptr); };
            });
            report.op(concat("matmul_bwd_weight ", name), shape, calls, 0, flops, [=](Tensors& t) {
                float* dw = t.zeros<float>(out * in);
                floatX *dy = t.noise<floatX>(m * out), *x = t.noise<floatX>(m * in);
                return [=] { matmul_backward_weight(dw, dy, x, m, in, out, nullptr); };
            });
        }
    }

    void heads() {
        const int64_t QKV = c.qkv_width();
        const double turned = n * (H + HK) * D * X, table = 4.0 * T * D, scales = c.qk_norm ? 4 * n * (H + HK) : 0;
        std::vector<float> angles(static_cast<size_t>(T) * D);
        rotary_table(angles.data(), T, D);
        report.op("rotary_forward", concat(N, " x ", H + HK, " x ", D), L, 2 * turned + table + scales, 0, [&](Tensors& t) {
            floatX* qkv = t.noise<floatX>(N * QKV);
            float *rstd = t.zeros<float>(N * (H + HK)), *cosines = t.copy_of(angles);
            return [=, this] { rotary_forward(qkv, rstd, cosines, B, T, H, HK, D, 0, c.qk_norm, eps, nullptr); };
        });
        report.op("rotary_backward", concat(N, " x ", H + HK, " x ", D), L, (c.qk_norm ? 3 : 2) * turned + table + scales, 0, [&](Tensors& t) {
            floatX *dqkv = t.noise<floatX>(N * QKV), *qkv = t.noise<floatX>(N * QKV);
            float *rstd = t.fill<float>(N * (H + HK), 1.0f), *cosines = t.copy_of(angles);
            return [=, this] { rotary_backward(dqkv, qkv, rstd, cosines, B, T, H, HK, D, c.qk_norm, nullptr); };
        });
    }

    void attention() {
        const int64_t QKV = c.qkv_width();
        for (int window : std::set<int>(c.windows.begin(), c.windows.end())) {
            const double layers = static_cast<double>(std::count(c.windows.begin(), c.windows.end(), window));
            double pairs = 0;
            for (int query = 0; query < T; query++) pairs += std::min(query, window) + 1;
            const double flops = 2.0 * B * H * pairs * D, accounted = 4.0 * C * std::min(window, T) * n;
            const std::string shape = concat(B, " x ", T, " x ", H, " x ", D, ", window ", window);
            auto forward = [=, this](Tensors& t, floatX*& y, float*& lse, char*& scratch, floatX*& qkv) {
                y = t.zeros<floatX>(N * C);
                lse = t.zeros<float>(N * H);
                scratch = t.zeros<char>(static_cast<int64_t>(attention_scratch(B, T, H, HK, D)));
                qkv = t.noise<floatX>(N * QKV);
                attention_forward(y, lse, scratch, qkv, B, T, H, HK, D, window, nullptr);
            };
            // Where Hopper's own kernels are used, also those for every GPU, which its steps do not call.
            const bool hopper = attention_use_hopper(true);
            for (bool hopper_wanted : {true, false}) {
                if (hopper_wanted ? report.mma_sync : !hopper && !report.mma_sync) continue;
                attention_use_hopper(hopper_wanted);
                const std::string kernels = hopper && !hopper_wanted ? ", mma.sync" : "";
                const double calls = hopper_wanted || report.mma_sync ? layers : 0;
                report.op("attention_forward" + kernels, shape, calls, 0, 2 * flops, [&](Tensors& t) {
                    floatX *y, *qkv;
                    float* lse;
                    char* scratch;
                    forward(t, y, lse, scratch, qkv);
                    return [=, this] { attention_forward(y, lse, scratch, qkv, B, T, H, HK, D, window, nullptr); };
                }, accounted);
                report.op("attention_backward" + kernels, shape, calls, 0, 5 * flops, [&](Tensors& t) {
                    floatX *y, *qkv;
                    float* lse;
                    char* scratch;
                    forward(t, y, lse, scratch, qkv);
                    floatX *dqkv = t.zeros<floatX>(N * QKV), *dy = t.noise<floatX>(N * C);
                    return [=, this] { attention_backward(dqkv, scratch, dy, y, lse, qkv, B, T, H, HK, D, window, nullptr); };
                }, 2 * accounted);
            }
            attention_use_hopper(true);
        }
    }

    void mlp_and_loss() {
        const int64_t n4 = N * 4 * C;
        const double tensor = static_cast<double>(n4) * X;
        report.op(concat("activation_forward ", name_of(c.activation)), rows(4 * C), L, 2 * tensor, 0, [&](Tensors& t) {
            floatX *out = t.zeros<floatX>(n4), *x = t.noise<floatX>(n4);
            return [=, this] { activation_forward(out, x, n4, c.activation, nullptr); };
        });
        report.op(concat("activation_backward ", name_of(c.activation)), rows(4 * C), L, 3 * tensor, 0, [&](Tensors& t) {
            floatX *dx = t.zeros<floatX>(n4), *dout = t.noise<floatX>(n4), *x = t.noise<floatX>(n4);
            return [=, this] { activation_backward(dx, dout, x, n4, c.activation, nullptr); };
        });
        const int64_t chunk = logits_rows(N, V);
        double different = 0;
        std::vector<int> ids = tokens(different);
        ids.resize(static_cast<size_t>(chunk));
        report.op("cross_entropy", concat(chunk, " x ", V), std::ceil(n / static_cast<double>(chunk)), 2.0 * static_cast<double>(chunk) * V * X, 0, [&](Tensors& t) {
            float* losses = t.zeros<float>(chunk);
            floatX* logits = t.noise<floatX>(chunk * V);
            int* targets = t.copy_of(ids);
            return [=, this] { cross_entropy(losses, logits, targets, chunk, V, 1e-5f, static_cast<float>(c.softcap), nullptr); };
        });
        report.op("mean_loss", concat(N), 1, 4 * n, 0, [&](Tensors& t) {
            double* means = t.zeros<double>(2);
            float* losses = t.noise<float>(N);
            return [=, this] { mean_loss(means, means + 1, losses, N, n, 1, nullptr); };
        });
    }

    void updates() {
        const std::vector<Tensor> table = tensor_table(c);
        const int64_t gradients = Layout(c, table, {}, {}).size();
        report.op("device_zero, gradients", concat(gradients), 1, 4.0 * static_cast<double>(gradients), 0, [&](Tensors& t) {
            float* g = t.zeros<float>(gradients);
            return [=] { device_zero(g, gradients * sizeof(float), nullptr); };
        });
        report.op("sums_of_squares, gradients", concat(gradients), 1, 4.0 * static_cast<double>(gradients), 0, [&](Tensors& t) {
            constexpr int64_t size = 1 << 18;
            std::vector<Span> spans;
            for (int64_t at = 0; at < gradients; at += size) spans.push_back({at, std::min(size, gradients - at)});
            const int count = static_cast<int>(spans.size());
            float *out = t.zeros<float>(count), *g = t.noise<float>(gradients);
            Span* device_spans = t.zeros<Span>(count);
            copy_to_device(device_spans, spans.data(), spans.size() * sizeof(Span), nullptr);
            return [=] { sums_of_squares(out, g, device_spans, count, nullptr); };
        });
        const double rounded = sizeof(floatX) < sizeof(float) ? X : 0;

        int64_t elements = 0;
        for (const Tensor& tensor : table) elements += tensor.spec->group == Group::matrix ? 0 : tensor.numel;
        report.op("adamw_update", concat(elements), 1, (28 + rounded) * static_cast<double>(elements), 0, [&](Tensors& t) {
            std::vector<AdamWTensor> all;
            std::vector<AdamWHyper> hypers;
            for (const Tensor& tensor : table)
                if (tensor.spec->group != Group::matrix) {
                    all.push_back({t.noise<float>(tensor.numel), rounded > 0 ? t.zeros<floatX>(tensor.numel) : nullptr, t.noise<float>(tensor.numel),
                                   t.zeros<float>(tensor.numel), t.zeros<float>(tensor.numel), tensor.numel});
                    hypers.push_back(adamw_hyper(1e-3f, 0.9f, 0.95f, 1e-8f, 0, 10));
                }
            const AdamWHyper* on_device = t.copy_of(hypers);
            return [all, on_device] { adamw_update(all.data(), on_device, static_cast<int>(all.size()), nullptr); };
        });

        std::set<std::pair<int, int>> shapes;
        auto has_shape = [](const Tensor& tensor, int rows, int cols) {
            return tensor.spec->group == Group::matrix && tensor.shape[0] == rows && tensor.shape[1] == cols;
        };
        for (const Tensor& tensor : table)
            if (tensor.spec->group == Group::matrix) shapes.insert({static_cast<int>(tensor.shape[0]), static_cast<int>(tensor.shape[1])});
        for (auto [m, k] : shapes) {
            const int count = static_cast<int>(std::count_if(table.begin(), table.end(), [&](const Tensor& tensor) { return has_shape(tensor, m, k); }));
            const double small = std::min(m, k), large = std::max(m, k), numel = small * large;
            // Five times x x^T, s s and s x, in full: what symmetry saves shows as a higher rate.
            const double flops = count * muon_flops(m, k);
            report.op("muon_update", concat(count, " x ", m, " x ", k), 1, count * numel * (20 + rounded), flops, [&, rows = m, cols = k](Tensors& t) {
                std::vector<MuonTensor> all;
                for (int i = 0; i < count; i++)
                    all.push_back({t.noise<float>(int64_t{rows} * cols), rounded > 0 ? t.zeros<floatX>(int64_t{rows} * cols) : nullptr,
                                   t.noise<float>(int64_t{rows} * cols), t.zeros<float>(int64_t{rows} * cols), muon.beta2 > 0 ? t.zeros<float>(std::max(rows, cols)) : nullptr});
                char* scratch = t.zeros<char>(static_cast<int64_t>(muon_scratch(count, rows, cols)));
                const MuonHyper* hyper = t.copy_of(std::vector{MuonHyper{.lr = 1e-3f, .momentum = 0.95f, .weight_decay = 0}});
                return [=, &rule = muon] { muon_update(all.data(), scratch, hyper, count, rows, cols, rule, nullptr); };
            });
            // The matmul s = x x^T alone.
            const int64_t side = std::min(m, k), length = std::max(m, k);
            const bool tall = m > k;
            report.op("matmul_symmetric", concat(count, " x ", side, " x ", length), 0, 0, count * 2 * small * small * large, [=](Tensors& t) {
                floatX *s = t.zeros<floatX>(count * side * side), *x = t.noise<floatX>(count * side * length);
                return [=] { matmul_symmetric(s, x, nullptr, nullptr, count, side, length, tall, 1, 0, nullptr); };
            });
        }
    }
};

int main(int argc, char** argv) {
    device_begin(argv);
    return run_program("bench_ops", [&] {
        Flags flags("bench_ops", "Time of every op at a model's shapes, beside the ceilings of the device.");
        const std::string& name = flags.argument("MODEL", "speedrun124M or nanochat-d12 (or trial-speedrun, trial-nanochat: in a moment, on any device)");
        const int& asked = flags.at_least("--batch", 0, 0, "sequences of a micro-batch (0: what the model trains with on one GPU)");
        const std::string& only = flags.text("--only", "", "ops whose name has this in it");
        const bool& mma_sync = flags.toggle("--mma-sync", "on Hopper, attention by the kernels for every GPU alone");
        const bool& markdown = flags.toggle("--markdown", "print a table in Markdown");
        if (!flags.parse(argc, argv)) return 0;
        const BenchModel model = bench_model(name);
        Report report{.markdown = markdown, .mma_sync = mma_sync, .only = only, .clock = {}, .ceilings = {}};
        if (model.trial) report.clock = {.cache = 0, .large_tensor = 8 << 20, .round_seconds = 1e-4};
        const int batch = asked == 0 ? model.batch : asked;
        std::printf("%s%s, %s: %s, %d x %d tokens\n", report.markdown ? "- " : "", device_name().c_str(), PRECISION_NAME, name.c_str(), batch, model.config.seq_len);
        report.ceilings = measure_ceilings(report.clock, report.markdown);
        report.head();
        Step{model.config, batch, report}.run();
        std::printf("%s%.2f ms: the sum over a step of one micro-batch%s\n", report.markdown ? "\n" : "", report.step_seconds * 1e3,
                    report.only.empty() ? "" : ", of these ops");
        return 0;
    });
}
