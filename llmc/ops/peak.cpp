// The CPU's peak, measured.
#include "llmc/ops/peak.h"
#include <algorithm>
#include "llmc/io/process.h"
#include "llmc/ops/matmul.h"

// The two matmuls of an MLP: rows, its width and its hidden width.
static constexpr int64_t ROWS = 1024, WIDTH = 768, HIDDEN = 3072;

double device_peak_flops() {
    static const double peak = std::max(matmul_flops(ROWS, WIDTH, HIDDEN, 3), matmul_flops(ROWS, HIDDEN, WIDTH, 3));
    return peak;
}

size_t device_peak_bytes() {
    const size_t compiled = size_t{2} << 20;   // code that oneDNN generates, and the pages of oneDNN that this reads
    return resident_bytes() + compiled + sizeof(floatX) * (ROWS * (WIDTH + HIDDEN) + WIDTH * HIDDEN);
}
