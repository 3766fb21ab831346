// From a checkpoint into device memory: the weights of a model, and any other tensor.
#pragma once
#include <string>
#include "llmc/checkpoint.h"
#include "llmc/gpt.h"

// All of these throw std::invalid_argument where the file cannot be read, or its bytes do not match their hash.

/// Reads the elements of `piece` of a tensor. destination (piece.count), on the device
void read_to_device(const Checkpoint& checkpoint, const std::string& name, float* destination, const Piece& piece);

/// Loads the part of a tensor that this process owns into an allocated model: master weights, and their rounded copy.
void load_weight(GPT& model, const Tensor& tensor, const Checkpoint& from);
/// All of them.
void load_weights(GPT& model, const Checkpoint& from);
