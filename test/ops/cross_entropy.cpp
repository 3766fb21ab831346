// Softmax cross entropy against float64.
#include "llmc/ops/cross_entropy.h"
#include "test/reference.h"

namespace {

struct Result {
    Values losses, gradient, capped;
};

Result reference(const Values& logits, const Values& targets, double dloss, double softcap, int N, int V) {
    Result result{Values(N, 0), Values(N * V, 0), logits};
    for (double& z : result.capped)
        if (softcap > 0) z = softcap * std::tanh(z / softcap);
    for (int n = 0; n < N; n++) {
        const double* z = result.capped.data() + n * V;
        int target = static_cast<int>(targets[n]);
        if (target < 0) continue;
        double row_max = z[0], sum = 0;
        for (int v = 0; v < V; v++) row_max = std::max(row_max, z[v]);
        for (int v = 0; v < V; v++) sum += std::exp(z[v] - row_max);
        result.losses[n] = row_max + std::log(sum) - z[target];
        for (int v = 0; v < V; v++) {
            double slope = softcap > 0 ? 1 - std::pow(z[v] / softcap, 2) : 1;
            result.gradient[n * V + v] = dloss * (std::exp(z[v] - row_max) / sum - (v == target)) * slope;
        }
    }
    return result;
}

struct Sizes { int N, V; };
// 120000: two bytes each do not fit into the shared memory of a CUDA block
const std::vector<Sizes> SIZES = {{1, 8}, {3, 24}, {17, 264}, {5, 4096}, {2, 50304}, {2, 120000}};

Values targets_for(Sizes s) {
    Values targets = Random(s.V + 1).ints(s.N, s.V);
    targets[0] = s.V - 1;
    if (s.N > 1) targets[1] = -1;
    if (s.N > 2) targets[2] = 0;
    return targets;
}

}  // namespace

TEST_CASE("cross_entropy gives the loss and its gradient") {
    for (Sizes s : SIZES)
        for (float softcap : {0.0f, 15.0f})
            for (float dloss : {1.0f, 1.0f / 2048}) {
                CAPTURE(s.V);
                CAPTURE(softcap);
                Values start = Random(s.V).floatXs(s.N * s.V, 4);
                FloatXs logits(start);
                Ints targets(targets_for(s));
                Floats losses(s.N);
                Result want = reference(start, targets.values(), dloss, softcap, s.N, s.V);
                cross_entropy(losses, logits, targets, s.N, s.V, dloss, softcap, nullptr);
                // z of size 16 is rounded to fp32 by the cap (tanh and a product, a few roundings), which the exponential passes
                // on; a sum of V terms, all positive, drifts by a small part of V roundings where it does not run in lanes.
                const double exponent = 16 * 6 * FP32_ROUND, sum = (100 + s.V / 16) * FP32_ROUND;
                // In bf16 CUDA keeps a capped logit's share of the gradient in eleven bits before it is rounded to bf16's eight.
                const double kept = !FP32 && softcap > 0 ? 1.0 / (1 << 11) : 0;
                check_close("losses", losses.values(), want.losses, 4 * FP32_ROUND, exponent + sum);
                check_close("dlogits", logits.values(), want.gradient, ROUND + kept + 2 * exponent + sum, dloss * 8 * FP32_ROUND);
                CHECK(targets.same_bytes(Ints(targets_for(s))));
            }
}

TEST_CASE("cross_entropy with dloss 0 leaves the capped logits") {
    for (Sizes s : SIZES)
        for (float softcap : {0.0f, 15.0f}) {
            CAPTURE(s.V);
            CAPTURE(softcap);
            Values start = Random(s.V).floatXs(s.N * s.V, 4);
            FloatXs logits(start);
            Ints targets(targets_for(s));
            Floats losses(s.N);
            Result want = reference(start, targets.values(), 0, softcap, s.N, s.V);
            cross_entropy(losses, logits, targets, s.N, s.V, 0, softcap, nullptr);
            check_close("losses", losses.values(), want.losses, 4 * FP32_ROUND, (16 * 6 + 100 + s.V / 16) * FP32_ROUND);
            check_close("z", logits.values(), want.capped, ROUND + 6 * FP32_ROUND, 0);
        }
}

