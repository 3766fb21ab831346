// dev/gpu_check.sh on a machine without a GPU: its refusals; and every path through it, with scripts in place of the GPU's tools and of
// the programs that it builds.
#include <doctest/doctest.h>
#include <algorithm>
#include <cstring>
#include <sstream>
#include "dev/bench.h"
#include "llmc/text/shard.h"
#include "test/program.h"

namespace fs = std::filesystem;

/// A tree with the script in it, and a folder of stand-ins, which come first on the PATH.
struct GpuMachine {
    TempDir dir;

    GpuMachine() {
        fs::create_directories(dir / "dev");
        fs::create_directories(dir / "bin");
        fs::create_directories(dir / "llmc/ops");
        fs::create_directories(dir / "test/ops");
        fs::copy_file("dev/gpu_check.sh", dir / "dev/gpu_check.sh");
        // Text for the training tokens, some of it not ASCII; and two ops.
        for (std::string op : {"norm", "muon"}) {
            write_file(dir / ("llmc/ops/" + op + ".cu"), "a kernel \u00b2 of " + op + std::string(3001, '~'));
            write_file(dir / ("test/ops/" + op + ".cpp"), "its tests");
        }
        stand_in("nvidia-smi", R"(case "$*" in
            *-lms*) while echo "1755, 650.1, 60"; do sleep 1; done ;;
            *=name*) echo "NVIDIA Test 80GB" ;;
            *compute_cap*) echo "9.0" ;;
            *) echo "something" ;; esac)");
        stand_in("nvcc", "echo 'Cuda compilation tools, release 13.0, V13.0.88'");
        program("comm_worker", "[ \"$1 $WORLD_SIZE $LOCAL_RANK\" = \"contract 4 $RANK\" ]");
        // The profiled program prints to stdout; ncu's own output goes to the file.
        stand_in("ncu", R"sh(echo '| ops of a profiled program |'
            while [ "$1" != --log-file ]; do shift; done
            exec >"$2"
            echo '==PROF== Connected'
            echo '"ID","Process ID","Kernel Name","Device","dram__bytes.sum","gpu__time_duration.sum","launch__registers_per_thread","sm__throughput.avg.pct_of_peak_sustained_elapsed","sm__warps_active.avg.pct_of_peak_sustained_active"'
            echo '"","","","","byte","ns","register/thread","%","%"'
            echo '"0","7","void <unnamed>::norm_kernel<(int)4, (bool)1>(float *, int)","0","3,000,000","1,500.00","48","61.4","93.2"')sh");
        stand_in("compute-sanitizer", "echo '========= ERROR SUMMARY: 0 errors'");
        stand_in("python3", R"(case "$*" in -c*) echo 2.11.0 ;; *) echo "torch says $*" ;; esac)");
        program("tests", "echo '[doctest] test cases:  7 |  7 passed | 0 failed | 2 skipped'");
        program("bench", "while [ ! -s build/gpu-check/clocks.log ]; do sleep 0.01; done; echo bench $* 600000 tok/s 50.0 %");
        program("bench_ops", "echo '| ops of' $1 '|'");
        // Its checkpoints hold the arguments of the run, except for the output folder.
        program("train_gpt", R"(while [ $# -gt 0 ]; do
                case $1 in
                    --out) out=$2 ;;
                    --resume) out=${2%/*}; text=$(cat "$2") ;;
                    --recipe) text=$2 ;;
                esac
                shift
            done
            mkdir -p "$out"
            if [ "${RANK:-1}" = 0 ]; then   # of several processes, the first
                for step in 1 2 3 4 5 6; do echo "step $step loss 1.0 ms $((step > 3 ? 400 / WORLD_SIZE + step * 10 : 9999)).0 tok/s 1"; done
                echo "$text" >"$out/step_0000012.bin"
            fi
            echo "$text" >"$out/step_0000020.bin"
            echo "$text" >"$out/step_0000040.bin")");
    }
    /// The command `name`, with this body of a shell script.
    void stand_in(const std::string& name, const std::string& body) { script("bin/" + name, body); }
    /// A program that make builds for CUDA, in both precisions.
    void program(const std::string& name, const std::string& body) {
        script("program-" + name, body);
        stand_in("make", R"(for word; do case $word in build/*) mkdir -p "${word%/*}" && cp "program-${word##*/}" "$word" ;; esac; done)");
    }
    Result check(const std::string& environment = "") const {
        return run("PATH=" + dir / "bin:$PATH NVCC= " + environment + " COMMIT=abc1234 bash " + dir / "dev/gpu_check.sh 'suite'");
    }
    std::string report() const { return read_file(dir / "dev/results/nvidia-test-80gb.md"); }
    bool untouched() const { return !fs::exists(dir / "dev/results") && !fs::exists(dir / "build"); }

