// Norms against float64, and the page that teaches them (llmc/ops/norm.md) against both.
#include "llmc/ops/norm.h"
#include <algorithm>
#include <fstream>
#include <set>
#include <sstream>
#include "test/reference.h"

namespace {

struct Result {
    Values out, rstd;
};

Result forward(const Values& x, Norm kind, int64_t N, int C, double eps) {
    Result result{x, Values(N, 1)};
    for (int64_t n = 0; n < N && kind != Norm::none; n++) {
        double mean = 0, square = 0;
        for (int c = 0; c < C && kind == Norm::layer_norm; c++) mean += x[n * C + c] / C;
        for (int c = 0; c < C; c++) square += std::pow(x[n * C + c] - mean, 2) / C;
        result.rstd[n] = 1 / std::sqrt(square + eps);
        for (int c = 0; c < C; c++) result.out[n * C + c] = (x[n * C + c] - mean) * result.rstd[n];
    }
    return result;
}

Values backward(const Values& g, const Values& y, const Values& rstd, Norm kind, int64_t N, int C) {
    Values dx = g;
    for (int64_t n = 0; n < N && kind != Norm::none; n++) {
        double g_mean = 0, gy_mean = 0;
        for (int c = 0; c < C; c++) {
            if (kind == Norm::layer_norm) g_mean += g[n * C + c] / C;
            gy_mean += g[n * C + c] * y[n * C + c] / C;
        }
        for (int c = 0; c < C; c++) dx[n * C + c] = rstd[n] * (g[n * C + c] - g_mean - y[n * C + c] * gy_mean);
    }
    return dx;
}

constexpr float EPS = 1e-6f;
// The output is rounded once; the sums over C are made in fp32, in lanes of at most C / 8 terms, at most 130 here.
constexpr double TOLERANCE = ROUND + 130 * FP32_ROUND;

/// The lines of a text file, without what indents them.
std::vector<std::string> lines_of(const std::string& path) {
    std::ifstream file(path);
    REQUIRE_MESSAGE(file, "cannot read ", path, "; run the tests from the top of the tree");
    std::vector<std::string> lines;
    for (std::string line; std::getline(file, line);) lines.push_back(line.substr(std::min(line.size(), line.find_first_not_of(' '))));
    return lines;
}

/// The numbers of a row of a table: | label | 1 | 2 |
Values table_row(const std::vector<std::string>& page, const std::string& label) {
    for (const std::string& line : page) {
        if (!line.starts_with("| " + label + " |")) continue;
        std::string cells = line.substr(label.size() + 4);
        std::replace(cells.begin(), cells.end(), '|', ' ');
        std::istringstream text(cells);
        Values values;
        for (double value; text >> value;) values.push_back(value);
        return values;
    }
    FAIL("llmc/ops/norm.md: no row '", label, "' in its table");
    return {};
}

std::string name(Norm kind) { return kind == Norm::none ? "none" : kind == Norm::rms_norm ? "rms_norm" : "layer_norm"; }

}  // namespace

TEST_CASE("norm_forward is the formula") {
    for (Norm kind : {Norm::none, Norm::rms_norm, Norm::layer_norm})
        for (auto [N, C] : {std::pair{1, 8}, {3, 24}, {17, 64}, {33, 200}, {5, 768}, {2, 1032}}) {
            CAPTURE(name(kind));
            CAPTURE(C);
            Random random(C);
            Values x = random.floatXs(N * C, 3);
            for (int c = 0; c < C; c++) x[c] = to_float(to_floatX(static_cast<float>(x[c] + 2)));   // a row with a mean
            Result want = forward(x, kind, N, C, EPS);
            FloatXs input(x), before(x), out(N * C);
            Floats rstd(N);
            norm_forward(out, rstd, input, N, C, kind, EPS, nullptr);
            check_close("out", out.values(), want.out, TOLERANCE, 130 * FP32_ROUND);
            if (kind == Norm::none) CHECK(rstd.same_bytes(Floats(N)));               // not written
            else check_close("rstd", rstd.values(), want.rstd, 130 * FP32_ROUND, 0);
            CHECK(input.same_bytes(before));

            Floats rstd_again(N);
            norm_forward(input, rstd_again, input, N, C, kind, EPS, nullptr);        // in place
            CHECK(input.same_bytes(out));
        }
}

TEST_CASE("norm_forward of a row of zeros is zero: eps keeps the division finite") {
    FloatXs x(Values(16, 0)), out(16);
    Floats rstd(2);
    for (Norm kind : {Norm::rms_norm, Norm::layer_norm}) {
        norm_forward(out, rstd, x, 2, 8, kind, EPS, nullptr);
        CHECK(out.values() == Values(16, 0));
        check_close("rstd", rstd.values(), Values(2, 1000), 4 * FP32_ROUND, 0);
    }
}

