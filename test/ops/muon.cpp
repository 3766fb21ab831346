// Muon against the reference's mathematics in float64.
#include "llmc/ops/muon.h"
#include <algorithm>
#include <array>
#include <memory>
#include "test/needs.h"
#include "test/reference.h"

namespace {

// A matrix of doubles, row-major.
struct Matrix {
    int rows, cols;
    Values at;
};

Matrix transposed(const Matrix& m) {
    Matrix t{m.cols, m.rows, Values(m.at.size())};
    for (int r = 0; r < m.rows; r++)
        for (int c = 0; c < m.cols; c++) t.at[c * m.rows + r] = m.at[r * m.cols + c];
    return t;
}

Matrix operator*(const Matrix& a, const Matrix& b) {
    Matrix out{a.rows, b.cols, Values(a.rows * b.cols, 0)};
    for (int i = 0; i < a.rows; i++)
        for (int k = 0; k < a.cols; k++)
            for (int j = 0; j < b.cols; j++) out.at[i * b.cols + j] += a.at[i * a.cols + k] * b.at[k * b.cols + j];
    return out;
}

Matrix orthogonalize(const Matrix& g, const std::vector<std::array<double, 3>>& steps, double safety, double eps) {
    Matrix x = g.rows > g.cols ? transposed(g) : g;
    double norm = std::sqrt(dot(g.at, g.at));
    for (double& v : x.at) v /= norm * safety + eps;
    for (auto [a, b, c] : steps) {
        Matrix s = x * transposed(x), p = s * s;
        for (size_t i = 0; i < p.at.size(); i++) p.at[i] = b * s.at[i] + c * p.at[i];
        Matrix y = p * x;
        for (size_t i = 0; i < x.at.size(); i++) x.at[i] = a * x.at[i] + y.at[i];
    }
    return g.rows > g.cols ? transposed(x) : x;
}

const std::vector<std::array<double, 3>> STUDY_NEWTON_SCHULZ(5, {3.4445, -4.7750, 2.0315});
const std::vector<std::array<double, 3>> STUDY_POLAR_EXPRESS = {{8.156554524902461, -22.48329292557795, 15.878769915207462},
                                                          {4.042929935166739, -2.808917465908714, 0.5000178451051316},
                                                          {3.8916678022926607, -2.772484153217685, 0.5060648178503393},
                                                          {3.285753657755655, -2.3681294933425376, 0.46449024233003106},
                                                          {2.3465413258596377, -1.7097828382687081, 0.42323551169305323}};

struct Reference {
    Values w, m, second;
    int rows, cols;

    Reference(const Values& start, int rows_, int cols_)
        : w(start), m(start.size(), 0), second(std::max(rows_, cols_), 0), rows(rows_), cols(cols_) {}

