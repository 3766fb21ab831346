// The part of NCCL that llmc/ops/comm.cu uses, for the emulator: processes of this machine, each pair joined by a socket of 127.0.0.1. Communicators
// are nonblocking, as comm.cu makes them:
//   - a call returns ncclInProgress, and is launched on the stream once ncclCommGetAsyncError() has said ncclSuccess; what is launched before that
//     overtakes it. Another NCCL call before that is refused.
//   - a thread of NCCL's own launches it, and so the stream must not be cudaStreamPerThread.
//   - on the stream a call is done when all it receives has come. What it will write is poison from when the stream comes to it.
//   - when a process ends, its partners' ncclCommGetAsyncError() says ncclRemoteError, and their calls never complete; ncclCommAbort() frees the stream.
//   - a message that is shorter or longer than who receives it expects is an error of the emulator.
#pragma once
#include <arpa/inet.h>
#include <netinet/in.h>
#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>
#include <algorithm>
#include <atomic>
#include <cerrno>
#include <climits>
#include <cstdint>
#include <cstring>
#include <deque>
#include <memory>
#include <random>
#include <string>
#include <thread>
#include <utility>
#include <vector>
#include "cuda_runtime.h"

#define NCCL_VERSION_CODE 22809

enum ncclResult_t {
    ncclSuccess,
    ncclUnhandledCudaError,
    ncclSystemError,
    ncclInternalError,
    ncclInvalidArgument,
    ncclInvalidUsage,
    ncclRemoteError,
    ncclInProgress
};
inline const char* ncclGetErrorString(ncclResult_t result) {
    static constexpr const char* texts[] = {"no error", "unhandled cuda error", "unhandled system error", "internal error", "invalid argument", "invalid usage",
                                            "remote process exited or there was a network error", "NCCL operation in progress"};
    return texts[result];
}

enum ncclDataType_t { ncclUint8 = 1, ncclFloat = 7 };
struct ncclUniqueId {
    char internal[128];
};
struct ncclConfig_t {
    int blocking;
};
#define NCCL_CONFIG_INITIALIZER { INT_MIN }

// ------------------------------------------------------------------------------------------------------------- a communicator

struct EmulatedMessage {
    char* memory;
    size_t bytes, done = 0;                 // of the header, then of the memory
    uint64_t header = 0;
    size_t header_done = 0;
};

/// What one call, or the calls of a group, send and receive; by partner, in the order of the calls.
struct EmulatedTransfer {
    std::vector<std::deque<EmulatedMessage>> sends, receives;
    cudaStream_t stream = nullptr;
    bool begun = false;
    bool complete() const {
        auto none = [](const auto& messages) { return messages.empty(); };
        return std::all_of(sends.begin(), sends.end(), none) && std::all_of(receives.begin(), receives.end(), none);
    }
};

struct EmulatedProcesses {
    int rank = 0, count = 1, device = 0;
    std::vector<int> sockets;               // by rank; -1 for this process itself
    std::atomic<ncclResult_t> state = ncclInProgress;
    std::atomic<bool> aborted = false;
    std::unique_ptr<EmulatedTransfer> called;   // not yet on the stream
    int under_way = 0, asked = 0;
    bool finalizing = false;
    std::thread start;

    ~EmulatedProcesses() {
        for (int socket : sockets)
            if (socket >= 0) close(socket);
    }

