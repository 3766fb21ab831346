// Which implementation does each matmul of the two recipes on the CPU: never a reference loop, which takes a hundred times as long.
#include "llmc/ops/matmul_tile.h"
#include <algorithm>
#include "llmc/gpt.h"
#include "llmc/ops/matmul.h"
#include "llmc/optimizer.h"
#include "test/needs.h"
#include "test/reference.h"

namespace {

bool is_reference(const std::string& name) { return name.empty() || name.find("ref") != name.npos; }

// The matmuls of a matrix (OC, IC) of the model over N tokens, as llmc/ops/matmul.cpp describes them: forward, both gradients.
void check_matmuls(int64_t N, int64_t IC, int64_t OC) {
    CAPTURE(N);
    CAPTURE(IC);
    CAPTURE(OC);
    const std::string forward = implementation_of({.M = N, .N = OC, .K = IC, .lda = IC, .ldb = IC, .ldout = OC, .transpose_b = true}, false);
    const std::string input = implementation_of({.M = N, .N = IC, .K = OC, .lda = OC, .ldb = IC, .ldout = IC}, false);
    const std::string weight =
        implementation_of({.M = OC, .N = IC, .K = N, .lda = OC, .ldb = IC, .ldout = IC, .transpose_a = true, .beta = 1}, true);
    CHECK_MESSAGE(!is_reference(forward), "forward: ", forward);
    CHECK_MESSAGE(!is_reference(input), "input gradient: ", input);
    CHECK_MESSAGE(!is_reference(weight), "weight gradient: ", weight);
}

// One micro-batch and one update: their matmuls are then among implementations_used().
void train_a_step(const GPTConfig& config, int batch) {
    GPT model(config, batch, Mode::train);
    Optimizer optimizer(model);
    model.allocate();
    model.initialize_weights(1);
    optimizer.allocate();
    std::vector<int> tokens(static_cast<size_t>(batch) * config.seq_len);
    for (size_t i = 0; i < tokens.size(); i++) tokens[i] = static_cast<int>(i * 7 % config.vocab_size);
    model.begin_step();
    model.train_micro_batch(tokens.data(), tokens.data(), 1);
    model.end_step();
    optimizer.set_step(config.recipe->rates, {}, 1);
    optimizer.update();
}

}  // namespace

TEST_CASE("matmul_tile: no matmul of a step and its update runs in a reference loop" * needs_matmul()) {
    GPTConfig grouped = recipe_config(NANOCHAT, 2, 4, 64, 72, 33, "SL");   // odd sequences, two key heads for four query heads
    grouped.n_kv_head = 2;
    train_a_step(recipe_config(NANOCHAT, 2, 2, 128, 264, 600, "SL"), 1);    // more keys than one tile of attention holds
    train_a_step(recipe_config(SPEEDRUN, 2, 2, 128, 328, 48), 2);
    train_a_step(grouped, 3);
    for (int M : {513, 768, 1280})   // tiles of Muon's symmetric matmuls, ragged and strided ones
        for (bool transposed : {false, true}) {
            FloatXs x(Values(M * 16, 0.5)), c(M * M), out(M * M);
            matmul_symmetric(c, x, nullptr, nullptr, 1, M, 16, transposed, 2, 0, nullptr);
            matmul_symmetric(out, x, c, nullptr, 1, M, 16, transposed, 2, -1, nullptr);
        }
    const std::vector<std::string> used = implementations_used();
    for (const std::string& line : used) CHECK_MESSAGE(!is_reference(line.substr(line.rfind(": ") + 2)), line);
    auto some = [&](const std::string& piece) { return std::any_of(used.begin(), used.end(), [&](auto& line) { return line.find(piece) != line.npos; }); };
    CHECK(some("600 x 128 x 128 b^T"));        // a layer's forward pass
    CHECK(some("128 x 128 x 600 a^T beta"));   // its weight gradient
    CHECK(some("64 x 512 x 64 b^T"));          // scores of a tile of attention
    CHECK(some("alpha beta"));                 // Muon's b s + c s s
}

TEST_CASE("matmul_tile: nor does one of the sizes that the studies train" * needs_matmul()) {
    for (const GPTConfig& config : {recipe_config(NANOCHAT, 4, 2, 256, 4096, 256, "SSSL"), recipe_config(NANOCHAT, 12, 6, 768, 32768, 2048, "SSSL"),
                                    recipe_config(NANOCHAT, 20, 10, 1280, 65536, 2048, "SSSL"), recipe_config(SPEEDRUN, 12, 12, 768, 50304, 1024)})
        for (const Tensor& tensor : tensor_table(config)) {
            if (tensor.layer > 1 || tensor.shape.size() != 2 || tensor.spec->group == Group::value_embedding) continue;
            check_matmuls(2048, tensor.shape[1], tensor.shape[0]);
            check_matmuls(1365, tensor.shape[1], tensor.shape[0]);
        }
}

TEST_CASE("matmul_tile: nor does one of odd sizes" * needs_matmul()) {
    for (int64_t N : {1, 3, 17, 255}) check_matmuls(N, N + 2, 2 * N + 1);
    for (float alpha : {1.0f, 2.0315f})
        for (float beta : {0.0f, 1.0f, -4.775f})
            for (bool transpose : {false, true}) {
                CAPTURE(alpha);
                CAPTURE(beta);
                CHECK(!is_reference(implementation_of({.M = 33, .N = 19, .K = 33, .lda = 33, .ldb = transpose ? 33 : 19, .ldout = 19,
                                                       .transpose_b = transpose, .alpha = alpha, .beta = beta}, false)));
            }
}
