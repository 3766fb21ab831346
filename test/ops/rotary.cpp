// Rotary positions and QK norm against float64.
#include "llmc/ops/rotary.h"
#include "test/reference.h"

namespace {

constexpr float EPS = 1e-6f;
// Rounded once; before that a few fp32 operations, and sums over D in lanes.
constexpr double TOLERANCE = ROUND + 30 * FP32_ROUND, ABSOLUTE = 100 * FP32_ROUND;

struct Sizes { int B, T, H, HK, D, first; };
const std::vector<Sizes> SIZES = {{1, 1, 1, 1, 8, 0}, {2, 3, 2, 1, 16, 5}, {1, 5, 3, 3, 24, 0}, {3, 17, 4, 2, 64, 0}, {2, 33, 2, 2, 72, 100},
                                  {1, 5, 6, 3, 128, 0}};

int width(Sizes s) { return (s.H + 2 * s.HK) * s.D; }

// Rotates the pair (a, b) by `sign` times the angle.
void turn(double& a, double& b, double angle, int sign) {
    double c = std::cos(angle), s = sign * std::sin(angle), a0 = a;
    a = a0 * c - b * s;
    b = b * c + a0 * s;
}

double angle(int t, int i, int D) { return t * std::pow(10000.0, -2.0 * i / D); }

struct Result {
    Values qkv, rstd;
};

Result forward(Values qkv, Sizes s, bool qk_norm) {
    Values rstd;
    for (int n = 0; n < s.B * s.T; n++)
        for (int h = 0; h < s.H + s.HK; h++) {
            double *head = qkv.data() + n * width(s) + h * s.D, square = 0;
            for (int i = 0; i < s.D / 2; i++) turn(head[i], head[i + s.D / 2], angle(s.first + n % s.T, i, s.D), -1);
            for (int i = 0; i < s.D; i++) square += head[i] * head[i] / s.D;
            rstd.push_back(1 / std::sqrt(square + EPS));
            for (int i = 0; i < s.D && qk_norm; i++) head[i] *= rstd.back();
        }
    return {qkv, rstd};
}

Values backward(Values dqkv, const Values& qkv, const Values& rstd, Sizes s, bool qk_norm) {
    for (int n = 0; n < s.B * s.T; n++)
        for (int h = 0; h < s.H + s.HK; h++) {
            double *g = dqkv.data() + n * width(s) + h * s.D, mean = 0;
            const double* y = qkv.data() + n * width(s) + h * s.D;
            for (int i = 0; i < s.D; i++) mean += g[i] * y[i] / s.D;
            for (int i = 0; i < s.D && qk_norm; i++) g[i] = rstd[n * (s.H + s.HK) + h] * (g[i] - y[i] * mean);
            for (int i = 0; i < s.D / 2; i++) turn(g[i], g[i + s.D / 2], angle(n % s.T, i, s.D), 1);
        }
    return dqkv;
}

// The table on the device, for `rows` positions.
std::vector<float> host_table(int rows, int D) {
    std::vector<float> table(static_cast<size_t>(rows) * D);
    rotary_table(table.data(), rows, D);
    return table;
}
Values table_for(int rows, int D) {
    std::vector<float> table = host_table(rows, D);
    return Values(table.begin(), table.end());
}

}  // namespace

TEST_CASE("rotary_table holds cosines, then sines, of t * 10000^(-2i/D)") {
    for (int D : {8, 24, 128}) {
        const int T = 2048;
        Values table = table_for(T, D), want(T * D);
        for (int t = 0; t < T; t++)
            for (int i = 0; i < D / 2; i++) {
                want[t * D + i] = std::cos(angle(t, i, D));
                want[t * D + D / 2 + i] = std::sin(angle(t, i, D));
            }
        check_close("table", table, want, FP32_ROUND, 1e-11);   // computed in double: an angle of 2048 has 12 digits after the point
    }
}

TEST_CASE("rotary_forward rotates queries and keys, norms them, and leaves values alone") {
    for (Sizes s : SIZES)
        for (bool qk_norm : {false, true}) {
            CAPTURE(s.D);
            CAPTURE(qk_norm);
            FloatXs qkv(Random(s.D).floatXs(s.B * s.T * width(s), 2));
            Floats table(table_for(s.first + s.T, s.D)), table_before(table.values()), rstd(s.B * s.T * (s.H + s.HK));
            Result want = forward(qkv.values(), s, qk_norm);
            rotary_forward(qkv, rstd, table, s.B, s.T, s.H, s.HK, s.D, s.first, qk_norm, EPS, nullptr);
            check_close("qkv", qkv.values(), want.qkv, TOLERANCE, ABSOLUTE);
            if (qk_norm) check_close("rstd", rstd.values(), want.rstd, 100 * FP32_ROUND, 0);
            else CHECK(rstd.same_bytes(Floats(rstd.size)));     // not written
            CHECK(table.same_bytes(table_before));
        }
}

