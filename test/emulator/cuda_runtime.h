// The part of CUDA's runtime and built-ins that the engine uses, for the emulator. Found before the real one by -Itest/emulator.
#pragma once
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <map>
#include <memory>
#include <new>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>
#include "cuda.h"
#include "emulator.h"

// ------------------------------------------------------------------------------------------------------------ the language

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __restrict__ __restrict

using dim3 = EmulatedDim;
struct alignas(8) uint2 { uint32_t x, y; };
struct alignas(16) uint4 { uint32_t x, y, z, w; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };

template <class T> T min(T a, T b) { return b < a ? b : a; }
template <class T> T max(T a, T b) { return a < b ? b : a; }
inline float rsqrtf(float x) { return 1 / std::sqrt(x); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }

inline void __syncthreads(std::source_location where = std::source_location::current()) { emulated_barrier(0, 0, 0, "__syncthreads", where); }
inline int __syncthreads_count(int predicate, std::source_location where = std::source_location::current()) {
    return emulated_barrier(0, 0, predicate != 0, "__syncthreads_count", where);
}
inline void __syncwarp(unsigned mask = 0xffffffffu) {
    emulated_warp(mask, nullptr, [](EmulatedLanes&) {}, "__syncwarp");
}

/// What one lane brings to a shuffle, and what it gets.
struct EmulatedShuffle {
    uint64_t value, result;
    int source;
};
template <class T>
T emulated_shuffle(unsigned mask, T value, int source, const char* what) {
    static_assert(sizeof(T) <= 8 && std::is_trivially_copyable_v<T>);
    EmulatedShuffle mine{0, 0, source};
    std::memcpy(&mine.value, &value, sizeof value);
    emulated_warp(mask, &mine, [](EmulatedLanes& lanes) {
        for (void* lane : lanes) {
            auto* to = static_cast<EmulatedShuffle*>(lane);
            if (!to) continue;
            auto* from = static_cast<EmulatedShuffle*>(lanes[to->source]);
            if (from) to->result = from->value;
            else emulator_poison(&to->result, sizeof to->result);   // of a lane that takes no part
        }
    }, what);
    std::memcpy(&value, &mine.result, sizeof value);
    return value;
}
inline int emulated_lane() { return static_cast<int>((threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z)) % 32); }

template <class T> T __shfl_sync(unsigned mask, T value, int source, int width = 32) {
    int lane = emulated_lane();
    return emulated_shuffle(mask, value, (lane & ~(width - 1)) | (source & (width - 1)), "__shfl_sync");
}
template <class T> T __shfl_xor_sync(unsigned mask, T value, int bits, int width = 32) {
    int lane = emulated_lane(), source = lane ^ bits;
    return emulated_shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, "__shfl_xor_sync");
}
template <class T> T __shfl_down_sync(unsigned mask, T value, int by, int width = 32) {
    int lane = emulated_lane(), source = lane + by;
    return emulated_shuffle(mask, value, source < (lane & ~(width - 1)) + width ? source : lane, "__shfl_down_sync");
}
template <class T> T __shfl_up_sync(unsigned mask, T value, int by, int width = 32) {
    int lane = emulated_lane(), source = lane - by;
    return emulated_shuffle(mask, value, source >= (lane & ~(width - 1)) ? source : lane, "__shfl_up_sync");
}

struct EmulatedVote {
    bool mine;
    unsigned ballot;
};
inline unsigned __ballot_sync(unsigned mask, int predicate) {
    EmulatedVote vote{predicate != 0, 0};
    emulated_warp(mask, &vote, [](EmulatedLanes& lanes) {
        unsigned ballot = 0;
        for (int i = 0; i < 32; i++)
            if (lanes[i] && static_cast<EmulatedVote*>(lanes[i])->mine) ballot |= 1u << i;
        for (void* lane : lanes)
            if (lane) static_cast<EmulatedVote*>(lane)->ballot = ballot;
    }, "__ballot_sync");
    return vote.ballot;
}

struct EmulatedMatch {
    uint64_t mine;
    unsigned same;
};
template <class T> unsigned __match_any_sync(unsigned mask, T value) {
    EmulatedMatch match{static_cast<uint64_t>(value), 0};
    emulated_warp(mask, &match, [](EmulatedLanes& lanes) {
        for (void* lane : lanes)
            for (int i = 0; lane && i < 32; i++)
                if (lanes[i] && static_cast<EmulatedMatch*>(lanes[i])->mine == static_cast<EmulatedMatch*>(lane)->mine)
                    static_cast<EmulatedMatch*>(lane)->same |= 1u << i;
    }, "__match_any_sync");
    return match.same;
}

