// The programs grow, stack and convert: tensors are copied unchanged, memory stays small, and every refusal is one line with exit code 2
// and writes nothing.
#include "llmc/rewrite.h"
#include <doctest/doctest.h>
#include <cmath>
#include <iterator>
#include <random>
#include <regex>
#include <set>
#include <sys/stat.h>
#include "llmc/io/error.h"
#include "llmc/safetensors.h"
#include "test/gpt_reference.h"
#include "test/small_model.h"

using nlohmann::json;
using Names = std::vector<std::string>;

static void check_layer(const Checkpoint& to, int n, const Checkpoint& from, int l) {
    for (const Tensor& tensor : tensor_table(to.config))
        if (tensor.layer == n) CHECK(bytes_of(to, tensor.name) == bytes_of(from, concat("h.", l, ".", tensor.spec->name)));
    for (const char* lambdas : {"resid_lambdas", "x0_lambdas"})
        if (to.config.lambdas) CHECK(values_of(to, lambdas)[n] == values_of(from, lambdas)[l]);
}

TEST_CASE("grow: layers, lambdas, embedding, head, tokenizer and data position are taken over; optimizer state and progress are not") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(3), 1);
    std::string out = done("./grow " + dir / "in.bin" + " " + dir / "out.bin" + " --order 2,0,0,1");
    CHECK(contains(out, "layer 0 <- layer 2 of " + dir / "in.bin"));
    CHECK(contains(out, "layer 3 <- layer 1 of " + dir / "in.bin"));
    CHECK(contains(out, "parameters: "));
    Checkpoint in = open_checkpoint(dir / "in.bin"), grown = open_checkpoint(dir / "out.bin");
    verify_tensors(grown);
    CHECK(grown.config == grow_map(in.config, {.order = "2,0,0,1"}).config);
    check_layer(grown, 0, in, 2);
    check_layer(grown, 1, in, 0);
    check_layer(grown, 2, in, 0);
    check_layer(grown, 3, in, 1);
    for (const char* name : {"wte", "lm_head", "tokenizer"}) CHECK(bytes_of(grown, name) == bytes_of(in, name));
    CHECK(grown.find("wte/m") == nullptr);
    CHECK(!grown.can_resume());
    CHECK(grown.header["progress"] == no_progress());
    CHECK(grown.header["data"] == in.header["data"]);
    json lineage = grown.header["lineage"];
    CHECK(lineage["operation"] == "grow");
    CHECK(lineage["detail"] == "--order 2,0,0,1 --value-embeds layer --optimizer reset");
    CHECK(lineage["parents"][0]["hash"] == in.content_hash());
    CHECK(lineage["parents"][0]["tokens"] == 4096);
    CHECK(lineage["parents"][0]["operation"] == "train");
    CHECK(names_in(dir.path) == Names{"in.bin", "out.bin"});
}

TEST_CASE("grow: stack, interleave and value embeddings by pattern") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(2), 1);
    Checkpoint in = open_checkpoint(dir / "in.bin");
    done("./grow " + dir / "in.bin" + " " + dir / "s.bin" + " --factor 3 --order stack");
    done("./grow --factor 3 --order interleave " + dir / "in.bin" + " " + dir / "i.bin");
    done("./grow " + dir / "in.bin" + " " + dir / "p.bin" + " --factor 3 --order interleave --value-embeds pattern");
    Checkpoint stacked = open_checkpoint(dir / "s.bin"), interleaved = open_checkpoint(dir / "i.bin"), pattern = open_checkpoint(dir / "p.bin");
    for (int n = 0; n < 6; n++) {
        check_layer(stacked, n, in, n % 2);
        check_layer(interleaved, n, in, n / 3);
        check_layer(pattern, n, in, n / 3);
    }
    CHECK(interleaved.find("h.4.ve"));
    CHECK(!pattern.find("h.4.ve"));
    CHECK(pattern.find("h.3.ve"));
    done("./grow " + dir / "s.bin" + " " + dir / "again.bin" + " --factor 2 --order stack");   // growing a grown model
    CHECK(open_checkpoint(dir / "again.bin").header["lineage"]["parents"][0]["parents"][0]["hash"] == in.content_hash());
}

TEST_CASE("rewrite: initial values generated in pieces equal those of the whole tensor") {
    for (const GPTConfig& config : {nano(3), speed(3)})
        for (const Tensor& tensor : tensor_table(config)) {
            std::vector<float> whole(static_cast<size_t>(tensor.numel)), pieces = whole;
            initialize(whole.data(), tensor, config, 5);
            InitialValues values(tensor, config, 5);
            int64_t sizes[] = {1, 2, 0, 3, 7, 64, 1}, at = 0;
            for (size_t i = 0; at < tensor.numel; i++) {
                int64_t n = std::min(sizes[i % std::size(sizes)], tensor.numel - at);
                values.next(&pieces[static_cast<size_t>(at)], n);
                at += n;
            }
            CHECK(pieces == whole);
        }
}

/// The values times x, computed in float64 and rounded once.
static std::vector<float> times(double x, std::vector<float> values) {
    for (float& value : values) value = static_cast<float>(double{value} * x);
    return values;
}

TEST_CASE("rewrite: every rule, for matrices, value embeddings and lambdas") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(3), 1);
    Checkpoint in = open_checkpoint(dir / "in.bin");
    LayerMap map = grow_map(in.config, {.order = "2,0,2,1"});
    map.seed = 5;
    map.layers[1].rules = {{"fc_proj", {Rule::scaled, 0.3}}, {"ve", {Rule::scaled, -1e-3}}, {"v", {Rule::initial}}, {"q", {Rule::copy}},
                           {"resid_lambdas", {Rule::scaled, 0.7}}, {"x0_lambdas", {Rule::constant, 0.25}}};
    map.layers[2] = {-1, -1, {{"proj", {Rule::constant, 0}}, {"fc", {Rule::constant, 0.1}}, {"resid_lambdas", {Rule::constant, 1}}}};
    std::vector<const Checkpoint*> models{&in};
    print_map(map, models);
    json header{{"config", to_json(map.config)}, {"progress", no_progress()}, {"lineage", make_lineage("grow", "", models)}};
    std::vector<TensorSource> sources = mapped_tensors(map, models, in);
    write_checkpoint(dir / "out.bin", header, sources);
    write_checkpoint(dir / "again.bin", header, sources);   // sources can be written again
    CHECK(read_file(dir / "out.bin") == read_file(dir / "again.bin"));
    Checkpoint out = open_checkpoint(dir / "out.bin");
    verify_tensors(out);

    for (const char* tensor : {"q", "k", "fc", "proj"}) CHECK(bytes_of(out, concat("h.1.", tensor)) == bytes_of(in, concat("h.0.", tensor)));
    CHECK(values_of(out, "h.1.fc_proj") == times(0.3, values_of(in, "h.0.fc_proj")));
    CHECK(values_of(out, "h.1.ve") == times(-1e-3, values_of(in, "h.0.ve")));
    CHECK(bytes_of(out, "h.1.ve_gate") == bytes_of(in, "h.0.ve_gate"));
    for (const Tensor& tensor : tensor_table(map.config)) {
        std::vector<float> initial(static_cast<size_t>(tensor.numel)), written = values_of(out, tensor.name);
        initialize(initial.data(), tensor, map.config, 5);
        const std::string name = tensor.layer < 0 ? "" : tensor.spec->name;
        if (tensor.layer == 2 && name == "proj") CHECK(written == std::vector<float>(written.size(), 0));
        else if (tensor.layer == 2 && name == "fc") CHECK(written == std::vector<float>(written.size(), 0.1f));
        else if (tensor.layer == 2 || tensor.name == "h.1.v") CHECK(written == initial);
        if (tensor.layer == 0) CHECK(written == values_of(in, "h.2." + name));
        if (tensor.layer == 3) CHECK(written == values_of(in, "h.1." + name));
    }
    auto r = values_of(in, "resid_lambdas"), x0 = values_of(in, "x0_lambdas");
    CHECK(values_of(out, "resid_lambdas") == std::vector<float>{r[2], times(0.7, {r[0]})[0], 1, r[1]});
    CHECK(values_of(out, "x0_lambdas") == std::vector<float>{x0[2], 0.25f, 0.1f, x0[1]});

    map.layers[0].rules = {{"fc_prj", {Rule::constant, 0}}};
    CHECK(contains(refusal([&] { mapped_tensors(map, models, in); }), "a layer of the map has a rule for 'fc_prj', which no layer has"));
    map.layers[0].rules = {{"wte", {Rule::constant, 0}}};
    CHECK(contains(refusal([&] { mapped_tensors(map, models, in); }), "a layer of the map has a rule for 'wte', which no layer has"));
}

