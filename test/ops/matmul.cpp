// Matmuls against float64.
#include "llmc/ops/matmul.h"
#include "test/needs.h"
#include "test/reference.h"

namespace {

struct Operands {
    Values a, b;
    bool transpose_a = false, transpose_b = false;
};

// alpha op(a) op(b) + beta c, one matrix
Values reference_matmul(const Operands& in, const Values& c, int M, int N, int K, double alpha, double beta) {
    Values result(M * N);
    for (int i = 0; i < M; i++)
        for (int j = 0; j < N; j++) {
            double sum = 0;
            for (int k = 0; k < K; k++)
                sum += in.a[in.transpose_a ? k * M + i : i * K + k] * in.b[in.transpose_b ? j * K + k : k * N + j];
            result[i * N + j] = alpha * sum + (beta == 0 ? 0 : beta * c[i * N + j]);
        }
    return result;
}

// Matrix i of a batch of matrices of n elements.
Values part(const Values& x, int i, int n) { return Values(x.begin() + i * n, x.begin() + (i + 1) * n); }

// A dot product of K terms of size one has the size sqrt(K), and fp32 rounds each partial sum, in any order.
double sum_error(int K) { return 4 * std::sqrt(K) * (K + 8) * FP32_ROUND; }

struct Sizes { int N, IC, OC; };
// The last one's rows lie whole KiB apart and are more than 512: the CPU's fp32 copies them in parts.
const std::vector<Sizes> SIZES = {{1, 1, 1}, {1, 8, 8}, {3, 5, 7}, {17, 64, 33}, {33, 24, 8}, {5, 257, 3}, {64, 128, 96}, {519, 256, 256}};

}  // namespace

TEST_CASE("matmul_forward is x W^T" * needs_matmul()) {
    for (Sizes s : SIZES) {
        CAPTURE(s.IC);
        Random random(s.IC);
        FloatXs x(random.floatXs(s.N * s.IC)), w(random.floatXs(s.OC * s.IC)), out(s.N * s.OC);
        FloatXs x_before(x.values()), w_before(w.values());
        matmul_forward(out, x, w, s.N, s.IC, s.OC, nullptr);
        check_close("out", out.values(), reference_matmul({x.values(), w.values(), false, true}, {}, s.N, s.OC, s.IC, 1, 0), ROUND, sum_error(s.IC));
        CHECK(x.same_bytes(x_before));
        CHECK(w.same_bytes(w_before));
    }
}

TEST_CASE("matmul_backward_input is dout W" * needs_matmul()) {
    for (Sizes s : SIZES) {
        CAPTURE(s.IC);
        Random random(s.IC);
        FloatXs dout(random.floatXs(s.N * s.OC)), w(random.floatXs(s.OC * s.IC)), dx(s.N * s.IC);
        matmul_backward_input(dx, dout, w, s.N, s.IC, s.OC, nullptr);
        check_close("dx", dx.values(), reference_matmul({dout.values(), w.values()}, {}, s.N, s.IC, s.OC, 1, 0), ROUND, sum_error(s.OC));
    }
}

TEST_CASE("matmul_backward_weight adds dout^T x in fp32" * needs_matmul()) {
    for (Sizes s : SIZES) {
        CAPTURE(s.IC);
        Random random(s.IC);
        FloatXs dout(random.floatXs(s.N * s.OC)), x(random.floatXs(s.N * s.IC));
        Floats dw(random.floats(s.OC * s.IC));
        Values want = reference_matmul({dout.values(), x.values(), true, false}, dw.values(), s.OC, s.IC, s.N, 1, 1);
        matmul_backward_weight(dw, dout, x, s.N, s.IC, s.OC, nullptr);
        check_close("dw", dw.values(), want, FP32_ROUND, sum_error(s.N));
    }
}

