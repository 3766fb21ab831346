// Text to tokens and back: byte-level byte-pair encoding.
#include "llmc/text/tokenizer.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <functional>
#include <limits>
#include <queue>

#include "llmc/io/error.h"
#include "llmc/io/file.h"

static constexpr int MAX_VOCAB = 65536;  // ids have 16 bits
static constexpr int GPT2_MERGES = 50000;
static constexpr size_t CACHED_PIECES = 1 << 16;

static const char* split_name(SplitKind kind) { return kind == SplitKind::gpt2 ? "gpt2" : "nanochat"; }
static const char* bos_name(SplitKind kind) { return kind == SplitKind::gpt2 ? "<|endoftext|>" : "<|bos|>"; }

/// In GPT-2's order the bytes that are printable in Latin-1 come first, then the others.
static std::array<uint8_t, 256> gpt2_byte_order() {
    auto prints = [](int b) { return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae; };
    std::array<uint8_t, 256> order;
    size_t n = 0;
    for (bool wanted : {true, false})
        for (int b = 0; b < 256; b++)
            if (prints(b) == wanted) order[n++] = static_cast<uint8_t>(b);
    return order;
}

Tokenizer::Tokenizer(SplitKind kind) : kind_(kind), splitter_(kind), cache_(CACHED_PIECES) {
    std::array<uint8_t, 256> order = gpt2_byte_order();
    for (int token = 0; token < 256; token++) {
        uint8_t byte = kind == SplitKind::gpt2 ? order[token] : static_cast<uint8_t>(token);
        byte_token_[byte] = static_cast<uint16_t>(token);
        tokens_.emplace_back(1, static_cast<char>(byte));
    }
}

void Tokenizer::add_merge(Merge merge) {
    ranks_.emplace(static_cast<uint32_t>(merge.left) << 16 | merge.right, static_cast<int>(merges_.size()));
    merges_.push_back(merge);
    tokens_.push_back(tokens_[merge.left] + tokens_[merge.right]);
}

/// The index of the merge that joins two tokens, or -1.
int Tokenizer::rank_at(int left, int right) const {
    auto found = ranks_.find(static_cast<uint32_t>(left) << 16 | static_cast<uint32_t>(right));
    return found == ranks_.end() ? -1 : found->second;
}

Tokenizer Tokenizer::train(std::span<const std::string> documents, int vocab_size) {
    require(vocab_size > 256 && vocab_size <= MAX_VOCAB, "a vocabulary has 257 to ", MAX_VOCAB, " tokens, not ", vocab_size);
    Tokenizer tokenizer(SplitKind::nanochat);
    std::unordered_map<std::string_view, int64_t> pieces;
    for (const std::string& text : documents) tokenizer.splitter_.split(text, [&](std::string_view piece) { pieces[piece]++; });
    for (Merge merge : train_bpe(pieces, vocab_size - 257)) tokenizer.add_merge(merge);
    require(tokenizer.vocab_size() == vocab_size, "the text has pairs for a vocabulary of ", tokenizer.vocab_size(), ", not of ",
            vocab_size, "; give a smaller size, or more text");
    return tokenizer;
}

// ---------------------------------------------------------------------------------------------------------------------
// Encoding and decoding

std::vector<uint16_t> Tokenizer::encode(std::string_view text) {
    std::vector<uint16_t> out;
    out.reserve(text.size() / 2);
    splitter_.split(text, [&](std::string_view piece) { encode_piece(piece, out); });
    return out;
}

void Tokenizer::encode_piece(std::string_view piece, std::vector<uint16_t>& out) {
    if (piece.size() == 1) return out.push_back(byte_token_[static_cast<unsigned char>(piece[0])]);
    if (piece.size() > sizeof CachedPiece::text) return merge_piece(piece, out);

    CachedPiece& cached = cache_[std::hash<std::string_view>()(piece) % CACHED_PIECES];
    if (std::string_view(cached.text, cached.bytes) == piece) {
        out.insert(out.end(), cached.token, cached.token + cached.tokens);
        return;
    }
    size_t first = out.size();
    merge_piece(piece, out);
    size_t tokens = out.size() - first;
    if (tokens > std::size(cached.token)) return;
    cached.bytes = static_cast<uint8_t>(piece.size());
    cached.tokens = static_cast<uint8_t>(tokens);
    std::memcpy(cached.text, piece.data(), piece.size());
    std::memcpy(cached.token, &out[first], tokens * sizeof out[first]);
}

