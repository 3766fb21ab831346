// Matmuls on CUDA, by cuBLASLt. Large ones are bound by the tensor cores, those with a short side by the bytes of their operands. A
// matrix times its own transpose has a kernel here: a block takes one of the tiles on and below the diagonal and stores it twice.
#include <cublasLt.h>
#include <unordered_map>
#include <vector>
#include "llmc/ops/matmul.h"
#include "llmc/device/cuda_common.h"
#include "llmc/device/device.h"
#include "llmc/device/memory.h"
#include "llmc/ops/checks.h"

static void blas_check(cublasStatus_t status, const char* op) {
    if (status != CUBLAS_STATUS_SUCCESS)
        throw std::runtime_error(concat(op, ": cuBLASLt says: ", cublasLtGetStatusString(status), " (", cublasLtGetStatusName(status), ")"));
}

// out (M, N) = alpha * op(a) op(b) + beta * c, `batch` times: all that the choice of a kernel depends on.
struct LtMatmul {
    int64_t batch = 1, kernel_for = 1, M, N, K;    // the kernel is the one chosen for a batch of `kernel_for`
    bool transpose_a = false, transpose_b = false;
    cudaDataType_t out_type = sizeof(floatX) == 4 ? CUDA_R_32F : CUDA_R_16BF;
    uint32_t out_alignment = 0, a_alignment = 0, b_alignment = 0, c_alignment = 0;     // bytes, filled in by run()

    bool operator==(const LtMatmul&) const = default;
};

struct LtMatmulHash {
    size_t operator()(const LtMatmul& p) const {
        uint64_t hash = 0;
        for (int64_t field : {p.batch, p.kernel_for, p.M, p.N, p.K, static_cast<int64_t>(p.transpose_a), static_cast<int64_t>(p.transpose_b),
                              static_cast<int64_t>(p.out_type), static_cast<int64_t>(p.out_alignment),
                              static_cast<int64_t>(p.a_alignment), static_cast<int64_t>(p.b_alignment),
                              static_cast<int64_t>(p.c_alignment)})
            hash = (hash ^ static_cast<uint64_t>(field)) * 0x9e3779b97f4a7c15u, hash ^= hash >> 29;
        return hash;
    }
};

// The largest power of two up to 128 that divides the address, and the addresses a step further each. Kernels ask for 16; 128 is what all
// of a model's tensors have, so that the same matmul in another layer never gets another kernel, whose sums would be rounded differently.
static uint32_t alignment(const void* pointer, size_t step) {
    uintptr_t bits = reinterpret_cast<uintptr_t>(pointer) | step | 128;
    return static_cast<uint32_t>(bits & -bits);
}

static void set_batch(cublasLtMatrixLayout_t matrix, int64_t batch) {
    const int32_t count = static_cast<int32_t>(batch);
    blas_check(cublasLtMatrixLayoutSetAttribute(matrix, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count, sizeof count), "matmul");
}

// cuBLASLt is column-major: a row-major matrix (rows, cols) is the matrix (cols, rows) to it.
static cublasLtMatrixLayout_t layout(int64_t batch, int64_t rows, int64_t cols, cudaDataType_t type) {
    cublasLtMatrixLayout_t matrix;
    blas_check(cublasLtMatrixLayoutCreate(&matrix, type, static_cast<uint64_t>(cols), static_cast<uint64_t>(rows), cols), "matmul");
    const int64_t stride = rows * cols;
    set_batch(matrix, batch);
    blas_check(cublasLtMatrixLayoutSetAttribute(matrix, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride), "matmul");
    return matrix;
}

// A matmul as cuBLASLt wants it described, and the kernel it chose. Kept until the program ends.
struct LtPlan {
    cublasLtMatmulDesc_t desc;
    cublasLtMatrixLayout_t a, b, out;
    cublasLtMatmulAlgo_t kernel;
    int64_t calls = 1;    // one for the whole batch, or, where the kernel does not take the batch, one for each matmul
};

