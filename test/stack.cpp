// stack's slices and mixtures: every layer in its place, sums in float64, runs that continue; and programs that write a file while their
// standard output is not read, or cannot be written.
#include <doctest/doctest.h>
#include <cmath>
#include <cstring>
#include "llmc/io/error.h"
#include "llmc/rewrite.h"
#include "test/small_model.h"

using nlohmann::json;
using Names = std::vector<std::string>;

/// Checks that layer n of a stack is layer l of a model: its tensors, lambdas and settings.
static void check_layer(const Checkpoint& to, int n, const Checkpoint& from, int l, Norm norm_before) {
    for (const Tensor& tensor : tensor_table(to.config))
        if (tensor.layer == n) CHECK(bytes_of(to, tensor.name) == bytes_of(from, concat("h.", l, ".", tensor.spec->name)));
    for (const char* lambdas : {"resid_lambdas", "x0_lambdas"})
        if (to.config.lambdas) CHECK(values_of(to, lambdas)[n] == values_of(from, lambdas)[l]);
    CHECK(to.config.windows[n] == from.config.windows[l]);
    CHECK(to.config.attn_scale[n] == from.config.attn_scale[l]);
    CHECK(to.config.value_embeds[n] == from.config.value_embeds[l]);
    CHECK(to.config.norm_before[n] == norm_before);
}

TEST_CASE("stack: slices: in any order, repeated, of a single layer; both ends are included") {
    TempDir dir;
    for (auto make : {nano, speed}) {
        write_small_model(dir / "a.bin", make(4), 1);
        write_small_model(dir / "b.bin", make(3), 2);
        const std::string stack = "./stack --overwrite " + dir / "a.bin " + dir / "b.bin --out " + dir / "out.bin";
        const Checkpoint a = open_checkpoint(dir / "a.bin"), b = open_checkpoint(dir / "b.bin");
        const std::string text = done(stack + " --layers A:2-3,B:0,A:1-1,B:1-2 --norm-inter-model rms_norm --head first");
        CHECK(contains(text, "layer 2 <- layer 0 of " + dir / "b.bin"));
        const Checkpoint out = open_checkpoint(dir / "out.bin");
        verify_tensors(out);
        REQUIRE(out.config.n_layer == 6);
        check_layer(out, 0, a, 2, Norm::none);
        check_layer(out, 1, a, 3, Norm::none);
        check_layer(out, 2, b, 0, Norm::rms_norm);
        check_layer(out, 3, a, 1, Norm::rms_norm);
        check_layer(out, 4, b, 1, Norm::rms_norm);
        check_layer(out, 5, b, 2, Norm::none);
        CHECK(bytes_of(out, "wte") == bytes_of(a, "wte"));
        CHECK(out.header["lineage"]["detail"] == concat("--layers A:2-3,B:0,A:1-1,B:1-2 --norm-inter-model rms_norm --norm-wte ",
                                                        name_of(a.config.norm_wte), " --norm-lm-head rms_norm --head first"));
        CHECK(out.header["lineage"]["layers"] == json::parse("[[0,2],[0,3],[1,0],[0,1],[1,1],[1,2]]"));
        CHECK(out.header["lineage"]["parents"][1]["hash"] == b.content_hash());

        // Slices of all layers equal stacking whole models.
        done(stack + " --layers A:0-3,B:0-2");
        const Checkpoint slices = open_checkpoint(dir / "out.bin");
        done(stack + " --use-first-layer --use-last-layer");
        const Checkpoint whole = open_checkpoint(dir / "out.bin");
        CHECK(slices.content_hash() == whole.content_hash());
        CHECK(slices.header["lineage"]["layers"] == whole.header["lineage"]["layers"]);

        // A last model without a slice gives only its head.
        done(stack + " --layers A:0-3 --head last");
        const Checkpoint head = open_checkpoint(dir / "out.bin");
        CHECK(bytes_of(head, "lm_head") == bytes_of(b, b.config.tied ? "wte" : "lm_head"));
    }
}

