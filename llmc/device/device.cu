// A GPU as a device.
#include "llmc/device/device.h"
#include <cstring>
#include <exception>
#include <new>
#include <string>
#include <utility>
#include <vector>
#include "llmc/device/cuda_common.h"

size_t device_alloc_bytes(size_t bytes) {
    const size_t unit = size_t{2} << 20;   // what the driver allocates in
    return (bytes + unit - 1) / unit * unit;
}

static cudaDeviceProp properties() {
    int device = 0;
    cudaDeviceProp found{};
    cuda_check(cudaGetDevice(&device), "properties");
    cuda_check(cudaGetDeviceProperties(&found, device), "properties");
    return found;
}

static std::string describe(const cudaDeviceProp& p) {
    return concat(p.name, ", ", p.multiProcessorCount, " SMs, ", p.totalGlobalMem >> 30, " GiB, compute capability ", p.major, ".", p.minor);
}

__global__ void probe_kernel() {}

// The first thing a program asks of the GPU. The error says what is missing where there is none, or none that this build has code for.
static void require_gpu() {
    static const bool there = [] {
        int count = 0;
        cudaError_t error = cudaGetDeviceCount(&count);
        require(error == cudaSuccess && count > 0, "no GPU to run on (", error == cudaSuccess ? "CUDA sees none" : cudaGetErrorString(error),
                "); run it where nvidia-smi lists one, or build for the CPU: make DEVICE=cpu");
        cudaFuncAttributes attributes{};
        error = cudaFuncGetAttributes(&attributes, reinterpret_cast<const void*>(probe_kernel));
        require(error == cudaSuccess, "this build has no code for ", describe(properties()), " (", cudaGetErrorString(error),
                "); it needs compute capability 8.0 or more, and an ARCH that fits: make DEVICE=cuda, without ARCH, fits all");
        return true;
    }();
    static_cast<void>(there);
}

void device_begin(char**) {}

void* device_alloc(size_t bytes) {
    require_gpu();
    static const size_t all = properties().totalGlobalMem;
    if (bytes > all) throw std::bad_alloc();    // what cudaMalloc does with a size that overflows when rounded up is not documented
    void* memory = nullptr;
    cudaError_t error = cudaMalloc(&memory, bytes > 0 ? bytes : 1);
    if (error == cudaErrorMemoryAllocation) {
        cudaGetLastError();   // cleared, so that later calls do not report it
        throw std::bad_alloc();
    }
    cuda_check(error, "device_alloc");
    device_zero(memory, bytes, nullptr);
    device_wait(nullptr);
    return memory;
}

void device_free(void* memory) {
    const cudaError_t error = cudaFree(memory);
    // Once a kernel has failed, every call fails: a free while that error unwinds the stack must not end the program before it is reported.
    if (std::uncaught_exceptions() == 0) cuda_check(error, "device_free");
}

void device_zero(void* memory, size_t bytes, Stream stream) {
    cuda_check(cudaMemsetAsync(memory, 0, bytes, cuda_stream(stream)), "device_zero");
}

void copy_to_device(void* device, const void* host, size_t bytes, Stream stream) {
    cuda_check(cudaMemcpyAsync(device, host, bytes, cudaMemcpyHostToDevice, cuda_stream(stream)), "copy_to_device");
    device_wait(stream);
}

void copy_to_host(void* host, const void* device, size_t bytes, Stream stream) {
    cuda_check(cudaMemcpyAsync(host, device, bytes, cudaMemcpyDeviceToHost, cuda_stream(stream)), "copy_to_host");
    device_wait(stream);
}

void copy_on_device(void* to, const void* from, size_t bytes, Stream stream) {
    cuda_check(cudaMemcpyAsync(to, from, bytes, cudaMemcpyDeviceToDevice, cuda_stream(stream)), "copy_on_device");
}

void device_wait(Stream stream) { cuda_check(cudaStreamSynchronize(cuda_stream(stream)), "device_wait"); }

// Pinned memory in slots; a slot is free again when the event behind its copy is complete.
struct Uploads::Ring {
    size_t bytes = 0;
    char* memory = nullptr;
    std::vector<cudaEvent_t> done;
    size_t next = 0;
};

Uploads::Uploads(size_t bytes, int slots) : ring(std::make_unique<Ring>()) {
    ring->bytes = bytes;
    require(bytes >= 1 && slots >= 1, "uploads: bytes and slots must be at least 1, not ", bytes, " and ", slots);
    cuda_check(cudaMallocHost(reinterpret_cast<void**>(&ring->memory), bytes * static_cast<size_t>(slots)), "uploads");
    ring->done.resize(static_cast<size_t>(slots));
    for (cudaEvent_t& event : ring->done) cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "uploads");
}

Uploads::~Uploads() {
    for (cudaEvent_t event : ring->done) {
        cudaEventSynchronize(event);   // an event that was never recorded counts as complete
        cudaEventDestroy(event);
    }
    cudaFreeHost(ring->memory);
}

void Uploads::copy(void* device, const void* host, size_t bytes, Stream stream) {
    if (bytes == 0) return;
    require(bytes <= ring->bytes, "uploads: a copy of ", bytes, " bytes is larger than a slot, ", ring->bytes);
    const size_t slot = ring->next++ % ring->done.size();
    char* pinned = ring->memory + slot * ring->bytes;
    cuda_check(cudaEventSynchronize(ring->done[slot]), "uploads");
    std::memcpy(pinned, host, bytes);
    cuda_check(cudaMemcpyAsync(device, pinned, bytes, cudaMemcpyHostToDevice, cuda_stream(stream)), "uploads");
    cuda_check(cudaEventRecord(ring->done[slot], cuda_stream(stream)), "uploads");
}

struct Capture::Graph {
    cudaGraphExec_t exec = nullptr;   // null before the second run
    ~Graph() {
        if (exec) cudaGraphExecDestroy(exec);
    }
};

Capture::Capture() = default;
Capture::~Capture() = default;

bool Capture::replay(Stream stream) {
    if (profiling() || !graph || !graph->exec) return false;
    Range range("replay");
    cuda_check(cudaGraphLaunch(graph->exec, cuda_stream(stream)), "replay");
    return true;
}

bool Capture::begin(Stream stream) {
    if (profiling()) return false;
    if (!graph) {
        graph = std::make_unique<Graph>();
        return false;
    }
    cuda_check(cudaStreamBeginCapture(cuda_stream(stream), cudaStreamCaptureModeThreadLocal), "capture");
    return true;
}

void Capture::end(Stream stream) {
    cudaGraph_t captured = nullptr;
    cuda_check(cudaStreamEndCapture(cuda_stream(stream), &captured), "capture");
    const cudaError_t error = cudaGraphInstantiate(&graph->exec, captured, 0);
    cudaGraphDestroy(captured);
    cuda_check(error, "capture");
    replay(stream);
}

void Capture::abandon(Stream stream) {
    cudaGraph_t captured = nullptr;
    cudaStreamEndCapture(cuda_stream(stream), &captured);
    if (captured) cudaGraphDestroy(captured);
}

void Capture::forget() { graph.reset(); }

std::string device_name() {
    require_gpu();
    return describe(properties());
}

size_t device_free_bytes(int) {
    require_gpu();
    size_t available = 0, total = 0;
    cuda_check(cudaMemGetInfo(&available, &total), "device_free_bytes");
    return available;
}

size_t device_overhead_bytes(int64_t) { return MATMUL_WORKSPACE; }
