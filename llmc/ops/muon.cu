// Muon on CUDA: all matrices of a shape at once. One pass before the matmuls (momentum), one after them (the update), both bound by
// memory; five times three batched matmuls between, bound by operations. A second moment
// reads the result once more before the update, which then needs the sums of whole rows or columns.
//
// The matrix is never divided by its norm: the iteration is linear in x but for s, so x keeps its norm, s alone is scaled (by scale^2,
// in the matmul that makes it), and the update multiplies by scale = 1 / (|x| * safety + eps) at the end.
#include "llmc/ops/muon.h"
#include <algorithm>
#include <cmath>
#include "llmc/device/cuda_common.h"
#include "llmc/ops/checks.h"
#include "llmc/ops/matmul.h"

/// Limits of a batch, in matrices and in elements: enough to fill any device for several waves of blocks. More would be no faster and
/// take more scratch, up to 8 bytes an element.
static constexpr int MAX_MATRICES = 96;
static constexpr int64_t MAX_ELEMENTS = int64_t{64} << 20;

struct MuonMatrices {
    MuonTensor tensor[MAX_MATRICES];
};

/// How many matrices go in a batch: equal shares of `count`.
static int group_size(int count, int rows, int cols) {
    const int64_t most = std::clamp<int64_t>(MAX_ELEMENTS / (int64_t{rows} * cols), 1, MAX_MATRICES);
    return static_cast<int>(ceil_div(int64_t{count}, ceil_div(int64_t{count}, most)));
}

static constexpr int THREADS = 256, PARTS = 128;   // sums of squares that a matrix's norm is made of

// --------------------------------------------------------------------------------------------------------- before the matmuls

/// m = mu m + k g, x = k g + mu m, with k = 1 for a summed momentum and 1 - mu for an averaged one. Block (part, matrix): the elements
/// from part * size on, whose squares it adds up.
template <int WIDTH>
__global__ void __launch_bounds__(THREADS)
muon_momentum_kernel(floatX* x, float* squares, const __grid_constant__ MuonMatrices matrices, const MuonHyper* hyper, int64_t n, int64_t size,
                     bool averaged) {
    const float mu = hyper->momentum, k = averaged ? 1 - mu : 1;
    const MuonTensor& t = matrices.tensor[blockIdx.y];
    const int64_t begin = blockIdx.x * size, end = min(n, begin + size);
    float sum = 0;
#pragma unroll 2
    for (int64_t i = begin + int64_t{threadIdx.x} * WIDTH; i < end; i += THREADS * WIDTH) {
        float g[WIDTH], m[WIDTH];
        load(g, t.grad + i);
        load(m, t.momentum + i);
#pragma unroll
        for (int j = 0; j < WIDTH; j++) {
            m[j] = mu * m[j] + k * g[j];
            g[j] = k * g[j] + mu * m[j];
            sum += g[j] * g[j];
        }
        store(t.momentum + i, m);
        store(x + blockIdx.y * n + i, g);
    }
    sum = block_sum(sum, shared_memory<float>());
    if (threadIdx.x == 0) squares[blockIdx.y * PARTS + blockIdx.x] = sum;
}

/// scales = 1 / (norm * safety + eps) of each matrix, then their squares; the norm from PARTS sums of squares. A warp takes a matrix.
__global__ void muon_scale_kernel(float* scales, const float* squares, float safety, float eps) {
    double total = 0;
    for (int i = lane_of_thread(); i < PARTS; i += WARP) total += squares[blockIdx.x * PARTS + i];
#pragma unroll
    for (int distance = WARP / 2; distance > 0; distance /= 2) total += __shfl_xor_sync(ALL_LANES, total, distance);
    if (lane_of_thread() > 0) return;
    const double scale = 1 / (sqrt(total) * safety + eps);
    scales[blockIdx.x] = static_cast<float>(scale);
    scales[gridDim.x + blockIdx.x] = static_cast<float>(scale * scale);
}

// ---------------------------------------------------------------------------------------------------------- after the matmuls