private:
    void script(const std::string& name, const std::string& body) {
        write_file(dir / name, "#!/bin/bash\n" + body + "\n");
        fs::permissions(dir / name, fs::perms::owner_all);
    }
};

static bool contains(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }
static bool one_line(const std::string& text) { return std::count(text.begin(), text.end(), '\n') == 1; }

TEST_CASE("bench_torch.py has the engine's models") {
    CHECK_MESSAGE(read_file("dev/bench_models.json") == bench_models_json(), "build/cpu-bf16/bench --models >dev/bench_models.json");
}

TEST_CASE("gpu_check.sh: without a GPU or the toolkit, one line of error, exit code 2, and nothing is written") {
    auto refused = [](const GpuMachine& machine, const std::string& environment, const std::string& words) {
        Result result = machine.check(environment);
        CHECK(result.code == 2);
        CHECK(result.out.empty());
        CHECK(one_line(result.err));
        CHECK_MESSAGE(contains(result.err, words), result.err);
        CHECK(contains(result.err, "nothing was built or written"));
        CHECK(machine.untouched());
    };
    GpuMachine none;
    fs::create_directories(none.dir / "empty");
    Result result = run("PATH=" + none.dir / "empty /bin/bash " + none.dir / "dev/gpu_check.sh");
    CHECK(result.code == 2);
    CHECK(one_line(result.err));
    CHECK(contains(result.err, "gpu_check.sh: no GPU here (no nvidia-smi)"));
    CHECK(none.untouched());

    GpuMachine no_driver;
    no_driver.stand_in("nvidia-smi", "echo \"NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\"; echo 'Make sure ...'; exit 9");
    refused(no_driver, "", "gpu_check.sh: no GPU here (nvidia-smi: NVIDIA-SMI has failed because");

    GpuMachine old;
    old.stand_in("nvidia-smi", "case \"$*\" in *=name*) echo 'Tesla T4' ;; *) echo 7.5 ;; esac");
    refused(old, "", "Tesla T4 has compute capability 7.5; the kernels need 8.0 or more");

    GpuMachine silent;
    silent.stand_in("nvidia-smi", "case \"$*\" in *=name*) echo 'Tesla T4' ;; *) echo 'Field \"compute_cap\" is not a valid field to query.'; exit 1 ;; esac");
    refused(silent, "", "does not tell the compute capability of Tesla T4");

    GpuMachine no_toolkit;
    fs::remove(no_toolkit.dir / "bin/nvcc");
    // A real nvcc of this machine must not be found: the PATH has only the stand-ins, which include all that the script needs until then.
    Result no_nvcc = run("PATH=" + no_toolkit.dir / "bin NVCC= CUDA_HOME=/nowhere /bin/bash " + no_toolkit.dir / "dev/gpu_check.sh");
    CHECK(no_nvcc.code == 2);
    CHECK_MESSAGE(contains(no_nvcc.err, "NVIDIA Test 80GB is here, but no nvcc, neither in PATH nor in /nowhere/bin"), no_nvcc.err);
    CHECK(no_toolkit.untouched());
}

