// The residual stream's fused steps against float64.
#include "llmc/ops/residual.h"
#include "test/reference.h"

namespace {

constexpr float EPS = 1e-6f;
// Outputs are rounded once; sums over C are made in fp32, in lanes of at most C / 8 terms, at most 130 here.
constexpr double TOLERANCE = ROUND + 130 * FP32_ROUND;

struct Normed {
    Values h, rstd;
};

Normed rms_norm(const Values& x, int N, int C) {
    Normed result{x, Values(N)};
    for (int n = 0; n < N; n++) {
        double square = 0;
        for (int c = 0; c < C; c++) square += x[n * C + c] * x[n * C + c] / C;
        result.rstd[n] = 1 / std::sqrt(square + EPS);
        for (int c = 0; c < C; c++) result.h[n * C + c] = x[n * C + c] * result.rstd[n];
    }
    return result;
}

Values rms_norm_backward(const Values& dh, const Values& h, const Values& rstd, int N, int C) {
    Values dx(N * C);
    for (int n = 0; n < N; n++) {
        double mean = 0;
        for (int c = 0; c < C; c++) mean += dh[n * C + c] * h[n * C + c] / C;
        for (int c = 0; c < C; c++) dx[n * C + c] = rstd[n] * (dh[n * C + c] - h[n * C + c] * mean);
    }
    return dx;
}

const std::vector<std::pair<int, int>> SIZES = {{1, 8}, {3, 24}, {17, 64}, {33, 200}, {5, 768}, {2, 1032}};

}  // namespace

TEST_CASE("residual_add adds, in place, and touches nothing else") {
    for (int n : {8, 24, 4096, 10008, 200008}) {
        CAPTURE(n);
        Random random(n);
        FloatXs x(random.floatXs(n, 3)), branch(random.floatXs(n)), branch_before(branch.values());
        Values want = x.values(), add = branch.values();
        for (size_t i = 0; i < want.size(); i++) want[i] += add[i];
        residual_add(x, branch, n, nullptr);
        check_close("x", x.values(), want, ROUND, 0);   // one sum, rounded once
        CHECK(branch.same_bytes(branch_before));
    }
    FloatXs x(Values(8, 1)), branch(Values(8, 1));
    for (int n : {0, -8, 4}) CHECK_REFUSED("residual_add", residual_add(x, branch, n, nullptr));
}

TEST_CASE("add_norm_forward adds the branch and norms the sum") {
    for (auto [N, C] : SIZES)
        for (bool with_branch : {true, false}) {
            CAPTURE(C);
            CAPTURE(with_branch);
            Random random(C);
            const float scale = 0.2041f;
            FloatXs x(random.floatXs(N * C, 3)), branch(random.floatXs(N * C)), branch_before(branch.values()), h(N * C);
            Floats rstd(N);
            Values sum = x.values(), add = branch.values();
            for (size_t i = 0; i < sum.size() && with_branch; i++) sum[i] += scale * add[i];

            add_norm_forward(h, rstd, x, with_branch ? branch.data() : nullptr, N, C, scale, EPS, nullptr);
            check_close("x", x.values(), sum, with_branch ? ROUND : 0, with_branch ? 8 * FP32_ROUND : 0);
            Normed want = rms_norm(x.values(), N, C);           // of the stream as it is stored
            check_close("h", h.values(), want.h, TOLERANCE, 0);
            check_close("rstd", rstd.values(), want.rstd, 130 * FP32_ROUND, 0);
            CHECK(branch.same_bytes(branch_before));
        }
}

