// The CPU's peak, measured.
#include "llmc/ops/peak.h"
#include <algorithm>
#include "llmc/io/process.h"
#include "llmc/ops/matmul.h"

// Products of these sizes, forth and back: rows, and the width and hidden width of an MLP.
static constexpr int64_t ROWS = 1024, WIDTH = 768, HIDDEN = 3072;

double device_peak_flops() {
    static const double peak = std::max(matmul_flops(ROWS, WIDTH, HIDDEN, 3), matmul_flops(ROWS, HIDDEN, WIDTH, 3));
    return peak;
}

size_t device_peak_bytes() {
    const size_t compiled = size_t{2} << 20;   // by oneDNN, and its own pages that are read for that
    return resident_bytes() + compiled + sizeof(floatX) * (ROWS * (WIDTH + HIDDEN) + WIDTH * HIDDEN);
}
