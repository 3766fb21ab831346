// Activations against float64.
#include "llmc/ops/activation.h"
#include "test/reference.h"

namespace {

double gelu(double x) { return x / 2 * (1 + std::erf(x / std::sqrt(2))); }
double gelu_slope(double x) {
    return (1 + std::erf(x / std::sqrt(2))) / 2 + x * std::exp(-x * x / 2) / std::sqrt(2 * std::acos(-1.0));
}
double relu2(double x) { return x > 0 ? x * x : 0; }
double relu2_slope(double x) { return x > 0 ? 2 * x : 0; }

// Normal values, and edge cases: zeros, and far tails, where a square or an exponential could overflow.
Values inputs(int n) {
    Values x = Random(n).floatXs(n, 2);
    const double edges[] = {0, -0.0, 1e-30, -1e-30, 12, -12, 100, -100};
    for (int i = 0; i < 8; i++) x[n - 8 + i] = to_float(to_floatX(static_cast<float>(edges[i])));
    return x;
}

// 1 + erf cancels where erf is near -1: an error of x times a few fp32 roundings, x up to 6 where the result is not 0 or x.
constexpr double GELU_ABSOLUTE = 40 * FP32_ROUND;
constexpr double TOLERANCE = ROUND + 8 * FP32_ROUND;

}  // namespace

TEST_CASE("activation_forward is the formula") {
    for (int n : {8, 24, 1000, 65536 + 8}) {
        CAPTURE(n);
        Values x = inputs(n);
        FloatXs in(x), before(x), out(n);
        for (Activation kind : {Activation::gelu, Activation::relu2}) {
            CAPTURE(static_cast<int>(kind));
            Values want(n);
            for (int i = 0; i < n; i++) want[i] = kind == Activation::gelu ? gelu(x[i]) : relu2(x[i]);
            activation_forward(out, in, n, kind, nullptr);
            check_close("out", out.values(), want, TOLERANCE, kind == Activation::gelu ? GELU_ABSOLUTE : 1e-38);
            CHECK(in.same_bytes(before));
        }
    }
}

TEST_CASE("activation_backward is dout times the slope") {
    for (int n : {8, 24, 1000, 65536 + 8}) {
        CAPTURE(n);
        Values x = inputs(n), g = Random(n + 1).floatXs(n);
        FloatXs in(x), before(x), dx(n);
        for (Activation kind : {Activation::gelu, Activation::relu2}) {
            CAPTURE(static_cast<int>(kind));
            FloatXs dout(g);
            Values want(n);
            for (int i = 0; i < n; i++) want[i] = g[i] * (kind == Activation::gelu ? gelu_slope(x[i]) : relu2_slope(x[i]));
            activation_backward(dx, dout, in, n, kind, nullptr);
            check_close("dx", dx.values(), want, TOLERANCE, kind == Activation::gelu ? 4 * GELU_ABSOLUTE : 1e-37);
            CHECK(in.same_bytes(before));
            activation_backward(dout, dout, in, n, kind, nullptr);      // in place
            CHECK(dout.same_bytes(dx));
        }
    }
}

TEST_CASE("activation_backward is the slope of activation_forward" * doctest::skip(!FP32)) {
    const int n = 200;
    Values x = Random(1).floats(n), weights = Random(2).floats(n);
    FloatXs in(x), dout(weights), dx(n);
    for (Activation kind : {Activation::gelu, Activation::relu2}) {
        activation_backward(dx, dout, in, n, kind, nullptr);
        // relu2 bends at 0, where a step of h is wrong by h^2
        check_gradient("dx", x, dx.values(), 3e-3, 1e-3, [&](const Values& at) {
            FloatXs there(at), out(n);
            activation_forward(out, there, n, kind, nullptr);
            return dot(out.values(), weights);
        });
    }
}

TEST_CASE("activation refuses wrong sizes") {
    FloatXs x(Values(16, 1)), out(16);
    for (int n : {0, -8, 12})
        for (Activation kind : {Activation::gelu, Activation::relu2}) {
            CHECK_REFUSED("activation_forward", activation_forward(out, x, n, kind, nullptr));
            CHECK_REFUSED("activation_backward", activation_backward(out, x, x, n, kind, nullptr));
        }
}
