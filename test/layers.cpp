// Layer maps: orders and configurations worked out by hand, and those of the reference (golden/grow, golden/stack).
#include "llmc/layers.h"
#include <doctest/doctest.h>
#include <cmath>
#include "test/small_model.h"

using Ints = std::vector<int>;
using Bools = std::vector<bool>;
using Layers = std::vector<LayerFrom>;

static GrowthOptions by(const std::string& order, std::optional<int> factor = {}, std::optional<ValueEmbeds> value_embeds = {}) {
    return {.order = order, .factor = factor, .value_embeds = value_embeds};
}

/// The layers of a grown nanochat model of n_layer layers, each as the number of the layer that it copies; -1: new.
static Ints grown(const GrowthOptions& options, int n_layer) {
    Ints layers;
    for (const LayerFrom& from : grow_map(recipe_config(NANOCHAT, n_layer, 2, 64, 128, 32, "SSSL"), options).layers) {
        CHECK(from.model == (from.is_new() ? -1 : 0));
        layers.push_back(from.layer);
    }
    return layers;
}

TEST_CASE("layers: orders of growth") {
    CHECK(grown(by("stack", 2), 3) == Ints{0, 1, 2, 0, 1, 2});
    CHECK(grown(by("stack", 4), 1) == Ints{0, 0, 0, 0});
    CHECK(grown(by("stack", 1), 3) == Ints{0, 1, 2});
    CHECK(grown({.order = "stack", .depth = 6}, 3) == Ints{0, 1, 2, 0, 1, 2});
    CHECK(grown({.order = "stack", .depth = 3}, 3) == Ints{0, 1, 2});
    CHECK(grown({.order = "stack", .depth = 8}, 3) == Ints{0, 1, 2, 0, 1, 2, 0, 1});
    CHECK(grown({.order = "stack", .depth = 4}, 3) == Ints{0, 1, 2, 0});

    CHECK(grown(by("interleave", 2), 3) == Ints{0, 0, 1, 1, 2, 2});
    CHECK(grown(by("interleave", 3), 2) == Ints{0, 0, 0, 1, 1, 1});
    CHECK(grown({.order = "interleave", .depth = 5}, 3) == Ints{0, 0, 1, 1, 2});
    CHECK(grown({.order = "interleave", .depth = 8}, 3) == Ints{0, 0, 0, 1, 1, 1, 2, 2});
    CHECK(grown({.order = "interleave", .depth = 7}, 6) == Ints{0, 0, 1, 2, 3, 4, 5});
    CHECK(grown({.order = "interleave", .depth = 4}, 1) == Ints{0, 0, 0, 0});

    CHECK(grown(by("first", 2), 3) == Ints{0, 0, 0, 0, 1, 2});
    CHECK(grown({.order = "first", .depth = 5}, 3) == Ints{0, 0, 0, 1, 2});
    CHECK(grown({.order = "first", .depth = 3}, 3) == Ints{0, 1, 2});
    CHECK(grown({.order = "first", .depth = 3}, 1) == Ints{0, 0, 0});

    CHECK(grown(by("last", 2), 3) == Ints{0, 1, 2, 2, 2, 2});
    CHECK(grown({.order = "last", .depth = 5}, 3) == Ints{0, 1, 2, 2, 2});
    CHECK(grown({.order = "last", .depth = 3}, 3) == Ints{0, 1, 2});
    CHECK(grown({.order = "last", .depth = 3}, 1) == Ints{0, 0, 0});

    CHECK(grown({.order = "middle", .depth = 6}, 3) == Ints{0, 1, 1, 1, 1, 2});
    CHECK(grown(by("middle", 2), 4) == Ints{0, 1, 2, 1, 2, 1, 2, 3});
    CHECK(grown({.order = "middle", .depth = 7}, 4) == Ints{0, 1, 2, 1, 2, 1, 3});
    CHECK(grown({.order = "middle", .depth = 4}, 4) == Ints{0, 1, 2, 3});
    CHECK(grown({.order = "middle", .depth = 8, .middle = "2:3"}, 5) == Ints{0, 1, 2, 3, 2, 3, 2, 4});
    CHECK(grown({.order = "middle", .depth = 6, .middle = "0:1"}, 3) == Ints{0, 1, 0, 1, 0, 2});
    CHECK(grown({.order = "middle", .depth = 6, .middle = "2:2"}, 3) == Ints{0, 1, 2, 2, 2, 2});
    CHECK(grown({.order = "middle", .depth = 5, .middle = "0:2"}, 3) == Ints{0, 1, 2, 0, 1});
    CHECK(grown({.order = "middle", .depth = 3, .middle = "0:0"}, 1) == Ints{0, 0, 0});

    CHECK(grown({.order = "solar", .drop = 1}, 4) == Ints{0, 1, 2, 1, 2, 3});
    CHECK(grown({.order = "solar", .drop = 0}, 3) == Ints{0, 1, 2, 0, 1, 2});
    CHECK(grown({.order = "solar", .drop = 1}, 3) == Ints{0, 1, 1, 2});
    CHECK(grown({.order = "solar", .drop = 2}, 4) == Ints{0, 1, 2, 3});
    CHECK(grown({.order = "solar", .drop = 2}, 5) == Ints{0, 1, 2, 2, 3, 4});
    CHECK(grown({.order = "solar", .drop = 0}, 1) == Ints{0, 0});

    for (const char* order : {"random", "zero"}) {
        CHECK(grown(by(order, 2), 3) == Ints{0, 1, 2, -1, -1, -1});
        CHECK(grown(by(order, 1), 3) == Ints{0, 1, 2});
        CHECK(grown({.order = order, .depth = 5, .at = NewAt::top}, 3) == Ints{0, 1, 2, -1, -1});
        CHECK(grown({.order = order, .depth = 5, .at = NewAt::middle}, 3) == Ints{0, -1, -1, 1, 2});
        CHECK(grown({.order = order, .depth = 5, .at = NewAt::middle}, 4) == Ints{0, 1, -1, 2, 3});
        CHECK(grown({.order = order, .depth = 5, .at = NewAt::bottom}, 3) == Ints{-1, -1, 0, 1, 2});
        CHECK(grown({.order = order, .depth = 3, .at = NewAt::middle}, 1) == Ints{-1, -1, 0});
        for (NewAt at : {NewAt::bottom, NewAt::middle, NewAt::top})
            CHECK(grown({.order = order, .depth = 3, .at = at}, 0) == Ints{-1, -1, -1});
    }

    CHECK(grown(by("2,0,2"), 3) == Ints{2, 0, 2});
    CHECK(grown(by("0"), 3) == Ints{0});
}

