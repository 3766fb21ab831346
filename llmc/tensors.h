// The one table of a model's tensors. Sizes, offsets, checkpoint order, optimizer groups and test names are derived from it: a new
// tensor is a new row here, and its initial law in each recipe.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>
#include "llmc/config.h"

/// Letters of a shape. CK: channels of the keys and of the values; C4: 4 C; HK: key/value heads; GATE: channels that a gate reads.
enum class Dim { V, C, CK, C4, HK, GATE, L };

/// Which models have the tensor.
enum class Has { always, untied, value_embeds, lambdas };   // lambdas: one number per layer, so none without layers

/// Where in the forward pass a tensor is first used.
enum class Place { embedding, lambdas, qkv, proj, fc, fc_proj, head };

struct TensorSpec {
    const char* name;        ///< in layer l of a model: h.<l>.<name>
    Dim rows;
    Dim cols;                ///< of a vector: same as rows, and `vector` is set
    bool vector;
    bool per_layer;
    Has has;
    Group group;
    Place place;
};

/// In the order of a checkpoint: the tensors before the layers, the layers one by one, the tensors after them.
inline constexpr TensorSpec TENSORS[] = {
    // name            rows      cols       vector per_layer has               group                   place
    {"wte",            Dim::V,   Dim::C,    false, false, Has::always,       Group::embedding,       Place::embedding},
    {"lm_head",        Dim::V,   Dim::C,    false, false, Has::untied,       Group::unembedding,     Place::head},
    {"q",              Dim::C,   Dim::C,    false, true,  Has::always,       Group::matrix,          Place::qkv},
    {"k",              Dim::CK,  Dim::C,    false, true,  Has::always,       Group::matrix,          Place::qkv},
    {"v",              Dim::CK,  Dim::C,    false, true,  Has::always,       Group::matrix,          Place::qkv},
    {"proj",           Dim::C,   Dim::C,    false, true,  Has::always,       Group::matrix,          Place::proj},
    {"fc",             Dim::C4,  Dim::C,    false, true,  Has::always,       Group::matrix,          Place::fc},
    {"fc_proj",        Dim::C,   Dim::C4,   false, true,  Has::always,       Group::matrix,          Place::fc_proj},
    {"ve",             Dim::V,   Dim::CK,   false, true,  Has::value_embeds, Group::value_embedding, Place::qkv},
    {"ve_gate",        Dim::HK,  Dim::GATE, false, true,  Has::value_embeds, Group::matrix,          Place::qkv},
    {"resid_lambdas",  Dim::L,   Dim::L,    true,  false, Has::lambdas,      Group::resid_scalar,    Place::lambdas},
    {"x0_lambdas",     Dim::L,   Dim::L,    true,  false, Has::lambdas,      Group::x0_scalar,       Place::lambdas},
};

/// A tensor of one model.
struct Tensor {
    std::string name;             ///< as in a checkpoint: wte, h.3.fc
    const TensorSpec* spec;
    int layer;                    ///< -1: of no layer
    std::vector<int64_t> shape;
    int64_t numel;
};

/// All tensors of a model, in checkpoint order.
std::vector<Tensor> tensor_table(const GPTConfig& config);
/// The same, one at a time: the whole table of thousands of layers takes megabytes.
void for_each_tensor(const GPTConfig& config, const std::function<void(const Tensor&)>& visit);

/// The tensors that a run trains. The others are frozen: they have no gradient and no optimizer state.
struct Trained {
    std::vector<std::string> only;   ///< patterns of names, as parse_train_only() returns them; none: every tensor
    bool embedding = true;           ///< false: wte is frozen (--embeddings-from), which does not change the FLOPs as the studies count them
    bool operator()(const Tensor& tensor) const;
};

/// Parses "h.6-11.*,lm_head" into patterns: names as in the table, * for any characters, a-b for the layers a to b, both included.
/// Throws std::invalid_argument for a pattern that matches no tensor of the model, or names a layer that the model does not have.
std::vector<std::string> parse_train_only(const std::string& text, const GPTConfig& config);

/// The order in which the forward pass of n_layer layers first uses its tensors: a lower place is used earlier.
int place_of(int layer, Place place, int n_layer);
int place_of(const Tensor& tensor, int n_layer);
/// The lowest place of a tensor that trains: the backward pass ends there.
int lowest_trained(const std::vector<Tensor>& tensors, const Trained& trained, int n_layer);

// Parameters and FLOPs, as both studies count them.

/// All parameters of a model, and how many of them are frozen.
int64_t total_params(const GPTConfig& config);
int64_t frozen_params(const GPTConfig& config, const Trained& trained);
/// Parameters that cost no FLOPs and that a model of this depth does not have by its recipe: value embeddings of layers where the
/// recipe's pattern has none.
int64_t free_params(const GPTConfig& config);
/// Parameters of matmuls: the matrices of the layers, the gates, and the head. The growth study's "scaling parameters".
int64_t matmul_params(const GPTConfig& config);
/// Forward and backward: 6 per matmul parameter, and 12 C min(window, T) per layer for attention. With Trained::only: 4 per frozen
/// matmul parameter, or 2 where nothing below it trains, and there 4 C min(window, T) for attention.
int64_t flops_per_token(const GPTConfig& config, const Trained& trained = {});

/// Generates a tensor's initial values by its recipe, piece by piece; the values do not depend on the sizes of the pieces. Each tensor
/// has its own generator, seeded by the seed and its name, so that a layer starts the same whatever else the model holds.
class InitialValues {
public:
    InitialValues(const Tensor& tensor, const GPTConfig& config, uint64_t seed);
    /// The next n values.
    void next(float* values, int64_t n);

private:
    void next_normal(float* values, int64_t n);

    std::mt19937_64 generator;
    enum class Draw { uniform, normal, constant } draw = Draw::constant;
    double size = 0;                 // bound, deviation, or the value itself
    std::optional<float> second;     // normal numbers come in pairs: the second one, when the first ended the last piece
};

/// All initial values of a tensor.
void initialize(float* values, const Tensor& tensor, const GPTConfig& config, uint64_t seed);