    /// Sends and receives what it can without waiting; returns whether the transfer is complete.
    bool advance(EmulatedTransfer& transfer) {
        if (aborted) return true;
        if (transfer.begun && !ready(transfer, 0)) return false;
        DeviceAccess open;   // takes long where there is much memory, and so is kept while data comes
        if (!std::exchange(transfer.begun, true))
            for (auto& messages : transfer.receives)
                for (EmulatedMessage& message : messages) emulator_poison(message.memory, message.bytes);
        do {
            for (int peer = 0; peer < count; peer++) {
                auto &sends = transfer.sends[static_cast<size_t>(peer)], &receives = transfer.receives[static_cast<size_t>(peer)];
                if (peer == rank) {
                    to_itself(sends, receives);
                    continue;
                }
                const int socket = sockets[static_cast<size_t>(peer)];
                while (!sends.empty() && push(socket, sends.front())) sends.pop_front();
                while (!receives.empty() && pull(socket, receives.front(), peer)) receives.pop_front();
            }
            if (state == ncclRemoteError) return false;
            if (transfer.complete()) return true;
        } while (ready(transfer, 1));
        return false;
    }

private:
    // Whether a socket that the transfer waits for is ready within so many milliseconds.
    bool ready(const EmulatedTransfer& transfer, int milliseconds) const {
        if (state == ncclRemoteError) return false;
        std::vector<pollfd> waits;
        for (size_t peer = 0; peer < sockets.size(); peer++) {
            const int events = (transfer.sends[peer].empty() ? 0 : POLLOUT) | (transfer.receives[peer].empty() ? 0 : POLLIN);
            if (events && sockets[peer] >= 0) waits.push_back({sockets[peer], static_cast<short>(events), 0});
        }
        return ::poll(waits.data(), waits.size(), milliseconds) > 0;
    }
    static void to_itself(std::deque<EmulatedMessage>& sends, std::deque<EmulatedMessage>& receives) {
        if (sends.size() != receives.size()) emulation_error("nccl: a process sends itself what it does not receive");
        for (size_t i = 0; i < sends.size(); i++) {
            if (sends[i].bytes != receives[i].bytes) emulation_error("nccl: a process receives other than it sends itself");
            std::memmove(receives[i].memory, sends[i].memory, sends[i].bytes);
        }
        sends.clear(), receives.clear();
    }
    // Whether the message has been sent, or received, completely.
    bool push(int socket, EmulatedMessage& message) {
        message.header = message.bytes;
        auto part = [&](const void* from, size_t bytes, size_t& done) {
            while (done < bytes) {
                const ssize_t sent = send(socket, static_cast<const char*>(from) + done, bytes - done, MSG_DONTWAIT | MSG_NOSIGNAL);
                if (sent < 0) return ended(errno);
                done += static_cast<size_t>(sent);
            }
            return true;
        };
        return part(&message.header, sizeof message.header, message.header_done) && part(message.memory, message.bytes, message.done);
    }
    bool pull(int socket, EmulatedMessage& message, int peer) {
        auto part = [&](void* to, size_t bytes, size_t& done) {
            while (done < bytes) {
                const ssize_t got = recv(socket, static_cast<char*>(to) + done, bytes - done, MSG_DONTWAIT);
                if (got <= 0) return ended(got == 0 ? ECONNRESET : errno);
                done += static_cast<size_t>(got);
            }
            return true;
        };
        if (!part(&message.header, sizeof message.header, message.header_done)) return false;
        if (message.header != message.bytes)
            emulation_error("nccl: rank " + std::to_string(rank) + " expects " + std::to_string(message.bytes) + " bytes of rank " + std::to_string(peer) +
                            ", which sent " + std::to_string(message.header));
        return part(message.memory, message.bytes, message.done);
    }
    bool ended(int error) {
        if (error != EAGAIN && error != EWOULDBLOCK && error != EINTR) state = ncclRemoteError;
        return false;
    }
};

struct ncclComm {
    std::shared_ptr<EmulatedProcesses> all;   // what waits on the stream may outlive the communicator
};
using ncclComm_t = ncclComm*;

// --------------------------------------------------------------------------------------------------------------------- the start

struct EmulatedAddress {
    uint64_t job;
    int port;
};
/// The socket at which rank 0 waits for the others, from ncclGetUniqueId() on.
inline int emulated_root = -1;

