// The program latents: every number of its table against the float64 model, and its refusals.
#include <doctest/doctest.h>
#include <algorithm>
#include <array>
#include <cmath>
#include <limits>
#include <random>
#include <sstream>
#include "llmc/io/error.h"
#include "llmc/text/shard.h"
#include "llmc/text/tokenizer.h"
#include "test/gpt_reference.h"
#include "test/needs.h"
#include "test/small_model.h"

namespace {

constexpr int VOCAB = 40;
constexpr bool FP32 = sizeof(floatX) == 4;   // these suites run in the precision of the programs

// ------------------------------------------------------------------------------------------------------ models and tokens

/// Random weights, exact in bf16, at a scale at which every tensor affects the result, also those that are initialized to zero. The
/// embedding has a nonzero mean, so that activations have one; matrices have none, because it would amplify rounding a thousandfold.
Values telling_weights(const GPTConfig& config, uint64_t seed) {
    Values weights;
    std::mt19937_64 generator(seed);
    for (const Tensor& tensor : tensor_table(config)) {
        const double scale = tensor.spec->group == Group::matrix ? 1 / std::sqrt(static_cast<double>(tensor.shape.back())) : 0.5;
        const double mean = tensor.name == "resid_lambdas" ? 1 : tensor.name == "wte" ? 0.1 : 0;
        std::normal_distribution<double> normal(mean, scale);
        std::vector<float>& values = weights[tensor.name];
        for (int64_t i = 0; i < tensor.numel; i++) values.push_back(to_float(to_bf16(static_cast<float>(normal(generator)))));
    }
    return weights;
}

GPTConfig speedrun(int layers, int seq_len = 8) { return recipe_config(SPEEDRUN, layers, 2, 32, VOCAB, seq_len); }
GPTConfig nanochat(int layers, int seq_len = 8) { return recipe_config(NANOCHAT, layers, 2, 32, VOCAB, seq_len, "SL"); }

/// A configuration as stack makes one: norms at two seams, and attention scales of two models.
GPTConfig stacked(GPTConfig config) {
    config.norm_before[1] = Norm::layer_norm;
    config.norm_before[config.n_layer - 1] = Norm::rms_norm;
    config.attn_scale[1] = 0.25;
    config.norm_wte = Norm::layer_norm;
    config.norm_lm_head = Norm::layer_norm;
    return config;
}

std::vector<int> random_tokens(int count) {
    std::mt19937_64 generator(5);
    std::vector<int> tokens;
    for (int i = 0; i < count; i++) tokens.push_back(static_cast<int>(generator() % VOCAB));
    return tokens;
}

void write_tokens(const std::string& path, const std::vector<int>& tokens) {
    ShardWriter shard(path);
    shard.write(std::vector<uint16_t>(tokens.begin(), tokens.end()));
    shard.finish();
}

// ---------------------------------------------------------------------------------------------------------- tables

struct Row {
    std::string what;               ///< quantity,model_a,position_a,model_b,position_b,tokens
    std::array<double, 4> numbers;  ///< mean, std, min, max
};

std::vector<Row> parsed(const std::string& table) {
    std::istringstream lines(table);
    std::string line;
    std::getline(lines, line);
    CHECK(line == "quantity,model_a,position_a,model_b,position_b,tokens,mean,std,min,max");
    std::vector<Row> rows;
    while (std::getline(lines, line)) {
        Row row;
        for (int i = 3; i >= 0; i--) {
            row.numbers[i] = std::stod(line.substr(line.rfind(',') + 1));
            line.resize(line.rfind(','));
        }
        row.what = line;
        rows.push_back(row);
    }
    return rows;
}

std::array<double, 4> summary_of(const Doubles& numbers) {
    const double n = static_cast<double>(numbers.size());
    double mean = 0, squares = 0;
    for (double x : numbers) mean += x / n;
    for (double x : numbers) squares += (x - mean) * (x - mean) / n;
    return {mean, std::sqrt(squares), *std::min_element(numbers.begin(), numbers.end()),
            *std::max_element(numbers.begin(), numbers.end())};
}

/// A model's activations at each position, for the first `count` tokens, in rows of length `row`.
using Activations = std::vector<std::pair<std::string, Doubles>>;
Activations activations_of(GPTConfig config, const Values& weights, std::vector<int> idx, int row, int tokens) {
    config.seq_len = row;
    idx.resize((tokens + row - 1) / row * row);
    ReferenceGPT reference{config, {}, {}, {}};
    for (auto& [name, values] : weights) reference.p[name] = {values.begin(), values.end()};
    reference.loss(idx, idx);
    auto at = [&](int depth, Norm norm) {
        Doubles x = norm_forward(reference.residual.at(depth), config.n_embd, norm, config.norm_eps);
        x.resize(static_cast<size_t>(tokens) * config.n_embd);
        return x;
    };
    const int L = config.n_layer;
    if (L == 0) return {{"in", at(0, Norm::none)}, {"out", at(0, config.norm_lm_head)}};
    return {{"in", at(0, Norm::none)},
            {"first", at(1, Norm::none)},
            {"last", at(L - 1, config.norm_lm_head)},
            {"out", at(L, config.norm_lm_head)}};
}

Row row_of(const std::string& model, const std::string& position, const Doubles& activations, int tokens) {
    return {concat("activation,", model, ",", position, ",,,", tokens), summary_of(activations)};
}

Row row_of(const std::string& model_a, const std::string& position_a, const Doubles& a, const std::string& model_b,
           const std::string& position_b, const Doubles& b, int tokens) {
    Doubles cosines;
    const size_t C = a.size() / tokens;
    for (size_t n = 0; n < a.size(); n += C) {
        double dot = 0, aa = 0, bb = 0;
        for (size_t i = n; i < n + C; i++) dot += a[i] * b[i], aa += a[i] * a[i], bb += b[i] * b[i];
        cosines.push_back(dot / std::sqrt(aa * bb));
    }
    return {concat("cosine,", model_a, ",", position_a, ",", model_b, ",", position_b, ",", tokens), summary_of(cosines)};
}

std::vector<Row> expected_of(const std::vector<std::pair<std::string, Activations>>& models, int tokens) {
    std::vector<Row> rows;
    for (auto& [path, positions] : models)
        for (auto& [name, x] : positions) rows.push_back(row_of(path, name, x, tokens));
    auto add = [&](const std::string& model_a, const auto& a, const std::string& model_b, const auto& b) {
        rows.push_back(row_of(model_a, a.first, a.second, model_b, b.first, b.second, tokens));
    };
    for (auto& [path, positions] : models)
        for (size_t p = 0; p < positions.size(); p++)
            for (size_t q = p + 1; q < positions.size(); q++) add(path, positions[p], path, positions[q]);
    if (models.size() == 2)
        for (auto& a : models[0].second)
            for (auto& b : models[1].second) add(models[0].first, a, models[1].first, b);
    return rows;
}

void check_table(const std::string& table, const std::vector<Row>& expected) {
    const std::vector<Row> rows = parsed(table);
    REQUIRE(rows.size() == expected.size());
    for (size_t r = 0; r < rows.size(); r++) {
        CHECK(rows[r].what == expected[r].what);
        CAPTURE(rows[r].what);
        const std::array<double, 4>& wanted = expected[r].numbers;
        // Errors are relative to the largest value. fp32: some hundred roundings of 6e-8, and nine printed digits. bf16: some ten of 2^-9
        // per layer. The error of a cosine is relative to 1.
        const double size = std::max({std::abs(wanted[2]), std::abs(wanted[3]), rows[r].what.starts_with("cosine") ? 1.0 : 0.0});
        const double tolerance = (FP32 ? 1e-5 : 4e-2) * size;
        for (int i = 0; i < 4; i++)
            CHECK_MESSAGE(std::abs(rows[r].numbers[i] - wanted[i]) <= tolerance, i, ": ", rows[r].numbers[i], " and ", wanted[i]);
    }
}

}  // namespace

