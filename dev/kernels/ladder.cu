// make kernels: every step of every ladder, checked against float64; then its bound, and on a GPU its time beside it.
#include <cmath>
#include <cstdio>
#include <random>
#include "dev/kernels/ladder.h"
#include "llmc/device/device.h"
#include "llmc/device/memory.h"
#include "llmc/ops/peak.h"

static int passed = 0, failed = 0;

// ---------------------------------------------------------------------------------------------------------------- on a GPU

#ifdef __CUDACC__
static constexpr bool ON_GPU = true;

// This GPU, by what the driver says; the clock is its maximum. A tensor peak that is not known bounds nothing.
static Machine this_machine() {
    const double clock = 1e3 * device_attribute(cudaDevAttrClockRate), memory_clock = 1e3 * device_attribute(cudaDevAttrMemoryClockRate);
    const bool half = device_attribute(cudaDevAttrComputeCapabilityMajor) == 8 && device_attribute(cudaDevAttrComputeCapabilityMinor) == 0;
    const double tensor = device_peak_flops();
    return {"this GPU",
            static_cast<double>(sm_count()),
            clock,
            memory_clock * 2 * device_attribute(cudaDevAttrGlobalMemoryBusWidth) / 8,
            tensor > 0 ? tensor : INFINITY,
            half ? 64.0 : 128.0};
}
#else
static constexpr bool ON_GPU = false;
static Machine this_machine() { return SHEETS[0]; }
#endif

// Device memory for a step's time. Its values do not matter to it, so a block of random ones is repeated.
template <class Number>
class Filled {
public:
    explicit Filled(size_t n) : memory(static_cast<Number*>(device_alloc(n * sizeof(Number)))) {
        std::mt19937 generator(1);
        std::normal_distribution<float> normal;
        std::vector<Number> block(std::min(n, size_t{1} << 20));
        for (Number& value : block)
            if constexpr (std::is_same_v<Number, floatX>) value = to_floatX(normal(generator));
        for (size_t i = 0; i < n; i += block.size())
            copy_to_device(memory + i, block.data(), std::min(block.size(), n - i) * sizeof(Number), nullptr);
    }
    Filled(const Filled&) = delete;
    Filled& operator=(const Filled&) = delete;
    ~Filled() { release(memory); }
    operator Number*() const { return memory; }

private:
    Number* memory;
};

// Seconds of a run: the mean of many in a row, after a few that warm up.
template <class Body>
double seconds_of(Body body) {
    constexpr int WARM_UP = 3, ROUNDS = 20;
    cudaEvent_t begin, end;
    cuda_check(cudaEventCreate(&begin), "seconds_of");
    cuda_check(cudaEventCreate(&end), "seconds_of");
    for (int i = 0; i < WARM_UP; i++) body();
    cuda_check(cudaEventRecord(begin, cudaStreamPerThread), "seconds_of");
    for (int i = 0; i < ROUNDS; i++) body();
    cuda_check(cudaEventRecord(end, cudaStreamPerThread), "seconds_of");
    cuda_check(cudaEventSynchronize(end), "seconds_of");
    float milliseconds = 0;
    cuda_check(cudaEventElapsedTime(&milliseconds, begin, end), "seconds_of");
    cuda_check(cudaEventDestroy(begin), "seconds_of");
    cuda_check(cudaEventDestroy(end), "seconds_of");
    return 1e-3 * milliseconds / ROUNDS;
}

// ------------------------------------------------------------------------------------------------------------------ the table

// The worst of a step's checks as a share of the tolerance; what went wrong, on stderr.
template <class Run, class Size>
bool check_step(const std::string& ladder, const Step<Run, Size>& step, std::vector<Check> (*check)(Run*), std::string& verdict) {
    double max_error = 0;
    try {
        for (const Check& one : check(step.run)) {
            if (!(one.worst <= 1))
                std::fprintf(stderr, "%s, %s, %s: wrong, %.3g times the tolerance\n", ladder.c_str(), step.name, one.size.c_str(),
                             one.worst);
            max_error = std::max(max_error, one.worst);
        }
    } catch (const std::exception& error) {
        std::fprintf(stderr, "%s, %s: %s\n", ladder.c_str(), step.name, error.what());
        max_error = INFINITY;
    }
    const bool right = max_error <= 1;
    (right ? passed : failed)++;
    char text[32];
    std::snprintf(text, sizeof text, right ? "ok %.2f" : "WRONG", max_error);
    verdict = text;
    return right;
}

