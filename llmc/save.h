// From the memory of all processes of a job into one checkpoint: the same bytes whatever their count.
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "llmc/checkpoint.h"
#include "llmc/layout.h"
#include "llmc/ops/comm.h"

/// A tensor of fp32 numbers of which each process has a piece, on its device. Pieces of several processes are equal where they overlap.
struct SharedTensor {
    std::string name;
    std::vector<int64_t> shape;
    std::function<Piece(int rank)> owned;
    const float* values;   ///< (owned(own rank).count)
};

/// Called by every process; rank 0 writes. What goes wrong there is thrown everywhere, as std::invalid_argument. beside: tensors that rank 0 has.
void write_checkpoint(Comm& comm, const std::string& path, const nlohmann::json& header, const std::vector<SharedTensor>& tensors,
                      const std::vector<TensorSource>& beside);
