// From a checkpoint into the device's memory: a model's weights, and any other tensor.
#pragma once
#include <string>
#include "llmc/checkpoint.h"
#include "llmc/gpt.h"

// All of these throw std::invalid_argument where the file cannot be read, or its bytes are not those that were written.

/// Of a tensor of the checkpoint the elements of `piece`. destination (piece.count), on the device
void read_to_device(const Checkpoint& checkpoint, const std::string& name, float* destination, const Piece& piece);

/// What this process owns of one tensor of a model that is allocated: masters, and what the passes read.
void load_weight(GPT& model, const Tensor& tensor, const Checkpoint& from);
/// All of them.
void load_weights(GPT& model, const Checkpoint& from);
