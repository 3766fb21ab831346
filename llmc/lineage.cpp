#include "llmc/lineage.h"
#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include "llmc/io/error.h"
#include "llmc/io/json.h"

using nlohmann::json;

/// What tells one file of a family tree from another: a growth that moves every layer to its own place has its parent's hash.
static std::string file_of(const json& entry) {
    std::string file;
    for (const char* key : {"hash", "step", "tokens", "flops", "operation", "detail"}) file += dump_json(entry[key]) + ' ';
    return file;
}

/// Drops what leads from every file that was met before, so that a model stacked on itself again and again has a small tree.
/// `path`: the files from the root to here, whose parents stay: two such growths in a row cannot be told apart.
static void list_parents_once(json& lineage, std::set<std::string>& seen, std::vector<std::string>& path) {
    for (json& parent : lineage["parents"]) {
        if (!parent.contains("parents")) continue;
        const std::string file = file_of(parent);
        if (!seen.insert(file).second && std::find(path.begin(), path.end(), file) == path.end()) {
            for (const char* key : {"parents", "layers", "runs"}) parent.erase(key);
            continue;
        }
        path.push_back(file);
        list_parents_once(parent, seen, path);
        path.pop_back();
    }
}

static void list_parents_once(json& lineage) {
    std::set<std::string> seen;
    std::vector<std::string> path;
    list_parents_once(lineage, seen, path);
}

/// What a run spent under each identity that it had, by its training.runs, which say where it was when each began.
static json spent_of_each(const json& runs, const json& progress, const std::string& where) {
    json spent = json::array();
    for (size_t i = 0; i < json_array(runs, where).size(); i++) {
        const json &begin = runs[i], &end = i + 1 < runs.size() ? runs[i + 1] : progress;
        auto tokens = [&](const json& at) {
            return json_integer(json_member(at, "tokens", where), 0, INT64_MAX, where + ": tokens");
        };
        auto flops = [&](const json& at) { return json_number(json_member(at, "flops", where), where + ": flops"); };
        spent.push_back({{"id", json_member(begin, "id", where)},
                         {"tokens", tokens(end) - tokens(begin)},
                         {"flops", flops(end) - flops(begin)}});
    }
    return spent;
}

/// training.runs of a header; null where it has none.
static json runs_of(const json& header) {
    if (!header.contains("training") || !header["training"].is_object()) return nullptr;
    return header["training"].value("runs", json());
}

json lineage_entry(const json& header, const std::string& hash, const std::string& where) {
    json entry = json_object(json_member(header, "lineage", where), where + ": lineage");
    const json& progress = json_member(header, "progress", where);
    for (const char* key : {"step", "tokens", "flops"}) entry[key] = json_member(progress, key, where + ": progress");
    entry["hash"] = hash;
    if (const json runs = runs_of(header); !runs.is_null())
        entry["runs"] = spent_of_each(runs, progress, where + ": training: runs");
    return entry;
}

json make_lineage(const std::string& operation, const std::string& detail, const std::vector<const Checkpoint*>& parents) {
    json lineage{{"operation", operation}, {"detail", detail}, {"parents", json::array()}};
    for (const Checkpoint* parent : parents) lineage["parents"].push_back(lineage_entry(parent->header, parent->content_hash()));
    list_parents_once(lineage);
    return lineage;
}

json mixed_lineage(const Checkpoint& first, const std::vector<const Checkpoint*>& others, const std::vector<double>& weights) {
    json lineage = first.header["lineage"];
    for (size_t i = 0; i < others.size(); i++) {
        json entry = lineage_entry(others[i]->header, others[i]->content_hash());
        entry["mixed"] = {{"weight", weights[i]}, {"step", first.header["progress"]["step"]}};
        lineage["parents"].push_back(std::move(entry));
    }
    list_parents_once(lineage);
    return lineage;
}

/// Sums of what files say of themselves, which may be anything: they end at the largest number.
static int64_t sum_of(int64_t a, int64_t b) { return a > INT64_MAX - b ? INT64_MAX : a + b; }

namespace {
/// What files spent, each part of it once.
class Account {
public:
    /// entry: tokens, flops, and runs if any. file: tells it from others.
    void add(const json& entry, const std::string& file) {
        Spent left{entry["tokens"].get<int64_t>(), entry["flops"].get<double>()};
        for (const json& run : entry.value("runs", json::array())) {
            const Spent spent{run["tokens"].get<int64_t>(), run["flops"].get<double>()};
            Spent& most = of_runs[run["id"].get<std::string>()];
            most = {std::max(most.tokens, spent.tokens), std::max(most.flops, spent.flops)};
            left = {left.tokens - spent.tokens, left.flops - spent.flops};
        }
        const bool all_of_runs = entry.contains("runs") && left.tokens == 0;   // in FLOPs a rounding may be left
        if (!all_of_runs && files.insert(file).second) others = {sum_of(others.tokens, left.tokens), others.flops + left.flops};
    }
    void add_parents(const json& lineage) {
        if (!lineage.contains("parents")) return;
        for (const json& parent : lineage["parents"]) {
            if (!parent.contains("parents")) continue;   // met before
            add(parent, concat(parent["hash"], ' ', parent["step"], ' ', parent["flops"]));
            add_parents(parent);
        }
    }
    Spent total() const {
        Spent total = others;
        for (auto& [id, spent] : of_runs) total = {sum_of(total.tokens, spent.tokens), total.flops + spent.flops};
        return total;
    }

private:
    std::map<std::string, Spent> of_runs;   // by identity
    std::set<std::string> files;            // whose rest is in others
    Spent others;
};
}   // namespace

Spent total_spent(const json& header) {
    json own = header["progress"];
    if (const json runs = runs_of(header); !runs.is_null()) own["runs"] = spent_of_each(runs, own, "training: runs");
    Account account;
    account.add(own, "the file itself");
    account.add_parents(header["lineage"]);
    return account.total();
}

json no_progress() { return {{"step", 0}, {"tokens", 0}, {"flops", 0}}; }

// ------------------------------------------------------------------------------------------------ along first parents

/// What a file has behind it, its own steps too: a run ends the walk unless its lineage has `key` with that value.
static Position along_first_parents(const json& lineage, const char* key, const char* value) {
    Position all;
    const std::string operation = lineage["operation"];
    const bool goes_on =
        operation == "train" ? lineage.contains(key) && lineage[key] == value : operation == "grow" || operation == "stack";
    if (goes_on && lineage.contains("parents") && !lineage["parents"].empty()) {
        const json& parent = lineage["parents"][0];
        all = along_first_parents(parent, key, value);
        all.steps = sum_of(all.steps, parent["step"].get<int64_t>());
        all.tokens = sum_of(all.tokens, parent["tokens"].get<int64_t>());
        all.flops += parent["flops"].get<double>();
    }
    return all;
}

Position schedule_before(const json& lineage) { return along_first_parents(lineage, "schedule", "continue"); }
int64_t updates_before(const json& lineage) { return along_first_parents(lineage, "optimizer", "keep").steps; }
