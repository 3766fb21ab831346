// Muon (Jordan et al. 2024): momentum, then the nearest orthogonal matrix, by a few matmuls.
#pragma once
#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include "llmc/device/types.h"
#include "llmc/io/error.h"

/// A step of the iteration that makes a matrix orthogonal: its singular values s become a s + b s^3 + c s^5, which drives them to 1.
struct MuonStep {
    float a, b, c;
    bool operator==(const MuonStep&) const = default;
};
inline constexpr int MUON_STEPS = 5;
using MuonSteps = std::array<MuonStep, MUON_STEPS>;
/// The same step again and again (Jordan et al. 2024).
inline constexpr MuonSteps NEWTON_SCHULZ{{{3.4445f, -4.7750f, 2.0315f},
                                          {3.4445f, -4.7750f, 2.0315f},
                                          {3.4445f, -4.7750f, 2.0315f},
                                          {3.4445f, -4.7750f, 2.0315f},
                                          {3.4445f, -4.7750f, 2.0315f}}};
/// The best step for what the one before leaves (Polar Express, Amsel et al. 2025).
inline constexpr MuonSteps POLAR_EXPRESS{{{8.156554524902461f, -22.48329292557795f, 15.878769915207462f},
                                          {4.042929935166739f, -2.808917465908714f, 0.5000178451051316f},
                                          {3.8916678022926607f, -2.772484153217685f, 0.5060648178503393f},
                                          {3.285753657755655f, -2.3681294933425376f, 0.46449024233003106f},
                                          {2.3465413258596377f, -1.7097828382687081f, 0.42323551169305323f}}};

/// The factor of the learning rate for a matrix's shape.
enum class MuonScale {
    root_of_larger,      ///< sqrt(max(rows, cols))
    root_of_ratio        ///< sqrt(max(1, rows / cols))
};

/// Which weights decay, by lr x weight decay.
enum class MuonDecay {
    none,
    all,                 ///< (Liu et al. 2025)
    cautious             ///< where the update makes the weight smaller too: it has the weight's sign (Chen et al. 2025)
};

/// The variants of Muon: with g the gradient, m the momentum, mu its factor,
///     m = mu m + k g,  u = mu m + k g        k = 1 - mu for an averaged momentum, 1 for a summed one (Nesterov's look ahead)
///     x = u / (|u| safety + eps), made orthogonal in MUON_STEPS steps (below)
///     beta2 > 0: x divided by the root of its second moment of each row (rows >= cols) or column, |x| kept (NorMuon, Li et al. 2025)
///     w -= lr scale x, and weight decay
struct MuonRule {
    bool averaged_momentum;
    MuonSteps steps;
    float safety, eps;
    float beta2 = 0;
    MuonScale scale;
    MuonDecay decay = MuonDecay::none;
};

/// One matrix (rows, cols), row-major.
struct MuonTensor {
    float* master;       ///< weights, fp32, updated
    floatX* weight;      ///< what the model reads: master rounded to floatX; null where the model reads master itself
    const float* grad;
    float* momentum;     ///< (rows, cols), 0 at start
    float* second;       ///< (max(rows, cols)), 0 at start; null where the rule has no second moment
};

/// The hyperparameters of one step for all matrices. The update reads them from device memory, so that a captured step can be replayed
/// with other values.
struct MuonHyper {
    float lr, momentum, weight_decay;
};

/// One update of `count` matrices of one shape by a rule. A step of the iteration: s = x x^T (x^T x for a tall x), x = a x + (b s + c s s) x.
///
/// tensors (count)               on the host
/// scratch (muon_scratch bytes)
/// hyper   (1)                   on the device
void muon_update(const MuonTensor* tensors, void* scratch, const MuonHyper* hyper, int count, int rows, int cols, const MuonRule& rule, Stream stream);

/// Bytes of scratch for `count` matrices of a shape.
size_t muon_scratch(int count, int rows, int cols);

/// What a rule multiplies the rate by.
inline float muon_scale(MuonScale scale, int rows, int cols) {
    if (scale == MuonScale::root_of_larger) return std::sqrt(static_cast<float>(std::max(rows, cols)));
    return std::sqrt(std::max(1.0f, static_cast<float>(rows) / static_cast<float>(cols)));
}

/// Throws std::invalid_argument where the rule has a second moment and a matrix has none.
inline void require_second_moments(const char* op, const MuonTensor* tensors, int count, const MuonRule& rule) {
    for (int i = 0; i < count; i++)
        require(rule.beta2 == 0 || tensors[i].second, op, ": the rule has a second moment, and tensor ", i, " has none");
}

/// FLOPs of the matmuls of one update of a matrix, symmetric ones counted whole.
inline double muon_flops(int64_t rows, int64_t cols) {
    const double n = static_cast<double>(rows < cols ? cols : rows), m = static_cast<double>(rows < cols ? rows : cols);
    return MUON_STEPS * (4 * m * m * n + 2 * m * m * m);
}
