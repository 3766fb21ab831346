// Norms on CUDA. A warp holds a row in registers, or a block where the row is long; bound by memory: each element is read once and
// written once.
#include "llmc/ops/norm.h"
#include "llmc/device/cuda_common.h"
#include "llmc/device/device.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/rms_norm.cuh"

template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>)
rms_norm_kernel(floatX* out, float* rstd, const floatX* x, int64_t N, int C, float eps) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed pieces[VECTORS];
    row.load(pieces, x + n * C);
    rms_norm_row(out + n * C, rstd + n, pieces, row, eps);
}

template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>)
layer_norm_kernel(floatX* out, float* rstd, const floatX* x, int64_t N, int C, float eps) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed pieces[VECTORS];
    row.load(pieces, x + n * C);

    float sum = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float v[VECTOR];
        unpack(v, pieces[i]);
        for (float element : v) sum += element;
    }
    const float mean = row.sum(sum) / static_cast<float>(C);

    float squares = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float v[VECTOR];
        unpack(v, pieces[i]);
        if (row.at(i) < C)
            for (float element : v) squares += (element - mean) * (element - mean);
    }
    const float r = rsqrtf(row.sum(squares) / static_cast<float>(C) + eps);

#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float v[VECTOR];
        unpack(v, pieces[i]);
        for (float& element : v) element = (element - mean) * r;
        pieces[i] = pack(v);
    }
    row.store(out + n * C, pieces);
    if (row.thread == 0) rstd[n] = r;
}

template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>)
norm_backward_kernel(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, int64_t N, int C, bool centred) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed g_pieces[VECTORS], y_pieces[VECTORS];
    row.load(g_pieces, dout + n * C);
    row.load(y_pieces, out + n * C);
    const float r = rstd[n];

    float g_sum = 0, gy_sum = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float g[VECTOR], y[VECTOR];
        unpack(g, g_pieces[i]);
        unpack(y, y_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            g_sum += g[k];
            gy_sum += g[k] * y[k];
        }
    }
    const float gy_mean = row.sum(gy_sum) / static_cast<float>(C);
    const float g_mean = centred ? row.sum(g_sum) / static_cast<float>(C) : 0;

#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float g[VECTOR], y[VECTOR];
        unpack(g, g_pieces[i]);
        unpack(y, y_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) g[k] = r * (g[k] - g_mean - y[k] * gy_mean);
        g_pieces[i] = pack(g);
    }
    row.store(dx + n * C, g_pieces);
}

static void copy_rows(floatX* to, const floatX* from, int64_t N, int C, Stream stream) {
    if (to != from) copy_on_device(to, from, N * C * sizeof(floatX), stream);
}

void norm_forward(floatX* out, float* rstd, const floatX* x, int64_t N, int C, Norm kind, float eps, Stream stream) {
    require_rows("norm_forward", N, C);
    require_aligned("norm_forward", out, x);
    if (kind == Norm::none) return copy_rows(out, x, N, C, stream);
    for_rows("norm_forward", N, C, [&]<int VECTORS, bool BLOCK>(const Grid& grid) {
        auto kernel = kind == Norm::rms_norm ? rms_norm_kernel<VECTORS, BLOCK> : layer_norm_kernel<VECTORS, BLOCK>;
        launch("norm_forward", kernel, grid, stream, out, rstd, x, N, C, eps);
    });
}

void norm_backward(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, int64_t N, int C, Norm kind, Stream stream) {
    require_rows("norm_backward", N, C);
    require_aligned("norm_backward", dx, dout, out);
    if (kind == Norm::none) return copy_rows(dx, dout, N, C, stream);
    for_rows("norm_backward", N, C, [&]<int VECTORS, bool BLOCK>(const Grid& grid) {
        launch("norm_backward", norm_backward_kernel<VECTORS, BLOCK>, grid, stream, dx, dout, out, rstd, N, C, kind == Norm::layer_norm);
    });
}
