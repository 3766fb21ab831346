// Matrix products against float64.
#include "llmc/matmul.h"
#include "test/reference.h"

namespace {

struct Operands {
    Values a, b;
    bool transpose_a = false, transpose_b = false;
};

// alpha op(a) op(b) + beta out, one matrix
Values product(const Operands& in, const Values& out, int M, int N, int K, double alpha, double beta) {
    Values result(M * N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += in.a[in.transpose_a ? k * M + i : i * K + k] * in.b[in.transpose_b ? j * K + k : k * N + j];
            result[i * N + j] = alpha * sum + (beta == 0 ? 0 : beta * out[i * N + j]);
        }
    return result;
}

// A sum of K products of size one has the size sqrt(K), and fp32 rounds each partial sum, in any order.
double sum_error(int K) { return 4 * std::sqrt(K) * (K + 8) * FP32_ROUND; }

struct Sizes { int N, IC, OC; };
const std::vector<Sizes> SIZES = {{1, 1, 1}, {1, 8, 8}, {3, 5, 7}, {17, 64, 33}, {33, 24, 8}, {5, 257, 3}, {64, 128, 96}};

}  // namespace

TEST_CASE("matmul_forward is x W^T") {
    for (Sizes s : SIZES) {
        CAPTURE(s.IC);
        Random random(s.IC);
        FloatXs x(random.floatXs(s.N * s.IC)), w(random.floatXs(s.OC * s.IC)), out(s.N * s.OC);
        FloatXs x_before(x.values()), w_before(w.values());
        matmul_forward(out, x, w, s.N, s.IC, s.OC, nullptr);
        check_close("out", out.values(), product({x.values(), w.values(), false, true}, {}, s.N, s.OC, s.IC, 1, 0), ROUND, sum_error(s.IC));
        CHECK(x.same_bytes(x_before));
        CHECK(w.same_bytes(w_before));
    }
}

TEST_CASE("matmul_backward_input is dout W") {
    for (Sizes s : SIZES) {
        CAPTURE(s.IC);
        Random random(s.IC);
        FloatXs dout(random.floatXs(s.N * s.OC)), w(random.floatXs(s.OC * s.IC)), dx(s.N * s.IC);
        matmul_backward_input(dx, dout, w, s.N, s.IC, s.OC, nullptr);
        check_close("dx", dx.values(), product({dout.values(), w.values()}, {}, s.N, s.IC, s.OC, 1, 0), ROUND, sum_error(s.OC));
    }
}

TEST_CASE("matmul_backward_weight adds dout^T x in fp32") {
    for (Sizes s : SIZES) {
        CAPTURE(s.IC);
        Random random(s.IC);
        FloatXs dout(random.floatXs(s.N * s.OC)), x(random.floatXs(s.N * s.IC));
        Floats dw(random.floats(s.OC * s.IC));
        Values want = product({dout.values(), x.values(), true, false}, dw.values(), s.OC, s.IC, s.N, 1, 1);
        matmul_backward_weight(dw, dout, x, s.N, s.IC, s.OC, nullptr);
        check_close("dw", dw.values(), want, FP32_ROUND, sum_error(s.N));
    }
}

TEST_CASE("matmul takes every transposition, scale and batch") {
    struct Scales { float alpha, beta; };
    for (auto [M, N, K] : {std::tuple{1, 1, 1}, {8, 8, 8}, {5, 3, 17}, {33, 24, 40}})
        for (bool transpose_a : {false, true})
            for (bool transpose_b : {false, true})
                for (Scales s : {Scales{1, 0}, {1, 1}, {-0.5f, 0}, {2.0315f, -4.775f}})
                    for (int batch : {1, 3}) {
                        CAPTURE(M);
                        CAPTURE(transpose_a);
                        CAPTURE(transpose_b);
                        CAPTURE(s.alpha);
                        CAPTURE(s.beta);
                        CAPTURE(batch);
                        Random random(M + batch);
                        FloatXs a(random.floatXs(batch * M * K)), b(random.floatXs(batch * K * N)), out(batch * M * N);
                        if (s.beta != 0) out.write(random.floatXs(batch * M * N));     // else it stays poisoned: it must not be read
                        Values all_a = a.values(), all_b = b.values(), all_out = out.values(), want;
                        for (int i = 0; i < batch; i++) {
                            auto part = [i](const Values& x, int n) { return Values(x.begin() + i * n, x.begin() + (i + 1) * n); };
                            Values one = product({part(all_a, M * K), part(all_b, K * N), transpose_a, transpose_b}, part(all_out, M * N),
                                                 M, N, K, s.alpha, s.beta);
                            want.insert(want.end(), one.begin(), one.end());
                        }
                        matmul(out, a, b, M, N, K, transpose_a, transpose_b, s.alpha, s.beta, batch, nullptr);
                        check_close("out", out.values(), want, ROUND, 4 * sum_error(K));
                    }
}

TEST_CASE("a product run again gives the same bytes, and other shapes in between change nothing") {
    Random random(1);
    FloatXs x(random.floatXs(40 * 72)), w(random.floatXs(24 * 72)), once(40 * 24), again(40 * 24), other(40 * 40);
    matmul_forward(once, x, w, 40, 72, 24, nullptr);
    matmul_forward(other, x, x, 40, 72, 40, nullptr);
    matmul_forward(again, x, w, 40, 72, 24, nullptr);
    CHECK(once.same_bytes(again));
}

TEST_CASE("matmul runs with the number of threads that is set at the call") {
    Random random(2);
    FloatXs x(random.floatXs(64 * 48)), w(random.floatXs(56 * 48));
    Values want = product({x.values(), w.values(), false, true}, {}, 64, 56, 48, 1, 0);
    for (int threads : {1, 3, 2, 1})
        with_threads(threads, [&] {
            FloatXs out(64 * 56);
            matmul_forward(out, x, w, 64, 48, 56, nullptr);
            check_close("out", out.values(), want, ROUND, sum_error(48));
        });
}

TEST_CASE("matmul refuses wrong sizes") {
    FloatXs x(Values(16, 1)), out(16);
    Floats dw(16);
    CHECK_REFUSED("matmul_forward", matmul_forward(out, x, x, 0, 4, 4, nullptr));
    CHECK_REFUSED("matmul_forward", matmul_forward(out, x, x, 4, -1, 4, nullptr));
    CHECK_REFUSED("matmul_forward", matmul_forward(out, x, x, 4, 4, 0, nullptr));
    CHECK_REFUSED("matmul_backward_input", matmul_backward_input(out, x, x, 0, 4, 4, nullptr));
    CHECK_REFUSED("matmul_backward_input", matmul_backward_input(out, x, x, 4, 0, 4, nullptr));
    CHECK_REFUSED("matmul_backward_input", matmul_backward_input(out, x, x, 4, 4, -4, nullptr));
    CHECK_REFUSED("matmul_backward_weight", matmul_backward_weight(dw, x, x, 0, 4, 4, nullptr));
    CHECK_REFUSED("matmul_backward_weight", matmul_backward_weight(dw, x, x, 4, 0, 4, nullptr));
    CHECK_REFUSED("matmul_backward_weight", matmul_backward_weight(dw, x, x, 4, 4, 0, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, 0, 4, 4, false, false, 1, 0, 1, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, 4, 0, 4, false, false, 1, 0, 1, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, 4, 4, 0, false, false, 1, 0, 1, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, 4, 4, 4, false, false, 1, 0, 0, nullptr));
    CHECK_REFUSED("matmul_flops", matmul_flops(8, 8, 8, 0));
}
