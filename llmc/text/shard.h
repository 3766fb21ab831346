// Token shards in the file format of llm.c, in which tokenized FineWeb is published too.
#pragma once
#include <cstdint>
#include <span>
#include <string>

#include "llmc/io/file.h"

/// A shard is this header, then `tokens` token ids of 16 bits each, little-endian.
struct ShardHeader {
    int32_t magic;
    int32_t version;
    int32_t tokens;       ///< at least 1
    int32_t unused[253];  ///< 0; not checked
};
static_assert(sizeof(ShardHeader) == 1024);

inline constexpr int32_t SHARD_MAGIC = 20240520;
inline constexpr int32_t SHARD_VERSION = 1;

/// Number of tokens in a shard. Throws std::invalid_argument, with the file, what was found, what was expected and what to do, when
/// the file cannot be read, is not a shard, or its length does not match the header.
int64_t read_shard_header(const std::string& path);

/// Writes one shard atomically: it appears under `path` with finish().
/// Throws std::invalid_argument on I/O errors, or above 2^31 - 1 tokens.
class ShardWriter {
public:
    explicit ShardWriter(const std::string& path);
    void write(std::span<const uint16_t> tokens);
    /// Throws std::invalid_argument when no token was written.
    void finish();
    int64_t tokens() const { return tokens_; }

private:
    std::string path_;
    NewFile file_;
    int64_t tokens_ = 0;
};
