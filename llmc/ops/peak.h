// The ceiling that speeds are compared with: how fast matmuls run on this device at best.
#pragma once
#include <cstddef>

/// Dense matmul peak in floatX, FLOP/s: on the CPU measured (the better of the matmuls 1024 x 768 x 3072 and
/// 1024 x 3072 x 768, rows x out x in; 25 MB while it lasts), from the data sheet on a GPU; 0 if unknown.
double device_peak_flops();

/// Of device_free_bytes(), what the process takes while device_peak_flops() measures.
size_t device_peak_bytes();