    void update(const Values& g, const MuonHyper& h, const MuonRule& rule) {
        const double k = rule.averaged_momentum ? 1.0 - h.momentum : 1;
        Matrix u{rows, cols, g};
        for (size_t i = 0; i < m.size(); i++) {
            m[i] = h.momentum * m[i] + k * g[i];
            u.at[i] = k * g[i] + h.momentum * m[i];
        }
        u = orthogonalize(u, rule.steps == POLAR_EXPRESS ? STUDY_POLAR_EXPRESS : STUDY_NEWTON_SCHULZ, rule.safety, rule.eps);
        if (rule.beta2 > 0) second_moment(u, rule.beta2);
        const double ratio = static_cast<double>(rows) / cols;
        const double lr = h.lr * std::sqrt(rule.scale == MuonScale::root_of_larger ? std::max(rows, cols) : std::max(1.0, ratio));
        for (size_t i = 0; i < w.size(); i++) {
            const bool decays = rule.decay == MuonDecay::all || (rule.decay == MuonDecay::cautious && u.at[i] * w[i] >= 0);
            w[i] -= lr * u.at[i] + (decays ? lr * h.weight_decay * w[i] : 0);
        }
    }

private:
    void second_moment(Matrix& u, double beta2) {
        const bool by_row = rows >= cols;
        const int lines = by_row ? rows : cols, n = by_row ? cols : rows;
        Values mean(lines, 0), step(lines);
        auto line = [&](size_t i) { return by_row ? i / cols : i % cols; };
        for (size_t i = 0; i < w.size(); i++) mean[line(i)] += u.at[i] * u.at[i] / n;
        double before = 0, after = 0;
        for (int i = 0; i < lines; i++) {
            second[i] = beta2 * second[i] + (1.0 - beta2) * mean[i];
            step[i] = 1 / std::sqrt(std::max(second[i], 1e-10));
            before += mean[i] * n;
            after += mean[i] * n * step[i] * step[i];
        }
        const double keep = std::sqrt(before) / std::max(std::sqrt(after), 1e-10);
        for (size_t i = 0; i < w.size(); i++) u.at[i] *= step[line(i)] * keep;
    }
};

struct Device {
    Floats master, grad, momentum, second;
    FloatXs weight;
    Device(const Values& start, int rows, int cols)
        : master(start), grad(start.size()), momentum(Values(start.size(), 0)), second(Values(std::max(rows, cols), 0)), weight(start.size()) {}
    MuonTensor tensor(const MuonRule& rule, bool with_weight) {
        return {master, with_weight ? weight.data() : nullptr, grad, momentum, rule.beta2 > 0 ? second.data() : nullptr};
    }
};

struct Scratch {
    void* memory;
    Scratch(int count, int rows, int cols) : memory(device_alloc(muon_scratch(count, rows, cols))) {}
    ~Scratch() { device_free(memory); }
    operator void*() { return memory; }
};

double norm(const Values& x) { return std::sqrt(dot(x, x)); }

Values difference(Values a, const Values& b) {
    for (size_t i = 0; i < a.size(); i++) a[i] -= b[i];
    return a;
}

struct Variant {
    const char* name;
    MuonRule rule;
    MuonHyper hyper;
};

/// The rules of the two studies' recipes, and two mixtures of them, so that each part of a rule meets both values of the others.
const std::vector<Variant> VARIANTS{
    {"summed, Newton-Schulz",
     {.averaged_momentum = false, .steps = NEWTON_SCHULZ, .safety = 1, .eps = 1e-7f, .scale = MuonScale::root_of_larger},
     {0.00036f, 0.95f, 0.2f}},
    {"averaged, Polar Express, second moment, cautious decay",
     {.averaged_momentum = true,
      .steps = POLAR_EXPRESS,
      .safety = 1.02f,
      .eps = 1e-6f,
      .beta2 = 0.95f,
      .scale = MuonScale::root_of_ratio,
      .decay = MuonDecay::cautious},
     {0.02f, 0.85f, 0.2f}},
    {"summed, Newton-Schulz, second moment, decay of all",
     {.averaged_momentum = false,
      .steps = NEWTON_SCHULZ,
      .safety = 1,
      .eps = 1e-7f,
      .beta2 = 0.9f,
      .scale = MuonScale::root_of_ratio,
      .decay = MuonDecay::all},
     {0.01f, 0.9f, 0.1f}},
    {"averaged, Newton-Schulz, cautious decay",
     {.averaged_momentum = true,
      .steps = NEWTON_SCHULZ,
      .safety = 1.02f,
      .eps = 1e-6f,
      .scale = MuonScale::root_of_larger,
      .decay = MuonDecay::cautious},
     {0.001f, 0.9f, 0.1f}},
};
const Variant &SUMMED = VARIANTS[0], &SCALED = VARIANTS[1];

void update(const MuonTensor* tensors, void* scratch, int count, int rows, int cols, const Variant& variant) {
    muon_update(tensors, scratch, OnDevice<MuonHyper>({variant.hyper}), count, rows, cols, variant.rule, nullptr);
}

struct Sizes { int count, rows, cols; };
const std::vector<Sizes> SIZES = {{1, 1, 1}, {3, 8, 8}, {2, 64, 16}, {2, 24, 96}, {2, 8, 40}, {1, 3, 32}, {1, 128, 32}, {1, 33, 17}};

}  // namespace