TEST_CASE("grow: the rules of every operator are for tensors of a layer, and --help names the operator") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(2), 1);
    Checkpoint in = open_checkpoint(dir / "in.bin");
    const std::string help = done("./grow --help");
    for (const GrowthOperator& op : growth_operators()) {
        CHECK(contains(help, concat(op.name, ": ", std::string(op.help).substr(0, 20))));
        if (!op.adds) continue;
        LayerMap map = grow_map(in.config, {.order = "0,1"});
        map.layers[1] = {-1, -1, op.adds->rules};
        CHECK(mapped_tensors(map, {&in}, in).size() == tensor_table(map.config).size() + 1);   // and the tokenizer
    }
}

// test/gpt.cpp compares the logits bit for bit; this runs the programs.
TEST_CASE("grow: zero: the file's lineage and map, the same loss, and new matrices as training would initialize them") {
    TempDir dir;
    const std::string shards = "test/golden/checkpoint_v1/", val = " --val-data " + shards + "val_000000.bin";
    auto loss_of = [&](const std::string& file) {
        std::string out = run("./train_gpt --eval --init " + dir / file + val).out;
        size_t at = out.find("val_loss: ");
        REQUIRE(at != std::string::npos);
        return out.substr(at, out.find('\n', at) - at);
    };
    for (const GPTConfig& config : {recipe_config(NANOCHAT, 2, 2, 32, 264, 16, "SL"), recipe_config(SPEEDRUN, 2, 2, 16, 264, 16)}) {
        write_small_model(dir / "in.bin", config, small_weights(config, 1), "");
        std::string out = done("./grow " + dir / "in.bin " + dir / "out.bin --overwrite --order zero --factor 2 --seed 5");
        CHECK(contains(out, config.lambdas ? "layer 2 <- new, initial values of seed 5 (proj 0, fc_proj 0, resid_lambdas 1, x0_lambdas 0)   window 16,"
                                           : "layer 3 <- new, initial values of seed 5 (proj 0, fc_proj 0)   window 16, scale 0.353553,"));
        Checkpoint in = open_checkpoint(dir / "in.bin"), grown = open_checkpoint(dir / "out.bin");
        CHECK(grown.config == grow_map(config, {.order = "zero", .factor = 2, .seed = 5}).config);
        CHECK(grown.header["lineage"]["detail"] == "--order zero --factor 2 --at top --seed 5 --optimizer reset");
        CHECK(grown.header["data"] == in.header["data"]);
        for (int n = 0; n < 2; n++) check_layer(grown, n, in, n);
        CHECK(bytes_of(grown, "wte") == bytes_of(in, "wte"));
        CHECK(loss_of("out.bin") == loss_of("in.bin"));

        // One training step with learning rates of 0 saves the initial values.
        GPTConfig fresh = grown.config;
        Result trained = run(concat("./train_gpt --recipe ", fresh.recipe->name, " --depth 4 --width ", fresh.n_embd, " --heads 2 --seq-len 16 --vocab-size 264 ",
                                    "--seed 5 --data ", shards, "train_000000.bin --steps 1 --batch-tokens 16 --device-batch 1 --no-scaling --embedding-lr 0 ",
                                    "--unembedding-lr 0 --matrix-lr 0 --scalar-lr 0 --weight-decay 0 --overwrite --out ", dir / "run"));
        REQUIRE(trained.code == 0);
        Checkpoint begun = open_checkpoint(dir / "run/step_0000001.bin");
        for (const char* tensor : {"q", "k", "v", "fc"})
            for (int n : {2, 3}) CHECK(bytes_of(grown, concat("h.", n, ".", tensor)) == bytes_of(begun, concat("h.", n, ".", tensor)));
        CHECK(bytes_of(grown, "h.0.q") != bytes_of(begun, "h.0.q"));
    }
}

// ----------------------------------------------------------------------------------------------------- growth, composed by hand

using Ints = std::vector<int>;
static constexpr int NEW = -1;

struct Growth {
    int n_layer;
    const char* flags;
    Ints layers;
};
/// Every operator that changes the function, at depths that are a multiple and that are not; the layers are written out.
static const std::vector<Growth> GROWTHS{
    {3, "--order stack --factor 2", {0, 1, 2, 0, 1, 2}},
    {3, "--order stack --depth 5", {0, 1, 2, 0, 1}},
    {3, "--order interleave --factor 2", {0, 0, 1, 1, 2, 2}},
    {3, "--order interleave --depth 5", {0, 0, 1, 1, 2}},
    {3, "--order first --depth 5", {0, 0, 0, 1, 2}},
    {3, "--order last --depth 6", {0, 1, 2, 2, 2, 2}},
    {4, "--order middle --depth 7", {0, 1, 2, 1, 2, 1, 3}},
    {3, "--order middle --depth 5 --middle 0:1", {0, 1, 0, 1, 2}},
    {4, "--order solar --drop 1", {0, 1, 2, 1, 2, 3}},
    {3, "--order random --depth 5 --seed 9", {0, 1, 2, NEW, NEW}},
    {3, "--order random --depth 5 --seed 9 --at middle", {0, NEW, NEW, 1, 2}},
    {3, "--order random --factor 2 --seed 9 --at bottom", {NEW, NEW, NEW, 0, 1, 2}},
    {1, "--order random --depth 3 --seed 9", {0, NEW, NEW}},
    {3, "--order 2,0,1,0", {2, 0, 1, 0}},
};

static GPTConfig nonzero(int layers) { return recipe_config(NANOCHAT_NONZERO, layers, 2, 32, 64, 16, "SSL"); }
static GPTConfig speed16(int layers) { return recipe_config(SPEEDRUN, layers, 2, 16, 24, 16); }

/// Random weights such that the loss depends on all of them: within 0.3 of zero, resid_lambdas within 0.3 of 1.
static Values even_weights(const GPTConfig& config, uint64_t seed) {
    std::mt19937_64 generator(seed);
    Values values;
    for (const Tensor& tensor : tensor_table(config))
        for (int64_t i = 0; i < tensor.numel; i++) {
            const float number = static_cast<float>(static_cast<double>(generator() >> 11) * 0x1p-53 - 0.5) * 0.6f;
            values[tensor.name].push_back(tensor.name == "resid_lambdas" ? 1 + number : number);
        }
    return values;
}

