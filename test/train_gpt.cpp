// The trainer as it is used: exact resumption, signals and kills, plan, evaluation, refusals. A tiny model on tokens made here.
#include <doctest/doctest.h>
#include <cmath>
#include <cstdint>
#include <vector>
#include "test/program.h"

/// A folder with shards of tokens below 64: two for training, one for validation.
struct Workplace {
    TempDir dir;
    std::string data;

    Workplace() {
        for (int shard = 0; shard < 2; shard++) write_shard(dir / ("train_" + std::to_string(shard) + ".bin"), 3001 + shard, 1000 + shard);
        write_shard(dir / "val_0.bin", 1500, 7);
        data = " --data '" + dir / "train_*.bin'";
    }
    static void write_shard(const std::string& path, int tokens, uint32_t seed, int largest = 63) {
        std::vector<int32_t> header(256, 0);
        header[0] = 20240520, header[1] = 1, header[2] = tokens;
        std::string bytes(reinterpret_cast<const char*>(header.data()), 1024);
        for (int i = 0; i < tokens; i++) {
            seed = seed * 1664525u + 1013904223u;
            uint16_t token = i == tokens - 1 ? static_cast<uint16_t>(largest) : static_cast<uint16_t>((seed >> 16) % 61 + (i % 40 == 0));
            bytes.append(reinterpret_cast<const char*>(&token), 2);
        }
        write_file(path, bytes);
    }
    std::string operator/(const std::string& name) const { return dir / name; }
};

static const std::string NANOCHAT = "./train_gpt --recipe nanochat --depth 2 --width 32 --heads 2 --seq-len 16 --vocab-size 64 --device-batch 2"
                                    " --batch-tokens 64 --eval-every 0";
static const std::string SPEEDRUN = "./train_gpt --recipe speedrun --depth 2 --width 32 --heads 2 --seq-len 16 --vocab-size 64 --device-batch 2"
                                    " --batch-tokens 64 --eval-every 0";

static void check_refused(const std::string& command, const std::string& words) {
    CAPTURE(command);
    Result result = run(command);
    CHECK(result.code == 2);
    CHECK(result.err.find(words) != std::string::npos);
    CHECK(result.err.rfind("train_gpt: ", 0) == 0);
    CHECK(result.err.find('\n') == result.err.size() - 1);   // one line
    CAPTURE(result.err);
}

TEST_CASE("train_gpt: 20 steps, resume and 20 more give the bytes of 40 in one go") {
    Workplace w;
    for (std::string model : {NANOCHAT, SPEEDRUN + " --warmdown-ratio 0.5 --coconut-every 5 --coconut-targets next", NANOCHAT + " --packing bos-bestfit --data-seed 3",
                              SPEEDRUN + " --coconut-every 7 --warmup-steps 5"}) {
        CAPTURE(model);
        REQUIRE(run(model + w.data + " --steps 40 --overwrite --out " + w / "one").code == 0);
        REQUIRE(run(model + w.data + " --steps 40 --save-every 20 --overwrite --out " + w / "two").code == 0);
        std::filesystem::remove(w / "two/step_0000040.bin");
        Result resumed = run("./train_gpt --eval-every 0" + w.data + " --resume " + w / "two/step_0000020.bin");
        CAPTURE(resumed.err);
        REQUIRE(resumed.code == 0);
        CHECK(read_file(w / "one/step_0000040.bin") == read_file(w / "two/step_0000040.bin"));
    }
}

TEST_CASE("train_gpt: a longer horizon goes on where a shorter one ended, while the rate is constant") {
    Workplace w;
    REQUIRE(run(NANOCHAT + w.data + " --weight-decay 0 --warmdown-ratio 0 --steps 40 --out " + w / "one").code == 0);
    REQUIRE(run(NANOCHAT + w.data + " --weight-decay 0 --warmdown-ratio 0 --steps 20 --out " + w / "two").code == 0);
    REQUIRE(run("./train_gpt --eval-every 0 --steps 40" + w.data + " --resume " + w / "two/step_0000020.bin").code == 0);
    CHECK(read_file(w / "one/step_0000040.bin") == read_file(w / "two/step_0000040.bin"));
    check_refused("./train_gpt --eval-every 0" + w.data + " --resume " + w / "two/step_0000040.bin", "the run is done");
}