inline sockaddr_in emulated_loopback(int port) {
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    address.sin_port = htons(static_cast<uint16_t>(port));
    return address;
}
inline int emulated_listen(int* port) {
    const int made = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    sockaddr_in address = emulated_loopback(0);
    socklen_t size = sizeof address;
    if (made < 0 || bind(made, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(made, 64) != 0 ||
        getsockname(made, reinterpret_cast<sockaddr*>(&address), &size) != 0)
        return -1;
    return *port = ntohs(address.sin_port), made;
}

inline ncclResult_t ncclGetUniqueId(ncclUniqueId* id) {
    std::random_device random;
    EmulatedAddress address{uint64_t{random()} << 32 | random(), 0};
    if (emulated_root >= 0) close(emulated_root);
    emulated_root = emulated_listen(&address.port);
    if (emulated_root < 0) return ncclSystemError;
    *id = {};
    std::memcpy(id->internal, &address, sizeof address);
    return ncclSuccess;
}

/// What one process tells another about itself; rank 0 then sends everyone's to all.
struct EmulatedHello {
    uint64_t job;
    int rank, count, port, device;
};

/// Meets the others, on a thread of its own, until it has or the communicator is aborted.
struct EmulatedStart {
    EmulatedProcesses& mine;
    EmulatedAddress root;
    int listening;

    void run() {
        const ncclResult_t result = meet();
        if (listening >= 0) close(listening);
        mine.state = result;
    }

private:
    bool wait(int socket, short events) const {
        while (!mine.aborted) {
            pollfd one{socket, events, 0};
            if (::poll(&one, 1, 10) > 0) return true;
        }
        return false;
    }
    bool read_hello(int socket, EmulatedHello& hello) const {
        size_t done = 0;
        while (done < sizeof hello && wait(socket, POLLIN)) {
            const ssize_t got = recv(socket, reinterpret_cast<char*>(&hello) + done, sizeof hello - done, MSG_DONTWAIT);
            if (got == 0 || (got < 0 && errno != EAGAIN)) return false;
            if (got > 0) done += static_cast<size_t>(got);
        }
        return done == sizeof hello;
    }
    static bool say(int socket, const EmulatedHello& hello) { return send(socket, &hello, sizeof hello, MSG_NOSIGNAL) == sizeof hello; }
    int& peer(int rank) const { return mine.sockets[static_cast<size_t>(rank)]; }

    /// Connects to `rank`, and says hello.
    bool connect_to(int rank, int port, const EmulatedHello& hello) const {
        const sockaddr_in address = emulated_loopback(port);
        peer(rank) = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        return connect(peer(rank), reinterpret_cast<const sockaddr*>(&address), sizeof address) == 0 && say(peer(rank), hello);
    }
    /// Waits until `rank`s above this one have connected.
    ncclResult_t accept_all(std::vector<EmulatedHello>& hellos) const {
        for (int missing = mine.count - 1 - mine.rank; missing > 0;) {
            if (!wait(listening, POLLIN)) return ncclSystemError;
            const int joined = accept4(listening, nullptr, nullptr, SOCK_CLOEXEC);
            EmulatedHello hello{};
            if (joined < 0 || !read_hello(joined, hello) || hello.job != root.job) {   // of another job
                close(joined);
                continue;
            }
            if (hello.count != mine.count || hello.rank <= mine.rank || hello.rank >= mine.count || peer(hello.rank) >= 0) return ncclInvalidUsage;
            peer(hello.rank) = joined;
            hellos[static_cast<size_t>(hello.rank)] = hello;
            missing--;
        }
        return ncclSuccess;
    }
    ncclResult_t meet() const {
        EmulatedHello self{root.job, mine.rank, mine.count, 0, mine.device};
        sockaddr_in address{};
        socklen_t size = sizeof address;
        getsockname(listening, reinterpret_cast<sockaddr*>(&address), &size);
        self.port = ntohs(address.sin_port);
        std::vector<EmulatedHello> all(static_cast<size_t>(mine.count));
        all[static_cast<size_t>(mine.rank)] = self;
        if (mine.rank == 0) {
            if (ncclResult_t met = accept_all(all); met != ncclSuccess) return met;
            for (int to = 1; to < mine.count; to++)
                for (const EmulatedHello& hello : all)
                    if (!say(peer(to), hello)) return ncclRemoteError;
        } else {
            if (!connect_to(0, root.port, self)) return ncclSystemError;
            for (EmulatedHello& hello : all)
                if (!read_hello(peer(0), hello)) return ncclRemoteError;
            for (int to = 1; to < mine.rank; to++)
                if (!connect_to(to, all[static_cast<size_t>(to)].port, self)) return ncclRemoteError;
            std::vector<EmulatedHello> above = all;
            if (ncclResult_t met = accept_all(above); met != ncclSuccess) return met;
        }
        for (const EmulatedHello& a : all)
            for (const EmulatedHello& b : all)
                if (a.rank != b.rank && a.device == b.device) return ncclInvalidUsage;   // two processes of one GPU
        return ncclSuccess;
    }
};

inline ncclResult_t ncclCommInitRankConfig(ncclComm_t* comm, int count, ncclUniqueId id, int rank, ncclConfig_t* config) {
    if (count < 1 || rank < 0 || rank >= count || config->blocking != 0) return ncclInvalidArgument;
    EmulatedAddress root{};
    std::memcpy(&root, id.internal, sizeof root);
    auto all = std::make_shared<EmulatedProcesses>();
    all->rank = rank, all->count = count;
    cudaGetDevice(&all->device);
    all->sockets.assign(static_cast<size_t>(count), -1);
    int port = 0;
    EmulatedStart start{*all, root, rank == 0 ? std::exchange(emulated_root, -1) : emulated_listen(&port)};
    if (start.listening < 0) return ncclInvalidUsage;
    all->start = std::thread([start]() mutable { start.run(); });
    *comm = new ncclComm{all};
    return ncclInProgress;
}

// ----------------------------------------------------------------------------------------------------------------------- calls

inline ncclResult_t ncclCommGetAsyncError(ncclComm_t comm, ncclResult_t* error) {
    EmulatedProcesses& all = *comm->all;
    if (all.state == ncclInProgress && all.called && all.asked++ > 0) {
        auto transfer = std::shared_ptr<EmulatedTransfer>(std::move(all.called));
        all.under_way++;
        all.state = ncclSuccess;
        emulated_order.give("nccl", transfer->stream);
        emulated_queue_polled([all = comm->all, transfer] {
            const bool complete = all->advance(*transfer);
            if (complete) all->under_way--;
            return complete;
        });
    }
    if (all.state == ncclInProgress && all.finalizing && all.under_way == 0) all.state = ncclSuccess;
    return *error = all.state, ncclSuccess;
}

struct EmulatedGroup {
    int depth = 0;
    ncclComm_t comm = nullptr;
    std::unique_ptr<EmulatedTransfer> transfer;
};
inline EmulatedGroup emulated_group;

inline ncclResult_t ncclGroupStart() { return emulated_group.depth++, ncclSuccess; }
inline ncclResult_t ncclGroupEnd() {
    EmulatedGroup& group = emulated_group;
    if (group.depth == 0) return ncclInvalidUsage;
    if (--group.depth > 0 || !group.transfer) return ncclSuccess;
    EmulatedProcesses& all = *std::exchange(group.comm, nullptr)->all;
    all.called = std::move(group.transfer);
    all.asked = 0;
    all.state = ncclInProgress;
    return ncclInProgress;
}

/// One message, of the group that is open.
inline ncclResult_t emulated_message(bool sends, const void* memory, size_t bytes, int peer, ncclComm_t comm, cudaStream_t stream) {
    EmulatedProcesses& all = *comm->all;
    EmulatedGroup& group = emulated_group;
    if (all.state != ncclSuccess) return all.state == ncclInProgress ? ncclInvalidArgument : all.state.load();
    if (emulated_capture.stream || stream == cudaStreamPerThread) return ncclInvalidUsage;
    if (peer < 0 || peer >= all.count || (group.comm && (group.comm != comm || group.transfer->stream != stream))) return ncclInvalidUsage;
    auto* begin = static_cast<const char*>(memory);
    if (bytes && (!is_device_memory(begin) || !is_device_memory(begin + bytes - 1))) return ncclInvalidArgument;
    if (!group.transfer) {
        group.comm = comm;
        group.transfer = std::make_unique<EmulatedTransfer>();
        group.transfer->stream = stream;
        group.transfer->sends.resize(static_cast<size_t>(all.count));
        group.transfer->receives.resize(static_cast<size_t>(all.count));
    }
    auto& messages = sends ? group.transfer->sends : group.transfer->receives;
    messages[static_cast<size_t>(peer)].push_back({const_cast<char*>(begin), bytes});
    return ncclSuccess;
}
inline size_t emulated_bytes(size_t count, ncclDataType_t type) { return count * (type == ncclFloat ? sizeof(float) : 1); }

inline ncclResult_t ncclSend(const void* memory, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    ncclGroupStart();
    const ncclResult_t result = emulated_message(true, memory, emulated_bytes(count, type), peer, comm, stream), ended = ncclGroupEnd();
    return result != ncclSuccess ? result : ended;
}
inline ncclResult_t ncclRecv(void* memory, size_t count, ncclDataType_t type, int peer, ncclComm_t comm, cudaStream_t stream) {
    ncclGroupStart();
    const ncclResult_t result = emulated_message(false, memory, emulated_bytes(count, type), peer, comm, stream), ended = ncclGroupEnd();
    return result != ncclSuccess ? result : ended;
}
inline ncclResult_t ncclAllGather(const void* mine, void* all, size_t count, ncclDataType_t type, ncclComm_t comm, cudaStream_t stream) {
    const size_t bytes = emulated_bytes(count, type);
    ncclGroupStart();
    ncclResult_t result = ncclSuccess;
    for (int peer = 0; peer < comm->all->count && result == ncclSuccess; peer++) {
        char* segment = static_cast<char*>(all) + bytes * static_cast<size_t>(peer);
        if (peer == comm->all->rank && segment == mine) continue;   // in place
        result = emulated_message(true, mine, bytes, peer, comm, stream);
        if (result == ncclSuccess) result = emulated_message(false, segment, bytes, peer, comm, stream);
    }
    const ncclResult_t ended = ncclGroupEnd();
    return result != ncclSuccess ? result : ended;
}

// ------------------------------------------------------------------------------------------------------------------------ the end

inline ncclResult_t ncclCommFinalize(ncclComm_t comm) {
    EmulatedProcesses& all = *comm->all;
    if (all.state != ncclSuccess) return all.state == ncclInProgress ? ncclInvalidArgument : all.state.load();
    all.finalizing = true;
    all.state = ncclInProgress;
    return ncclInProgress;
}
inline ncclResult_t ncclCommDestroy(ncclComm_t comm) {
    if (!comm->all->finalizing || comm->all->state != ncclSuccess) return ncclInvalidUsage;
    if (comm->all->start.joinable()) comm->all->start.join();
    return delete comm, ncclSuccess;
}
inline ncclResult_t ncclCommAbort(ncclComm_t comm) {
    comm->all->aborted = true;
    if (comm->all->start.joinable()) comm->all->start.join();
    return delete comm, ncclSuccess;
}