static const Ints IDX{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3}, TARGETS{1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2};

/// The loss of these weights in float64. change: modifies them in float64 before.
template <class Change>
static double reference_loss(const GPTConfig& config, const Values& values, Change change) {
    std::map<std::string, Doubles> weights;
    for (auto& [name, numbers] : values) weights[name] = Doubles(numbers.begin(), numbers.end());
    change(weights);
    return ReferenceGPT{config, weights, {}, {}}.loss(IDX, TARGETS);
}
static double reference_loss(const GPTConfig& config, const Values& values) {
    return reference_loss(config, values, [](auto&) {});
}

static Values weights_of(const Checkpoint& checkpoint) {
    Values values;
    for (const Tensor& tensor : tensor_table(checkpoint.config)) values[tensor.name] = values_of(checkpoint, tensor.name);
    return values;
}

/// The weights of `config`: its layers are the named ones of `from`, or new ones as the recipe initializes them.
static Values composed(const GPTConfig& config, const Values& from, const Ints& layers, uint64_t seed) {
    Values values;
    for (const Tensor& tensor : tensor_table(config)) {
        std::vector<float>& to = values[tensor.name];
        if (tensor.name == "wte" || tensor.name == "lm_head") {
            to = from.at(tensor.name);
            continue;
        }
        to.resize(static_cast<size_t>(tensor.numel));
        initialize(to.data(), tensor, config, seed);
        if (tensor.layer >= 0 && layers[tensor.layer] != NEW)
            to = from.at(concat("h.", layers[tensor.layer], ".", tensor.spec->name));
        for (size_t n = 0; tensor.layer < 0 && n < layers.size(); n++)
            if (layers[n] != NEW) to[n] = from.at(tensor.name)[layers[n]];
    }
    return values;
}

TEST_CASE("grow: every order: tensors, configuration and float64 loss equal those of the model composed by hand") {
    TempDir dir;
    for (auto make : {nano, nonzero, speed16})
        for (const Growth& growth : GROWTHS) {
            const GPTConfig config = make(growth.n_layer);
            const int depth = static_cast<int>(growth.layers.size());
            CAPTURE(std::string(config.recipe->name));
            CAPTURE(std::string(growth.flags));
            const Values from = even_weights(config, 3);
            write_small_model(dir / "in.bin", config, from);
            done("./grow --overwrite " + dir / "in.bin " + dir / "out.bin " + growth.flags);
            const Checkpoint out = open_checkpoint(dir / "out.bin");
            verify_tensors(out);

            GPTConfig expected = make(depth);   // windows as in the deeper model; scales and value embeddings move with their layer
            for (int n = 0; n < depth; n++) {
                if (growth.layers[n] == NEW) continue;
                expected.attn_scale[n] = config.attn_scale[growth.layers[n]];
                expected.value_embeds[n] = config.value_embeds[growth.layers[n]];
            }
            CHECK(out.config == expected);
            const Values values = weights_of(out), by_hand = composed(expected, from, growth.layers, 9);
            CHECK(values == by_hand);
            const double loss = reference_loss(expected, by_hand);
            CHECK(std::isfinite(loss));
            CHECK(reference_loss(out.config, values) == loss);
            CHECK(std::abs(loss - reference_loss(config, from)) > 1e-6);   // growth has changed the function
        }
}

TEST_CASE("grow: zero keeps the function, wherever its layers are inserted, also in a model of no layers") {
    TempDir dir;
    for (auto make : {nano, speed16})
        for (int n_layer : {0, 1, 3}) {
            const Values from = even_weights(make(n_layer), 3);
            write_small_model(dir / "in.bin", make(n_layer), from);
            const double before = reference_loss(make(n_layer), from);
            for (const char* at : {"bottom", "middle", "top"}) {
                done("./grow --overwrite " + dir / "in.bin " + dir / "out.bin --order zero --depth 5 --at " + at);
                const Checkpoint out = open_checkpoint(dir / "out.bin");
                CHECK(out.config.n_layer == 5);
                CHECK(reference_loss(out.config, weights_of(out)) == before);
            }
        }
}

TEST_CASE("grow: random from no layers equals the initialization of training, except for embedding and head") {
    TempDir dir;
    for (auto make : {nano, nonzero, speed}) {
        CAPTURE(std::string(make(0).recipe->name));
        write_small_model(dir / "in.bin", make(0), 1);
        done("./grow --overwrite " + dir / "in.bin " + dir / "out.bin --order random --depth 4 --seed 5");
        const Checkpoint in = open_checkpoint(dir / "in.bin"), out = open_checkpoint(dir / "out.bin");
        CHECK(out.config == make(4));
        for (const Tensor& tensor : tensor_table(make(4))) {
            CAPTURE(tensor.name);
            std::vector<float> initial(static_cast<size_t>(tensor.numel));
            initialize(initial.data(), tensor, make(4), 5);
            const bool kept = tensor.name == "wte" || tensor.name == "lm_head";
            CHECK(values_of(out, tensor.name) == (kept ? values_of(in, tensor.name) : initial));
        }
        CHECK(out.header["lineage"]["layers"].dump() == "[null,null,null,null]");
    }
}

TEST_CASE("grow: value embeddings by pattern, for every order that allows it; those beyond the pattern are counted") {
    TempDir dir;
    for (const Growth& growth : GROWTHS) {
        CAPTURE(std::string(growth.flags));
        const int depth = static_cast<int>(growth.layers.size());
        write_small_model(dir / "in.bin", nano(growth.n_layer), 1);
        const std::string command = "./grow --overwrite " + dir / "in.bin " + dir / "out.bin " + growth.flags;
        const std::string text = done(command);
        auto in_pattern = [&](int n) { return (depth - 1 - n) % 2 == 0; };
        auto had = [&](int n) {
            return growth.layers[n] == NEW ? in_pattern(n) : (growth.n_layer - 1 - growth.layers[n]) % 2 == 0;
        };
        int beyond = 0;   // value embeddings beyond the pattern, each of 64 tokens by 32 channels
        for (int n = 0; n < depth; n++) beyond += had(n) && !in_pattern(n);
        const std::string line =
            concat("free parameters: ", beyond * 64 * 32, ", which cost no FLOPs, in value embeddings beyond the pattern of ",
                   depth, " layers; --value-embeds pattern leaves them out\n");
        CHECK(contains(text, line) == (beyond > 0));
        CHECK(contains(text, "free parameters") == (beyond > 0));
        CHECK(!contains(done(command + " --value-embeds pattern"), "free parameters"));
        const Checkpoint grown = open_checkpoint(dir / "out.bin");
        for (int n = 0; n < depth; n++) CHECK(grown.config.value_embeds[n] == (had(n) && in_pattern(n)));
    }
    write_small_model(dir / "in.bin", nano(3), 1);   // value embeddings in 0 and 2, and by the pattern of 6 in 1, 3 and 5
    CHECK(contains(done("./grow --overwrite " + dir / "in.bin " + dir / "out.bin --order zero --factor 2"),
                   "free parameters: 4096, which cost no FLOPs, in value embeddings beyond the pattern of 6 layers\n"));
    write_small_model(dir / "in.bin", nano(1), 1);
    done("./grow --overwrite " + dir / "in.bin " + dir / "out.bin --order stack --depth 4 --value-embeds pattern");
    CHECK(open_checkpoint(dir / "out.bin").config == nano(4));
}

