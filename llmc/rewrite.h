// What grow and stack share: a new checkpoint whose layers are copied from others as bytes, or made by rules. No model is built.
#pragma once
#include <string>
#include <vector>
#include "llmc/checkpoint.h"
#include "llmc/layers.h"

/// Prints the layer map, one line per layer with its per-layer properties; then parameters and bytes.
void print_map(const LayerMap& map, const std::vector<const Checkpoint*>& models);

/// The tensors of a mapped model: layers and lambdas as the map says, the embedding of the first model, the head of `head` (its
/// embedding where that is tied); then optimizer state, if the map keeps it, for every tensor whose source has state and for new
/// layers; and the first tokenizer that any model has. Tensors that are not copies are made piece by piece while they are written,
/// so the map must outlive the writing. Throws std::invalid_argument when two tokenizers differ, a rule is for a tensor that no
/// layer has, or there is no state to keep.
std::vector<TensorSource> mapped_tensors(const LayerMap& map, const std::vector<const Checkpoint*>& models, const Checkpoint& head);

/// The first model that has a tokenizer; null where none has. Throws std::invalid_argument when two tokenizers differ; the error calls
/// the models `models_are` ("models of a stack").
const Checkpoint* tokenizer_owner(const std::vector<const Checkpoint*>& models, const char* models_are);

/// Verifies every tensor of every model, then writes, and prints bytes, time and memory.
void verify_and_write(const std::string& out, const nlohmann::json& header, const std::vector<TensorSource>& sources,
                      const std::vector<const Checkpoint*>& models);
