#include "llmc/lineage.h"
#include <algorithm>
#include <cstdint>
#include <map>
#include <set>
#include "llmc/io/error.h"
#include "llmc/io/hash.h"
#include "llmc/io/json.h"

using nlohmann::json;

/// Identifies a file of a family tree. The hash alone does not: a growth that keeps every layer in its place has its parent's hash.
static std::string file_of(const json& entry) {
    std::string file;
    for (const char* key : {"hash", "step", "tokens", "flops", "operation", "detail"}) file += dump_json(entry[key]) + ' ';
    return file;
}

/// What a walk through a family tree has met so far, from the root on, parents in their order.
struct Met {
    std::set<std::string> files;
    std::vector<std::string> path;             ///< from the root to here; these keep their parents, since two growths in a row can look like one file
    std::map<std::string, int64_t> tokens;     ///< by identity of a run: the most tokens of any file met
};

/// Drops the identities of a run that an earlier file lists with as many tokens.
static void list_runs_once(json& entry, Met& met) {
    json news = json::array();
    for (json& run : entry["runs"]) {
        const int64_t tokens = run["tokens"];
        auto [known, first] = met.tokens.insert({run["id"], tokens});
        if (!first && known->second >= tokens) continue;
        known->second = tokens;
        news.push_back(std::move(run));
    }
    entry["runs"] = std::move(news);
}

/// Drops the parents of every file that was met before, so that the tree stays small when a model is stacked on itself repeatedly, or
/// mixed with another.
static void list_parents_once(json& lineage, Met& met) {
    json parents = json::array();
    for (json& parent : lineage["parents"]) {
        bool news = parent.contains("parents");
        if (news) {
            const std::string file = file_of(parent);
            news = met.files.insert(file).second || std::find(met.path.begin(), met.path.end(), file) != met.path.end();
            if (news) {
                if (parent.contains("runs")) list_runs_once(parent, met);
                met.path.push_back(file);
                list_parents_once(parent, met);
                met.path.pop_back();
            } else {
                for (const char* key : {"parents", "layers", "runs"}) parent.erase(key);
            }
        }
        if (news || met.path.empty() || !parent.contains("mixed")) parents.push_back(std::move(parent));   // `layers` never points to a mixed-in parent
    }
    lineage["parents"] = std::move(parents);
}

static int generations(const json& lineage) {
    int most = 0;
    if (lineage.contains("parents"))
        for (const json& parent : lineage["parents"]) most = std::max(most, 1 + generations(parent));
    return most;
}

/// Each generation nests two levels of JSON deeper, and a file may have 1000 levels (llmc/io/json.h).
static constexpr int MAX_GENERATIONS = 450;

static void list_parents_once(json& lineage, const std::string& file) {
    Met met;
    list_parents_once(lineage, met);
    const int deep = generations(lineage);
    require(deep <= MAX_GENERATIONS, file, ": its family tree would have ", deep, " generations, but a file can hold ", MAX_GENERATIONS,
            "; start a new tree from its weights and config alone, in a safetensors file (see convert --help)");
}

/// What a run spent under each of its identities, from its training.runs, which hold its progress when each began.
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

json identities_of(const json& header) {
    if (!header.contains("training") || !header["training"].is_object()) return nullptr;
    const json& training = header["training"];
    if (training.contains("runs")) return training["runs"];
    json what{header.value("config", json()), header["lineage"], training.value("flags", json())};
    for (const char* horizon : {"steps", "total-flops", "param-data-ratio"})
        if (what[2].is_object()) what[2].erase(horizon);
    if (header.contains("data") && header["data"].is_object()) what.push_back(header["data"].value("fingerprint", json()));
    return json::array({{{"id", xxh3_128(dump_json(what))}, {"tokens", 0}, {"flops", 0}}});
}

json lineage_entry(const json& header, const std::string& hash, const std::string& where) {
    json entry = json_object(json_member(header, "lineage", where), where + ": lineage");
    const json& progress = json_member(header, "progress", where);
    for (const char* key : {"step", "tokens", "flops"}) entry[key] = json_member(progress, key, where + ": progress");
    entry["hash"] = hash;
    if (const json runs = identities_of(header); !runs.is_null())
        entry["runs"] = spent_of_each(runs, progress, where + ": training: runs");
    return entry;
}

json make_lineage(const std::string& operation, const std::string& detail, const std::vector<const Checkpoint*>& parents) {
    json lineage{{"operation", operation}, {"detail", detail}, {"parents", json::array()}};
    for (const Checkpoint* parent : parents) lineage["parents"].push_back(lineage_entry(parent->header, parent->content_hash()));
    list_parents_once(lineage, parents.empty() ? "" : parents[0]->path);
    return lineage;
}

json mixed_lineage(const Checkpoint& first, const std::vector<const Checkpoint*>& others, const std::vector<double>& weights) {
    json lineage = first.header["lineage"];
    for (size_t i = 0; i < others.size(); i++) {
        json entry = lineage_entry(others[i]->header, others[i]->content_hash());
        entry["mixed"] = {{"weight", weights[i]}, {"step", first.header["progress"]["step"]}};
        lineage["parents"].push_back(std::move(entry));
    }
    list_parents_once(lineage, first.path);
    return lineage;
}

/// A saturating sum: the numbers in files may be anything.
static int64_t sum_of(int64_t a, int64_t b) { return a > INT64_MAX - b ? INT64_MAX : a + b; }

namespace {
/// Adds up what files spent, counting nothing twice.
class Account {
public:
    /// entry: has `runs`; or else `tokens` and `flops`, in a file without a run or without identities. file: identifies such a file.
    void add(const json& entry, const std::string& file) {
        auto spent_in = [](const json& part) { return Spent{part["tokens"].get<int64_t>(), part["flops"].get<double>()}; };
        if (entry.contains("runs")) {
            for (const json& run : entry["runs"]) {
                const Spent spent = spent_in(run);
                Spent& most = of_runs[run["id"].get<std::string>()];
                most = {std::max(most.tokens, spent.tokens), std::max(most.flops, spent.flops)};
            }
        } else if (files.insert(file).second) {
            const Spent spent = spent_in(entry);
            others = {sum_of(others.tokens, spent.tokens), others.flops + spent.flops};
        }
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
    std::set<std::string> files;            // counted in `others`
    Spent others;                           // of files without identities
};
}   // namespace

Spent total_spent(const json& header) {
    json own = header["progress"];
    if (const json runs = identities_of(header); !runs.is_null()) own["runs"] = spent_of_each(runs, own, "training: runs");
    Account account;
    account.add(own, "the file itself");
    account.add_parents(header["lineage"]);
    return account.total();
}

json no_progress() { return {{"step", 0}, {"tokens", 0}, {"flops", 0}}; }

// ------------------------------------------------------------------------------------------------ along first parents

/// Sums the progress of the files before this one. The walk goes through grow and stack, and through a training run only if its lineage
/// has `key` with that value.
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