TEST_CASE("grow: damp scales both branches of repeated layers, as in a float64 model with scaled branches") {
    TempDir dir;
    for (auto make : {nonzero, speed16})
        for (const Growth& growth : GROWTHS) {
            if (std::count(growth.layers.begin(), growth.layers.end(), NEW) > 0) continue;
            for (const std::string damp : {"0.3", "1/copies"}) {
                CAPTURE(std::string(growth.flags));
                CAPTURE(damp);
                const GPTConfig config = make(growth.n_layer);
                write_small_model(dir / "in.bin", config, even_weights(config, 3));
                const std::string command = "./grow --overwrite " + dir / "in.bin " + dir / "out.bin " + growth.flags;
                done(command);
                const Checkpoint plain = open_checkpoint(dir / "out.bin");
                CHECK(
                    contains(done(command + " --damp " + damp),
                             "damp " + damp +
                                 ": attention by its scale, which is in the configuration, the MLP by fc_proj, in the weights\n"));
                const Checkpoint out = open_checkpoint(dir / "out.bin");
                const Values undamped = weights_of(plain), values = weights_of(out);

                std::vector<double> factors;
                std::map<int, int> met;
                for (int l : growth.layers) {
                    const double uses = static_cast<double>(std::count(growth.layers.begin(), growth.layers.end(), l));
                    factors.push_back(damp == "1/copies" ? 1 / uses : met[l]++ > 0 ? 0.3 : 1);
                }
                for (auto& [name, numbers] : undamped) {
                    CAPTURE(name);
                    const bool scaled = name.ends_with(".fc_proj");
                    CHECK(values.at(name) == (scaled ? times(factors[std::stoi(name.substr(2))], numbers) : numbers));
                }
                GPTConfig expected = plain.config;
                for (size_t n = 0; n < factors.size(); n++) expected.attn_scale[n] *= factors[n];
                CHECK(out.config == expected);

                // Both branches scaled by their last matrix, in float64. The file's fc_proj is rounded to fp32, with an error of 6e-8.
                const double by_branches = reference_loss(plain.config, undamped, [&](auto& weights) {
                    for (size_t n = 0; n < factors.size(); n++)
                        for (const char* last : {"proj", "fc_proj"})
                            for (double& w : weights[concat("h.", n, ".", last)]) w *= factors[n];
                });
                CHECK(reference_loss(out.config, values) == doctest::Approx(by_branches).epsilon(1e-6));
                CHECK(std::abs(by_branches - reference_loss(plain.config, undamped)) > 1e-4);

                json layers = json::array();
                for (size_t n = 0; n < factors.size(); n++) {
                    layers.push_back({0, growth.layers[n]});
                    if (factors[n] != 1) layers.back().push_back({{"fc_proj", "x " + json(factors[n]).dump()}});
                }
                CHECK(out.header["lineage"]["layers"] == layers);
            }
        }
}

// ------------------------------------------------------------------------------------------------ growth of an optimizer's state

/// The optimizer state of every tensor, as the trainer writes it: AdamW's m and v for embeddings, head and lambdas; Muon's momentum for matrices, and
/// for nanochat its second moments, one per row or per column, whichever are more. All values differ: first, first + 1, ...
static Values whole_state(const GPTConfig& config, std::vector<TensorSource>& sources, float first) {
    Values state;
    for (const Tensor& tensor : tensor_table(config)) {
        const std::string name = tensor.spec->name;
        const bool adamw = name == "wte" || name == "lm_head" || name == "ve" || tensor.spec->vector;
        std::vector<std::pair<std::string, std::vector<int64_t>>> pieces{{adamw ? "m" : "momentum", tensor.shape}};
        if (adamw) pieces.push_back({"v", tensor.shape});
        if (!adamw && config.recipe != &SPEEDRUN) pieces.push_back({"second", {std::max(tensor.shape[0], tensor.shape[1])}});
        for (auto& [piece, shape] : pieces) {
            std::vector<float>& values = state[tensor.name + "/" + piece];
            values.resize(static_cast<size_t>(shape.size() == 2 ? shape[0] * shape[1] : shape[0]));
            for (float& value : values) value = first++;
            sources.push_back(source_from_memory(tensor.name + "/" + piece, shape, values.data()));
        }
    }
    return state;
}

static Names tensor_names(const Checkpoint& checkpoint) {
    Names names;
    for (const TensorEntry& entry : checkpoint.tensors) names.push_back(entry.name);
    return names;
}

TEST_CASE("grow: the optimizer state moves with its layer, for every order; further copies keep it or start at zero") {
    TempDir dir;
    for (auto make : {nano, speed})
        for (const Growth& growth : GROWTHS)
            for (const std::string mode : {"copy", "zero"}) {
                CAPTURE(std::string(growth.flags));
                CAPTURE(mode);
                const GPTConfig config = make(growth.n_layer);
                const Values weights = small_weights(config, 1);
                std::vector<TensorSource> sources = small_sources(config, weights);
                const Values had = whole_state(config, sources, 1);
                sources.push_back(source_from_bytes("tokenizer", "a tokenizer"));
                write_checkpoint(dir / "in.bin", small_header(config), sources);
                const std::string command = "./grow --overwrite " + dir / "in.bin ";
                done(command + dir / "out.bin " + growth.flags + " --optimizer " + mode);
                done(command + dir / "reset.bin " + growth.flags);
                const Checkpoint out = open_checkpoint(dir / "out.bin"), reset = open_checkpoint(dir / "reset.bin");
                verify_tensors(out);
                CHECK(!out.can_resume());
                CHECK(out.header["progress"] == no_progress());
                CHECK(out.header["lineage"]["detail"].get<std::string>().ends_with(" --optimizer " + mode));
                CHECK(out.content_hash() == reset.content_hash());

                const Values any = small_weights(out.config, 1);
                std::vector<TensorSource> all = small_sources(out.config, any);
                const Values pieces = whole_state(out.config, all, 1);
                Names names;
                for (const TensorSource& source : all) names.push_back(source.name);
                names.push_back("tokenizer");
                CHECK(tensor_names(out) == names);

                std::vector<bool> keeps;   // by layer: whether it has the state of its source
                std::set<int> met;
                for (int l : growth.layers) keeps.push_back(l != NEW && (met.insert(l).second || mode == "copy"));
                for (auto& [name, shaped] : pieces) {
                    CAPTURE(name);
                    std::vector<float> expected(shaped.size());
                    if (name.starts_with("h.")) {
                        const int n = std::stoi(name.substr(2));
                        if (keeps[n]) expected = had.at(concat("h.", growth.layers[n], name.substr(name.find('.', 2))));
                    } else if (contains(name, "lambdas")) {
                        for (size_t n = 0; n < expected.size(); n++)
                            if (keeps[n]) expected[n] = had.at(name)[growth.layers[n]];
                    } else {
                        expected = had.at(name);
                    }
                    CHECK(values_of(out, name) == expected);
                }
            }
}

