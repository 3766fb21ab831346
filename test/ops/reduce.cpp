// Sums and checks over whole tensors against float64.
#include "llmc/ops/reduce.h"
#include <algorithm>
#include "llmc/device/device.h"
#include "test/reference.h"

namespace {

/// Spans on the device.
struct Spans {
    explicit Spans(const std::vector<Span>& list) : count(static_cast<int>(list.size())), device(static_cast<Span*>(device_alloc(list.size() * sizeof(Span)))) {
        copy_to_device(device, list.data(), list.size() * sizeof(Span), nullptr);
    }
    ~Spans() { device_free(device); }
    const int count;
    Span* const device;
};

}  // namespace

TEST_CASE("sums_of_squares are exact to fp32, whatever the number of threads") {
    // Short spans, ends of vectors of four, one that takes several rounds of a block; gaps between them, and one that lies in another.
    const std::vector<Span> list{{0, 1}, {4, 3}, {8, 4}, {16, 5}, {64, 1023}, {1088, 1024}, {2112, 1025}, {4, 100003}, {100032, 7}};
    const Values numbers = Random(5).floats(100039);
    Floats x(numbers), out(list.size());
    Spans spans(list);
    sums_of_squares(out, x, spans.device, spans.count, nullptr);
    Values want;
    for (const Span& span : list) {
        const Values own(numbers.begin() + span.begin, numbers.begin() + span.begin + span.count);
        want.push_back(dot(own, own));
    }
    // terms are positive; a lane of fp32 sums has at most 400 of them, in eights or more
    check_close("sums", out.values(), want, 512 * FP32_ROUND, 0);
    for (int threads : {1, 3})
        with_threads(threads, [&] {
            Floats again(list.size());
            sums_of_squares(again, x, spans.device, spans.count, nullptr);
            CHECK(again.same_bytes(out));
        });
}

TEST_CASE("sums_of_squares keep their digits over many terms") {
    const int n = 1 << 20;
    Floats x(Values(n, 0.1f)), out(1);
    Spans spans({{0, n}});
    sums_of_squares(out, x, spans.device, 1, nullptr);
    const double square = static_cast<double>(0.1f) * 0.1f;
    // a lane has 4096 equal terms, whose rounding errors all may point one way
    check_close("sum", out.values(), {n * square}, 4096 * FP32_ROUND, 0);
}

TEST_CASE("add adds") {
    for (int n : {1, 3, 4, 1023, 1024, 1025, 100003}) {
        CAPTURE(n);
        const Values a = Random(n).floats(n), b = Random(n + 1).floats(n);
        Floats sum(a), x(b);
        add(sum, x, n, nullptr);
        Values want;
        for (int i = 0; i < n; i++) want.push_back(static_cast<float>(a[i]) + static_cast<float>(b[i]));   // in fp32
        CHECK(sum.values() == want);
    }
}

TEST_CASE("mean_loss is exact to fp64, and adds up over micro-batches") {
    for (int n : {1, 7, 1023, 1024, 1025, 10007}) {
        CAPTURE(n);
        Values x = Random(n).floats(n);
        Floats losses(x);
        Guarded<double> total(Values{0.5}), last(1);
        double want = 0.5, mean = 0;
        for (double share : {0.25, 0.75}) {
            mean_loss(total, last, losses, n, n + 1, share, nullptr);   // one target more than there are losses: it divides by `valid`, not by n
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

TEST_CASE("tree_sum adds pairs, then pairs of those: the same bits as by hand, and as over sums of subtrees") {
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
        for (int at : {0, std::min(n - 1, 1536), n / 2, n - 1})   // 1536: in the second round of a GPU of 3 SMs
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
    x[2] = 3.4e38;                   // beyond the largest bf16: infinity
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
    Floats x(Values(8, 1)), out(1);
    FloatXs rounded(8);
    CHECK_REFUSED("sums_of_squares", sums_of_squares(out, x, nullptr, -1, nullptr));
    CHECK_REFUSED("add", add(out, x, 0, nullptr));
    Guarded<double> total(1), last(1);
    CHECK_REFUSED("mean_loss", mean_loss(total, last, x, 0, 1, 1, nullptr));
    CHECK_REFUSED("tree_sum", tree_sum(out, x, 0, 1, nullptr));
    CHECK_REFUSED("tree_sum", tree_sum(out, x, 1, 0, nullptr));
    CHECK_REFUSED("cast", cast(rounded, x, 0, nullptr));
}
