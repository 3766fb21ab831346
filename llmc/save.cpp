#include "llmc/save.h"
#include <algorithm>
#include "llmc/agree.h"
#include "llmc/device/device.h"

/// The next request of rank 0 to all processes: bytes [offset, offset + bytes) of a tensor; tensor -1: there are no more requests.
struct Request {
    int64_t tensor = -1, offset = 0, bytes = 0;
};

/// Sends rank 0 the bytes that it asks for; false when there was no request.
static bool serve(Comm& comm, const std::vector<SharedTensor>& tensors, Request request, char* to) {
    std::vector<Request> of_all(static_cast<size_t>(comm.count()));
    comm.collect(of_all.data(), &request, sizeof request);
    request = of_all.front();
    if (request.tensor < 0) return false;
    const SharedTensor& tensor = tensors[static_cast<size_t>(request.tensor)];
    constexpr int64_t size = sizeof(float);
    for (int64_t at = request.offset, end = at + request.bytes; at < end;) {   // in bytes of the tensor
        int owner = 0;
        Piece piece = tensor.owned(owner);
        while (at < piece.begin * size || at >= (piece.begin + piece.count) * size) piece = tensor.owned(++owner);
        const int64_t bytes = std::min(end, (piece.begin + piece.count) * size) - at;
        const bool mine = owner == comm.rank();
        comm.bring(to ? to + (at - request.offset) : nullptr, mine ? reinterpret_cast<const char*>(tensor.values) + (at - piece.begin * size) : nullptr, bytes,
                   owner);
        at += bytes;
    }
    return true;
}

void write_checkpoint(Comm& comm, const std::string& path, const nlohmann::json& header, const std::vector<SharedTensor>& tensors,
                      const std::vector<TensorSource>& beside) {
    together(comm, [&] {
        if (comm.rank() > 0) {
            while (serve(comm, tensors, {}, nullptr)) {}
            return;
        }
        std::vector<TensorSource> sources;
        for (size_t i = 0; i < tensors.size(); i++) {
            auto fill = [&, i](void* to, int64_t offset, int64_t bytes) {
                serve(comm, tensors, {static_cast<int64_t>(i), offset, bytes}, static_cast<char*>(to));
            };
            sources.push_back({tensors[i].name, "F32", tensors[i].shape, fill, nullptr, 0, 0});
        }
        sources.insert(sources.end(), beside.begin(), beside.end());
        try {
            write_checkpoint(path, header, sources);
        } catch (const std::invalid_argument&) {
            serve(comm, tensors, {}, nullptr);
            throw;
        }
        serve(comm, tensors, {}, nullptr);
    });
}
