// The scheduler of the emulator: fibres, barriers, warps, memory. emulator.h says what it does.
#include "emulator.h"
#include <sys/mman.h>
#include <algorithm>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <numeric>
#include <random>
#include <stdexcept>
#include <thread>
#include <utility>
#include <vector>
#include "llmc/device/types.h"
#include "llmc/io/error.h"

// This file is compiled without sanitizers, for speed, where the header's macros do nothing; EMULATOR_ASAN says that the kernels are not.
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define __asan_poison_memory_region(memory, bytes)
#define __asan_unpoison_memory_region(memory, bytes)
#define __sanitizer_start_switch_fiber(fake, bottom, size)
#define __sanitizer_finish_switch_fiber(fake, bottom, size)
#endif

// ---------------------------------------------------------------------------------------------------------- switching stacks

// swapcontext makes a system call at every switch, which took 670 ns where this takes a few.
#if defined(__x86_64__) && !defined(EMULATOR_UCONTEXT)

using Context = void*;   // the stack pointer, below it the registers that a function must keep

extern "C" void emulator_switch(Context* from, Context to);
asm(R"(
.text
.type emulator_switch, @function
emulator_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
)");

static void switch_context(Context& from, Context& to) { emulator_switch(&from, to); }

static void make_context(Context& context, void* stack, size_t bytes, void (*entry)()) {
    void** top = reinterpret_cast<void**>(static_cast<char*>(stack) + bytes);
    top[-1] = nullptr;                                    // where a caller's address would be
    top[-2] = reinterpret_cast<void*>(entry);
    std::fill(top - 8, top - 2, nullptr);                 // the six registers
    context = top - 8;
}

#else
#include <ucontext.h>

using Context = ucontext_t;

static void switch_context(Context& from, Context& to) { swapcontext(&from, &to); }

static void make_context(Context& context, void* stack, size_t bytes, void (*entry)()) {
    getcontext(&context);
    context.uc_stack.ss_sp = stack;
    context.uc_stack.ss_size = bytes;
    context.uc_link = nullptr;
    makecontext(&context, entry, 0);
}
#endif

// -------------------------------------------------------------------------------------------------------------------- state

static constexpr unsigned MAX_THREADS = 1024, WARP = 32;
static constexpr size_t STACK_BYTES = 256 << 10, PAGE = 4096, SHARED_ALIGNMENT = 1024, SHARED_BEGIN = 1024;

struct Copy {
    void* shared;
    const void* global;
    size_t bytes;
};

// A box of a tensor; or, without a map, bytes that lie together.
struct BulkCopy {
    char* shared;
    CUtensorMap map;
    int x, y, z;
    const char* global;
    size_t bytes;
};

struct PendingWgmma {
    EmulatedWgmma wgmma;
    int group;
};

// The accumulators of a wgmma before it, or after it is done; the thread's own registers are poison until it waits.
struct Accumulator {
    float* d;
    std::vector<float> values;
};

struct Hopper {
    std::vector<BulkCopy> stores;
    size_t stores_committed = 0;
    std::deque<PendingWgmma> pending;
    std::vector<Accumulator> accumulators;
    int groups = 0, registers = 0, async_fences = 0;
    bool fenced = false;
    uint64_t history = 0;                     // a hash of all wgmmas, which must be the same in the four warps of a warpgroup
};

struct Fibre {
    Context context{};
    char* stack = nullptr;
    EmulatedDim index;
    unsigned number = 0;
    bool done = false;
    const char* waits_for = nullptr;          // null: ready, or running
    int barrier_sum = 0;
    std::vector<std::vector<Copy>> copies;    // closed groups, oldest first, then the open one
    Hopper hopper;
};

struct Barrier {
    std::vector<Fibre*> waiting;
    int threads = 0, sum = 0;
    std::source_location where;
};

struct WarpMeeting {
    unsigned mask, arrived;
    void (*exchange)(EmulatedLanes&);
    const char* what;
    EmulatedLanes lanes;
};

struct Mbarrier {
    int arrivals, missing;
    bool fenced = false;
    unsigned phase = 0;
    size_t expected = 0;
    std::vector<BulkCopy> loads;
    std::vector<Fibre*> waiting;
};

struct FreeAligned {
    void operator()(char* memory) const { operator delete[](memory, std::align_val_t(SHARED_ALIGNMENT)); }
};
using SharedMemory = std::unique_ptr<char[], FreeAligned>;

// The block that runs.
struct Block {
    unsigned threads = 0, running = 0;        // of the threads those that have not ended
    std::vector<Fibre*> ready[MAX_THREADS / WARP];   // of each warp
    std::vector<unsigned> order;              // of the warps, and whether they keep to it
    bool keeps_order = false;
    std::map<int, Barrier> barriers;
    std::vector<WarpMeeting> meetings[MAX_THREADS / WARP];
    SharedMemory shared, async_view;          // the second as TMA and the tensor cores see it
    size_t shared_bytes = 0;
    std::map<const void*, Mbarrier> mbarriers;
    std::string error;
};

static Fibre fibres[MAX_THREADS];
static Block block;
static Fibre* current = nullptr;
static Context scheduler;
[[maybe_unused]] static const void* scheduler_stack = nullptr;
[[maybe_unused]] static size_t scheduler_stack_bytes = 0;
static const std::function<void()>* thread_body = nullptr;
static std::vector<std::string> names;