TEST_CASE(
    "grow: no state is invented for frozen tensors; grown from no layers, it is zeros; a file without state, or with that of "
    "another optimizer, is refused") {
    TempDir dir;
    const Values two = small_weights(nano(2), 1), none = small_weights(nano(0), 1);
    auto write = [&](const GPTConfig& config, const Values& weights, auto keep) {
        std::vector<TensorSource> sources = small_sources(config, weights), state;
        const Values values = whole_state(config, state, 1);
        std::copy_if(state.begin(), state.end(), std::back_inserter(sources),
                     [&](const TensorSource& source) { return keep(source.name); });
        write_checkpoint(dir / "in.bin", small_header(config), sources);
    };
    const std::string command = "./grow --overwrite " + dir / "in.bin " + dir / "out.bin --order ";
    write(nano(2), two, [](const std::string& name) {
        return !name.starts_with("wte/") && !name.starts_with("h.1.fc/") && !name.starts_with("x0_lambdas/");
    });
    for (const char* mode : {"copy", "zero"}) {
        done(command + "stack --factor 2 --optimizer " + mode);
        const Checkpoint out = open_checkpoint(dir / "out.bin");
        for (const char* lost : {"wte/m", "wte/v", "h.1.fc/momentum", "h.3.fc/momentum", "h.3.fc/second", "x0_lambdas/m"})
            CHECK_MESSAGE(!out.find(lost), lost);
        for (const char* kept : {"lm_head/m", "h.2.fc/momentum", "h.3.fc_proj/second", "resid_lambdas/v"})
            CHECK_MESSAGE(out.find(kept), kept);
    }
    write(nano(0), none, [](const std::string&) { return true; });
    done(command + "random --depth 3 --optimizer copy");
    const Checkpoint grown = open_checkpoint(dir / "out.bin");
    for (const char* zeros : {"h.0.q/momentum", "h.2.ve/v", "h.2.fc/second", "resid_lambdas/m"})
        CHECK(values_of(grown, zeros) == std::vector<float>(static_cast<size_t>(grown.at(zeros).numel())));
    CHECK(values_of(grown, "wte/m")[1] == 2);

    write(nano(2), two, [](const std::string&) { return false; });
    done(command + "stack --factor 2 --optimizer reset");
    std::filesystem::remove(dir / "out.bin");
    refused(command + "stack --factor 2 --optimizer copy",
            "in.bin: holds no state of an optimizer (it was grown, stacked or converted); give --optimizer reset");
    std::vector<TensorSource> sources = small_sources(nano(2), two);
    sources.push_back(source_from_memory("h.0.q/momentum", {8}, two.at("wte").data()));
    write_checkpoint(dir / "in.bin", small_header(nano(2)), sources);
    refused(command + "stack --factor 2 --optimizer zero",
            "in.bin: h.0.q/momentum has another shape than its optimizer's: it is the state of another training");
    sources.back() = source_from_memory("x0_lambdas/v", {3}, two.at("wte").data());
    write_checkpoint(dir / "in.bin", small_header(nano(2)), sources);
    refused(command + "stack --factor 2 --optimizer zero", "in.bin: x0_lambdas/v has 3 numbers, but the model has 2 layers");
    CHECK(names_in(dir.path) == Names{"in.bin"});
}

TEST_CASE("grow: a checkpoint of the trainer grows to one with the tensors of a deeper run, in the same order") {
    TempDir dir;
    for (const Recipe* recipe : recipes()) {
        CAPTURE(std::string(recipe->name));
        for (int depth : {2, 4}) {
            Result trained = run(concat(
                "./train_gpt --recipe ", recipe->name, " --depth ", depth,
                " --width 32 --heads 2 --seq-len 16 --vocab-size 264 --data ",
                "test/golden/checkpoint_v1/train_000000.bin --steps 1 --batch-tokens 16 --device-batch 1 --no-scaling --out ",
                dir / "d", depth));
            REQUIRE(trained.code == 0);
        }
        const std::string two_file = dir / "d2/step_0000001.bin", four_file = dir / "d4/step_0000001.bin";
        done("./grow " + two_file + " " + dir / "out.bin --order stack --factor 2 --optimizer copy");
        const Checkpoint two = open_checkpoint(two_file), four = open_checkpoint(four_file), out = open_checkpoint(dir / "out.bin");
        CHECK(tensor_names(out) == tensor_names(four));
        for (const TensorEntry& entry : four.tensors) CHECK_MESSAGE(out.at(entry.name).shape == entry.shape, entry.name);
        CHECK(bytes_of(out, "h.3.fc_proj/momentum") == bytes_of(two, "h.1.fc_proj/momentum"));
        CHECK(bytes_of(two, "h.1.fc_proj/momentum") != bytes_of(two, "h.0.fc_proj/momentum"));
        for (const char* path : {"d2", "d4", "out.bin"}) std::filesystem::remove_all(dir / path);
    }
}

TEST_CASE("grow: --timing only prints a number of tokens") {
    Result result = run("./grow --timing 1.24e8 7.44e18");
    CHECK(result.code == 0);
    CHECK(result.out ==
          "train the small model on 1.08e+10 tokens before it grows: 1.08 of the 1e+10 tokens that 7.44e+18 FLOPs train 1.24e+08 "
          "parameters on\n");
    CHECK(result.err ==
          "grow: the rule was fitted on models of about 1e9 parameters and more, and 1.24e+08 are fewer: the result is an extrapolation\n");
    CHECK(contains(done("./grow --timing 2e9 1e21"), "on 1.66e+10 tokens before it grows: 0.199 of the 8.33e+10 tokens"));
    refused("./grow --timing 1e9", "--timing");
    refused("./grow --timing 1e9 x", "--timing is 'x', but must be a number");
    refused("./grow --timing nan 1e20", "--timing: N is nan");
    refused("./grow --timing 0.5 1e20", "--timing: N is 0.5, but must be a number of parameters, 1 or more");
    refused("./grow --timing 1 10", "--timing: C is 10, but must be a number of FLOPs above 10");
    refused("./grow --timing 1e9 5e9", "and enough to train N = 1e+09 parameters on a token, 6 N");
    refused("./grow --timing 1e9 inf", "--timing: C is inf");
    refused("./grow --timing 1e9 1e20 IN OUT", "--timing is given alone; leave IN out");
    refused("./grow --timing 1e9 1e20 --order stack", "--timing is given alone; leave --order out");
}