TEST_CASE("cross_entropy of large logits does not overflow") {
    const int V = 16;
    Values start(2 * V, -30000);
    start[3] = start[V + 5] = 30000;
    FloatXs logits(start);
    Ints targets(Values{3, 4});
    Floats losses(2);
    cross_entropy(losses, logits, targets, 2, V, 1, 0, nullptr);
    check_close("losses", losses.values(), {0, start[V + 5] - start[V + 4]}, 1 / 256.0, 1e-6);  // 30000 is rounded to the storage type
    Values want(2 * V, 0);
    want[V + 4] = -1;
    want[V + 5] = 1;
    check_close("dlogits", logits.values(), want, ROUND, 1e-6);
}

TEST_CASE("cross_entropy of capped logits far beyond the cap, and of NaN") {
    const int V = 264;
    for (float softcap : {1.0f, 15.0f, 1000.0f}) {
        CAPTURE(softcap);
        Values start = Random(4).floatXs(3 * V, 20);
        start[5] = start[V + 5] = 30000, start[V + 6] = start[2 * V + 7] = -30000;
        FloatXs logits(start);
        Ints targets(Values{5, 6, 7});
        Floats losses(3);
        Result want = reference(start, targets.values(), 1, softcap, 3, V);
        cross_entropy(losses, logits, targets, 3, V, 1, softcap, nullptr);
        // The exponent is of size softcap, and its rounding passes through the exponential. Where the cap is reached, the slope is the small
        // difference of two numbers near 1, so that only an absolute error of the gradient can be bounded.
        const double exponent = softcap * 32 * FP32_ROUND;
        check_close("losses", losses.values(), want.losses, 4 * FP32_ROUND, exponent + 200 * FP32_ROUND);
        check_close("dlogits", logits.values(), want.gradient, ROUND * 1.125 + 2 * exponent, 16 * FP32_ROUND);
    }
    for (float softcap : {0.0f, 15.0f}) {
        Values start = Random(4).floatXs(V, 4);
        start[9] = NAN;
        FloatXs logits(start);
        Ints targets(Values{5});
        Floats losses(1);
        cross_entropy(losses, logits, targets, 1, V, 1, softcap, nullptr);
        CHECK(std::isnan(losses.values()[0]));   // which stops a run; a gradient of numbers would hide it
    }
}

TEST_CASE("cross_entropy's gradient is the slope of its loss" * doctest::skip(!FP32)) {
    const int N = 3, V = 24;
    Values start = Random(4).floats(N * V);
    Ints targets(Values{5, -1, 23});
    for (float softcap : {0.0f, 15.0f}) {
        FloatXs logits(start);
        Floats losses(N);
        cross_entropy(losses, logits, targets, N, V, 1, softcap, nullptr);
        // h^2 times a third derivative below 1, and the fp32 noise of a loss of about 3 over h
        check_gradient("dlogits", start, logits.values(), 1e-2, 1e-3, [&](const Values& at) {
            FloatXs there(at);
            Floats loss(N);
            cross_entropy(loss, there, targets, N, V, 0, softcap, nullptr);
            return dot(loss.values(), Values(N, 1));
        });
    }
}

TEST_CASE("cross_entropy does not depend on the number of threads") {
    const int N = 17, V = 264;
    Values start = Random(4).floatXs(N * V);
    Ints targets(Values(N, 7));
    FloatXs first(start);
    Floats first_losses(N);
    cross_entropy(first_losses, first, targets, N, V, 0.1f, 15, nullptr);
    for (int threads : {1, 3})
        with_threads(threads, [&] {
            FloatXs again(start);
            Floats losses(N);
            cross_entropy(losses, again, targets, N, V, 0.1f, 15, nullptr);
            CHECK(again.same_bytes(first));
            CHECK(losses.same_bytes(first_losses));
        });
}

TEST_CASE("cross_entropy refuses wrong sizes") {
    FloatXs logits(Values(16, 0));
    Ints targets(Values(2, 0));
    Floats losses(2);
    CHECK_REFUSED("cross_entropy", cross_entropy(losses, logits, targets, 0, 8, 1, 0, nullptr));
    CHECK_REFUSED("cross_entropy", cross_entropy(losses, logits, targets, 1, 12, 1, 0, nullptr));
    CHECK_REFUSED("cross_entropy", cross_entropy(losses, logits, targets, 1, 0, 1, 0, nullptr));
    CHECK_REFUSED("cross_entropy", cross_entropy(losses, logits, targets, 1, 8, 1, -1, nullptr));
}