static std::minstd_rand& generator() {
    static const char* seed = std::getenv("EMULATOR_SEED");
    static std::minstd_rand random(seed ? static_cast<unsigned>(std::atoi(seed)) : 1);
    return random;
}
static size_t draw(size_t below) { return generator()() % below; }

void emulator_push_name(const char* name) { names.push_back(name); }
void emulator_pop_name() { names.pop_back(); }

static std::string place(EmulatedDim at) { return concat("(", at.x, ", ", at.y, ", ", at.z, ")"); }

void emulation_error(const std::string& what) {
    std::string kernel = names.empty() ? "a kernel" : names.back();
    std::string thread = current ? concat(", thread ", place(threadIdx)) : "";
    throw std::runtime_error(concat("emulator: ", kernel, ", block ", place(blockIdx), thread, ": ", what));
}

// ------------------------------------------------------------------------------------------------------------------- fibres

// Gives the CPU to the scheduler; returns when this fibre is drawn again.
static void yield() {
    [[maybe_unused]] void* fake = nullptr;
    Fibre* self = current;
    __sanitizer_start_switch_fiber(&fake, scheduler_stack, scheduler_stack_bytes);
    switch_context(self->context, scheduler);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
}

static void thread_ended();

// The entry of a fibre, on its own stack; never returns.
static void fibre_entry() {
    __sanitizer_finish_switch_fiber(nullptr, &scheduler_stack, &scheduler_stack_bytes);
    try {
        (*thread_body)();
        thread_ended();
    } catch (const std::exception& error) {
        if (block.error.empty()) block.error = error.what();
    }
    __sanitizer_start_switch_fiber(nullptr, scheduler_stack, scheduler_stack_bytes);
    switch_context(current->context, scheduler);
    std::abort();
}

static void resume(Fibre* fibre) {
    current = fibre;
    threadIdx = fibre->index;
    [[maybe_unused]] void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fibre->stack, STACK_BYTES);
    switch_context(scheduler, fibre->context);
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
    current = nullptr;
}

static void wake(Fibre* fibre) {
    fibre->waits_for = nullptr;
    block.ready[fibre->number / WARP].push_back(fibre);
}

// Takes out the fibre that runs next, null when none can. In every other block warps are drawn, and stay about as far as each other. In
// the rest the first warp of an order that can run does, as far as it gets, so that it overtakes all others, or is overtaken, by as
// much as the barriers let it; now and then the one that ran goes to the order's end.
static Fibre* next_ready() {
    auto& order = block.order;
    if (!block.keeps_order) std::rotate(order.begin(), order.begin() + static_cast<std::ptrdiff_t>(draw(order.size())), order.end());
    auto first = std::find_if(order.begin(), order.end(), [](unsigned warp) { return !block.ready[warp].empty(); });
    if (first == order.end()) return nullptr;
    std::vector<Fibre*>& ready = block.ready[*first];
    if (block.keeps_order && draw(256) == 0) std::rotate(first, first + 1, order.end());
    std::swap(ready[draw(ready.size())], ready.back());
    Fibre* next = ready.back();
    ready.pop_back();
    return next;
}

