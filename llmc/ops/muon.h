// Muon (Jordan et al. 2024): momentum, then the nearest orthogonal matrix, by a few matrix products.
#pragma once
#include <cstddef>
#include <cstdint>
#include "llmc/device/types.h"

/// speedrun: summed momentum, 5 Newton-Schulz steps, update scaled by sqrt(max(rows, cols)).
/// nanochat: averaged momentum, 5 steps of Polar Express (Amsel et al. 2025), NorMuon's second moment per row or column
///           (Li et al. 2025) with the update's norm kept, lr scaled by sqrt(max(1, rows/cols)), cautious weight decay.
enum class MuonKind { speedrun, nanochat };

/// A step of the iteration that makes a matrix orthogonal: its singular values s become a s + b s^3 + c s^5, which drives them to 1.
struct MuonStep {
    float a, b, c;
};
inline constexpr int MUON_STEPS = 5;
inline constexpr MuonStep NEWTON_SCHULZ[MUON_STEPS] = {{3.4445f, -4.7750f, 2.0315f},
                                                       {3.4445f, -4.7750f, 2.0315f},
                                                       {3.4445f, -4.7750f, 2.0315f},
                                                       {3.4445f, -4.7750f, 2.0315f},
                                                       {3.4445f, -4.7750f, 2.0315f}};
inline constexpr MuonStep POLAR_EXPRESS[MUON_STEPS] = {{8.156554524902461f, -22.48329292557795f, 15.878769915207462f},
                                                       {4.042929935166739f, -2.808917465908714f, 0.5000178451051316f},
                                                       {3.8916678022926607f, -2.772484153217685f, 0.5060648178503393f},
                                                       {3.285753657755655f, -2.3681294933425376f, 0.46449024233003106f},
                                                       {2.3465413258596377f, -1.7097828382687081f, 0.42323551169305323f}};

/// One matrix (rows, cols), row-major.
struct MuonTensor {
    float* master;       ///< weights, fp32, updated
    floatX* weight;      ///< what the model reads: master rounded to floatX; null where the model reads master itself
    const float* grad;
    float* momentum;     ///< (rows, cols), 0 at start
    float* second;       ///< nanochat: (rows) when rows >= cols, else (cols), 0 at start; speedrun: null
};

/// What one step does to all matrices. The update reads it from device memory, so that a step once recorded can be run again with
/// other values.
struct MuonHyper {
    float lr, momentum, beta2, weight_decay;   ///< beta2 and weight_decay: nanochat only
};

/// One update of `count` matrices of one shape, of either kind, with
///     x = u / (|u| * safety + eps), transposed when rows > cols; five times: s = x x^T, x = a x + (b s + c s s) x
///
/// tensors (count)               on the host
/// scratch (muon_scratch bytes)
/// hyper   (1)                   on the device
void muon_update(const MuonTensor* tensors, void* scratch, const MuonHyper* hyper, int count, int rows, int cols, MuonKind kind, Stream stream);

/// Bytes of scratch for `count` matrices of a shape.
size_t muon_scratch(int count, int rows, int cols);

/// FLOPs of the products of one update of a matrix, each made whole.
inline double muon_flops(int64_t rows, int64_t cols) {
    const double n = static_cast<double>(rows < cols ? cols : rows), m = static_cast<double>(rows < cols ? rows : cols);
    return MUON_STEPS * (4 * m * m * n + 2 * m * m * m);
}