TEST_CASE("stack: malformed slices, or slices outside their model, give one line of error and no file") {
    TempDir dir;
    write_small_model(dir / "one.bin", nano(4), 1);
    write_small_model(dir / "two.bin", nano(8), 2);
    write_small_model(dir / "none.bin", nano(0), 3);
    const std::string stack = "./stack " + dir / "one.bin " + dir / "two.bin --out " + dir / "out.bin --layers ";
    const std::string two = dir / "two.bin", is_none = "is not a slice; write a model's letter and its layers, A:0-3 or A:3";
    refused(stack + "B:2-9", "--layers 'B:2-9': layer 9 of B (" + two + "), which has layers 0 to 7");
    refused(stack + "A:0-3,B:8", "--layers 'B:8': layer 8 of B (" + two + "), which has layers 0 to 7");
    refused(stack + "B:5-2", "--layers 'B:5-2': its last layer comes before its first; write B:2-5");
    refused(stack + "C:0-1", "--layers 'C:0-1': there is no model C; the 2 given are A to B");
    refused(stack + "''", "--layers is empty");
    for (const char* junk : {"A", "A:", "A:-1", "a:0-1", "A:0-", "A:0-1-2", "A:0-1x", "A:0:1", "0-3", "AA:0", "A:0,", ",A:0",
                             "A:0,,B:1", "A:+1", "A:1.5", "A:0--1", "A:99999999999", "'A: 0'"})
        refused(stack + junk, is_none);
    refused(stack + "A:0 --use-first-layer", "--layers");
    refused(stack + "A:0 --use-last-layer", "--layers");
    refused("./stack " + dir / "one.bin " + two + " " + dir / "one.bin --out " + dir / "out.bin --layers A:0-3,C:0",
            "--layers has no slice of B (" + two + "); add one, or leave the model out");
    refused("./stack " + dir / "one.bin " + dir / "none.bin --out " + dir / "out.bin --layers A:0,B:0",
            "layer 0 of B (" + dir / "none.bin), which has no layers");
    std::string many = "./stack --layers A:0 --out " + dir / "out.bin";
    for (int i = 0; i < 27; i++) many += " " + dir / "one.bin";
    refused(many, "--layers names models by the letters A to Z, but there are 27");
    std::string deep = "A:0-3";
    for (int i = 0; i < 2500; i++) deep += ",A:0-3";
    refused(stack + deep, "the stack would have 10004 layers, but a model has at most 10000");
    CHECK(names_in(dir.path) == Names{"none.bin", "one.bin", "two.bin"});
}

static std::vector<std::string> weights_of(const GPTConfig& config) {
    std::vector<std::string> names;
    for (const Tensor& tensor : tensor_table(config)) names.push_back(tensor.name);
    return names;
}

TEST_CASE("stack: mix: every weight is the sum in float64, rounded once; everything else is the first model's") {
    TempDir dir;
    for (auto make : {nano, speed}) {
        for (uint64_t seed : {1, 2, 3}) write_small_model(dir / concat(seed, ".bin"), make(2), seed);
        const std::string text = done("./stack --overwrite --mix 0.7,0.5,-0.2 " + dir / "1.bin " + dir / "2.bin " +
                                      dir / "3.bin --out " + dir / "out.bin");
        CHECK(contains(text, "weights <- 0.5 of " + dir / "2.bin"));
        CHECK(contains(text, "parameters: "));
        CHECK(contains(text, "at step 7; train_gpt --resume continues its run"));
        const Checkpoint one = open_checkpoint(dir / "1.bin"), two = open_checkpoint(dir / "2.bin"),
                         three = open_checkpoint(dir / "3.bin");
        const Checkpoint out = open_checkpoint(dir / "out.bin");
        verify_tensors(out);
        CHECK(out.config == one.config);
        for (const std::string& name : weights_of(out.config)) {
            const std::vector<float> a = values_of(one, name), b = values_of(two, name), c = values_of(three, name),
                                     mixed = values_of(out, name);
            size_t wrong = 0;
            for (size_t i = 0; i < a.size(); i++) {   // sums in double may land on either side of a rounding boundary between two floats
                const double terms[] = {0.7 * double{a[i]}, 0.5 * double{b[i]}, -0.2 * double{c[i]}},
                             sum = terms[0] + terms[1] + terms[2];
                const double rounding = 0x1p-52 * (std::fabs(terms[0]) + std::fabs(terms[1]) + std::fabs(terms[2]));
                wrong += mixed[i] != static_cast<float>(sum - rounding) && mixed[i] != static_cast<float>(sum + rounding);
            }
            CHECK_MESSAGE(wrong == 0, name);
        }
        for (const char* name : {"wte/m", "wte/v", "tokenizer"}) CHECK(bytes_of(out, name) == bytes_of(one, name));
        for (const char* key : {"training", "data", "progress"}) CHECK(out.header[key] == one.header[key]);
        json lineage = out.header["lineage"];
        CHECK(lineage["operation"] == "train");
        REQUIRE(lineage["parents"].size() == 2);
        CHECK(lineage["parents"][0]["hash"] == two.content_hash());
        CHECK(lineage["parents"][0]["mixed"] == json{{"weight", 0.5}, {"step", 7}});
        CHECK(lineage["parents"][1]["mixed"] == json{{"weight", -0.2}, {"step", 7}});
    }
}

