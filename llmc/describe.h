// What a checkpoint is and where it came from, for people and for scripts.
#pragma once
#include <nlohmann/json.hpp>
#include <string>
#include "llmc/checkpoint.h"

/// config      every property but those of a layer
/// parameters  {total, matmul, free, flops_per_token}; free: value embeddings beyond the pattern, which cost no FLOPs
/// run         {step, tokens, flops, can_resume, optimizer_state}
/// made_by     {operation, detail} of the nearest file along first parents that grow or stack made; null where there is none
/// layers      [{made, parent, layer, rules, window, attn_scale, value_embed, norm_before}, ...]; made: "as trained"; or by that
///             growth or stack "copied" from `layer` of `parent` (the first 12 digits of its hash), by `rules` in tensors that
///             have some, or "new"; or "unknown", where an older program kept no map
/// family      {hash, operation, detail, step, tokens, flops, mixed, met_before, parents: [...]} of the file and of all that it
///             came from;
///             mixed: {weight, step}, of a file that was mixed in; met_before: its parents stand where the tree has it first
/// total       {tokens, flops} of the whole family, each part counted once (llmc/lineage.h)
nlohmann::json describe(const Checkpoint& checkpoint);

/// The same as text: lines of `key: value`, equal layers on one line, the family indented.
std::string text_of_description(const nlohmann::json& description);