static void start_fibre(unsigned number) {
    Fibre& fibre = fibres[number];
    if (!fibre.stack) {
        // A page that nobody may touch stands below the stack.
        void* memory = mmap(nullptr, PAGE + STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        if (memory == MAP_FAILED) throw std::bad_alloc();
        mprotect(memory, PAGE, PROT_NONE);
        fibre.stack = static_cast<char*>(memory) + PAGE;
    }
    if (!fibre.done) __asan_unpoison_memory_region(fibre.stack, STACK_BYTES);   // frames that an error left behind
    fibre.number = number;
    fibre.index = EmulatedDim(number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y);
    fibre.done = false;
    fibre.copies.resize(1);
    fibre.copies.front().clear();
    fibre.hopper = {};
    // Tops at different places of a page: otherwise all stacks would compete for the same sets of the cache.
    make_context(fibre.context, fibre.stack, STACK_BYTES - number % 16 * 256, fibre_entry);
    wake(&fibre);
}

// ------------------------------------------------------------------------------------------------------------------- blocks

static std::string who_waits() {
    std::map<std::string, std::pair<unsigned, EmulatedDim>> waits;
    for (unsigned i = 0; i < block.threads; i++)
        if (!fibres[i].done && fibres[i].waits_for && waits[fibres[i].waits_for].first++ == 0) waits[fibres[i].waits_for].second = fibres[i].index;
    std::string text;
    for (auto& [what, who] : waits)
        text += concat(text.empty() ? "" : ", ", who.first, " in ", what, " (thread ", place(who.second), who.first > 1 ? " and others)" : ")");
    return text;
}

static std::string mbarriers_waited_for();
static void check_warpgroups();

static SharedMemory poisoned(size_t bytes) {
    SharedMemory memory(new (std::align_val_t(SHARED_ALIGNMENT)) char[bytes]);
    emulator_poison(memory.get(), bytes);
    return memory;
}

static void run_block(size_t shared_bytes) {
    block.threads = block.running = blockDim.x * blockDim.y * blockDim.z;
    for (auto& ready : block.ready) ready.clear();
    block.order.resize((block.threads + WARP - 1) / WARP);
    std::iota(block.order.begin(), block.order.end(), 0u);
    std::shuffle(block.order.begin(), block.order.end(), generator());
    block.keeps_order = draw(2) == 0;
    block.barriers.clear();
    for (auto& meetings : block.meetings) meetings.clear();
    block.error.clear();
    block.shared = poisoned(shared_bytes);
    block.async_view = poisoned(shared_bytes);
    block.shared_bytes = shared_bytes;
    block.mbarriers.clear();
    for (unsigned i = 0; i < block.threads; i++) start_fibre(i);
    while (Fibre* next = next_ready()) {
        resume(next);
        if (!block.error.empty()) throw std::runtime_error(block.error);
    }
    if (block.running > 0)
        emulation_error(concat("deadlock: ", block.threads - block.running, " threads have ended, and of the others wait ", who_waits(), mbarriers_waited_for()));
    check_warpgroups();
}

// While one lives, the sentinels that kernels must not touch are poisoned for AddressSanitizer.
struct GuardsClosed {
    GuardsClosed();
    ~GuardsClosed();
};

void emulate_grid(EmulatedDim grid, EmulatedDim threads, size_t shared_bytes, const std::function<void()>& thread) {
    DeviceAccess open;
    GuardsClosed closed;
    gridDim = grid;
    blockDim = threads;
    thread_body = &thread;
    std::vector<size_t> order(size_t{grid.x} * grid.y * grid.z);
    for (size_t i = 0; i < order.size(); i++) order[i] = i;
    std::shuffle(order.begin(), order.end(), generator());
    for (size_t i : order) {
        blockIdx = EmulatedDim(static_cast<unsigned>(i % grid.x), static_cast<unsigned>(i / grid.x % grid.y), static_cast<unsigned>(i / grid.x / grid.y));
        run_block(shared_bytes);
    }
    block.shared.reset();
    block.async_view.reset();
}

void* emulated_shared_memory() { return block.shared.get(); }

// ------------------------------------------------------------------------------------------------------- barriers and warps

static bool complete(const Barrier& barrier) {
    return barrier.waiting.size() == (barrier.threads ? static_cast<unsigned>(barrier.threads) : block.running);
}

static void release(Barrier& barrier) {
    for (Fibre* fibre : barrier.waiting) {
        fibre->barrier_sum = barrier.sum;
        wake(fibre);
    }
    barrier.waiting.clear();
}

int emulated_barrier(int id, int threads, int value, const char* what, std::source_location where) {
    Barrier& barrier = block.barriers[id];
    if (barrier.waiting.empty()) {
        barrier.threads = threads;
        barrier.where = where;
        barrier.sum = 0;
    }
    if (barrier.threads != threads) emulation_error(concat("threads wait at barrier ", id, " for ", threads, " and for ", barrier.threads, " threads"));
    if (threads == 0 && (barrier.where.line() != where.line() || barrier.where.file_name() != std::string(where.file_name())))
        emulation_error(concat("threads of a block wait in different places, ", where.file_name(), " lines ", where.line(), " and ", barrier.where.line()));
    barrier.waiting.push_back(current);
    barrier.sum += value;
    current->waits_for = what;
    if (complete(barrier)) release(barrier);
    yield();
    return current->barrier_sum;
}

void emulated_warp(unsigned mask, void* mine, void (*exchange)(EmulatedLanes&), const char* what) {
    const unsigned lane = current->number % WARP, first = current->number - lane;
    if (!(mask >> lane & 1)) emulation_error(concat(what, ": the mask does not name lane ", lane, ", which calls it"));
    for (unsigned i = 0; i < WARP; i++)
        if ((mask >> i & 1) && (first + i >= block.threads || fibres[first + i].done))
            emulation_error(concat(what, ": the mask names lane ", i, ", which ", first + i >= block.threads ? "is not there" : "has ended"));
    auto& meetings = block.meetings[first / WARP];
    auto meeting = std::find_if(meetings.begin(), meetings.end(), [&](const WarpMeeting& m) { return m.mask == mask; });
    if (meeting == meetings.end()) meeting = meetings.insert(meetings.end(), {mask, 0, exchange, what, {}});
    if (meeting->exchange != exchange) emulation_error(concat("lanes of a warp meet in ", what, " and in ", meeting->what));
    meeting->lanes[lane] = mine;
    meeting->arrived |= 1u << lane;
    current->waits_for = what;
    if (meeting->arrived == mask) {
        exchange(meeting->lanes);
        meetings.erase(meeting);
        for (unsigned i = 0; i < WARP; i++)
            if (mask >> i & 1) wake(&fibres[first + i]);
    }
    yield();
}

static float half_of(uint32_t both, int i) { return to_float(bf16{static_cast<uint16_t>(both >> 16 * i)}); }

// d (16, N) += a (16, 16) b (16, N), in the order of k.
template <int PITCH>
static void multiply_add(float (&d)[16][PITCH], const float (&a)[16][16], const float (&b)[16][PITCH], int N) {
    for (int r = 0; r < 16; r++)
        for (int k = 0; k < 16; k++) {
#pragma omp simd
            for (int n = 0; n < N; n++) d[r][n] += a[r][k] * b[k][n];
        }
}

void emulated_mma(EmulatedLanes& lanes) {
    static float a[16][16], b[16][8], d[16][8];
    for (int i = 0; i < 32; i++) {
        auto* lane = static_cast<EmulatedMma*>(lanes[i]);
        const int g = i / 4, t = i % 4 * 2;
        for (int j = 0; j < 2; j++) {
            for (int r = 0; r < 4; r++) a[g + 8 * (r % 2)][t + j + 8 * (r / 2)] = half_of(lane->a[r], j);
            for (int r = 0; r < 2; r++) b[t + j + 8 * r][g] = half_of(lane->b[r], j);
        }
        for (int r = 0; r < 4; r++) d[g + 8 * (r / 2)][t + r % 2] = lane->d[r];
    }
    multiply_add(d, a, b, 8);
    for (int i = 0; i < 32; i++)
        for (int r = 0; r < 4; r++) static_cast<EmulatedMma*>(lanes[i])->d[r] = d[i / 4 + 8 * (r / 2)][i % 4 * 2 + r % 2];
}

// A thread that has ended is no longer waited for at a barrier of all; a warp operation that waits for it can never complete.
static void thread_ended() {
    if (!current->hopper.pending.empty()) emulation_error("the thread ends while a wgmma is under way: wgmma_wait is missing");
    if (!current->hopper.stores.empty()) emulation_error("the thread ends while stores read shared memory: tensor_store_wait is missing");
    current->done = true;
    block.running--;
    const unsigned lane = current->number % WARP;
    for (const WarpMeeting& meeting : block.meetings[current->number / WARP])
        if (meeting.mask >> lane & 1) emulation_error(concat(meeting.what, ": the mask names lane ", lane, ", which ends without it"));
    for (auto& [id, barrier] : block.barriers)
        if (barrier.threads == 0 && !barrier.waiting.empty() && complete(barrier)) release(barrier);
}

// ------------------------------------------------------------------------------------------------------- asynchronous copies

void emulated_copy_async(void* shared, const void* global, size_t bytes) {
    if (reinterpret_cast<uintptr_t>(shared) % 16 || (bytes && reinterpret_cast<uintptr_t>(global) % 16))
        emulation_error("copy_async: an address is not a multiple of 16");
    emulator_poison(shared, 16);
    current->copies.back().push_back({shared, global, bytes});
}

void emulated_copy_commit() { current->copies.emplace_back(); }

void emulated_copy_wait(int newer) {
    auto& copies = current->copies;
    while (static_cast<int>(copies.size()) - 1 > newer) {
        for (const Copy& copy : copies.front()) {
            std::memset(copy.shared, 0, 16);
            if (copy.bytes) std::memcpy(copy.shared, copy.global, copy.bytes);
        }
        copies.erase(copies.begin());
    }
}

// ------------------------------------------------------------------------------------------------------------ Hopper: TMA

static size_t offset_in_shared(const void* shared, const char* what) {
    const ptrdiff_t offset = static_cast<const char*>(shared) - block.shared.get();
    const bool inside = offset >= 0 && static_cast<size_t>(offset) < block.shared_bytes;
    if (!inside) emulation_error(concat(what, ": an address is not in shared memory"));
    return static_cast<size_t>(offset);
}

uint32_t emulated_shared_address(const void* shared) {
    return static_cast<uint32_t>(SHARED_BEGIN + offset_in_shared(shared, "shared_address"));
}

// The swizzle of 128 bytes, on addresses as hardware counts them.
static size_t swizzled(size_t address) { return address ^ ((address >> 7 & 7) << 4); }

// Calls piece(global, shared, bytes) for each 16 bytes of the box: where they are in the tensor and in shared memory (an offset), and how
// many of them lie in the tensor.
template <class Piece>
static void for_pieces(const BulkCopy& copy, Piece piece) {
    const CUtensorMap& map = copy.map;
    const size_t begin = SHARED_BEGIN + offset_in_shared(copy.shared, "tensor");
    const unsigned row_bytes = map.box[0] * map.element_bytes;
    size_t at = 0;
    for (unsigned k = 0; k < map.box[2]; k++)
        for (unsigned j = 0; j < map.box[1]; j++)
            for (unsigned i = 0; i < row_bytes; i += 16, at += 16) {
                // A negative coordinate becomes a very large one, which is outside too.
                const size_t x = static_cast<size_t>(copy.x) + i / map.element_bytes, y = static_cast<size_t>(copy.y) + j, z = static_cast<size_t>(copy.z) + k;
                const bool inside = x < map.sizes[0] && y < map.sizes[1] && z < map.sizes[2];
                char* global = inside ? map.begin + x * map.element_bytes + y * map.strides[0] + z * map.strides[1] : nullptr;
                const size_t bytes = inside ? std::min<size_t>(16, (map.sizes[0] - x) * map.element_bytes) : 0;
                piece(global, swizzled(begin + at) - SHARED_BEGIN, bytes);
            }
}

static size_t box_bytes(const CUtensorMap& map) { return size_t{map.box[0]} * map.box[1] * map.box[2] * map.element_bytes; }

static void write_shared(size_t at, const void* from, size_t bytes, size_t zeros) {
    for (char* memory : {block.shared.get(), block.async_view.get()}) {
        if (bytes) std::memcpy(memory + at, from, bytes);
        std::memset(memory + at + bytes, 0, zeros);
    }
}

static void poison_shared(void* shared, size_t bytes, const char* what, size_t alignment) {
    const size_t at = offset_in_shared(shared, what);
    if (at + bytes > block.shared_bytes) emulation_error(concat(what, ": ", bytes, " bytes at byte ", at, " go beyond shared memory"));
    if (at % alignment) emulation_error(concat(what, ": byte ", at, " of shared memory is not a multiple of ", alignment));
    emulator_poison(block.shared.get() + at, bytes);
    emulator_poison(block.async_view.get() + at, bytes);
}

static Mbarrier& mbarrier_at(const void* barrier, const char* what) {
    auto found = block.mbarriers.find(barrier);
    if (found == block.mbarriers.end())
        emulation_error(concat(what, ": there is no barrier at byte ", offset_in_shared(barrier, what),
                               " of shared memory; is mbarrier_init, or the __syncthreads after it, missing?"));
    return found->second;
}

// Ends the phase if all have arrived and loads of all the expected bytes have been started.
static bool finish_phase(Mbarrier& barrier) {
    size_t bytes = 0;
    for (const BulkCopy& load : barrier.loads) bytes += load.bytes;
    if (barrier.missing > 0 || bytes != barrier.expected) return false;
    for (const BulkCopy& load : barrier.loads) {
        if (load.global) write_shared(offset_in_shared(load.shared, "bulk_load"), load.global, load.bytes, 0);
        else for_pieces(load, [](const char* global, size_t shared, size_t count) { write_shared(shared, global, count, 16 - count); });
    }
    barrier.loads.clear();
    barrier.phase++;
    barrier.missing = barrier.arrivals;
    barrier.expected = 0;
    for (Fibre* fibre : barrier.waiting) wake(fibre);
    barrier.waiting.clear();
    return true;
}

static std::string mbarriers_waited_for() {
    std::string text;
    for (auto& [place, barrier] : block.mbarriers)
        if (!barrier.waiting.empty()) {
            size_t bytes = 0;
            for (const BulkCopy& load : barrier.loads) bytes += load.bytes;
            text += concat("; the mbarrier at byte ", offset_in_shared(place, "mbarrier"), " misses ", barrier.missing, " of ", barrier.arrivals,
                           " arrivals in phase ", barrier.phase, ", and expects ", barrier.expected, " bytes of which ", bytes, " are on their way");
        }
    return text;
}

void emulated_mbarrier_init(void* barrier, int arrivals) {
    if (arrivals < 1) emulation_error("mbarrier_init: there must be at least one arrival");
    poison_shared(barrier, 8, "mbarrier_init", 8);
    block.mbarriers[barrier] = {arrivals, arrivals, false, 0, 0, {}, {}};
}

void emulated_mbarrier_init_fence() {
    for (auto& [place, barrier] : block.mbarriers) barrier.fenced = true;
}

void emulated_mbarrier_arrive(void* place, int bytes) {
    Mbarrier& barrier = mbarrier_at(place, "mbarrier_arrive");
    if (barrier.missing == 0 && !finish_phase(barrier))
        emulation_error(concat("mbarrier_arrive: more than the ", barrier.arrivals, " arrivals of a phase whose ", barrier.expected,
                               " bytes are not on their way"));
    barrier.missing--;
    barrier.expected += static_cast<size_t>(bytes);
    if (!barrier.waiting.empty()) finish_phase(barrier);
}

void emulated_mbarrier_wait(void* place, uint32_t parity) {
    Mbarrier& barrier = mbarrier_at(place, "mbarrier_wait");
    if (parity > 1) emulation_error(concat("mbarrier_wait: the parity must be 0 or 1, not ", parity));
    while (barrier.phase % 2 == parity && !finish_phase(barrier)) {
        barrier.waiting.push_back(current);
        current->waits_for = "mbarrier_wait";
        yield();
    }
}

static void start_load(const BulkCopy& load, void* place, const char* what) {
    Mbarrier& barrier = mbarrier_at(place, what);
    if (!barrier.fenced) emulation_error(concat(what, ": TMA does not see the barrier: mbarrier_init_fence is missing"));
    barrier.loads.push_back(load);
    if (!barrier.waiting.empty()) finish_phase(barrier);
}

void emulated_tensor_load(void* shared, const CUtensorMap& map, int x, int y, int z, void* barrier) {
    poison_shared(shared, box_bytes(map), "tensor_load", 128);
    start_load({static_cast<char*>(shared), map, x, y, z, nullptr, box_bytes(map)}, barrier, "tensor_load");
}

void emulated_bulk_load(void* shared, const void* global, size_t bytes, void* barrier) {
    if (reinterpret_cast<uintptr_t>(global) % 16 || bytes % 16)
        emulation_error("bulk_load: an address, or the number of bytes, is not a multiple of 16");
    if (!is_device_memory(global) || !is_device_memory(static_cast<const char*>(global) + bytes))
        emulation_error("bulk_load: not all of it is device memory");
    poison_shared(shared, bytes, "bulk_load", 16);
    start_load({static_cast<char*>(shared), {}, 0, 0, 0, static_cast<const char*>(global), bytes}, barrier, "bulk_load");
}

void emulated_tensor_store(const CUtensorMap& map, const void* shared, int x, int y, int z) {
    const size_t at = offset_in_shared(shared, "tensor_store");
    if (at % 128 || at + box_bytes(map) > block.shared_bytes)
        emulation_error(concat("tensor_store: a box cannot begin at byte ", at, " of shared memory"));
    // Which threads wrote the box is not known: the threads of the warpgroup, it is assumed.
    const unsigned group = current->number / 128 * 128;
    for (unsigned i = group; i < std::min(group + 128, block.threads); i++)
        if (fibres[i].hopper.async_fences < current->hopper.async_fences)
            emulation_error(concat("tensor_store: thread ", i, " of the warpgroup is an async_fence behind: what it wrote may not be seen"));
    current->hopper.stores.push_back({block.shared.get() + at, map, x, y, z, nullptr, box_bytes(map)});
}

void emulated_tensor_store_commit() { current->hopper.stores_committed = current->hopper.stores.size(); }

void emulated_tensor_store_wait() {
    Hopper& hopper = current->hopper;
    for (size_t i = 0; i < hopper.stores_committed; i++)
        for_pieces(hopper.stores[i], [](char* global, size_t shared, size_t count) {
            if (count) std::memcpy(global, block.async_view.get() + shared, count);
        });
    hopper.stores.erase(hopper.stores.begin(), hopper.stores.begin() + static_cast<ptrdiff_t>(hopper.stores_committed));
    hopper.stores_committed = 0;
}

// This also shows what other threads have written by now; one of them that forgot its fence is found by tensor_store.
void emulated_async_fence() {
    current->hopper.async_fences++;
    std::memcpy(block.async_view.get(), block.shared.get(), block.shared_bytes);
}

CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType, cuuint32_t rank, void* begin, const cuuint64_t* sizes, const cuuint64_t* strides,
                                const cuuint32_t* box, const cuuint32_t* steps, CUtensorMapInterleave, CUtensorMapSwizzle, CUtensorMapL2promotion,
                                CUtensorMapFloatOOBfill) {
    *map = {static_cast<char*>(begin), rank, sizeof(bf16), {}, {}, {}};
    if (rank != 3 || reinterpret_cast<uintptr_t>(begin) % 16 || box[0] * sizeof(bf16) != 128) return CUDA_ERROR_INVALID_VALUE;
    size_t last = sizes[0] * sizeof(bf16);
    for (unsigned i = 0; i < rank; i++) {
        if (sizes[i] == 0 || sizes[i] > uint64_t{1} << 32 || box[i] == 0 || box[i] > 256 || steps[i] != 1) return CUDA_ERROR_INVALID_VALUE;
        if (i > 0 && (strides[i - 1] % 16 || strides[i - 1] >= uint64_t{1} << 40)) return CUDA_ERROR_INVALID_VALUE;
        map->sizes[i] = sizes[i];
        map->box[i] = box[i];
        if (i > 0) map->strides[i - 1] = strides[i - 1], last += (sizes[i] - 1) * strides[i - 1];
    }
    return is_device_memory(begin) && is_device_memory(map->begin + last) ? CUDA_SUCCESS : CUDA_ERROR_INVALID_VALUE;
}