TEST_CASE("latents: every number against float64: both recipes, stacks, other depths, no layers and one" * needs_matmul()) {
    const GPTConfig configs[] = {speedrun(3), nanochat(4), stacked(speedrun(4)), stacked(nanochat(3)), speedrun(1), nanochat(2),
                                 speedrun(0), nanochat(0), nanochat(1), nanochat(3, 16)};
    const std::vector<int> tokens = random_tokens(100);
    TempDir dir;
    write_tokens(dir / "val_0.bin", tokens);
    std::vector<Values> weights;
    for (size_t m = 0; m < std::size(configs); m++) {
        weights.push_back(telling_weights(configs[m], m));
        write_small_model(dir / concat(m, ".bin"), configs[m], weights[m]);
    }
    // row: the sequence length of the shorter model, or all requested tokens; the last row may be shorter.
    const struct { size_t a, b; int tokens, row; } pairs[] = {{0, 1, 37, 8}, {2, 3, 40, 8}, {4, 5, 8, 8},  {6, 7, 21, 8},
                                                              {1, 8, 5, 5},  {9, 1, 23, 8}, {0, 6, 1, 1}, {9, 9, 30, 16}};
    for (auto& [a, b, count, row] : pairs) {
        CAPTURE(a);
        CAPTURE(b);
        std::vector<std::pair<std::string, Activations>> models;
        for (size_t m : {a, b})
            models.emplace_back(dir / concat(m, ".bin"), activations_of(configs[m], weights[m], tokens, row, count));
        const std::string flags = concat(" --val-data '", dir.path, "/val_*.bin' --tokens ", count);
        check_table(done("./latents " + models[0].first + " " + models[1].first + flags), expected_of(models, count));
        if (row != std::min(configs[a].seq_len, count)) continue;
        models.pop_back();
        check_table(done("./latents " + models[0].first + flags), expected_of(models, count));
    }
}