TEST_CASE("layers: an unknown order is refused, and so are missing and superfluous flags of an order") {
    for (const char* order : {"", "stacked", ",", "1,", ",1", "1,,2", "1 2", "-1", "1.5", "0x1", "99999999999", "1;2", "Stack", "0,1,2 ", "LIST"})
        CHECK(
            contains(refusal([&] { grown(by(order), 3); }),
                     "must be stack, interleave, first, last, middle, solar, random, zero, or a list of layers like 0,1,2,0,1,2"));
    CHECK(contains(refusal([] { grown(by("stack"), 3); }), "--order stack needs --factor"));
    CHECK(contains(refusal([] { grown(by("zero"), 3); }), "--order zero needs --factor"));
    CHECK(contains(refusal([] { grown(by("stack", -2), 3); }), "--factor is -2, but must be 1 or more"));
    CHECK(contains(refusal([] { grown(by("zero", 2147483647), 3); }), "a model has at most 10000"));
    CHECK(refusal([] { grown(by("0,1", 2), 3); }) ==
          "--order 0,1 does not take --factor; leave --factor out, or use --order stack, interleave, first, last, middle, random, "
          "zero");
    CHECK(contains(refusal([] { grown(by("zero", 2, ValueEmbeds::layer), 3); }), "--order zero does not take --value-embeds"));
    CHECK(contains(refusal([] { grown({.order = "stack", .factor = 2, .seed = 1}, 3); }),
                   "--order stack does not take --seed; leave --seed out, or use --order random, zero"));
}