// ------------------------------------------------------------------------------------------------- Hopper: tensor cores

void emulated_wgmma_fence() { current->hopper.fenced = true; }

void emulated_wgmma(const EmulatedWgmma& wgmma) {
    Hopper& hopper = current->hopper;
    if (!hopper.fenced) emulation_error("wgmma: there is no wgmma_fence since the last wgmma_commit or wgmma_wait");
    const size_t count = static_cast<size_t>(wgmma.N) / 2;
    auto known = [&](const Accumulator& a) { return a.d == wgmma.d; };
    if (std::none_of(hopper.accumulators.begin(), hopper.accumulators.end(), known)) {
        hopper.accumulators.push_back({wgmma.d, std::vector<float>(wgmma.d, wgmma.d + count)});
        emulator_poison(wgmma.d, count * sizeof(float));
    }
    hopper.pending.push_back({wgmma, hopper.groups});
    for (uint64_t word : {uint64_t{wgmma.a_left != nullptr}, uint64_t{wgmma.add}, static_cast<uint64_t>(wgmma.N), wgmma.a, wgmma.b})
        hopper.history = (hopper.history ^ word) * 0x9e3779b97f4a7c15u + (hopper.history >> 29);
}

void emulated_wgmma_commit() {
    current->hopper.groups++;
    current->hopper.fenced = false;
}

