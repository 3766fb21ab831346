// What a checkpoint is and where it came from, for people and for scripts.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include "llmc/checkpoint.h"

/// config      every property that is not per layer
/// parameters  {total, matmul, free, flops_per_token}; free: value embeddings beyond the pattern, which cost no FLOPs
/// run         {step, tokens, flops, can_resume, optimizer_state}
/// made_by     {operation, detail} of the nearest ancestor, along first parents, that grow or stack made; null where there is none
/// layers      [{made, parent, layer, rules, window, attn_scale, value_embed, norm_before}, ...]; made: "as trained" (no grow or
///             stack in its history); "copied" by made_by from `layer` of `parent` (the first 12 digits of its hash), with `rules`
///             for tensors that are not plain copies; "new"; or "unknown" in files of older versions, which keep no layer map
/// family      {hash, operation, detail, step, tokens, flops, mixed, met_before, parents: [...]}: the family tree of the file;
///             mixed: {weight, step}, of a file that was mixed in; met_before: the tree lists this file and its parents earlier
/// total       {tokens, flops} of the whole family, each run counted once (llmc/lineage.h)
nlohmann::json describe(const Checkpoint& checkpoint);

/// The same as text: lines of `key: value`, equal layers on one line, the family indented.
std::string text_of_description(const nlohmann::json& description);
