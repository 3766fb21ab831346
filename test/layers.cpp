// Layer maps: orders and configurations by hand, and those of the reference (golden/grow, golden/stack).
#include "llmc/layers.h"
#include <doctest/doctest.h>
#include "test/small_model.h"

using Ints = std::vector<int>;
using Bools = std::vector<bool>;
using Layers = std::vector<LayerFrom>;

TEST_CASE("layers: orders of growth") {
    CHECK(growth_order("stack", 2, 3) == Ints{0, 1, 2, 0, 1, 2});
    CHECK(growth_order("interleave", 2, 3) == Ints{0, 0, 1, 1, 2, 2});
    CHECK(growth_order("stack", 4, 1) == Ints{0, 0, 0, 0});
    CHECK(growth_order("interleave", 3, 2) == Ints{0, 0, 0, 1, 1, 1});
    CHECK(growth_order("stack", 1, 3) == Ints{0, 1, 2});
    CHECK(growth_order("2,0,2", 0, 3) == Ints{2, 0, 2});
    CHECK(growth_order("7", 0, 3) == Ints{7});   // grow_map() knows the layers
}

TEST_CASE("layers: an order that is none is refused") {
    for (const char* order : {"", "stacked", ",", "1,", ",1", "1,,2", "1 2", "-1", "1.5", "0x1", "99999999999", "1;2", "Stack", "0,1,2 "})
        CHECK(contains(refusal([&] { growth_order(order, 0, 3); }), "must be stack, interleave, or a list of layers like 0,1,2,0,1,2"));
    CHECK(contains(refusal([&] { growth_order("stack", 0, 3); }), "needs --factor"));
    CHECK(contains(refusal([&] { growth_order("stack", -2, 3); }), "needs --factor"));
    CHECK(contains(refusal([&] { growth_order("stack", 2147483647, 3); }), "a model has at most 10000"));
    CHECK(contains(refusal([&] { growth_order("0,1", 2, 3); }), "leave --factor out"));
}

TEST_CASE("layers: growth of the reference's golden model") {
    GPTConfig config = recipe_config(NANOCHAT, 4, 2, 64, 128, 32, "SSSL");
    LayerMap stacked = grow_map(config, growth_order("stack", 2, 4), ValueEmbeds::layer);
    CHECK(stacked.config == recipe_config(NANOCHAT, 8, 2, 64, 128, 32, "SSSL"));
    CHECK(stacked.layers == Layers{{0, 0}, {0, 1}, {0, 2}, {0, 3}, {0, 0}, {0, 1}, {0, 2}, {0, 3}});

    LayerMap interleaved = grow_map(config, growth_order("interleave", 2, 4), ValueEmbeds::layer);
    GPTConfig expected = recipe_config(NANOCHAT, 8, 2, 64, 128, 32, "SSSL");
    expected.value_embeds = {false, false, true, true, false, false, true, true};
    CHECK(interleaved.config == expected);
    CHECK(interleaved.config.windows == Ints{16, 16, 16, 32, 16, 16, 16, 32});

    LayerMap pattern = grow_map(config, growth_order("interleave", 2, 4), ValueEmbeds::pattern);
    expected.value_embeds = {false, false, false, true, false, false, false, true};
    CHECK(pattern.config == expected);
}

TEST_CASE("layers: what a layer owns goes with it when a model grows, but for windows") {
    GPTConfig config = recipe_config(NANOCHAT, 3, 2, 64, 128, 32, "SL");
    config.attn_scale = {0.5, 1, 2};
    config.norm_before = {Norm::none, Norm::rms_norm, Norm::layer_norm};
    config.windows = {5, 6, 7};
    LayerMap map = grow_map(config, {2, 2, 0}, ValueEmbeds::layer);
    CHECK(map.config.n_layer == 3);
    CHECK(map.config.attn_scale == std::vector<double>{2, 2, 0.5});
    CHECK(map.config.norm_before == std::vector<Norm>{Norm::layer_norm, Norm::layer_norm, Norm::none});
    CHECK(map.config.value_embeds == Bools{true, true, true});   // layers 0 and 2 of three have one
    CHECK(map.config.windows == Ints{16, 32, 32});
    CHECK(grow_map(config, {2, 2, 0}, ValueEmbeds::pattern).config.value_embeds == Bools{true, false, true});
    CHECK(contains(refusal([&] { grow_map(config, {0, 3}, ValueEmbeds::layer); }), "--order names layer 3, but the model has layers 0 to 2"));
    CHECK(contains(refusal([&] { grow_map(config, {}, ValueEmbeds::layer); }), "depth is 0"));
}

static Layers layers_of(const LayerMap& map) { return map.layers; }