// A descriptor's fields, in bytes.
struct Matrix {
    size_t begin, leading, stride;

    explicit Matrix(uint64_t descriptor)
        : begin((descriptor & 0x3fff) << 4), leading((descriptor >> 16 & 0x3fff) << 4), stride((descriptor >> 32 & 0x3fff) << 4) {
        if (descriptor >> 62 != 1) emulation_error("wgmma: only the swizzle of 128 bytes is emulated");
        if ((descriptor >> 49 & 7) != 0 || (begin >> 7 & 7) != 0)
            emulation_error(concat("wgmma: an operand begins at ", begin, ", not in the first row of a swizzle of 1024 bytes"));
    }
    // Row r of N or M, 16 elements of K from where the descriptor begins.
    void k_major_row(float (&to)[16], int r) const {
        if (begin % 128 > 96) emulation_error("wgmma: 16 elements of K go beyond a row of 128 bytes");
        const size_t row = begin + static_cast<size_t>(r / 8) * stride + static_cast<size_t>(r % 8) * 128;
        piece(to, row);
        piece(to + 8, row + 16);
    }
    // Row k, N elements.
    void mn_major_row(float* to, int k, int N) const {
        if (begin % 1024) emulation_error("wgmma: an MN-major operand does not begin at a multiple of 1024");
        const size_t row = begin + static_cast<size_t>(k / 8) * stride + static_cast<size_t>(k % 8) * 128;
        for (int n = 0; n < N; n += 8) piece(to + n, row + static_cast<size_t>(n / 64) * leading + static_cast<size_t>(n % 64) * 2);
    }

private:
    static void piece(float* to, size_t address) {
        const size_t at = swizzled(address) - SHARED_BEGIN;
        if (at + 16 > block.shared_bytes) emulation_error(concat("wgmma: reads byte ", at, " of shared memory, beyond its end"));
        bf16 eight[8];
        std::memcpy(eight, block.async_view.get() + at, 16);
        for (int i = 0; i < 8; i++) to[i] = to_float(eight[i]);
    }
};

