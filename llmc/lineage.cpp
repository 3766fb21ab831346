#include "llmc/lineage.h"
#include <algorithm>
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

/// Drops the parents of every file that was met before, so that a model stacked on itself again and again has a small tree. `path`:
/// the files from the root to here, whose parents stay: two such growths in a row cannot be told apart.
static void list_parents_once(json& lineage, std::set<std::string>& seen, std::vector<std::string>& path) {
    for (json& parent : lineage["parents"]) {
        if (!parent.contains("parents")) continue;
        const std::string file = file_of(parent);
        if (!seen.insert(file).second && std::find(path.begin(), path.end(), file) == path.end()) {
            parent.erase("parents");
            continue;
        }
        path.push_back(file);
        list_parents_once(parent, seen, path);
        path.pop_back();
    }
}

static double add_flops(const json& lineage, std::set<std::string>& seen) {
    double sum = 0;
    if (!lineage.contains("parents")) return sum;
    for (const json& parent : lineage["parents"]) {
        std::string file = concat(parent["hash"], ' ', parent["step"], ' ', parent["flops"]);
        if (seen.insert(file).second) sum += parent["flops"].get<double>();
        sum += add_flops(parent, seen);
    }
    return sum;
}
double lineage_flops(const json& lineage) {
    std::set<std::string> seen;
    return add_flops(lineage, seen);
}

json make_lineage(const std::string& operation, const std::string& detail, const std::vector<const Checkpoint*>& parents) {
    json lineage{{"operation", operation}, {"detail", detail}, {"parents", json::array()}};
    for (const Checkpoint* parent : parents) {
        json entry = parent->header["lineage"];
        for (const char* key : {"step", "tokens", "flops"}) entry[key] = parent->header["progress"][key];
        entry["hash"] = parent->content_hash();
        lineage["parents"].push_back(std::move(entry));
    }
    std::set<std::string> seen;
    std::vector<std::string> path;
    list_parents_once(lineage, seen, path);
    return lineage;
}

json no_progress() { return {{"step", 0}, {"tokens", 0}, {"flops", 0}}; }

// ------------------------------------------------------------------------------------------------ along first parents

/// What a file has behind it, its own steps too: a run ends the walk unless its lineage has `key` with that value.
static Position along_first_parents(const json& lineage, const char* key, const char* value) {
    Position all;
    const std::string operation = lineage["operation"];
    const bool goes_on = operation == "train" ? lineage.contains(key) && lineage[key] == value : operation == "grow" || operation == "stack";
    if (goes_on && lineage.contains("parents") && !lineage["parents"].empty()) {
        const json& parent = lineage["parents"][0];
        all = along_first_parents(parent, key, value);
        all.steps += parent["step"].get<int64_t>();
        all.tokens += parent["tokens"].get<int64_t>();
        all.flops += parent["flops"].get<double>();
    }
    return all;
}

Position schedule_before(const json& lineage) { return along_first_parents(lineage, "schedule", "continue"); }
int64_t updates_before(const json& lineage) { return along_first_parents(lineage, "optimizer", "keep").steps; }