TEST_CASE("matmul takes every transposition, scale and batch" * needs_matmul()) {
    struct Scales { float alpha, beta; };
    for (auto [M, N, K] : {std::tuple{1, 1, 1}, {8, 8, 8}, {5, 3, 17}, {33, 24, 40}})
        for (bool transpose_a : {false, true})
            for (bool transpose_b : {false, true})
                for (Scales s : {Scales{1, 0}, {1, 1}, {-0.5f, 0}, {2.0315f, -4.775f}})
                    for (int batch : {1, 3, 9}) {
                        CAPTURE(M);
                        CAPTURE(transpose_a);
                        CAPTURE(transpose_b);
                        CAPTURE(s.alpha);
                        CAPTURE(s.beta);
                        CAPTURE(batch);
                        Random random(M + batch);
                        FloatXs a(random.floatXs(batch * M * K)), b(random.floatXs(batch * K * N)), c(random.floatXs(batch * M * N)),
                            out(batch * M * N);
                        Values all_a = a.values(), all_b = b.values(), all_c = c.values(), want;
                        for (int i = 0; i < batch; i++) {
                            Values one = reference_matmul({part(all_a, i, M * K), part(all_b, i, K * N), transpose_a, transpose_b}, part(all_c, i, M * N),
                                                 M, N, K, s.alpha, s.beta);
                            want.insert(want.end(), one.begin(), one.end());
                        }
                        matmul(out, a, b, s.beta == 0 ? nullptr : c.data(), batch, M, N, K, transpose_a, transpose_b, s.alpha, s.beta, nullptr);
                        check_close("out", out.values(), want, ROUND, 4 * sum_error(K));
                        CHECK(c.same_bytes(FloatXs(all_c)));
                    }
}

TEST_CASE("matmul gives a matrix the same bytes, however many there are in the batch" * needs_matmul()) {
    const int most = 11;
    for (auto [M, N, K] : {std::tuple{5, 3, 17}, {64, 48, 200}, {256, 256, 256}}) {
        CAPTURE(M);
        Random random(M);
        FloatXs a(random.floatXs(most * M * K)), b(random.floatXs(most * K * N)), x(random.floatXs(most * M * M)), out(most * M * N), squares(most * M * M);
        matmul(out, a, b, nullptr, most, M, N, K, false, false, 1, 0, nullptr);
        matmul_symmetric(squares, x, nullptr, nullptr, most, M, M, false, 1, 0, nullptr);
        const Values all_out = out.values(), all_squares = squares.values();
        for (int batch : {1, 2, 8}) {
            CAPTURE(batch);
            FloatXs few(batch * M * N), few_squares(batch * M * M);
            matmul(few, a, b, nullptr, batch, M, N, K, false, false, 1, 0, nullptr);
            matmul_symmetric(few_squares, x, nullptr, nullptr, batch, M, M, false, 1, 0, nullptr);
            CHECK(few.values() == Values(all_out.begin(), all_out.begin() + batch * M * N));
            CHECK(few_squares.values() == Values(all_squares.begin(), all_squares.begin() + batch * M * M));
        }
    }
}

TEST_CASE("matmul_symmetric is a matrix times its own transpose, scaled, and symmetric" * needs_matmul()) {
    struct Scales { float alpha, beta; };
    // One tile and its parts, several, and sizes that the tensor cores' kernel leaves to others.
    for (auto [M, K, batch] : {std::tuple{1, 1, 1}, {8, 8, 3}, {17, 33, 2}, {6, 32, 2}, {40, 7, 2}, {128, 32, 1}, {136, 72, 2}, {264, 200, 1}, {530, 24, 1}})
        for (bool transposed : {false, true})
            for (Scales s : {Scales{1, 0}, {2.0315f, -4.775f}})
                for (bool scaled : {false, true}) {
                    CAPTURE(M);
                    CAPTURE(K);
                    CAPTURE(transposed);
                    CAPTURE(s.beta);
                    CAPTURE(scaled);
                    Random random(M + K);
                    FloatXs x(random.floatXs(batch * M * K)), c(random.floatXs(batch * M * M)), out(batch * M * M);
                    Values all_c = c.values(), all_x = x.values(), want;
                    for (int i = 0; i < batch; i++)
                        for (int r = 0; r < M; r++)
                            for (int n = 0; n < r; n++) all_c[(i * M + n) * M + r] = all_c[(i * M + r) * M + n];
                    c.write(all_c);
                    const Values scales = scaled ? Floats({0.01, 3, 70}).values() : Values{1, 1, 1};
                    Floats scale(scales);
                    for (int i = 0; i < batch; i++) {
                        Values one = part(all_x, i, M * K);
                        one = reference_matmul({one, one, transposed, !transposed}, part(all_c, i, M * M), M, M, K, s.alpha, s.beta);
                        want.insert(want.end(), one.begin(), one.end());
                    }
                    matmul_symmetric(out, x, s.beta == 0 ? nullptr : c.data(), scaled ? scale.data() : nullptr, batch, M, K, transposed, s.alpha, s.beta,
                                     nullptr);
                    Values got = out.values();
                    for (int i = 0; i < batch * M * M; i++) got[i] /= scales[i / (M * M)];
                    // A scale may be a pass of its own, which rounds once more.
                    check_close("out", got, want, scaled ? 2 * ROUND : ROUND, (std::abs(s.alpha) + std::abs(s.beta)) * 4 * sum_error(K));
                    Values mirrored(got.size());
                    for (int i = 0; i < batch; i++)
                        for (int r = 0; r < M; r++)
                            for (int n = 0; n < M; n++) mirrored[(i * M + r) * M + n] = got[(i * M + n) * M + r];
                    check_close("mirror image", got, mirrored, scaled ? 2 * ROUND : ROUND, (std::abs(s.alpha) + std::abs(s.beta)) * 4 * sum_error(K));
                }
}