// The warp's 16 rows of one wgmma, the oldest that `lanes` have pending.
static void multiply(Fibre* (&lanes)[WARP]) {
    constexpr int MAX_N = 256;
    static float a[16][16], b[16][MAX_N], d[16][MAX_N];
    const EmulatedWgmma& first = lanes[0]->hopper.pending.front().wgmma;
    const int N = first.N, warp = static_cast<int>(lanes[0]->number / WARP % 4);
    auto values_of = [&](Fibre* lane) -> std::vector<float>& {
        for (Accumulator& accumulator : lane->hopper.accumulators)
            if (accumulator.d == lane->hopper.pending.front().wgmma.d) return accumulator.values;
        std::abort();
    };
    for (unsigned i = 0; i < WARP; i++) {
        const EmulatedWgmma& mine = lanes[i]->hopper.pending.front().wgmma;
        if (mine.N != N || mine.a != first.a || mine.b != first.b || mine.add != first.add || !mine.a_left != !first.a_left)
            emulation_error("wgmma: lanes of a warp multiply different things");
        const int g = static_cast<int>(i) / 4, t = static_cast<int>(i) % 4 * 2;
        const std::vector<float>& sums = values_of(lanes[i]);
        for (int n = 0; n < N / 8; n++)
            for (int j = 0; j < 4; j++) d[g + j / 2 * 8][8 * n + t + j % 2] = first.add ? sums[static_cast<size_t>(4 * n + j)] : 0;
        for (int j = 0; mine.a_left && j < 4; j++)
            for (int half = 0; half < 2; half++)
                a[g + j % 2 * 8][t + j / 2 * 8 + half] = half_of(mine.a_left[j], half);
    }
    const Matrix right(first.b);
    if (first.a_left) {
        for (int k = 0; k < 16; k++) right.mn_major_row(b[k], k, N);
    } else {
        const Matrix left(first.a);
        for (int r = 0; r < 16; r++) left.k_major_row(a[r], 16 * warp + r);
        for (int n = 0; n < N; n++) {
            float column[16];
            right.k_major_row(column, n);
            for (int k = 0; k < 16; k++) b[k][n] = column[k];
        }
    }
    multiply_add(d, a, b, N);
    for (unsigned i = 0; i < WARP; i++) {
        const int g = static_cast<int>(i) / 4, t = static_cast<int>(i) % 4 * 2;
        std::vector<float>& sums = values_of(lanes[i]);
        for (int n = 0; n < N / 8; n++)
            for (int j = 0; j < 4; j++) sums[static_cast<size_t>(4 * n + j)] = d[g + j / 2 * 8][8 * n + t + j % 2];
        lanes[i]->hopper.pending.pop_front();
    }
}

