// The ladders' steps against float64 loops, at small and odd sizes. The same checks run on the emulator and on a GPU.
#include <cmath>
#include <functional>
#include <random>
#include "dev/kernels/ladder.h"
#include "llmc/device/device.h"
#include "llmc/device/memory.h"

using Values = std::vector<double>;

// Max relative error of rounding once to fp32, and to the storage type.
static constexpr double FP32_ROUND = 1.0 / (1 << 24), ROUND = sizeof(floatX) == 4 ? FP32_ROUND : 1.0 / (1 << 8);

// Device memory of exactly so many elements, so that the emulator sees every access beyond them. It starts as NaN.
template <class Number>
class Tensor {
public:
    explicit Tensor(size_t n) : size(n), memory(static_cast<Number*>(device_alloc(n * sizeof(Number)))) {
        std::vector<unsigned char> poison(n * sizeof(Number), 0xff);
        copy_to_device(memory, poison.data(), poison.size(), nullptr);
    }
    explicit Tensor(const std::vector<Number>& values) : Tensor(values.size()) {
        copy_to_device(memory, values.data(), size * sizeof(Number), nullptr);
    }
    Tensor(const Tensor&) = delete;
    Tensor& operator=(const Tensor&) = delete;
    ~Tensor() { release(memory); }

    operator Number*() const { return memory; }

    Values values() const {
        std::vector<Number> host(size);
        copy_to_host(host.data(), memory, size * sizeof(Number), nullptr);
        Values out(size);
        for (size_t i = 0; i < size; i++) out[i] = to_float(host[i]);
        return out;
    }

    const size_t size;

private:
    Number* memory;
};

// Normal values times `scale`, rounded to the storage type: what a step and its reference both start from.
static std::vector<floatX> random_values(size_t n, float scale, unsigned seed) {
    std::mt19937 generator(seed);
    std::normal_distribution<float> normal(0, scale);
    std::vector<floatX> x(n);
    for (floatX& value : x) value = to_floatX(normal(generator));
    return x;
}

// The max of |got - want| / tolerance(i); infinite where it is NaN.
static double worst(const Values& got, const Values& want, const std::function<double(size_t)>& tolerance) {
    double max_error = 0;
    for (size_t i = 0; i < got.size(); i++) {
        const double share = std::abs(got[i] - want[i]) / tolerance(i);
        max_error = std::isnan(share) ? INFINITY : std::max(max_error, share);
    }
    return max_error;
}

// ----------------------------------------------------------------------------------------------------------------------- norm

// Rows that end within a warp's pieces, that fill them, and more rows than a block has threads.
static const std::vector<NormSize> NORM_SIZES = {{1, 8}, {3, 24}, {131, 64}, {33, 200}, {5, 768}, {2, 1024}};
static constexpr float EPS = 1e-6f;
// The output is rounded once. A sum of C terms by one thread is off by C roundings at most.
static double sum_error(int C) { return (C + 8) * FP32_ROUND; }

static Values norm_reference(Values& rstd, const Values& x, NormSize s) {
    Values out(x.size());
    for (int64_t n = 0; n < s.N; n++) {
        double squares = 0;
        for (int c = 0; c < s.C; c++) squares += x[n * s.C + c] * x[n * s.C + c];
        rstd[n] = 1 / std::sqrt(squares / s.C + EPS);
        for (int c = 0; c < s.C; c++) out[n * s.C + c] = x[n * s.C + c] * rstd[n];
    }
    return out;
}

std::vector<Check> check_norm_forward(NormForward* run) {
    std::vector<Check> checks;
    for (NormSize s : NORM_SIZES) {
        const size_t n = s.N * s.C;
        const Tensor<floatX> x(random_values(n, 3, s.C)), out(n);
        const Tensor<float> rstd(s.N);
        run(out, rstd, x, s, EPS, nullptr);
        Values want_rstd(s.N), want = norm_reference(want_rstd, x.values(), s);
        checks.push_back(
            {concat("N ", s.N, ", C ", s.C),
             std::max(worst(out.values(), want, [&](size_t i) { return (ROUND + sum_error(s.C)) * std::abs(want[i]) + 1e-30; }),
                      worst(rstd.values(), want_rstd, [&](size_t i) { return sum_error(s.C) * want_rstd[i]; }))});
    }
    return checks;
}

std::vector<Check> check_norm_backward(NormBackward* run) {
    std::vector<Check> checks;
    for (NormSize s : NORM_SIZES) {
        const size_t n = s.N * s.C;
        const Tensor<floatX> dout(random_values(n, 1, s.C)), out(random_values(n, 1, s.C + 1)), dx(n);
        std::vector<float> r(s.N);
        for (int64_t i = 0; i < s.N; i++) r[i] = 0.5f + static_cast<float>(i % 5);
        const Tensor<float> rstd(r);
        run(dx, dout, out, rstd, s, nullptr);
        Values want(n), terms(n);                       // the size of the two terms, which may cancel
        const Values g = dout.values(), y = out.values();
        for (int64_t row = 0; row < s.N; row++) {
            double mean = 0, size = 0;
            for (int64_t i = row * s.C; i < (row + 1) * s.C; i++) mean += g[i] * y[i] / s.C, size += std::abs(g[i] * y[i]) / s.C;
            for (int64_t i = row * s.C; i < (row + 1) * s.C; i++) {
                want[i] = r[row] * (g[i] - y[i] * mean);
                terms[i] = r[row] * (std::abs(g[i]) + std::abs(y[i]) * size);
            }
        }
        checks.push_back({concat("N ", s.N, ", C ", s.C),
                          worst(dx.values(), want, [&](size_t i) { return ROUND * std::abs(want[i]) + sum_error(s.C) * terms[i]; })});
    }
    return checks;
}

