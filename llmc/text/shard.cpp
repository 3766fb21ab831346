// Token shards: the file format of llm.c.
#include "llmc/text/shard.h"

#include <limits>

#include "llmc/io/error.h"

/// Size of a shard's file.
static int64_t shard_bytes(int64_t tokens) { return static_cast<int64_t>(sizeof(ShardHeader)) + 2 * tokens; }

int64_t read_shard_header(const std::string& path) {
    const char* way_out = "; make it again with data/tokenize, or download it again";
    File file(path);
    ShardHeader header;
    require(file.size() >= shard_bytes(0), "shard '", path, "' is cut short: its header is ", shard_bytes(0), " bytes, the file ",
            file.size(), way_out);
    file.read(&header, sizeof header, 0);
    require(header.magic == SHARD_MAGIC, "'", path, "' is not a token shard: it begins with ", header.magic, " instead of ",
            SHARD_MAGIC, "; data/tokenize makes shards of text");
    require(header.version == SHARD_VERSION, "shard '", path, "' has version ", header.version, ", and only ", SHARD_VERSION,
            " (16-bit tokens) is known", way_out);
    require(header.tokens >= 1, "shard '", path, "' says it holds ", header.tokens, " tokens, and at least 1 is expected", way_out);

    int64_t expected = shard_bytes(header.tokens);
    require(file.size() == expected, "shard '", path, "' is ", file.size() < expected ? "cut short" : "too long",
            ": its header says ", header.tokens, " tokens (", expected, " bytes), the file has ", file.size(), " bytes", way_out);
    return header.tokens;
}

ShardWriter::ShardWriter(const std::string& path) : path_(path), file_(path, shard_bytes(0)) {}

void ShardWriter::write(std::span<const uint16_t> tokens) {
    int64_t more = static_cast<int64_t>(tokens.size());
    require(tokens_ + more <= std::numeric_limits<int32_t>::max(), "shard '", path_, "' would hold ", tokens_ + more,
            " tokens, and its header can count ", std::numeric_limits<int32_t>::max(), "; make smaller shards");
    file_.write(tokens.data(), 2 * more, shard_bytes(tokens_));
    tokens_ += more;
}

void ShardWriter::finish() {
    require(tokens_ >= 1, "shard '", path_, "' would hold no token");
    ShardHeader header{SHARD_MAGIC, SHARD_VERSION, static_cast<int32_t>(tokens_), {}};
    file_.write(&header, sizeof header, 0);
    file_.commit(shard_bytes(tokens_));
}