TEST_CASE("stack: mix: a file mixed with itself is unchanged, also NaN, Inf, -0 and the smallest denormal") {
    TempDir dir;
    Values weights = small_weights(nano(2), 1);
    const float special[] = {std::numeric_limits<float>::quiet_NaN(), -std::numeric_limits<float>::infinity(), -0.0f, 1e-45f,
                             3.4e38f};
    std::copy(std::begin(special), std::end(special), weights["h.1.fc"].begin());
    write_small_model(dir / "a.bin", nano(2), weights);
    const Checkpoint a = open_checkpoint(dir / "a.bin");
    for (const char* mix : {"0.5,0.5", "0.75,0.25", "0.9,0.1"}) {
        done("./stack --overwrite --mix " + std::string(mix) + " " + dir / "a.bin " + dir / "a.bin --out " + dir / "out.bin");
        const Checkpoint out = open_checkpoint(dir / "out.bin");
        for (const std::string& name : weights_of(a.config))
            CHECK_MESSAGE(bytes_of(out, name) == bytes_of(a, name), mix, " ", name);
    }
}

TEST_CASE("stack: mix: a tokenizer that the first model lacks, no training state, and the identity of the run") {
    TempDir dir;
    const GPTConfig config = speed(2);
    write_small_model(dir / "a.bin", config, small_weights(config, 1), "");
    write_small_model(dir / "b.bin", config, 2);
    done("./stack --mix 0.5,0.5 " + dir / "a.bin " + dir / "b.bin --out " + dir / "out.bin");
    CHECK(bytes_of(open_checkpoint(dir / "out.bin"), "tokenizer") == "a tokenizer");

    json header = small_header(config);
    header["training"]["runs"] = json::array({{{"id", std::string(32, 'a')}, {"tokens", 0}, {"flops", 0}}});
    write_checkpoint(dir / "run.bin", header, small_sources(config, small_weights(config, 1)));
    done("./stack --overwrite --mix 0.5,0.5 " + dir / "run.bin " + dir / "b.bin --out " + dir / "out.bin");
    const json runs = open_checkpoint(dir / "out.bin").header["training"]["runs"];
    REQUIRE(runs.size() == 2);
    CHECK(runs[0] == header["training"]["runs"][0]);
    CHECK(runs[1]["tokens"] == 4096);
    CHECK(runs[1]["id"] != runs[0]["id"]);
    done("./stack --overwrite --mix 0.4,0.6 " + dir / "run.bin " + dir / "b.bin --out " + dir / "other.bin");
    CHECK(open_checkpoint(dir / "other.bin").header["training"]["runs"][1]["id"] != runs[1]["id"]);

    header.erase("training");
    write_checkpoint(dir / "weights.bin", header, small_sources(config, small_weights(config, 1)));
    CHECK(contains(done("./stack --overwrite --mix 0.5,0.5 " + dir / "weights.bin " + dir / "b.bin --out " + dir / "out.bin"),
                   "no training state, as in "));
    const Checkpoint out = open_checkpoint(dir / "out.bin");
    CHECK(!out.can_resume());
    CHECK(out.find("wte/m") == nullptr);
}