TEST_CASE("gpu_check.sh: it uses the NVCC of make") {
    GpuMachine machine;
    fs::create_directories(machine.dir / "toolkit");
    fs::rename(machine.dir / "bin/nvcc", machine.dir / "toolkit/nvcc");
    machine.stand_in("nvcc", "echo 'Cuda compilation tools, release 11.0, V11.0.1'");
    CHECK(machine.check("NVCC=" + machine.dir / "toolkit/nvcc").code == 0);
    CHECK(contains(machine.report(), "CUDA: 13.0;"));
}

TEST_CASE("gpu_check.sh: a full run, on a machine that has everything") {
    GpuMachine machine;
    Result result = machine.check("THIRD_PARTY=/headers");
    CHECK(result.code == 0);
    CHECK_MESSAGE(result.err.empty(), result.err);
    std::string report = machine.report();
    CHECK(result.out == report);   // stdout shows the report as it is written
    for (std::string part : {"# NVIDIA Test 80GB\n", "make gpu-check THIRD_PARTY=/headers", "commit: abc1234", "built for sm_90a", "CUDA: 13.0;", "| build, bf16 | fine |", "| build, fp32 | fine |",
                             "golden cases and model, bf16 | 14 passed, 0 failed; fine |", "golden cases and model, fp32 | 14 passed, 0 failed; fine |",
                             "| speedrun: 40 steps twice, and 20 + resume + 20: the same bytes | fine |", "| nanochat: 40 steps twice",
                             "```\nbench speedrun124M nanochat-d12 600000 tok/s", "SM clock 1755 to 1755 MHz, median 1755", "power 650.1 W at most",
                             "## Ops of speedrun124M\n\n| ops of speedrun124M |", "| ops of nanochat-d12 |", "| memcheck | muon norm |  |  |", "| racecheck | muon norm |  |  |",
                             "| synccheck | muon norm |  |  |", "| initcheck | muon norm |  |  |", "| norm_kernel<4, 1> | 1.5 | 3.0 | 2000 | 61 % | 93 % | 48 |",
                             "torch says dev/bench_torch.py attention\n", "torch says dev/bench_torch.py speedrun124M\n", "torch says dev/bench_torch.py nanochat-d12\n", "nothing failed"})
        CHECK_MESSAGE(contains(report, part), part);
    CHECK(!contains(report, "PCRE2"));
    // The sanitizer runs while PyTorch compiles. The profiler comes last, after PyTorch, because it slows everything down.
    size_t before = 0;
    for (std::string heading : {"## Build and tests", "## compute-sanitizer", "## Training step", "## Ops of nanochat-d12", "## The same models in compiled PyTorch", "## Memory traffic"}) {
        CHECK_MESSAGE(report.find(heading, before) != report.npos, heading);
        before = report.find(heading);
    }

    // The data that it trains on is a valid shard, with ids within the models' vocabulary.
    std::string shard = machine.dir / "build/gpu-check/tokens.bin";
    int64_t tokens = read_shard_header(shard);
    CHECK(tokens >= 6000 / 2);
    std::string bytes = read_file(shard);
    int largest = 0;
    for (int64_t i = 0; i < tokens; i++) {
        uint16_t token;
        std::memcpy(&token, bytes.data() + sizeof(ShardHeader) + 2 * i, 2);
        largest = std::max(largest, int{token});
    }
    CHECK(largest > 1000);
    CHECK(largest < 4096);
}

