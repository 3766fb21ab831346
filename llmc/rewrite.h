// What grow and stack share: a new checkpoint whose layers come from others, as bytes, or are made by rules. No model is built.
#pragma once
#include <string>
#include <vector>
#include "llmc/checkpoint.h"
#include "llmc/layers.h"

/// The layer map, a line a layer with all that is the layer's own; then parameters and bytes.
void print_map(const LayerMap& map, const std::vector<const Checkpoint*>& models);

/// The weights of a mapped model: layers and lambdas as the map says, the embedding of the first model, the head of `head`
/// (its embedding where that is tied); then the state of its optimizer, if the map keeps one, for each tensor whose numbers have
/// one where they come from, and for those of new layers; and the first tokenizer that a model has. What is no copy is made a piece
/// at a time while it is written; the map must live until then. Throws std::invalid_argument when two tokenizers differ, a rule is
/// for a tensor that no layer has, or there is no state to keep.
std::vector<TensorSource> mapped_tensors(const LayerMap& map, const std::vector<const Checkpoint*>& models, const Checkpoint& head);

/// The first model that has a tokenizer; null where none has. Throws std::invalid_argument when two of them differ, saying that
/// `models_are` ("models of a stack") must agree.
const Checkpoint* tokenizer_owner(const std::vector<const Checkpoint*>& models, const char* models_are);

/// Verifies every tensor of every model, then writes, and prints bytes, time and memory.
void verify_and_write(const std::string& out, const nlohmann::json& header, const std::vector<TensorSource>& sources,
                      const std::vector<const Checkpoint*>& models);
