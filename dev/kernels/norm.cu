// The ladder of the RMS norm, forward and backward: N rows of C channels, and one number a row. There is next to no arithmetic in it (about
// three operations an element), so the bound of every step is the bytes that must move: forward reads x and writes out, backward
// reads two tensors and writes one. The steps differ in how near they come to that, and the README says what holds each back.
#include "dev/kernels/ladder.h"
#include "llmc/ops/norm.h"

static constexpr int THREADS = 128;

// The grid for kernels that give every thread, or every warp, a row.
static Grid grid_for(int64_t N, int rows_of_block) { return {dim3(static_cast<unsigned>(ceil_div(N, rows_of_block))), dim3(THREADS)}; }

static __device__ int64_t row_of_thread() { return static_cast<int64_t>(blockIdx.x) * THREADS + threadIdx.x; }
static __device__ int64_t row_of_warp() { return static_cast<int64_t>(blockIdx.x) * (THREADS / WARP) + warp_of_thread(); }

// -------------------------------------------------------------------------------------------------------------------- forward

// 1. A thread a row: the CPU's loop, with rows given to threads. The 32 lanes of a warp read elements that are C apart, so a load of the
// warp touches 32 cache lines for 64 bytes that it wants (bf16), where neighbours would touch one. L1 looks up 4 lines a clock, so each
// load or store takes 8 clocks or more: bound by cache lines. Device memory does not suffer: it moves sectors of 32 bytes, and the rest
// of a sector serves the thread's next loads, as long as L1 still has it. Stores do, since L1 does not gather them: each sends 32 sectors
// to L2, with 2 bytes in each. And N threads are few: 65536 rows are 496 threads for each of 132 SMs, which hold 2048.
static __global__ void __launch_bounds__(THREADS)
thread_row_kernel(floatX* out, float* rstd, const floatX* x, int64_t N, int C, float eps) {
    const int64_t n = row_of_thread();
    if (n >= N) return;
    float squares = 0;
    for (int c = 0; c < C; c++) squares += to_float(x[n * C + c]) * to_float(x[n * C + c]);
    const float r = rsqrtf(squares / static_cast<float>(C) + eps);
    for (int c = 0; c < C; c++) out[n * C + c] = to_floatX(to_float(x[n * C + c]) * r);
    rstd[n] = r;
}
static void thread_row(floatX* out, float* rstd, const floatX* x, NormSize s, float eps, Stream stream) {
    launch("thread_row", thread_row_kernel, grid_for(s.N, THREADS), stream, out, rstd, x, s.N, s.C, eps);
}

// 2. A warp a row: neighbouring lanes read neighbouring elements, so a load of the warp touches one line and wants every byte that it
// gets (coalesced). 32 times as many threads, each with 1/32 of the work: enough to fill the device. The lanes' sums meet in five
// shuffles, without shared memory. From here on the bound is device memory; the steps differ in how near they come. This one is held
// back by small accesses, 2 bytes a lane: 15 instructions an element, half of the memory's time on an H200; and by the second loop,
// where only one load of a thread is in flight at a time: out may alias x as far as the compiler knows, so it moves no load above a
// store.
static __global__ void __launch_bounds__(THREADS)
warp_row_kernel(floatX* out, float* rstd, const floatX* x, int64_t N, int C, float eps) {
    const int64_t n = row_of_warp();
    if (n >= N) return;
    float squares = 0;
    for (int c = lane_of_thread(); c < C; c += WARP) squares += to_float(x[n * C + c]) * to_float(x[n * C + c]);
    const float r = rsqrtf(warp_sum(squares) / static_cast<float>(C) + eps);
    for (int c = lane_of_thread(); c < C; c += WARP) out[n * C + c] = to_floatX(to_float(x[n * C + c]) * r);
    if (lane_of_thread() == 0) rstd[n] = r;
}
static void warp_row(floatX* out, float* rstd, const floatX* x, NormSize s, float eps, Stream stream) {
    launch("warp_row", warp_row_kernel, grid_for(s.N, THREADS / WARP), stream, out, rstd, x, s.N, s.C, eps);
}