TEST_CASE("layers: a wrong value of an order's flag is refused, with the rule and the way out") {
    const struct {
        GrowthOptions options;
        int n_layer;
        const char* words;
    } wrong[] = {
        {{.order = "stack", .factor = 2, .depth = 6}, 3, "--factor and --depth are both given; leave one of them out"},
        {{.order = "random"}, 3, "--order random needs --factor, how many times deeper the model gets, or --depth, its number of layers"},
        {{.order = "first", .depth = 2}, 3, "--depth is 2, but the model has 3 layers; give as many or more"},
        {{.order = "last", .depth = 10001}, 3, "--depth 10001 makes 10001 layers of 3, but a model has at most 10000"},
        {{.order = "last", .factor = 3334}, 3, "--factor 3334 makes 10002 layers of 3, but a model has at most 10000"},
        {{.order = "zero", .factor = 2}, 0, "--factor 2 makes 0 layers of a model of 0 layers; give --depth, its number of layers"},
        {{.order = "stack", .depth = 2},
         0,
         "--order stack: the model has no layers to copy; use --order random or zero, with --depth"},
        {{.order = "solar", .drop = 0}, 0, "--order solar: the model has no layers to copy"},
        {{.order = "0,1"}, 0, "--order 0,1: the model has no layers to copy"},
        {{.order = "middle", .depth = 6},
         2,
         "--order middle needs --middle a:b here: a model of 2 layers has no layers between its first and last"},
        {{.order = "middle", .depth = 6}, 1, "a model of 1 layer has no layers"},
        {{.order = "middle", .depth = 6, .middle = "1:3"}, 3, "--middle 1:3 names layer 3, but the model has layers 0 to 2"},
        {{.order = "middle", .depth = 6, .middle = "2:1"},
         3,
         "--middle is '2:1', but must be two layers a:b, like 1:4, both included, the lower one first"},
        {{.order = "solar"}, 4, "--order solar needs --drop: how many layers each of the two copies leaves out"},
        {{.order = "solar", .drop = 3},
         4,
         "--drop is 3, but must be 0 to 2: with more the model would not get deeper than its 4 layers"},
        {{.order = "solar", .drop = -1}, 4, "--drop is -1"},
        {{.order = "solar", .drop = 1}, 5002, "--drop 1 makes 10002 layers of 5002, but a model has at most 10000"},
        {{.order = "solar", .depth = 6, .drop = 1}, 4, "--order solar does not take --depth; leave --depth out"},
        {{.order = "stack", .depth = 6, .middle = "0:1"},
         3,
         "--order stack does not take --middle; leave --middle out, or use --order middle"},
        {{.order = "stack", .depth = 6, .drop = 1},
         3,
         "--order stack does not take --drop; leave --drop out, or use --order solar"},
        {{.order = "stack", .depth = 6, .at = NewAt::top},
         3,
         "--order stack does not take --at; leave --at out, or use --order random, zero"},
        {{.order = "random", .depth = 6, .damp = "0.5"},
         3,
         "--order random does not take --damp; leave --damp out, or use --order stack, interleave, first, last, middle, solar, "
         "LIST"},
        {{.order = "zero", .depth = 6, .damp = "0.5"}, 3, "--order zero does not take --damp"},
    };
    for (const auto& [options, n_layer, words] : wrong) {
        CAPTURE(words);
        const std::string text = refusal([&, &o = options, L = n_layer] { grown(o, L); });
        CHECK_MESSAGE(contains(text, words), text);
    }
    for (const char* middle : {"", ":", "1", "1:", ":1", "1:2:3", "a:b", "-1:1", "1,2", "0:1,2", "1.5:2", " 1:2"})
        CHECK(
            contains(refusal([&] { grown({.order = "middle", .depth = 6, .middle = middle}, 3); }), "but must be two layers a:b"));
    for (const char* damp : {"", "0", "-1", "x", "1/2", "1/copie", "1/copies ", "nan", "inf", "1e4", "0.5x", "0x1"})
        CHECK(contains(refusal([&] { grown({.order = "stack", .depth = 6, .damp = damp}, 3); }),
                       "but must be a number, 1e-06 to 1000, or 1/copies"));
}

