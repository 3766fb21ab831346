// The emulator's streams: work is done when the host waits, a graph holds what was captured, and a call that CUDA forbids during a
// capture fails with an error that names it. And a block that asks for more registers than it has, which would hang a GPU silently.
#include <doctest/doctest.h>
#include <functional>
#include <memory>
#include <string>
#include <vector>
#include "llmc/device/cuda_common.h"
#include "llmc/device/device.h"
#include "llmc/ops/matmul.h"

namespace {

// x[i] += by, one thread an element.
__global__ void add_kernel(float* x, float by) { x[threadIdx.x] += by; }

// A producer warpgroup lowers its registers, the others raise theirs.
template <int PRODUCER, int OTHERS>
__global__ void share_registers_kernel() {
    if (threadIdx.x < 128) setmaxnreg_dec<PRODUCER>();
    else setmaxnreg_inc<OTHERS>();
}
template <int PRODUCER, int OTHERS>
void share_registers(unsigned threads) {
    launch("share_registers", share_registers_kernel<PRODUCER, OTHERS>, Grid{dim3(1), dim3(threads)}, nullptr);
    device_wait(nullptr);
}

constexpr int N = 32;

struct DeviceFloats {
    float* data = static_cast<float*>(device_alloc(N * sizeof(float)));
    ~DeviceFloats() { device_free(data); }
    void add(float by) { launch("add", add_kernel, Grid{dim3(1), dim3(N)}, nullptr, data, by); }
    float first() const {
        float value = 0;
        copy_to_host(&value, data, sizeof value, nullptr);
        return value;
    }
};

struct PinnedFloats {
    float* data = nullptr;
    PinnedFloats() {
        void* memory = nullptr;
        cuda_check(cudaMallocHost(&memory, N * sizeof(float)), "test");
        data = static_cast<float*>(memory);
    }
    ~PinnedFloats() { cudaFreeHost(data); }
};

const cudaStream_t stream = cudaStreamPerThread;
void begin() { cuda_check(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "test"); }

struct Captured {
    cudaGraphExec_t exec = nullptr;
    explicit Captured(const std::function<void()>& work) {
        cudaGraph_t graph = nullptr;
        begin();
        work();
        cuda_check(cudaStreamEndCapture(stream, &graph), "test");
        cuda_check(cudaGraphInstantiate(&exec, graph, 0), "test");
        cudaGraphDestroy(graph);
    }
    ~Captured() { cudaGraphExecDestroy(exec); }
    void launch() { cuda_check(cudaGraphLaunch(exec, stream), "test"); }
};

}  // namespace

TEST_CASE("emulator: a graph does what was captured, as often as it is launched, and the capture does nothing") {
    DeviceFloats x;
    float by = 1;
    Captured graph([&] {
        x.add(by);
        cuda_check(cudaMemsetAsync(x.data + 1, 0, sizeof(float), stream), "test");
    });
    by = 100;    // arguments were taken at the capture
    CHECK(x.first() == 0);
    for (int times : {1, 2, 3}) {
        graph.launch();
        CHECK(x.first() == times);
    }
    x.add(10);
    CHECK(x.first() == 13);
}

TEST_CASE("emulator: a graph holds matmuls, with their alpha and beta") {
    std::vector<floatX> one(1, to_floatX(1));
    auto* a = static_cast<floatX*>(device_alloc(64));
    auto* out = static_cast<floatX*>(device_alloc(64));
    copy_to_device(a, one.data(), sizeof(floatX), nullptr);
    auto value = [&] {
        floatX host;
        copy_to_host(&host, out, sizeof host, nullptr);
        return to_float(host);
    };
    matmul(out, a, a, nullptr, 1, 1, 1, 1, false, false, 1, 0, nullptr);   // chooses the kernel, which allocates
    CHECK(value() == 1);
    {
        Captured graph([&] { matmul(out, a, a, a, 1, 1, 1, 1, false, false, 3, 4, nullptr); });
        CHECK(value() == 1);
        graph.launch();
        CHECK(value() == 7);
    }
    device_free(a);
    device_free(out);
}

