// Weighted averages of models of one configuration: each tensor is the weighted sum of theirs. No model is built.
#pragma once
#include <string>
#include <vector>
#include "llmc/checkpoint.h"

/// Parses "0.9,0.1": one weight per model, summing to 1. Throws std::invalid_argument for any other text.
std::vector<double> parse_weights(const std::string& text, size_t models);

/// Throws std::invalid_argument, with the property and both values, for two models whose configurations or tokenizers differ.
void require_one_shape(const std::vector<const Checkpoint*>& models);

/// The tensors of the first model's file, with its weights replaced by the weighted sums over all models, summed in double and rounded
/// once. Its optimizer state is copied as bytes. If it has no tokenizer, the first tokenizer of the other models is added.
std::vector<TensorSource> mixed_tensors(const std::vector<const Checkpoint*>& models, const std::vector<double>& weights);

/// The header for it: that of the first model, whose run continues under a new identity; the others are added to the parents of its
/// lineage.
nlohmann::json mixed_header(const std::vector<const Checkpoint*>& models, const std::vector<double>& weights);