TEST_CASE("gpu_check.sh: what a machine lacks or does not allow is reported, and is not a failure") {
    GpuMachine machine;
    machine.stand_in("compute-sanitizer", "echo '========= Error: Device not supported. Please refer to the release notes'; exit 1");
    machine.stand_in("ncu", "echo '==ERROR== Failed to initialize the profiler: LibraryNotLoaded'; exit 1");
    machine.stand_in("python3", "echo \"ModuleNotFoundError: No module named 'torch'\"; exit 1");
    machine.program("tests", "echo 'MESSAGE: built without PCRE2'; echo '[doctest] test cases:  7 |  7 passed | 0 failed | 2 skipped'");
    Result result = machine.check();
    CHECK(result.code == 0);
    CHECK_MESSAGE(result.err.empty(), result.err);
    for (std::string part : {"PCRE2 is not on this machine: the tokenizer's encoder and its tests were left out.",
                             "| memcheck |  |  | muon: the tool does not run on this machine;norm: the tool does not run on this machine |", "Device not supported",
                             "ncu measured nothing (**failed** (exit code 1; build/gpu-check/ncu.log)): ==ERROR== Failed to initialize the profiler: LibraryNotLoaded",
                             "python3 has no torch here (ModuleNotFoundError: No module named 'torch').", "nothing failed"})
        CHECK_MESSAGE(contains(machine.report(), part), part);
    machine.stand_in("python3", "case \"$*\" in -c*) echo 2.11.0 ;; *) echo 'torch nanochat-d12: ended by OutOfMemoryError'; exit 1 ;; esac");
    CHECK(machine.check().code == 0);
    CHECK(contains(machine.report(), "torch nanochat-d12: ended by OutOfMemoryError\n```\nattention: **failed** (exit code 1;"));
    machine.stand_in("python3", "case \"$*\" in -c*) echo 2.11.0 ;; *) echo 'SyntaxError: invalid syntax'; exit 1 ;; esac");
    CHECK(machine.check().code == 0);
    CHECK(contains(machine.report(), "\nLast lines of its log:\n```\nSyntaxError: invalid syntax\n```\n"));
    machine.stand_in("timeout", "shift 3; \"$@\"; code=$?; case \"$1 $2\" in python3\\ -c) exit 124;; esac; exit $code");
    CHECK(machine.check().code == 0);
    CHECK_MESSAGE(contains(machine.report(), "import torch: not done after "), machine.report());
}

