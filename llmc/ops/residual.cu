// The residual stream on CUDA. A warp holds a row in registers, or a block where the row is long; bound by memory: each element
// is read once and written once. Sums over all rows add up one sum a row, in double.
#include "llmc/ops/residual.h"
#include "llmc/device/cuda_common.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/rms_norm.cuh"

// ------------------------------------------------------------------------------------------------------------- elementwise add

static constexpr int ADD_THREADS = 256, ADD_VECTORS = 2;   // vectors of each tensor that a thread loads before it stores

__global__ void __launch_bounds__(ADD_THREADS) residual_add_kernel(floatX* x, const floatX* branch, int64_t vectors) {
    const int64_t first = int64_t{blockIdx.x} * ADD_VECTORS * ADD_THREADS + threadIdx.x;
    Packed x_pieces[ADD_VECTORS], branch_pieces[ADD_VECTORS];
#pragma unroll
    for (int i = 0; i < ADD_VECTORS; i++) {
        const int64_t at = first + i * ADD_THREADS;
        x_pieces[i] = at < vectors ? load_packed(x + at * VECTOR) : Packed{};
        branch_pieces[i] = at < vectors ? load_packed(branch + at * VECTOR) : Packed{};
    }
#pragma unroll
    for (int i = 0; i < ADD_VECTORS; i++) {
        const int64_t at = first + i * ADD_THREADS;
        float a[VECTOR], b[VECTOR];
        unpack(a, x_pieces[i]);
        unpack(b, branch_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) a[k] += b[k];
        if (at < vectors) store(x + at * VECTOR, a);
    }
}

// ------------------------------------------------------------------------------------------------------------------ rows

template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>)
add_norm_forward_kernel(floatX* h, float* rstd, floatX* x, const floatX* branch, int64_t N, int C, float scale, float eps) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed x_pieces[VECTORS];
    row.load(x_pieces, x + n * C);
    if (branch) {
        Packed branch_pieces[VECTORS];
        row.load(branch_pieces, branch + n * C);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            float a[VECTOR], b[VECTOR];
            unpack(a, x_pieces[i]);
            unpack(b, branch_pieces[i]);
#pragma unroll
            for (int k = 0; k < VECTOR; k++) a[k] += scale * b[k];
            x_pieces[i] = pack(a);
        }
        row.store(x + n * C, x_pieces);
    }
    rms_norm_row(h + n * C, rstd + n, x_pieces, row, eps);
}

template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>)
mix_norm_forward_kernel(floatX* h, float* rstd, floatX* prev, floatX* x, const floatX* branch, const floatX* x0,
                                        const float* resid, const float* skip, int64_t N, int C, float eps) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed x_pieces[VECTORS], x0_pieces[VECTORS];
    row.load(x_pieces, x + n * C);
    row.load(x0_pieces, x0 + n * C);
    if (branch) {
        Packed branch_pieces[VECTORS];
        row.load(branch_pieces, branch + n * C);
#pragma unroll
        for (int i = 0; i < VECTORS; i++) {
            float a[VECTOR], b[VECTOR];
            unpack(a, x_pieces[i]);
            unpack(b, branch_pieces[i]);
#pragma unroll
            for (int k = 0; k < VECTOR; k++) a[k] += b[k];
            x_pieces[i] = pack(a);
        }
    }
    row.store(prev + n * C, x_pieces);
    const float r = *resid, s = *skip;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float a[VECTOR], b[VECTOR];
        unpack(a, x_pieces[i]);
        unpack(b, x0_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) a[k] = r * a[k] + s * b[k];
        x_pieces[i] = pack(a);
    }
    row.store(x + n * C, x_pieces);
    rms_norm_row(h + n * C, rstd + n, x_pieces, row, eps);
}

/// mean_c(dh h): what the gradient of the norm, rstd * (dh - h * mean), needs of the whole row.
template <int VECTORS, bool BLOCK>
__device__ float mean_product(const Packed (&dh)[VECTORS], const Packed (&h)[VECTORS], const Row<VECTORS, BLOCK>& row) {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float a[VECTOR], b[VECTOR];
        unpack(a, dh[i]);
        unpack(b, h[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) sum += a[k] * b[k];
    }
    return row.sum(sum) / static_cast<float>(row.C);
}

