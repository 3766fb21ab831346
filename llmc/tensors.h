// The one table of a model's tensors. Sizes, offsets, checkpoint order, optimizer groups and test names
// derive from it: adding a tensor is adding a row here, and its initial law to the recipes.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <random>
#include <string>
#include <vector>
#include "llmc/config.h"

/// Letters of a shape. CK: channels of the keys and values; C4: 4 C; HK: key/value heads; GATE: channels a gate reads.
enum class Dim { V, C, CK, C4, HK, GATE, L };

/// Which models have the tensor.
enum class Has { always, untied, value_embeds, lambdas };   // lambdas: a number a layer, so none without layers

/// Where in the forward pass a tensor is used first.
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

/// In the order of a checkpoint: what stands before the layers, the layers one by one, what stands after.
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
/// The same, one after another; of thousands of layers, all of them together take megabytes.
void for_each_tensor(const GPTConfig& config, const std::function<void(const Tensor&)>& visit);

/// Which tensors a run trains. The others are frozen: they get no gradient, and no optimizer keeps anything of them.
struct Trained {
    std::vector<std::string> only;   ///< patterns of names, as parse_train_only() gives them; none: every tensor
    bool embedding = true;           ///< false: wte is frozen (--embeddings-from), which the FLOPs of the studies do not count
    bool operator()(const Tensor& tensor) const;
};

/// "h.6-11.*,lm_head" as patterns: names as in the table, * for any characters, a-b for the layers a to b, both included.
/// Throws std::invalid_argument for a pattern that matches no tensor of the model, or names a layer that it has not.
std::vector<std::string> parse_train_only(const std::string& text, const GPTConfig& config);

/// Places along the forward pass of so many layers, in its order: what a tensor is below, it is used before.
int place_of(int layer, Place place, int n_layer);
int place_of(const Tensor& tensor, int n_layer);
/// The lowest place of a tensor that trains: there the backward pass ends.
int lowest_trained(const std::vector<Tensor>& tensors, const Trained& trained, int n_layer);

// The accounting of both studies.

/// Every parameter of a model, and of these the frozen ones.
int64_t total_params(const GPTConfig& config);
int64_t frozen_params(const GPTConfig& config, const Trained& trained);
/// Of all, what costs no FLOPs and a model of this depth would not have by its recipe: value embeddings of layers where the
/// recipe's pattern has none.
int64_t free_params(const GPTConfig& config);
/// Parameters that multiply a token: the matrices of the layers, gates too, and the head. The growth study's "scaling parameters".
int64_t matmul_params(const GPTConfig& config);
/// Forward and backward: 6 a matmul parameter, and 12 C min(window, T) a layer for attention. By Trained::only: 4 a frozen matmul
/// parameter, 2 where nothing below it trains, and there 4 C min(window, T) for attention.
int64_t flops_per_token(const GPTConfig& config, const Trained& trained = {});

/// A tensor's initial values by its recipe, piece by piece: the same numbers however they are divided. Each tensor has a generator of
/// its own, seeded by the seed and its name, so that a layer starts the same whatever else the model holds.
class InitialValues {
public:
    InitialValues(const Tensor& tensor, const GPTConfig& config, uint64_t seed);
    /// The n values that follow those given so far.
    void next(float* values, int64_t n);

private:
    void next_normal(float* values, int64_t n);

    std::mt19937_64 generator;
    enum class Draw { uniform, normal, constant } draw = Draw::constant;
    double size = 0;                 // bound, deviation, or the value itself
    std::optional<float> second;     // of a pair of normal numbers whose first one ended the piece before
};

/// The same, all of them.
void initialize(float* values, const Tensor& tensor, const GPTConfig& config, uint64_t seed);