TEST_CASE("layers: random: windows of the new depth; new layers as the recipe initializes them, value embeddings by the deeper model's pattern") {
    GPTConfig config = recipe_config(NANOCHAT, 3, 2, 64, 128, 32, "SL");   // layers 0 and 2 have a value embedding
    config.attn_scale = {0.5, 2, 3};
    config.norm_before = {Norm::none, Norm::rms_norm, Norm::layer_norm};
    LayerMap map = grow_map(config, {.order = "random", .depth = 6, .at = NewAt::middle, .seed = 7});
    CHECK(map.layers == Layers{{0, 0}, {}, {}, {}, {0, 1}, {0, 2}});
    CHECK(map.seed == 7);
    CHECK(map.config.windows == Ints{16, 32, 16, 32, 16, 32});
    CHECK(map.config.attn_scale == std::vector<double>{0.5, 1, 1, 1, 2, 3});
    const Norm none = Norm::none;
    CHECK(map.config.norm_before == std::vector<Norm>{none, none, none, none, Norm::rms_norm, Norm::layer_norm});
    CHECK(map.config.value_embeds == Bools{true, true, false, true, false, true});   // 1, 3 and 5 by the pattern; 0 keeps its own
    for (const char* tensor : {"q", "proj", "fc_proj", "ve", "resid_lambdas", "x0_lambdas"})
        CHECK(map.layers[1].rule(tensor) == Rule{Rule::initial});
    for (const char* tensor : {"q", "proj", "resid_lambdas"}) CHECK(map.layers[4].rule(tensor) == Rule{Rule::copy});
    GrowthOptions options{.order = "random", .depth = 6, .at = NewAt::middle, .value_embeds = ValueEmbeds::pattern};
    CHECK(grow_map(config, options).config.value_embeds == Bools{false, true, false, true, false, true});
    config.value_embeds = {false, false, false};
    CHECK(grow_map(config, options).config.value_embeds == Bools(6, false));

    GPTConfig speed = recipe_config(SPEEDRUN, 2, 2, 32, 96, 24);
    CHECK(grow_map(speed, {.order = "random", .depth = 8}).config.attn_scale ==
          std::vector<double>{0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25});
    CHECK(grow_map(speed, {.order = "random", .depth = 8}).config.value_embeds == Bools(8, false));
}

TEST_CASE("layers: random makes of no layers the model that training starts with; of one layer, every order works") {
    for (const Recipe* recipe : recipes()) {
        const GPTConfig none = recipe_config(*recipe, 0, 2, 32, 96, 24), five = recipe_config(*recipe, 5, 2, 32, 96, 24);
        CHECK(grow_map(none, {.order = "random", .depth = 5}).config == five);
        GPTConfig expected = five;
        expected.value_embeds = Bools(5, false);
        expected.windows = Ints(5, 24);
        CHECK(grow_map(none, {.order = "zero", .depth = 5}).config == expected);
    }
    const GPTConfig one = recipe_config(NANOCHAT, 1, 2, 64, 128, 32, "SSSL"),
                    four = recipe_config(NANOCHAT, 4, 2, 64, 128, 32, "SSSL");
    for (const GrowthOptions& options :
         {GrowthOptions{.order = "stack", .depth = 4}, GrowthOptions{.order = "interleave", .depth = 4},
          GrowthOptions{.order = "first", .depth = 4}, GrowthOptions{.order = "last", .depth = 4},
          GrowthOptions{.order = "middle", .depth = 4, .middle = "0:0"}, GrowthOptions{.order = "0,0,0,0"}}) {
        CAPTURE(options.order);
        LayerMap map = grow_map(one, options);
        CHECK(map.layers == Layers{{0, 0}, {0, 0}, {0, 0}, {0, 0}});
        CHECK(map.config.value_embeds == Bools(4, true));
        GrowthOptions pattern = options;
        pattern.value_embeds = ValueEmbeds::pattern;
        CHECK(grow_map(one, pattern).config == four);
    }
    CHECK(grow_map(one, {.order = "random", .depth = 4}).config.value_embeds == Bools{true, true, false, true});
    CHECK(grow_map(one, {.order = "random", .depth = 4, .value_embeds = ValueEmbeds::pattern}).config == four);
}

