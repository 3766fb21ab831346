// Where a model's tensors lie in memory, and what of them each process of a job owns: gradients are summed, and weights are updated, at their owner
// alone (ZeRO stage 1, Rajbhandari et al. 2020, arXiv 1910.02054).
#pragma once
#include <cstdint>
#include <vector>
#include "llmc/config.h"
#include "llmc/tensors.h"

/// Which of how many processes this is, and into how many parts a step's micro-batches are cut. Gradients add up within a part, and across parts in
/// a binary tree, so that they are the same bits for every count of processes that divides the parts.
struct Job {
    int rank = 0, processes = 1;
    int parts = 1;
    int own_parts() const { return parts / processes; }
    bool operator==(const Job&) const = default;
};
inline constexpr int MAX_PROCESSES = 1024;
/// Throws std::invalid_argument unless both counts are powers of two, and the parts a multiple of the processes.
void validate(const Job& job);

/// q, k and v of a layer lie gapless, as one product's weights.
bool is_of_qkv(const Tensor& tensor);

/// In elements, of every tensor's offset. The matrices q, k, v of a layer are multiples of it.
inline constexpr int64_t TENSOR_ALIGNMENT = 64;

/// Elements [begin, begin + count) of a tensor; none where count is 0.
struct Piece {
    int64_t begin = 0, count = 0;
};

/// The tensors of a model in blocks, by who owns them. Weights and gradients have the same offsets.
///
/// replicated   lambdas, which the passes read in fp32: every process sums and updates all of them, alike
/// sliced       what its rule updates element by element: process r owns the r-th part of the block, wherever that cuts a tensor
/// whole        what its rule updates as a matrix: a unit (q, k and v of a layer together, else a tensor) has one owner
/// frozen       no gradient; master weights are sliced
///
/// sliced, whole and frozen are P equal segments, one a process, padded.
class Layout {
public:
    Layout(const GPTConfig& config, const std::vector<Tensor>& tensors, const Trained& trained, const Job& job);

    struct Block {
        int64_t begin = 0, segment = 0;   ///< in elements; `processes` segments follow each other, of `replicated` one
    };
    Block replicated, sliced, whole, frozen;
    const Job job;

    int64_t size() const { return all; }                        ///< elements of a block of all weights
    int64_t with_gradient() const { return frozen.begin; }      ///< of all gradients: the blocks before `frozen`
    int64_t owned_size() const;                                 ///< of what one process owns

    int64_t offset(size_t tensor) const { return places[tensor].offset; }   ///< by the index in the table, in a block of all
    bool has_gradient(size_t tensor) const { return offset(tensor) < frozen.begin; }
    Piece owned(size_t tensor, int rank) const;
    Piece owned(size_t tensor) const { return owned(tensor, job.rank); }
    /// Where the owned piece begins, in a block of what this process owns.
    int64_t owned_offset(size_t tensor) const;

    /// The sum of squares of all gradients is that of terms, added in their order, which is the same for every job: each tensor of `replicated`,
    /// 1024 equal pieces of `sliced`, each tensor of `whole`.
    struct Term {
        int64_t begin, count;             ///< in the block of gradients
        int owner;                        ///< -1: all
    };
    const std::vector<Term>& terms() const { return squares; }

private:
    enum class Kind { replicated, sliced, whole, frozen };
    struct Place {
        Kind kind;
        int64_t offset = 0, numel = 0;
        int owner = 0;                    // of Kind::whole
    };
    const Block& block(Kind kind) const;

    std::vector<Place> places;            // by tensor
    std::vector<Term> squares;
    int64_t all = 0;
};