// One for each thread, because a matmul uses the workspace until it is done, and all of a thread's run on one stream. A matmul seen
// for the first time asks for its plan, the first of a thread also allocates; seen again it only launches, so that a step which has
// run once can be captured in a graph by the same thread.
struct Library {
    cublasLtHandle_t handle;
    void* workspace;
    std::unordered_map<LtMatmul, LtPlan, LtMatmulHash> plans;

    Library() : workspace(device_alloc(MATMUL_WORKSPACE)) { blas_check(cublasLtCreate(&handle), "matmul"); }
};

static Library& library() {
    thread_local Library* mine = new Library;     // never deleted: the device may be gone before the thread's last destructor
    return *mine;
}

// cuBLASLt computes (out^T) = op(b)^T op(a)^T, so its first operand is our second.
static LtPlan choose(cublasLtHandle_t handle, const LtMatmul& p) {
    const cudaDataType_t in_type = sizeof(floatX) == 4 ? CUDA_R_32F : CUDA_R_16BF;
    LtPlan plan{};
    // COMPUTE_32F is fp32 sums, and never TF32 (that is COMPUTE_32F_FAST_TF32).
    blas_check(cublasLtMatmulDescCreate(&plan.desc, CUBLAS_COMPUTE_32F, CUDA_R_32F), "matmul");
    const cublasOperation_t op_a = p.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N, op_b = p.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    blas_check(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_TRANSA, &op_b, sizeof op_b), "matmul");
    blas_check(cublasLtMatmulDescSetAttribute(plan.desc, CUBLASLT_MATMUL_DESC_TRANSB, &op_a, sizeof op_a), "matmul");
    plan.a = p.transpose_a ? layout(p.kernel_for, p.K, p.M, in_type) : layout(p.kernel_for, p.M, p.K, in_type);
    plan.b = p.transpose_b ? layout(p.kernel_for, p.N, p.K, in_type) : layout(p.kernel_for, p.K, p.N, in_type);
    plan.out = layout(p.kernel_for, p.M, p.N, p.out_type);

    cublasLtMatmulPreference_t preference;
    blas_check(cublasLtMatmulPreferenceCreate(&preference), "matmul");
    auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, const auto& value) {
        blas_check(cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value, sizeof value), "matmul");
    };
    // Split K is allowed, but the parts are summed in fp32 in the workspace, in a fixed order: the same bytes at every run.
    const uint32_t splits = CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE;
    prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK, splits);
    prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, MATMUL_WORKSPACE);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, p.b_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, p.a_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, p.c_alignment);
    prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, p.out_alignment);

    cublasLtMatmulHeuristicResult_t best{};
    int found = 0;
    cublasStatus_t status =
        cublasLtMatmulAlgoGetHeuristic(handle, plan.desc, plan.b, plan.a, plan.out, plan.out, preference, 1, &best, &found);
    cublasLtMatmulPreferenceDestroy(preference);
    if (status == CUBLAS_STATUS_SUCCESS && found == 0) status = CUBLAS_STATUS_NOT_SUPPORTED;
    if (status != CUBLAS_STATUS_SUCCESS)
        throw std::runtime_error(concat("matmul: cuBLASLt has no kernel for M ", p.M, ", N ", p.N, ", K ", p.K, ", batch ", p.kernel_for, ": ",
                                        cublasLtGetStatusString(status)));
    plan.kernel = best.algo;
    if (p.batch == p.kernel_for) return plan;
    auto takes = [&](int64_t batch) {
        for (cublasLtMatrixLayout_t matrix : {plan.a, plan.b, plan.out}) set_batch(matrix, batch);
        cublasLtMatmulHeuristicResult_t found_it{};
        status = cublasLtMatmulAlgoCheck(handle, plan.desc, plan.b, plan.a, plan.out, plan.out, &plan.kernel, &found_it);
        return status == CUBLAS_STATUS_SUCCESS && found_it.workspaceSize <= MATMUL_WORKSPACE;
    };
    if (takes(p.batch)) return plan;
    plan.calls = p.batch;
    if (takes(1)) return plan;
    throw std::runtime_error(concat("matmul: cuBLASLt's kernel for M ", p.M, ", N ", p.N, ", K ", p.K, ", batch ", p.kernel_for, " does not take one matmul: ",
                                    cublasLtGetStatusString(status)));
}

