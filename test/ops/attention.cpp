// Attention against float64.
#include "llmc/ops/attention.h"
#include "test/needs.h"
#include "test/reference.h"

namespace {

struct Sizes { int B, T, H, HK, D, window; };

int width(Sizes s) { return (s.H + 2 * s.HK) * s.D; }

// One head's slices of qkv, whose rows are `width` apart.
struct Head {
    const double *q, *k, *v;
    int width;
    Head(const Values& qkv, Sizes s, int b, int h) : width(::width(s)) {
        int g = h / (s.H / s.HK);
        q = qkv.data() + b * s.T * width + h * s.D;
        k = qkv.data() + b * s.T * width + (s.H + g) * s.D;
        v = k + s.HK * s.D;
    }
};

// The softmax of row t over the keys s in [0, t], 0 for those outside the window; and its log denominator.
Values softmax_row(const Head& head, Sizes s, int t, double* lse) {
    Values p(t + 1, -INFINITY);
    double row_max = -INFINITY, sum = 0;
    for (int j = std::max(0, t - s.window); j <= t; j++) {
        double score = 0;
        for (int d = 0; d < s.D; d++) score += head.q[t * head.width + d] * head.k[j * head.width + d];
        p[j] = score / std::sqrt(s.D);
        row_max = std::max(row_max, p[j]);
    }
    for (double& x : p) sum += x = std::exp(x - row_max);
    for (double& x : p) x /= sum;
    *lse = row_max + std::log(sum);
    return p;
}

struct Forward {
    Values y, lse;
};

Forward forward(const Values& qkv, Sizes s) {
    Forward out{Values(s.B * s.T * s.H * s.D, 0), Values(s.B * s.H * s.T)};
    for (int b = 0; b < s.B; b++)
        for (int h = 0; h < s.H; h++)
            for (int t = 0; t < s.T; t++) {
                Head head(qkv, s, b, h);
                Values p = softmax_row(head, s, t, &out.lse[(b * s.H + h) * s.T + t]);
                double* y = out.y.data() + ((b * s.T + t) * s.H + h) * s.D;
                for (int j = 0; j <= t; j++)
                    for (int d = 0; d < s.D; d++) y[d] += p[j] * head.v[j * head.width + d];
            }
    return out;
}

Values backward(const Values& dy, const Values& qkv, Sizes s) {
    Values dqkv(qkv.size(), 0);
    for (int b = 0; b < s.B; b++)
        for (int h = 0; h < s.H; h++)
            for (int t = 0; t < s.T; t++) {
                Head head(qkv, s, b, h);
                double lse, delta = 0;
                Values p = softmax_row(head, s, t, &lse), dp(t + 1, 0);
                const double* g = dy.data() + ((b * s.T + t) * s.H + h) * s.D;
                double* dq = dqkv.data() + (head.q - qkv.data());
                double* dk = dqkv.data() + (head.k - qkv.data());
                double* dv = dqkv.data() + (head.v - qkv.data());
                for (int j = 0; j <= t; j++) {
                    for (int d = 0; d < s.D; d++) dp[j] += g[d] * head.v[j * head.width + d];
                    delta += p[j] * dp[j];
                }
                for (int j = 0; j <= t; j++) {
                    double ds = p[j] * (dp[j] - delta) / std::sqrt(s.D);
                    for (int d = 0; d < s.D; d++) {
                        dq[t * head.width + d] += ds * head.k[j * head.width + d];
                        dk[j * head.width + d] += ds * head.q[t * head.width + d];
                        dv[j * head.width + d] += p[j] * g[d];
                    }
                }
            }
    return dqkv;
}

// Every head size and odd length; windows of nothing, one, a few, all, and beyond; grouped heads; lengths that cross the
// tiles of the CPU's and CUDA's kernels, in one head, because float64 loops are slow. With heads of 64 and 128, for Hopper's kernels:
// sequences and windows that end within a warpgroup's 64 rows, one row beyond them, and before the last warpgroup's; more tiles than
// the emulated SMs; and walks longer than the rings.
const std::vector<Sizes> SIZES = {
    {1, 1, 1, 1, 8, 1},      {2, 5, 2, 1, 16, 0},     {1, 17, 3, 3, 24, 1},    {2, 33, 4, 2, 64, 5},    {1, 33, 2, 2, 72, 33},
    {1, 33, 6, 2, 128, 32},  {1, 70, 2, 1, 8, 1000},  {1, 129, 1, 1, 8, 64},   {1, 200, 2, 2, 16, 3},   {1, 300, 2, 1, 16, 131},
    {1, 700, 1, 1, 8, 700},  {1, 700, 1, 1, 8, 600},  {1, 641, 1, 1, 8, 13},   {1, 1, 1, 1, 64, 0},     {2, 65, 2, 1, 128, 64},
    {3, 129, 1, 1, 64, 128}, {1, 257, 4, 1, 64, 63},  {1, 193, 2, 2, 128, 0},  {1, 300, 2, 1, 128, 65}, {1, 385, 1, 1, 128, 385},
    {1, 641, 1, 1, 64, 641}, {1, 130, 2, 1, 136, 70}};

// Probabilities are rounded to the storage type before they meet the values; a row's weights sum to one, and each is off by
// at most ROUND of itself, so y is off by at most ROUND * max |v| (about 4 in a few thousand normal values), and a bit of fp32.
constexpr double Y_ABSOLUTE = 4 * ROUND + 100 * FP32_ROUND;

struct Scratch {
    void* memory;
    explicit Scratch(Sizes s) : memory(device_alloc(attention_scratch(s.B, s.T, s.H, s.HK, s.D))) {}
    ~Scratch() { device_free(memory); }
    operator void*() { return memory; }
};

// Calls test() with each set of kernels that the device has for these sizes.
template <class Test>
void with_all_kernels(Test test) {
    for (bool hopper : {false, true})
        if (attention_use_hopper(hopper) == hopper) {
            CAPTURE(hopper);
            test();
        }
}

double norm(const Values& x) { return std::sqrt(dot(x, x) / static_cast<double>(x.size())); }

}  // namespace

