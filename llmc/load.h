// From a checkpoint into the device's memory: a model's weights, and any other tensor.
#pragma once
#include <string>
#include "llmc/checkpoint.h"
#include "llmc/gpt.h"

// All of these throw std::invalid_argument where the file cannot be read, or its bytes are not those that were written.

/// A tensor of the checkpoint, a piece at a time. destination (numel), on the device
void read_to_device(const Checkpoint& checkpoint, const std::string& name, float* destination);

/// One tensor of a model that is allocated: masters, and what the passes read.
void load_weight(GPT& model, const Tensor& tensor, const Checkpoint& from);
/// All of them.
void load_weights(GPT& model, const Checkpoint& from);