/// g = piece i of dx, to which the gradient of the norm is added.
template <int VECTORS>
__device__ void add_norm_gradient(float (&g)[VECTOR], const Packed (&dx)[VECTORS], const Packed (&dh)[VECTORS], const Packed (&h)[VECTORS], int i,
                                  float mean, float rstd) {
    float dh_values[VECTOR], h_values[VECTOR];
    unpack(g, dx[i]);
    unpack(dh_values, dh[i]);
    unpack(h_values, h[i]);
#pragma unroll
    for (int k = 0; k < VECTOR; k++) g[k] += rstd * (dh_values[k] - h_values[k] * mean);
}

template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>)
add_norm_backward_kernel(floatX* dx, floatX* dbranch, const floatX* dh, const floatX* h, const float* rstd, int64_t N, int C, float scale) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed dx_pieces[VECTORS], dh_pieces[VECTORS], h_pieces[VECTORS];
    row.load(dh_pieces, dh + n * C);
    row.load(h_pieces, h + n * C);
    row.load(dx_pieces, dx + n * C);
    const float r = rstd[n];
    const float mean = mean_product(dh_pieces, h_pieces, row);
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float g[VECTOR];
        add_norm_gradient(g, dx_pieces, dh_pieces, h_pieces, i, mean, r);
        dx_pieces[i] = pack(g);
    }
    row.store(dx + n * C, dx_pieces);
    if (!dbranch) return;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float g[VECTOR];
        unpack(g, dx_pieces[i]);
        for (float& element : g) element *= scale;
        dx_pieces[i] = pack(g);
    }
    row.store(dbranch + n * C, dx_pieces);
}

/// row_sums (2, N): each row's share of dresid and of dskip.
template <int VECTORS, bool BLOCK>
__global__ void __launch_bounds__(ROW_BLOCK<BLOCK>)
mix_norm_backward_kernel(floatX* dx, floatX* dx0, float* row_sums, const floatX* dh, const floatX* h, const float* rstd,
                                         const floatX* prev, const floatX* x0, const float* resid, const float* skip, int64_t N, int C) {
    const Row<VECTORS, BLOCK> row(C);
    const int64_t n = row.index();
    if (n >= N) return;
    Packed dx_pieces[VECTORS], dh_pieces[VECTORS], h_pieces[VECTORS], dx0_pieces[VECTORS], prev_pieces[VECTORS], x0_pieces[VECTORS];
    row.load(dh_pieces, dh + n * C);
    row.load(h_pieces, h + n * C);
    row.load(dx_pieces, dx + n * C);
    row.load(dx0_pieces, dx0 + n * C);
    row.load(prev_pieces, prev + n * C);
    row.load(x0_pieces, x0 + n * C);
    const float r = *resid, s = *skip, norm_r = rstd[n];
    const float mean = mean_product(dh_pieces, h_pieces, row);

    float resid_sum = 0, skip_sum = 0;
#pragma unroll
    for (int i = 0; i < VECTORS; i++) {
        float g[VECTOR], dx0_values[VECTOR], prev_values[VECTOR], x0_values[VECTOR];
        add_norm_gradient(g, dx_pieces, dh_pieces, h_pieces, i, mean, norm_r);
        unpack(dx0_values, dx0_pieces[i]);
        unpack(prev_values, prev_pieces[i]);
        unpack(x0_values, x0_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) {
            resid_sum += g[k] * prev_values[k];
            skip_sum += g[k] * x0_values[k];
            dx0_values[k] += s * g[k];
            g[k] *= r;
        }
        if (row.at(i) < C) {
            store(dx0 + n * C + row.at(i), dx0_values);
            store(dx + n * C + row.at(i), g);
        }
    }
    resid_sum = row.sum(resid_sum);
    skip_sum = row.sum(skip_sum);
    if (row.thread == 0) {
        row_sums[n] = resid_sum;
        row_sums[N + n] = skip_sum;
    }
}

static constexpr int SUM_THREADS = 1024;

