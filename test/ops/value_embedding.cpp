// Value embeddings against float64.
#include "llmc/ops/value_embedding.h"
#include <algorithm>
#include <numeric>
#include "test/reference.h"

namespace {

constexpr int GATE = VE_GATE_CHANNELS;

struct Sizes { int N, C, H, HK, D, V; };
const std::vector<Sizes> SIZES = {{1, 32, 1, 1, 8, 1}, {3, 40, 2, 1, 16, 5}, {17, 64, 3, 3, 24, 4}, {33, 256, 4, 2, 64, 100}, {200, 48, 2, 2, 128, 7}};

int width(Sizes s) { return (s.H + 2 * s.HK) * s.D; }

// Everything the op reads, rounded as it is stored.
struct Inputs {
    Values qkv, h, idx, order, ve, w, dqkv;

    Inputs(Sizes s, unsigned seed) {
        Random random(seed);
        qkv = random.floatXs(s.N * width(s));
        h = random.floatXs(s.N * s.C);
        idx = random.ints(s.N, s.V);
        idx[0] = s.V - 1;
        order.resize(s.N);
        std::iota(order.begin(), order.end(), 0);
        std::stable_sort(order.begin(), order.end(), [&](double i, double j) { return idx[static_cast<size_t>(i)] < idx[static_cast<size_t>(j)]; });
        ve = random.floatXs(s.V * s.HK * s.D);
        w = random.floatXs(s.HK * GATE, 0.2);
        dqkv = random.floatXs(s.N * width(s));
    }
};

Values gates(const Inputs& in, Sizes s) {
    Values gate(s.N * s.HK);
    for (int n = 0; n < s.N; n++)
        for (int g = 0; g < s.HK; g++) {
            double inside = 0;
            for (int c = 0; c < GATE; c++) inside += in.h[n * s.C + c] * in.w[g * GATE + c];
            gate[n * s.HK + g] = 2 / (1 + std::exp(-inside));
        }
    return gate;
}

Values forward(const Inputs& in, const Values& gate, Sizes s) {
    Values qkv = in.qkv;
    for (int n = 0; n < s.N; n++)
        for (int g = 0; g < s.HK; g++)
            for (int d = 0; d < s.D; d++)
                qkv[n * width(s) + (s.H + s.HK + g) * s.D + d] +=
                    gate[n * s.HK + g] * in.ve[(static_cast<int>(in.idx[n]) * s.HK + g) * s.D + d];
    return qkv;
}

struct Gradients {
    Values dve, dw, dh;         // to be added to
};

Gradients backward(const Inputs& in, const Values& gate, Sizes s, Gradients grad) {
    for (int n = 0; n < s.N; n++)
        for (int g = 0; g < s.HK; g++) {
            double dgate = 0, open = gate[n * s.HK + g];
            for (int d = 0; d < s.D; d++) {
                int row = (static_cast<int>(in.idx[n]) * s.HK + g) * s.D + d;
                double dvalue = in.dqkv[n * width(s) + (s.H + s.HK + g) * s.D + d];
                grad.dve[row] += open * dvalue;
                dgate += dvalue * in.ve[row];
            }
            double inside = dgate * open * (1 - open / 2);
            for (int c = 0; c < GATE; c++) {
                grad.dw[g * GATE + c] += inside * in.h[n * s.C + c];
                grad.dh[n * s.C + c] += inside * in.w[g * GATE + c];
            }
        }
    return grad;
}

}  // namespace

TEST_CASE("value_embedding_forward adds the gated rows to the values and leaves queries and keys alone") {
    for (Sizes s : SIZES) {
        CAPTURE(s.N);
        Inputs in(s, s.N);
        FloatXs qkv(in.qkv), h(in.h), ve(in.ve), w(in.w);
        Ints idx(in.idx);
        Floats gate(s.N * s.HK);
        value_embedding_forward(qkv, gate, h, idx, ve, w, s.N, s.C, s.H, s.HK, s.D, nullptr);
        Values want = gates(in, s);
        // a sum of 32 terms of size 0.2 and an exponential
        check_close("gate", gate.values(), want, 60 * FP32_ROUND, 0);
        Values sum = forward(in, want, s), got = qkv.values();
        check_close("qkv", got, sum, ROUND, 200 * FP32_ROUND);
        for (int n = 0; n < s.N; n++)
            for (int i = 0; i < (s.H + s.HK) * s.D; i++)
                if (got[n * width(s) + i] != in.qkv[n * width(s) + i]) FAIL_CHECK("query or key ", i, " of token ", n, " changed");
        CHECK(h.same_bytes(FloatXs(in.h)));
        CHECK(ve.same_bytes(FloatXs(in.ve)));
    }
}