// Fibres change only where they wait, so a plain read and write is atomic. Floats are left out: their sums depend on the order.
template <class T> T atomicAdd(T* at, std::type_identity_t<T> value) {
    static_assert(std::is_integral_v<T>, "a sum of floats by atomics has no fixed order");
    T before = *at;
    *at = before + value;
    return before;
}
template <class T> T atomicMin(T* at, std::type_identity_t<T> value) {
    T before = *at;
    if (value < before) *at = value;
    return before;
}

// ------------------------------------------------------------------------------------------------------------ the runtime

enum cudaError_t {
    cudaSuccess = 0,
    cudaErrorInvalidValue = 1,
    cudaErrorMemoryAllocation = 2,
    cudaErrorInvalidConfiguration = 9,
    cudaErrorInvalidDevice = 101,
    cudaErrorInvalidResourceHandle = 400,
    cudaErrorIllegalState = 401,
    cudaErrorNotReady = 600,
    cudaErrorStreamCaptureUnsupported = 900,
    cudaErrorStreamCaptureInvalidated = 901,
    cudaErrorStreamCaptureImplicit = 906,
    cudaErrorCapturedEvent = 907
};
struct EmulatedErrorText {
    cudaError_t error;
    const char *name, *text;
};
inline constexpr EmulatedErrorText EMULATED_ERRORS[] = {
    {cudaSuccess, "cudaSuccess", "no error"},
    {cudaErrorInvalidValue, "cudaErrorInvalidValue", "invalid argument"},
    {cudaErrorMemoryAllocation, "cudaErrorMemoryAllocation", "out of memory"},
    {cudaErrorInvalidConfiguration, "cudaErrorInvalidConfiguration", "invalid configuration argument"},
    {cudaErrorInvalidDevice, "cudaErrorInvalidDevice", "invalid device ordinal"},
    {cudaErrorInvalidResourceHandle, "cudaErrorInvalidResourceHandle", "invalid resource handle"},
    {cudaErrorIllegalState, "cudaErrorIllegalState", "the operation cannot be performed in the present state"},
    {cudaErrorNotReady, "cudaErrorNotReady", "device not ready"},
    {cudaErrorStreamCaptureUnsupported, "cudaErrorStreamCaptureUnsupported", "operation not permitted when stream is capturing"},
    {cudaErrorStreamCaptureInvalidated, "cudaErrorStreamCaptureInvalidated", "operation failed due to a previous error during capture"},
    {cudaErrorStreamCaptureImplicit, "cudaErrorStreamCaptureImplicit", "operation would make the legacy stream depend on a capturing stream"},
    {cudaErrorCapturedEvent, "cudaErrorCapturedEvent", "operation not permitted on an event last recorded in a capturing stream"}};
inline const EmulatedErrorText& emulated_error(cudaError_t error) {
    for (const EmulatedErrorText& known : EMULATED_ERRORS)
        if (known.error == error) return known;
    emulation_error("an error that cuda_runtime.h of the emulator does not know");
}
inline const char* cudaGetErrorName(cudaError_t error) { return emulated_error(error).name; }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// ---------------------------------------------------------------------------------------- streams, graphs captured from them, events

using cudaStream_t = struct CUstream_st*;
inline const cudaStream_t cudaStreamLegacy = reinterpret_cast<cudaStream_t>(1);
inline const cudaStream_t cudaStreamPerThread = reinterpret_cast<cudaStream_t>(2);

struct EmulatedGraph {
    std::vector<EmulatedWork> work;
};
using cudaGraph_t = EmulatedGraph*;
using cudaGraphExec_t = struct EmulatedGraphExec*;
struct EmulatedGraphExec : EmulatedGraph {};

/// The capture under way, of one stream: what is launched on it is kept, arguments by value, and not done.
struct EmulatedCapture {
    cudaStream_t stream = nullptr;    ///< null: none is under way
    EmulatedGraph graph;
    std::string refused;              ///< the call that invalidated the capture, and the rule
};
inline EmulatedCapture emulated_capture;

