// What the ladders share: what a step is, the work that it asks of the machine, and the least time that this takes (a roofline).
#pragma once
#include <algorithm>
#include <cstdint>
#include <string>
#include <vector>
#include "llmc/device/cuda_common.h"
#include "llmc/ops/attention.h"

/// What one kernel asks of the machine. Each count is a lower limit, so the time that follows from it is one too.
struct Work {
    double memory = 0;          // bytes that must come from device memory or go there, each once unless it cannot stay in a cache
    double tensor = 0;          // FLOPs of the tensor cores
    double fp32 = 0;            // FLOPs of the fp32 lanes, a fused multiply-add being two
    double special = 0;         // exponentials: one operation each of the special function units
    double words = 0;           // loads and stores of shared memory and L1, which are one memory: up to 4 bytes of one thread
    double lines = 0;           // cache lines of 128 bytes that each warp's load or store of device memory touches, added up
    double instructions = 0;    // of threads, as a rule those of the inner loops
};
/// Instructions are counted in the SASS that nvcc 13.0 makes for sm_90a in bf16; those of fp32 have not been counted.
inline constexpr double COUNTED = sizeof(floatX) == 2 ? 1 : 0;

/// Rates of a machine. An SM does in a clock, on all of these GPUs: 32 words, 4 lines, 16 operations of the special function units, and
/// the instructions of 128 threads.
struct Machine {
    const char* name;
    double sms, clock;                  // SMs, Hz
    double memory, tensor;              // bytes a second, FLOPs a second (dense bf16)
    double fp32_lanes;                  // fused multiply-adds a clock and SM
};
/// By the data sheets. The clock is the one that gives the sheets' fp32 numbers: 67 and 19.5 TFLOP/s.
inline constexpr Machine SHEETS[] = {{"H200", 132, 1.98e9, 4.8e12, 989.4e12, 128}, {"A100 80GB", 108, 1.41e9, 2.039e12, 312e12, 64}};

/// The least time, and what takes it.
struct Bound {
    double seconds = 0;
    const char* by = "";
};
inline Bound bound(const Work& work, const Machine& m) {
    const double clocks = m.sms * m.clock;
    return std::max({Bound{work.memory / m.memory, "device memory"}, Bound{work.tensor / m.tensor, "tensor cores"},
                     Bound{work.fp32 / (2 * m.fp32_lanes * clocks), "fp32 lanes"}, Bound{work.special / (16 * clocks), "special functions"},
                     Bound{work.words / (32 * clocks), "loads and stores"}, Bound{work.lines / (4 * clocks), "cache lines"},
                     Bound{work.instructions / (128 * clocks), "instructions"}},
                    [](Bound a, Bound b) { return a.seconds < b.seconds; });
}
/// Kernels that run one after another: the times add up; the longest names what bounds them.
inline Bound bound(const std::vector<Work>& kernels, const Machine& machine) {
    Bound all, longest;
    for (const Work& work : kernels) {
        const Bound one = bound(work, machine);
        all.seconds += one.seconds;
        if (one.seconds > longest.seconds) longest = one;
    }
    return {all.seconds, longest.by};
}

/// One rung: a function with the ladder's signature, and the work of its kernels at a size.
template <class Run, class Size>
struct Step {
    const char* name;
    Run* run;
    std::vector<Work> (*work)(const Size&);
};

// ---------------------------------------------------------------------------------------------------------------- the ladders

/// As llmc/ops/norm.h, rms_norm only.
struct NormSize {
    int64_t N;
    int C;
};
using NormForward = void(floatX* out, float* rstd, const floatX* x, NormSize size, float eps, Stream stream);
using NormBackward = void(floatX* dx, const floatX* dout, const floatX* out, const float* rstd, NormSize size, Stream stream);
const std::vector<Step<NormForward, NormSize>>& norm_forward_ladder();
const std::vector<Step<NormBackward, NormSize>>& norm_backward_ladder();

/// As llmc/ops/cross_entropy.h, without the cap; the gradient takes the logits' place. Targets are never -1.
/// scratch (2 N floats)
struct CrossEntropySize {
    int64_t N;
    int V;
};
using CrossEntropy = void(float* losses, floatX* logits, float* scratch, const int* targets, CrossEntropySize size, float dloss,
                          Stream stream);
const std::vector<Step<CrossEntropy, CrossEntropySize>>& cross_entropy_ladder();

/// As llmc/ops/attention.h, with as many key heads as query heads, and HEAD channels each.
/// scratch (B H T T floats)
inline constexpr int HEAD = 64;
struct AttentionSize {
    int B, T, H, window;

    /// Pairs of a query and a key that it sees, over all heads.
    double pairs() const {
        double sum = 0;
        for (int t = 0; t < T; t++) sum += std::min(t, window) + 1;
        return sum * B * H;
    }
    double elements() const { return static_cast<double>(B) * T * H * HEAD; }
};
using Attention = void(floatX* y, float* lse, float* scratch, const floatX* qkv, AttentionSize size, Stream stream);
const std::vector<Step<Attention, AttentionSize>>& attention_ladder();

/// scratch (attention_backward_floats)
using AttentionBackward = void(floatX* dqkv, float* scratch, const floatX* dy, const floatX* y, const float* lse, const floatX* qkv,
                               AttentionSize size, Stream stream);
const std::vector<Step<AttentionBackward, AttentionSize>>& attention_backward_ladder();
/// A number a row and two a score, or the scratch of llmc/ops/attention.h where that is more.
inline size_t attention_backward_floats(AttentionSize s) {
    const size_t rows = static_cast<size_t>(s.B) * s.H * s.T;
    return std::max(rows * (1 + 2 * static_cast<size_t>(s.T)), attention_scratch(s.B, s.T, s.H, s.H, HEAD) / sizeof(float));
}

// ------------------------------------------------------------------------------------------------------------------- checking

/// The error of the worst element over its tolerance; 1 and less is right. Infinite where an element is NaN.
struct Check {
    std::string size;
    double worst;
};
/// Every size that one step is checked at, against float64. Throws what a launch throws.
std::vector<Check> check_norm_forward(NormForward* run);
std::vector<Check> check_norm_backward(NormBackward* run);
std::vector<Check> check_cross_entropy(CrossEntropy* run);
std::vector<Check> check_attention(Attention* run);
std::vector<Check> check_attention_backward(AttentionBackward* run);