TEST_CASE("stack: mix: wrong weights, and models that do not fit together, give one line of error and no file") {
    TempDir dir;
    write_small_model(dir / "a.bin", nano(2), 1);
    write_small_model(dir / "b.bin", nano(3), 2);
    write_small_model(dir / "other.bin", nano(2), small_weights(nano(2), 2), "another tokenizer");
    GPTConfig scaled = nano(2);
    scaled.attn_scale[1] = 0.5;
    write_small_model(dir / "scaled.bin", scaled, 2);
    const std::string a = dir / "a.bin", models = " " + a + " " + a + " --out " + dir / "out.bin", stack = "./stack --mix ";
    for (const char* junk : {"0.5", "'0.5;0.5'", "0.5,", ",1", "half,half", "nan,1", "inf,1", "1e999,1", "0.5,0.5x", "'0.5, 0.5'"})
        refused(stack + junk + models, junk == std::string("0.5") ? "--mix has 1 weights, but there are 2 models"
                                                                  : "must be numbers with commas between them");
    refused(stack + "0.5,0.25,0.25" + models, "--mix has 3 weights, but there are 2 models");
    refused(stack + "0.5,0.4" + models, "the weights of --mix sum to 0.9, but must sum to 1");
    refused(stack + "1,0" + models, "a weight of --mix is 0, which leaves its model out");
    refused(stack + "1 " + a + " --out " + dir / "out.bin", "a mix needs two models or more");
    refused(stack + "''" + models, "--mix is empty");
    refused(stack + "1 " + a + " --out " + dir / "out.bin --layers A:0", "--mix");
    for (const char* flag : {"--layers A:0", "--use-first-layer", "--use-last-layer", "--norm-inter-model none", "--norm-wte none",
                             "--norm-lm-head none", "--head first"})
        refused(stack + "0.5,0.5" + models + " " + flag, "--mix");
    auto with = [&](const std::string& other) { return stack + "0.5,0.5 " + a + " " + dir / other + " --out " + dir / "out.bin"; };
    refused(with("b.bin"), "models that are mixed must agree in n_layer, but it is 2 in " + a + " and 3 in " + dir / "b.bin");
    refused(with("scaled.bin"),
            "must agree in attn_scale, but it is [1.0,1.0] in " + a + " and [1.0,0.5] in " + dir / "scaled.bin");
    refused(with("other.bin"),
            "models that are mixed must have the same tokenizer, but those in " + a + " and " + dir / "other.bin differ");
    CHECK(names_in(dir.path) == Names{"a.bin", "b.bin", "other.bin", "scaled.bin"});
}

