// Where a checkpoint came from: its family tree, and what was spent on it.
#pragma once
#include <string>
#include <vector>
#include <nlohmann/json.hpp>
#include "llmc/checkpoint.h"
#include "llmc/schedule.h"

/// The `lineage` of a file made from these; for a training run from scratch there are none.
nlohmann::json make_lineage(const std::string& operation, const std::string& detail, const std::vector<const Checkpoint*>& parents);

/// FLOPs of all that a file came from; a file met twice was trained once.
double lineage_flops(const nlohmann::json& lineage);

/// progress of a file at its start.
nlohmann::json no_progress();

// Where a run is in its schedule, and its optimizer's state in its training, when it starts with this lineage. Both follow first
// parents, through the files that grow and stack made of them.

/// Steps, tokens and FLOPs of the runs whose schedule it continues; nothing where its schedule starts afresh.
Position schedule_before(const nlohmann::json& lineage);
/// Updates behind the optimizer's state that it keeps; 0 where that starts afresh.
int64_t updates_before(const nlohmann::json& lineage);