// 3. 16 bytes a lane, the widest load of an A100 or H200: one moves 512 bytes of the row, so 1/8 of the loads and stores is left (bf16),
// but half of the instructions, since the unpacking stays. Held back by latency: a row of 768 takes three iterations of the loop, each of
// which waits for its load, and then the row is read again, from L1 as a rule.
static __global__ void __launch_bounds__(THREADS)
wide_kernel(floatX* out, float* rstd, const floatX* x, int64_t N, int C, float eps) {
    const int64_t n = row_of_warp();
    if (n >= N) return;
    float v[VECTOR], squares = 0;
    for (int c = lane_of_thread() * VECTOR; c < C; c += WARP * VECTOR) {
        load(v, x + n * C + c);
        for (float element : v) squares += element * element;
    }
    const float r = rsqrtf(warp_sum(squares) / static_cast<float>(C) + eps);
    for (int c = lane_of_thread() * VECTOR; c < C; c += WARP * VECTOR) {
        load(v, x + n * C + c);
        for (float& element : v) element *= r;
        store(out + n * C + c, v);
    }
    if (lane_of_thread() == 0) rstd[n] = r;
}
static void wide(floatX* out, float* rstd, const floatX* x, NormSize s, float eps, Stream stream) {
    launch("wide", wide_kernel, grid_for(s.N, THREADS / WARP), stream, out, rstd, x, s.N, s.C, eps);
}

// 4. The row in registers: one reading. The lane's pieces (4 for up to 1024 channels in bf16) are loaded before the first is used, so
// that all of a warp's row is in flight at once. The bytes in flight that keep memory busy are its rate times its latency: with 4.8 TB/s
// and, say, 0.7 us, 25 KB for each of 132 SMs. That is 17 warps with a row of 1.5 KiB each, and 48 fit here (40
// registers a thread). The loop is unrolled, because registers have no addresses: an index that the compiler does not know puts the
// array into local memory, which is device memory. Bound by device memory: each element is read once and written once.
static constexpr int PIECES = 1024 / VECTOR / WARP;

static __device__ void load_row(Packed (&pieces)[PIECES], const floatX* row, int C) {
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const int c = (i * WARP + lane_of_thread()) * VECTOR;
        pieces[i] = c < C ? load_packed(row + c) : Packed{};
    }
}

static __global__ void __launch_bounds__(THREADS)
registers_kernel(floatX* out, float* rstd, const floatX* x, int64_t N, int C, float eps) {
    const int64_t n = row_of_warp();
    if (n >= N) return;
    Packed pieces[PIECES];
    load_row(pieces, x + n * C, C);
    float v[VECTOR], squares = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        unpack(v, pieces[i]);
        for (float element : v) squares += element * element;
    }
    const float r = rsqrtf(warp_sum(squares) / static_cast<float>(C) + eps);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const int c = (i * WARP + lane_of_thread()) * VECTOR;
        unpack(v, pieces[i]);
        for (float& element : v) element *= r;
        if (c < C) store(out + n * C + c, v);
    }
    if (lane_of_thread() == 0) rstd[n] = r;
}
static void registers(floatX* out, float* rstd, const floatX* x, NormSize s, float eps, Stream stream) {
    require(s.C <= 1024, "registers: C must be at most 1024, not ", s.C);
    launch("registers", registers_kernel, grid_for(s.N, THREADS / WARP), stream, out, rstd, x, s.N, s.C, eps);
}

// 5. llmc/ops/norm.cu: the same, for longer rows too: the number of pieces is a template parameter, so that short rows take few registers and
// no instructions for pieces that they do not have, and a block holds the rows that are too long for a warp. Bound by device memory.
static void engine(floatX* out, float* rstd, const floatX* x, NormSize s, float eps, Stream stream) {
    norm_forward(out, rstd, x, s.N, s.C, Norm::rms_norm, eps, stream);
}

// ------------------------------------------------------------------------------------------------------------------- backward
// dx = rstd (dout - out mean(dout out)): the forward pass's steps again, with two rows to read for one to write.

// 1. A thread a row.
static __global__ void __launch_bounds__(THREADS)
thread_row_backward_kernel(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, int64_t N, int C) {
    const int64_t n = row_of_thread();
    if (n >= N) return;
    float sum = 0;
    for (int c = 0; c < C; c++) sum += to_float(dout[n * C + c]) * to_float(out[n * C + c]);
    const float mean = sum / static_cast<float>(C), r = rstd[n];
    for (int c = 0; c < C; c++) dx[n * C + c] = to_floatX(r * (to_float(dout[n * C + c]) - to_float(out[n * C + c]) * mean));
}
static void thread_row_backward(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, NormSize s, Stream stream) {
    launch("thread_row_backward", thread_row_backward_kernel, grid_for(s.N, THREADS), stream, dx, dout, out, rstd, s.N, s.C);
}

// 2. A warp a row: coalesced.
static __global__ void __launch_bounds__(THREADS)
warp_row_backward_kernel(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, int64_t N, int C) {
    const int64_t n = row_of_warp();
    if (n >= N) return;
    float sum = 0;
    for (int c = lane_of_thread(); c < C; c += WARP) sum += to_float(dout[n * C + c]) * to_float(out[n * C + c]);
    const float mean = warp_sum(sum) / static_cast<float>(C), r = rstd[n];
    for (int c = lane_of_thread(); c < C; c += WARP)
        dx[n * C + c] = to_floatX(r * (to_float(dout[n * C + c]) - to_float(out[n * C + c]) * mean));
}
static void warp_row_backward(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, NormSize s, Stream stream) {
    launch("warp_row_backward", warp_row_backward_kernel, grid_for(s.N, THREADS / WARP), stream, dx, dout, out, rstd, s.N, s.C);
}