TEST_CASE("grow: a wrong value, a missing or a superfluous flag gives one line of error, and nothing is written") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(4), 1);
    write_small_model(dir / "none.bin", nano(0), 1);
    const struct {
        const char *flags, *words;
    } wrong[] = {
        {"--order stack --depth 3", "--depth is 3, but the model has 4 layers; give as many or more"},
        {"--order stack --depth 0", "--depth is 0, but must be 1 to 10000"},
        {"--order stack --depth 10001", "--depth is 10001, but must be 1 to 10000"},
        {"--order stack --depth x", "--depth is 'x'"},
        {"--order stack --depth 8 --factor 2", "--factor and --depth are both given; leave one of them out"},
        {"--order middle --depth 8 --middle 2:4", "--middle 2:4 names layer 4, but the model has layers 0 to 3"},
        {"--order middle --depth 8 --middle 2:1", "--middle is '2:1', but must be two layers a:b"},
        {"--order middle --depth 8 --middle x", "--middle is 'x', but must be two layers a:b"},
        {"--order middle --depth 8 --middle ''", "--middle is empty"},
        {"--order first --depth 8 --middle 1:2", "--order first does not take --middle; leave --middle out, or use --order middle"},
        {"--order solar", "--order solar needs --drop"},
        {"--order solar --drop 3", "--drop is 3, but must be 0 to 2"},
        {"--order solar --drop -1", "--drop is -1, but must be 0 to 10000"},
        {"--order solar --drop 1 --depth 6", "--order solar does not take --depth"},
        {"--order last --depth 6 --drop 1", "--order last does not take --drop; leave --drop out, or use --order solar"},
        {"--order random --depth 6 --at side", "--at is 'side', but must be one of: bottom, middle, top"},
        {"--order last --depth 6 --at top", "--order last does not take --at; leave --at out, or use --order random, zero"},
        {"--order random --depth 6 --damp 0.5", "--order random does not take --damp"},
        {"--order random --seed -1 --depth 6", "--seed"},
        {"--order stack --depth 6 --damp 0", "--damp is '0', but must be a number, 1e-06 to 1000, or 1/copies"},
        {"--order stack --depth 6 --damp -0.5", "--damp is '-0.5', but must be"},
        {"--order stack --depth 6 --damp 1/2", "--damp is '1/2', but must be"},
        {"--order stack --depth 6 --damp ''", "--damp is empty"},
        {"--order stack --depth 6 --optimizer keep", "--optimizer is 'keep', but must be one of: reset, copy, zero"},
        {"--order stack --depth 6 --timing 1 100", "--timing is given alone; leave IN out"},
    };
    for (auto& [flags, words] : wrong) refused("./grow " + dir / "in.bin " + dir / "out.bin " + flags, words);
    const std::string none = "./grow " + dir / "none.bin " + dir / "out.bin --order ";
    for (const char* order :
         {"stack --depth 4", "interleave --factor 2", "first --depth 4", "last --depth 4", "middle --depth 4", "solar --drop 0"})
        refused(none + order, "the model has no layers to copy; use --order random or zero, with --depth");
    refused(none + "0,0", "--order 0,0: the model has no layers to copy");
    for (const char* order : {"random", "zero"})
        refused(concat(none, order, " --factor 2"), "--factor 2 makes 0 layers of a model of 0 layers; give --depth, its number of layers");
    CHECK(names_in(dir.path) == Names{"in.bin", "none.bin"});
}

TEST_CASE("stack: every layer and property of three models, tied and untied") {
    TempDir dir;
    for (auto make : {nano, speed}) {
        write_small_model(dir / "a.bin", make(2), 1);
        write_small_model(dir / "b.bin", make(3), 2);
        write_small_model(dir / "c.bin", make(2), 3);
        done("./stack " + dir / "a.bin" + " " + dir / "b.bin" + " " + dir / "c.bin" + " --out " + dir / "out.bin" +
             " --overwrite --use-last-layer --norm-inter-model layer_norm --norm-wte layer_norm --norm-lm-head none --head first");
        Checkpoint a = open_checkpoint(dir / "a.bin"), b = open_checkpoint(dir / "b.bin"), c = open_checkpoint(dir / "c.bin");
        Checkpoint out = open_checkpoint(dir / "out.bin");
        verify_tensors(out);
        CHECK(out.config == stack_map({a.config, b.config, c.config}, {"", "", ""},
                                      {false, true, Norm::layer_norm, Norm::layer_norm, Norm::none}).config);
        check_layer(out, 0, a, 0);
        check_layer(out, 1, a, 1);
        check_layer(out, 2, b, 1);
        check_layer(out, 3, b, 2);
        check_layer(out, 4, c, 1);
        CHECK(out.config.n_layer == 5);
        CHECK(bytes_of(out, "wte") == bytes_of(a, "wte"));
        if (!out.config.tied) CHECK(bytes_of(out, "lm_head") == bytes_of(a, "lm_head"));
        CHECK(bytes_of(out, "tokenizer") == "a tokenizer");
        CHECK(!out.header.contains("data"));
        CHECK(!out.can_resume());
        CHECK(out.header["lineage"]["operation"] == "stack");
        CHECK(out.header["lineage"]["parents"][2]["hash"] == c.content_hash());
    }
}

TEST_CASE("stack: defaults are the first model's norms, none at the seam, and the first's head where heads are equal") {
    TempDir dir;
    GPTConfig config = speed(2);
    config.norm_wte = Norm::layer_norm;
    Values one = small_weights(config, 1), two = small_weights(config, 2);
    two["wte"] = one["wte"];
    write_small_model(dir / "a.bin", config, one);
    config.norm_wte = Norm::none;
    write_small_model(dir / "b.bin", config, two);
    done("./stack " + dir / "a.bin" + " " + dir / "b.bin" + " --out " + dir / "out.bin");
    Checkpoint out = open_checkpoint(dir / "out.bin");
    CHECK(out.config.n_layer == 2);
    CHECK(out.config.tied);
    CHECK(out.config.norm_wte == Norm::layer_norm);
    CHECK(out.config.norm_lm_head == Norm::rms_norm);
    CHECK(out.config.norm_before == std::vector<Norm>{Norm::none, Norm::none});
}

TEST_CASE("stack: heads that differ: the last model's by default; a tied stack with the head of another embedding becomes untied") {
    TempDir dir;
    for (auto make : {nano, speed}) {
        write_small_model(dir / "a.bin", make(2), 1);
        write_small_model(dir / "b.bin", make(2), 2);
        std::string head = make(2).tied ? "wte" : "lm_head", inputs = "./stack " + dir / "a.bin" + " " + dir / "b.bin" + " --overwrite --out ";
        Checkpoint a = open_checkpoint(dir / "a.bin"), b = open_checkpoint(dir / "b.bin");
        CHECK(contains(done(inputs + dir / "out.bin"), make(2).tied ? "the stack is not tied" : "head of " + dir / "b.bin"));
        done(inputs + dir / "last.bin" + " --head last");
        done(inputs + dir / "first.bin" + " --head first");
        Checkpoint out = open_checkpoint(dir / "out.bin"), first = open_checkpoint(dir / "first.bin");
        CHECK(read_file(dir / "out.bin") == read_file(dir / "last.bin"));
        CHECK(!out.config.tied);
        CHECK(bytes_of(out, "wte") == bytes_of(a, "wte"));
        CHECK(bytes_of(out, "lm_head") == bytes_of(b, head));
        CHECK(first.config.tied == make(2).tied);
        CHECK(bytes_of(first, head) == bytes_of(a, head));
    }
}

TEST_CASE("stack: the same file twice, a single-layer model, a tokenizer that only one model has") {
    TempDir dir;
    write_small_model(dir / "a.bin", nano(2), 1);
    write_small_model(dir / "one.bin", nano(1), small_weights(nano(1), 2), "");
    done("./stack " + dir / "a.bin" + " " + dir / "a.bin" + " --use-first-layer --use-last-layer --out " + dir / "twice.bin");
    Checkpoint a = open_checkpoint(dir / "a.bin"), twice = open_checkpoint(dir / "twice.bin");
    for (int n = 0; n < 4; n++) check_layer(twice, n, a, n % 2);
    CHECK(twice.header["lineage"]["parents"][1]["hash"] == a.content_hash());
    done("./stack " + dir / "one.bin" + " " + dir / "a.bin" + " --out " + dir / "out.bin");
    CHECK(bytes_of(open_checkpoint(dir / "out.bin"), "tokenizer") == "a tokenizer");
    check_layer(open_checkpoint(dir / "out.bin"), 0, a, 1);
    refused("./stack " + dir / "one.bin" + " " + dir / "one.bin" + " --out " + dir / "none.bin", "no layer is left");
    write_small_model(dir / "other.bin", nano(2), small_weights(nano(2), 2), "another tokenizer");
    refused("./stack " + dir / "a.bin" + " " + dir / "other.bin" + " --out " + dir / "none.bin", "same tokenizer");
    CHECK(!std::filesystem::exists(dir / "none.bin"));
}