// -------------------------------------------------------------------------------------------------------------- cross entropy

// Rows shorter than a block, not a multiple of it, and longer.
static const std::vector<CrossEntropySize> CROSS_ENTROPY_SIZES = {{1, 8}, {3, 24}, {2, 1000}, {3, 9000}};

std::vector<Check> check_cross_entropy(CrossEntropy* run) {
    constexpr float DLOSS = 1.0f / 2048;
    std::vector<Check> checks;
    for (CrossEntropySize s : CROSS_ENTROPY_SIZES) {
        const Tensor<floatX> logits(random_values(s.N * s.V, 4, s.V));
        const Values z = logits.values();
        std::vector<int> target(s.N);
        for (int64_t n = 0; n < s.N; n++) target[n] = n == 0 ? s.V - 1 : n == 1 ? 0 : s.V / 3;
        const Tensor<int> targets(target);
        const Tensor<float> losses(s.N), scratch(2 * s.N);
        run(losses, logits, scratch, targets, s, DLOSS, nullptr);

        Values want_losses(s.N), want(s.N * s.V);
        for (int64_t n = 0; n < s.N; n++) {
            const double* row = z.data() + n * s.V;
            const double row_max = *std::max_element(row, row + s.V);
            double sum = 0;
            for (int v = 0; v < s.V; v++) sum += std::exp(row[v] - row_max);
            want_losses[n] = row_max + std::log(sum) - row[target[n]];
            for (int v = 0; v < s.V; v++) want[n * s.V + v] = DLOSS * (std::exp(row[v] - row_max) / sum - (v == target[n]));
        }
        // A thread adds V / 512 terms or 8, then 32 partial sums are joined twice. An exponent of up to 64 (in powers of two) is rounded
        // to fp32; so is the loss, up to 32.
        const double exponent = 64 * FP32_ROUND, sum = (s.V / 512 + 64) * FP32_ROUND;
        checks.push_back({concat("N ", s.N, ", V ", s.V),
                          std::max(worst(losses.values(), want_losses, [&](size_t) { return 32 * FP32_ROUND + exponent + sum; }),
                                   worst(logits.values(), want, [&](size_t i) {
                                       return (ROUND + 2 * exponent + sum) * std::abs(want[i]) + 4 * DLOSS * FP32_ROUND;
                                   }))});
    }
    return checks;
}

// ------------------------------------------------------------------------------------------------------------------ attention

// One token; ends within a tile of 64; a window longer than the sequence, shorter than a tile, and longer: the last tile of queries then meets
// all tiles of keys, the last two, and all but the first. What the emulator takes grows with the square of T.
static const std::vector<AttentionSize> ATTENTION_SIZES = {
    {1, 1, 1, 0}, {2, 37, 2, 37}, {1, 136, 1, 1000}, {1, 150, 1, 20}, {1, 193, 1, 100}};

std::vector<Check> check_attention(Attention* run) {
    std::vector<Check> checks;
    for (AttentionSize s : ATTENTION_SIZES) {
        const int width = 3 * s.H * HEAD, heads = s.B * s.H;
        const Tensor<floatX> qkv(random_values(static_cast<size_t>(s.B) * s.T * width, 1, s.T)),
            y(static_cast<size_t>(s.B) * s.T * s.H * HEAD);
        const Tensor<float> lse(static_cast<size_t>(heads) * s.T), scratch(static_cast<size_t>(heads) * s.T * s.T);
        run(y, lse, scratch, qkv, s, nullptr);

        const Values in = qkv.values();
        Values want_lse(lse.size), want(y.size), magnitude(y.size);           // magnitude: sum_s p |v|
        for (int head = 0; head < heads; head++)
            for (int t = 0; t < s.T; t++) {
                const double* sequence = in.data() + static_cast<size_t>(head / s.H) * s.T * width + head % s.H * HEAD;
                const int first = std::max(0, t - s.window);
                Values p(t + 1 - first);
                for (int j = first; j <= t; j++)
                    for (int d = 0; d < HEAD; d++) p[j - first] += sequence[t * width + d] * sequence[j * width + s.H * HEAD + d] / 8;
                const double row_max = *std::max_element(p.begin(), p.end());
                double sum = 0;
                for (double& x : p) sum += x = std::exp(x - row_max);
                want_lse[head * s.T + t] = row_max + std::log(sum);
                for (int j = first; j <= t; j++)
                    for (int d = 0; d < HEAD; d++) {
                        const size_t at = (static_cast<size_t>(head / s.H) * s.T + t) * s.H * HEAD + head % s.H * HEAD + d;
                        const double v = sequence[j * width + 2 * s.H * HEAD + d];
                        want[at] += p[j - first] / sum * v;
                        magnitude[at] += p[j - first] / sum * std::abs(v);
                    }
            }
        // y is rounded to the storage type, and so, in the steps on tensor cores, is every probability before it meets its value.
        // Scores are sums of 64 products, of size up to 5: some tens of roundings of fp32, in the exponent.
        checks.push_back(
            {concat("B ", s.B, ", T ", s.T, ", H ", s.H, ", window ", s.window),
             std::max(worst(lse.values(), want_lse, [&](size_t) { return 100 * FP32_ROUND; }), worst(y.values(), want, [&](size_t i) {
                          return ROUND * std::abs(want[i]) + (ROUND + 100 * FP32_ROUND) * magnitude[i];
                      }))});
    }
    return checks;
}