TEST_CASE("train_gpt: killed at any instant it resumes from its last file; asked to stop it saves") {
    Workplace w;
    const std::string command = NANOCHAT + w.data + " --steps 200000 --save-every 1";
    for (int i = 0; i < 6; i++) {
        std::string out = w / ("killed" + std::to_string(i));
        run("timeout -s KILL 0." + std::to_string(4 + i) + " " + command + " --keep 3 --out " + out);
        Result last = run("ls " + out + "/step_*.bin | tail -n 1");
        if (last.out.empty()) continue;   // killed before the first checkpoint
        last.out.pop_back();
        Result resumed = run("timeout -s TERM 1 ./train_gpt --eval-every 0" + w.data + " --resume " + last.out);
        CAPTURE(resumed.err);
        CHECK(resumed.code == 124);       // what timeout says when it had to end a program that then ended by itself
        CHECK(resumed.out.find("go on with --resume") != std::string::npos);
        CHECK(run("find " + out + " -name '*.bin' -not -name 'step_*.bin' | wc -l").out == "0\n");
    }
    for (std::string signal : {"TERM", "INT"}) {
        Result stopped = run("timeout -s " + signal + " --preserve-status 1 " + NANOCHAT + w.data + " --steps 2000000 --out " + w / signal);
        CHECK(stopped.code == 0);
        CHECK(run("ls " + w / signal + "/step_*.bin | wc -l").out == "1\n");
    }
}

TEST_CASE("train_gpt: --plan gives the studies' numbers and does nothing else") {
    Result d12 = run("./train_gpt --plan --recipe nanochat --depth 12 --seq-len 2048 --vocab-size 32768 --param-data-ratio 10.5");
    CHECK(d12.code == 0);
    CHECK(d12.err.empty());
    for (std::string line : {"matmul_params: 110101632\n", "total_params: 286262424\n", "flops_per_token: 802167552\n", "batch_tokens: 524288\n", "steps: 2205\n",
                             "tokens: 1156055040\n", "total_flops: 9.2735e+17\n"})
        CHECK(d12.out.find(line) != std::string::npos);
    Result d6 = run("./train_gpt --plan --depth 6 --width 768 --heads 6 --param-data-ratio 3.25");
    for (std::string line : {"flops_per_token: 481299840\n", "steps: 419\n", "total_flops: 1.0573e+17\n"}) CHECK(d6.out.find(line) != std::string::npos);
}

/// What --plan calls `name`.
static double planned(const std::string& out, const std::string& name) {
    size_t at = out.find(name + ": ");
    REQUIRE(at != std::string::npos);
    return std::stod(out.substr(at + name.size() + 2));
}

TEST_CASE("train_gpt: memory is what the plan said, within 5 %") {
    Workplace w;
    for (std::string model : {"--recipe nanochat --depth 4 --width 256 --heads 2 --seq-len 256 --vocab-size 4096 --device-batch 4 --batch-tokens 1024",
                              "--recipe speedrun --depth 3 --width 128 --heads 2 --seq-len 64 --vocab-size 8192 --device-batch 8 --batch-tokens 1024"}) {
        CAPTURE(model);
        double plan = planned(run("./train_gpt --plan --steps 2 " + model).out, "memory_bytes");
        Result result = run("./train_gpt --eval-every 0 --steps 2 --overwrite " + model + w.data + " --out " + w / "out");
        REQUIRE(result.code == 0);
        size_t at = result.out.find("peak of the process ");
        REQUIRE(at != std::string::npos);
        double peak = std::stod(result.out.substr(at + 20)) * (1 << 20);
        CHECK(std::abs(peak - plan) <= 0.05 * plan);
    }
}

TEST_CASE("train_gpt: evaluation, initial weights, samples") {
    Workplace w;
    REQUIRE(run(NANOCHAT + w.data + " --steps 5 --out " + w / "a").code == 0);
    std::string checkpoint = w / "a/step_0000005.bin";
    Result eval = run("./train_gpt --eval --init " + checkpoint + " --val-data " + w / "val_0.bin");
    CHECK(eval.code == 0);
    CHECK(eval.out.find("val_bpb: unknown\n") != std::string::npos);
    double loss = planned(eval.out, "val_loss");
    CHECK(loss > 1);
    CHECK(loss < std::log(64.0) + 0.5);
    // Weights alone: the data goes on after 5 steps of 64 tokens, the steps start again.
    Result init = run("./train_gpt --eval-every 0 --steps 1 --batch-tokens 64 --device-batch 2" + w.data + " --init " + checkpoint + " --out " + w / "b");
    CHECK(init.code == 0);
    CHECK(init.err.empty());
    CHECK(init.out.find("step 1/1 ") != std::string::npos);
    // The same file for training and validation is allowed, and said.
    Result same = run(NANOCHAT + " --data " + w / "val_0.bin --val-data " + w / "val_0.bin --steps 1 --out " + w / "c");
    CHECK(same.code == 0);
    CHECK(same.err.find("warning") != std::string::npos);
    check_refused("./train_gpt --init " + checkpoint + " --sample x", "no tokenizer");
    // A grown file holds weights, and where the data goes on, but no training.
    REQUIRE(run("./grow " + checkpoint + " " + w / "grown.bin --factor 2 --order stack").code == 0);
    check_refused("./train_gpt" + w.data + " --out " + w / "d --resume " + w / "grown.bin", "--init");
    CHECK(run("./train_gpt --eval-every 0 --steps 1 --batch-tokens 64 --device-batch 2" + w.data + " --init " + w / "grown.bin --out " + w / "d").code == 0);
}

