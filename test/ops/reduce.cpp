// Sums and checks over whole tensors against float64.
#include "llmc/ops/reduce.h"
#include <algorithm>
#include "test/reference.h"

TEST_CASE("sum_of_squares is exact to fp32, whatever the number of threads") {
    for (int n : {1, 3, 1023, 1024, 1025, 100003}) {
        CAPTURE(n);
        Floats x(Random(n).floats(n)), scratch(REDUCE_PARTS), out(1);
        double want = dot(x.values(), x.values());
        sum_of_squares(out, scratch, x, n, nullptr);
        // terms are positive; a partial sum has at most 100 of them in fp32
        check_close("sum", out.values(), {want}, 100 * FP32_ROUND, 0);
        scratch.read();
        if (n < 1025) continue;   // parts of one element at most: no sum whose order could change
        for (int threads : {1, 3})
            with_threads(threads, [&] {
                Floats again(1);
                sum_of_squares(again, scratch, x, n, nullptr);
                CHECK(again.same_bytes(out));
            });
    }
}

TEST_CASE("sum_of_squares keeps its digits over many terms") {
    const int n = 1 << 22;
    Floats x(Values(n, 0.1f)), scratch(REDUCE_PARTS), out(1);
    sum_of_squares(out, scratch, x, n, nullptr);
    const double square = static_cast<double>(0.1f) * 0.1f;
    // a partial sum has 4096 equal terms, whose rounding errors all may point one way: in lanes of 8 or more, 512 of them
    check_close("sum", out.values(), {n * square}, 512 * FP32_ROUND, 0);
}

TEST_CASE("mean_loss is exact to fp64, and adds up over micro-batches") {
    for (int n : {1, 7, 1023, 1024, 1025, 10007}) {
        CAPTURE(n);
        Values x = Random(n).floats(n);
        Floats losses(x);
        Guarded<double> total(Values{0.5}), last(1);
        double want = 0.5, mean = 0;
        for (double share : {0.25, 0.75}) {
            mean_loss(total, last, losses, n, n + 1, share, nullptr);   // one target more than there are losses: it divides by what it is told
            mean = 0;
            for (double loss : x) mean += loss / (n + 1);
            want += share * mean;
        }
        // sums of n terms about 1 in double, in any order: n rounding errors of 2^-53 at most
        check_close("last", last.values(), {mean}, 0, n * 0x1p-53);
        check_close("total", total.values(), {want}, 0, n * 0x1p-53 + 0x1p-52);
    }
}

/// The sum of `count` parts from part `first` on, of a tree over `width` of them, a power of two.
static float sum_of_tree(const std::vector<float>& of_parts, int first, int count, int width) {
    if (width == 1) return of_parts[first];
    const int left = std::min(count, width / 2);
    const float sum = sum_of_tree(of_parts, first, left, width / 2);
    return count == left ? sum : sum + sum_of_tree(of_parts, first + left, count - left, width / 2);
}

TEST_CASE("tree_sum adds pairs, then pairs of those: the same bits as by hand, and as of sums that others made") {
    for (int count : {1, 2, 3, 4, 5, 6, 7, 8, 13, 16, 31, 63, 64, 65, 100})
        for (int n : {1, 7, 256, 1001}) {
            CAPTURE(count);
            CAPTURE(n);
            const Values x = Random(count * 10000 + n).floats(count * n);
            Values want(n);
            for (int i = 0; i < n; i++) {
                std::vector<float> column(count);
                for (int part = 0; part < count; part++) column[part] = static_cast<float>(x[part * n + i]);
                int width = 1;
                while (width < count) width *= 2;
                want[i] = sum_of_tree(column, 0, count, width);
            }
            Floats parts(x), out(n);
            for (int threads : {1, 3}) {
                with_threads(threads, [&] { tree_sum(out, parts, count, n, nullptr); });
                CHECK(out.values() == want);
            }
            CHECK(parts.values() == x);
            tree_sum(parts, parts, count, n, nullptr);   // in place
            const Values after = parts.values();
            CHECK(Values(after.begin(), after.begin() + n) == want);
            CHECK(std::equal(after.begin() + n, after.end(), x.begin() + n));
            if (count == 1 || (count & (count - 1)) != 0) continue;   // halves of a whole tree are parts of one
            Floats halves(2 * n), first(Values(x.begin(), x.begin() + count / 2 * n)), second(Values(x.begin() + count / 2 * n, x.end()));
            tree_sum(halves, first, count / 2, n, nullptr);
            tree_sum(halves.data() + n, second, count / 2, n, nullptr);
            tree_sum(out, halves, 2, n, nullptr);
            CHECK(out.values() == want);
        }
}

TEST_CASE("first_nonfinite finds the first") {
    const double nan = std::nan(""), infinity = INFINITY;
    for (int n : {1, 5, 1000, 70001}) {
        CAPTURE(n);
        Values x = Random(n).floatXs(n);
        CHECK(first_nonfinite(Floats(x).data(), n, nullptr) == -1);
        CHECK(first_nonfinite(Guarded<bf16>(x).data(), n, nullptr) == -1);
        for (int at : {0, std::min(n - 1, 1536), n / 2, n - 1})   // 1536: in the second round of a GPU of 3 multiprocessors
            for (double bad : {nan, infinity, -infinity}) {
                Values y = x;
                y[at] = bad;
                y[n - 1] = bad;
                CHECK(first_nonfinite(Floats(y).data(), n, nullptr) == at);
                CHECK(first_nonfinite(Guarded<bf16>(y).data(), n, nullptr) == at);
            }
    }
}

TEST_CASE("cast rounds to the storage type, to even where it is between two") {
    Values x = Random(1).floats(10007, 100);
    x[0] = 1 + 1.0 / 256;            // between two bf16: to 1
    x[1] = 1 + 3.0 / 256;            // between two: to 1 + 4/256
    x[2] = 3.4e38;                   // beyond the greatest bf16: infinity
    x[3] = -0.0;
    Floats in(x);
    FloatXs out(x.size());
    cast(out, in, static_cast<int64_t>(x.size()), nullptr);
    CHECK(out.same_bytes(FloatXs(x)));
    if (!FP32) {
        Values got = out.values();
        CHECK(got[0] == 1);
        CHECK(got[1] == 1 + 4.0 / 256);
        CHECK(std::isinf(got[2]));
    }
}

TEST_CASE("reduce refuses wrong sizes") {
    Floats x(Values(8, 1)), scratch(REDUCE_PARTS), out(1);
    FloatXs rounded(8);
    CHECK_REFUSED("sum_of_squares", sum_of_squares(out, scratch, x, 0, nullptr));
    Guarded<double> total(1), last(1);
    CHECK_REFUSED("mean_loss", mean_loss(total, last, x, 0, 1, 1, nullptr));
    CHECK_REFUSED("tree_sum", tree_sum(out, x, 0, 1, nullptr));
    CHECK_REFUSED("tree_sum", tree_sum(out, x, 1, 0, nullptr));
    CHECK_REFUSED("cast", cast(rounded, x, 0, nullptr));
}