TEST_CASE("matmul_symmetric of a symmetric matrix, which is also what is added" * needs_matmul()) {
    Random random(4);
    const int M = 72;
    Values s(M * M);
    for (int r = 0; r < M; r++)
        for (int n = 0; n <= r; n++) s[r * M + n] = s[n * M + r] = random.floatXs(1)[0];
    FloatXs x(s), out(M * M);
    matmul_symmetric(out, x, x, nullptr, 1, M, M, false, 0.5f, -2, nullptr);
    check_close("out", out.values(), reference_matmul({s, s, false, true}, s, M, M, M, 0.5, -2), ROUND, 4 * sum_error(M));
}

TEST_CASE("a matmul run again gives the same bytes, and other shapes in between change nothing" * needs_matmul()) {
    Random random(1);
    FloatXs x(random.floatXs(40 * 72)), w(random.floatXs(24 * 72)), once(40 * 24), again(40 * 24), other(40 * 40);
    matmul_forward(once, x, w, 40, 72, 24, nullptr);
    matmul_forward(other, x, x, 40, 72, 40, nullptr);
    matmul_forward(again, x, w, 40, 72, 24, nullptr);
    CHECK(once.same_bytes(again));
}

TEST_CASE("matmul runs with the number of threads that is set at the call" * needs_matmul()) {
    Random random(2);
    FloatXs x(random.floatXs(64 * 48)), w(random.floatXs(56 * 48));
    Values want = reference_matmul({x.values(), w.values(), false, true}, {}, 64, 56, 48, 1, 0);
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
    CHECK_REFUSED("matmul", matmul(out, x, x, nullptr, 1, 0, 4, 4, false, false, 1, 0, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, nullptr, 1, 4, 0, 4, false, false, 1, 0, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, nullptr, 1, 4, 4, 0, false, false, 1, 0, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, nullptr, 0, 4, 4, 4, false, false, 1, 0, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, nullptr, 1, 4, 4, 4, false, false, 1, 1, nullptr));
    CHECK_REFUSED("matmul", matmul(out, x, x, out, 1, 4, 4, 4, false, false, 1, 1, nullptr));
    CHECK_REFUSED("matmul_symmetric", matmul_symmetric(out, x, nullptr, nullptr, 1, 0, 4, false, 1, 0, nullptr));
    CHECK_REFUSED("matmul_symmetric", matmul_symmetric(out, x, nullptr, nullptr, 1, 4, 0, false, 1, 0, nullptr));
    CHECK_REFUSED("matmul_symmetric", matmul_symmetric(out, x, nullptr, nullptr, 0, 4, 4, false, 1, 0, nullptr));
    CHECK_REFUSED("matmul_symmetric", matmul_symmetric(out, x, nullptr, nullptr, 1, 4, 4, false, 1, 1, nullptr));
    CHECK_REFUSED("matmul_flops", matmul_flops(8, 8, 8, 0));
}