// 3. 16 bytes a lane, and both rows in registers as they lie in memory: bf16 stays packed, two to a register, and is unpacked twice, which
// costs an instruction an element and saves half of the registers.
static __global__ void __launch_bounds__(THREADS)
registers_backward_kernel(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, int64_t N, int C) {
    const int64_t n = row_of_warp();
    if (n >= N) return;
    Packed g_pieces[PIECES], y_pieces[PIECES];
    load_row(g_pieces, dout + n * C, C);
    load_row(y_pieces, out + n * C, C);
    const float r = rstd[n];                        // loaded here, with the rest, and not where it is used
    float g[VECTOR], y[VECTOR], sum = 0;
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        unpack(g, g_pieces[i]);
        unpack(y, y_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) sum += g[k] * y[k];
    }
    const float mean = warp_sum(sum) / static_cast<float>(C);
#pragma unroll
    for (int i = 0; i < PIECES; i++) {
        const int c = (i * WARP + lane_of_thread()) * VECTOR;
        unpack(g, g_pieces[i]);
        unpack(y, y_pieces[i]);
#pragma unroll
        for (int k = 0; k < VECTOR; k++) g[k] = r * (g[k] - y[k] * mean);
        if (c < C) store(dx + n * C + c, g);
    }
}
static void registers_backward(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, NormSize s, Stream stream) {
    require(s.C <= 1024, "registers_backward: C must be at most 1024, not ", s.C);
    launch("registers_backward", registers_backward_kernel, grid_for(s.N, THREADS / WARP), stream, dx, dout, out, rstd, s.N, s.C);
}

// 4. llmc/ops/norm.cu.
static void engine_backward(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, NormSize s, Stream stream) {
    norm_backward(dx, dout, out, rstd, s.N, s.C, Norm::rms_norm, stream);
}

// -------------------------------------------------------------------------------------------------------------------- the work

enum Access { SCATTERED, COALESCED, WIDE };

// `readings` of each input and one writing of the output; `tensors` counts inputs and output. The other 4 N bytes are rstd.
static std::vector<Work> rows(const NormSize& s, int tensors, int readings, Access access, double instructions) {
    const double elements = static_cast<double>(s.N) * s.C, accesses = (readings * (tensors - 1) + 1) * elements;
    const double lines = access == SCATTERED ? 1 : access == COALESCED ? 1.0 / WARP : sizeof(floatX) / 128.0;
    return {{.memory = tensors * elements * sizeof(floatX) + 4.0 * s.N,
             .words = accesses * (access == WIDE ? sizeof(floatX) / 4.0 : 1),
             .lines = accesses * lines,
             .instructions = COUNTED * instructions * elements}};
}

const std::vector<Step<NormForward, NormSize>>& norm_forward_ladder() {
    static const std::vector<Step<NormForward, NormSize>> steps = {
        {"a thread a row", thread_row, [](const NormSize& s) { return rows(s, 2, 2, SCATTERED, 10); }},
        {"a warp a row: coalesced", warp_row, [](const NormSize& s) { return rows(s, 2, 2, COALESCED, 14.7); }},
        {"16 bytes a lane", wide, [](const NormSize& s) { return rows(s, 2, 2, WIDE, 7.4); }},
        {"the row in registers", registers, [](const NormSize& s) { return rows(s, 2, 1, WIDE, 0); }},
        {"llmc/ops/norm.cu", engine, [](const NormSize& s) { return rows(s, 2, 1, WIDE, 0); }}};
    return steps;
}

const std::vector<Step<NormBackward, NormSize>>& norm_backward_ladder() {
    static const std::vector<Step<NormBackward, NormSize>> steps = {
        {"a thread a row", thread_row_backward, [](const NormSize& s) { return rows(s, 3, 2, SCATTERED, 17.6); }},
        {"a warp a row: coalesced", warp_row_backward, [](const NormSize& s) { return rows(s, 3, 2, COALESCED, 22.3); }},
        {"16 bytes a lane, both rows in registers", registers_backward, [](const NormSize& s) { return rows(s, 3, 1, WIDE, 0); }},
        {"llmc/ops/norm.cu", engine_backward, [](const NormSize& s) { return rows(s, 3, 1, WIDE, 0); }}};
    return steps;
}