TEST_CASE("emulator: a call that is forbidden during a capture is an error that names it, and invalidates the capture") {
    DeviceFloats x;
    PinnedFloats pinned;
    std::vector<float> pageable(N);
    cudaEvent_t event = nullptr, before = nullptr;
    cuda_check(cudaEventCreate(&event), "test");
    cuda_check(cudaEventCreate(&before), "test");
    cuda_check(cudaEventRecord(before, stream), "test");
    void* memory = nullptr;
    struct { const char* name; std::function<cudaError_t()> call; } forbidden[] = {
        {"cudaMalloc", [&] { return cudaMalloc(&memory, 16); }},
        {"cudaFree", [&] { return cudaFree(x.data); }},
        {"cudaHostAlloc", [&] { return cudaMallocHost(&memory, 16); }},
        {"cudaFreeHost", [&] { return cudaFreeHost(pinned.data); }},
        {"cudaStreamSynchronize", [&] { return cudaStreamSynchronize(stream); }},
        {"cudaDeviceSynchronize", [&] { return cudaDeviceSynchronize(); }},
        {"cudaEventSynchronize", [&] { return cudaEventSynchronize(before); }},
        {"cudaEventQuery", [&] { return cudaEventQuery(before); }},
        {"cudaMemcpyAsync", [&] { return cudaMemcpyAsync(x.data, pageable.data(), N * sizeof(float), cudaMemcpyHostToDevice, stream); }},
        {"cudaMemcpyAsync", [&] { return cudaMemcpyAsync(pageable.data(), x.data, N * sizeof(float), cudaMemcpyDeviceToHost, stream); }},
        {"cudaMemsetAsync", [&] { return cudaMemsetAsync(x.data, 0, 4, nullptr); }},   // the legacy stream waits for all others
    };
    for (auto& [name, call] : forbidden) {
        CAPTURE(name);
        begin();
        cudaError_t error = call();
        CHECK(error != cudaSuccess);
        CHECK_MESSAGE(std::string(cudaGetErrorString(error)).starts_with(std::string(name)), cudaGetErrorString(error));
        cudaStreamCaptureStatus status;
        cudaStreamIsCapturing(stream, &status);
        CHECK(status == cudaStreamCaptureStatusInvalidated);
        CHECK_THROWS_AS(x.add(1), std::runtime_error);
        cudaGraph_t graph = nullptr;
        error = cudaStreamEndCapture(stream, &graph);
        CHECK(error == cudaErrorStreamCaptureInvalidated);
        CHECK_MESSAGE(std::string(cudaGetErrorString(error)).starts_with(std::string(name)), cudaGetErrorString(error));
        CHECK(graph == nullptr);
    }
    begin();
    CHECK(cudaEventRecord(event, stream) == cudaSuccess);
    CHECK(cudaEventSynchronize(event) == cudaErrorCapturedEvent);
    CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeGlobal) == cudaErrorIllegalState);
    cudaGraph_t graph = nullptr;
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaSuccess);
    cudaGraphDestroy(graph);
    CHECK(cudaStreamEndCapture(stream, &graph) == cudaErrorIllegalState);
    cudaEventDestroy(event);
    cudaEventDestroy(before);
    CHECK(x.first() == 0);
}

TEST_CASE("emulator: a free while an error unwinds the stack does not replace that error") {
    // In a capture cudaFree fails, as every call does once a kernel has failed.
    void* memory = device_alloc(16);
    Capture capture;
    capture.run(nullptr, [] {});
    auto fails = [&] {
        std::unique_ptr<void, void (*)(void*)> freed(memory, device_free);
        throw std::invalid_argument("the first error");
    };
    CHECK_THROWS_WITH_AS(capture.run(nullptr, fails), "the first error", std::invalid_argument);
    device_free(memory);
    CHECK_THROWS_AS(device_free(memory), std::runtime_error);   // freed already, and no other error is unwinding
}

TEST_CASE("emulator: setmaxnreg redistributes the registers that a block began with, no more") {
    share_registers<24, 240>(384);   // 168 a thread: 504 together
    share_registers<32, 160>(512);   // 128 a thread: 512 together
    CHECK_THROWS_AS((share_registers<32, 240>(384)), std::runtime_error);
    CHECK_THROWS_AS((share_registers<40, 160>(512)), std::runtime_error);
}

TEST_CASE("emulator: pinned memory is read and written when the stream comes to it") {
    DeviceFloats x;
    PinnedFloats in, out;
    auto upload = [&] { cuda_check(cudaMemcpyAsync(x.data, in.data, sizeof(float), cudaMemcpyHostToDevice, stream), "test"); };
    auto download = [&] { cuda_check(cudaMemcpyAsync(out.data, x.data, sizeof(float), cudaMemcpyDeviceToHost, stream), "test"); };
    in.data[0] = 1, out.data[0] = -1;
    upload();
    download();
    in.data[0] = 2;                   // too early: the copy has not been made
    CHECK(out.data[0] == -1);         // too early as well
    device_wait(nullptr);
    CHECK(out.data[0] == 2);

    Captured graph([&] {
        upload();
        x.add(1);
        download();
    });
    for (float value : {5.0f, 6.0f}) {
        in.data[0] = value;
        graph.launch();
        device_wait(nullptr);
        CHECK(out.data[0] == value + 1);
    }
}

TEST_CASE("emulator: events tell what the stream has reached") {
    DeviceFloats x;
    cudaEvent_t event = nullptr, timed = nullptr;
    cuda_check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "test");
    cuda_check(cudaEventCreate(&timed), "test");
    float milliseconds = 0;
    CHECK(cudaEventQuery(event) == cudaSuccess);   // never recorded
    CHECK(cudaEventElapsedTime(&milliseconds, timed, timed) == cudaErrorInvalidResourceHandle);
    x.add(1);
    CHECK(cudaEventRecord(event, stream) == cudaSuccess);
    CHECK(cudaEventRecord(timed, stream) == cudaSuccess);
    CHECK(cudaEventElapsedTime(&milliseconds, timed, timed) == cudaErrorNotReady);
    CHECK(cudaEventQuery(event) == cudaErrorNotReady);
    CHECK(cudaEventQuery(event) == cudaSuccess);
    CHECK(cudaEventElapsedTime(&milliseconds, timed, timed) == cudaSuccess);
    CHECK(cudaEventElapsedTime(&milliseconds, event, timed) == cudaErrorInvalidResourceHandle);
    CHECK(cudaEventRecord(event, stream) == cudaSuccess);
    cudaEventDestroy(event);                       // before the stream came to it
    CHECK(cudaEventSynchronize(timed) == cudaSuccess);
    cudaEventDestroy(timed);
    CHECK(x.first() == 1);
}