TEST_CASE("value_embedding_backward is the formula, whatever the number of threads") {
    for (Sizes s : SIZES) {
        CAPTURE(s.N);
        Inputs in(s, s.N);
        Random random(9);
        Gradients start{random.floats(s.V * s.HK * s.D), random.floats(s.HK * GATE), random.floatXs(s.N * s.C)};
        FloatXs h(in.h), ve(in.ve), w(in.w), dqkv(in.dqkv), dh(start.dh);
        Ints idx(in.idx), order(in.order);
        Floats gate(gates(in, s)), dve(start.dve), dw(start.dw), scratch(s.N * s.HK);
        Gradients want = backward(in, gate.values(), s, start);
        value_embedding_backward(dh, dve, dw, scratch, dqkv, gate, h, idx, order, ve, w, s.N, s.C, s.H, s.HK, s.D, nullptr);
        // sums of up to 200 terms of size one (dve), or of sqrt(D) = 11 (dw)
        check_close("dve", dve.values(), want.dve, 300 * FP32_ROUND, 300 * FP32_ROUND);
        check_close("dw", dw.values(), want.dw, 300 * FP32_ROUND, 3000 * FP32_ROUND);
        check_close("dh", dh.values(), want.dh, ROUND, 300 * FP32_ROUND);
        scratch.read();
        CHECK(dqkv.same_bytes(FloatXs(in.dqkv)));
        for (int threads : {1, 3})
            with_threads(threads, [&] {
                FloatXs dh_again(start.dh);
                Floats dve_again(start.dve), dw_again(start.dw);
                value_embedding_backward(dh_again, dve_again, dw_again, scratch, dqkv, gate, h, idx, order, ve, w, s.N, s.C, s.H, s.HK, s.D,
                                         nullptr);
                CHECK(dve_again.same_bytes(dve));
                CHECK(dw_again.same_bytes(dw));
                CHECK(dh_again.same_bytes(dh));
            });
        FloatXs dh_alone(start.dh);
        Floats dw_alone(start.dw);
        value_embedding_backward(dh_alone, nullptr, dw_alone, scratch, dqkv, gate, h, idx, order, ve, w, s.N, s.C, s.H, s.HK, s.D, nullptr);
        CHECK(dw_alone.same_bytes(dw));   // a frozen value embedding changes nothing else
        CHECK(dh_alone.same_bytes(dh));
    }
}

TEST_CASE("value_embedding_backward is the slope of value_embedding_forward" * doctest::skip(!FP32)) {
    Sizes s{5, 40, 2, 2, 8, 3};
    Inputs in(s, 1);
    FloatXs h(in.h), ve(in.ve), w(in.w), dqkv(in.dqkv), dh(Values(s.N * s.C, 0));
    Ints idx(in.idx), order(in.order);
    Floats gate(gates(in, s)), dve(Values(in.ve.size(), 0)), dw(Values(in.w.size(), 0)), scratch(s.N * s.HK);
    value_embedding_backward(dh, dve, dw, scratch, dqkv, gate, h, idx, order, ve, w, s.N, s.C, s.H, s.HK, s.D, nullptr);
    auto loss = [&](const Values& h_at, const Values& ve_at, const Values& w_at) {
        FloatXs qkv(in.qkv), h_there(h_at), ve_there(ve_at), w_there(w_at);
        Floats unused(s.N * s.HK);
        value_embedding_forward(qkv, unused, h_there, idx, ve_there, w_there, s.N, s.C, s.H, s.HK, s.D, nullptr);
        return dot(qkv.values(), in.dqkv);
    };
    // h^2 times a third derivative below 10, and fp32 noise of 240 terms over h
    check_gradient("dh", in.h, dh.values(), 1e-2, 2e-3, [&](const Values& at) { return loss(at, in.ve, in.w); });
    check_gradient("dve", in.ve, dve.values(), 1e-2, 2e-3, [&](const Values& at) { return loss(in.h, at, in.w); });
    check_gradient("dw", in.w, dw.values(), 1e-2, 2e-3, [&](const Values& at) { return loss(in.h, in.ve, at); });
}

TEST_CASE("value_embedding refuses wrong sizes") {
    FloatXs x(Values(512, 1)), y(Values(512, 1)), w(Values(32, 1));
    Ints idx(Values(8, 0)), order(Values(8, 0));
    Floats gate(8), dve(64), dw(32), scratch(8);
    struct Wrong { int N, C, H, HK, D; };
    for (Wrong s : {Wrong{0, 32, 1, 1, 8}, {1, 24, 1, 1, 8}, {1, 32, 0, 1, 8}, {1, 32, 1, 0, 8}, {1, 32, 1, 1, 12}, {1, 32, 1, 1, 0}}) {
        CHECK_REFUSED("value_embedding_forward", value_embedding_forward(x, gate, y, idx, y, w, s.N, s.C, s.H, s.HK, s.D, nullptr));
        CHECK_REFUSED("value_embedding_backward",
                      value_embedding_backward(x, dve, dw, scratch, y, gate, y, idx, order, y, w, s.N, s.C, s.H, s.HK, s.D, nullptr));
    }
}
