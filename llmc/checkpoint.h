// A model in a file: configuration, weights, training state, and lineage (the models that it was made from).
//
// Every version of the format stays readable (test/golden holds a file of each). A file is written in the lowest version that can
// hold its content: a key of the header or of config that version 1 lacks makes it a version 2 file.
//
// One file, little-endian:
//
//     byte 0    magic        8 bytes     "DEEPEN\r\n" (a transfer that converts line ends breaks it, so that it is noticed)
//          8    version      uint32      1, or 2
//         12    reserved     uint32      0
//         16    json_bytes   uint64
//         24    json_xxh3    uint64      XXH3-64 of the JSON text
//         32    JSON header  json_bytes bytes of UTF-8
//               tensors, each at a multiple of 4096 bytes; all bytes between, and up to the file's end, are zero
//
// The JSON header:
//
//     config    the model (llmc/config.h)
//     progress  {step, tokens, flops} of this run; zeros in a file that grow or stack made
//     training  what --resume needs, in the trainer's own layout; absent when the file cannot be resumed
//     data      position of the data loader, in its own layout; may be there without training
//     lineage   {operation, detail, parents: [{hash, step, tokens, flops, operation, detail, parents: [...]}, ...]}
//               operation: train, grow, stack, convert; hash: content_hash() of the parent. A file that occurs
//               a second time in a family tree is listed there without its `parents`, `layers` and `runs`.
//     tensors   [{name, dtype, shape, offset, bytes, xxh3}, ...] in the order of the file, without gaps but for the
//               alignment; dtype F32 or U8; offset from the start of the file; xxh3 in 16 hexadecimal digits
//
// Version 2 adds optional keys to lineage and to every parent in it:
//
//     layers    of grow and stack, where each layer came from: [parent, layer], an index into parents and a layer of that parent;
//               a third element, {"fc_proj": "x 0.5", "proj": "0"}, lists the tensors that were made by rules; null: a new layer
//     schedule  of train: "continue" when its schedule continued that of its first parent
//     optimizer of train: "keep" when it began with its first parent's optimizer state
//
// and to parents only:
//
//     runs      [{id, tokens, flops}, ...] what this run had spent under each of its identities (training.runs), unless an
//               earlier entry of the tree already says so
//     mixed     {weight, step}: its weights, times `weight`, were mixed into the file's, at that step of the file's run; among
//               the parents of a parent only at its first occurrence
//
// In version 1 too, where the trainer wrote it: training.runs, [{id, tokens, flops}, ...], the identities of a run and its progress
// when each began. id: 32 hexadecimal digits. Files of one run share their identities up to the point where two runs branch off from
// it, so that the compute before that point is counted once (llmc/lineage.h).
//
// Order of the tensors: the weights as tensor_table() lists them (so the tensors of a layer lie together), then the optimizer
// state, named after its weight (h.3.fc/momentum), then `tokenizer` (U8, the tokenizer's own file), if any. A file holds no time,
// path or machine: two equal runs give equal bytes.
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <string_view>
#include <vector>
#include "llmc/config.h"
#include "llmc/io/file.h"

struct TensorEntry {
    std::string name;
    std::string_view dtype;   ///< "F32" or "U8", of static lifetime
    std::vector<int64_t> shape;
    int64_t offset = 0, bytes = 0;   ///< in the file
    uint64_t xxh3 = 0;               ///< XXH3-64 of the bytes

    int64_t numel() const { return dtype == "F32" ? bytes / 4 : bytes; }
};

/// A checkpoint that is open for reading. It keeps reading the file that was opened, even when another file is renamed to its path.
struct Checkpoint {
    std::string path;
    nlohmann::json header;   ///< without `tensors`
    GPTConfig config;
    std::vector<TensorEntry> tensors;
    std::shared_ptr<const File> file;

    /// Null when there is no such tensor.
    const TensorEntry* find(const std::string& name) const;
    /// Throws std::invalid_argument when there is no such tensor.
    const TensorEntry& at(const std::string& name) const;
    bool can_resume() const { return header.contains("training"); }
    /// XXH3-128 of configuration and weights (names, shapes, hashes), 32 hexadecimal digits: equal models, equal hash,
    /// whatever the state of their training.
    std::string content_hash() const;
};

std::string content_hash(const GPTConfig& config, const std::vector<TensorEntry>& tensors);

/// Opens a checkpoint and checks everything but the tensors' bytes: magic, version, hash of the header, every type in it, that
/// the tensors are those of the configuration, at the right offsets, the exact length of the file, and zero padding.
/// Throws std::invalid_argument for any malformed file, and says which file, what is wrong, where, and what to do.
Checkpoint open_checkpoint(const std::string& path);

/// True when the file starts with a checkpoint's magic.
bool is_checkpoint(const std::string& path);

/// Reads every tensor and compares its hash. Throws std::invalid_argument for the first that differs.
void verify_tensors(const Checkpoint& checkpoint);

/// Reads a tensor into host memory of entry.bytes bytes; throws std::invalid_argument when its hash differs.
void read_tensor(const Checkpoint& checkpoint, const TensorEntry& entry, void* dst);

/// The same in pieces of at most FILE_CHUNK bytes, in order, for copies to a device: take(src, offset in the tensor, bytes).
/// The hash can only be compared after the last piece: when this throws, the pieces already taken must not be used.
using TakeBytes = std::function<void(const void* src, int64_t offset, int64_t bytes)>;
void read_tensor(const Checkpoint& checkpoint, const TensorEntry& entry, const TakeBytes& take);

/// A tensor to be written, and where its bytes come from.
struct TensorSource {
    std::string name;
    std::string_view dtype;   ///< "F32" or "U8"
    std::vector<int64_t> shape;

    /// Writes bytes [offset, offset + bytes) of the tensor to dst; called in order, for at most FILE_CHUNK bytes at a time.
    std::function<void(void* dst, int64_t offset, int64_t bytes)> fill;

    /// Or, without fill: a tensor of another checkpoint, copied as bytes. Its hash is not checked here: call verify_tensors() first.
    std::shared_ptr<const File> file;
    int64_t offset = 0;              ///< in that file
    uint64_t xxh3 = 0;
};

/// Sources in host memory (values must stay valid until write_checkpoint() returns), and in another checkpoint.
TensorSource source_from_memory(const std::string& name, const std::vector<int64_t>& shape, const float* values);
TensorSource source_from_bytes(const std::string& name, std::string bytes);
TensorSource source_from_checkpoint(const std::string& name, const Checkpoint& checkpoint, const TensorEntry& entry);

/// Writes a checkpoint atomically: it appears under `path` whole and synced, or nothing changes there (llmc/io/file.h).
/// header: config, progress, lineage, and training and data if any, but not `tensors`. sources: in the order of the file.
/// Throws std::invalid_argument when open_checkpoint() would refuse the result, or it cannot be written.
/// Needs about FILE_CHUNK bytes of memory.
void write_checkpoint(const std::string& path, const nlohmann::json& header, const std::vector<TensorSource>& sources);

/// Size of the file that write_checkpoint() writes.
int64_t checkpoint_bytes(const nlohmann::json& header, const std::vector<TensorSource>& sources);
