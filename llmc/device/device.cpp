// The CPU as a device: memory is the host's own, and every op is done when it returns.
#include "llmc/device/device.h"
#include <algorithm>
#include <climits>
#include <cstdlib>
#include <fstream>
#include <limits>
#include <new>
#include <omp.h>
#include <sys/mman.h>
#include <unistd.h>
#include "llmc/device/profile.h"
#include "llmc/io/error.h"
#include "llmc/io/process.h"

// Turns of libgomp's spin loop: some tens of microseconds, longer than the passes between two matmuls take, far shorter than a
// time slice of the scheduler. Its own default is 300000.
static constexpr const char* SPINS = "3000";

void device_begin(char** argv) {
    if (std::getenv("OMP_WAIT_POLICY") || std::getenv("GOMP_SPINCOUNT")) return;
    setenv("GOMP_SPINCOUNT", SPINS, 1);
    char program[PATH_MAX];   // by its own name, which ps shows
    const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
    if (length < 0) return;
    program[length] = 0;
    execv(program, argv);   // returns only where that is not possible: then threads spin as long as by default
}

static constexpr size_t PAGE = 4096, HUGE_PAGE = size_t{2} << 20;

static size_t page_for(size_t bytes) { return bytes >= HUGE_PAGE ? HUGE_PAGE : PAGE; }

size_t device_alloc_bytes(size_t bytes) {
    const size_t page = page_for(bytes);
    return (std::max(bytes, size_t{1}) + page - 1) / page * page;
}

void* device_alloc(size_t bytes) {
    if (bytes > device_free_bytes()) throw std::bad_alloc();    // Linux overcommits memory, and kills later
    const size_t alignment = page_for(bytes), rounded = device_alloc_bytes(bytes);
    void* memory = std::aligned_alloc(alignment, rounded);
    if (!memory) throw std::bad_alloc();
    if (alignment == HUGE_PAGE) madvise(memory, rounded, MADV_HUGEPAGE);
    device_zero(memory, rounded, nullptr);
    return memory;
}

void device_free(void* memory) { std::free(memory); }

// Large copies and fills are cut into pieces, which the threads share.
static constexpr size_t PIECE = size_t{1} << 18;

void device_zero(void* memory, size_t bytes, Stream) {
    Range range("device_zero");
#pragma omp parallel for if (bytes > PIECE)
    for (size_t begin = 0; begin < bytes; begin += PIECE)
        std::memset(static_cast<char*>(memory) + begin, 0, std::min(PIECE, bytes - begin));
}

void copy_on_device(void* to, const void* from, size_t bytes, Stream) {
    Range range("copy_on_device");
#pragma omp parallel for if (bytes > PIECE)
    for (size_t begin = 0; begin < bytes; begin += PIECE)
        std::memcpy(static_cast<char*>(to) + begin, static_cast<const char*>(from) + begin, std::min(PIECE, bytes - begin));
}

void copy_to_device(void* device, const void* host, size_t bytes, Stream stream) { copy_on_device(device, host, bytes, stream); }
void copy_to_host(void* host, const void* device, size_t bytes, Stream stream) { copy_on_device(host, device, bytes, stream); }
void device_wait(Stream) {}

struct Uploads::Ring {};
Uploads::Uploads(size_t, int) {}
Uploads::~Uploads() = default;
void Uploads::copy(void* device, const void* host, size_t bytes, Stream stream) { copy_to_device(device, host, bytes, stream); }

struct Capture::Graph {};
Capture::Capture() = default;
Capture::~Capture() = default;
bool Capture::replay(Stream) { return false; }
bool Capture::begin(Stream) { return false; }
void Capture::end(Stream) {}
void Capture::abandon(Stream) {}
void Capture::forget() {}

std::string device_name() {
    std::string model = proc_value("/proc/cpuinfo", "model name");
    std::string flags = concat(" ", proc_value("/proc/cpuinfo", "flags"), " ");
    const char* instructions = "no AVX2";
    for (auto [flag, name] : {std::pair{"avx2", "AVX2"}, {"avx512f", "AVX-512"}, {"avx512_bf16", "AVX-512 BF16"}, {"amx_bf16", "AMX BF16"}})
        if (flags.find(concat(" ", flag, " ")) != std::string::npos) instructions = name;
#ifdef ISA_AVX2
    instructions = "AVX2 (ISA=avx2)";
#endif
    int threads = omp_get_max_threads();
    return concat(model.empty() ? "CPU" : model, ", ", threads, threads == 1 ? " thread, " : " threads, ", instructions);
}

// The one number in a file, or `otherwise` ("max" and no file mean no limit).
static size_t number_in(const char* path, size_t otherwise) {
    std::ifstream file(path);
    size_t number;
    return file >> number ? number : otherwise;
}

// Of a container's memory in use, the page cache: the kernel gives it up when memory is needed.
static size_t file_cache(const char* path) {
    std::ifstream file(path);
    size_t cached = 0, bytes;
    for (std::string name; file >> name >> bytes;)
        if (name == "inactive_file" || name == "active_file") cached += bytes;
    return cached;
}

// What the memory limit of a container leaves: version 2 of cgroups, then version 1.
static size_t container_free_bytes() {
    struct Files { const char *limit, *used, *stat; };
    constexpr size_t none = std::numeric_limits<size_t>::max();
    for (Files f : {Files{"/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"},
                    Files{"/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes",
                          "/sys/fs/cgroup/memory/memory.stat"}}) {
        const size_t limit = number_in(f.limit, none), used = number_in(f.used, 0), cached = file_cache(f.stat);
        if (limit != none) return limit - std::min(limit, used - std::min(used, cached));
    }
    return none;
}

size_t device_free_bytes(int processes) {
    std::string kib = proc_value("/proc/meminfo", "MemAvailable");
    size_t host = kib.empty() ? std::numeric_limits<size_t>::max() : std::strtoull(kib.c_str(), nullptr, 10) << 10;
    return std::min(host, container_free_bytes()) / static_cast<size_t>(processes);
}

size_t device_overhead_bytes(int64_t tokens) {
    // Measured: pages of libraries that will be read, what oneDNN compiles, the buffer of a checkpoint. Then for each token of a
    // micro-batch what the loaders read ahead, the trainer's copies, the losses.
    const size_t libraries = size_t{sizeof(floatX) == 4 ? 16 : 13} << 20;
    return resident_bytes() + libraries + size_t{60} * static_cast<size_t>(tokens);
}