TEST_CASE("layers: damp scales attention in the configuration and the MLP by its last matrix, but never by 1") {
    GPTConfig config = recipe_config(NANOCHAT, 3, 2, 64, 128, 32, "SL");
    config.attn_scale = {0.5, 1, 2};
    auto scaled = [](double number) { return std::vector<TensorRule>{{"fc_proj", {Rule::scaled, number}}}; };
    LayerMap map = grow_map(config, {.order = "0,1,0,2,0,1", .damp = "0.25"});
    CHECK(map.config.attn_scale == std::vector<double>{0.5, 1, 0.125, 2, 0.125, 0.25});
    CHECK(map.layers == Layers{{0, 0}, {0, 1}, {0, 0, scaled(0.25)}, {0, 2}, {0, 0, scaled(0.25)}, {0, 1, scaled(0.25)}});
    map = grow_map(config, {.order = "0,1,0,2,0,1", .damp = "1/copies"});
    CHECK(map.config.attn_scale == std::vector<double>{0.5 * (1.0 / 3), 0.5, 0.5 * (1.0 / 3), 2, 0.5 * (1.0 / 3), 0.5});
    const LayerFrom third{0, 0, scaled(1.0 / 3)}, half{0, 1, scaled(0.5)};
    CHECK(map.layers == Layers{third, half, third, {0, 2}, third, half});
    CHECK(grow_map(config, {.order = "0,0", .damp = "1"}).layers == Layers{{0, 0}, {0, 0}});
    CHECK(grow_map(config, {.order = "0,1,2", .damp = "1/copies"}).config.attn_scale == config.attn_scale);
}

TEST_CASE("layers: --timing follows the rule of arXiv 2405.15319") {
    CHECK(tokens_before_growth(1.24e8, 7.44e18) == doctest::Approx(1.08e10).epsilon(0.01));   // the paper's example, to its digits
    CHECK(tokens_before_growth(1, 1e100) == doctest::Approx(std::pow(10, 1.6327 - 5.74)).epsilon(1e-12));
    CHECK(tokens_before_growth(1e10, 1e20) == doctest::Approx(std::pow(10, 8.8 + 8.1635 - 5.74)).epsilon(1e-12));
    CHECK(std::isfinite(tokens_before_growth(1, 10.001)));
    CHECK(std::isfinite(tokens_before_growth(1e307, 1e308)));
    const double nan = std::nan(""), inf = HUGE_VAL;
    for (double params : {0.0, -1.0, 0.5, nan, inf})
        CHECK(contains(refusal([&] { tokens_before_growth(params, 1e20); }), "--timing: N is "));
    for (double flops : {10.0, 0.0, -1e20, nan, inf})
        CHECK(contains(refusal([&] { tokens_before_growth(1, flops); }), "--timing: C is "));
    CHECK(contains(refusal([] { tokens_before_growth(1e8, 5e8); }), "enough to train N = 1e+08 parameters on a token"));
}

TEST_CASE("layers: the lineage has all flags of an order, defaults too") {
    CHECK(growth_detail(by("stack", 2)) == "--order stack --factor 2 --value-embeds layer --optimizer reset");
    CHECK(growth_detail(by("0,1", {}, ValueEmbeds::pattern)) == "--order 0,1 --value-embeds pattern --optimizer reset");
    CHECK(growth_detail(by("zero", 3)) == "--order zero --factor 3 --at top --seed 42 --optimizer reset");
    CHECK(growth_detail({.order = "random", .depth = 8, .at = NewAt::bottom, .seed = 7, .optimizer = GrownState::zero}) ==
          "--order random --depth 8 --at bottom --value-embeds layer --seed 7 --optimizer zero");
    CHECK(growth_detail({.order = "middle", .depth = 8, .middle = "1:2", .damp = "1/copies", .optimizer = GrownState::copy}) ==
          "--order middle --depth 8 --middle 1:2 --value-embeds layer --damp 1/copies --optimizer copy");
    CHECK(growth_detail({.order = "solar", .drop = 2}) == "--order solar --drop 2 --value-embeds layer --optimizer reset");
}