TEST_CASE("gpu_check.sh: a failure is reported, the rest still runs, and the exit code is 1") {
    auto failed = [](GpuMachine& machine, const std::string& words) {
        Result result = machine.check();
        CHECK(result.code == 1);
        CHECK_MESSAGE(contains(machine.report(), words), machine.report());
    };
    SUBCASE("nothing builds") {
        GpuMachine machine;
        machine.stand_in("make", "echo 'llmc/ops/norm.cu(7): error: identifier \"x\" is undefined'; exit 2");
        failed(machine, "llmc/ops/norm.cu(7): error: identifier");
        CHECK(contains(machine.report(), "| build, fp32 | **failed** (exit code 2; build/gpu-check/build-fp32.log) |"));
        CHECK(contains(machine.report(), "Nothing was built, so nothing was run."));
        CHECK(!contains(machine.report(), "THIRD_PARTY=dir"));
        machine.stand_in("make", "echo 'fatal error: nlohmann/json.hpp: No such file or directory'; exit 2");
        failed(machine, "or say where they lie: make gpu-check THIRD_PARTY=dir.");
        machine.stand_in("make", "echo 'setup: not here: CLI11; make deps installs what building and testing need'; exit 2");
        failed(machine, "Headers are missing: make deps installs them, or names their packages; or say where they lie");
        CHECK(contains(machine.report(), "\n```\nsetup: not here: CLI11; make deps"));
    }
    SUBCASE("one precision does not build") {
        GpuMachine machine;
        std::string make = read_file(machine.dir / "bin/make");
        machine.stand_in("make", "case \"$*\" in *PRECISION=bf16*) echo 'error: no'; exit 2;; esac\n" + make);
        failed(machine, "| build, fp32 | fine |");
        CHECK(contains(machine.report(), "golden cases and model, fp32 | 14 passed"));
        CHECK(contains(machine.report(), "|\n\n```\nerror: no\n```\n"));
        CHECK(contains(machine.report(), "Left out: the bf16 build failed."));
    }
    SUBCASE("tests") {
        GpuMachine machine;
        machine.program("tests", R"(case "$0 $*" in
            *bf16*muon*) echo 'TEST CASE:  muon moves'; echo 'test/ops/muon.cpp:7: ERROR: CHECK( 1 == 2 ) is NOT correct!'
                         echo '[doctest] test cases:  7 |  6 passed | 1 failed | 2 skipped'; exit 1 ;;
            *) echo '[doctest] test cases:  7 |  7 passed | 0 failed | 2 skipped' ;; esac)");
        failed(machine, "golden cases and model, bf16 | 13 passed, 1 failed; **not fine** |");
        CHECK(contains(machine.report(), "| muon, bf16 | **failed** (exit code 1; build/gpu-check/tests-bf16-muon.log) | |\n| op suites, golden cases and model, fp32 | 14 passed, 0 failed; fine |"));
        CHECK(contains(machine.report(), "\nmuon, bf16:\n```\nTEST CASE:  muon moves\ntest/ops/muon.cpp:7: ERROR: CHECK( 1 == 2 ) is NOT correct!\n```\n"));
        CHECK(contains(machine.report(), "| ops of nanochat-d12 |"));
        CHECK(!contains(machine.report(), "instead of Hopper's own"));
    }
    SUBCASE("tests that crash") {
        GpuMachine machine;
        machine.program("tests", "case $* in *norm*) echo 'an illegal memory access'; exit 139;; esac; echo '[doctest] test cases:  7 |  7 passed | 0 failed | 2 skipped'");
        failed(machine, "golden cases and model, bf16 | 7 passed, 0 failed; **not fine** |");
        CHECK(contains(machine.report(), "| norm, fp32 | **failed** (exit code 139; build/gpu-check/tests-fp32-norm.log) | |"));
        CHECK(contains(machine.report(), "\nnorm, fp32:\n```\nan illegal memory access\n```\n"));
    }
    SUBCASE("the attention tests hang: the benchmarks avoid Hopper's kernels") {
        GpuMachine machine;
        write_file(machine.dir / "test/ops/attention.cpp", "its tests");
        machine.stand_in("timeout", "shift 3; case $* in *bf16*/attention*) exit 124;; esac; exec \"$@\"");
        machine.program("bench", "while [ ! -s build/gpu-check/clocks.log ]; do sleep 0.01; done; echo bench $*");
        failed(machine, "| attention, bf16 | not done in time | |");
        CHECK(contains(machine.report(), "golden cases and model, bf16 | 14 passed, 0 failed; **not fine** |"));
        CHECK(contains(machine.report(), "Attention failed its tests: the measurements below use the kernels for all GPUs instead of Hopper's own."));
        CHECK(contains(machine.report(), "\nbench --mma-sync speedrun124M nanochat-d12\n"));
    }
    SUBCASE("two runs differ") {
        GpuMachine machine;
        std::string train = read_file(machine.dir / "program-train_gpt");
        machine.program("train_gpt", "case \"$*\" in *--out*/two*) second=x;; esac\n" + train + "[ -z \"${second:-}\" ] || echo >>\"$out/step_0000040.bin\"");
        failed(machine, "| speedrun: 40 steps twice, and 20 + resume + 20: the same bytes | **failed**");
    }
    SUBCASE("a resumed run differs") {
        GpuMachine machine;
        std::string train = read_file(machine.dir / "program-train_gpt");
        machine.program("train_gpt", "case \"$*\" in *--resume*) again=x;; esac\n" + train + "[ -z \"${again:-}\" ] || echo >>\"$out/step_0000040.bin\"");
        failed(machine, "| nanochat: 40 steps twice, and 20 + resume + 20: the same bytes | **failed**");
        CHECK(contains(machine.report(), "\nnanochat, repeated and resumed:\n```\n"));
        CHECK(contains(machine.report(), "cmp: EOF on build/gpu-check/nanochat/one/step_0000040.bin"));
    }
    SUBCASE("a benchmark") {
        GpuMachine machine;
        machine.program("bench", "echo peak 700; exit 2");
        failed(machine, "```\npeak 700\n```\nThe benchmark of the step: **failed** (exit code 2;");
    }
    SUBCASE("the sanitizer finds something") {
        GpuMachine machine;
        machine.stand_in("compute-sanitizer", "case \"$*\" in *racecheck*muon*) echo '========= Error: Race reported between Write access'; exit 9;; esac");
        failed(machine, "| racecheck | norm | muon |  |");
        CHECK(contains(machine.report(), "The first of racecheck in muon:\n```\n========= Error: Race reported"));
        CHECK(contains(machine.report(), "| memcheck | muon norm |  |  |"));
    }
    SUBCASE("tests fail under the sanitizer alone") {
        GpuMachine machine;
        machine.stand_in("compute-sanitizer", "exit 1");
        failed(machine, "| initcheck |  |  | muon: the tests failed under it;norm: the tests failed under it |");
    }
}