TEST_CASE("stack: mix: a run continues with the mixture; mixed with itself, bit for bit as without mixing") {
    TempDir dir;
    const std::string shards = "test/golden/checkpoint_v1/";
    auto train = [&](const std::string& flags, const std::string& to) {
        Result result = run("OMP_NUM_THREADS=1 ./train_gpt --data " + shards + "train_000000.bin --out " + dir / to + " " + flags);
        INFO(flags, ": ", result.err);
        REQUIRE(result.code == 0);
    };
    const std::string model =
        "--recipe nanochat --depth 2 --width 32 --heads 2 --seq-len 16 --vocab-size 264 --batch-tokens 32 --steps 4 --save-every 2 "
        "--seed ";
    train(model + "1", "one");
    train(model + "2", "two");
    const std::string half = dir / "one/step_0000002.bin";
    done("./stack --mix 0.5,0.5 " + half + " " + half + " --out " + dir / "same.bin");
    train("--resume " + dir / "same.bin", "same");
    const Checkpoint through = open_checkpoint(dir / "one/step_0000004.bin"), same = open_checkpoint(dir / "same/step_0000004.bin");
    REQUIRE(same.tensors.size() == through.tensors.size());
    for (size_t i = 0; i < same.tensors.size(); i++)
        CHECK_MESSAGE(same.tensors[i].xxh3 == through.tensors[i].xxh3, same.tensors[i].name);
    CHECK(same.header["progress"] == through.header["progress"]);
    CHECK(total_spent(same.header).flops == total_spent(through.header).flops);   // its own first half is not counted twice

    done("./stack --mix 0.9,0.1 " + half + " " + dir / "two/step_0000002.bin --out " + dir / "mixed.bin");
    train("--resume " + dir / "mixed.bin", "mixed");
    const Checkpoint mixed = open_checkpoint(dir / "mixed/step_0000004.bin");
    CHECK(mixed.content_hash() != through.content_hash());
    CHECK(mixed.header["lineage"]["parents"][0]["mixed"]["weight"] == 0.1);
    CHECK(total_spent(mixed.header).tokens == 4 * 32 + 2 * 32);
}

TEST_CASE("programs: a closed stdout does not keep them from writing their file; a full one is reported") {
    TempDir dir;
    write_small_model(dir / "in.bin", nano(100), 1);
    // The reader of stdout exits before the first write.
    auto unread = [&](const std::string& command) {
        return "( while [ ! -e " + dir / "gone ]; do :; done; " + command + "; echo $? >" + dir / "code ) | ( exec <&-; : >" +
               dir / "gone ); rm " + dir / "gone";
    };
    const std::string in = dir / "in.bin ", commands[] = {"./grow " + in + dir / "out --order stack --factor 2",
                                                          "./stack --use-first-layer " + in + in + "--out " + dir / "out",
                                                          "./convert " + in + dir / "out"};
    for (const std::string& command : commands) {
        done(command);
        const std::string expected = read_file(dir / "out");
        std::filesystem::remove(dir / "out");
        done(unread(command));
        CHECK_MESSAGE(read_file(dir / "code") == "0\n", command);
        CHECK(read_file(dir / "out") == expected);
        std::filesystem::remove(dir / "out");
        done(command + " | head -n 1");
        CHECK(read_file(dir / "out") == expected);
        std::filesystem::remove(dir / "out");
        refused(command + " >/dev/full", "stdout: cannot be written: No space left on device");
        CHECK(read_file(dir / "out") == expected);
        std::filesystem::remove(dir / "out");
    }
}

TEST_CASE("programs: they need less than 64 MiB of memory for models with thousands of layers") {
    TempDir dir;
    const GPTConfig config = recipe_config(NANOCHAT, 2000, 1, 32, 8, 8, "SL");
    const std::vector<float> zeros(1 << 16);
    std::vector<TensorSource> sources;
    for (const Tensor& tensor : tensor_table(config))
        sources.push_back(source_from_memory(tensor.name, tensor.shape, zeros.data()));
    for (const Tensor& tensor : tensor_table(config))
        if (tensor.layer >= 0) sources.push_back(source_from_memory(tensor.name + "/momentum", tensor.shape, zeros.data()));
    write_checkpoint(dir / "in.bin", small_header(config), sources);
    const std::string in = dir / "in.bin ", out = dir / "out.bin";
    for (const std::string& command : {"./grow " + in + out + " --order stack --factor 2",
                                       "./stack --use-first-layer --use-last-layer " + in + in + "--out " + out,
                                       "./stack --mix 0.5,0.5 " + in + in + "--out " + out}) {
        const std::string text = done("ulimit -d 65536; " + command);   // KiB of writable memory
        const size_t at = text.find("peak memory ");
        REQUIRE(at != std::string::npos);
        double peak;
        char unit[8];
        REQUIRE(std::sscanf(text.c_str() + at, "peak memory %lf %7s", &peak, unit) == 2);
        CHECK(std::string(unit) == "MB");
        CHECK(peak < 67.1);
        std::filesystem::remove(out);
    }
}
