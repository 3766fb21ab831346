// The scheduler of the emulator: fibres, barriers, warps, memory. emulator.h says what it does.
#include "emulator.h"
#include <sys/mman.h>
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <map>
#include <memory>
#include <new>
#include <random>
#include <stdexcept>
#include <utility>
#include <vector>
#include "llmc/error.h"

// This file is compiled without sanitizers, for speed; EMULATOR_ASAN says that the kernels are not.
#ifdef EMULATOR_ASAN
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#else
#define ASAN_POISON_MEMORY_REGION(memory, bytes)
#define ASAN_UNPOISON_MEMORY_REGION(memory, bytes)
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
static constexpr size_t STACK_BYTES = 256 << 10, PAGE = 4096;

struct Copy {
    void* shared;
    const void* global;
    size_t bytes;
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

// The block that runs.
struct Block {
    unsigned threads = 0, running = 0;        // of the threads those that have not ended
    std::vector<Fibre*> ready;
    std::map<int, Barrier> barriers;
    std::vector<WarpMeeting> meetings[MAX_THREADS / WARP];
    std::unique_ptr<char[]> shared;
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

// What a fibre begins with, on its own stack; never returns.
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
    block.ready.push_back(fibre);
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
    ASAN_UNPOISON_MEMORY_REGION(fibre.stack, STACK_BYTES);   // frames of a fibre that an error left behind
    fibre.number = number;
    fibre.index = EmulatedDim(number % blockDim.x, number / blockDim.x % blockDim.y, number / blockDim.x / blockDim.y);
    fibre.done = false;
    fibre.copies.assign(1, {});
    // Tops at different places of a page: fibres whose stacks lie alike would fight for the same cache lines.
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

static void run_block(size_t shared_bytes) {
    block.threads = block.running = blockDim.x * blockDim.y * blockDim.z;
    block.ready.clear();
    block.barriers.clear();
    for (auto& meetings : block.meetings) meetings.clear();
    block.error.clear();
    block.shared.reset(new char[shared_bytes]);
    emulator_poison(block.shared.get(), shared_bytes);
    for (unsigned i = 0; i < block.threads; i++) start_fibre(i);
    while (!block.ready.empty()) {
        std::swap(block.ready[draw(block.ready.size())], block.ready.back());
        Fibre* next = block.ready.back();
        block.ready.pop_back();
        resume(next);
        if (!block.error.empty()) throw std::runtime_error(block.error);
    }
    if (block.running > 0) emulation_error(concat("deadlock: ", block.threads - block.running, " threads have ended, and of the others wait ", who_waits()));
}

void emulate_grid(EmulatedDim grid, EmulatedDim threads, size_t shared_bytes, const std::function<void()>& thread) {
    DeviceAccess open;
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

// A thread that has ended is no longer waited for at a barrier of all; a warp operation that waits for it can never complete.
static void thread_ended() {
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

// -------------------------------------------------------------------------------------------------------------------- streams

static std::deque<EmulatedWork>& waiting_work() {
    static std::deque<EmulatedWork> all;
    return all;
}

EmulatedWork emulated_named(EmulatedWork work) {
    return [work = std::move(work), name = names.empty() ? std::string("a kernel") : names.back()] {
        auto before = std::exchange(names, {name});
        work();
        names = std::move(before);
    };
}

void emulated_queue(EmulatedWork work) { waiting_work().push_back(emulated_named(std::move(work))); }

void emulated_finish() {
    auto all = std::exchange(waiting_work(), {});
    auto before = names;
    try {
        for (EmulatedWork& work : all) work();
    } catch (...) {
        names = std::move(before);
        throw;
    }
}

// ------------------------------------------------------------------------------------------------------------ device memory

using Blocks = std::map<const char*, size_t>;
static Blocks& blocks() {
    static Blocks all;
    return all;
}
static Blocks& pinned_blocks() {
    static Blocks all;
    return all;
}
// Whether all the bytes lie in one block; the end of a block is fine for none.
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
    if (access_depth == 0) ASAN_POISON_MEMORY_REGION(memory, bytes);
    return memory;
}

bool emulated_free(void* memory) {
    auto found = blocks().find(static_cast<char*>(memory));
    if (found == blocks().end()) return false;
    ASAN_UNPOISON_MEMORY_REGION(memory, found->second);
    blocks().erase(found);
    std::free(memory);
    return true;
}

bool is_device_memory(const void* pointer) { return lies_in(blocks(), pointer, 0); }

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
        for ([[maybe_unused]] auto [memory, bytes] : blocks()) ASAN_UNPOISON_MEMORY_REGION(memory, bytes);
}
DeviceAccess::~DeviceAccess() {
    if (--access_depth == 0 && guarded())
        for ([[maybe_unused]] auto [memory, bytes] : blocks()) ASAN_POISON_MEMORY_REGION(memory, bytes);
}