TEST_CASE("muon_update moves as the reference does" * needs_matmul()) {
    for (Sizes s : SIZES)
        for (const Variant& variant : VARIANTS) {
            const bool mixture = &variant != &SUMMED && &variant != &SCALED, large = s.rows * s.cols > 600;
            if (mixture && large) continue;   // its parts meet the large sizes in the studies' rules; a square, a wide and a tall one are left
            const MuonRule& rule = variant.rule;
            CAPTURE(variant.name);
            CAPTURE(s.rows);
            CAPTURE(s.cols);
            Random random(s.rows + s.cols);
            const int n = s.rows * s.cols;
            std::vector<Reference> want;
            std::vector<std::unique_ptr<Device>> device;
            std::vector<MuonTensor> tensors;
            for (int i = 0; i < s.count; i++) {
                Values start = random.floats(n, 0.05);
                want.emplace_back(start, s.rows, s.cols);
                device.push_back(std::make_unique<Device>(start, s.rows, s.cols));
                tensors.push_back(device[i]->tensor(rule, i != 1));             // the second matrix has no rounded copy
            }
            Scratch scratch(s.count, s.rows, s.cols);
            for (int step = 0; step < 3; step++) {
                for (int i = 0; i < s.count; i++) {
                    Values g = random.floats(n, 0.01);
                    device[i]->grad.write(g);
                    want[i].update(g, variant.hyper, rule);
                }
                update(tensors.data(), scratch, s.count, s.rows, s.cols, variant);
            }
            for (int i = 0; i < s.count; i++) {
                check_close("momentum", device[i]->momentum.values(), want[i].m, 20 * FP32_ROUND, FP32_ROUND);
                // Each step of the iteration multiplies the error of a small singular value, up to 8 times, as it does the value:
                // some ten roundings of the update's norm in fp32. In bf16 the last steps round singular values of about 1 in
                // every matmul (1 to 2 in a hundred here), and a matrix of one or three rows cannot average that. A matrix of one
                // element has one singular value, 1 / 1.02, which nothing is averaged with. Polar Express makes 1.19 of it out of terms of
                // 8, 21 and 14, so that an error in it grows 14 times, then 2.7, 3.9, 0.8 and 1.5 times. With every product and sum
                // rounded once, all to the same side, 2.5 roundings of the scaled matrix become 72, 208, 834, 680, 1024 (Newton-Schulz: 91).
                const double lr = variant.hyper.lr * muon_scale(rule.scale, s.rows, s.cols);
                const double steps_norm = 3 * lr * std::sqrt(std::min(s.rows, s.cols));     // three orthogonal matrices
                const double error = norm(difference(device[i]->master.values(), want[i].w));
                const double share = !FP32 ? 0.06 : rule.steps == POLAR_EXPRESS && n == 1 ? 1024 * FP32_ROUND : 1e-5;
                CHECK(error <= share * steps_norm + FP32_ROUND * norm(want[i].w));
                if (i != 1) CHECK(device[i]->weight.same_bytes(FloatXs(device[i]->master.values())));
                else CHECK(device[i]->weight.same_bytes(FloatXs(n)));                        // not written
                if (rule.beta2 == 0) CHECK(device[i]->second.values() == Values(std::max(s.rows, s.cols), 0));
            }
        }
}

TEST_CASE("muon_update does the same to a matrix alone as among others" * needs_matmul()) {
    for (const Variant& kind : {SUMMED, SCALED}) {
        Random random(3);
        const int rows = 24, cols = 40, n = rows * cols;
        Values start = random.floats(n), g = random.floats(n);
        Device alone(start, rows, cols), first(random.floats(n), rows, cols), second(start, rows, cols);
        alone.grad.write(g);
        first.grad.write(random.floats(n));
        second.grad.write(g);
        MuonTensor one = alone.tensor(kind.rule, true), two[] = {first.tensor(kind.rule, true), second.tensor(kind.rule, true)};
        Scratch scratch(2, rows, cols);
        update(two, scratch, 2, rows, cols, kind);
        update(&one, scratch, 1, rows, cols, kind);
        CHECK(alone.master.same_bytes(second.master));
        CHECK(alone.second.same_bytes(second.second));
    }
}

TEST_CASE("muon_update of a zero gradient only decays" * needs_matmul()) {
    Device device({1, -2, 3, 4, -5, 6, 7, 8}, 2, 4);
    Scratch scratch(1, 2, 4);
    device.grad.write(Values(8, 0));
    MuonTensor summed = device.tensor(SUMMED.rule, true), scaled = device.tensor(SCALED.rule, true);
    update(&summed, scratch, 1, 2, 4, SUMMED);
    CHECK(device.master.values() == Values{1, -2, 3, 4, -5, 6, 7, 8});
    update(&scaled, scratch, 1, 2, 4, SCALED);
    Values want{1, -2, 3, 4, -5, 6, 7, 8};
    for (double& w : want) w *= 1 - 0.02 * 0.2;
    check_close("master", device.master.values(), want, 4 * FP32_ROUND, 0);
}

TEST_CASE("muon refuses wrong sizes") {
    Device device(Values(16, 1), 4, 4);
    device.grad.write(Values(16, 1));
    Scratch scratch(1, 4, 4);
    MuonTensor tensor = device.tensor(SUMMED.rule, true);
    for (auto [count, rows, cols] : {std::tuple{0, 4, 4}, {1, 0, 4}, {1, 4, 0}, {1, -4, 4}}) {
        CHECK_REFUSED("muon_update", update(&tensor, scratch, count, rows, cols, SUMMED));
        CHECK_REFUSED("muon_scratch", muon_scratch(count, rows, cols));
    }
    CHECK_REFUSED("muon_update", update(&tensor, scratch, 1, 4, 4, SCALED));
}
