// Token shards: the file format of llm.c.
#include "llmc/shard.h"

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <limits>

#include "llmc/error.h"

int64_t read_shard_header(const std::string& path) {
    const char* way_out = "; make it again with ./tokenize, or download it again";
    require(!std::filesystem::is_directory(path), "shard '", path, "' is a folder; name its files, as in '", path, "/train_*.bin'");
    std::ifstream file(path, std::ios::binary);
    require(file.good(), "cannot read shard '", path, "': ", std::strerror(errno));

    ShardHeader header;
    file.read(reinterpret_cast<char*>(&header), sizeof header);
    int64_t bytes = static_cast<int64_t>(std::filesystem::file_size(path));
    require(file.good(), "shard '", path, "' is cut short: its header is ", sizeof header, " bytes, the file ", bytes, way_out);
    require(header.magic == SHARD_MAGIC, "'", path, "' is not a token shard: it begins with ", header.magic, " instead of ",
            SHARD_MAGIC, "; text becomes shards by ./tokenize");
    require(header.version == SHARD_VERSION, "shard '", path, "' has version ", header.version, ", and only ", SHARD_VERSION,
            " (16-bit tokens) is known", way_out);
    require(header.tokens >= 1, "shard '", path, "' says it holds ", header.tokens, " tokens, and at least 1 is expected", way_out);

    int64_t expected = static_cast<int64_t>(sizeof header) + 2 * static_cast<int64_t>(header.tokens);
    require(bytes == expected, "shard '", path, "' is ", bytes < expected ? "cut short" : "too long", ": its header says ",
            header.tokens, " tokens (", expected, " bytes), the file has ", bytes, " bytes", way_out);
    return header.tokens;
}

ShardWriter::ShardWriter(const std::string& path) : path_(path), file_(path) {
    ShardHeader header{};  // its place is kept; finish() fills it in
    file_.write(&header, sizeof header);
}

void ShardWriter::write(std::span<const uint16_t> tokens) {
    tokens_ += static_cast<int64_t>(tokens.size());
    require(tokens_ <= std::numeric_limits<int32_t>::max(), "shard '", path_, "' would hold ", tokens_,
            " tokens, and its header can count ", std::numeric_limits<int32_t>::max(), "; make smaller shards");
    file_.write(tokens.data(), tokens.size_bytes());
}

void ShardWriter::finish() {
    require(tokens_ >= 1, "shard '", path_, "' would hold no token");
    ShardHeader header{SHARD_MAGIC, SHARD_VERSION, static_cast<int32_t>(tokens_), {}};
    file_.write_at(0, &header, sizeof header);
    file_.commit();
}
