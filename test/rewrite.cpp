// grow, stack and convert as they are used: tensors move unchanged, memory stays small, every refusal is one line and exit 2,
// and nothing is written then.
#include "llmc/rewrite.h"
#include <doctest/doctest.h>
#include <regex>
#include <sys/stat.h>
#include "llmc/io/error.h"
#include "llmc/safetensors.h"
#include "test/small_model.h"

using nlohmann::json;
using Names = std::vector<std::string>;

static GPTConfig nano(int layers) { return recipe_config(NANOCHAT, layers, 2, 32, 64, 16, "SL"); }
static GPTConfig speed(int layers) { return recipe_config(SPEEDRUN, layers, 2, 16, 24, 8); }

static std::string bytes_of(const Checkpoint& checkpoint, const std::string& name) {
    std::string bytes(static_cast<size_t>(checkpoint.at(name).bytes), '\0');
    read_tensor(checkpoint, checkpoint.at(name), bytes.data());
    return bytes;
}

/// Runs a command that must work.
static std::string done(const std::string& command) {
    Result result = run(command);
    INFO(command, ": ", result.err);
    CHECK(result.code == 0);
    CHECK(result.err == "");
    return result.out;
}

/// Runs a command that must be refused: exit 2, one line on stderr that holds `words`.
static void refused(const std::string& command, const std::string& words) {
    Result result = run(command);
    INFO(command, ": ", result.code, " ", result.err);
    CHECK(result.code == 2);
    CHECK(contains(result.err, words));
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
}

static void check_layer(const Checkpoint& to, int n, const Checkpoint& from, int l) {
    for (const Tensor& tensor : tensor_table(to.config))
        if (tensor.layer == n) CHECK(bytes_of(to, tensor.name) == bytes_of(from, concat("h.", l, ".", tensor.spec->name)));
    for (const char* lambdas : {"resid_lambdas", "x0_lambdas"})
        if (to.config.lambdas) CHECK(values_of(to, lambdas)[n] == values_of(from, lambdas)[l]);
}

TEST_CASE("grow: layers, lambdas, embedding, head, tokenizer and data position go along; state and progress do not") {
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
    done("./grow " + dir / "s.bin" + " " + dir / "again.bin" + " --factor 2 --order stack");   // growth of what was grown
    CHECK(open_checkpoint(dir / "again.bin").header["lineage"]["parents"][0]["parents"][0]["hash"] == in.content_hash());
}

TEST_CASE("rewrite: initial values in pieces are those of the whole tensor") {
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

/// Numbers times x, in float64, rounded once.
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
    CHECK(contains(refusal([&] { mapped_tensors(map, models, in); }), "a layer has no tensor 'fc_prj'"));
    map.layers[0].rules = {{"wte", {Rule::constant, 0}}};
    CHECK(contains(refusal([&] { mapped_tensors(map, models, in); }), "a layer has no tensor 'wte'"));
}

TEST_CASE("grow: every operator's rules are for tensors that layers have, and help names it") {
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

// test/gpt.cpp holds logits together bit for bit; here the programs as they are used.
TEST_CASE("grow: zero: the file says what it is, loses the same, and new matrices are those that training would begin with") {
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

        // A run of one step at rates of 0 leaves the values that it began with.
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

TEST_CASE("stack: heads that differ: the last's unless asked otherwise, and a tied stack with another embedding's head is untied") {
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

TEST_CASE("stack: the same file twice, a single-layer model, tokenizers that one model lacks") {
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

TEST_CASE("convert: there and back gives the same file, and changed weights a new lineage") {
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

        std::vector<TensorSource> reversed;                            // as Python may order them
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

/// A safetensors file of weights and configuration alone, as from Python, in reversed order.
static void write_plain(const std::string& path, const json& config, std::vector<TensorSource> sources) {
    std::reverse(sources.begin(), sources.end());
    write_safetensors(path, {{"config", config.dump()}}, sources);
}

TEST_CASE("convert: from Python's file, in any order; every tensor that is wrong is named") {
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

TEST_CASE("programs: a tensor that is damaged stops them, also one that would be left behind") {
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

TEST_CASE("programs: an output that is an input, is there, or cannot be one is refused and left as it was") {
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
        refused(with(dir / "old.bin"), "is there already; name another file, or give --overwrite");
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

TEST_CASE("programs: wrong command lines and files get one line, help gets exit 0") {
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
    refused(grow + "--order 0,1 --factor 2", "leave --factor out, or use --order stack, interleave, first, last, middle, random, zero");
    refused(grow + "--order zero", "--order zero needs --factor");
    refused(grow + "--order zero --factor 0", "--factor");
    refused(grow + "--order zero --factor 10000", "a model has at most 10000");
    refused(grow + "--order zero --factor 2 --value-embeds pattern", "--order zero does not take --value-embeds; leave --value-embeds out");
    refused(grow + "--order zero --factor 2 --seed -1", "--seed");
    refused(grow + "--order zero --factor 2 --seed x", "--seed");
    refused(grow + "--order zero --factor 2 --seed 1.5", "--seed");
    refused(grow + "--order zero --factor 2 --seed 99999999999999999999", "--seed");
    refused(grow + "--order stack --factor 2 --seed 1", "--order stack does not take --seed; leave --seed out, or use --order random, zero");
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
    refused("./convert " + dir / "text " + dir / "out.bin", "is no safetensors file");
    refused("./convert " + dir.path + " " + dir / "out.bin", "is a folder, pipe or device");
    CHECK(names_in(dir.path) == Names{"in.bin", "speed.bin", "text", "wide.bin"});
    CHECK(contains(done("./grow --help"), "--dry-run"));
    CHECK(contains(done("./stack --help"), "--norm-lm-head"));
    CHECK(contains(done("./convert --help"), "--overwrite"));
}

TEST_CASE("programs: under 64 MiB of memory, whatever the size") {
    TempDir dir;
    GPTConfig config = recipe_config(SPEEDRUN, 3, 16, 1024, 4096, 64);   // 168 MB
    std::vector<TensorSource> sources;
    for (const Tensor& tensor : tensor_table(config))
        sources.push_back({tensor.name, "F32", tensor.shape, [](void* dst, int64_t, int64_t bytes) { std::memset(dst, 1, static_cast<size_t>(bytes)); }, nullptr, 0, 0});
    write_checkpoint(dir / "in.bin", small_header(config), sources);
    REQUIRE(std::filesystem::file_size(dir / "in.bin") > (160 << 20));
    std::string limit = "ulimit -d 65536; ";   // KiB of memory that a program writes to, the libraries' included
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
    for (const Tensor& tensor : tensor_table(grown.config)) {   // tensors of many pieces, too
        if (tensor.name != "h.4.fc" && tensor.name != "h.5.proj") continue;
        std::vector<float> expected(static_cast<size_t>(tensor.numel));
        if (tensor.name == "h.4.fc") initialize(expected.data(), tensor, grown.config, 42);
        CHECK(values_of(grown, tensor.name) == expected);
    }
    std::filesystem::remove(dir / "out.bin");
    done(limit + "./stack " + dir / "in.bin " + dir / "in.bin --out " + dir / "out.bin");
    std::filesystem::remove(dir / "out.bin");
    done(limit + "./convert " + dir / "in.bin " + dir / "out.safetensors");
    done(limit + "./convert " + dir / "out.safetensors " + dir / "out.bin");
    CHECK(open_checkpoint(dir / "out.bin").content_hash() == open_checkpoint(dir / "in.bin").content_hash());
}
