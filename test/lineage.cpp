// The tokens and FLOPs spent on a checkpoint and all its ancestors, each counted once: family trees worked out by hand.
#include "llmc/lineage.h"
#include <doctest/doctest.h>
#include "llmc/io/error.h"
#include "llmc/io/hash.h"
#include "test/small_model.h"

using nlohmann::json;
using Runs = std::vector<std::pair<char, int>>;   // identity, and the tokens spent under it

static std::string id_of(char name) { return std::string(32, name); }

/// A parent's entry; each identity of its run spent the given tokens, at 10 FLOPs each.
static json node(const Runs& spent, const std::vector<json>& parents = {}) {
    json runs = json::array();
    int tokens = 0;
    for (auto& [id, of_it] : spent) {
        runs.push_back({{"id", id_of(id)}, {"tokens", of_it}, {"flops", 10 * of_it}});
        tokens += of_it;
    }
    const std::string hash = concat("hash of ", runs.dump(), parents.size());
    return {{"operation", "train"}, {"detail", ""},         {"hash", hash}, {"step", tokens},
            {"tokens", tokens},     {"flops", 10 * tokens}, {"runs", runs}, {"parents", parents}};
}

/// The header of a checkpoint whose run had these identities one after another.
static json file(const Runs& spent, const std::vector<json>& parents = {}) {
    json begins = json::array();
    int tokens = 0;
    for (auto& [id, of_it] : spent) {
        begins.push_back({{"id", id_of(id)}, {"tokens", tokens}, {"flops", 10 * tokens}});
        tokens += of_it;
    }
    return {{"progress", {{"step", tokens}, {"tokens", tokens}, {"flops", 10 * tokens}}},
            {"training", {{"runs", begins}}},
            {"lineage", {{"operation", "train"}, {"detail", ""}, {"parents", parents}}}};
}

/// The header of a file that grow or stack made.
static json made(const std::vector<json>& parents) {
    return {{"progress", no_progress()}, {"lineage", {{"operation", "stack"}, {"detail", ""}, {"parents", parents}}}};
}
static json as_parent(const json& header) { return lineage_entry(header, "hash of a file that was made"); }

static void check_spent(const json& header, int tokens) {
    const Spent spent = total_spent(header);
    CHECK(spent.tokens == tokens);
    CHECK(spent.flops == 10.0 * tokens);
}

TEST_CASE("lineage: a run from scratch, what was grown from it, and a run from that") {
    check_spent(file({{'a', 100}}), 100);
    check_spent(made({node({{'a', 100}})}), 100);
    check_spent(file({{'b', 30}}, {as_parent(made({node({{'a', 100}})}))}), 130);
    check_spent(file({{'b', 0}}, {node({{'a', 100}})}), 100);
    check_spent(made({}), 0);
}

TEST_CASE("lineage: a file twice, an earlier file of the same run, and two runs") {
    check_spent(made({node({{'a', 100}}), node({{'a', 100}})}), 100);
    check_spent(made({node({{'a', 40}}), node({{'a', 100}})}), 100);
    check_spent(made({node({{'a', 100}}), node({{'a', 40}})}), 100);
    check_spent(made({node({{'a', 100}}), node({{'b', 100}})}), 200);
}

TEST_CASE("lineage: repeated mixing, in one direction and in both") {
    check_spent(file({{'a', 250}}, {node({{'b', 100}}), node({{'b', 200}})}), 450);
    // b is mixed into a at 100, and then a, which contains b, into b.
    const json b = node({{'b', 100}}), a = node({{'a', 100}}, {b});
    check_spent(file({{'b', 100}, {'c', 100}}, {a}), 300);
    check_spent(made({node({{'b', 100}, {'c', 100}}, {a}), node({{'a', 180}}, {b})}), 380);
}

TEST_CASE("lineage: branches of one run share what was spent before the branch") {
    const json one = node({{'t', 100}, {'x', 50}}), two = node({{'t', 100}, {'y', 70}});
    check_spent(made({one, two}), 220);
    check_spent(made({one, two, node({{'t', 150}})}), 270);   // the first run continued, too
    check_spent(file({{'t', 100}, {'x', 80}}, {one, two}), 250);
    check_spent(file({{'t', 20}, {'z', 5}}, {one}), 155);
}