// c is read only where beta is not 0.
static void run(const char* op, void* out, const floatX* a, const floatX* b, const void* c, LtMatmul p, float alpha, float beta, Stream stream) {
    Range range(op);
    if (beta == 0) c = out;
    // Bytes from a matrix to the next one of a batch.
    const size_t out_step = static_cast<size_t>(p.M * p.N) * (p.out_type == CUDA_R_32F ? sizeof(float) : sizeof(floatX)),
                 a_step = static_cast<size_t>(p.M * p.K) * sizeof(floatX), b_step = static_cast<size_t>(p.K * p.N) * sizeof(floatX);
    const bool several = p.kernel_for > 1;
    p.out_alignment = alignment(out, several ? out_step : 0);
    p.a_alignment = alignment(a, several ? a_step : 0);
    p.b_alignment = alignment(b, several ? b_step : 0);
    p.c_alignment = alignment(c, several ? out_step : 0);
    Library& blas = library();
    auto found = blas.plans.find(p);
    if (found == blas.plans.end()) found = blas.plans.emplace(p, choose(blas.handle, p)).first;
    const LtPlan& plan = found->second;
    auto at = [](auto* first, size_t bytes) { return reinterpret_cast<decltype(first)>(reinterpret_cast<uintptr_t>(first) + bytes); };
    for (size_t i = 0; i < static_cast<size_t>(plan.calls); i++)
        blas_check(cublasLtMatmul(blas.handle, plan.desc, &alpha, at(b, i * b_step), plan.b, at(a, i * a_step), plan.a, &beta, at(c, i * out_step), plan.out,
                                  at(out, i * out_step), plan.out, &plan.kernel, blas.workspace, MATMUL_WORKSPACE, cuda_stream(stream)),
                   op);
}

// For batched matmuls, as Muon's are. The batch must not choose the kernel: one of several processes has fewer matrices of a shape than a
// single process, and another kernel rounds its sums differently. So the kernel is the one for a batch of eight, whatever the batch: about
// what a process has, enough to fill a device, and (unlike the one for a single matmul) a choice that knows how far apart the matrices lie.
static constexpr int64_t KERNEL_FOR = 8;

void matmul_forward(floatX* out, const floatX* x, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream stream) {
    require_matmul("matmul_forward", N, IC, OC);
    run("matmul_forward", out, x, w, nullptr, {.M = N, .N = OC, .K = IC, .transpose_b = true}, 1, 0, stream);
}

void matmul_backward_input(floatX* dx, const floatX* dout, const floatX* w, int64_t N, int64_t IC, int64_t OC, Stream stream) {
    require_matmul("matmul_backward_input", N, IC, OC);
    run("matmul_backward_input", dx, dout, w, nullptr, {.M = N, .N = IC, .K = OC}, 1, 0, stream);
}

void matmul_backward_weight(float* dw, const floatX* dout, const floatX* x, int64_t N, int64_t IC, int64_t OC, Stream stream) {
    require_matmul("matmul_backward_weight", N, IC, OC);
    run("matmul_backward_weight", dw, dout, x, dw, {.M = OC, .N = IC, .K = N, .transpose_a = true, .out_type = CUDA_R_32F}, 1, 1, stream);
}

void matmul(floatX* out, const floatX* a, const floatX* b, const floatX* c, int64_t batch, int64_t M, int64_t N, int64_t K, bool transpose_a,
            bool transpose_b, float alpha, float beta, Stream stream) {
    require_batched_matmul("matmul", batch, M, N, K, out, c, beta);
    run("matmul", out, a, b, c, {.batch = batch, .kernel_for = KERNEL_FOR, .M = M, .N = N, .K = K, .transpose_a = transpose_a, .transpose_b = transpose_b}, alpha, beta, stream);
}

// ------------------------------------------------------------------------------------------------------- symmetric matmuls