template <int WIDTH>
__device__ inline void store_weights(const MuonTensor& t, int64_t i, const float (&w)[WIDTH]) {
    store(t.master + i, w);
    if (t.weight) store(t.weight + i, w);
}

/// sums (matrices, rows)  =  of x^2 over each row. A warp takes a row.
template <int WIDTH>
__global__ void __launch_bounds__(THREADS) muon_row_squares_kernel(float* sums, const floatX* x, int64_t all_rows, int cols) {
    const int64_t r = int64_t{blockIdx.x} * (THREADS / WARP) + warp_of_thread();
    if (r >= all_rows) return;
    float sum = 0;
    for (int c = lane_of_thread() * WIDTH; c < cols; c += WARP * WIDTH) {
        float v[WIDTH];
        load(v, x + r * cols + c);
        for (float element : v) sum += element * element;
    }
    sum = warp_sum(sum);
    if (lane_of_thread() == 0) sums[r] = sum;
}

/// sums (matrices, cols)  =  of x^2 over each column. Block (columns, matrix): a column a lane, a part of the rows a warp.
__global__ void __launch_bounds__(THREADS) muon_column_squares_kernel(float* sums, const floatX* x, int rows, int cols) {
    float* parts = shared_memory<float>();   // (warps, 32)
    const int c = static_cast<int>(blockIdx.x) * WARP + lane_of_thread();
    const floatX* matrix = x + int64_t{blockIdx.y} * rows * cols;
    float sum = 0;
    if (c < cols) {
#pragma unroll 8
        for (int64_t r = warp_of_thread(); r < rows; r += THREADS / WARP) {
            const float v = to_float(matrix[r * cols + c]);
            sum += v * v;
        }
    }
    parts[threadIdx.x] = sum;
    __syncthreads();
    if (warp_of_thread() > 0 || c >= cols) return;
    for (int i = 1; i < THREADS / WARP; i++) sum += parts[i * WARP + lane_of_thread()];
    sums[int64_t{blockIdx.y} * cols + c] = sum;
}

static constexpr int MOMENT_THREADS = 1024;

/// NorMuon: each row (column of a wide matrix) is divided by the root of its second moment, and the whole keeps its norm.
/// sums (matrices, lines): the squares of each line of x on entry, the factor of x's line on return. A block takes a matrix.
__global__ void __launch_bounds__(MOMENT_THREADS)
muon_second_moment_kernel(float* sums, const float* scales, const __grid_constant__ MuonMatrices matrices, float beta2, int lines, int length) {
    const float scale = scales[blockIdx.x], scale_squared = scales[gridDim.x + blockIdx.x];
    float* scratch = shared_memory<float>();
    float *second = matrices.tensor[blockIdx.x].second, *mine = sums + int64_t{blockIdx.x} * lines;
    float before = 0, after = 0;
    for (int i = static_cast<int>(threadIdx.x); i < lines; i += MOMENT_THREADS) {
        const float squares = mine[i] * scale_squared;
        const float moment = beta2 * second[i] + (1 - beta2) * (squares / static_cast<float>(length));
        const float factor = rsqrtf(fmaxf(moment, 1e-10f));
        second[i] = moment;
        before += squares;
        after += squares * factor * factor;
        mine[i] = factor;
    }
    before = block_sum(before, scratch);
    after = block_sum(after, scratch);
    const float keep = scale * sqrtf(before) / fmaxf(sqrtf(after), 1e-10f);
    for (int i = static_cast<int>(threadIdx.x); i < lines; i += MOMENT_THREADS) mine[i] *= keep;
}

/// What x is multiplied by: one factor a matrix, or one a line (a row or a column), which includes that of the matrix.
enum class Factors { matrix, rows, columns };