/// A parent's entry as older versions wrote it, without identities.
static json old_node(const std::string& hash, int tokens, const std::vector<json>& parents = {}) {
    json entry = node({{'o', tokens}}, parents);
    entry.erase("runs");
    entry["hash"] = hash;
    return entry;
}

TEST_CASE("lineage: older files, and their descendants, are distinguished by hash, step and FLOPs") {
    check_spent(made({old_node("a", 100), old_node("a", 100)}), 100);
    check_spent(made({old_node("a", 100), old_node("a", 200)}), 300);
    check_spent(made({old_node("a", 100), old_node("b", 100)}), 200);
    check_spent(file({{'c', 10}}, {old_node("a", 100), node({{'b', 30}}, {old_node("a", 100)})}), 140);
    json old = file({{'c', 10}});
    old.erase("training");
    check_spent(old, 10);
}

TEST_CASE("lineage: a run from before identities existed gets one derived from its file, the same before and after it is resumed") {
    json old = file({{'c', 30}});
    old["training"] = {{"flags", {{"seed", 1}, {"steps", 3}}}};
    old["data"] = {{"fingerprint", "0123"}};
    check_spent(old, 30);
    const json identity = identities_of(old);
    REQUIRE(identity.size() == 1);
    json later = file({{'c', 50}});   // after resuming
    later["training"] = {{"runs", identity}};
    check_spent(made({lineage_entry(old, "a"), lineage_entry(later, "b"), lineage_entry(old, "a")}), 50);
    json longer = old, other = old;
    longer["training"]["flags"]["steps"] = 9;
    other["training"]["flags"]["seed"] = 2;
    CHECK(identities_of(longer) == identity);
    CHECK(identities_of(other) != identity);
    check_spent(made({lineage_entry(old, "a"), lineage_entry(other, "c")}), 60);
    CHECK(identities_of(made({})).is_null());
}

TEST_CASE("lineage: sums of any values in files do not overflow") {
    json header = made({old_node("a", 1), old_node("b", 1)});
    for (json& parent : header["lineage"]["parents"]) parent["tokens"] = INT64_MAX;
    CHECK(total_spent(header).tokens == INT64_MAX);
}

TEST_CASE("lineage: a parent's entry has the tokens and FLOPs of each identity") {
    const json entry = lineage_entry(file({{'a', 100}, {'b', 20}, {'c', 0}}), "some hash");
    CHECK(entry["hash"] == "some hash");
    CHECK(entry["tokens"] == 120);
    CHECK(entry["runs"].dump() == json{{{"id", id_of('a')}, {"tokens", 100}, {"flops", 1000.0}},
                                       {{"id", id_of('b')}, {"tokens", 20}, {"flops", 200.0}},
                                       {{"id", id_of('c')}, {"tokens", 0}, {"flops", 0.0}}}
                                      .dump());
    CHECK(!lineage_entry(made({}), "").contains("runs"));
    json bad = file({{'a', 1}});
    bad["training"]["runs"][0].erase("tokens");
    CHECK(refusal([&] { lineage_entry(bad, "", "a.safetensors"); }) == "a.safetensors: training: runs: 'tokens' is missing");
    bad["training"]["runs"] = 3;
    CHECK(contains(refusal([&] { lineage_entry(bad, "", "a.safetensors"); }),
                   "a.safetensors: training: runs: is 3, but must be an array"));
}