TEST_CASE("add_norm_backward adds the norm's gradient and scales it for the branch") {
    for (auto [N, C] : SIZES)
        for (bool with_branch : {true, false}) {
            CAPTURE(C);
            CAPTURE(with_branch);
            Random random(C);
            const float scale = 0.2041f;
            Normed normed = rms_norm(random.floatXs(N * C, 3), N, C);
            FloatXs h(normed.h), dh(random.floatXs(N * C)), dx(random.floatXs(N * C)), dbranch(N * C);
            Floats rstd(normed.rstd);
            Values want = dx.values(), add = rms_norm_backward(dh.values(), h.values(), rstd.values(), N, C);
            for (size_t i = 0; i < want.size(); i++) want[i] += add[i];

            add_norm_backward(dx, with_branch ? dbranch.data() : nullptr, dh, h, rstd, N, C, scale, nullptr);
            check_close("dx", dx.values(), want, TOLERANCE, 130 * FP32_ROUND);
            Values scaled = dx.values();
            for (double& v : scaled) v *= scale;
            // dbranch may be computed from dx before or after that is rounded
            if (with_branch) check_close("dbranch", dbranch.values(), scaled, 2.01 * ROUND, 130 * FP32_ROUND);
            else CHECK(dbranch.same_bytes(FloatXs(N * C)));     // not written
        }
}

TEST_CASE("mix_norm_forward is the formula") {
    for (auto [N, C] : SIZES)
        for (bool with_branch : {true, false}) {
            CAPTURE(C);
            CAPTURE(with_branch);
            Random random(C);
            FloatXs x(random.floatXs(N * C, 3)), branch(random.floatXs(N * C)), x0(random.floatXs(N * C)), h(N * C), prev(N * C);
            FloatXs branch_before(branch.values()), x0_before(x0.values());
            Floats rstd(N), resid(Values{0.9}), skip(Values{-0.3});
            Values sum = x.values(), add = branch.values();
            for (size_t i = 0; i < sum.size() && with_branch; i++) sum[i] += add[i];

            mix_norm_forward(h, rstd, prev, x, with_branch ? branch.data() : nullptr, x0, resid, skip, N, C, EPS, nullptr);
            check_close("prev", prev.values(), sum, with_branch ? ROUND : 0, 0);
            const double r = resid.values()[0], s = skip.values()[0];
            Values mixed = prev.values(), first = x0.values();
            for (size_t i = 0; i < mixed.size(); i++) mixed[i] = r * mixed[i] + s * first[i];
            // x may be computed from prev before or after that is rounded
            check_close("x", x.values(), mixed, 2.01 * ROUND, (with_branch ? 20 * ROUND : 0) + 20 * FP32_ROUND);
            Normed want = rms_norm(x.values(), N, C);
            check_close("h", h.values(), want.h, TOLERANCE, 0);
            check_close("rstd", rstd.values(), want.rstd, 130 * FP32_ROUND, 0);
            CHECK(branch.same_bytes(branch_before));
            CHECK(x0.same_bytes(x0_before));
        }
}

TEST_CASE("mix_norm_backward is the formula, and its sums do not depend on the number of threads") {
    for (auto [N, C] : SIZES) {
        CAPTURE(C);
        Random random(C);
        Normed normed = rms_norm(random.floatXs(N * C, 3), N, C);
        FloatXs h(normed.h), dh(random.floatXs(N * C)), prev(random.floatXs(N * C)), x0(random.floatXs(N * C));
        Floats rstd(normed.rstd), resid(Values{0.9}), skip(Values{-0.3}), scratch(2 * N);
        Values dx_in = random.floatXs(N * C), dx0_in = random.floatXs(N * C);
        FloatXs dx(dx_in), dx0(dx0_in);
        Floats dresid(Values{0.5}), dskip(Values{-0.25});

        Values g = dx_in, add = rms_norm_backward(dh.values(), h.values(), rstd.values(), N, C);
        for (size_t i = 0; i < g.size(); i++) g[i] += add[i];
        double resid_sum = 0.5 + dot(g, prev.values()), skip_sum = -0.25 + dot(g, x0.values());
        const double r = resid.values()[0], s = skip.values()[0];
        Values want_dx = g, want_dx0 = dx0_in;
        for (size_t i = 0; i < g.size(); i++) {
            want_dx[i] = r * g[i];
            want_dx0[i] += s * g[i];
        }

        mix_norm_backward(dx, dx0, dresid, dskip, scratch, dh, h, rstd, prev, x0, resid, skip, N, C, nullptr);
        check_close("dx", dx.values(), want_dx, 2.01 * ROUND, 130 * FP32_ROUND);
        check_close("dx0", dx0.values(), want_dx0, ROUND, ROUND + 130 * FP32_ROUND);
        // Row sums in fp32, and each of their N C terms, of size one, may have been rounded to the storage type before.
        double sum_error = std::sqrt(N * C) * (4 * ROUND + 130 * FP32_ROUND);
        check_close("dresid", dresid.values(), {resid_sum}, FP32_ROUND, sum_error);
        check_close("dskip", dskip.values(), {skip_sum}, FP32_ROUND, sum_error);
        scratch.read();

        for (int threads : {1, 3})
            with_threads(threads, [&] {
                FloatXs dx_again(dx_in), dx0_again(dx0_in);
                Floats dresid_again(Values{0.5}), dskip_again(Values{-0.25});
                mix_norm_backward(dx_again, dx0_again, dresid_again, dskip_again, scratch, dh, h, rstd, prev, x0, resid, skip, N, C,
                                  nullptr);
                CHECK(dx.same_bytes(dx_again));
                CHECK(dx0.same_bytes(dx0_again));
                CHECK(dresid.same_bytes(dresid_again));
                CHECK(dskip.same_bytes(dskip_again));
            });
    }
}