TEST_CASE("gpu_check.sh: several GPUs, of which the largest power of two is used") {
    GpuMachine machine;
    CHECK(machine.check().code == 0);
    CHECK(contains(machine.report(), "## Several GPUs\n\nThis machine has one GPU: nothing was run on several.\n"));

    const std::string one_gpu = read_file(machine.dir / "bin/nvidia-smi");
    machine.stand_in("nvidia-smi", "case \"$*\" in -L) for i in 0 1 2 3 4; do echo \"GPU $i: NVIDIA Test\"; done; exit;; esac\n" + one_gpu);
    CHECK(machine.check().code == 0);
    CHECK_MESSAGE(contains(machine.report(), "speedrun124M, 131072 tokens a step in 4 parts; the checkpoint on any number of GPUs has the same bytes as on one: fine.\n\n"
                                             "| GPUs | ms per step, median | speedup | share of a step lost to communication and serial work |\n|--:|--:|--:|--:|\n"
                                             "| 1 | 450.0 | 1.00 | 0.0 % |\n| 2 | 250.0 | 1.80 | 10.0 % |\n| 4 | 150.0 | 3.00 | 25.0 % |\n"),
                  machine.report());
    CHECK(!fs::exists(machine.dir / "build/gpu-check/several"));

    const std::string train = read_file(machine.dir / "program-train_gpt");
    machine.program("train_gpt", train + "[ \"${WORLD_SIZE:-1}\" != 4 ] || echo >>\"$out/step_0000012.bin\"");
    CHECK(machine.check().code == 1);
    CHECK(contains(machine.report(), "as on one: **failed** (exit code 1;"));
    CHECK(contains(machine.report(), "| 2 | 250.0 | 1.80 | 10.0 % |\n\nLast lines of its log:\n```\n"));
    CHECK(contains(machine.report(), "cmp: EOF on build/gpu-check/several/1/step_0000012.bin"));

    machine.program("train_gpt", train);
    machine.program("comm_worker", "echo \"rank $RANK misses a byte\"; exit $RANK");
    CHECK(machine.check().code == 1);
    CHECK(contains(machine.report(), "rank 3 misses a byte\n```\n"));
}

