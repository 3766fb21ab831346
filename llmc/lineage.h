// Where a checkpoint came from: its family tree, and what was spent on it.
#pragma once
#include <string>
#include <vector>
#include <nlohmann/json.hpp>
#include "llmc/checkpoint.h"

/// The `lineage` of a file made from these; for a training run from scratch there are none.
nlohmann::json make_lineage(const std::string& operation, const std::string& detail, const std::vector<const Checkpoint*>& parents);

/// FLOPs of all that a file came from; a file met twice was trained once.
double lineage_flops(const nlohmann::json& lineage);

/// progress of a file at its start.
nlohmann::json no_progress();
