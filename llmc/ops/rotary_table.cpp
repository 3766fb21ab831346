// The table of cosines and sines, made on the host for every backend.
#include <cmath>
#include "llmc/io/error.h"
#include "llmc/ops/rotary.h"

void rotary_table(float* table, int T, int D) {
    require(T >= 1, "rotary_table: T must be at least 1, not ", T);
    require(D >= 8 && D % 8 == 0, "rotary_table: D must be a positive multiple of 8, not ", D);
    for (int i = 0; i < D / 2; i++) {
        double frequency = std::pow(10000.0, -2.0 * i / D);
        for (int64_t t = 0; t < T; t++) {
            double angle = static_cast<double>(t) * frequency;
            table[t * D + i] = static_cast<float>(std::cos(angle));
            table[t * D + D / 2 + i] = static_cast<float>(std::sin(angle));
        }
    }
}