TEST_CASE("latents: a model against itself has cosines of 1 at equal positions; the default is 1024 tokens" *
          needs_matmul()) {
    TempDir dir;
    write_tokens(dir / "one.bin", random_tokens(600));
    write_tokens(dir / "two.bin", random_tokens(600));
    write_small_model(dir / "a.bin", nanochat(3, 512), telling_weights(nanochat(3, 512), 1));
    const std::string a = dir / "a.bin";
    int same = 0;
    for (const Row& row : parsed(done("./latents " + a + " " + a + " --val-data " + dir / "one.bin " + dir / "two.bin"))) {
        CHECK(row.what.ends_with(",1024"));
        for (const char* position : {"in", "first", "last", "out"}) {
            if (row.what != concat("cosine,", a, ",", position, ",", a, ",", position, ",1024")) continue;
            same++;
            for (int i : {0, 2, 3}) CHECK(row.numbers[i] == doctest::Approx(1).epsilon(1e-9));   // float64 rounding
            CHECK(row.numbers[1] < 1e-9);
        }
    }
    CHECK(same == 4);
}

TEST_CASE("latents: a token whose activations are all zeros has a cosine of 0" * needs_matmul()) {
    TempDir dir;
    const GPTConfig config = speedrun(0);   // this recipe has no norm after the embedding
    REQUIRE(config.norm_wte == Norm::none);
    Values weights = telling_weights(config, 1);
    std::fill_n(weights["wte"].begin() + 3 * config.n_embd, config.n_embd, 0.0f);
    write_small_model(dir / "a.bin", config, weights);
    write_tokens(dir / "val.bin", {3, 3});
    const std::vector<Row> rows = parsed(done("./latents " + dir / "a.bin --tokens 1 --val-data " + dir / "val.bin"));
    REQUIRE(rows.size() == 3);
    for (const Row& row : rows) CHECK(row.numbers == std::array<double, 4>{0, 0, 0, 0});
}