inline const char* cudaGetErrorString(cudaError_t error) {
    bool of_capture = error == cudaErrorStreamCaptureUnsupported || error == cudaErrorStreamCaptureInvalidated || error == cudaErrorStreamCaptureImplicit;
    return of_capture && !emulated_capture.refused.empty() ? emulated_capture.refused.c_str() : emulated_error(error).text;
}

/// While a stream captures, nothing may wait for it, and nothing may be allocated or freed (as in cudaStreamCaptureModeGlobal,
/// whatever mode was asked for): the call fails, and so does the capture.
inline cudaError_t emulated_refuse(const char* call, cudaError_t error = cudaErrorStreamCaptureUnsupported) {
    if (!emulated_capture.stream) return cudaSuccess;
    if (emulated_capture.refused.empty()) emulated_capture.refused = std::string(call) + ": " + emulated_error(error).text;
    return error;
}
/// The number of the last work launched on each stream, and of the other streams' work that it waits for. A GPU's streams run side by side, and the
/// one queue here is only one of the possible orders. So it is an error to launch work on a stream, or to wait for it, while another stream has work
/// that it does not wait for.
struct EmulatedOrder {
    using Numbers = std::map<cudaStream_t, uint64_t>;
    uint64_t given = 0;
    Numbers last;
    std::map<cudaStream_t, Numbers> waits;

    void check(const char* call, cudaStream_t stream) {
        for (auto [other, number] : last)
            if (other != stream && number > waits[stream][other]) emulation_error(std::string(call) + ": another stream has work that this one does not wait for");
    }
    void give(const char* call, cudaStream_t stream) {
        check(call, stream);
        last[stream] = ++given;
    }
};
inline EmulatedOrder emulated_order;

inline cudaError_t emulated_submit(const char* call, cudaStream_t stream, EmulatedWork work) {
    if (emulated_capture.stream && (stream == nullptr || stream == cudaStreamLegacy)) return emulated_refuse(call, cudaErrorStreamCaptureImplicit);
    if (!emulated_capture.stream || stream != emulated_capture.stream) return emulated_order.give(call, stream), emulated_queue(std::move(work)), cudaSuccess;
    if (!emulated_capture.refused.empty()) return cudaErrorStreamCaptureInvalidated;
    emulated_capture.graph.work.push_back(emulated_named(std::move(work)));
    return cudaSuccess;
}
/// For calls that wait for the device.
inline cudaError_t emulated_wait(const char* call) {
    cudaError_t refused = emulated_refuse(call);
    if (refused == cudaSuccess) emulated_finish(), emulated_order.last.clear();
    return refused;
}

enum : unsigned { cudaStreamDefault = 0, cudaStreamNonBlocking = 1 };
inline cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) { return *stream = reinterpret_cast<cudaStream_t>(new char), cudaSuccess; }
/// Waits for nothing: what was launched on the stream is still done.
inline cudaError_t cudaStreamDestroy(cudaStream_t stream) {
    delete reinterpret_cast<char*>(stream);
    emulated_order.waits.erase(stream);
    return cudaSuccess;
}
inline cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
    if (!emulated_capture.stream) emulated_order.check("cudaStreamSynchronize", stream);
    return emulated_wait("cudaStreamSynchronize");
}
/// Does the queued work and says that it was not ready, so that the next query says it is; unless another process keeps it waiting.
inline cudaError_t cudaStreamQuery(cudaStream_t stream) {
    if (cudaError_t refused = emulated_refuse("cudaStreamQuery"); refused != cudaSuccess) return refused;
    emulated_order.check("cudaStreamQuery", stream);
    if (!emulated_poll()) return cudaErrorNotReady;
    return emulated_order.last.clear(), cudaSuccess;
}
inline cudaError_t cudaDeviceSynchronize() { return emulated_wait("cudaDeviceSynchronize"); }

