// Where a checkpoint came from: its family tree, and what was spent on it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>
#include <nlohmann/json.hpp>
#include "llmc/checkpoint.h"
#include "llmc/schedule.h"

/// The `lineage` of a file made from these parents; a training run from scratch has none.
nlohmann::json make_lineage(const std::string& operation, const std::string& detail, const std::vector<const Checkpoint*>& parents);

/// The entry of a file in `parents`: its lineage, its progress, its hash, and what its run had spent under each of its identities.
/// Throws std::invalid_argument, beginning with `where`, for an invalid header.
nlohmann::json lineage_entry(const nlohmann::json& header, const std::string& hash, const std::string& where = "header");

/// The identities of a file's run (training.runs of its header), by which runs are told apart in a family tree: one, and another
/// from each point where the run continued with other settings or mixed weights. For older files without them, one that is derived
/// from the rest of the header; null where there was no training.
nlohmann::json identities_of(const nlohmann::json& header);

/// The lineage of `first` after others were mixed into it, with one weight each: they are added to its parents.
nlohmann::json mixed_lineage(const Checkpoint& first, const std::vector<const Checkpoint*>& others,
                             const std::vector<double>& weights);

struct Spent {
    int64_t tokens = 0;
    double flops = 0;
};
/// What was spent on a file and on all its ancestors; `header`: progress, lineage, and training if any. Nothing is counted twice:
/// files of one run share their first steps, so each identity of a run counts with the most that any file has under it; older files
/// without identities are told apart by hash, step and FLOPs.
Spent total_spent(const nlohmann::json& header);

/// `progress` of a file before any training: zeros.
nlohmann::json no_progress();

// How far the schedule and the optimizer already are when a run with this lineage starts. Both follow first parents, also through
// grow and stack.

/// Steps, tokens and FLOPs of the earlier runs whose schedule it continues; zeros where its schedule starts at step 0.
Position schedule_before(const nlohmann::json& lineage);
/// Updates that the kept optimizer state has had; 0 where the optimizer starts from scratch.
int64_t updates_before(const nlohmann::json& lineage);