#ifndef PRECISION_FP32
static constexpr int TILE = 128, STEP = 32, STAGES = 4, TILE_THREADS = 128;   // of a block; each of its 4 warps takes 64 x 64

/// STEP elements along K of TILE rows of op(x), in shared memory, in x's own order: (TILE, STEP), or (STEP, TILE) where x is transposed.
/// The 16-byte chunks of a line are permuted so that the eight lines that ldmatrix reads at once lie in different banks.
template <bool TRANSPOSED>
struct Piece {
    static constexpr int CHUNKS = (TRANSPOSED ? TILE : STEP) / 8;   // of a line
    bf16 elements[TILE * STEP];

    __device__ static int at(int line, int chunk) { return 8 * (line * CHUNKS + (chunk ^ (TRANSPOSED ? line % 8 : line / 2 % 4))); }

    /// Starts to copy rows row.. and columns k.. of op(x) (M, K); zeros beyond its end.
    __device__ void copy(const bf16* x, int row, int k, int M, int K) {
#pragma unroll
        for (int i = 0; i < TILE * STEP / 8 / TILE_THREADS; i++) {
            const int mine = i * TILE_THREADS + static_cast<int>(threadIdx.x), line = mine / CHUNKS, chunk = mine % CHUNKS;
            const int m = row + (TRANSPOSED ? 8 * chunk : line), n = k + (TRANSPOSED ? line : 8 * chunk);
            const bool there = m < M && n < K;
            copy_async(elements + at(line, chunk), there ? x + (TRANSPOSED ? int64_t{n} * M + m : int64_t{m} * K + n) : x, there);
        }
    }

    /// Rows row.. and columns k.. of the piece, 16 x 16, as mma's a; r[0], r[2] and r[1], r[3] are the b of either eight rows.
    __device__ void fragment(uint32_t (&r)[4], int row, int k) const {
        row += lane_of_thread() / 8 % 2 * 8;
        k += lane_of_thread() / 16 * 8;
        if constexpr (TRANSPOSED) ldmatrix_x4_trans(r, elements + at(k + lane_of_thread() % 8, row / 8));
        else ldmatrix_x4(r, elements + at(row + lane_of_thread() % 8, k / 8));
    }
};

template <bool TRANSPOSED>
struct SymmetricShared {
    Piece<TRANSPOSED> a[STAGES], b[STAGES];
};

/// Where an element of the finished tile lies in shared memory: eight rows one after another, and eight of the pairs of rows that
/// the mirrored store gathers, begin in different banks.
__device__ inline int tile_at(int row, int column) { return row * (TILE + 8) + row / 8 * 16 + column; }