TEST_CASE("norm_backward is the formula") {
    for (Norm kind : {Norm::none, Norm::rms_norm, Norm::layer_norm})
        for (auto [N, C] : {std::pair{1, 8}, {3, 24}, {17, 64}, {33, 200}, {5, 768}, {2, 1032}}) {
            CAPTURE(name(kind));
            CAPTURE(C);
            Random random(C);
            FloatXs dout(random.floatXs(N * C)), dout_before(dout.values()), dx(N * C);
            FloatXs out(forward(random.floatXs(N * C, 3), kind, N, C, EPS).out), out_before(out.values());
            Floats rstd(random.floats(N));
            Values want = backward(dout.values(), out.values(), rstd.values(), kind, N, C);
            norm_backward(dx, dout, out, rstd, N, C, kind, nullptr);
            // The terms that cancel are about rstd * 1 in size, and rstd is up to 3 here.
            check_close("dx", dx.values(), want, TOLERANCE, 300 * FP32_ROUND);
            CHECK(dout.same_bytes(dout_before));
            CHECK(out.same_bytes(out_before));

            norm_backward(dout, dout, out, rstd, N, C, kind, nullptr);               // in place
            CHECK(dout.same_bytes(dx));
        }
}

TEST_CASE("norm_backward is the slope of norm_forward" * doctest::skip(!FP32)) {
    const int N = 5, C = 24;
    for (Norm kind : {Norm::rms_norm, Norm::layer_norm}) {
        CAPTURE(name(kind));
        Random random(3);
        Values x = random.floatXs(N * C), weights = random.floatXs(N * C);
        FloatXs dout(weights), dx(N * C);
        auto run = [&](const Values& at, FloatXs& out, Floats& rstd) {
            FloatXs input(at);
            norm_forward(out, rstd, input, N, C, kind, EPS, nullptr);
        };
        FloatXs out(N * C);
        Floats rstd(N);
        run(x, out, rstd);
        norm_backward(dx, dout, out, rstd, N, C, kind, nullptr);
        // h^2 times a third derivative of about 1, and fp32 noise of 120 elements over h
        check_gradient("dx", x, dx.values(), 1e-2, 1e-3, [&](const Values& at) {
            FloatXs there(N * C);
            Floats unused(N);
            run(at, there, unused);
            return dot(there.values(), weights);
        });
    }
}

TEST_CASE("norm refuses wrong sizes") {
    FloatXs x(Values(64, 1)), out(64);
    Floats rstd(8);
    for (Norm kind : {Norm::none, Norm::rms_norm, Norm::layer_norm}) {
        CHECK_REFUSED("norm_forward", norm_forward(out, rstd, x, 0, 8, kind, EPS, nullptr));
        CHECK_REFUSED("norm_forward", norm_forward(out, rstd, x, 8, 0, kind, EPS, nullptr));
        CHECK_REFUSED("norm_forward", norm_forward(out, rstd, x, 1, 12, kind, EPS, nullptr));
        CHECK_REFUSED("norm_backward", norm_backward(out, x, x, rstd, -1, 8, kind, nullptr));
        CHECK_REFUSED("norm_backward", norm_backward(out, x, x, rstd, 1, 12, kind, nullptr));
        CHECK_REFUSED("norm_backward", norm_backward(out, x, x, rstd, 1, -8, kind, nullptr));
    }
}

TEST_CASE("norm.md: its four numbers are what the op gives") {
    const std::vector<std::string> page = lines_of("llmc/ops/norm.md");
    // The op takes channels in eights; a row that is repeated has the same means.
    auto twice = [&](const std::string& label) {
        Values row = table_row(page, label);
        REQUIRE(row.size() == 4);
        row.insert(row.end(), row.begin(), row.begin() + 4);
        return row;
    };
    FloatXs x(twice("x")), dout(twice("dout"));
    // Half of the sixth decimal; eps, which the page leaves out, 1e-7; a few roundings of fp32. bf16 rounds out, and dx, in which out is a factor.
    const double decimals = 1e-6, relative = FP32 ? 0 : ROUND, absolute = FP32 ? decimals : ROUND;
    for (Norm kind : {Norm::rms_norm, Norm::layer_norm}) {
        CAPTURE(name(kind));
        FloatXs out(8), dx(8);
        Floats rstd(1);
        norm_forward(out, rstd, x, 1, 8, kind, EPS, nullptr);
        norm_backward(dx, dout, out, rstd, 1, 8, kind, nullptr);
        check_close("out", out.values(), twice(name(kind) + " out"), relative, decimals);
        check_close("dx", dx.values(), twice(name(kind) + " dx"), relative, absolute);
        check_close("rstd", rstd.values(), table_row(page, name(kind) + " rstd"), 0, decimals);
    }
}

TEST_CASE("norm.md: every line of code that it quotes is in the files") {
    std::set<std::string> code;
    for (const char* file : {"norm.h", "norm.cpp", "norm.cu", "rms_norm.h", "rms_norm.cuh"})
        for (const std::string& line : lines_of(std::string("llmc/ops/") + file)) code.insert(line);
    bool quoting = false;
    int quoted = 0;
    for (const std::string& line : lines_of("llmc/ops/norm.md")) {
        if (line.starts_with("```")) quoting = line == "```cpp";
        else if (quoting) {
            quoted++;
            CHECK_MESSAGE(code.contains(line), "not in the files: ", line);
        }
    }
    CHECK(quoted > 10);
}