// One ladder. time(step) gives seconds of a run at `size`, and is called on a GPU only.
template <class Run, class Size, class Time>
void climb(const std::string& name, const std::string& size_text, const std::vector<Step<Run, Size>>& steps,
           std::vector<Check> (*check)(Run*), Size size, Time time) {
    std::printf("\n%s: %s, %s\n", name.c_str(), size_text.c_str(), PRECISION_NAME);
    if (ON_GPU)
        std::printf("     %-40s %-9s %10s %15s   %s\n", "step", "check", "time", "useful",
                    "least time by the bound, and its share of the time");
    else std::printf("     %-40s %-9s   %-32s   %s\n", "step", "check", "least time by the bound on H200", "on A100 80GB");
    const Work needed = steps.back().work(size)[0];
    const double flops = needed.tensor + needed.fp32;
    const Machine here = this_machine();
    for (size_t i = 0; i < steps.size(); i++) {
        std::string verdict;
        const bool right = check_step(name, steps[i], check, verdict);
        std::printf("  %zu  %-40s %-9s", i + 1, steps[i].name, verdict.c_str());
        const std::vector<Work> work = steps[i].work(size);
        if (ON_GPU && right) {
            const double seconds = time(steps[i]);
            const Bound least = bound(work, here);
            if (flops > 0) std::printf(" %7.1f us %8.1f TFLOP/s", 1e6 * seconds, 1e-12 * flops / seconds);
            else std::printf(" %7.1f us %11.0f GB/s", 1e6 * seconds, 1e-9 * needed.memory / seconds);
            std::printf("   %7.1f us %-17s %3.0f %%", 1e6 * least.seconds, least.by, 100 * least.seconds / seconds);
        } else if (!ON_GPU) {
            for (const Machine& machine : SHEETS) {
                const Bound least = bound(work, machine);
                std::printf("   %9.1f us %-20s", 1e6 * least.seconds, least.by);
            }
        }
        std::printf("\n");
        std::fflush(stdout);
    }
}

static int run() {
    std::printf("%s\n", ON_GPU ? device_name().c_str() : "no GPU: the kernels run on the emulator");
    const NormSize norm{65536, 768};
    const std::string norm_text = concat("N ", norm.N, ", C ", norm.C);
    climb("norm, forward", norm_text, norm_forward_ladder(), check_norm_forward, norm, [&](const auto& step) {
        const Filled<floatX> out(norm.N * norm.C), x(norm.N * norm.C);
        const Filled<float> rstd(norm.N);
        return seconds_of([&] { step.run(out, rstd, x, norm, 1e-6f, nullptr); });
    });
    climb("norm, backward", norm_text, norm_backward_ladder(), check_norm_backward, norm, [&](const auto& step) {
        const Filled<floatX> dx(norm.N * norm.C), dout(norm.N * norm.C), out(norm.N * norm.C);
        const Filled<float> rstd(norm.N);
        return seconds_of([&] { step.run(dx, dout, out, rstd, norm, nullptr); });
    });
    const CrossEntropySize rows{16384, 32768};
    climb("cross entropy", concat("N ", rows.N, ", V ", rows.V), cross_entropy_ladder(), check_cross_entropy, rows, [&](const auto& step) {
        const Filled<floatX> logits(rows.N * rows.V);
        const Filled<float> losses(rows.N), scratch(2 * rows.N);
        const Filled<int> targets(rows.N);
        return seconds_of([&] { step.run(losses, logits, scratch, targets, rows, 1.0f, nullptr); });
    });
    const AttentionSize heads{8, 2048, 12, 2048};
    const std::string heads_text = concat("B ", heads.B, ", T ", heads.T, ", H ", heads.H, ", D ", HEAD, ", causal");
    climb("attention, forward", heads_text, attention_ladder(), check_attention, heads, [&](const auto& step) {
        const size_t tokens = static_cast<size_t>(heads.B) * heads.T, elements = tokens * heads.H * HEAD;
        const Filled<floatX> y(elements), qkv(3 * elements);
        const Filled<float> lse(tokens * heads.H), scratch(tokens * heads.H * heads.T);
        return seconds_of([&] { step.run(y, lse, scratch, qkv, heads, nullptr); });
    });
    climb("attention, backward", heads_text, attention_backward_ladder(), check_attention_backward, heads, [&](const auto& step) {
        const size_t tokens = static_cast<size_t>(heads.B) * heads.T, elements = tokens * heads.H * HEAD;
        const Filled<floatX> dqkv(3 * elements), dy(elements), y(elements), qkv(3 * elements);
        const Filled<float> lse(tokens * heads.H), scratch(attention_backward_floats(heads));
        return seconds_of([&] { step.run(dqkv, scratch, dy, y, lse, qkv, heads, nullptr); });
    });
    std::printf("\n%s%d passed, %d failed\n", ON_GPU ? "" : "checked on the emulator; no times without a GPU\n", passed, failed);
    return failed > 0;
}

int main() { return run_program("ladder", run); }