TEST_CASE("layers: the lineage has the map with its rules, and numbers that read back exactly") {
    LayerMap map = grow_map(recipe_config(NANOCHAT, 2, 2, 64, 128, 32, "SSSL"), by("1,0,1"));
    map.layers[1].rules = {
        {"fc_proj", {Rule::scaled, 1.0 / 3}}, {"proj", {Rule::constant, 0}}, {"fc", {Rule::initial}}, {"q", {Rule::copy}}};
    map.layers[2] = {-1, -1, {{"proj", {Rule::constant, 0}}}};
    CHECK(layers_json(map).dump() ==
          R"([[0,1],[0,0,{"fc":"initial","fc_proj":"x 0.3333333333333333","proj":"0","q":"copied"}],null])");
}

TEST_CASE("layers: parameters that cost no FLOPs are the value embeddings beyond the pattern") {
    const int64_t each = 128 * 64;
    GPTConfig config = recipe_config(NANOCHAT, 4, 2, 64, 128, 32, "SSSL");   // layers 1 and 3 have one
    CHECK(free_params(config) == 0);
    config.value_embeds = {true, true, true, true};
    CHECK(free_params(config) == 2 * each);
    config.value_embeds = {true, false, false, false};
    CHECK(free_params(config) == each);
    config = recipe_config(SPEEDRUN, 4, 2, 64, 128, 32);
    CHECK(free_params(config) == 0);
    config.value_embeds = {true, true, false, false};
    CHECK(free_params(config) == 2 * each);
    CHECK(free_params(recipe_config(NANOCHAT, 0, 2, 64, 128, 32)) == 0);
}

TEST_CASE("layers: zero: old layers keep their settings; new ones have full windows and the recipe's initialization, except where that would change the function") {
    GPTConfig config = recipe_config(NANOCHAT, 3, 2, 64, 128, 32, "SL");
    config.attn_scale = {0.5, 1, 2};
    config.norm_before = {Norm::none, Norm::rms_norm, Norm::layer_norm};
    config.windows = {5, 6, 7};
    config.value_embeds = {true, true, false};
    LayerMap map = grow_map(config, {.order = "zero", .factor = 2, .seed = 7});
    GPTConfig expected = config;
    expected.n_layer = 6;
    for (int n = 3; n < 6; n++) {
        expected.attn_scale.push_back(1);
        expected.norm_before.push_back(Norm::none);
        expected.windows.push_back(32);
        expected.value_embeds.push_back(false);
    }
    CHECK(map.config == expected);
    CHECK(map.seed == 7);
    CHECK(grow_map(config, by("zero", 2)).seed == 42);
    for (const char* tensor : {"q", "fc_proj", "resid_lambdas"}) CHECK(map.layers[2].rule(tensor) == Rule{Rule::copy});
    for (const char* tensor : {"q", "k", "v", "fc", "ve", "ve_gate"}) CHECK(map.layers[3].rule(tensor) == Rule{Rule::initial});
    for (const char* tensor : {"proj", "fc_proj", "x0_lambdas"}) CHECK(map.layers[5].rule(tensor) == Rule{Rule::constant, 0});
    CHECK(map.layers[4].rule("resid_lambdas") == Rule{Rule::constant, 1});
    // The speedrun's attention scale depends on the depth: here the depth of the deeper model.
    CHECK(grow_map(recipe_config(SPEEDRUN, 2, 2, 32, 96, 24), by("zero", 4)).config.attn_scale ==
          std::vector<double>{0.5, 0.5, 0.25, 0.25, 0.25, 0.25, 0.25, 0.25});
}

TEST_CASE("layers: growth of the reference's golden model") {
    GPTConfig config = recipe_config(NANOCHAT, 4, 2, 64, 128, 32, "SSSL");
    LayerMap stacked = grow_map(config, by("stack", 2));
    CHECK(stacked.config == recipe_config(NANOCHAT, 8, 2, 64, 128, 32, "SSSL"));
    CHECK(stacked.layers == Layers{{0, 0}, {0, 1}, {0, 2}, {0, 3}, {0, 0}, {0, 1}, {0, 2}, {0, 3}});

    LayerMap interleaved = grow_map(config, by("interleave", 2, ValueEmbeds::layer));
    GPTConfig expected = recipe_config(NANOCHAT, 8, 2, 64, 128, 32, "SSSL");
    expected.value_embeds = {false, false, true, true, false, false, true, true};
    CHECK(interleaved.config == expected);
    CHECK(interleaved.config.windows == Ints{16, 16, 16, 32, 16, 16, 16, 32});

    LayerMap pattern = grow_map(config, by("interleave", 2, ValueEmbeds::pattern));
    expected.value_embeds = {false, false, false, true, false, false, false, true};
    CHECK(pattern.config == expected);
}

