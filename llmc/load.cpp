#include "llmc/load.h"
#include <algorithm>
#include "llmc/device/device.h"

void read_to_device(const Checkpoint& checkpoint, const std::string& name, float* destination, const Piece& piece) {
    constexpr int64_t size = sizeof(float);
    const int64_t begin = piece.begin * size, end = (piece.begin + piece.count) * size;   // in bytes
    if (piece.count == 0) return;
    read_tensor(checkpoint, checkpoint.at(name), [&](const void* bytes, int64_t offset, int64_t count) {
        const int64_t from = std::max(offset, begin), to = std::min(offset + count, end);
        if (from < to)
            copy_to_device(reinterpret_cast<char*>(destination) + (from - begin), static_cast<const char*>(bytes) + (from - offset), to - from, nullptr);
    });
}

void load_weight(GPT& model, const Tensor& tensor, const Checkpoint& from) {
    read_to_device(from, tensor.name, model.master(tensor), model.owned(tensor));
    model.round_weights(tensor);
}

void load_weights(GPT& model, const Checkpoint& from) {
    for (const Tensor& tensor : model.tensors) load_weight(model, tensor, from);
}
