// train_gpt --describe: a checkpoint's layers, its family tree, and the tokens and FLOPs spent, as JSON and as text.
#include "llmc/describe.h"
#include <doctest/doctest.h>
#include "llmc/io/error.h"
#include "test/small_model.h"

using nlohmann::json;


static json header_of(const GPTConfig& config, int tokens, char id, const json& lineage) {
    json header = small_header(config);
    header["progress"] = {{"step", tokens / 10}, {"tokens", tokens}, {"flops", 100.0 * tokens}};
    header["training"]["runs"] = json::array({{{"id", std::string(32, id)}, {"tokens", 0}, {"flops", 0}}});
    header["lineage"] = lineage;
    return header;
}

static Checkpoint write(const std::string& path, const GPTConfig& config, const json& header, uint64_t seed) {
    write_checkpoint(path, header, small_sources(config, small_weights(config, seed)));
    return open_checkpoint(path);
}

/// Two runs, the first with one of its own checkpoints mixed in; a stack of their layers and a new one; and that stack after training.
struct Family {
    TempDir dir;
    Checkpoint a, b, deep, trained;

    Family() {
        a = write(dir / "a.bin", nano(2), header_of(nano(2), 100, 'a', make_lineage("train", "", {})), 1);
        b = write(dir / "b.bin", nano(3), header_of(nano(3), 200, 'b', make_lineage("train", "", {})), 2);
        const Checkpoint earlier =
            write(dir / "earlier.bin", nano(2), header_of(nano(2), 60, 'a', make_lineage("train", "", {})), 3);
        json header = a.header;
        header["lineage"] = mixed_lineage(a, {&earlier}, {0.25});
        a = write(dir / "a.bin", nano(2), header, 1);

        json made{
            {"config", to_json(nano(5))}, {"progress", no_progress()}, {"lineage", make_lineage("stack", "by hand", {&a, &b, &a})}};
        made["lineage"]["layers"] = json::parse(R"([[0,0],[0,1],[1,2],null,[2,1,{"fc_proj":"x 0.5"}]])");
        deep = write(dir / "deep.bin", nano(5), made, 4);
        trained = write(dir / "trained.bin", nano(5), header_of(nano(5), 40, 'c', make_lineage("train", "", {&deep})), 5);
    }
};

TEST_CASE("describe: layers, family and totals, for a file that stack made and for one that was trained from it") {
    Family f;
    const std::string a = f.a.content_hash().substr(0, 12), b = f.b.content_hash().substr(0, 12);
    for (const Checkpoint* file : {&f.deep, &f.trained}) {
        const json d = describe(*file);
        CHECK(d["made_by"] == json{{"operation", "stack"}, {"detail", "by hand"}});
        REQUIRE(d["layers"].size() == 5);
        const GPTConfig c = nano(5);
        for (int l = 0; l < 5; l++) {
            CHECK(d["layers"][l]["window"] == c.windows[l]);
            CHECK(d["layers"][l]["attn_scale"] == c.attn_scale[l]);
            CHECK(d["layers"][l]["value_embed"] == (l % 2 == 0));
            CHECK(d["layers"][l]["norm_before"] == "none");
        }
        const char* const made[] = {"copied", "copied", "copied", "new", "copied"};
        for (int l = 0; l < 5; l++) CHECK(d["layers"][l]["made"] == made[l]);
        CHECK(d["layers"][1]["parent"] == a);
        CHECK(d["layers"][1]["layer"] == 1);
        CHECK(d["layers"][2]["parent"] == b);
        CHECK(d["layers"][2]["layer"] == 2);
        CHECK(!d["layers"][3].contains("parent"));
        CHECK(d["layers"][4]["rules"] == json{{"fc_proj", "x 0.5"}});
    }
    CHECK(describe(f.deep)["total"] == json{{"tokens", 300}, {"flops", 30000.0}});
    const json d = describe(f.trained);
    CHECK(d["total"] == json{{"tokens", 340}, {"flops", 34000.0}});
    CHECK(d["parameters"] == json{{"total", total_params(nano(5))},
                                  {"matmul", matmul_params(nano(5))},
                                  {"free", 0},
                                  {"flops_per_token", flops_per_token(nano(5))}});
    CHECK(d["run"] == json{{"step", 4}, {"tokens", 40}, {"flops", 4000.0}, {"can_resume", true}, {"optimizer_state", false}});
    CHECK(d["config"]["n_layer"] == 5);
    CHECK(!d["config"].contains("windows"));

    const json& family = d["family"];
    CHECK(family["hash"] == f.trained.content_hash().substr(0, 12));
    CHECK(family["tokens"] == 40);
    const json& deep = family["parents"][0];
    CHECK(deep["operation"] == "stack");
    REQUIRE(deep["parents"].size() == 3);
    CHECK(deep["parents"][0]["hash"] == a);
    CHECK(deep["parents"][0]["flops"] == 10000.0);
    CHECK(deep["parents"][0]["met_before"] == false);
    CHECK(deep["parents"][0]["parents"][0]["mixed"] == json{{"weight", 0.25}, {"step", 10}});
    CHECK(deep["parents"][1]["hash"] == b);
    CHECK(deep["parents"][1]["met_before"] == false);
    CHECK(deep["parents"][2]["hash"] == a);
    CHECK(deep["parents"][2]["met_before"] == true);
}