/// u = x * its factor; w -= lr u + weight decay, lr = hyper's * shape_scale.
template <int WIDTH, Factors FACTORS, MuonDecay DECAY>
__global__ void __launch_bounds__(THREADS)
muon_move_kernel(const floatX* x, const float* factors, const __grid_constant__ MuonMatrices matrices, const MuonHyper* hyper, int64_t n, int rows, int cols,
                 float shape_scale) {
    float lr = hyper->lr * shape_scale;
    const float decay = lr * hyper->weight_decay;
    const MuonTensor& t = matrices.tensor[blockIdx.y];
    const int64_t i = (int64_t{blockIdx.x} * THREADS + threadIdx.x) * WIDTH;
    if (i >= n) return;
    float w[WIDTH], u[WIDTH], factor[WIDTH];
    load(w, t.master + i);
    load(u, x + blockIdx.y * n + i);
    if constexpr (FACTORS == Factors::matrix) {
        lr *= factors[blockIdx.y];
    } else if constexpr (FACTORS == Factors::rows) {
        for (float& f : factor) f = factors[int64_t{blockIdx.y} * rows + i / cols];   // WIDTH elements lie in one row
    } else {
        load(factor, factors + int64_t{blockIdx.y} * cols + i % cols);
    }
#pragma unroll
    for (int k = 0; k < WIDTH; k++) {
        float step = u[k];
        if constexpr (FACTORS != Factors::matrix) step *= factor[k];
        if constexpr (DECAY == MuonDecay::none) w[k] -= lr * step;
        else if constexpr (DECAY == MuonDecay::all) w[k] -= lr * step + decay * w[k];
        else w[k] -= lr * step + (step * w[k] >= 0 ? decay * w[k] : 0.0f);
    }
    store_weights(t, i, w);
}

// --------------------------------------------------------------------------------------------------------------- launchers

/// Pieces of scratch for `count` matrices of a shape.
struct MuonWorkspace {
    floatX *x, *next;           // (count, rows, cols)
    floatX *gram, *polynomial;  // (count, m, m), m = min(rows, cols)
    float* squares;             // (count, PARTS)
    float* scales;              // (2, count) of each matrix, and their squares
    float* lines;               // (count, max(rows, cols))
};

// Cuts `scratch` into a workspace; returns its size.
static size_t cut(int count, int rows, int cols, void* scratch, MuonWorkspace* w) {
    const size_t n = static_cast<size_t>(count) * rows * cols, m = static_cast<size_t>(std::min(rows, cols));
    size_t size = 0;
    auto take = [&](size_t bytes) {
        void* piece = scratch ? static_cast<char*>(scratch) + size : nullptr;
        size += (bytes + 255) / 256 * 256;
        return piece;
    };
    w->x = static_cast<floatX*>(take(n * sizeof(floatX)));
    w->next = static_cast<floatX*>(take(n * sizeof(floatX)));
    w->gram = static_cast<floatX*>(take(count * m * m * sizeof(floatX)));
    w->polynomial = static_cast<floatX*>(take(count * m * m * sizeof(floatX)));
    w->squares = static_cast<float*>(take(static_cast<size_t>(count) * PARTS * sizeof(float)));
    w->scales = static_cast<float*>(take(2 * static_cast<size_t>(count) * sizeof(float)));
    w->lines = static_cast<float*>(take(static_cast<size_t>(count) * std::max(rows, cols) * sizeof(float)));
    return size;
}

size_t muon_scratch(int count, int rows, int cols) {
    require_matrices("muon_scratch", count, rows, cols);
    MuonWorkspace w;
    return cut(group_size(count, rows, cols), rows, cols, nullptr, &w);
}

// x = a x + (b s + c s s) x with s = x x^T; for a tall x the same from the other side, with s = x^T x.
static void orthogonalize(MuonWorkspace& w, int count, int rows, int cols, const MuonSteps& steps, Stream stream) {
    const bool tall = rows > cols;
    const int64_t m = std::min(rows, cols);
    for (const MuonStep& step : steps) {
        matmul_symmetric(w.gram, w.x, nullptr, w.scales + count, count, m, tall ? rows : cols, tall, 1, 0, stream);
        matmul_symmetric(w.polynomial, w.gram, w.gram, nullptr, count, m, m, false, step.c, step.b, stream);
        matmul(w.next, tall ? w.x : w.polynomial, tall ? w.polynomial : w.x, w.x, count, rows, cols, m, false, false, 1, step.a, stream);
        std::swap(w.x, w.next);
    }
}

