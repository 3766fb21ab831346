// Where a checkpoint came from: its family tree, and what was spent on it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>
#include <nlohmann/json.hpp>
#include "llmc/checkpoint.h"
#include "llmc/schedule.h"

/// The `lineage` of a file made from these; for a training run from scratch there are none.
nlohmann::json make_lineage(const std::string& operation, const std::string& detail, const std::vector<const Checkpoint*>& parents);

/// A file as one of `parents`: its lineage, its progress, its hash, and what its run had spent under each of its identities.
/// Throws std::invalid_argument, `where` first, for a header that no checkpoint could have.
nlohmann::json lineage_entry(const nlohmann::json& header, const std::string& hash, const std::string& where = "header");

/// What tells a file's run from others in a family tree, training.runs of its header: one, and a further one from where it went on
/// with other settings or mixed weights. Of a file from before there was such a thing, one made of all that it says of its run;
/// null where there was no training.
nlohmann::json identities_of(const nlohmann::json& header);

/// The lineage of `first` when others were mixed into it by these weights, one of each: they join its parents.
nlohmann::json mixed_lineage(const Checkpoint& first, const std::vector<const Checkpoint*>& others,
                             const std::vector<double>& weights);

struct Spent {
    int64_t tokens = 0;
    double flops = 0;
};
/// What was spent on a file and on all that it came from; `header`: progress, lineage, and training if any. It counts once
/// what was spent once: of each identity of a run the most that any file has under it, since files of one run share their
/// first steps; and a file that has none (older ones) by its hash, step and FLOPs.
Spent total_spent(const nlohmann::json& header);

/// progress of a file at its start.
nlohmann::json no_progress();

// Where a run is in its schedule, and its optimizer's state in its training, when it starts with this lineage. Both follow first
// parents, through the files that grow and stack made of them.

/// Steps, tokens and FLOPs of the runs whose schedule it continues; nothing where its schedule starts afresh.
Position schedule_before(const nlohmann::json& lineage);
/// Updates behind the optimizer's state that it keeps; 0 where that starts afresh.
int64_t updates_before(const nlohmann::json& lineage);