TEST_CASE("convert: a round trip gives the same file; changed weights give a new lineage") {
    TempDir dir;
    for (auto make : {nano, speed}) {
        Values weights = small_weights(make(3), 1);
        weights["wte"][0] = std::numeric_limits<float>::quiet_NaN();
        weights["wte"][1] = std::numeric_limits<float>::infinity();
        write_small_model(dir / "a.bin", make(3), weights);
        done("./convert --overwrite " + dir / "a.bin" + " " + dir / "a.safetensors");
        done("./convert --overwrite " + dir / "a.safetensors" + " " + dir / "b.bin");
        CHECK(read_file(dir / "a.bin") == read_file(dir / "b.bin"));

        Safetensors there = open_safetensors(dir / "a.safetensors");
        std::vector<Tensor> table = tensor_table(make(3));
        for (size_t i = 0; i < table.size(); i++) CHECK(there.tensors[i].name == table[i].name);
        CHECK(there.tensors.back().name == "tokenizer");
        CHECK(json::parse(there.metadata.at("config")) == to_json(make(3)));

        std::vector<TensorSource> reversed;                            // Python may write them in any order
        Checkpoint a = open_checkpoint(dir / "a.bin");
        for (const TensorEntry& entry : a.tensors) reversed.insert(reversed.begin(), source_from_checkpoint(entry.name, a, entry));
        write_safetensors(dir / "reversed.safetensors", there.metadata, reversed);
        done("./convert --overwrite " + dir / "reversed.safetensors" + " " + dir / "b.bin");
        CHECK(read_file(dir / "a.bin") == read_file(dir / "b.bin"));

        std::string bytes = read_file(dir / "a.safetensors");
        bytes[static_cast<size_t>(there.find("h.1.q")->offset)] ^= 1;   // as if edited in Python
        write_file(dir / "edited.safetensors", bytes);
        done("./convert --overwrite " + dir / "edited.safetensors" + " " + dir / "c.bin");
        json lineage = open_checkpoint(dir / "c.bin").header["lineage"];
        CHECK(lineage["operation"] == "convert");
        CHECK(lineage["parents"][0]["hash"] == open_checkpoint(dir / "a.bin").content_hash());
        CHECK(lineage["parents"][0]["step"] == 7);
    }
}

/// A safetensors file with only weights and configuration, as Python writes it, in reversed order.
static void write_plain(const std::string& path, const json& config, std::vector<TensorSource> sources) {
    std::reverse(sources.begin(), sources.end());
    write_safetensors(path, {{"config", config.dump()}}, sources);
}

TEST_CASE("convert: a file from Python, in any order; an error names the tensor that is wrong") {
    TempDir dir;
    GPTConfig config = nano(2);
    Values weights = small_weights(config, 1);
    std::vector<TensorSource> sources = small_sources(config, weights);
    auto refused_plain = [&](const json& c, const std::vector<TensorSource>& tensors, const std::string& words) {
        write_plain(dir / "bad", c, tensors);
        refused("./convert " + dir / "bad" + " " + dir / "out.bin", words);
    };
    write_plain(dir / "in", to_json(config), sources);
    done("./convert " + dir / "in" + " " + dir / "a.bin");
    Checkpoint a = open_checkpoint(dir / "a.bin");
    CHECK(a.config == config);
    for (auto& [name, values] : weights) CHECK(values_of(a, name) == values);
    CHECK(a.header["progress"] == no_progress());
    CHECK(a.header["lineage"]["operation"] == "convert");
    CHECK(!a.can_resume());

    std::vector<TensorSource> fewer(sources.begin() + 2, sources.end()), more = sources, shaped = sources;
    more.push_back(source_from_memory("h.2.q", {2}, weights["wte"].data()));
    more.push_back(source_from_memory("wtf", {2}, weights["wte"].data()));
    shaped[0].shape = {config.n_embd, config.vocab_size};
    refused_plain(to_json(config), fewer, "missing: wte, lm_head");
    refused_plain(to_json(config), more, "unknown: wtf, h.2.q");
    refused_plain(to_json(config), shaped, "of another shape: wte (F32 [32,64], not [64,32])");
    json c = to_json(config);
    c["n_layer"] = 2.5;
    refused_plain(c, sources, "n_layer: is 2.5");
    c.erase("n_layer");
    refused_plain(c, sources, "'n_layer' is missing");
    write_safetensors(dir / "bad", {}, sources);
    refused("./convert " + dir / "bad" + " " + dir / "out.bin", "has no 'config' in __metadata__; save it there as JSON text (the keys: convert --help)");
    const std::string help = run("./convert --help").out;
    const json keys = to_json(config);
    for (auto& [key, value] : keys.items()) CHECK_MESSAGE(std::regex_search(help, std::regex("[\n ]" + key + "[,\n]")), key);
    write_safetensors(dir / "bad", {{"config", "{"}}, sources);
    refused("./convert " + dir / "bad" + " " + dir / "out.bin", "is not JSON");
    write_safetensors(dir / "bad", {{"config", to_json(config).dump()}, {"progress", "[]"}}, sources);
    refused("./convert " + dir / "bad" + " " + dir / "out.bin", "progress: is [], but must be an object");
    CHECK(names_in(dir.path) == Names{"a.bin", "bad", "in"});
}

TEST_CASE("programs: --dry-run prints the map and writes nothing") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(2), 1);
    CHECK(contains(done("./grow " + dir / "in.bin" + " " + dir / "out.bin" + " --factor 2 --order stack --dry-run"), "layer 3 <- layer 1"));
    CHECK(contains(done("./stack " + dir / "in.bin" + " " + dir / "in.bin" + " --out " + dir / "out.bin" + " --dry-run"), "layer 1 <- layer 1"));
    CHECK(names_in(dir.path) == Names{"in.bin"});
}

TEST_CASE("programs: a damaged tensor is an error, even if the output does not use it") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(2), 1);
    for (const char* name : {"h.0.q", "h.1.ve", "wte/m", "tokenizer"}) {
        std::string file = read_file(dir / "in.bin");
        file[static_cast<size_t>(open_checkpoint(dir / "in.bin").at(name).offset)] ^= 1;
        write_file(dir / "bad.bin", file);
        std::string words = concat("tensor ", name, " (bytes");
        refused("./grow " + dir / "bad.bin" + " " + dir / "out.bin" + " --order 0", words);
        refused("./stack " + dir / "in.bin" + " " + dir / "bad.bin" + " --out " + dir / "out.bin", words);
        refused("./convert " + dir / "bad.bin" + " " + dir / "out.safetensors", words);
    }
    CHECK(names_in(dir.path) == Names{"bad.bin", "in.bin"});
}

TEST_CASE("programs: an output that is an input, exists already or cannot be written is refused and left as it was") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(2), 1);
    write_file(dir / "old.bin", "old");
    std::filesystem::create_symlink("in.bin", dir / "symlink.bin");
    std::filesystem::create_hard_link(dir / "in.bin", dir / "hardlink.bin");
    const std::string before = read_file(dir / "in.bin");
    for (std::string command : {"./grow " + dir / "in.bin" + " OUT --order 0", "./convert " + dir / "in.bin" + " OUT",
                                "./stack " + dir / "in.bin" + " " + dir / "in.bin" + " --out OUT"}) {
        auto with = [&](const std::string& out, const std::string& flags = "") {
            std::string text = command;
            return text.replace(text.find("OUT"), 3, out) + flags;
        };
        for (const char* name : {"in.bin", "symlink.bin", "hardlink.bin"}) refused(with(dir / name, " --overwrite"), "is also an input");
        refused(with(dir / "old.bin"), "exists already; name another file, or give --overwrite");
        refused(with(dir.path, " --overwrite"), "is a folder, pipe or device");
        refused(with("/dev/null", " --overwrite"), "is a folder, pipe or device");
        refused(with("''"), contains(command, "--out") ? "--out is empty; give a value" : "has no name");
        refused(with(dir / "none/out.bin"), "No such file or directory");
        CHECK(read_file(dir / "old.bin") == "old");
        done(with(dir / "old.bin", " --overwrite"));
        CHECK(read_file(dir / "old.bin") != "old");
        write_file(dir / "old.bin", "old");
    }
    CHECK(read_file(dir / "in.bin") == before);
    CHECK(names_in(dir.path) == Names{"hardlink.bin", "in.bin", "old.bin", "symlink.bin"});
}

