// Whole runs of the trainer with the CUDA files, on the emulator, as one, two and four processes that the emulated NCCL joins: the same bytes. Three
// steps: done directly, captured, replayed. EMULATOR_STEPS=40 takes forty, in half an hour.
#include <doctest/doctest.h>
#include <future>
#include <vector>
#include "test/small_run.h"

namespace fs = std::filesystem;

namespace {
const std::string FOLDER = fs::read_symlink("/proc/self/exe").parent_path();

/// Runs `count` processes of the emulator's trainer to their end; returns what they said on stderr.
std::string job(int count, const std::string& flags) {
    TempDir meeting;
    std::vector<std::future<Result>> processes;
    for (int rank = 0; rank < count; rank++) {
        const std::string number = std::to_string(rank), of = std::to_string(count);
        const std::string command = "export RANK=" + number + " LOCAL_RANK=" + number + " WORLD_SIZE=" + of + " LOCAL_WORLD_SIZE=" + of +
                                    " EMULATOR_GPUS=4 OMP_NUM_THREADS=1; exec " + FOLDER + "/train_gpt --meet " + meeting / "file" + flags;
        processes.push_back(std::async(std::launch::async, [command] { return run(command); }));
    }
    std::string said;
    for (auto& process : processes) {
        const Result result = process.get();
        CHECK(result.code == 0);
        said += result.err;
    }
    return said;
}
}  // namespace

TEST_CASE("emulator: one, two and four processes train to the same bytes") {
    Workplace w;
    const char* longer = std::getenv("EMULATOR_STEPS");
    const int steps = longer ? std::stoi(longer) : 3;
    const std::string sizes = " --heads 2 --seq-len 16 --vocab-size 72 --device-batch 1 --batch-tokens 64 --no-scaling --parts 4 --eval-tokens 64 --eval-every 0 --steps " + std::to_string(steps);
    const std::string models[] = {
        " --recipe nanochat --depth 1 --width 32 --kv-heads 1",
        " --recipe speedrun --depth 1 --width 32 --coconut-every 2 --train-only 'h.0.*'",
    };
    for (const std::string& model : models) {
        CAPTURE(model);
        std::string bytes;
        for (int count : {1, 2, 4}) {
            const std::string out = w / ("out-" + std::to_string(count));
            CHECK(job(count, model + sizes + w.data + w.val + " --overwrite --out " + out) == "");
            REQUIRE(fs::exists(step_file(out, steps)));
            if (count == 1) bytes = read_file(step_file(out, steps));
            CHECK(read_file(step_file(out, steps)) == bytes);
        }
    }
}
