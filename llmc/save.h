// Gathers the tensors of all processes of a job into one checkpoint: the same bytes for every number of processes.
#pragma once
#include <functional>
#include <string>
#include <vector>
#include "llmc/checkpoint.h"
#include "llmc/layout.h"
#include "llmc/ops/comm.h"

/// An fp32 tensor of which each process has a piece, on its device. Pieces of several processes are equal where they overlap.
struct SharedTensor {
    std::string name;
    std::vector<int64_t> shape;
    std::function<Piece(int rank)> owned;
    const float* values;   ///< (owned(own rank).count)
};

/// Collective; rank 0 writes. Its errors are thrown at every process, as std::invalid_argument. beside: further tensors, which rank 0 has in full.
void write_checkpoint(Comm& comm, const std::string& path, const nlohmann::json& header, const std::vector<SharedTensor>& tensors,
                      const std::vector<TensorSource>& beside);