TEST_CASE("attention_forward is the softmax of the scores, times the values" * needs_matmul()) {
    for (Sizes s : SIZES) {
        CAPTURE(s.T);
        CAPTURE(s.D);
        CAPTURE(s.window);
        FloatXs qkv(Random(s.T + s.D).floatXs(s.B * s.T * width(s))), before(qkv.values());
        Scratch scratch(s);
        Forward want = forward(qkv.values(), s);
        with_all_kernels([&] {
            FloatXs y(s.B * s.T * s.H * s.D);
            Floats lse(s.B * s.H * s.T);
            attention_forward(y, lse, scratch, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
            check_close("y", y.values(), want.y, ROUND, Y_ABSOLUTE);
            // scores of size up to about 5, sums of up to 700 terms in lanes
            check_close("lse", lse.values(), want.lse, 100 * FP32_ROUND, 100 * FP32_ROUND);
            CHECK(qkv.same_bytes(before));
        });
    }
}

TEST_CASE("attention_backward is the gradient" * needs_matmul()) {
    for (Sizes s : SIZES) {
        CAPTURE(s.T);
        CAPTURE(s.D);
        CAPTURE(s.window);
        Random random(s.T + s.D);
        FloatXs qkv(random.floatXs(s.B * s.T * width(s))), dy(random.floatXs(s.B * s.T * s.H * s.D));
        Forward out = forward(qkv.values(), s);
        FloatXs y(out.y), dy_before(dy.values()), qkv_before(qkv.values());
        Floats lse(out.lse);
        Scratch scratch(s);
        Values want = backward(dy.values(), qkv.values(), s);
        // Softmax and its gradient are rounded to the storage type, and so is y, whose product with dy is subtracted: an error of
        // ROUND in each term, against terms that are summed over keys or queries; 20 times the root mean square for the rare sums.
        double size = norm(want);
        with_all_kernels([&] {
            FloatXs dqkv(qkv.size);
            attention_backward(dqkv, scratch, dy, y, lse, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
            check_close("dqkv", dqkv.values(), want, 3 * ROUND, 20 * ROUND * size + 200 * FP32_ROUND);
            CHECK(qkv.same_bytes(qkv_before));
            CHECK(dy.same_bytes(dy_before));
        });
    }
}

// On a GPU of 132 SMs the sizes above give a block one tile at most; here each works on several, with slots and rings used again,
// warpgroups that have no rows, and both orders of the tiles.
TEST_CASE("attention: Hopper's kernels give what the others give where a block has many tiles") {
    if (!attention_use_hopper(true)) return;
    const bool emulated = device_name().starts_with("Emulated");
    const std::vector<Sizes> sizes = emulated ? std::vector<Sizes>{{6, 70, 2, 1, 64, 70}, {5, 40, 2, 2, 128, 20}, {4, 200, 1, 1, 64, 7}}
                                              : std::vector<Sizes>{{128, 200, 4, 2, 64, 200}, {24, 200, 12, 12, 64, 50}, {256, 64, 2, 2, 64, 64},
                                                                   {300, 70, 2, 1, 64, 9}, {12, 1090, 4, 4, 128, 300}, {150, 40, 4, 2, 128, 40}};
    for (Sizes s : sizes) {
        CAPTURE(s.B);
        CAPTURE(s.T);
        CAPTURE(s.D);
        Random random(s.T);
        FloatXs qkv(random.floatXs(static_cast<size_t>(s.B) * s.T * width(s))), dy(random.floatXs(static_cast<size_t>(s.B) * s.T * s.H * s.D));
        Scratch scratch(s);
        FloatXs y(dy.size), dqkv(qkv.size), hopper_y(dy.size), hopper_dqkv(qkv.size);
        Floats lse(static_cast<size_t>(s.B) * s.H * s.T), hopper_lse(lse.size);
        for (bool hopper : {false, true}) {
            attention_use_hopper(hopper);
            attention_forward(hopper ? hopper_y : y, hopper ? hopper_lse : lse, scratch, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
            attention_backward(hopper ? hopper_dqkv : dqkv, scratch, dy, y, lse, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
        }
        // each may be off by as much as the tests of the formula allow
        check_close("y", hopper_y.values(), y.values(), 2 * ROUND, 2 * Y_ABSOLUTE);
        check_close("lse", hopper_lse.values(), lse.values(), 200 * FP32_ROUND, 200 * FP32_ROUND);
        check_close("dqkv", hopper_dqkv.values(), dqkv.values(), 6 * ROUND, 40 * ROUND * norm(dqkv.values()) + 400 * FP32_ROUND);
    }
}

TEST_CASE("attention_backward is right on the whole: the error's norm is below the rounding of a few matmuls" * needs_matmul()) {
    for (Sizes s : {Sizes{1, 300, 4, 2, 64, 300}, {1, 300, 2, 2, 64, 100}, {1, 300, 2, 1, 128, 200}}) {
        Random random(s.window);
        FloatXs qkv(random.floatXs(s.B * s.T * width(s))), dy(random.floatXs(s.B * s.T * s.H * s.D));
        Forward out = forward(qkv.values(), s);
        FloatXs y(out.y);
        Floats lse(out.lse);
        Scratch scratch(s);
        Values want = backward(dy.values(), qkv.values(), s);
        with_all_kernels([&] {
            FloatXs dqkv(qkv.size);
            attention_backward(dqkv, scratch, dy, y, lse, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
            Values error = dqkv.values();
            for (size_t i = 0; i < error.size(); i++) error[i] -= want[i];
            // independent roundings of p, ds and the result, each ROUND / sqrt(3) on average
            CHECK(norm(error) <= (1.5 * ROUND + 10 * FP32_ROUND) * norm(want));
        });
    }
}

TEST_CASE("attention of large scores neither overflows nor loses a row" * needs_matmul()) {
    for (Sizes s : {Sizes{1, 40, 1, 1, 8, 40}, {1, 150, 1, 1, 64, 150}}) {
        Values start = Random(1).floatXs(s.T * width(s));
        for (int t = 0; t < s.T; t++)
            for (int d = 0; d < 2 * s.D; d++) start[t * width(s) + d] *= 64;        // scores in the ten thousands
        FloatXs qkv(start), dy(Values(s.T * s.D, 1));
        Scratch scratch(s);
        Forward want = forward(qkv.values(), s);
        with_all_kernels([&] {
            FloatXs y(s.T * s.D), dqkv(qkv.size);
            Floats lse(s.T);
            attention_forward(y, lse, scratch, qkv, 1, s.T, 1, 1, s.D, s.window, nullptr);
            // a score of 2^14 has an error of 2^14 * a few fp32 roundings, and the probabilities' error is as large
            const double score_error = (1 << 14) * 8 * FP32_ROUND;
            check_close("y", y.values(), want.y, ROUND, Y_ABSOLUTE + 4 * score_error);
            check_close("lse", lse.values(), want.lse, 8 * FP32_ROUND, 0.001);
            attention_backward(dqkv, scratch, dy, y, lse, qkv, 1, s.T, 1, 1, s.D, s.window, nullptr);
            for (double v : dqkv.values())
                if (!std::isfinite(v)) FAIL_CHECK("a gradient is ", v);
        });
    }
}

TEST_CASE("attention_backward is the slope of attention_forward" * doctest::skip(!FP32)) {
    for (Sizes s : {Sizes{1, 9, 2, 1, 8, 9}, {2, 9, 2, 2, 8, 3}}) {
        Random random(3);
        Values x = random.floats(s.B * s.T * width(s)), weights = random.floats(s.B * s.T * s.H * s.D);
        FloatXs qkv(x), dy(weights), y(weights.size()), dqkv(x.size());
        Floats lse(s.B * s.H * s.T);
        Scratch scratch(s);
        attention_forward(y, lse, scratch, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
        attention_backward(dqkv, scratch, dy, y, lse, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
        // h^2 times a third derivative of a few, and fp32 noise of 300 terms over h
        check_gradient("dqkv", x, dqkv.values(), 1e-2, 2e-3, [&](const Values& at) {
            FloatXs there(at), out(weights.size());
            Floats unused(lse.size);
            attention_forward(out, unused, scratch, there, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
            return dot(out.values(), weights);
        });
    }
}

TEST_CASE("attention gives the same bytes again, and with another number of threads" * needs_matmul()) {
    for (Sizes s : {Sizes{2, 150, 4, 2, 16, 70}, {2, 150, 2, 1, 64, 70}}) {
        Random random(4);
        FloatXs qkv(random.floatXs(s.B * s.T * width(s))), dy(random.floatXs(s.B * s.T * s.H * s.D)), y(dy.size), dqkv(qkv.size);
        Floats lse(s.B * s.H * s.T);
        auto run = [&](FloatXs& y_out, Floats& lse_out, FloatXs& dqkv_out) {
            Scratch scratch(s);
            attention_forward(y_out, lse_out, scratch, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
            attention_backward(dqkv_out, scratch, dy, y_out, lse_out, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr);
        };
        with_all_kernels([&] {
            run(y, lse, dqkv);
            for (int threads : {omp_get_max_threads(), 1, 3})
                with_threads(threads, [&] {
                    FloatXs y_again(y.size), dqkv_again(dqkv.size);
                    Floats lse_again(lse.size);
                    run(y_again, lse_again, dqkv_again);
                    CHECK(y_again.same_bytes(y));
                    CHECK(lse_again.same_bytes(lse));
                    CHECK(dqkv_again.same_bytes(dqkv));
                });
        });
    }
}

TEST_CASE("attention_cached, in steps of any size, is attention_forward") {
    for (Sizes s : {Sizes{1, 33, 2, 1, 16, 40}, {1, 33, 4, 2, 8, 5}, {1, 33, 3, 3, 64, 0}, {1, 150, 2, 2, 24, 100}}) {
        CAPTURE(s.D);
        CAPTURE(s.window);
        Values all = Random(s.D).floatXs(s.T * width(s));
        Forward want = forward(all, s);
        const int capacity = s.T + 3;
        FloatXs kcache(capacity * s.HK * s.D), vcache(capacity * s.HK * s.D);
        Values got;
        for (int past = 0, step = 0; past < s.T; step++) {
            int count = std::min(step % 2 == 0 ? 1 : 11, s.T - past);
            FloatXs qkv(Values(all.begin() + past * width(s), all.begin() + (past + count) * width(s))), y(count * s.H * s.D);
            attention_cached(y, kcache, vcache, qkv, count, capacity, s.H, s.HK, s.D, past, s.window, nullptr);
            Values part = y.values();
            got.insert(got.end(), part.begin(), part.end());
            past += count;
        }
        check_close("y", got, want.y, ROUND, Y_ABSOLUTE);
        // the cache holds the keys and values as they came, and nothing is written beyond them
        Values keys = kcache.values(), values = vcache.values();
        const int CK = s.HK * s.D;
        for (int t = 0; t < capacity; t++)
            for (int c = 0; c < CK; c++) {
                if (t >= s.T) {
                    if (!std::isnan(keys[t * CK + c]) || !std::isnan(values[t * CK + c])) FAIL_CHECK("row ", t, " of the cache was written");
                } else if (keys[t * CK + c] != all[t * width(s) + s.H * s.D + c] || values[t * CK + c] != all[t * width(s) + (s.H + s.HK) * s.D + c]) {
                    FAIL_CHECK("row ", t, " of the cache is wrong");
                }
            }
    }
}

TEST_CASE("attention refuses wrong sizes") {
    FloatXs qkv(Values(512, 1)), y(512), dqkv(512), kcache(64), vcache(64);
    Floats lse(64);
    Scratch scratch({1, 8, 1, 1, 8, 8});
    for (Sizes s : {Sizes{0, 1, 1, 1, 8, 1}, {1, 0, 1, 1, 8, 1}, {1, 1, 0, 1, 8, 1}, {1, 1, 1, 0, 8, 1}, {1, 1, 3, 2, 8, 1}, {1, 1, 1, 2, 8, 1},
                    {1, 1, 1, 1, 12, 1}, {1, 1, 1, 1, 0, 1}, {1, 1, 1, 1, 8, -1}}) {
        CHECK_REFUSED("attention_forward", attention_forward(y, lse, scratch, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr));
        CHECK_REFUSED("attention_backward", attention_backward(dqkv, scratch, y, y, lse, qkv, s.B, s.T, s.H, s.HK, s.D, s.window, nullptr));
        if (s.window >= 0) CHECK_REFUSED("attention_scratch", attention_scratch(s.B, s.T, s.H, s.HK, s.D));
        if (s.B == 1) CHECK_REFUSED("attention_cached", attention_cached(y, kcache, vcache, qkv, s.T, 8, s.H, s.HK, s.D, 0, s.window, nullptr));
    }
    CHECK_REFUSED("attention_cached", attention_cached(y, kcache, vcache, qkv, 1, 8, 1, 1, 8, -1, 1, nullptr));
    CHECK_REFUSED("attention_cached", attention_cached(y, kcache, vcache, qkv, 1, 8, 1, 1, 8, 8, 1, nullptr));
    CHECK_REFUSED("attention_cached", attention_cached(y, kcache, vcache, qkv, 9, 8, 1, 1, 8, 0, 1, nullptr));
}