enum cudaStreamCaptureMode { cudaStreamCaptureModeGlobal, cudaStreamCaptureModeThreadLocal, cudaStreamCaptureModeRelaxed };
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone, cudaStreamCaptureStatusActive, cudaStreamCaptureStatusInvalidated };
inline cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode) {
    if (emulated_capture.stream) return cudaErrorIllegalState;
    emulated_capture = {};
    if (stream == nullptr || stream == cudaStreamLegacy) return cudaErrorStreamCaptureUnsupported;
    emulated_capture.stream = stream;
    return cudaSuccess;
}
inline cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
    *graph = nullptr;
    if (!stream || stream != emulated_capture.stream) return cudaErrorIllegalState;
    emulated_capture.stream = nullptr;
    if (!emulated_capture.refused.empty()) return cudaErrorStreamCaptureInvalidated;
    *graph = new EmulatedGraph(std::move(emulated_capture.graph));
    return cudaSuccess;
}
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
    *status = !stream || stream != emulated_capture.stream ? cudaStreamCaptureStatusNone
              : emulated_capture.refused.empty()           ? cudaStreamCaptureStatusActive
                                                           : cudaStreamCaptureStatusInvalidated;
    return cudaSuccess;
}
inline cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t graph, unsigned long long = 0) {
    return *exec = new EmulatedGraphExec{*graph}, cudaSuccess;
}
inline cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t stream) {
    return emulated_submit("cudaGraphLaunch", stream, [work = exec->work] {
        for (const EmulatedWork& each : work) each();
    });
}
inline cudaError_t cudaGraphDestroy(cudaGraph_t graph) { return delete graph, cudaSuccess; }
inline cudaError_t cudaGraphExecDestroy(cudaGraphExec_t exec) { return delete exec, cudaSuccess; }

struct EmulatedEvent {
    enum { never, queued, reached, captured } state = never;
    bool timed = true;
    std::chrono::steady_clock::time_point at;
    EmulatedOrder::Numbers behind;    // the work that it comes after, by stream
};
using cudaEvent_t = std::shared_ptr<EmulatedEvent>*;    // what is queued may outlive cudaEventDestroy
enum : unsigned { cudaEventDefault = 0, cudaEventBlockingSync = 1, cudaEventDisableTiming = 2 };
inline cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags) {
    *event = new std::shared_ptr<EmulatedEvent>(new EmulatedEvent);
    (**event)->timed = !(flags & cudaEventDisableTiming);
    return cudaSuccess;
}
inline cudaError_t cudaEventCreate(cudaEvent_t* event) { return cudaEventCreateWithFlags(event, cudaEventDefault); }
inline cudaError_t cudaEventDestroy(cudaEvent_t event) { return delete event, cudaSuccess; }
inline cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
    bool capturing = emulated_capture.stream && stream == emulated_capture.stream;
    (*event)->state = capturing ? EmulatedEvent::captured : EmulatedEvent::queued;
    if (capturing) return cudaSuccess;    // in a graph it only orders streams
    const cudaError_t error = emulated_submit("cudaEventRecord", stream, [event = *event] {
        event->at = std::chrono::steady_clock::now();
        event->state = EmulatedEvent::reached;
    });
    (*event)->behind = emulated_order.waits[stream];
    (*event)->behind[stream] = emulated_order.given;
    return error;
}
inline cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned = 0) {
    if (emulated_capture.stream) return emulated_refuse("cudaStreamWaitEvent", cudaErrorIllegalState);   // nothing here needs it in a capture yet
    for (auto [other, number] : (*event)->behind) emulated_order.waits[stream][other] = std::max(emulated_order.waits[stream][other], number);
    return cudaSuccess;
}
inline cudaError_t cudaEventSynchronize(cudaEvent_t event) {
    if ((*event)->state == EmulatedEvent::captured) return cudaErrorCapturedEvent;
    cudaError_t refused = emulated_refuse("cudaEventSynchronize");
    while (refused == cudaSuccess && (*event)->state == EmulatedEvent::queued) emulated_advance();   // no work behind the event is done
    return refused;
}
/// An event that is not reached yet is reached at the next query.
inline cudaError_t cudaEventQuery(cudaEvent_t event) {
    if ((*event)->state == EmulatedEvent::captured) return cudaErrorCapturedEvent;
    bool reached = (*event)->state != EmulatedEvent::queued;
    cudaError_t error = emulated_wait("cudaEventQuery");
    return error != cudaSuccess ? error : reached ? cudaSuccess : cudaErrorNotReady;
}
inline cudaError_t cudaEventElapsedTime(float* milliseconds, cudaEvent_t start, cudaEvent_t stop) {
    for (cudaEvent_t event : {start, stop}) {
        if ((*event)->state == EmulatedEvent::captured) return cudaErrorCapturedEvent;
        if ((*event)->state == EmulatedEvent::never || !(*event)->timed) return cudaErrorInvalidResourceHandle;
        if ((*event)->state == EmulatedEvent::queued) return cudaErrorNotReady;
    }
    return *milliseconds = std::chrono::duration<float, std::milli>((*stop)->at - (*start)->at).count(), cudaSuccess;
}