TEST_CASE("gpu_check.sh: the aims, and whether they were reached") {
    GpuMachine machine;
    machine.program("bench", R"(while [ ! -s build/gpu-check/clocks.log ]; do sleep 0.01; done
        echo 'step speedrun124M 65536 tokens 109.4 ms 599000 tok/s 60.0 % of the best matmul, 51.7 % of device_peak_flops'
        echo 'step speedrun124M 524288 tokens 870.1 ms 602600 tok/s 60.4 % of the best matmul, 52.1 % of device_peak_flops'
        echo 'step nanochat-d12 65536 tokens 100.0 ms 655360 tok/s 60.0 % of the best matmul, 53.1 % of device_peak_flops')");
    machine.program("bench_ops", R"(case $1 in speedrun124M)
        echo '| op | shape | us | GB/s | of copy | TFLOP/s | of matmul | calls a step | ms a step | |'
        echo '| residual_add | 8 x 16 | 1.8 | 112 | 97.2 % |  |  | 1 | 0.00 |  |'
        echo '| rotary_forward | 8 x 3 x 8 | 4.8 | 61.4 | 84.9 % |  |  | 2 | 0.01 |  |'
        echo '| muon_update | 8 x 128 x 128 | 901.7 | 3.2 | 1.3 % | 0.558 | 54.5 % | 1 | 0.90 |  |'
        echo '| attention_forward | 64 x 1024 x 12 x 64, window 1024 | 500.0 |  |  | 400 | 60.0 % | 12 | 6.00 | 700 TFLOP/s as accounted |'
        echo '| attention_forward, mma.sync | 64 x 1024 x 12 x 64, window 1024 | 900.0 |  |  | 222 | 33.0 % | 0 | 0.00 |  |' ;; esac)");
    machine.stand_in("python3", R"(case "$*" in
        -c*) echo 2.11.0 ;;
        *warm*) ;;
        *attention) echo 'torch attention flash forward 64x1024x12x64 window 1024: 380.0 us, 526.0 TFLOP/s' ;;
        *speedrun124M) echo 'torch speedrun124M step 524288 tokens 1000.0 ms 524288 tok/s 448.1 TFLOP/s' ;; esac)");
    CHECK(machine.check().code == 0);
    for (std::string part : {"| speedrun124M: 600,000 tok/s on an H200 | 602600 tok/s | reached |", "| nanochat-d12: 55 % of the dense bf16 peak | 53.1 % | missed |",
                             "| attention_forward 64 x 1024 x 12 x 64, window 1024: within 1.3 times the time of PyTorch, flash | 1.32 times (500.0 us and 380.0 us) | missed |",
                             "| memory-bound kernels: 85 % of the copy bandwidth | 1 of 2; not rotary_forward 8 x 3 x 8 84.9 % | missed |",
                             "| speedrun124M: as fast as compiled PyTorch | 1.15 times its tok/s | reached |"})
        CHECK_MESSAGE(contains(machine.report(), part), machine.report());
    CHECK(!contains(machine.report(), "nanochat-d12: as fast"));
}

TEST_CASE("gpu_check.sh: what takes too long is reported with its output so far; when the time is up, nothing more is started") {
    GpuMachine machine;
    // A stand-in for timeout -k S LIMIT COMMAND..., which reports a timeout of two commands at once.
    machine.stand_in("timeout", "shift 3; \"$@\"; code=$?; case \"$1 $3\" in build/cuda-bf16/bench\\ *|*\\ synccheck) exit 124;; esac; exit $code");
    CHECK(machine.check().code == 1);
    CHECK_MESSAGE(contains(machine.report(), "600000 tok/s 50.0 %\n```\nThe benchmark of the step: not done after "), machine.report());
    CHECK(contains(machine.report(), "| synccheck |  |  | muon: not done in time;norm: not done in time |"));
    CHECK(contains(machine.report(), "torch says dev/bench_torch.py nanochat-d12"));

    auto set_budget = [&, script = read_file("dev/gpu_check.sh")](const std::string& seconds) {
        std::string changed = script;
        changed.replace(changed.find("budget=530 "), 10, "budget=" + seconds);
        write_file(machine.dir / "dev/gpu_check.sh", changed);
    };
    // The sanitizer leaves 210 s for the benchmarks, and the limit of each of its runs is within the limit of all.
    machine.stand_in("timeout", "shift 2; [ $2 != compute-sanitizer ] || echo $1 >>limits; shift; exec \"$@\"");
    set_budget("235");
    CHECK(machine.check().code == 0);
    CHECK_MESSAGE(contains(machine.report(), "| memcheck | muon norm |  |  |"), machine.report());
    std::istringstream limits(read_file(machine.dir / "limits"));
    int limit = 0, count = 0;
    for (; limits >> limit; count++) CHECK(limit <= 20);
    CHECK(count == 8);
    set_budget("212");
    CHECK(machine.check().code == 0);
    CHECK_MESSAGE(contains(machine.report(), "| memcheck |  |  | no time left: muon norm |"), machine.report());
    CHECK(contains(machine.report(), "600000 tok/s"));

    set_budget("0");
    CHECK(machine.check().code == 1);
    CHECK(contains(machine.report(), "| build, bf16 | left out: no time left | 0 |"));
    CHECK(contains(machine.report(), "Nothing was built, so nothing was run."));
}