TEST_CASE("layers: a stack keeps and loses the layers of the reference") {
    GPTConfig three = recipe_config(SPEEDRUN, 3, 2, 32, 96, 24);
    std::vector<GPTConfig> pair{three, three}, triple{three, three, three};
    std::vector<std::string> names{"a", "b", "c"};
    StackOptions options;
    CHECK(layers_of(stack_map(pair, names, options)) == Layers{{0, 0}, {0, 1}, {1, 1}, {1, 2}});
    CHECK(layers_of(stack_map(triple, names, options)) == Layers{{0, 0}, {0, 1}, {1, 1}, {2, 1}, {2, 2}});
    options.use_first_layer = true;
    CHECK(layers_of(stack_map(pair, names, options)) == Layers{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {1, 2}});
    options.use_last_layer = true;
    CHECK(layers_of(stack_map(pair, names, options)) == Layers{{0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {1, 2}});
    options.use_first_layer = false;
    CHECK(layers_of(stack_map(pair, names, options)) == Layers{{0, 0}, {0, 1}, {0, 2}, {1, 1}, {1, 2}});
}

TEST_CASE("layers: what a layer owns goes with it in a stack, and norms stand at the seams") {
    GPTConfig one = recipe_config(NANOCHAT, 2, 2, 64, 128, 32, "S"), two = recipe_config(NANOCHAT, 3, 2, 64, 128, 32, "L");
    one.attn_scale = {1, 2};
    two.attn_scale = {3, 4, 5};
    StackOptions options{true, true, Norm::layer_norm, Norm::none, Norm::layer_norm};
    LayerMap map = stack_map({one, two, one}, {"a", "b", "c"}, options);
    CHECK(map.config.n_layer == 7);
    CHECK(map.config.attn_scale == std::vector<double>{1, 2, 3, 4, 5, 1, 2});
    CHECK(map.config.windows == Ints{16, 32, 32, 32, 32, 16, 32});
    CHECK(map.config.value_embeds == Bools{false, true, true, false, true, false, true});
    Norm none = Norm::none, seam = Norm::layer_norm;
    CHECK(map.config.norm_before == std::vector<Norm>{none, none, seam, none, none, seam, none});
    CHECK(map.config.norm_wte == Norm::none);
    CHECK(map.config.norm_lm_head == Norm::layer_norm);
    CHECK(map.config.window_pattern == "S");
    CHECK(map.config.softcap == 15);
}

TEST_CASE("layers: a model of one layer in the middle gives none, and a stack of none is refused") {
    GPTConfig one = recipe_config(SPEEDRUN, 1, 2, 32, 96, 24), three = recipe_config(SPEEDRUN, 3, 2, 32, 96, 24);
    StackOptions options;
    options.norm_inter_model = Norm::rms_norm;
    LayerMap map = stack_map({three, one, three}, {"a", "b", "c"}, options);
    CHECK(layers_of(map) == Layers{{0, 0}, {0, 1}, {2, 1}, {2, 2}});
    CHECK(map.config.norm_before == std::vector<Norm>{Norm::none, Norm::none, Norm::rms_norm, Norm::none});
    CHECK(contains(refusal([&] { stack_map({one, one}, {"a", "b"}, options); }), "no layer is left"));
    CHECK(contains(refusal([&] { stack_map({one}, {"a"}, options); }), "two models or more"));
}

TEST_CASE("layers: models that cannot be one are refused, both values named") {
    GPTConfig base = recipe_config(SPEEDRUN, 2, 2, 32, 96, 24);
    auto refused = [&](auto change) {
        GPTConfig other = base;
        change(other);
        return refusal([&] { stack_map({base, base, other}, {"a.bin", "b.bin", "c.bin"}, {}); });
    };
    CHECK(refused([](GPTConfig& c) { c.n_embd = 64; }) == "models of a stack must agree in n_embd (width), but it is 32 in a.bin and 64 in c.bin");
    CHECK(refused([](GPTConfig& c) { c = recipe_config(NANOCHAT, 2, 2, 64, 96, 24, "L"); }) ==
          "models of a stack must agree in recipe, but it is \"speedrun\" in a.bin and \"nanochat\" in c.bin");
    CHECK(contains(refused([](GPTConfig& c) { c.n_head = 4; }), "in n_head, but it is 2 in a.bin and 4 in c.bin"));
    CHECK(contains(refused([](GPTConfig& c) { c.n_kv_head = 1; }), "in n_kv_head, but it is 2 in a.bin and 1 in c.bin"));
    CHECK(contains(refused([](GPTConfig& c) { c.vocab_size = 104; }), "in vocab_size (vocabulary), but it is 96 in a.bin and 104 in c.bin"));
    CHECK(contains(refused([](GPTConfig& c) { c.seq_len = 48; }), "in seq_len, but it is 24 in a.bin and 48 in c.bin"));
    CHECK(contains(refused([](GPTConfig& c) { c.activation = Activation::relu2; }), "in activation, but it is \"gelu\""));
    CHECK(contains(refused([](GPTConfig& c) { c.tied = false; }), "in tied, but it is true in a.bin and false in c.bin"));
    CHECK(contains(refused([](GPTConfig& c) { c.qk_norm = true; }), "in qk_norm"));
    CHECK(contains(refused([](GPTConfig& c) { c.softcap = 1; }), "in softcap, but it is 0.0 in a.bin and 1.0 in c.bin"));
    CHECK(contains(refused([](GPTConfig& c) { c.norm_eps = 0.5; }), "in norm_eps"));
    CHECK(contains(refused([](GPTConfig& c) { c.lambdas = true; }), "in lambdas"));
    CHECK(refused([](GPTConfig& c) { c = recipe_config(SPEEDRUN, 5, 2, 32, 96, 24); }) == "");                     // another depth
    CHECK(refused([](GPTConfig& c) { c.norm_wte = c.norm_lm_head = Norm::layer_norm; }) == "");            // flags decide these
}