TEST_CASE("lineage: a model that is mixed in becomes a parent, and is listed in full only once") {
    TempDir dir;
    const GPTConfig config = recipe_config(SPEEDRUN, 1, 1, 8, 8, 4);
    auto write = [&](const std::string& name, uint64_t seed, const json& lineage) {
        json header = small_header(config);
        header["lineage"] = lineage;
        header["training"]["runs"] = json::array({{{"id", id_of(static_cast<char>('0' + seed))}, {"tokens", 0}, {"flops", 0}}});
        write_checkpoint(dir / name, header, small_sources(config, small_weights(config, seed)));
        return open_checkpoint(dir / name);
    };
    const Checkpoint root = write("root.bin", 0, make_lineage("train", "", {}));
    const Checkpoint a = write("a.bin", 1, make_lineage("train", "", {&root})),
                     b = write("b.bin", 2, make_lineage("train", "", {&root}));
    const json lineage = mixed_lineage(a, {&b, &b}, {0.25, -0.5});
    CHECK(lineage["operation"] == "train");
    REQUIRE(lineage["parents"].size() == 3);
    CHECK(lineage["parents"][0]["hash"] == root.content_hash());
    CHECK(!lineage["parents"][0].contains("mixed"));
    CHECK(lineage["parents"][1]["hash"] == b.content_hash());
    CHECK(lineage["parents"][1]["mixed"] == json{{"weight", 0.25}, {"step", 7}});
    CHECK(!lineage["parents"][1]["parents"][0].contains("parents"));   // root is already listed
    CHECK(!lineage["parents"][1]["parents"][0].contains("runs"));
    CHECK(lineage["parents"][2]["mixed"]["weight"] == -0.5);
    CHECK(!lineage["parents"][2].contains("parents"));
    CHECK(!lineage["parents"][2].contains("runs"));
    CHECK(total_spent({{"progress", a.header["progress"]}, {"training", a.header["training"]}, {"lineage", lineage}}).tokens ==
          3 * 4096);
}

TEST_CASE("lineage: two runs repeatedly mixed into each other: the size grows by a constant amount per round") {
    TempDir dir;
    const GPTConfig config = recipe_config(SPEEDRUN, 0, 1, 8, 8, 4);
    json runs[2] = {json::array(), json::array()}, trees[2] = {make_lineage("train", "", {}), make_lineage("train", "", {})};
    size_t size[2] = {0, 0}, before = 0;
    for (int round = 1; round <= 8; round++) {
        std::vector<Checkpoint> files;
        for (int side = 0; side < 2; side++) {
            const int done = (round - 1) * 100;
            runs[side].push_back({{"id", xxh3_128(concat(side, " ", round))}, {"tokens", done}, {"flops", 10.0 * done}});
            json header{{"config", to_json(config)}, {"lineage", trees[side]}, {"training", {{"runs", runs[side]}}}};
            header["progress"] = {{"step", round}, {"tokens", done + 100}, {"flops", 10.0 * (done + 100)}};
            const std::string path = dir / concat(side, "_", round);
            write_checkpoint(path, header, small_sources(config, small_weights(config, static_cast<uint64_t>(10 * round + side))));
            files.push_back(open_checkpoint(path));
        }
        for (int side = 0; side < 2; side++) {
            trees[side] = mixed_lineage(files[side], {&files[1 - side]}, {0.1});
            json header = files[side].header;
            header["lineage"] = trees[side];
            check_spent(header, 200 * round);
        }
        before = size[0];
        for (int side = 0; side < 2; side++) {
            const size_t now = trees[side].dump().size();
            if (side == 0 && round >= 4) CHECK(now - before <= size[1] + 64);   // as in the round before, up to longer numbers
            if (side == 0) size[1] = now - before, size[0] = now;
        }
    }
}

TEST_CASE("lineage: more generations than a file can hold are refused") {
    TempDir dir;
    const GPTConfig config = recipe_config(SPEEDRUN, 0, 1, 8, 8, 4);
    json header = small_header(config);
    auto deep = [&](int generations) {
        json lineage = make_lineage("train", "", {});
        for (int n = 0; n < generations; n++) {
            json entry = lineage_entry({{"progress", {{"step", n}, {"tokens", 0}, {"flops", 0}}}, {"lineage", lineage}}, concat("hash ", n));
            lineage = {{"operation", "grow"}, {"detail", ""}, {"parents", json::array({entry})}};
        }
        header["lineage"] = lineage;
        write_checkpoint(dir / "deep.bin", header, small_sources(config, small_weights(config, 1)));
        return open_checkpoint(dir / "deep.bin");
    };
    const Checkpoint last = deep(449), beyond = deep(450);
    CHECK_NOTHROW(make_lineage("grow", "", {&last}));
    CHECK(contains(refusal([&] { make_lineage("grow", "", {&beyond}); }), "deep.bin: its family tree would have 451 generations, but a file can hold 450"));
}
