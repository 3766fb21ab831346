// Where a model's tensors lie in memory, and which part of them each process of a job owns: gradients are summed and weights updated only by their
// owner (ZeRO stage 1, Rajbhandari et al. 2020, arXiv 1910.02054).
#pragma once
#include <cstdint>
#include <vector>
#include "llmc/config.h"
#include "llmc/tensors.h"

/// The rank and number of processes, and the number of parts into which the micro-batches of a step are divided. Gradients add up within a part, and
/// across parts in a binary tree, so that they are bitwise equal for every number of processes that divides the parts.
struct Job {
    int rank = 0, processes = 1;
    int parts = 1;
    int own_parts() const { return parts / processes; }
    bool operator==(const Job&) const = default;
};
inline constexpr int MAX_PROCESSES = 1024;
/// Throws std::invalid_argument unless `processes` and `parts` are powers of two, and `parts` is a multiple of `processes`.
void validate(const Job& job);

/// Whether it is the q, k or v of a layer; these three are contiguous, the weights of one matmul.
bool is_of_qkv(const Tensor& tensor);

/// Of every tensor's offset, in elements. The sizes of the matrices q, k, v are multiples of it.
inline constexpr int64_t TENSOR_ALIGNMENT = 64;

/// Elements [begin, begin + count) of a tensor.
struct Piece {
    int64_t begin = 0, count = 0;
};

/// The tensors of a model in four blocks, by how they are owned. Weights and gradients have the same offsets.
///
/// replicated   lambdas, which the passes read in fp32: every process sums and updates all of them
/// sliced       tensors with an element-wise update (AdamW): process r owns the r-th segment of the block, which may cut a tensor
/// whole        matrices with an update of the whole matrix (Muon): each has one owner, q, k and v of a layer the same one
/// frozen       no gradient; the master weights are owned as in `sliced`
///
/// sliced, whole and frozen consist of P equal segments, one per process, padded.
class Layout {
public:
    Layout(const GPTConfig& config, const std::vector<Tensor>& tensors, const Trained& trained, const Job& job);

    struct Block {
        int64_t begin = 0, segment = 0;   ///< in elements; `processes` segments of this size follow each other, but only one in `replicated`
    };
    Block replicated, sliced, whole, frozen;
    const Job job;

    int64_t size() const { return all; }                        ///< elements of all four blocks
    int64_t with_gradient() const { return frozen.begin; }      ///< elements with a gradient: the blocks before `frozen`
    int64_t owned_size() const;                                 ///< elements that one process owns

    int64_t offset(size_t tensor) const { return places[tensor].offset; }   ///< within all four blocks; tensor: index in the table
    bool has_gradient(size_t tensor) const { return offset(tensor) < frozen.begin; }
    Piece owned(size_t tensor, int rank) const;
    Piece owned(size_t tensor) const { return owned(tensor, job.rank); }
    /// Where the owned piece begins, in memory that holds only what this process owns.
    int64_t owned_offset(size_t tensor) const;

    /// The sum of squares of all gradients is a sum over these terms, in an order that is the same for every number of processes: each tensor of
    /// `replicated`, 1024 equal pieces of `sliced`, each tensor of `whole`.
    struct Term {
        int64_t begin, count;             ///< among the gradients
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
