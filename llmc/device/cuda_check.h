// What a call of CUDA's API returned, as an exception.
#pragma once
#include <cuda_runtime.h>
#include <stdexcept>
#include "llmc/io/error.h"

/// Throws std::runtime_error with the op and CUDA's text unless all went well.
inline void cuda_check(cudaError_t error, const char* op) {
    if (error != cudaSuccess) throw std::runtime_error(concat(op, ": CUDA says: ", cudaGetErrorString(error), " (", cudaGetErrorName(error), ")"));
}