TEST_CASE("programs: wrong command lines and files give one line of error; --help exits with 0") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(2), 1);
    write_small_model(dir / "speed.bin", speed(2), 1);
    write_small_model(dir / "wide.bin", recipe_config(NANOCHAT, 2, 2, 64, 64, 16, "SL"), 1);
    write_file(dir / "text", "no model at all, but long enough to hold a header of some kind");
    std::string grow = "./grow " + dir / "in.bin" + " " + dir / "out.bin ", stack = "./stack " + dir / "in.bin ", out = " --out " + dir / "out.bin";
    refused("./grow", "IN is required");
    refused("./stack", "is required");
    refused("./convert", "IN is required");
    refused(grow, "--order is required");
    refused(grow + "--order stack", "--order stack needs --factor");
    refused(grow + "--order stack --factor 0", "--factor");
    refused(grow + "--order stack --factor -1", "--factor");
    refused(grow + "--order stack --factor 2.5", "--factor");
    refused(grow + "--order stack --factor 99999999999", "--factor");
    refused(grow + "--order stack --factor 10000", "a model has at most 10000");
    refused(grow + "--order 0,1 --factor 2",
            "leave --factor out, or use --order stack, interleave, first, last, middle, random, zero");
    refused(grow + "--order zero", "--order zero needs --factor");
    refused(grow + "--order zero --factor 0", "--factor");
    refused(grow + "--order zero --factor 10000", "a model has at most 10000");
    refused(grow + "--order zero --factor 2 --value-embeds pattern", "--order zero does not take --value-embeds; leave --value-embeds out");
    refused(grow + "--order zero --factor 2 --seed -1", "--seed");
    refused(grow + "--order zero --factor 2 --seed x", "--seed");
    refused(grow + "--order zero --factor 2 --seed 1.5", "--seed");
    refused(grow + "--order zero --factor 2 --seed 99999999999999999999", "--seed");
    refused(grow + "--order stack --factor 2 --seed 1",
            "--order stack does not take --seed; leave --seed out, or use --order random, zero");
    refused(grow + "--order 0,2", "--order names layer 2, but the model has layers 0 to 1");
    refused(grow + "--order sideways --factor 2", "--order is 'sideways'");
    refused(grow + "--order ''", "--order");
    refused(grow + "--order 0 --value-embeds some", "--value-embeds");
    refused(grow + "--order 0 --frobnicate", "--frobnicate");
    refused(grow + "--order 0 more", "more");
    refused("./grow " + dir / "none.bin " + dir / "out.bin --order 0", "cannot be read: No such file");
    refused("./grow " + dir / "text " + dir / "out.bin --order 0", "is not a checkpoint");
    refused(stack + out, "two models or more");
    refused(stack + dir / "in.bin", "--out is required");
    refused(stack + dir / "speed.bin" + out, "must agree in recipe, but it is \"nanochat\" in " + dir / "in.bin and \"speedrun\" in ");
    refused(stack + dir / "wide.bin" + out, "must agree in n_embd (width), but it is 32 in " + dir / "in.bin and 64 in ");
    refused(stack + dir / "in.bin" + out + " --norm-wte batch", "--norm-wte");
    refused(stack + dir / "in.bin" + out + " --norm-inter-model batch", "--norm-inter-model");
    refused(stack + dir / "in.bin" + out + " --head middle", "--head");
    refused(stack + dir / "text" + out, "is not a checkpoint");
    refused("./convert " + dir / "text " + dir / "out.bin", "is not a safetensors file");
    refused("./convert " + dir.path + " " + dir / "out.bin", "is a folder, pipe or device");
    CHECK(names_in(dir.path) == Names{"in.bin", "speed.bin", "text", "wide.bin"});
    CHECK(contains(done("./grow --help"), "--dry-run"));
    CHECK(contains(done("./stack --help"), "--norm-lm-head"));
    CHECK(contains(done("./convert --help"), "--overwrite"));
}

TEST_CASE("programs: they need less than 64 MiB of memory for a model of any size") {
    TempDir dir;
    GPTConfig config = recipe_config(SPEEDRUN, 3, 16, 1024, 4096, 64);   // 168 MB
    std::vector<TensorSource> sources;
    for (const Tensor& tensor : tensor_table(config))
        sources.push_back({tensor.name, "F32", tensor.shape, [](void* dst, int64_t, int64_t bytes) { std::memset(dst, 1, static_cast<size_t>(bytes)); }, nullptr, 0, 0});
    write_checkpoint(dir / "in.bin", small_header(config), sources);
    REQUIRE(std::filesystem::file_size(dir / "in.bin") > (160 << 20));
    std::string limit = "ulimit -d 65536; ";   // KiB of writable memory, the libraries' included
    std::string out = done(limit + "./grow " + dir / "in.bin" + " " + dir / "out.bin --factor 2 --order stack");
    size_t at = out.find("peak memory ");
    REQUIRE(at != std::string::npos);
    double peak;
    char unit[8];
    REQUIRE(std::sscanf(out.c_str() + at, "peak memory %lf %7s", &peak, unit) == 2);
    CHECK(std::string(unit) == "MB");
    CHECK(peak < 67.1);
    std::filesystem::remove(dir / "out.bin");
    done(limit + "./grow " + dir / "in.bin " + dir / "out.bin --factor 2 --order zero");
    Checkpoint grown = open_checkpoint(dir / "out.bin");
    for (const Tensor& tensor : tensor_table(grown.config)) {   // large tensors are processed in many pieces
        if (tensor.name != "h.4.fc" && tensor.name != "h.5.proj") continue;
        std::vector<float> expected(static_cast<size_t>(tensor.numel));
        if (tensor.name == "h.4.fc") initialize(expected.data(), tensor, grown.config, 42);
        CHECK(values_of(grown, tensor.name) == expected);
    }
    std::filesystem::remove(dir / "out.bin");
    done(limit + "./grow " + dir / "in.bin " + dir / "out.bin --order last --depth 4 --damp 0.5");
    CHECK(values_of(open_checkpoint(dir / "out.bin"), "h.3.fc_proj") ==
          times(0.5, values_of(open_checkpoint(dir / "in.bin"), "h.2.fc_proj")));
    std::filesystem::remove(dir / "out.bin");
    done(limit + "./stack " + dir / "in.bin " + dir / "in.bin --out " + dir / "out.bin");
    std::filesystem::remove(dir / "out.bin");
    done(limit + "./convert " + dir / "in.bin " + dir / "out.safetensors");
    done(limit + "./convert " + dir / "out.safetensors " + dir / "out.bin");
    CHECK(open_checkpoint(dir / "out.bin").content_hash() == open_checkpoint(dir / "in.bin").content_hash());
}