TEST_CASE("train_gpt: what cannot be is refused in one line, and nothing is lost") {
    Workplace w;
    const std::string go = NANOCHAT + w.data + " --steps 2 --out " + w / "out";
    REQUIRE(run(go).code == 0);
    std::string checkpoint = w / "out/step_0000002.bin", bytes = read_file(checkpoint);
    check_refused(go, "already holds a run");
    CHECK(run(go + " --overwrite").code == 0);
    CHECK(read_file(checkpoint) == bytes);
    const std::string at = w.data + " --out " + w / "x";
    check_refused(NANOCHAT + at + " --no-such-flag", "--no-such-flag");
    check_refused(NANOCHAT + at + " --steps 0", "--steps is 0");
    check_refused(NANOCHAT + at + " --steps 2 --warmdown-ratio 11", "--warmdown-ratio is 11, but must be 0 to 10");
    check_refused(NANOCHAT + at + " --steps 2 --matrix-lr nan", "--matrix-lr");
    check_refused(NANOCHAT + at + " --steps 2 --total-flops 1e9", "give one of them");
    check_refused("./train_gpt --depth 2 --width 30 --steps 1" + at, "multiple of 8");
    check_refused("./train_gpt --depth 2 --width 32 --heads 3 --steps 1" + at, "multiple of heads");
    check_refused("./train_gpt --depth 2 --width 32 --heads 2 --seq-len 16 --vocab-size 64 --batch-tokens 5000 --device-batch 8 --steps 1" + at, "must be a multiple of");
    check_refused("./train_gpt --depth 3 --steps 5" + at + " --init " + checkpoint, "contradicts");
    check_refused(NANOCHAT + " --steps 2 --data " + w / "missing_*.bin --out " + w / "x", "missing_");
    write_file(w / "bad.bin", "not a shard");
    check_refused(NANOCHAT + " --steps 2 --data " + w / "bad.bin --out " + w / "x", "bad.bin");
    write_file(w / "short.bin", read_file(w / "val_0.bin").substr(0, 2000));
    check_refused(NANOCHAT + " --steps 2 --data " + w / "short.bin --out " + w / "x", "short.bin");
    for (size_t cut : {size_t{10}, size_t{5000}, bytes.size() - 1}) {
        write_file(w / "cut.bin", bytes.substr(0, cut));
        check_refused("./train_gpt" + at + " --resume " + w / "cut.bin", "cut.bin");
    }
    std::string flipped = bytes;
    flipped[bytes.size() / 2] = static_cast<char>(flipped[bytes.size() / 2] ^ 4);
    write_file(w / "flipped.bin", flipped);
    check_refused("./train_gpt" + at + " --resume " + w / "flipped.bin", "flipped.bin");
    check_refused(NANOCHAT + w.data + " --steps 2 --out /dev/null/x", "/dev/null/x");
    CHECK(read_file(checkpoint) == bytes);
}

TEST_CASE("train_gpt: a token beyond the vocabulary ends the run, and what was trained is kept") {
    Workplace w;
    Workplace::write_shard(w / "big.bin", 1985, 5, 900);   // the last token is 900, the target that ends step 31
    Result result = run(NANOCHAT + " --steps 100 --data " + w / "big.bin --out " + w / "out");
    CHECK(result.code == 2);
    CHECK(result.err.find("900") != std::string::npos);
    CHECK(run("ls " + w / "out/step_*.bin | wc -l").out == "1\n");
}

TEST_CASE("train_gpt: NaN stops the run and is named; the last good checkpoint stays") {
    Workplace w;
    Result result = run(SPEEDRUN + w.data + " --steps 50 --save-every 1 --matrix-lr 1e30 --out " + w / "out");
    CHECK(result.code == 2);
    CHECK(result.err.find("first NaN or Inf in ") != std::string::npos);
    CHECK(result.err.find("step ") != std::string::npos);
    CHECK(result.err.find("last good checkpoint") != std::string::npos);
    CHECK(result.err.find('\n') == result.err.size() - 1);
}
