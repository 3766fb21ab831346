// What the kernels of attention.cu and of attention_hopper.cu share; attention.h is the contract.
#pragma once
#include "llmc/device/cuda_common.h"

// The sizes of the contract, and where a head's rows begin. Rows of qkv are width() apart, those of y H D.
struct AttentionSizes {
    int T, H, HK, D, window;

    HOST_DEVICE int64_t width() const { return static_cast<int64_t>(H + 2 * HK) * D; }
    HOST_DEVICE int64_t out_width() const { return static_cast<int64_t>(H) * D; }
    HOST_DEVICE int group() const { return H / HK; }
    // A head's number among those of all sequences: rows of lse are (B, H, T), of QueryRows (B, H, padded T).
    HOST_DEVICE int64_t all_heads(int b, int h) const { return static_cast<int64_t>(b) * H + h; }
    // Which heads of qkv's H + 2 HK are keys and values of group g.
    HOST_DEVICE int key_head(int g) const { return H + g; }
    HOST_DEVICE int value_head(int g) const { return H + HK + g; }
    template <class X>
    HOST_DEVICE X* queries(X* qkv, int b, int h) const {
        return qkv + static_cast<int64_t>(b) * T * width() + static_cast<int64_t>(h) * D;
    }
    template <class X>
    HOST_DEVICE X* keys(X* qkv, int b, int g) const { return queries(qkv, b, key_head(g)); }
    template <class X>
    HOST_DEVICE X* values(X* qkv, int b, int g) const { return queries(qkv, b, value_head(g)); }
    template <class X>
    HOST_DEVICE X* out(X* y, int b, int h) const {
        return y + static_cast<int64_t>(b) * T * out_width() + static_cast<int64_t>(h) * D;
    }

    // Does the query see the key? 0 <= query - key <= window, in one comparison.
    HOST_DEVICE bool sees(int query, int key) const { return static_cast<unsigned>(query - key) <= static_cast<unsigned>(window); }
    // Of the queries q .. q + queries - 1 and the keys k .. k + keys - 1: does any see any, and do all see all?
    HOST_DEVICE bool any_sees(int q, int queries, int k, int keys) const {
        return k <= q + queries - 1 && k + keys - 1 >= q - window;
    }
    HOST_DEVICE bool all_see(int q, int queries, int k, int keys) const {
        return k + keys - 1 <= q && k >= q + queries - 1 - window;
    }
};

// A tile, its head and its sequence: tiles of a head are neighbours, so that they find its keys in L2.
struct Place {
    int tile, head, batch;
    __device__ Place(int index, int tiles, int heads)
        : tile(index % tiles), head(index / tiles % heads), batch(index / tiles / heads) {}
    // For tiles of queries, so that the longest walks come first: those of the last queries (of tiles of keys, those of the first).
    __device__ int from_end(int tiles) const { return tiles - 1 - tile; }
};

inline constexpr float LOG2E = 1.4426950408889634f, LN2 = 0.6931471805599453f;
// What row_max starts from: below all scores, yet finite, so that differences stay numbers.
inline constexpr float LOWEST = -1e30f;

__device__ inline float inverse_sqrt(int D) { return 1 / sqrtf(static_cast<float>(D)); }

// What the backward pass needs of a query: log2 of its softmax's denominator, and dy . y = sum_s p dp.
struct alignas(8) QueryRow {
    float lse2, delta;
};
// Rows of queries are stored in whole tiles; those at T and beyond have an infinite lse2, which makes their p zero.
inline constexpr int QUERY_ROWS = 128;
HOST_DEVICE inline int64_t padded(int T) { return (static_cast<int64_t>(T) + QUERY_ROWS - 1) / QUERY_ROWS * QUERY_ROWS; }

#ifndef PRECISION_FP32
// exp(scale x) / the softmax's denominator, by powers of two.
__device__ inline float probability(float score, float log2_scale, float lse2) { return fast_exp2(fmaf(score, log2_scale, -lse2)); }

// Whether heads of this size go to the kernels of attention_hopper.cu on this device.
bool attention_on_hopper(int D);
void attention_forward_hopper(bf16* y, float* lse, const bf16* qkv, int B, const AttentionSizes& s, Stream stream);
void attention_backward_hopper(bf16* dqkv, const QueryRow* rows, const bf16* dy, const bf16* qkv, int B, const AttentionSizes& s,
                               Stream stream);
#endif