void emulated_wgmma_wait(int newer) {
    struct Request {
        Fibre* fibre;
        int groups;     // that must be over
    } mine{current, current->hopper.groups - newer};
    current->hopper.fenced = false;
    emulated_warp(0xffffffffu, &mine, [](EmulatedLanes& all) {
        Fibre* lanes[WARP];
        const int groups = static_cast<Request*>(all[0])->groups;
        for (unsigned i = 0; i < WARP; i++) {
            lanes[i] = static_cast<Request*>(all[i])->fibre;
            if (static_cast<Request*>(all[i])->groups != groups || lanes[i]->hopper.pending.size() != lanes[0]->hopper.pending.size())
                emulation_error("wgmma_wait: lanes of a warp wait for different wgmmas");
        }
        auto& pending = lanes[0]->hopper.pending;
        while (!pending.empty() && pending.front().group < groups) multiply(lanes);
        for (Fibre* lane : lanes) {
            auto& accumulators = lane->hopper.accumulators;
            for (size_t i = accumulators.size(); i-- > 0;) {
                const Accumulator& sums = accumulators[i];
                auto& left = lane->hopper.pending;
                if (std::any_of(left.begin(), left.end(), [&](const PendingWgmma& p) { return p.wgmma.d == sums.d; })) continue;
                std::copy(sums.values.begin(), sums.values.end(), sums.d);
                accumulators.erase(accumulators.begin() + static_cast<ptrdiff_t>(i));
            }
        }
    }, "wgmma_wait");
}

void emulated_registers(int count, bool) {
    if (count % 8 || count < 24 || count > 256) emulation_error(concat("registers: ", count, " is not a multiple of 8 from 24 to 256"));
    current->hopper.registers = count;
}