TEST_CASE("rotary_forward leaves value heads bit for bit") {
    Sizes s{2, 5, 4, 2, 16, 0};
    Values start = Random(1).floatXs(s.B * s.T * width(s));
    FloatXs qkv(start);
    Floats table(table_for(s.T, s.D)), rstd(s.B * s.T * (s.H + s.HK));
    rotary_forward(qkv, rstd, table, s.B, s.T, s.H, s.HK, s.D, 0, true, EPS, nullptr);
    rotary_backward(qkv, qkv, rstd, table, s.B, s.T, s.H, s.HK, s.D, false, nullptr);
    Values end = qkv.values();
    for (int n = 0; n < s.B * s.T; n++)
        for (int i = (s.H + s.HK) * s.D; i < width(s); i++) CHECK(end[n * width(s) + i] == start[n * width(s) + i]);
}

TEST_CASE("rotary_backward is the formula") {
    for (Sizes s : SIZES)
        for (bool qk_norm : {false, true}) {
            CAPTURE(s.D);
            CAPTURE(qk_norm);
            s.first = 0;
            Random random(s.D);
            Result out = forward(random.floatXs(s.B * s.T * width(s), 2), s, qk_norm);
            FloatXs qkv(out.qkv), qkv_before(out.qkv), dqkv(random.floatXs(s.B * s.T * width(s)));
            Floats table(table_for(s.T, s.D)), rstd(out.rstd);
            Values want = backward(dqkv.values(), qkv.values(), rstd.values(), s, qk_norm);
            rotary_backward(dqkv, qkv, rstd, table, s.B, s.T, s.H, s.HK, s.D, qk_norm, nullptr);
            check_close("dqkv", dqkv.values(), want, TOLERANCE, ABSOLUTE);
            CHECK(qkv.same_bytes(qkv_before));
        }
}

TEST_CASE("rotary_backward is the slope of rotary_forward" * doctest::skip(!FP32)) {
    Sizes s{1, 5, 2, 1, 16, 0};
    const int n = s.B * s.T * width(s);
    Values x = Random(2).floats(n), weights = Random(3).floats(n);
    Floats table(table_for(s.T, s.D)), rstd(s.B * s.T * (s.H + s.HK));
    for (bool qk_norm : {false, true}) {
        CAPTURE(qk_norm);
        FloatXs qkv(x), dqkv(weights);
        rotary_forward(qkv, rstd, table, s.B, s.T, s.H, s.HK, s.D, 0, qk_norm, EPS, nullptr);
        rotary_backward(dqkv, qkv, rstd, table, s.B, s.T, s.H, s.HK, s.D, qk_norm, nullptr);
        // h^2 times a third derivative of about 1, and fp32 noise of 320 terms over h
        check_gradient("dqkv", x, dqkv.values(), 1e-2, 1e-3, [&](const Values& at) {
            FloatXs there(at);
            Floats unused(rstd.size);
            rotary_forward(there, unused, table, s.B, s.T, s.H, s.HK, s.D, 0, qk_norm, EPS, nullptr);
            return dot(there.values(), weights);
        });
    }
}

TEST_CASE("rotary refuses wrong sizes") {
    FloatXs qkv(Values(512, 1)), dqkv(Values(512, 1));
    Floats rstd(16), table(table_for(8, 8));
    std::vector<float> rows(64);
    struct Wrong { int first, B, T, H, HK, D; };
    for (Wrong w : {Wrong{0, 0, 1, 1, 1, 8}, {0, 1, 0, 1, 1, 8}, {0, 1, 1, 0, 1, 8}, {0, 1, 1, 1, 0, 8}, {0, 1, 1, 3, 2, 8}, {0, 1, 1, 1, 2, 8},
                    {0, 1, 1, 1, 1, 12}, {0, 1, 1, 1, 1, 0}}) {
        CHECK_REFUSED("rotary_forward", rotary_forward(qkv, rstd, table, w.B, w.T, w.H, w.HK, w.D, w.first, true, EPS, nullptr));
        CHECK_REFUSED("rotary_backward", rotary_backward(dqkv, qkv, rstd, table, w.B, w.T, w.H, w.HK, w.D, true, nullptr));
    }
    CHECK_REFUSED("rotary_forward", rotary_forward(qkv, rstd, table, 1, 1, 1, 1, 8, -1, true, EPS, nullptr));
    CHECK_REFUSED("rotary_table", rotary_table(rows.data(), 0, 8));
    CHECK_REFUSED("rotary_table", rotary_table(rows.data(), 1, 12));
}