// ------------------------------------------------------------------------------------------------------------------ the device

// A device of few SMs, so that a grid that fills it loops over the work in several rounds.
enum cudaDeviceAttr {
    cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin, cudaDevAttrComputeCapabilityMajor, cudaDevAttrComputeCapabilityMinor,
    cudaDevAttrClockRate, cudaDevAttrL2CacheSize
};
struct cudaDeviceProp {
    char name[256];
    size_t totalGlobalMem;
    int multiProcessorCount, major, minor;
};
/// As many as EMULATOR_GPUS says (1). They are all alike; a process takes one of them.
inline cudaError_t cudaGetDeviceCount(int* count) {
    const char* set = std::getenv("EMULATOR_GPUS");
    return *count = set ? std::atoi(set) : 1, cudaSuccess;
}
inline int emulated_device = 0;
inline cudaError_t cudaGetDevice(int* device) { return *device = emulated_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
    int count = 0;
    cudaGetDeviceCount(&count);
    if (device < 0 || device >= count) return cudaErrorInvalidDevice;
    return emulated_device = device, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
    switch (attribute) {
        case cudaDevAttrMultiProcessorCount: *value = 3; break;
        case cudaDevAttrMaxSharedMemoryPerBlockOptin: *value = 227 << 10; break;
        case cudaDevAttrComputeCapabilityMajor: *value = 9; break;
        case cudaDevAttrComputeCapabilityMinor: *value = 0; break;
        case cudaDevAttrClockRate: *value = 1000000; break;
        case cudaDevAttrL2CacheSize: *value = 256 << 10; break;
    }
    return cudaSuccess;
}
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
    *properties = {"Emulated GPU", size_t{8} << 30, 3, 9, 0};
    return cudaSuccess;
}

/// The driver's functions, by name: those that test/emulator/cuda.h has.
enum { cudaEnableDefault = 0 };
enum cudaDriverEntryPointQueryResult { cudaDriverEntryPointSuccess = 0, cudaDriverEntryPointSymbolNotFound = 1 };
inline cudaError_t cudaGetDriverEntryPointByVersion(const char* name, void** function, unsigned, unsigned long long, cudaDriverEntryPointQueryResult* found) {
    const bool known = std::strcmp(name, "cuTensorMapEncodeTiled") == 0;
    *function = known ? reinterpret_cast<void*>(&cuTensorMapEncodeTiled) : nullptr;
    *found = known ? cudaDriverEntryPointSuccess : cudaDriverEntryPointSymbolNotFound;
    return cudaSuccess;
}