/// Tiles (row, column) with column <= row of matrix blockIdx.y, numbered (0, 0), (1, 0), (1, 1), (2, 0), ...
template <bool TRANSPOSED>
__global__ void __launch_bounds__(TILE_THREADS, 2)
matmul_symmetric_kernel(bf16* out, const bf16* x, const bf16* c, const float* scale, int M, int K, float alpha, float beta) {
    SymmetricShared<TRANSPOSED>& shared = *shared_memory<SymmetricShared<TRANSPOSED>>();
    int tile_row = 0, tile_column = static_cast<int>(blockIdx.x);
    while (tile_column > tile_row) tile_column -= ++tile_row;
    const int row = tile_row * TILE, column = tile_column * TILE, lane = lane_of_thread(), warp = warp_of_thread();
    const int warp_row = warp / 2 * 64, warp_column = warp % 2 * 64;   // in the tile
    x += int64_t{blockIdx.y} * M * K;
    const int64_t matrix = int64_t{blockIdx.y} * M * M;

    Piece<TRANSPOSED>* const b_pieces = row == column ? shared.a : shared.b;
    const int steps = (K + STEP - 1) / STEP;
    auto copy = [&](int step) {
        if (step < steps) {
            shared.a[step % STAGES].copy(x, row, step * STEP, M, K);
            if (row != column) shared.b[step % STAGES].copy(x, column, step * STEP, M, K);
        }
        copy_async_commit();
    };
    for (int step = 0; step < STAGES - 1; step++) copy(step);
    float sum[4][8][4] = {};
    for (int step = 0; step < steps; step++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads();   // this step's pieces are there, and all threads are done with those of the step before
        copy(step + STAGES - 1);
#pragma unroll
        for (int k = 0; k < STEP; k += 16) {
            uint32_t a[4][4], b[4][4];
#pragma unroll
            for (int i = 0; i < 4; i++) {
                shared.a[step % STAGES].fragment(a[i], warp_row + 16 * i, k);
                b_pieces[step % STAGES].fragment(b[i], warp_column + 16 * i, k);
            }
#pragma unroll
            for (int i = 0; i < 4; i++)
#pragma unroll
                for (int j = 0; j < 4; j++) {
                    mma_m16n8k16(sum[i][2 * j], a[i], {b[j][0], b[j][2]});
                    mma_m16n8k16(sum[i][2 * j + 1], a[i], {b[j][1], b[j][3]});
                }
        }
    }
    __syncthreads();

    bf16* tile = shared_memory<bf16>();
    const float factor = scale ? scale[blockIdx.y] : 1;
#pragma unroll
    for (int i = 0; i < 4; i++)
#pragma unroll
        for (int half = 0; half < 2; half++)
#pragma unroll
            for (int j = 0; j < 8; j++) {
                const int r = warp_row + 16 * i + 8 * half + lane / 4, n = warp_column + 8 * j + lane % 4 * 2;
                float low = alpha * sum[i][j][2 * half], high = alpha * sum[i][j][2 * half + 1];
                if (beta != 0 && row + r < M && column + n < M) {
                    float c_low, c_high;
                    unpack_bf16(c_low, c_high, *reinterpret_cast<const uint32_t*>(c + matrix + int64_t{row + r} * M + column + n));
                    low += beta * c_low;
                    high += beta * c_high;
                }
                *reinterpret_cast<uint32_t*>(tile + tile_at(r, n)) = pack_bf16(factor * low, factor * high);
            }
    __syncthreads();

#pragma unroll 4
    for (int i = static_cast<int>(threadIdx.x); i < TILE * TILE / 8; i += TILE_THREADS) {
        const int r = i / (TILE / 8), n = i % (TILE / 8) * 8;
        if (row + r < M && column + n < M) store_packed(out + matrix + int64_t{row + r} * M + column + n, load_packed(tile + tile_at(r, n)));
    }
    if (tile_row == tile_column) return;
    // Lane 8 i + j gives ldmatrix row j of matrix i; taken from these rows, each lane gets a column of eight.
    const int gathered = lane % 8 / 2 * 8 + lane / 8 * 2 + lane % 2;
#pragma unroll 4
    for (int i = warp; i < TILE / 32 * TILE / 8; i += TILE_THREADS / WARP) {
        uint32_t r[4];
        const int from = i % (TILE / 32) * 32, n = i / (TILE / 32) * 8;
        ldmatrix_x4_trans(r, tile + tile_at(from + gathered, n));
        const int to_row = column + n + lane / 4, to_column = row + from + lane % 4 * 8;
        if (to_row < M && to_column < M) store_packed(out + matrix + int64_t{to_row} * M + to_column, {r[0], r[1], r[2], r[3]});
    }
}

static void multiply_lower(floatX* out, const floatX* x, const floatX* c, const float* scale, int64_t batch, int64_t M, int64_t K, bool transposed,
                           float alpha, float beta, Stream stream) {
    static_assert(sizeof(SymmetricShared<true>) >= sizeof(bf16) * (TILE * (TILE + 8) + TILE / 8 * 16));
    const int64_t tiles = ceil_div(M, TILE);
    const Grid grid{dim3(static_cast<unsigned>(tiles * (tiles + 1) / 2), static_cast<unsigned>(batch)), dim3(TILE_THREADS), sizeof(SymmetricShared<true>)};
    launch("matmul_symmetric", transposed ? matmul_symmetric_kernel<true> : matmul_symmetric_kernel<false>, grid, stream, out, x, c, scale,
           static_cast<int>(M), static_cast<int>(K), alpha, beta);
}
#endif

