#include "llmc/load.h"
#include "llmc/device/device.h"

void read_to_device(const Checkpoint& checkpoint, const std::string& name, float* destination) {
    read_tensor(checkpoint, checkpoint.at(name), [&](const void* bytes, int64_t offset, int64_t count) {
        copy_to_device(reinterpret_cast<char*>(destination) + offset, bytes, count, nullptr);
    });
}

void load_weight(GPT& model, const Tensor& tensor, const Checkpoint& from) {
    read_to_device(from, tensor.name, model.master(tensor));
    model.round_weights(tensor);
}

void load_weights(GPT& model, const Checkpoint& from) {
    for (const Tensor& tensor : model.tensors) load_weight(model, tensor, from);
}