/// Block 0 adds up the first N of row_sums to *dresid, block 1 the others to *dskip.
__global__ void __launch_bounds__(SUM_THREADS) add_row_sums_kernel(float* dresid, float* dskip, const float* row_sums, int64_t N) {
    const float* mine = row_sums + blockIdx.x * N;
    double* sums = shared_memory<double>();
    double sum = 0;
#pragma unroll 16
    for (int64_t n = threadIdx.x; n < N; n += SUM_THREADS) sum += mine[n];
    sums[threadIdx.x] = sum;
    for (unsigned half = SUM_THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    if (threadIdx.x == 0) *(blockIdx.x == 0 ? dresid : dskip) += static_cast<float>(sums[0]);
}

// --------------------------------------------------------------------------------------------------------------- launchers

void residual_add(floatX* x, const floatX* branch, int64_t n, Stream stream) {
    require_elements("residual_add", n);
    require_aligned("residual_add", x, branch);
    const int64_t vectors = n / VECTOR;
    Grid grid{dim3(static_cast<unsigned>(ceil_div(vectors, ADD_VECTORS * ADD_THREADS))), dim3(ADD_THREADS)};
    launch("residual_add", residual_add_kernel, grid, stream, x, branch, vectors);
}

void add_norm_forward(floatX* h, float* rstd, floatX* x, const floatX* branch, int64_t N, int C, float scale, float eps, Stream stream) {
    require_rows("add_norm_forward", N, C);
    require_aligned("add_norm_forward", h, x, branch);
    for_rows("add_norm_forward", N, C, [&]<int VECTORS, bool BLOCK>(const Grid& grid) {
        launch("add_norm_forward", add_norm_forward_kernel<VECTORS, BLOCK>, grid, stream, h, rstd, x, branch, N, C, scale, eps);
    });
}

void add_norm_backward(floatX* dx, floatX* dbranch, const floatX* dh, const floatX* h, const float* rstd, int64_t N, int C,
                       float scale, Stream stream) {
    require_rows("add_norm_backward", N, C);
    require_aligned("add_norm_backward", dx, dbranch, dh, h);
    for_rows("add_norm_backward", N, C, [&]<int VECTORS, bool BLOCK>(const Grid& grid) {
        launch("add_norm_backward", add_norm_backward_kernel<VECTORS, BLOCK>, grid, stream, dx, dbranch, dh, h, rstd, N, C, scale);
    });
}

void mix_norm_forward(floatX* h, float* rstd, floatX* prev, floatX* x, const floatX* branch, const floatX* x0, const float* resid,
                      const float* skip, int64_t N, int C, float eps, Stream stream) {
    require_rows("mix_norm_forward", N, C);
    require_aligned("mix_norm_forward", h, prev, x, branch, x0);
    for_rows("mix_norm_forward", N, C, [&]<int VECTORS, bool BLOCK>(const Grid& grid) {
        launch("mix_norm_forward", mix_norm_forward_kernel<VECTORS, BLOCK>, grid, stream, h, rstd, prev, x, branch, x0, resid, skip, N, C, eps);
    });
}

void mix_norm_backward(floatX* dx, floatX* dx0, float* dresid, float* dskip, float* scratch, const floatX* dh, const floatX* h,
                       const float* rstd, const floatX* prev, const floatX* x0, const float* resid, const float* skip, int64_t N,
                       int C, Stream stream) {
    require_rows("mix_norm_backward", N, C);
    require_aligned("mix_norm_backward", dx, dx0, dh, h, prev, x0);
    for_rows("mix_norm_backward", N, C, [&]<int VECTORS, bool BLOCK>(const Grid& grid) {
        launch("mix_norm_backward", mix_norm_backward_kernel<VECTORS, BLOCK>, grid, stream, dx, dx0, scratch, dh, h, rstd, prev, x0, resid, skip, N, C);
    });
    Grid sums{dim3(2), dim3(SUM_THREADS), SUM_THREADS * sizeof(double)};
    launch("mix_norm_backward", add_row_sums_kernel, sums, stream, dresid, dskip, scratch, N);
}
