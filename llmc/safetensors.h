// Safetensors, the format for models that go to Python and come back: 8 bytes of length, a JSON header with names, dtypes, shapes
// and offsets, then the bytes of the tensors one after another (https://github.com/huggingface/safetensors#format).
#pragma once
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <vector>
#include "llmc/checkpoint.h"
#include "llmc/io/file.h"

struct SafetensorsEntry {
    std::string name;
    std::string dtype;               ///< as the format spells it: F64, F32, BF16, I64, U8, ...
    std::vector<int64_t> shape;      ///< empty: a scalar
    int64_t offset = 0, bytes = 0;   ///< in the file
    int64_t numel = 0;
};

struct Safetensors {
    std::string path;
    std::map<std::string, std::string> metadata;
    std::vector<SafetensorsEntry> tensors;   ///< in the order of the file
    std::shared_ptr<const File> file;

    /// Null when there is no such tensor.
    const SafetensorsEntry* find(const std::string& name) const;
};

/// Opens a file and checks its header as the format's own reader does: known dtypes, shapes that fit the bytes, tensors that fill
/// the file without gap or overlap. Throws std::invalid_argument for any malformed file.
Safetensors open_safetensors(const std::string& path);

/// Reads elements [first, first + count) as fp32. F64 is rounded; F32 and BF16 keep their values, NaN and infinities too.
/// Throws std::invalid_argument for any other dtype, and for a finite F64 beyond the range of fp32.
void read_floats(const Safetensors& safetensors, const SafetensorsEntry& entry, float* dst, int64_t first, int64_t count);

/// Writes a file atomically: it appears whole or not at all. Tensors lie in the order of the sources, the first at a multiple of 8
/// bytes. Throws std::invalid_argument when a name occurs twice, or the file cannot be written.
void write_safetensors(const std::string& path, const std::map<std::string, std::string>& metadata, const std::vector<TensorSource>& sources);
