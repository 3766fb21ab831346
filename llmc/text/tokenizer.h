// Text to tokens and back: byte-level byte-pair encoding, with trained tokenizers or GPT-2's.
#pragma once
#include <array>
#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "llmc/text/bpe.h"
#include "llmc/text/split.h"

/// Token ids: the 256 bytes first, then merge i makes token 256 + i, and the last id is bos, which begins every document. No text
/// encodes to bos, even if it spells its name: decode(encode(text)) == text for any bytes.
///
/// The kind of splitting determines the rest:
///     nanochat   token b is byte b;                                   bos is <|bos|>
///     gpt2       tokens 0 to 255 are the bytes in GPT-2's own order;  bos is <|endoftext|>
///
/// Bytes that are not UTF-8 are encoded too; see llmc/text/split.h.
///
/// The file has one entry per line, and nothing else:
///     deepen tokenizer 1
///     split nanochat
///     merges 3839
///     32 32                  the two tokens that merge 0 joins; a merge may only use tokens of earlier merges
///     ...
///     bos <|bos|>
class Tokenizer {
public:
    /// Learns merges from the documents; no piece crosses from one document to the next. Kind nanochat.
    /// Throws std::invalid_argument when vocab_size is not in [257, 65536], or the documents have too few pairs for it.
    static Tokenizer train(std::span<const std::string> documents, int vocab_size);
    /// Reads a tokenizer's file, or GPT-2's vocab.bpe, which is recognized by its first line.
    /// Throws std::invalid_argument, with file and line, for an invalid file.
    static Tokenizer load(const std::string& path);
    /// The same from the bytes of a file; errors call it `name`.
    static Tokenizer parse(std::string_view file, const std::string& name);
    /// The bytes of the file.
    std::string serialize() const;
    /// Writes the file, whole or not at all.
    void save(const std::string& path) const;

    /// Not thread-safe: it caches the tokens of words, in a few MiB.
    std::vector<uint16_t> encode(std::string_view text);
    /// The bytes of the tokens; bos has none. Throws std::invalid_argument for an id that is not below vocab_size.
    std::string decode(std::span<const uint16_t> tokens) const;

    int vocab_size() const { return bos() + 1; }
    int bos() const { return static_cast<int>(tokens_.size()); }
    /// Number of bytes of a token, 0 for bos. Throws as decode() does.
    int token_bytes(int token) const;

private:
    /// A word and its tokens, in one cache line of the processor.
    struct CachedPiece {
        uint8_t bytes = 0, tokens = 0;
        char text[30];
        uint16_t token[16];
    };

    explicit Tokenizer(SplitKind kind);
    void add_merge(Merge merge);
    int rank_at(int left, int right) const;
    void encode_piece(std::string_view piece, std::vector<uint16_t>& out);
    void merge_piece(std::string_view piece, std::vector<uint16_t>& out) const;
    static Tokenizer parse_own(std::string_view file, const std::string& name);
    static Tokenizer parse_gpt2(std::string_view file, const std::string& name);

    SplitKind kind_;
    Splitter splitter_;
    std::array<uint16_t, 256> byte_token_;
    std::vector<std::string> tokens_;  ///< the bytes of each token; bos is not in it
    std::vector<Merge> merges_;
    std::unordered_map<uint32_t, int> ranks_;  ///< left << 16 | right -> index of the merge
    std::vector<CachedPiece> cache_;           ///< direct-mapped by the hash of the piece
};

/// Path of the tokenizer of a shard: a fixed name in the same folder.
std::filesystem::path tokenizer_beside(const std::filesystem::path& shard);