std::vector<Check> check_attention_backward(AttentionBackward* run) {
    std::vector<Check> checks;
    for (AttentionSize s : ATTENTION_SIZES) {
        const int width = 3 * s.H * HEAD, out_width = s.H * HEAD, heads = s.B * s.H;
        const size_t tokens = static_cast<size_t>(s.B) * s.T;
        const Tensor<floatX> qkv(random_values(tokens * width, 1, s.T)), dy(random_values(tokens * out_width, 1, s.T + 1)),
            dqkv(tokens * width);
        const Values in = qkv.values(), g = dy.values();

        // The forward pass: p, lse and y, rounded as the backward pass reads them; delta is made of that rounded y.
        std::vector<Values> p(static_cast<size_t>(heads) * s.T);
        std::vector<float> lse(p.size());
        std::vector<floatX> y(tokens * out_width);
        auto at = [&](int head, int t) { return in.data() + (static_cast<size_t>(head / s.H) * s.T + t) * width + head % s.H * HEAD; };
        auto out_at = [&](int head, int t) { return (static_cast<size_t>(head / s.H) * s.T + t) * out_width + head % s.H * HEAD; };
        for (int head = 0; head < heads; head++)
            for (int t = 0; t < s.T; t++) {
                Values& row = p[head * s.T + t];
                row.assign(t + 1, 0);
                double sum = 0;
                for (int j = std::max(0, t - s.window); j <= t; j++) {
                    double score = 0;
                    for (int d = 0; d < HEAD; d++) score += at(head, t)[d] * at(head, j)[out_width + d] / 8;
                    sum += row[j] = std::exp(score);
                }
                lse[head * s.T + t] = static_cast<float>(std::log(sum));
                for (double& x : row) x /= sum;
                for (int d = 0; d < HEAD; d++) {
                    double value = 0;
                    for (int j = 0; j <= t; j++) value += row[j] * at(head, j)[2 * out_width + d];
                    y[out_at(head, t) + d] = to_floatX(static_cast<float>(value));
                }
            }

        // `rounded` adds up the sizes of the terms that the steps on tensor cores round to the storage type, `summed` those of all that
        // fp32 sums.
        Values want(dqkv.size), rounded(dqkv.size), summed(dqkv.size);
        auto add = [&](size_t i, double factor, double size, double value) {
            want[i] += factor * value, rounded[i] += std::abs(factor * value), summed[i] += size * std::abs(value);
        };
        for (int head = 0; head < heads; head++)
            for (int t = 0; t < s.T; t++) {
                double delta = 0;
                for (int d = 0; d < HEAD; d++) delta += g[out_at(head, t) + d] * to_float(y[out_at(head, t) + d]);
                for (int j = std::max(0, t - s.window); j <= t; j++) {
                    const size_t q = at(head, t) - in.data(), k = at(head, j) - in.data() + out_width, v = k + out_width;
                    const double probability = p[head * s.T + t][j];
                    double dp = 0, size = 0;
                    for (int d = 0; d < HEAD; d++)
                        dp += g[out_at(head, t) + d] * in[v + d], size += std::abs(g[out_at(head, t) + d] * in[v + d]);
                    const double ds = probability * (dp - delta) / 8, ds_size = probability * (size + std::abs(delta)) / 8;
                    for (int d = 0; d < HEAD; d++) {
                        add(q + d, ds, ds_size, in[k + d]);
                        add(k + d, ds, ds_size, in[q + d]);
                        add(v + d, probability, probability, g[out_at(head, t) + d]);
                    }
                }
            }
        const Tensor<floatX> out(y);
        const Tensor<float> denominators(lse), scratch(attention_backward_floats(s));
        run(dqkv, scratch, dy, out, denominators, qkv, s, nullptr);
        checks.push_back({concat("B ", s.B, ", T ", s.T, ", H ", s.H, ", window ", s.window), worst(dqkv.values(), want, [&](size_t i) {
                              return ROUND * (std::abs(want[i]) + rounded[i]) + 100 * FP32_ROUND * summed[i];
                          })});
    }
    return checks;
}