/// out[i] *= scale[i] for `batch` matrices of n elements.
static constexpr int SCALE_THREADS = 256;
static __global__ void matmul_scale_kernel(floatX* out, const float* scale, int64_t n) {
    const int64_t i = int64_t{blockIdx.x} * SCALE_THREADS + threadIdx.x;
    if (i < n) out[blockIdx.y * n + i] = to_floatX(scale[blockIdx.y] * to_float(out[blockIdx.y * n + i]));
}

void matmul_symmetric(floatX* out, const floatX* x, const floatX* c, const float* scale, int64_t batch, int64_t M, int64_t K, bool transposed,
                      float alpha, float beta, Stream stream) {
    require_batched_matmul("matmul_symmetric", batch, M, M, K, out, c, beta);
    require(batch <= 65535 && M <= INT32_MAX / 2 && K <= INT32_MAX / 2, "matmul_symmetric: too large: M ", M, ", K ", K, ", batch ", batch);
#ifndef PRECISION_FP32
    if (M % 8 == 0 && (transposed || K % 8 == 0)) {   // lines of whole 16-byte chunks
        require_aligned("matmul_symmetric", out, x, c);
        return multiply_lower(out, x, c, scale, batch, M, K, transposed, alpha, beta, stream);
    }
#endif
    run("matmul_symmetric", out, x, x, c, {.batch = batch, .kernel_for = KERNEL_FOR, .M = M, .N = M, .K = K, .transpose_a = transposed, .transpose_b = !transposed}, alpha, beta, stream);
    if (scale)
        launch("matmul_symmetric", matmul_scale_kernel,
               {dim3(static_cast<unsigned>(ceil_div(M * M, SCALE_THREADS)), static_cast<unsigned>(batch)), dim3(SCALE_THREADS)}, stream, out, scale, M * M);
}

// Device memory full of numbers between -1 and 1: on zeros the tensor cores run faster than on real data.
struct DeviceNumbers {
    floatX* data;
    explicit DeviceNumbers(int64_t count) : data(static_cast<floatX*>(device_alloc(static_cast<size_t>(count) * sizeof(floatX)))) {
        std::vector<floatX> numbers(static_cast<size_t>(count));
        uint32_t state = 1;
        for (floatX& number : numbers) {
            state = state * 1664525 + 1013904223;
            number = to_floatX(static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f);
        }
        copy_to_device(data, numbers.data(), numbers.size() * sizeof(floatX), nullptr);
    }
    ~DeviceNumbers() { release(data); }
    DeviceNumbers(const DeviceNumbers&) = delete;
    DeviceNumbers& operator=(const DeviceNumbers&) = delete;
};

double matmul_flops(int64_t N, int64_t IC, int64_t OC, int repeats) {
    const char* op = "matmul_flops";
    require_matmul(op, N, IC, OC);
    require(repeats >= 1, op, ": repeats must be at least 1, not ", repeats);
    DeviceNumbers x(N * IC), w(OC * IC), out(N * OC);
    cudaEvent_t start, stop;
    cuda_check(cudaEventCreate(&start), op);
    cuda_check(cudaEventCreate(&stop), op);
    float best = 0;
    for (int i = 0; i <= repeats; i++) {   // the first run chooses the kernel
        float milliseconds = 0;
        cuda_check(cudaEventRecord(start, cuda_stream(nullptr)), op);
        matmul_forward(out.data, x.data, w.data, N, IC, OC, nullptr);
        cuda_check(cudaEventRecord(stop, cuda_stream(nullptr)), op);
        cuda_check(cudaEventSynchronize(stop), op);
        cuda_check(cudaEventElapsedTime(&milliseconds, start, stop), op);
        if (i == 1 || (i > 1 && milliseconds < best)) best = milliseconds;
    }
    cudaEventDestroy(start);
    cudaEventDestroy(stop);
    return 2.0 * static_cast<double>(N * OC * IC) / (best * 1e-3);
}

bool matmul_supported() { return true; }   // cuBLASLt has both types on every GPU that this is built for
