// Models of one configuration, mixed by weight: each tensor a sum of theirs. No model is built.
#pragma once
#include <string>
#include <vector>
#include "llmc/checkpoint.h"

/// "0.9,0.1": a weight for each of so many models, which sum to 1. Throws std::invalid_argument for any other text.
std::vector<double> parse_weights(const std::string& text, size_t models);

/// Throws std::invalid_argument, with the property and both values, for two models that are not of one configuration, or have
/// different tokenizers.
void require_one_shape(const std::vector<const Checkpoint*>& models);

/// All that the first model's file holds, its weights replaced by the sums over all models, times their weights: in double, rounded
/// once. Its optimizer state is moved as bytes. Where it has no tokenizer, that of the first model that has one joins it.
std::vector<TensorSource> mixed_tensors(const std::vector<const Checkpoint*>& models, const std::vector<double>& weights);

/// The header for it: the first's, whose run goes on as one with another identity; the others join the parents of its lineage.
nlohmann::json mixed_header(const std::vector<const Checkpoint*>& models, const std::vector<double>& weights);