TEST_CASE("latents: --out writes what goes to stdout otherwise, paths with commas and quotes are quoted, and the file appears whole or not at all" *
          needs_matmul()) {
    TempDir dir;
    write_tokens(dir / "val.bin", random_tokens(60));
    const std::string odd = dir / "a,\"b\".bin", plain = dir / "b.bin", out = dir / "out.csv";
    write_small_model(odd, speedrun(2), telling_weights(speedrun(2), 1));
    write_small_model(plain, speedrun(3), telling_weights(speedrun(3), 2));
    const std::string latents = "./latents '" + odd + "' " + plain + " --tokens 40 --val-data " + dir / "val.bin";
    const std::string table = done(latents);
    CHECK(contains(table, "\nactivation,\"" + dir / "a,\"\"b\"\".bin\",in,,,40,"));
    CHECK(contains(table, "\ncosine,\"" + dir / "a,\"\"b\"\".bin\",in," + plain + ",out,40,"));
    CHECK(done(latents + " --out " + out) == "wrote " + out + ": 36 lines\n");
    CHECK(read_file(out) == table);
    CHECK(done("OMP_NUM_THREADS=1 " + latents) == table);

    write_file(out, "another's");
    refused(latents + " --out " + out, out + ": exists already; name another file, or give --overwrite to replace it");
    refused(latents + " --out " + plain + " --overwrite", plain + ": is also an input (");
    refused(latents + " --out " + dir / "val.bin --overwrite", dir / "val.bin: is also an input (");
    refused(latents + " --out " + dir.path, dir.path + ": is a folder, pipe or device; name a file to write");
    refused(latents + " --out " + dir / "no/such/out.csv", dir / "no/such/out.csv");
    refused(latents + " --overwrite", "--overwrite is for the file of --out, which is not given; leave it out");
    refused(latents + " >/dev/full", "stdout: cannot be written: No space left on device");
    CHECK(read_file(out) == "another's");
    done(latents + " --out " + out + " --overwrite >/dev/null");
    CHECK(read_file(out) == table);
    CHECK(names_in(dir.path) == std::vector<std::string>{"a,\"b\".bin", "b.bin", "out.csv", "val.bin"});
}

TEST_CASE("latents: models that cannot be compared, files that cannot be read and wrong flags give one line of error") {
    TempDir dir;
    const std::string a = dir / "a.bin", val = dir / "val.bin", latents = "./latents " + a + " ";
    const std::string on_val = " --tokens 8 --val-data " + val;
    write_tokens(val, random_tokens(60));
    const GPTConfig config = speedrun(2);
    write_small_model(a, config, 1);
    GPTConfig wide = recipe_config(SPEEDRUN, 2, 2, 48, VOCAB, 8), many = recipe_config(SPEEDRUN, 2, 2, 32, 48, 8);
    write_small_model(dir / "wide.bin", wide, 1);
    write_small_model(dir / "many.bin", many, 1);
    write_small_model(dir / "other.bin", config, small_weights(config, 1), "another tokenizer");
    const std::string compared = "models that are compared must ";
    refused(latents + dir / "wide.bin" + on_val,
            compared + "agree in width, but it is 32 in " + a + " and 48 in " + dir / "wide.bin; give each one alone");
    refused(latents + dir / "many.bin" + on_val,
            compared + "agree in vocabulary, but it is 40 in " + a + " and 48 in " + dir / "many.bin; give each one alone");
    refused(latents + dir / "other.bin" + on_val, compared + "have the same tokenizer, but those in " + a + " and " +
                                                      dir / "other.bin differ: their tokens mean different text");

    refused("./latents", "is required; see latents --help");
    refused("./latents --val-data " + val, "A is required; see latents --help");
    refused(latents, "--val-data is required; see latents --help");
    refused(latents + a + " " + a + on_val, "see latents --help");
    refused(latents + "--val-data ''", "--val-data is empty; give a value");
    refused(latents + "--out ''" + on_val, "--out is empty; give a value");
    refused("./latents ''" + on_val, "latents: : cannot be read: No such file or directory");
    refused("./latents " + dir / "none.bin" + on_val, dir / "none.bin: cannot be read: No such file or directory");
    refused("./latents " + val + on_val, val + ": ");
    refused("./latents " + dir.path + on_val, dir.path);
    refused(latents + "--val-data " + a, a);
    refused(latents + "--val-data '" + dir / "none_*.bin'", "no file matches '" + dir / "none_*.bin'");
    for (const char* tokens : {"0", "-1", "1.5", "99999999999999999999", "many", "''"})
        refused(latents + "--val-data " + val + " --tokens " + tokens, "--tokens is ");

    refused(latents + "--val-data " + val,
            "--tokens is 1024, but --val-data holds 56 in whole rows of 8 (each of one shard, and a token after it); give at most "
            "56, or more text");
    write_tokens(dir / "short.bin", random_tokens(8));
    const std::string too_short = latents + "--val-data " + dir / "short.bin";
    refused(too_short + " --tokens 8", "holds 0 in whole rows of 8 (each of one shard, and a token after it); give at most 7");
    refused(latents + "--tokens 9223372036854775807 --val-data " + val, "give at most 56");
    write_tokens(dir / "beyond.bin", {1, 2, VOCAB, 3});
    refused(latents + "--tokens 3 --val-data " + dir / "beyond.bin", "holds token 40 at position 2");

    std::string bytes = read_file(a);
    bytes[open_checkpoint(a).at("wte/v").offset] ^= 1;   // a tensor that is not used here
    write_file(dir / "damaged.bin", bytes);
    refused("./latents " + dir / "damaged.bin" + on_val, dir / "damaged.bin");
    refused(latents + dir / "damaged.bin" + on_val, dir / "damaged.bin");
}