/// A thread for `width` of the n elements of each of `count` matrices.
static Grid grid_for(int64_t n, int width, int count) {
    return {dim3(static_cast<unsigned>(ceil_div(n, width * THREADS)), static_cast<unsigned>(count)), dim3(THREADS)};
}

template <int WIDTH, Factors FACTORS>
static auto mover(MuonDecay decay) {
    return decay == MuonDecay::none  ? muon_move_kernel<WIDTH, FACTORS, MuonDecay::none>
           : decay == MuonDecay::all ? muon_move_kernel<WIDTH, FACTORS, MuonDecay::all>
                                     : muon_move_kernel<WIDTH, FACTORS, MuonDecay::cautious>;
}

template <int WIDTH>
static void update(const MuonMatrices& matrices, void* scratch, const MuonHyper* hyper, int count, int rows, int cols, const MuonRule& rule,
                   Stream stream) {
    const char* op = "muon_update";
    const bool by_row = rows >= cols;
    const int64_t n = int64_t{rows} * cols, piece = ceil_div(ceil_div(n, PARTS), WIDTH) * WIDTH;
    MuonWorkspace w;
    cut(count, rows, cols, scratch, &w);

    const Grid pieces{dim3(PARTS, static_cast<unsigned>(count)), dim3(THREADS), WARP * sizeof(float)}, vectors = grid_for(n, WIDTH, count);
    launch(op, muon_momentum_kernel<WIDTH>, pieces, stream, w.x, w.squares, matrices, hyper, n, piece,
           rule.averaged_momentum);
    launch(op, muon_scale_kernel, {dim3(static_cast<unsigned>(count)), dim3(WARP)}, stream, w.scales, w.squares, rule.safety, rule.eps);
    orthogonalize(w, count, rows, cols, rule.steps, stream);
    const float scale = muon_scale(rule.scale, rows, cols);
    if (rule.beta2 == 0) {
        launch(op, mover<WIDTH, Factors::matrix>(rule.decay), vectors, stream, w.x, w.scales, matrices, hyper, n, rows, cols, scale);
        return;
    }

    if (by_row)
        launch(op, muon_row_squares_kernel<WIDTH>, {dim3(static_cast<unsigned>(ceil_div(count * rows, THREADS / WARP))), dim3(THREADS)}, stream, w.lines,
               w.x, int64_t{count} * rows, cols);
    else
        launch(op, muon_column_squares_kernel,
               {dim3(static_cast<unsigned>(ceil_div(cols, WARP)), static_cast<unsigned>(count)), dim3(THREADS), THREADS * sizeof(float)}, stream, w.lines,
               w.x, rows, cols);
    launch(op, muon_second_moment_kernel, {dim3(static_cast<unsigned>(count)), dim3(MOMENT_THREADS), WARP * sizeof(float)}, stream, w.lines, w.scales,
           matrices, rule.beta2, by_row ? rows : cols, by_row ? cols : rows);
    launch(op, by_row ? mover<WIDTH, Factors::rows>(rule.decay) : mover<WIDTH, Factors::columns>(rule.decay), vectors, stream, w.x, w.lines, matrices,
           hyper, n, rows, cols, scale);
}

void muon_update(const MuonTensor* tensors, void* scratch, const MuonHyper* hyper, int count, int rows, int cols, const MuonRule& rule, Stream stream) {
    require_matrices("muon_update", count, rows, cols);
    require_second_moments("muon_update", tensors, count, rule);
    const int group = group_size(count, rows, cols);
    for (int begin = 0; begin < count; begin += group) {
        MuonMatrices matrices;
        const int these = std::min(group, count - begin);
        for (int i = 0; i < these; i++) {
            const MuonTensor& t = matrices.tensor[i] = tensors[begin + i];
            require_aligned("muon_update", t.master, t.weight, t.grad, t.momentum);
        }
        auto run = cols % 8 == 0 ? update<8> : update<1>;
        run(matrices, scratch, hyper, these, rows, cols, rule, stream);
    }
}