/// Starts from the bytes and applies merges in the order in which they were learned, from left to right. A heap of the possible merges
/// makes this O(n log n) for a piece of n bytes.
void Tokenizer::merge_piece(std::string_view piece, std::vector<uint16_t>& out) const {
    struct Node {
        uint32_t previous, next;
        int token;  ///< -1: merged into the node before
    };
    require(piece.size() < std::numeric_limits<uint32_t>::max(), "encode: a word of ", piece.size(),
            " bytes is too long; break the text into lines");
    uint32_t n = static_cast<uint32_t>(piece.size());
    std::vector<Node> nodes(n);
    for (uint32_t i = 0; i < n; i++) nodes[i] = {i - 1, i + 1, byte_token_[static_cast<unsigned char>(piece[i])]};

    std::vector<uint64_t> heap;  // rank << 32 | left node
    auto add = [&](uint32_t left) {
        int rank = rank_at(nodes[left].token, nodes[nodes[left].next].token);
        if (rank >= 0) heap.push_back(static_cast<uint64_t>(rank) << 32 | left);
        return rank >= 0;
    };
    for (uint32_t i = 0; i + 1 < n; i++) add(i);
    std::make_heap(heap.begin(), heap.end(), std::greater<>());
    while (!heap.empty()) {
        std::pop_heap(heap.begin(), heap.end(), std::greater<>());
        Merge merge = merges_[heap.back() >> 32];
        int token = static_cast<int>(256 + (heap.back() >> 32));
        uint32_t left = static_cast<uint32_t>(heap.back());
        heap.pop_back();
        uint32_t right = nodes[left].next;
        if (nodes[left].token != merge.left || right == n || nodes[right].token != merge.right) continue;  // out of date: one of the two was merged since

        nodes[left].token = token;
        nodes[right].token = -1;
        nodes[left].next = nodes[right].next;
        if (nodes[left].next < n) nodes[nodes[left].next].previous = left;
        if (nodes[left].next < n && add(left)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
        if (left > 0 && add(nodes[left].previous)) std::push_heap(heap.begin(), heap.end(), std::greater<>());
    }
    for (uint32_t i = 0; i < n; i = nodes[i].next) out.push_back(static_cast<uint16_t>(nodes[i].token));
}

std::string Tokenizer::decode(std::span<const uint16_t> tokens) const {
    std::string text;
    for (int token : tokens)
        if (token_bytes(token) > 0) text += tokens_[token];
    return text;
}

int Tokenizer::token_bytes(int token) const {
    require(token >= 0 && token < vocab_size(), "token ", token, " is not in the vocabulary of ", vocab_size());
    return token == bos() ? 0 : static_cast<int>(tokens_[token].size());
}

// ---------------------------------------------------------------------------------------------------------------------
// Files

static constexpr std::string_view OWN_MAGIC = "deepen tokenizer 1";
static constexpr std::string_view GPT2_MAGIC = "#version: 0.2";

/// Reads the lines of a file, with line numbers for errors.
struct Lines {
    std::string_view rest;
    const std::string& name;
    int number = 0;
    std::string_view line = {};

    std::string_view next() {
        number++;
        size_t end = rest.find('\n');
        require(end != rest.npos, "tokenizer '", name, "' is cut short: it ends in line ", number,
                ", which is missing or has no line break at its end");
        line = rest.substr(0, end);
        rest.remove_prefix(end + 1);
        return line;
    }

    [[noreturn]] void refuse(const std::string& expected) const {
        std::string found(line.substr(0, 60));
        for (char& c : found)
            if (c < ' ' || c > '~') c = '?';
        fail("tokenizer '", name, "', line ", number, ": expected ", expected, ", found '", found, "'");
    }
    void expect(std::string_view text) {
        if (next() != text) refuse(concat("'", text, "'"));
    }
    void expect_end() const {
        require(rest.empty(), "tokenizer '", name, "' goes on after its last line, ", number);
    }
};

/// Parses all of `text` as a number without leading zeros; -1 for any other text.
static int parse_number(std::string_view text) {
    if (text.size() > 1 && text[0] == '0') return -1;
    int number = -1;
    auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
    return error == std::errc() && end == text.data() + text.size() ? number : -1;
}

std::string Tokenizer::serialize() const {
    std::string file = concat(OWN_MAGIC, "\nsplit ", split_name(kind_), "\nmerges ", merges_.size(), "\n");
    for (Merge merge : merges_) file += std::to_string(merge.left) + " " + std::to_string(merge.right) + "\n";
    return file + "bos " + bos_name(kind_) + "\n";
}

Tokenizer Tokenizer::parse(std::string_view file, const std::string& name) {
    return file.starts_with(GPT2_MAGIC) ? parse_gpt2(file, name) : parse_own(file, name);
}

Tokenizer Tokenizer::parse_own(std::string_view file, const std::string& name) {
    Lines lines{file, name};
    require(file.substr(0, file.find('\n')) == OWN_MAGIC, "'", name, "' is not a tokenizer: its first line is neither '", OWN_MAGIC,
            "' nor '", GPT2_MAGIC, "'; data/tokenize --train-tokenizer makes one");
    lines.next();

    SplitKind kind = lines.next() == "split gpt2" ? SplitKind::gpt2 : SplitKind::nanochat;
    if (lines.line != concat("split ", split_name(kind))) lines.refuse("'split nanochat' or 'split gpt2'");
    std::string_view count = lines.next();
    int merges = count.starts_with("merges ") ? parse_number(count.substr(7)) : -1;
    if (merges < 0 || merges > MAX_VOCAB - 257) lines.refuse(concat("'merges N', N from 0 to ", MAX_VOCAB - 257));

    Tokenizer tokenizer(kind);
    for (int i = 0; i < merges; i++) {
        std::string_view line = lines.next();
        size_t space = std::min(line.find(' '), line.size());
        int left = parse_number(line.substr(0, space));
        int right = space < line.size() ? parse_number(line.substr(space + 1)) : -1;
        if (left < 0 || left >= 256 + i || right < 0 || right >= 256 + i)
            lines.refuse(concat("'LEFT RIGHT', the tokens that make token ", 256 + i, ", both smaller than it"));
        if (tokenizer.rank_at(left, right) >= 0) lines.refuse("a pair that no earlier line merges");
        if (tokenizer.token_bytes(left) + tokenizer.token_bytes(right) > MAX_TOKEN_BYTES)
            lines.refuse(concat("a token of at most ", MAX_TOKEN_BYTES, " bytes"));
        tokenizer.add_merge({static_cast<uint16_t>(left), static_cast<uint16_t>(right)});
    }
    lines.expect(concat("bos ", bos_name(kind)));
    lines.expect_end();
    return tokenizer;
}

/// GPT-2's file spells tokens with one printable character per byte: bytes that are printable in Latin-1 are themselves, the others are
/// U+0100 onwards, in order.
Tokenizer Tokenizer::parse_gpt2(std::string_view file, const std::string& name) {
    Tokenizer tokenizer(SplitKind::gpt2);
    std::unordered_map<std::string, uint16_t> token_of;
    int stand_in = 0x100;
    for (int token = 0; token < 256; token++) {
        int byte = static_cast<unsigned char>(tokenizer.tokens_[token][0]);
        bool prints = token < 188;
        int c = prints ? byte : stand_in++;
        std::string text = c < 0x80 ? std::string(1, static_cast<char>(c))
                                    : std::string{static_cast<char>(0xc0 | c >> 6), static_cast<char>(0x80 | (c & 0x3f))};
        token_of[text] = static_cast<uint16_t>(token);
    }

    Lines lines{file, name};
    lines.expect(GPT2_MAGIC);
    for (int i = 0; i < GPT2_MERGES; i++) {
        std::string_view line = lines.next();
        size_t space = std::min(line.find(' '), line.size());
        std::string left(line.substr(0, space)), right(line.substr(std::min(space + 1, line.size())));
        auto left_token = token_of.find(left), right_token = token_of.find(right);
        if (left_token == token_of.end() || right_token == token_of.end()) lines.refuse("two tokens of earlier lines");
        Merge merge{left_token->second, right_token->second};
        if (tokenizer.token_bytes(merge.left) + tokenizer.token_bytes(merge.right) > MAX_TOKEN_BYTES)
            lines.refuse(concat("a token of at most ", MAX_TOKEN_BYTES, " bytes"));
        if (!token_of.emplace(left + right, static_cast<uint16_t>(256 + i)).second) lines.refuse("a token that no earlier line makes");
        tokenizer.add_merge(merge);
    }
    lines.expect_end();
    return tokenizer;
}

Tokenizer Tokenizer::load(const std::string& path) {
    constexpr int64_t limit = int64_t{4} << 20;  // 65279 merges take 0.8 MB
    File file(path);
    require(file.size() <= limit, "'", path, "' is not a tokenizer: it has ", file.size(), " bytes, and a tokenizer at most ", limit);
    std::string bytes(static_cast<size_t>(file.size()), '\0');
    file.read(bytes.data(), file.size(), 0);
    return parse(bytes, path);
}

void Tokenizer::save(const std::string& path) const {
    std::string bytes = serialize();
    NewFile file(path, static_cast<int64_t>(bytes.size()));
    file.write(bytes.data(), static_cast<int64_t>(bytes.size()), 0);
    file.commit(static_cast<int64_t>(bytes.size()));
}

std::filesystem::path tokenizer_beside(const std::filesystem::path& shard) { return shard.parent_path() / "tokenizer.txt"; }