TEST_CASE("layers: growth moves the settings of a layer with it, except windows") {
    GPTConfig config = recipe_config(NANOCHAT, 3, 2, 64, 128, 32, "SL");
    config.attn_scale = {0.5, 1, 2};
    config.norm_before = {Norm::none, Norm::rms_norm, Norm::layer_norm};
    config.windows = {5, 6, 7};
    LayerMap map = grow_map(config, by("2,2,0"));
    CHECK(map.config.n_layer == 3);
    CHECK(map.config.attn_scale == std::vector<double>{2, 2, 0.5});
    CHECK(map.config.norm_before == std::vector<Norm>{Norm::layer_norm, Norm::layer_norm, Norm::none});
    CHECK(map.config.value_embeds == Bools{true, true, true});   // layers 0 and 2 of three have one
    CHECK(map.config.windows == Ints{16, 32, 32});
    CHECK(grow_map(config, by("2,2,0", {}, ValueEmbeds::pattern)).config.value_embeds == Bools{true, false, true});
    CHECK(contains(refusal([&] { grow_map(config, by("0,3")); }), "--order names layer 3, but the model has layers 0 to 2"));
}

TEST_CASE("layers: a stack keeps and drops the same layers as the reference") {
    GPTConfig three = recipe_config(SPEEDRUN, 3, 2, 32, 96, 24);
    std::vector<GPTConfig> pair{three, three}, triple{three, three, three};
    std::vector<std::string> names{"a", "b", "c"};
    StackOptions options;
    CHECK(stack_map(pair, names, options).layers == Layers{{0, 0}, {0, 1}, {1, 1}, {1, 2}});
    CHECK(stack_map(triple, names, options).layers == Layers{{0, 0}, {0, 1}, {1, 1}, {2, 1}, {2, 2}});
    options.use_first_layer = true;
    CHECK(stack_map(pair, names, options).layers == Layers{{0, 0}, {0, 1}, {1, 0}, {1, 1}, {1, 2}});
    options.use_last_layer = true;
    CHECK(stack_map(pair, names, options).layers == Layers{{0, 0}, {0, 1}, {0, 2}, {1, 0}, {1, 1}, {1, 2}});
    options.use_first_layer = false;
    CHECK(stack_map(pair, names, options).layers == Layers{{0, 0}, {0, 1}, {0, 2}, {1, 1}, {1, 2}});
}

TEST_CASE("layers: a stack moves the settings of a layer with it, and has norms at the seams") {
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

TEST_CASE("layers: a model of one layer in the middle of a stack contributes none, and a stack without layers is refused") {
    GPTConfig one = recipe_config(SPEEDRUN, 1, 2, 32, 96, 24), three = recipe_config(SPEEDRUN, 3, 2, 32, 96, 24);
    StackOptions options;
    options.norm_inter_model = Norm::rms_norm;
    LayerMap map = stack_map({three, one, three}, {"a", "b", "c"}, options);
    CHECK(map.layers == Layers{{0, 0}, {0, 1}, {2, 1}, {2, 2}});
    CHECK(map.config.norm_before == std::vector<Norm>{Norm::none, Norm::none, Norm::rms_norm, Norm::none});
    CHECK(contains(refusal([&] { stack_map({one, one}, {"a", "b"}, options); }), "no layer is left"));
    CHECK(contains(refusal([&] { stack_map({one}, {"a"}, options); }), "two models or more"));
}

TEST_CASE("layers: models that do not fit together are refused, with both values") {
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
    CHECK(refused([](GPTConfig& c) { c.norm_wte = c.norm_lm_head = Norm::layer_norm; }) == "");            // decided by flags
}