TEST_CASE("latents: all tokens of the data can be requested" * needs_matmul()) {
    TempDir dir;
    write_small_model(dir / "a.bin", speedrun(2), 1);
    write_tokens(dir / "val.bin", random_tokens(60));
    write_tokens(dir / "short.bin", random_tokens(8));
    CHECK(parsed(done("./latents " + dir / "a.bin --tokens 56 --val-data " + dir / "val.bin")).size() == 10);
    CHECK(parsed(done("./latents " + dir / "a.bin --tokens 7 --val-data " + dir / "short.bin")).size() == 10);
}

TEST_CASE("latents: NaN and Inf are refused with the model and the position, and no file is left" * needs_matmul()) {
    TempDir dir;
    write_tokens(dir / "val.bin", random_tokens(60));
    const GPTConfig config = nanochat(3);
    write_small_model(dir / "a.bin", config, telling_weights(config, 1));
    auto with = [&](const std::string& tensor, float value) {
        Values weights = telling_weights(config, 1);
        std::fill(weights[tensor].begin(), weights[tensor].end(), value);
        write_small_model(dir / "bad.bin", config, weights);
        return "./latents " + dir / "a.bin " + dir / "bad.bin --tokens 16 --out " + dir / "out.csv --val-data " + dir / "val.bin";
    };
    const float nan = std::numeric_limits<float>::quiet_NaN(), inf = std::numeric_limits<float>::infinity();
    const std::string bad = dir / "bad.bin: its activations at ";
    refused(with("wte", nan), bad + "'in' hold NaN or Inf");
    refused(with("h.0.fc_proj", inf), bad + "'first' hold NaN or Inf");
    refused(with("h.1.fc", nan), bad + "'last' hold NaN or Inf");
    refused(with("h.2.q", nan), bad + "'out' hold NaN or Inf");
    CHECK(names_in(dir.path) == std::vector<std::string>{"a.bin", "bad.bin", "val.bin"});
}

TEST_CASE("latents: data of another tokenizer gives a warning, and still the table" * needs_matmul()) {
    TempDir dir;
    const GPTConfig config = recipe_config(SPEEDRUN, 2, 2, 32, 264, 8);
    const std::vector<std::string> ones{"the one and the other and the one"}, others{"all is well that ends well"};
    const Tokenizer own = Tokenizer::train(ones, 258), other = Tokenizer::train(others, 258);
    write_small_model(dir / "a.bin", config, small_weights(config, 1), own.serialize());
    write_tokens(dir / "val.bin", random_tokens(60));
    const std::string latents = "./latents " + dir / "a.bin --tokens 8 --val-data " + dir / "val.bin";
    own.save(dir / "tokenizer.txt");
    const std::string table = done(latents);
    other.save(dir / "tokenizer.txt");
    const Result result = run(latents);
    CHECK(result.code == 0);
    CHECK(result.out == table);
    CHECK(result.err == "latents: warning: the tokenizer of the data is not the one that " + dir / "a.bin was trained with\n");
    write_file(dir / "tokenizer.txt", "no tokenizer");
    refused(latents, "tokenizer.txt");
}