TEST_CASE("describe: as text") {
    Family f;
    const std::string a = f.a.content_hash().substr(0, 12), b = f.b.content_hash().substr(0, 12),
                      text = text_of_description(describe(f.trained));
    for (const std::string& line :
         {std::string("recipe: nanochat\n"), std::string("n_layer: 5\n"), concat("total_params: ", total_params(nano(5)), "\n"),
          std::string("resume: yes\noptimizer_state: no\n"), std::string("layers by: stack by hand\n"),
          "layer 0: copied from 0 of " + a + "   window 8, scale 1.0, value embedding yes, norm before none\n",
          "layer 2: copied from 2 of " + b + "   window 8, ", std::string("layer 3: new   window 16, "),
          "layer 4: copied from 1 of " + a + ", fc_proj x 0.5   window 16, ",
          "      " + a + " train, step 10, 100 tokens, 1.0000e+04 FLOPs\n", std::string(", mixed in by 0.25 at step 10\n"),
          "      " + a + " train, step 10, 100 tokens, 1.0000e+04 FLOPs (its parents: above)\n",
          std::string("total_tokens: 340\ntotal_flops: 3.4000e+04\n")})
        CHECK_MESSAGE(contains(text, line), line, "\n", text);

    // Consecutive equal layers are printed on one line.
    TempDir dir;
    const GPTConfig config = recipe_config(SPEEDRUN, 6, 2, 16, 24, 8);
    json header = small_header(config);
    header["lineage"] = make_lineage("grow", "--order stack --factor 2", {&f.a});
    header["lineage"]["layers"] = json::parse("[[0,0],[0,1],[0,0],[0,1],null,null]");
    const std::string equal = text_of_description(describe(write(dir / "a.bin", config, header, 1)));
    for (const char* line : {"layer 0-1: copied from 0-1 of ", "layer 2-3: copied from 0-1 of ", "layer 4-5: new   "})
        CHECK_MESSAGE(contains(equal, line), equal);
    header["lineage"] = make_lineage("train", "", {});
    CHECK(contains(text_of_description(describe(write(dir / "b.bin", config, header, 1))), "layer 0-5: as trained   window 8, "));
}

TEST_CASE("describe: models without layers, older files, mixtures, layer maps that no longer fit") {
    TempDir dir;
    const json none = describe(write(dir / "none.bin", nano(0), header_of(nano(0), 10, 'a', make_lineage("train", "", {})), 1));
    CHECK(none["layers"] == json::array());
    CHECK(none["total"]["tokens"] == 10);
    text_of_description(none);

    const json v1 =
        describe(open_checkpoint("test/golden/checkpoint_v1/checkpoint.bin"));   // trained from a grown model of version 1, which has no layer map
    CHECK(v1["made_by"] == json{{"operation", "grow"}, {"detail", "--order 0 --value-embeds layer"}});
    CHECK(v1["layers"][0]["made"] == "unknown");
    CHECK(v1["run"]["optimizer_state"] == true);
    CHECK(v1["total"] == json{{"tokens", 224}, {"flops", 4214784.0}});
    CHECK(contains(text_of_description(v1), "layer 0: unknown   "));

    // The layers of a run from scratch do not come from a model that is mixed in.
    Checkpoint grown = write(dir / "grown.bin", nano(2), header_of(nano(2), 10, 'a', make_lineage("grow", "", {})), 1);
    Checkpoint run = write(dir / "run.bin", nano(2), header_of(nano(2), 10, 'b', make_lineage("train", "", {})), 2);
    json header = run.header;
    header["lineage"] = mixed_lineage(run, {&grown}, {0.5});
    CHECK(describe(write(dir / "mixed.bin", nano(2), header, 3))["layers"][0]["made"] == "as trained");

    // The layers of a parent are not validated.
    header["lineage"] = make_lineage("train", "", {&grown});
    header["lineage"]["parents"][0]["parents"] = json::array({header["lineage"]["parents"][0]});
    header["lineage"]["parents"][0]["layers"] = json::parse("[[0,7]]");
    CHECK(describe(write(dir / "odd.bin", nano(2), header, 4))["layers"][1]["made"] == "unknown");
}

TEST_CASE("describe: the program prints it, and nothing else") {
    Family f;
    const Result text = run("./train_gpt --describe " + f.dir / "trained.bin"),
                 as_json = run("./train_gpt --json --describe " + f.dir / "trained.bin");
    CHECK(text.code == 0);
    CHECK(text.err == "");
    CHECK(text.out == text_of_description(describe(f.trained)));
    CHECK(as_json.code == 0);
    CHECK(as_json.err == "");
    CHECK(json::parse(as_json.out) == describe(f.trained));
    CHECK(std::count(as_json.out.begin(), as_json.out.end(), '\n') == 1);
    auto refused = [](const std::string& flags, const std::string& words) {
        const Result result = run("./train_gpt " + flags);
        INFO(flags, ": ", result.err);
        CHECK(result.code == 2);
        CHECK(result.out == "");
        CHECK(contains(result.err, words));
        CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    };
    refused("--json --plan", "--json is for --describe");
    refused("--describe", "--describe");
    refused("--describe ''", "--describe is empty");
    refused("--describe README.md", "README.md: is not a checkpoint");
    refused("--describe no_such.bin", "no_such.bin: cannot be read");
    refused("--describe " + f.dir / "a.bin --plan", "--plan, --eval and --describe each do nothing else");
    refused("--describe " + f.dir / "a.bin --init " + f.dir / "a.bin", "leave --init and --resume out");
}