// At the end of a block: the warps of a warpgroup must have done the same wgmmas and setmaxnregs.
static void check_warpgroups() {
    int registers = 0;
    for (unsigned i = 0; i < block.threads; i++) {
        const Hopper &mine = fibres[i].hopper, &first = fibres[i / 128 * 128].hopper;
        const std::string warps = concat("warps ", i / 128 * 4, " and ", i / WARP, " of a warpgroup");
        if (mine.history != first.history) emulation_error(concat(warps, " did different wgmmas"));
        if (mine.registers != first.registers) emulation_error(concat(warps, " have different registers"));
        registers += mine.registers;
    }
    // A block that has an SM to itself begins with an equal share of its 65536 registers for each thread, rounded down to a multiple of
    // eight; setmaxnreg can only redistribute these.
    const int pool = static_cast<int>(block.threads) * ((64 << 10) / static_cast<int>(block.threads) / 8 * 8);
    if (registers > pool) emulation_error(concat("the threads of a block have ", registers, " registers together, more than the ", pool, " that it began with"));
}

// -------------------------------------------------------------------------------------------------------------------- streams

static std::deque<EmulatedPoll>& waiting_work() {
    static std::deque<EmulatedPoll> all;
    return all;
}

EmulatedWork emulated_named(EmulatedWork work) {
    return [work = std::move(work), name = names.empty() ? std::string("a kernel") : names.back()] {
        auto before = std::exchange(names, {name});
        work();
        names = std::move(before);
    };
}

void emulated_queue(EmulatedWork work) {
    emulated_queue_polled([named = emulated_named(std::move(work))] { return named(), true; });
}

void emulated_queue_polled(EmulatedPoll work) { waiting_work().push_back(std::move(work)); }

// Does the first work in the queue; returns whether it is done, and then it is out of the queue.
static bool try_first() {
    EmulatedPoll work = std::move(waiting_work().front());
    waiting_work().pop_front();
    auto before = names;
    try {
        if (work()) return true;
    } catch (...) {
        waiting_work().clear();
        names = std::move(before);
        throw;
    }
    waiting_work().push_front(std::move(work));
    return false;
}

void emulated_advance() {
    while (!try_first()) std::this_thread::sleep_for(std::chrono::microseconds(50));
}

void emulated_finish() {
    while (!waiting_work().empty()) emulated_advance();
}

bool emulated_poll() {
    if (waiting_work().empty()) return true;
    while (!waiting_work().empty() && try_first()) {}
    return false;
}

// ------------------------------------------------------------------------------------------------------------ device memory

using Blocks = std::map<const char*, size_t>;
static Blocks& blocks() {
    static Blocks all;
    return all;
}
static Blocks& guards() {
    static Blocks all;
    return all;
}
static Blocks& pinned_blocks() {
    static Blocks all;
    return all;
}
// Whether all the bytes lie in one block; no bytes may also lie at the end of one.
static bool lies_in(const Blocks& all, const void* pointer, size_t bytes) {
    auto after = all.upper_bound(static_cast<const char*>(pointer));
    if (after == all.begin()) return false;
    auto [begin, size] = *std::prev(after);
    return static_cast<size_t>(static_cast<const char*>(pointer) - begin) + bytes <= size;
}
static int access_depth = 0;

void emulator_poison(void* memory, size_t bytes) {
    for (size_t i = 0; i < bytes; i++) static_cast<unsigned char*>(memory)[i] = i % 2 == 0 ? 0xc5 : 0xff;
}

void* emulated_malloc(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes) != 0) return nullptr;
    emulator_poison(memory, bytes);
    blocks()[static_cast<char*>(memory)] = bytes;
    if (access_depth == 0) __asan_poison_memory_region(memory, bytes);
    return memory;
}

bool emulated_free(void* memory) {
    auto found = blocks().find(static_cast<char*>(memory));
    if (found == blocks().end()) return false;
    __asan_unpoison_memory_region(memory, found->second);
    guards().erase(guards().lower_bound(found->first), guards().lower_bound(found->first + found->second));
    blocks().erase(found);
    std::free(memory);
    return true;
}

bool is_device_memory(const void* pointer) { return lies_in(blocks(), pointer, 0); }

void emulator_guard(const void* memory, size_t bytes) { guards()[static_cast<const char*>(memory)] = bytes; }

GuardsClosed::GuardsClosed() {
    for ([[maybe_unused]] auto [memory, bytes] : guards()) __asan_poison_memory_region(memory, bytes);
}
GuardsClosed::~GuardsClosed() {
    for ([[maybe_unused]] auto [memory, bytes] : guards()) __asan_unpoison_memory_region(memory, bytes);
}

void* emulated_malloc_host(size_t bytes) {
    void* memory = nullptr;
    if (posix_memalign(&memory, 256, bytes) != 0) return nullptr;
    emulator_poison(memory, bytes);
    pinned_blocks()[static_cast<char*>(memory)] = bytes;
    return memory;
}

bool emulated_free_host(void* memory) {
    if (pinned_blocks().erase(static_cast<char*>(memory)) == 0) return false;
    std::free(memory);
    return true;
}

bool is_pinned_memory(const void* pointer, size_t bytes) { return lies_in(pinned_blocks(), pointer, bytes); }

// EMULATOR_OPEN=1 leaves device memory open to the host, for ops whose CPU files run in place of CUDA's.
static bool guarded() {
    static const bool on = !std::getenv("EMULATOR_OPEN");
    return on;
}

DeviceAccess::DeviceAccess() {
    if (access_depth++ == 0)
        for ([[maybe_unused]] auto [memory, bytes] : blocks()) __asan_unpoison_memory_region(memory, bytes);
}
DeviceAccess::~DeviceAccess() {
    if (--access_depth == 0 && guarded())
        for ([[maybe_unused]] auto [memory, bytes] : blocks()) __asan_poison_memory_region(memory, bytes);
}
