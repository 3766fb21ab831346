// Value embeddings on the CPU: a position at a time, and in the backward pass all positions of a token at a time.
#include "llmc/ops/value_embedding.h"
#include <cmath>
#include "llmc/device/profile.h"
#include "llmc/ops/checks.h"

void value_embedding_forward(floatX* qkv, float* gate, const floatX* h, const int* idx, const floatX* ve, const floatX* w,
                             int64_t N, int C, int H, int HK, int D, Stream) {
    Range range("value_embedding_forward");
    require_value_heads("value_embedding_forward", N, C, VE_GATE_CHANNELS, H, HK, D);
    const int64_t width = static_cast<int64_t>(H + 2 * HK) * D, CK = static_cast<int64_t>(HK) * D;
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++)
        for (int g = 0; g < HK; g++) {
            float dot = 0;
#pragma omp simd reduction(+ : dot)
            for (int c = 0; c < VE_GATE_CHANNELS; c++) dot += to_float(h[n * C + c]) * to_float(w[g * VE_GATE_CHANNELS + c]);
            float open = 2 / (1 + std::exp(-dot));
            gate[n * HK + g] = open;

            floatX* value = qkv + n * width + (H + HK + g) * D;
            const floatX* add = ve + idx[n] * CK + g * D;
#pragma omp simd
            for (int d = 0; d < D; d++) value[d] = to_floatX(to_float(value[d]) + open * to_float(add[d]));
        }
}

void value_embedding_backward(floatX* dh, float* dve, float* dw, float* scratch, const floatX* dqkv, const float* gate,
                              const floatX* h, const int* idx, const int* order, const floatX* ve, const floatX* w, int64_t N,
                              int C, int H, int HK, int D, Stream) {
    Range range("value_embedding_backward");
    require_value_heads("value_embedding_backward", N, C, VE_GATE_CHANNELS, H, HK, D);
    const int64_t width = static_cast<int64_t>(H + 2 * HK) * D, CK = static_cast<int64_t>(HK) * D;
    const floatX* dvalues = dqkv + (H + HK) * D;
    float* dinside = scratch;

    // dinside = the gate's gradient times the slope of 2 sigmoid, gate (1 - gate / 2); dh += dinside w
#pragma omp parallel for
    for (int64_t n = 0; n < N; n++) {
        float dchannel[VE_GATE_CHANNELS] = {};
        for (int g = 0; g < HK; g++) {
            const floatX *dvalue = dvalues + n * width + g * D, *row = ve + idx[n] * CK + g * D;
            float dgate = 0;
#pragma omp simd reduction(+ : dgate)
            for (int d = 0; d < D; d++) dgate += to_float(dvalue[d]) * to_float(row[d]);
            float open = gate[n * HK + g];
            float inside = dgate * open * (1 - open / 2);
            dinside[n * HK + g] = inside;
            for (int c = 0; c < VE_GATE_CHANNELS; c++) dchannel[c] += inside * to_float(w[g * VE_GATE_CHANNELS + c]);
        }
        for (int c = 0; c < VE_GATE_CHANNELS; c++) dh[n * C + c] = to_floatX(to_float(dh[n * C + c]) + dchannel[c]);
    }

    // dw = dinside^T h: each row of dw by one thread, over the tokens in order
#pragma omp parallel for
    for (int g = 0; g < HK; g++) {
        float sum[VE_GATE_CHANNELS] = {};
        for (int64_t n = 0; n < N; n++)
            for (int c = 0; c < VE_GATE_CHANNELS; c++) sum[c] += dinside[n * HK + g] * to_float(h[n * C + c]);
        for (int c = 0; c < VE_GATE_CHANNELS; c++) dw[g * VE_GATE_CHANNELS + c] += sum[c];
    }

    if (!dve) return;
    // dve: of the positions sorted by token, the first one of each token sums them all
#pragma omp parallel for schedule(dynamic, 16)
    for (int64_t i = 0; i < N; i++) {
        int token = idx[order[i]];
        if (i > 0 && idx[order[i - 1]] == token) continue;
        for (int64_t j = i; j < N && idx[order[j]] == token; j++) {
            int64_t n = order[j];
            for (int g = 0; g < HK; g++) {
                const float open = gate[n * HK + g];
                const floatX* dvalue = dvalues + n * width + g * D;
                float* row = dve + token * CK + g * D;
#pragma omp simd
                for (int d = 0; d < D; d++) row[d] += open * to_float(dvalue[d]);
            }
        }
    }
}
