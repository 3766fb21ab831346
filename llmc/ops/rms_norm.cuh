// RMSNorm of one row on CUDA, in the registers of its thread group: what norm.cu and residual.cu share.
#pragma once
#include "llmc/device/cuda_common.h"

/// rstd = 1 / the root mean square of the row that the thread group holds; out = x * rstd.
template <int VECTORS, bool BLOCK>
__device__ void rms_norm_row(floatX* out, float* rstd, const Packed (&x)[VECTORS], const Row<VECTORS, BLOCK>& row, float eps) {
    float squares = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float v[VECTOR];
        unpack(v, x[i]);
        for (float element : v) squares += element * element;
    }
    const float r = rsqrtf(row.sum(squares) / static_cast<float>(row.C) + eps);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float v[VECTOR];
        unpack(v, x[i]);
        for (float& element : v) element *= r;
        if (row.at(i) < row.C) store(out + row.at(i), v);
    }
    if (row.thread == 0) *rstd = r;
}