enum cudaMemcpyKind { cudaMemcpyHostToDevice = 1, cudaMemcpyDeviceToHost, cudaMemcpyDeviceToDevice };
inline cudaError_t cudaMemGetInfo(size_t* available, size_t* total) {
    *available = *total = size_t{8} << 30;
    return cudaSuccess;
}
inline cudaError_t cudaMalloc(void** memory, size_t bytes) {
    if (cudaError_t refused = emulated_refuse("cudaMalloc"); refused != cudaSuccess) return refused;
    *memory = bytes <= size_t{8} << 30 ? emulated_malloc(bytes) : nullptr;
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
/// Waits first for all that may still use the memory.
inline cudaError_t cudaFree(void* memory) {
    if (!memory) return cudaSuccess;
    if (cudaError_t refused = emulated_wait("cudaFree"); refused != cudaSuccess) return refused;
    return emulated_free(memory) ? cudaSuccess : cudaErrorInvalidValue;
}
enum : unsigned { cudaHostAllocDefault = 0 };
inline cudaError_t cudaHostAlloc(void** memory, size_t bytes, unsigned) {
    if (cudaError_t refused = emulated_refuse("cudaHostAlloc"); refused != cudaSuccess) return refused;
    *memory = bytes <= size_t{8} << 30 ? emulated_malloc_host(bytes) : nullptr;
    return *memory ? cudaSuccess : cudaErrorMemoryAllocation;
}
inline cudaError_t cudaMallocHost(void** memory, size_t bytes, unsigned flags = cudaHostAllocDefault) { return cudaHostAlloc(memory, bytes, flags); }
inline cudaError_t cudaFreeHost(void* memory) {
    if (!memory) return cudaSuccess;
    if (cudaError_t refused = emulated_wait("cudaFreeHost"); refused != cudaSuccess) return refused;
    return emulated_free_host(memory) ? cudaSuccess : cudaErrorInvalidValue;
}

inline cudaError_t cudaMemsetAsync(void* memory, int value, size_t bytes, cudaStream_t stream) {
    if (bytes && !is_device_memory(memory)) return cudaErrorInvalidValue;
    return emulated_submit("cudaMemsetAsync", stream, [=] {
        DeviceAccess open;
        if (bytes) std::memset(memory, value, bytes);
    });
}
/// Pinned host memory is read and written when the stream comes to the copy. Pageable memory, which a graph cannot have, is read at
/// the call, and written before it returns.
inline cudaError_t cudaMemcpyAsync(void* to, const void* from, size_t bytes, cudaMemcpyKind kind, cudaStream_t stream) {
    if (bytes && (is_device_memory(to) != (kind != cudaMemcpyDeviceToHost) || is_device_memory(from) != (kind != cudaMemcpyHostToDevice)))
        return cudaErrorInvalidValue;
    const bool pageable = bytes && kind != cudaMemcpyDeviceToDevice && !is_pinned_memory(kind == cudaMemcpyHostToDevice ? from : to, bytes);
    if (pageable && emulated_capture.stream && stream == emulated_capture.stream) return emulated_refuse("cudaMemcpyAsync of host memory that is not pinned");
    std::vector<char> staged;
    if (pageable && kind == cudaMemcpyHostToDevice) staged.assign(static_cast<const char*>(from), static_cast<const char*>(from) + bytes);
    cudaError_t error = emulated_submit("cudaMemcpyAsync", stream, [=, staged = std::move(staged)] {
        DeviceAccess open;
        if (bytes) std::memcpy(to, staged.empty() ? from : staged.data(), bytes);
    });
    return error == cudaSuccess && pageable && kind == cudaMemcpyDeviceToHost ? emulated_wait("cudaMemcpyAsync") : error;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
inline std::map<const void*, int> emulated_shared_limits;
inline cudaError_t cudaFuncSetAttribute(const void* kernel, cudaFuncAttribute, int value) {
    if (value > 227 << 10) return cudaErrorInvalidValue;
    emulated_shared_limits[kernel] = value;
    return cudaSuccess;
}
struct cudaFuncAttributes {};
inline cudaError_t cudaFuncGetAttributes(cudaFuncAttributes*, const void*) { return cudaSuccess; }
template <class Kernel>
cudaError_t cudaOccupancyMaxActiveBlocksPerMultiprocessor(int* blocks, Kernel*, int, size_t) { return *blocks = 2, cudaSuccess; }

struct cudaLaunchAttribute;
struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

template <class T>
void check_argument(const T& argument, int number) {
    if constexpr (std::is_pointer_v<T>)
        if (argument && !is_device_memory(argument)) emulation_error("argument " + std::to_string(number) + " does not point to device memory");
}

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
    const dim3 grid = config->gridDim, threads = config->blockDim;
    auto limit = emulated_shared_limits.find(reinterpret_cast<const void*>(kernel));
    size_t shared_limit = limit == emulated_shared_limits.end() ? 48 << 10 : static_cast<size_t>(limit->second);
    if (!grid.x || !grid.y || !grid.z || grid.x > 0x7fffffffu || grid.y > 65535 || grid.z > 65535 || !threads.x || !threads.y || !threads.z ||
        size_t{threads.x} * threads.y * threads.z > 1024)
        return cudaErrorInvalidConfiguration;
    if (config->dynamicSmemBytes > shared_limit) return cudaErrorInvalidValue;
    // On the heap: g++ 12 spoils a closure of many bytes under -ftrivial-auto-var-init=pattern.
    auto values = std::make_shared<const std::tuple<Parameters...>>(std::forward<Arguments>(arguments)...);
    std::apply([](const auto&... each) { int number = 0; (check_argument(each, number++), ...); }, *values);
    return emulated_submit("cudaLaunchKernelEx", config->stream, [=, shared = config->dynamicSmemBytes] {
        emulate_grid(grid, threads, shared, [&] { std::apply(kernel, *values); });
    });
}