TEST_CASE("mix_norm_backward is the slope of mix_norm_forward" * doctest::skip(!FP32)) {
    const int N = 3, C = 24;
    Random random(5);
    Values x = random.floatXs(N * C), first = random.floatXs(N * C), h_weights = random.floatXs(N * C), x_weights = random.floatXs(N * C);
    Values lambdas{0.9, -0.3};
    // The loss reads both outputs of the op: h, and the stream x.
    auto loss = [&](const Values& at, const Values& at0, const Values& l) {
        FloatXs stream(at), x0(at0), h(N * C), prev(N * C);
        Floats rstd(N), resid(Values{l[0]}), skip(Values{l[1]});
        mix_norm_forward(h, rstd, prev, stream, nullptr, x0, resid, skip, N, C, EPS, nullptr);
        return dot(h.values(), h_weights) + dot(stream.values(), x_weights);
    };
    FloatXs stream(x), x0(first), h(N * C), prev(N * C), dx(x_weights), dx0(Values(N * C, 0)), dh(h_weights);
    Floats rstd(N), resid(Values{0.9}), skip(Values{-0.3}), dresid(Values{0}), dskip(Values{0}), scratch(2 * N);
    mix_norm_forward(h, rstd, prev, stream, nullptr, x0, resid, skip, N, C, EPS, nullptr);
    mix_norm_backward(dx, dx0, dresid, dskip, scratch, dh, h, rstd, prev, x0, resid, skip, N, C, nullptr);
    // h^2 times a third derivative of about 1, and fp32 noise of 144 terms over h
    check_gradient("dx", x, dx.values(), 1e-2, 1e-3, [&](const Values& at) { return loss(at, first, lambdas); });
    check_gradient("dx0", first, dx0.values(), 1e-2, 1e-3, [&](const Values& at) { return loss(x, at, lambdas); });
    check_gradient("dlambdas", lambdas, {dresid.values()[0], dskip.values()[0]}, 1e-2, 1e-3,
                   [&](const Values& at) { return loss(x, first, at); });
}

TEST_CASE("the residual stream refuses wrong sizes") {
    FloatXs x(Values(64, 1)), y(Values(64, 1)), h(64), prev(64);
    Floats rstd(8), one(Values{1}), sum(Values{0}), scratch(16);
    for (auto [N, C] : {std::pair{0, 8}, {-1, 8}, {1, 0}, {1, 12}, {1, -8}}) {
        CHECK_REFUSED("add_norm_forward", add_norm_forward(h, rstd, x, y, N, C, 1, EPS, nullptr));
        CHECK_REFUSED("add_norm_backward", add_norm_backward(h, nullptr, x, y, rstd, N, C, 1, nullptr));
        CHECK_REFUSED("mix_norm_forward", mix_norm_forward(h, rstd, prev, x, nullptr, y, one, one, N, C, EPS, nullptr));
        CHECK_REFUSED("mix_norm_backward", mix_norm_backward(h, prev, sum, sum, scratch, x, x, rstd, y, y, one, one, N, C, nullptr));
    }
}
