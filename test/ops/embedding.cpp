// Token embeddings against plain loops.
#include "llmc/ops/embedding.h"
#include <algorithm>
#include <numeric>
#include "test/reference.h"

namespace {

struct Sizes { int N, V, C; };
const std::vector<Sizes> SIZES = {{1, 1, 8}, {3, 5, 24}, {17, 3, 64}, {33, 1000, 40}, {300, 7, 128}};

// Tokens with repeats, and the first and the last of the vocabulary among them.
Values tokens(Sizes s) {
    Values idx = Random(s.N).ints(s.N, s.V);
    idx[0] = s.V - 1;
    idx[s.N - 1] = 0;
    return idx;
}

Values ascending(const Values& idx) {
    Values order(idx.size());
    std::iota(order.begin(), order.end(), 0);
    std::stable_sort(order.begin(), order.end(), [&](double i, double j) { return idx[static_cast<size_t>(i)] < idx[static_cast<size_t>(j)]; });
    return order;
}

}  // namespace

TEST_CASE("token_order sorts positions by token and keeps equal ones in order") {
    for (Sizes s : SIZES) {
        CAPTURE(s.N);
        Ints idx(tokens(s)), order(s.N), scratch(s.V + 1);
        token_order(order, scratch, idx, s.N, s.V, nullptr);
        CHECK(order.values() == ascending(idx.values()));
        scratch.read();
        CHECK(idx.same_bytes(Ints(tokens(s))));
    }
}

TEST_CASE("embedding_forward copies rows") {
    for (Sizes s : SIZES) {
        CAPTURE(s.N);
        Values idx = tokens(s), rows = Random(s.C).floatXs(s.V * s.C), want;
        for (double token : idx) want.insert(want.end(), rows.begin() + static_cast<int>(token) * s.C, rows.begin() + static_cast<int>(token + 1) * s.C);
        Ints tokens_in(idx);
        FloatXs wte(rows), out(s.N * s.C);
        embedding_forward(out, tokens_in, wte, s.N, s.C, nullptr);
        CHECK(out.same_bytes(FloatXs(want)));
    }
}

TEST_CASE("embedding_backward sums the rows of each token, in order, whatever the number of threads") {
    for (Sizes s : SIZES) {
        CAPTURE(s.N);
        Random random(s.C);
        Values idx = tokens(s), start = random.floats(s.V * s.C), want = start;
        FloatXs dout(random.floatXs(s.N * s.C));
        Values add = dout.values();
        for (int n = 0; n < s.N; n++)
            for (int c = 0; c < s.C; c++) want[static_cast<int>(idx[n]) * s.C + c] += add[n * s.C + c];
        Ints tokens_in(idx), order(ascending(idx));
        Floats dwte(start);
        embedding_backward(dwte, dout, tokens_in, order, s.N, s.C, nullptr);
        // at most 300 terms of size one, each partial sum rounded to fp32
        check_close("dwte", dwte.values(), want, 300 * FP32_ROUND, 300 * FP32_ROUND);
        for (int threads : {1, 3})
            with_threads(threads, [&] {
                Floats again(start);
                embedding_backward(again, dout, tokens_in, order, s.N, s.C, nullptr);
                CHECK(again.same_bytes(dwte));
            });
    }
}

TEST_CASE("embedding refuses wrong sizes") {
    Ints idx(Values(4, 0)), order(4), scratch(2);
    FloatXs x(Values(64, 1)), out(64);
    Floats dwte(64);
    CHECK_REFUSED("token_order", token_order(order, scratch, idx, 0, 1, nullptr));
    CHECK_REFUSED("token_order", token_order(order, scratch, idx, 4, 0, nullptr));
    for (auto [N, C] : {std::pair{0, 8}, {-1, 8}, {1, 0}, {1, 12}, {1, -8}}) {
        CHECK_REFUSED("embedding_forward", embedding_forward(out, idx, x, N, C, nullptr));
        CHECK_REFUSED("embedding_backward", embedding_backward(dwte, x, idx, order, N, C, nullptr));
    }
}
