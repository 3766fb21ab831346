// ./train_gpt as users run it, hostile ones too: exact resumption, refusals, and no lost checkpoints. A tiny model, on shards made here;
// each run takes a fraction of a second.
#include <doctest/doctest.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <unistd.h>
#include <algorithm>
#include <chrono>
#include <cmath>
#include <numbers>
#include <random>
#include <regex>
#include <sstream>
#include <thread>
#include "llmc/device/device.h"
#include "llmc/text/shard.h"
#include "test/small_model.h"
#include "test/small_run.h"

namespace {

namespace fs = std::filesystem;
using nlohmann::json;
using Names = std::vector<std::string>;

// --------------------------------------------------------------------------------------------------- running it

Result go(const std::string& command) { return Child("exec " + command).finish(); }

/// Runs a command that must exit with 0 and print nothing to stderr. Returns stdout.
std::string go_well(const std::string& command) {
    Result result = go(command);
    CAPTURE(command);
    CAPTURE(result.err);
    REQUIRE(result.code == 0);
    CHECK(result.err.empty());
    return result.out;
}

/// The same for several commands, two at a time.
void go_all(const std::vector<std::string>& commands) {
    for (size_t i = 0; i < commands.size(); i += 2) {
        Child first("exec " + commands[i]), second("exec " + (i + 1 < commands.size() ? commands[i + 1] : "true"));
        for (Child* child : {&first, &second}) {
            CAPTURE(commands[i]);
            CAPTURE(child->finish().err);
            REQUIRE(child->finish().code == 0);
            CHECK(child->finish().err.empty());
        }
    }
}

/// Exit code 2, and one line on stderr that begins with the program's name and has these words; nothing of it on stdout.
Result check_refused(const std::string& command, const std::string& words) {
    Result result = go(command);
    CAPTURE(command);
    CAPTURE(result.err);
    CHECK(result.code == 2);
    CHECK(contains(result.err, words));
    CHECK(result.err.starts_with("train_gpt: "));
    CHECK(std::count(result.err.begin(), result.err.end(), '\n') == 1);
    CHECK(!contains(result.out, "train_gpt: "));
    return result;
}

// Two micro-batches a step.
const std::string SIZES = " --depth 2 --width 32 --heads 2 --seq-len 32 --vocab-size 72";
const std::string BATCH = " --device-batch 2 --batch-tokens 128";
const std::string NANOCHAT = "./train_gpt --recipe nanochat" + SIZES + BATCH;
const std::string SPEEDRUN = "./train_gpt --recipe speedrun" + SIZES + BATCH;

// --------------------------------------------------------------------------------------------------- exact resumption

TEST_CASE("train_gpt: waiting threads spin for a bounded time, unless the user sets another") {
    if (!contains(device_name(), " thread")) return;   // a GPU
    auto last_limit = [](const std::string& variables) {   // libgomp prints its settings at each start of the program
        const std::string said = go("env -u OMP_WAIT_POLICY -u GOMP_SPINCOUNT " + variables + " OMP_DISPLAY_ENV=VERBOSE ./train_gpt --help").err;
        const std::string name = "GOMP_SPINCOUNT = '";
        const size_t at = said.rfind(name);
        return at == said.npos ? "nothing" : said.substr(at + name.size(), said.find('\'', at + name.size()) - at - name.size());
    };
    CHECK(last_limit("") == "3000");
    CHECK(last_limit("GOMP_SPINCOUNT=77") == "77");
    CHECK(last_limit("OMP_WAIT_POLICY=passive") == "0");
}

TEST_CASE("train_gpt: 20 steps, resumed for 20 more, give the same bytes as 40 steps") {
    Workplace w;
    go_well(SPEEDRUN + w.data + " --steps 5 --out " + w / "parent");
    const std::string frozen = " --embeddings-from " + step_file(w / "parent", 5);
    const std::vector<std::string> models = {
        NANOCHAT,
        SPEEDRUN,
        NANOCHAT + " --packing bos-bestfit --warmdown-ratio 2",
        SPEEDRUN + " --packing bos-bestfit --data-seed 5 --weight-decay 0.1",
        NANOCHAT + " --coconut-every 3 --coconut-targets next --warmup-steps 25",
        SPEEDRUN + " --coconut-every 3 --coconut-targets same --warmdown-steps 30",
        SPEEDRUN + frozen,
        NANOCHAT + " --kv-heads 1 --tied yes --norm-wte layer_norm --window-pattern SL --no-scaling --seed 7",
    };
    std::vector<std::string> whole, halves;
    for (size_t i = 0; i < models.size(); i++) {
        std::string to = w / std::to_string(i);
        whole.push_back(models[i] + w.data + " --steps 40 --save-every 20 --keep 9 --out " + to);
        // Every second one repeats its flags, the others take them from the checkpoint.
        std::string flags = i % 2 == 0 ? models[i] + " --steps 40" : "./train_gpt";
        halves.push_back(flags + w.data + " --resume " + step_file(to, 20) + " --out " + to + "-resumed");
    }
    go_all(whole);
    go_all(halves);
    go_well(NANOCHAT + w.data + " --steps 40 --out " + w / "in-one-go");
    CHECK(read_file(step_file(w / "in-one-go", 40)) == read_file(step_file(w / "0", 40)));   // saving in between changes nothing
    CHECK(names_in(w / "in-one-go") == Names{"log.jsonl", "step_0000040.bin"});
    for (size_t i = 0; i < models.size(); i++) {
        CAPTURE(models[i]);
        CHECK(read_file(step_file(w / std::to_string(i), 40)) == read_file(step_file(w / std::to_string(i) + "-resumed", 40)));
        CHECK(read_file(step_file(w / std::to_string(i), 40)) != read_file(step_file(w / std::to_string(i), 20)));
    }
    CHECK(values_of(open_checkpoint(step_file(w / "6", 40)), "wte") == values_of(open_checkpoint(step_file(w / "parent", 5)), "wte"));
    check_refused("./train_gpt" + w.data + " --resume " + step_file(w / "0", 40), "the run is done");
    check_refused("./train_gpt" + w.data + " --resume " + step_file(w / "0", 20) + " --out " + w / "x" + frozen, "not frozen");
}

TEST_CASE("train_gpt: --data takes paths and patterns, quoted or expanded by the shell: the same bytes, and no longer log or table") {
    Workplace w;
    const std::string run = SPEEDRUN + " --steps 8 --save-every 4 --data-seed 1 --out ";
    const std::string quoted = go_well(run + w / "quoted" + w.data + w.val);
    const std::string bytes = read_file(step_file(w / "quoted", 8));
    const std::string one = w / "train_0.bin", other = w / "train_1.bin", plain = w / "train_*.bin";
    const std::vector<std::string> ways = {" --data " + plain + " --val-data " + w / "val_*.bin", w.val + " --data=" + other + " " + one, " --data " + other + w.val + " --data " + one,
                                           " --data " + one + " " + plain + " '" + plain + "' --val-data " + w / "val_0.bin " + w / "val_0.bin"};
    std::vector<std::string> whole, resumed;
    for (size_t i = 0; i < ways.size(); i++) {
        whole.push_back(run + w / std::to_string(i) + ways[i]);
        resumed.push_back("./train_gpt --resume " + step_file(w / "quoted", 4) + ways[i] + " --out " + w / std::to_string(i) + "-resumed");
    }
    go_all(whole);
    go_all(resumed);
    for (size_t i = 0; i < ways.size(); i++) {
        CAPTURE(ways[i]);
        for (std::string end : {"", "-resumed"}) CHECK(read_file(step_file(w / std::to_string(i) + end, 8)) == bytes);
    }
    json flags = events(w / "quoted", "start").at(0)["flags"];
    CHECK(flags["data"] == w / "train_*.bin");
    CHECK(flags["val-data"] == w / "val_0.bin");
    CHECK(events(w / "3", "start").at(0)["flags"]["data"].size() == 4);
    CHECK(contains(quoted, "  data               " + plain + "\n"));

    // A thousand shards: still one line of the table.
    fs::create_directory(w / "many");
    const std::string shard = read_file(one);
    for (int i = 1000; i < 2000; i++) write_file(w / ("many/train_" + std::to_string(i) + ".bin"), shard);
    const std::string many = go_well(SPEEDRUN + " --steps 1 --out " + w / "y --data " + w / "many/train_*.bin" + w.val);
    CHECK(contains(many, "  data               " + w / "many/train_1000.bin ... " + w / "many/train_1999.bin (1000)\n"));
    CHECK(contains(many, "tokens in 1000 shards"));
    CHECK(events(w / "y", "start").at(0)["flags"]["data"].size() == 1000);

    check_refused(run + w / "z --data " + one + " " + w / "missing_*.bin " + other, "no file matches '" + w / "missing_*.bin'");
    check_refused(run + w / "z --data " + one + " ''", "--data is empty");
    check_refused(run + w / "z --data", "--data");
    check_refused(run + w / "z --data --eval-tokens", "--eval-tokens");
    check_refused(run + w / "z " + one, one);   // a path without its flag
    check_refused("./train_gpt --resume " + step_file(w / "quoted", 4) + " --data " + one, "it belongs to other shards");
    CHECK(!fs::exists(w / "z"));
    fs::copy_file(one, w / "[0,1]");   // a name that CLI11 would parse as a list
    go_well("sh -c 'top=$PWD; cd " + w.dir.path + " && exec $top/" + (run + "z").substr(2) + " --data \"[0,1]\"'");
}

TEST_CASE("train_gpt: a run resumed with a longer horizon equals a longer run, if no schedule depends on the horizon") {
    Workplace w;
    for (std::string model : {NANOCHAT + " --weight-decay 0", SPEEDRUN}) {
        const std::string flags = model + w.data + " --warmdown-ratio 0 --overwrite --out " + w / "one";
        go_all({flags + " --steps 40", flags + "-short --steps 20"});
        Result longer = go("./train_gpt --steps 40" + w.data + " --resume " + step_file(w / "one-short", 20));
        CHECK(longer.code == 0);
        CHECK(longer.err == "train_gpt: warning: --resume continues with another setting: --steps 20 -> 40\n");
        CHECK(read_file(step_file(w / "one", 40)) == read_file(step_file(w / "one-short", 40)));
    }
}

TEST_CASE("train_gpt: on SIGTERM and SIGINT it saves and exits with 0; resumed, it gives the bytes of an uninterrupted run") {
    Workplace w;
    const std::string model = NANOCHAT + w.data + " --packing bos-bestfit --steps 300";
    go_well(model + " --out " + w / "whole");
    for (int number : {SIGTERM, SIGINT}) {
        std::string out = w / ("stopped" + std::to_string(number));
        Child child("exec " + model + " --out " + out);
        child.wait_for("\nstep 9/300");
        child.signal(number);
        CHECK(child.finish().code == 0);
        CHECK(child.finish().err.empty());
        std::smatch said;
        const std::string printed = child.finish().out;
        REQUIRE(std::regex_search(printed, said, std::regex("stopped at step ([0-9]+) of 300; go on with --resume (.*)\n")));
        CHECK(names_in(out).size() == 2);
        CHECK(said[2].str() == step_file(out, std::stoi(said[1])));
        go_well("./train_gpt" + w.data + " --resume " + said[2].str());
        CHECK(read_file(step_file(out, 300)) == read_file(step_file(w / "whole", 300)));
    }
}

TEST_CASE("train_gpt: an illegal instruction gives one line of error and exit code 2") {
    Workplace w;
    Child child("exec " + SPEEDRUN + w.data + " --steps 300 --out " + w / "x");
    child.wait_for("\nstep 1/300");
    child.signal(SIGILL);
    CHECK(child.finish().code == 2);
    CHECK(child.finish().err == "train_gpt: this processor lacks an instruction that the program was built with; build it here: make clean, then make\n");
}

TEST_CASE("train_gpt: killed at random instants, it resumes from its last checkpoint, to the bytes of an uninterrupted run") {
    Workplace w;
    const std::string out = w / "killed", flags = w.data + " --save-every 1 --out " + out;
    go_well(SPEEDRUN + w.data + " --steps 60 --out " + w / "whole");
    auto last_file = [&] {
        std::string last;
        if (fs::exists(out))
            for (const std::string& name : names_in(out))
                if (name.ends_with(".bin")) last = out + "/" + name;
        return last;
    };
    // Every step is saved, so most of the time is spent writing; each run advances a few steps.
    std::mt19937 generator(1);
    int kills = 0, step = 0;
    while (last_file() != step_file(out, 60)) {
        REQUIRE(kills < 200);
        std::string last = last_file();
        std::string start = SPEEDRUN + flags + " --steps 60" + (fs::exists(out + "/log.jsonl") ? " --overwrite" : "");
        Child child("exec " + (last.empty() ? start : "./train_gpt" + flags + " --resume " + last));
        int more = static_cast<int>(generator() % 10);
        child.wait_for(more == 0 ? "matmul peak" : "saved " + step_file(out, step + more) + "\n");
        Child::pause(1e-5 * static_cast<double>(generator() % 1000));
        child.signal(SIGKILL);
        kills += child.finish().code == 128 + SIGKILL;
        REQUIRE(child.finish().err.empty());
        REQUIRE((child.finish().code == 0 || child.finish().code == 128 + SIGKILL));
        if (last_file().empty()) continue;
        Checkpoint good = open_checkpoint(last_file());   // the last file is always valid
        verify_tensors(good);
        step = good.header["progress"]["step"];
    }
    CHECK(kills >= 3);
    CHECK(read_file(step_file(out, 60)) == read_file(step_file(w / "whole", 60)));
    for (const std::string& name : names_in(out)) CHECK(std::regex_match(name, std::regex("step_[0-9]{7}\\.bin|log\\.jsonl|.*\\.tmp")));
    CHECK(events(out, "step").size() >= 60);   // no line is half-written
}

// ------------------------------------------------------------------------------------------------------ the plan

TEST_CASE("train_gpt: --plan prints the numbers of the studies, in eight lines, and does nothing else") {
    const std::regex lines("matmul_params: 110101632\ntotal_params: 286262424\nflops_per_token: 802167552\nbatch_tokens: 524288\nsteps: 2205\n"
                           "tokens: 1156055040\nmemory_bytes: [0-9]+\ntotal_flops: 9\\.2735e\\+17\n");
    CHECK(std::regex_match(go_well("./train_gpt --plan --depth 12 --seq-len 2048 --vocab-size 32768 --param-data-ratio 10.5"), lines));
    CHECK(std::regex_match(go_well("./train_gpt --plan"), lines));   // the defaults are the model of the study
    std::string d6s12 = go_well("./train_gpt --plan --depth 6 --width 768 --param-data-ratio 3.25");
    CHECK(number_after(d6s12, "flops_per_token: ") == 481299840);
    CHECK(number_after(d6s12, "steps: ") == 419);
    CHECK(contains(d6s12, "total_flops: 1.0573e+17\n"));
    std::string speedrun = go_well("./train_gpt --plan --recipe speedrun");
    CHECK(number_after(speedrun, "total_params: ") == 50304 * 768 + 12 * 12 * 768 * 768);
    CHECK(number_after(speedrun, "batch_tokens: ") == 524288);
    CHECK(number_after(speedrun, "steps: ") == 6200);

    Workplace w;
    Names before = names_in(w.dir.path);
    go_well(NANOCHAT + w.data + " --steps 5 --plan --out " + w / "out");
    CHECK(names_in(w.dir.path) == before);
    go_well(NANOCHAT + w.data + " --steps 5 --out " + w / "out");
    CHECK(number_after(go_well("./train_gpt --plan --steps 7 --batch-tokens 64 --init " + step_file(w / "out", 5)), "\ntokens: ") == 7 * 64);
    check_refused("./train_gpt --plan --eval", "give one of them");
}

TEST_CASE("train_gpt: the memory is as planned, within 5 %") {
    Workplace w;
    const std::string two_threads = "env OMP_NUM_THREADS=2 OMP_WAIT_POLICY=passive ./train_gpt --steps 2 ";
    for (std::string model : {"--recipe nanochat --depth 4 --width 256 --heads 2 --seq-len 256 --vocab-size 4096 --device-batch 4 --batch-tokens 1024",
                              "--recipe speedrun --depth 3 --width 128 --heads 2 --seq-len 64 --vocab-size 8192 --device-batch 8 --batch-tokens 1024"
                              " --coconut-every 1"}) {
        CAPTURE(model);
        double plan = number_after(go_well(two_threads + "--plan " + model), "memory_bytes: ");
        std::string out = go_well(two_threads + "--save-every 1 " + model + w.data + w.val + " --overwrite --out " + w / "out");
        CHECK(number_after(out, "memory_bytes: ") == doctest::Approx(plan).epsilon(0.01));
        double peak = number_after(out, "memory: peak of the process ") * (1 << 20);
        CHECK(std::abs(peak - plan) <= 0.05 * plan);
    }
}

// -------------------------------------------------------------------------------------------------- output of a run

TEST_CASE("train_gpt: the output, the log and the checkpoints of a run") {
    Workplace w;
    const std::string out = w / "out";
    std::string printed = go_well(SPEEDRUN + w.data + w.val + " --steps 10 --save-every 4 --eval-every 5 --coconut-every 4 --out " + out);
    CHECK(names_in(out) == Names{"log.jsonl", "step_0000004.bin", "step_0000008.bin", "step_0000010.bin"});
    for (const char* line : {"  depth              2\n", "memory: all ", "total_params: ", "memory: parameters "}) CHECK(contains(printed, line));
    const std::regex step_line("step [0-9]+/10 loss [0-9.]+ lr [0-9.e-]+ norm [0-9.]+ ms [0-9.]+ tok/s [0-9]+ mfu [0-9.]+% eta [0-9:]+( loop_loss [0-9.]+)?");
    int steps = 0;
    std::istringstream text(printed);
    for (std::string line; std::getline(text, line);)
        if (line.starts_with("step ")) steps += std::regex_match(line, step_line);
    CHECK(steps == 10);

    json start = events(out, "start").at(0);
    CHECK(start["argv"][0] == "./train_gpt");
    for (const char* key : {"config", "machine", "build", "flags"}) CHECK(start.contains(key));
    std::vector<json> logged = events(out, "step");
    REQUIRE(logged.size() == 10);
    double flops = 0, smooth = 0;
    for (int i = 0; i < 10; i++) {
        bool loops = i % 4 == 0;   // also the first step
        flops += 128.0 * start["flops_per_token"].get<double>() * (loops ? 2 : 1);
        CHECK(logged[i]["flops"] == flops);
        CHECK(logged[i].contains("loop_loss") == loops);
        CHECK(logged[i]["tokens"] == 128 * (i + 1));
        smooth = logged[i]["smooth_loss"];
    }
    CHECK(smooth == doctest::Approx(logged[9]["loss"].get<double>()).epsilon(0.02));   // all losses are near ln 64
    std::vector<json> evaluated = events(out, "eval");
    CHECK(evaluated.size() == 3);   // at the start, at 5, at the end
    CHECK(evaluated.back()["step"] == 10);

    // 0 means never, but the last step is always saved; --keep keeps the newest checkpoints.
    const std::string never = " --save-every 0 --eval-every 0 --sample-every 0";
    go_well(SPEEDRUN + w.data + w.val + " --steps 10 --out " + w / "never" + never);
    CHECK(names_in(w / "never") == Names{"log.jsonl", "step_0000010.bin"});
    CHECK(events(w / "never", "eval").empty());
    go_well(SPEEDRUN + w.data + " --steps 10 --save-every 2 --keep 2 --out " + w / "keep");
    CHECK(names_in(w / "keep") == Names{"log.jsonl", "step_0000008.bin", "step_0000010.bin"});
}

TEST_CASE("train_gpt: a folder that holds a run is not overwritten without --overwrite") {
    Workplace w;
    const std::string run = SPEEDRUN + w.data + " --steps 4 --out " + w / "out";
    go_well(run + " --save-every 2");
    const std::string bytes = read_file(step_file(w / "out", 4)), log = read_file(w / "out/log.jsonl");
    check_refused(run, "already holds a run");
    check_refused(run + " --overwrite --resume " + step_file(w / "out", 2), "leave one of them out");
    check_refused("./train_gpt" + w.data + " --steps 4 --batch-tokens 64 --overwrite --out " + w / "out --init " + step_file(w / "out", 4), "which this run starts from");
    check_refused(run + " --overwrite --val-data " + w / "missing.bin", "missing.bin");
    CHECK(read_file(step_file(w / "out", 4)) == bytes);
    CHECK(read_file(w / "out/log.jsonl") == log);
    go_well(run + " --overwrite --seed 1");
    CHECK(names_in(w / "out") == Names{"log.jsonl", "step_0000004.bin"});
    CHECK(read_file(step_file(w / "out", 4)) != bytes);
}

// -------------------------------------------------------------------------------------------- evaluation and samples

TEST_CASE("train_gpt: --eval prints the loss and bits per byte of the last evaluation in training") {
    Workplace w;
    go_well(NANOCHAT + w.data + w.val + " --steps 5 --out " + w / "out");
    const std::string eval = "./train_gpt --eval --device-batch 2 --init " + step_file(w / "out", 5);
    const std::string out = go_well(eval + w.val + " --eval-tokens 1088");   // 17 micro-batches, all of the data
    CHECK(std::regex_match(out, std::regex("val_loss: [0-9]\\.[0-9]{7}\nval_bpb: unknown\n")));
    CHECK(number_after(out, "val_loss: ") == doctest::Approx(events(w / "out", "eval").back()["val_loss"].get<double>()).epsilon(1e-6));
    CHECK(contains(go_well(eval + w.val), "note: --eval-tokens 10485760 is capped at one pass: 1088 tokens\n"));
    CHECK(go_well(eval + w.val + " --eval-tokens 64") != out);
    check_refused("./train_gpt --eval" + w.val, "--init");
    check_refused(eval, "--val-data");
    // The same shard for training and validation is allowed, with a warning.
    Result same = go(NANOCHAT + " --data " + w / "val_0.bin" + w.val + " --steps 1 --out " + w / "same");
    CHECK(same.code == 0);
    CHECK(same.err.starts_with("train_gpt: warning: "));
    CHECK(contains(same.err, "shares"));
}

TEST_CASE("train_gpt: bits per byte count the bytes of the text, with the tokenizer beside the shards or in the checkpoint") {
    TempDir dir;
    std::string text;
    for (int i = 0; i < 400; i++) text += "the " + std::to_string(i) + "th line, with a \xE2\x82\xAC\n";
    write_file(dir / "text", text);
    // One token per byte, and one bos at the start, which is never a target: bits per byte are bits per token.
    REQUIRE(run("data/tokenize " + dir / "text --val-every 0 --train-tokenizer 257 --out " + dir / "corpus").code == 0);
    const std::string shards = dir / "corpus/train_000000.bin", val = " --val-data " + shards;
    Result trained = go("./train_gpt --depth 2 --width 32 --heads 2 --seq-len 32 --vocab-size 264 --device-batch 2 --batch-tokens 128 --steps 10 --data " + shards +
                        " --out " + dir / "out" + val + " --eval-tokens 4096 --sample the --sample-tokens 20");
    REQUIRE(trained.code == 0);
    CHECK(contains(trained.out, "sample at step 10: the"));
    const std::string init = "./train_gpt --init " + step_file(dir / "out", 10);
    std::string beside = go_well(init + " --eval --eval-tokens 4096" + val);
    CHECK(number_after(beside, "val_bpb: ") == doctest::Approx(number_after(beside, "val_loss: ") / std::numbers::ln2).epsilon(1e-6));
    CHECK(number_after(trained.out, "eval step 10 val_loss ") == doctest::Approx(number_after(go_well(init + " --device-batch 2 --eval --eval-tokens 4096" + val), "val_loss: ")).epsilon(1e-6));
    fs::rename(dir / "corpus/train_000000.bin", dir / "alone.bin");
    CHECK(go_well(init + " --eval --eval-tokens 4096 --val-data " + dir / "alone.bin") == beside);

    // An untrained model samples random bytes; the output is still valid UTF-8.
    std::string sample = go_well(init + " --sample 'the \xE2\x82\xAC' --sample-tokens 300 --temperature 2 --top-k 0");   // longer than seq_len
    CHECK(sample.starts_with("the \xE2\x82\xAC"));
    CHECK_NOTHROW(json(sample).dump());
    CHECK(std::regex_search(sample, std::regex("\n[0-9.]+ tok/s\n$")));
    auto without_speed = [](const std::string& out) { return out.substr(0, out.rfind('\n', out.size() - 2)); };
    CHECK(without_speed(go_well(init + " --sample the --temperature 0")) == without_speed(go_well(init + " --sample the --temperature 0 --seed 9")));
    CHECK(without_speed(go_well(init + " --sample the")) != without_speed(go_well(init + " --sample the --seed 9")));
    CHECK(go(init + " --sample ''").code == 0);
    check_refused("./train_gpt --sample x", "--init");
}

// -------------------------------------------------------------------------------------- starting from other weights

TEST_CASE("train_gpt: --init takes the weights and the data position, and restarts the schedules") {
    Workplace w;
    go_well(NANOCHAT + w.data + " --steps 5 --packing bos-bestfit --data-seed 3 --out " + w / "parent");
    const std::string parent = step_file(w / "parent", 5), horizon = w.data + " --batch-tokens 128 --device-batch 2 --steps ";
    go_well("./train_gpt --init " + parent + horizon + "5 --out " + w / "child");   // packing and shard order are taken from the checkpoint
    go_well(NANOCHAT + w.data + " --steps 10 --packing bos-bestfit --data-seed 3 --out " + w / "ten");
    json child = open_checkpoint(step_file(w / "child", 5)).header, ten = open_checkpoint(step_file(w / "ten", 10)).header;
    CHECK(child["data"] == ten["data"]);
    CHECK(child["progress"]["tokens"] == 5 * 128);
    CHECK(child["lineage"]["parents"][0]["hash"] == open_checkpoint(parent).content_hash());
    for (int i = 0; i < 5; i++) CHECK(events(w / "child", "step")[i]["lr"] == events(w / "parent", "step")[i]["lr"]);
    // Another order is requested: there is a warning, and the data starts at its first token.
    Result other = go("./train_gpt --init " + parent + horizon + "1 --packing stream --out " + w / "other");
    CHECK(other.code == 0);
    CHECK(contains(other.err, "train_gpt: warning: the data starts at its first token: "));

    REQUIRE(run("./grow " + parent + " " + w / "grown.bin --factor 2 --order stack").code == 0);
    go_well("./train_gpt --init " + w / "grown.bin" + horizon + "5 --out " + w / "grown");
    CHECK(open_checkpoint(step_file(w / "grown", 5)).header["data"] == ten["data"]);
    CHECK(open_checkpoint(step_file(w / "grown", 5)).config.n_layer == 4);
    // Without a training state --resume is refused; without a data position the data starts at its first token.
    REQUIRE(run("./stack " + parent + " " + parent + " --use-first-layer --use-last-layer --out " + w / "stacked.bin").code == 0);
    check_refused("./train_gpt" + w.data + " --resume " + w / "stacked.bin --out " + w / "x", "--init");
    go_well("./train_gpt --init " + w / "stacked.bin" + horizon + "1 --out " + w / "stacked");
    CHECK(open_checkpoint(step_file(w / "stacked", 1)).header["data"]["token"] == 128);

    // The model is the checkpoint's: flags that agree with it are allowed, others are an error.
    go_well("./train_gpt --plan --steps 1 --batch-tokens 128 --init " + parent + " --depth 2 --width 32 --norm-wte rms_norm --softcap 15 --recipe nanochat");
    for (std::string flag : {"--depth 3", "--width 64", "--recipe speedrun", "--softcap 0", "--attn-scale 0.5", "--tied yes", "--window-pattern L"})
        check_refused("./train_gpt --plan --init " + parent + " " + flag, "a flag contradicts it");
    check_refused("./train_gpt --resume " + parent + " --init " + parent + w.data, "--resume continues a run exactly, --init starts a new one from the weights; give one of them");
}

/// Weights and optimizer state, by name.
Values all_values(const std::string& path) {
    const Checkpoint file = open_checkpoint(path);
    Values values;
    for (const TensorEntry& entry : file.tensors)
        if (entry.dtype == "F32") values[entry.name] = values_of(file, entry.name);
    return values;
}

std::vector<double> rates_of(const std::string& folder) {
    std::vector<double> rates;
    for (const json& step : events(folder, "step")) rates.push_back(step["lr"]);
    return rates;
}

TEST_CASE("train_gpt: --schedule continue with --optimizer keep equals the uninterrupted run, bit for bit") {
    Workplace w;
    for (std::string model : {NANOCHAT + " --warmup-steps 9 --warmdown-shape 1-sqrt", SPEEDRUN + " --weight-decay 0.1 --warmdown-steps 9 --warmdown-shape cosine"}) {
        CAPTURE(model);
        const std::string sized = model + w.data + " --overwrite", whole = w / "whole", five = w / "five";
        const std::string flags = sized + " --steps 20";
        go_all({flags + " --out " + whole, flags + " --stop-at-step 5 --out " + five});
        const std::string goes_on = " --optimizer keep --schedule continue --out ";
        go_well(flags + " --init " + step_file(five, 5) + goes_on + w / "second --stop-at-step 7");
        const std::string total = std::to_string(open_checkpoint(step_file(whole, 20)).header["progress"]["flops"].get<double>());
        const json ratio = 20.5 * 128 / number_after(go_well(sized + " --plan --steps 1"), "matmul_params: ");
        go_all({flags + " --init " + step_file(w / "second", 7) + goes_on + w / "third",
                sized + " --total-flops " + total + " --init " + step_file(five, 5) + goes_on + w / "by-flops",
                sized + " --param-data-ratio " + ratio.dump() + " --init " + step_file(five, 5) + goes_on + w / "by-ratio"});
        const Values expected = all_values(step_file(whole, 20));
        CHECK(all_values(step_file(w / "third", 8)) == expected);
        CHECK(all_values(step_file(w / "by-flops", 15)) == expected);
        CHECK(all_values(step_file(w / "by-ratio", 15)) == expected);
        const std::vector<double> rates = rates_of(whole);
        CHECK(rates_of(w / "third") == std::vector<double>(rates.begin() + 12, rates.end()));
        CHECK(events(w / "third", "step").back()["total_flops"] == events(whole, "step").back()["flops"]);

        // Stopping and resuming in the middle gives the same file.
        go_well(flags + " --init " + step_file(w / "second", 7) + goes_on + w / "halves --stop-at-step 3");
        go_well("./train_gpt" + w.data + " --resume " + step_file(w / "halves", 3));
        CHECK(read_file(step_file(w / "halves", 8)) == read_file(step_file(w / "third", 8)));

        // Each of the two flags alone gives another result.
        go_all({flags + " --init " + step_file(five, 5) + " --schedule continue --out " + w / "no-state",
                flags + " --init " + step_file(five, 5) + " --optimizer keep --out " + w / "restart"});
        CHECK(all_values(step_file(w / "no-state", 15)) != expected);
        CHECK(rates_of(w / "no-state") == std::vector<double>(rates.begin() + 5, rates.end()));
        CHECK(rates_of(w / "restart") == rates);

        const std::string out = " --out " + w / "x";
        check_refused(sized + " --steps 5 --init " + step_file(five, 5) + " --schedule continue" + out, "the schedule continues after 5 steps, 640 tokens");
        const std::string planned = go_well(flags + " --plan --init " + step_file(five, 5) + " --schedule continue");
        CHECK(contains(planned, "\nsteps: 15\nschedule: 20 steps, of which 5 steps, 640 tokens and "));
        CHECK(!fs::exists(w / "x"));
    }
}

TEST_CASE("train_gpt: --optimizer keep keeps AdamW's count of updates also when the schedule restarts") {
    Workplace w;
    // Here only AdamW's count depends on the step, so a restart that keeps the optimizer state changes nothing.
    const std::string flags = SPEEDRUN + w.data + " --warmdown-ratio 0 --steps ";
    go_all({flags + "12 --out " + w / "whole", flags + "5 --out " + w / "five"});
    go_well(flags + "7 --optimizer keep --init " + step_file(w / "five", 5) + " --out " + w / "kept");
    CHECK(all_values(step_file(w / "kept", 7)) == all_values(step_file(w / "whole", 12)));
    go_well(flags + "2 --optimizer keep --schedule restart --init " + step_file(w / "kept", 7) + " --out " + w / "again");
    go_well(flags + "14 --resume " + step_file(w / "whole", 12) + " --out " + w / "longer 2>/dev/null");
    CHECK(all_values(step_file(w / "again", 2)) == all_values(step_file(w / "longer", 14)));
    // A restart may have another warmup.
    go_well(flags + "4 --warmup-steps 4 --optimizer keep --init " + step_file(w / "five", 5) + " --out " + w / "warm");
    CHECK(rates_of(w / "warm")[1] == doctest::Approx(rates_of(w / "five")[0] / 2).epsilon(1e-12));
}

TEST_CASE("train_gpt: a model grown with its optimizer state continues with it, and with the schedule") {
    Workplace w;
    const std::string flags = NANOCHAT.substr(0, NANOCHAT.find(" --depth")) + w.data + BATCH + " --steps 20 --init ", goes_on = " --optimizer keep --schedule continue --out ";
    go_well(NANOCHAT + w.data + " --steps 20 --save-every 5 --out " + w / "whole");
    const std::string five = step_file(w / "whole", 5);
    // Growth to the same layers: equal to the uninterrupted run.
    REQUIRE(run("./grow " + five + " " + w / "same.bin --order 0,1 --optimizer copy").code == 0);
    go_well(flags + w / "same.bin" + goes_on + w / "same");
    CHECK(all_values(step_file(w / "same", 15)) == all_values(step_file(w / "whole", 20)));
    // Grown twice, with training between: steps, tokens and FLOPs are counted over the whole history.
    REQUIRE(run("./grow " + five + " " + w / "deep.bin --order last --depth 3 --optimizer zero").code == 0);
    go_well(flags + w / "deep.bin" + goes_on + w / "deep --stop-at-step 4");
    REQUIRE(run("./grow " + step_file(w / "deep", 4) + " " + w / "deeper.bin --order random --at middle --depth 5 --optimizer copy").code == 0);
    const std::string out = go_well(flags + w / "deeper.bin" + goes_on + w / "deeper");
    CHECK(contains(out, "\nsteps: 11\nschedule: 20 steps, of which 9 steps, 1152 tokens and "));
    std::vector<double> rates = rates_of(w / "whole");
    CHECK(rates_of(w / "deeper") == std::vector<double>(rates.begin() + 9, rates.end()));
    auto flops = [](const std::string& file) { return open_checkpoint(file).header["progress"]["flops"].get<double>(); };
    const double total = flops(five) + flops(step_file(w / "deep", 4)) + flops(step_file(w / "deeper", 11));
    CHECK(events(w / "deeper", "step").back()["total_flops"] == total);   // sums of whole numbers are exact
    json described = json::parse(go_well("./train_gpt --json --describe " + step_file(w / "deeper", 11)));
    CHECK(described["total"]["flops"] == total);
    CHECK(described["total"]["tokens"] == 20 * 128);
    // Without optimizer state, --optimizer keep is refused.
    REQUIRE(run("./grow " + five + " " + w / "bare.bin --order stack --factor 2").code == 0);
    check_refused(flags + w / "bare.bin" + goes_on + w / "x", "holds no wte/m, which is optimizer state; reset it with --optimizer reset, or grow with --optimizer copy");
    CHECK(!fs::exists(w / "x"));
}

TEST_CASE("train_gpt: --stop-at-step saves and ends; the schedule stays the whole run's") {
    Workplace w;
    const std::string flags = NANOCHAT + w.data + w.val + " --eval-every 4 --steps 12 --out ";
    go_well(flags + w / "whole --save-every 5");
    const std::string out = go_well(flags + w / "stopped --stop-at-step 5");
    CHECK(contains(out, "stopped at step 5 of 12; go on with --resume " + step_file(w / "stopped", 5)));
    CHECK(names_in(w / "stopped") == Names{"log.jsonl", "step_0000005.bin"});
    CHECK(read_file(step_file(w / "stopped", 5)) == read_file(step_file(w / "whole", 5)));
    const std::string resume = "./train_gpt" + w.data + " --resume " + step_file(w / "stopped", 5);
    go_well(resume + " --stop-at-step 6");
    go_well(resume + " --stop-at-step 12");
    CHECK(read_file(step_file(w / "stopped", 12)) == read_file(step_file(w / "whole", 12)));
    check_refused(resume + " --stop-at-step 5", "--stop-at-step is 5, but must be within 6 and 12");
    check_refused(flags + w / "x --stop-at-step 13", "--stop-at-step is 13, but must be within 1 and 12");
    check_refused(flags + w / "x --stop-at-step 0", "--stop-at-step is 0");
    CHECK(!fs::exists(w / "x"));
}

TEST_CASE("train_gpt: a mixed run continues next to the run that it was made from, and replaces none of its files") {
    Workplace w;
    go_all({NANOCHAT + w.data + " --steps 6 --save-every 2 --out " + w / "one", NANOCHAT + w.data + " --steps 6 --seed 2 --out " + w / "two"});
    const std::string mixed = w / "one/mixed.bin", last = read_file(step_file(w / "one", 6));
    REQUIRE(run("./stack " + step_file(w / "one", 2) + " " + step_file(w / "two", 6) + " --mix 0.9,0.1 --out " + mixed).code == 0);
    check_refused("./train_gpt" + w.data + " --resume " + mixed, " holds step_0000006.bin of the run that " + mixed + " was made of, which this run would replace; choose another --out");
    CHECK(read_file(step_file(w / "one", 6)) == last);
    go_well("./train_gpt" + w.data + " --resume " + mixed + " --out " + w / "mixed");
    for (int step : {4, 6}) fs::remove(step_file(w / "one", step));
    go_well("./train_gpt" + w.data + " --resume " + mixed);   // now there is no file to replace
    CHECK(read_file(step_file(w / "one", 6)) == read_file(step_file(w / "mixed", 6)));
    CHECK(read_file(step_file(w / "one", 6)) != last);
    const json described = json::parse(go_well("./train_gpt --json --describe " + step_file(w / "mixed", 6)));
    CHECK(described["total"]["tokens"] == 12 * 128);
    CHECK(described["family"]["parents"][0]["mixed"] == json{{"weight", 0.1}, {"step", 2}});
}

TEST_CASE("train_gpt: --train-only trains the named tensors, and stores no gradient or state for the rest") {
    Workplace w;
    go_well(NANOCHAT + w.data + " --steps 5 --out " + w / "parent");
    const std::string parent = step_file(w / "parent", 5), only = " --train-only 'h.1.*,lm_head'";
    const std::string flags = "./train_gpt" + w.data + BATCH + " --steps 6 --save-every 3 --init " + parent + only;
    const std::string out = go_well(flags + " --out " + w / "some"), planned = go_well(flags + " --plan");
    const Values before = all_values(parent), after = all_values(step_file(w / "some", 6));
    int64_t frozen = 0, states = 0;
    for (auto& [name, values] : after) {
        CAPTURE(name);
        const bool trained = name.starts_with("h.1.") || name.starts_with("lm_head"), state = contains(name, "/");
        states += state;
        if (state) CHECK(trained);
        if (!state) CHECK((before.at(name) != values) == trained);
        if (!state && !trained) frozen += static_cast<int64_t>(values.size());
    }
    CHECK(states == 2 * 8 + 2);   // h.1: momentum and second of six matrices and the gate, m and v of the value embedding; m and v of lm_head
    CHECK(contains(planned, "\nfrozen_params: " + std::to_string(frozen) + " (no gradient, no optimizer state)\n"));
    CHECK(contains(out, "  train-only         h.1.*,lm_head\n"));
    // The memory saved, for a model that is larger than the program itself: gradients, optimizer moments, and Muon's scratch.
    const std::string large = "./train_gpt --depth 4 --width 512 --seq-len 128 --vocab-size 8192 --device-batch 8 --batch-tokens 1024 --steps 1 --plan";
    const double memory = number_after(go_well(large), "memory_bytes: "), head_only = number_after(go_well(large + " --train-only lm_head"), "memory_bytes: ");
    const double others = number_after(go_well(large), "total_params: ") - 8192 * 512;
    CHECK(memory - head_only > 4 * 2 * others);
    const Checkpoint last = open_checkpoint(step_file(w / "some", 6));
    CHECK(last.header["progress"]["flops"] == 6 * 128 * number_after(planned, "flops_per_token: "));

    go_well("./train_gpt" + w.data + " --resume " + step_file(w / "some", 3) + " --out " + w / "resumed");
    CHECK(read_file(step_file(w / "resumed", 6)) == read_file(step_file(w / "some", 6)));
    check_refused("./train_gpt" + w.data + BATCH + " --steps 6 --optimizer keep --init " + step_file(w / "some", 6) + " --out " + w / "x",
                  "holds no wte/m, which is optimizer state; reset it with --optimizer reset");
    const std::string embedded = "./train_gpt" + w.data + BATCH + " --steps 6 --embeddings-from " + parent + " --out " + w / "x --init " + parent;
    for (std::string named : {"wte", "h.1.*,wte"}) check_refused(embedded + " --train-only " + named, "--train-only wte is frozen by --embeddings-from");
    go_well("./train_gpt" + w.data + BATCH + " --steps 6 --optimizer keep --train-only lm_head --init " + step_file(w / "some", 6) + " --out " + w / "head");
    CHECK(!fs::exists(w / "x"));
}

TEST_CASE("train_gpt: a model of no layers is planned, trained, resumed, evaluated, sampled and converted like any other") {
    Workplace w;
    for (std::string recipe : {"nanochat", "speedrun"}) {
        const std::string model = "./train_gpt --recipe " + recipe + " --depth 0 --width 32 --heads 2 --seq-len 32 --vocab-size 72" + BATCH;
        CAPTURE(recipe);
        const bool tied = recipe == "speedrun";
        CHECK(contains(go_well(model + " --plan --steps 6"), "matmul_params: 2304\ntotal_params: " + std::string(tied ? "2304" : "4608") + "\nflops_per_token: 13824\n"));
        const std::string out = go_well(model + w.data + w.val + " --overwrite --steps 40 --save-every 20 --out " + w / "none");
        go_well("./train_gpt" + w.data + " --resume " + step_file(w / "none", 20) + " --overwrite --out " + w / "resumed");
        CHECK(all_values(step_file(w / "none", 40)) == all_values(step_file(w / "resumed", 40)));
        const std::string file = step_file(w / "none", 40);
        CHECK(number_after(go_well("./train_gpt --init " + file + " --eval" + w.val), "val_loss: ") ==
              doctest::Approx(number_after(out.substr(out.find("eval step 40")), "val_loss ")).epsilon(1e-6));   // the log line has fewer digits
        CHECK(number_after(out.substr(out.find("eval step 40")), "val_loss ") < number_after(out, "val_loss "));
        REQUIRE(run("./convert " + file + " " + w / "none.safetensors && ./convert " + w / "none.safetensors " + w / "back.bin && rm " + w / "none.safetensors").code == 0);
        CHECK(open_checkpoint(w / "back.bin").content_hash() == open_checkpoint(file).content_hash());
        fs::remove(w / "back.bin");
    }
    write_file(w / "text", std::string(2000, 'a'));
    REQUIRE(run("data/tokenize " + w / "text --val-every 0 --train-tokenizer 257 --out " + w / "corpus").code == 0);
    go_well("./train_gpt --depth 0 --width 32 --heads 2 --seq-len 32 --vocab-size 264 --steps 60" + BATCH + " --data " + w / "corpus/train_000000.bin --out " + w / "letters");
    const std::string text = go_well("./train_gpt --init " + step_file(w / "letters", 60) + " --sample a --sample-tokens 40 --temperature 0");
    CHECK(text.starts_with(std::string(41, 'a') + "\n"));   // more tokens than seq_len
    check_refused("./train_gpt --depth 0 --plan", "--depth 0 gives no default width; give --width");
    for (std::string flag : {"--value-embeds none", "--attn-scale 0.5"})
        check_refused("./train_gpt --depth 0 --width 32 --plan " + flag, "is for layers, and --depth 0 has none; leave it out");
    const std::string tied = "./train_gpt --recipe speedrun --depth 0 --width 32 --heads 2 --seq-len 32 --vocab-size 72 --steps 2" + BATCH + w.data + " --out " + w / "x";
    check_refused(tied + " --embeddings-from " + step_file(w / "none", 40), "nothing would train: the embedding is all that the model has");
    CHECK(!fs::exists(w / "x"));
    check_refused("./train_gpt --depth -1 --plan", "--depth is -1, but must be 0 to 10000");
}

// ------------------------------------------------------------------------------------------------------- refusals

TEST_CASE("train_gpt: wrong command lines are refused, and write nothing") {
    Workplace w;
    const std::string at = w.data + " --out " + w / "x";
    const std::vector<std::pair<std::string, std::string>> wrong = {
        {"--no-such-flag", "--no-such-flag"},
        {"--ste 5", "--ste"},
        {"stray", "stray"},
        {"--steps", "--steps"},
        {"--steps 0", "--steps is 0, but must be 1 or more"},
        {"--steps -3", "--steps is -3"},
        {"--steps 5x", "--steps is '5x'"},
        {"--steps 99999999999999999999", "out of range"},
        {"--steps ''", "--steps"},
        {"--steps 2 --seed -1", "--seed is '-1'"},
        {"--steps 2 --matrix-lr nan", "--matrix-lr is nan"},
        {"--steps 2 --matrix-lr -0.1", "--matrix-lr is -0.1"},
        {"--steps 2 --warmdown-ratio 11", "--warmdown-ratio is 11, but must be 0 to 10"},
        {"--steps 2 --warmdown-ratio 1 --warmdown-steps 1", "give one of them"},
        {"--steps 2 --total-flops 1e9", "give one of them"},
        {"--total-flops 1", "less than one step"},
        {"--steps 2 --packing bfd", "--packing is 'bfd', but must be one of: stream, bos-bestfit"},
        {"--steps 2 --norm-wte batch", "none, rms_norm, layer_norm"},
        {"--steps 2 --window-pattern SXL", "window pattern is 'SXL'"},
        {"--steps 2 --kv-heads 3", "heads (2) must be a multiple of key/value heads (3)"},
        {"--steps 2 --tokenizer " + w / "train_0.bin", "is not a tokenizer"},
        {"--steps 2 --sample-every 1", "give --tokenizer"},
        {"--steps 2 --val-data ''", "--val-data is empty"},
        {"--steps 2 --optimizer keep", "--optimizer is for --init, which is not given; leave it out"},
        {"--steps 2 --schedule continue", "--schedule is for --init, which is not given; leave it out"},
        {"--steps 2 --schedule onward", "--schedule is 'onward', but must be one of: restart, continue"},
        {"--steps 2 --warmdown-shape steep", "--warmdown-shape is 'steep', but must be one of: linear, cosine, 1-sqrt"},
        {"--steps 2 --train-only h.0-2.fc", "--train-only h.0-2.fc: layers 0 to 2, but the model has layers 0 to 1"},
        {"--steps 2 --train-only h.0.ffc", "--train-only 'h.0.ffc' matches no tensor of the model"},
        {"--steps 2 --val-data " + w / "missing_*.bin", "missing_"},
    };
    for (auto& [flags, words] : wrong) check_refused(NANOCHAT + at + " " + flags, words);
    const std::string shape = "./train_gpt --steps 1" + at + " --depth 2 --seq-len 32";
    check_refused(shape + " --width 30", "width is 30, but must be a multiple of 8");
    check_refused(shape + " --width 32 --heads 3", "width (32) must be a multiple of heads (3)");
    check_refused(shape + " --width 32 --heads 8", "must be a multiple of 8; choose other --heads");
    check_refused(shape + " --width 32 --heads 2 --vocab-size 50257", "round up, as 50257 to 50304");
    check_refused(shape + " --width 32 --heads 2 --vocab-size 72 --batch-tokens 5000 --device-batch 8",
                  "batch_tokens (5000) must be a multiple of device_batch x seq_len (8 x 32 = 256)");
    check_refused(SPEEDRUN + " --steps 2 --out " + w / "x", "--data is missing");
    check_refused(SPEEDRUN + w.data + " --steps 2", "--out is missing");
    CHECK(!fs::exists(w / "x"));
    Result help = go("./train_gpt --help");
    CHECK(help.code == 0);
    CHECK(contains(help.out, "--coconut-targets"));
}

TEST_CASE("train_gpt: bad shards are refused, and earlier checkpoints are kept") {
    Workplace w;
    const std::string good = read_file(w / "val_0.bin"), run = SPEEDRUN + " --steps 30 --out " + w / "x --data ";
    auto refuse = [&](const std::string& bytes, const std::string& words) {
        write_file(w / "bad.bin", bytes);
        check_refused(run + w / "bad.bin", words);
        check_refused(SPEEDRUN + w.data + " --steps 30 --out " + w / "x --val-data " + w / "bad.bin", "bad.bin");
        CHECK(!fs::exists(w / "x"));
    };
    auto with = [&](size_t byte, char value) {
        std::string bytes = good;
        bytes[byte] = value;
        return bytes;
    };
    check_refused(run + w / "missing_*.bin", "missing_");
    refuse("", "cut short");
    refuse("not a shard" + std::string(2000, ' '), "is not a token shard");
    refuse(with(0, 1), "is not a token shard");
    refuse(with(4, 7), "version 7");
    refuse(good.substr(0, 700), "cut short");
    refuse(good.substr(0, good.size() - 2), "cut short");
    refuse(good + "xx", "too long");
    refuse(good.substr(0, 8) + std::string(4, '\0') + good.substr(12), "0 tokens");
    refuse(std::string(good).replace(8, 4, std::string("\x10\0\0\0", 4)).substr(0, 1024 + 32), "takes 65 tokens of one shard");

    std::vector<uint16_t> tokens = random_tokens(2000, 9);
    tokens[1349] = 300;   // in the second micro-batch of step 11
    write_shard(w / "bad.bin", tokens);
    check_refused(run + w / "bad.bin", "bad.bin' holds token 300 at position 1349, but the vocabulary has 72");
    CHECK(names_in(w / "x") == Names{"log.jsonl", "step_0000010.bin"});
    CHECK(open_checkpoint(step_file(w / "x", 10)).header["data"]["token"] == 1280);   // where step 11 begins
    check_refused("./train_gpt --data " + w / "bad.bin --resume " + step_file(w / "x", 10), "300");
    check_refused("./train_gpt" + w.data + " --resume " + step_file(w / "x", 10), "it belongs to other shards");
    CHECK(names_in(w / "x") == Names{"log.jsonl", "step_0000010.bin"});
}

TEST_CASE("train_gpt: bad checkpoints are refused by every flag that takes one") {
    Workplace w;
    go_well(SPEEDRUN + w.data + " --steps 2 --out " + w / "run");
    go_well(NANOCHAT + w.data + " --steps 2 --out " + w / "other");
    go_well("./train_gpt --recipe speedrun --depth 2 --width 64 --heads 2 --seq-len 32 --vocab-size 72 --batch-tokens 128" + w.data + " --steps 2 --out " + w / "wide");
    const std::string good = read_file(step_file(w / "run", 2)), bad = w / "bad.bin", out = w.data + " --out " + w / "x ";
    auto refuse = [&](const std::string& bytes, const std::string& words) {
        write_file(bad, bytes);
        check_refused("./train_gpt --resume " + bad + out, words);
        check_refused("./train_gpt --steps 2 --batch-tokens 128 --init " + bad + out, words);
        check_refused("./train_gpt --eval --init " + bad + w.val, words);
        CHECK(!fs::exists(w / "x"));
    };
    auto flipped = [&](size_t byte) {
        std::string bytes = good;
        bytes[byte] = static_cast<char>(bytes[byte] ^ 4);
        return bytes;
    };
    refuse("", "too few for a checkpoint");
    refuse(good.substr(0, 5000), "the file was cut short");
    refuse(good.substr(0, good.size() - 1), "the file was cut short");
    refuse(flipped(0), "is not a checkpoint");
    refuse(flipped(8), "version 5");
    refuse(flipped(200), "does not match its hash");
    const TensorEntry fc = open_checkpoint(step_file(w / "run", 2)).at("h.1.fc");
    refuse(flipped(fc.offset + 77), "tensor h.1.fc");
    check_refused(SPEEDRUN + " --steps 2" + out + "--embeddings-from " + bad, "tensor h.1.fc");

    // Checkpoints of another recipe, another width, another training.
    check_refused("./train_gpt --recipe speedrun --resume " + step_file(w / "other", 2) + out, "a flag contradicts it (file -> flag): --recipe \"nanochat\" -> \"speedrun\"");
    check_refused(SPEEDRUN + " --steps 2" + out + "--embeddings-from " + step_file(w / "wide", 2), "its embedding is 72 x 64, but the model's is 72 x 32");
    check_refused("./train_gpt --resume " + w / "missing.bin" + out, "missing.bin");
    check_refused("./train_gpt --resume " + w.dir.path + out, "must be a file");
    CHECK(!fs::exists(w / "x"));
    CHECK(read_file(step_file(w / "run", 2)) == good);
}

TEST_CASE("train_gpt: --profile-steps prints the times of those steps by range, and changes nothing else") {
    Workplace w;
    const std::string run = NANOCHAT + w.data + " --steps 6 --out ";
    Result profiled = go(run + w / "profiled --profile-steps 3:4");
    CHECK(profiled.code == 0);
    CHECK(contains(profiled.out, "profile: steps 3 to 4\n"));
    for (const char* range : {"step", "data", "forward", "head", "backward", "update", "matmul_forward", "attention_backward", "muon_update", "cross_entropy"})
        CHECK_MESSAGE(std::regex_search(profiled.out, std::regex("\nprofile: " + std::string(range) + " +[0-9]+ +[0-9.]+ +[0-9.]+ +[0-9.]+%\n")), range);
    CHECK(std::regex_search(profiled.out, std::regex("\nprofile: step +2 ")));                       // calls
    CHECK(std::regex_search(profiled.out, std::regex("\nprofile: forward of layer 1 +4 ")));         // two micro-batches a step
    go_well(run + w / "plain --save-every 3");
    CHECK(read_file(step_file(w / "profiled", 6)) == read_file(step_file(w / "plain", 6)));

    for (const char* wrong : {"3", "4:3", "0:2", "5:7", "a:b", "3:4:5", "3:", "-1:2", "99999999999999999999:99999999999999999999"})
        check_refused(run + w / "refused --profile-steps " + wrong, "--profile-steps is ");
    CHECK(!fs::exists(w / "refused"));
    check_refused("./train_gpt" + w.data + " --resume " + step_file(w / "plain", 3) + " --profile-steps 3:4", "must lie within 4 and 6");
}

TEST_CASE("train_gpt: a folder that cannot be written, a disk that is full") {
    Workplace w;
    const std::string run = SPEEDRUN + w.data + " --steps 30 --save-every 1 --out ";
    check_refused(run + w / "train_0.bin", "train_0.bin: cannot be made a folder");
    check_refused(run + "/dev/null/x", "/dev/null/x: cannot be made a folder");
    check_refused(run + "/sys/kernel", "/sys/kernel: cannot be written to");   // not writable by root either
    if (geteuid() == 0) {
        fs::create_directory(w / "mine");
        chmod((w / "mine").c_str(), 0700);
        chmod(w.dir.path.c_str(), 0755);
        check_refused("setpriv --reuid 65534 --clear-groups " + run + w / "mine/run", "mine/run: cannot be written to: Permission denied");
    }
    check_refused("./train_gpt --plan >/dev/full", "stdout: cannot be written: No space left on device");
    check_refused("sh -c 'ulimit -f 8; exec " + SPEEDRUN + " --data " + w / "train_0.bin --steps 300 --out " + w / "small'", "log.jsonl: cannot be written: File too large");

    // One megabyte has room for the log and a few checkpoints.
    fs::create_directory(w / "disk");
    fs::create_directory(w / "left");
    Result full = go("unshare -m sh -c 'mount -t tmpfs -o size=1m deepen " + w / "disk || exit 77; " + SPEEDRUN + " --data \"" + w / "train_*.bin\" --steps 30 --save-every 1 --out " +
                     w / "disk/run; code=$?; cp " + w / "disk/run/* " + w / "left; exit $code'");
    if (full.code == 77 || contains(full.err, "unshare")) {
        MESSAGE("mount is not permitted: the test of a full disk was skipped");
        return;
    }
    CAPTURE(full.err);
    CHECK(full.code == 2);
    CHECK(std::count(full.err.begin(), full.err.end(), '\n') == 1);
    CHECK(contains(full.err, "but its disk has"));
    Names left = names_in(w / "left");
    REQUIRE(left.size() >= 2);
    CHECK(left.size() == 1 + number_after(left.back(), "step_"));   // the log, and a checkpoint of every step until then
    go_well("./train_gpt" + w.data + " --resume " + w / ("left/" + left.back()));
    go_well(SPEEDRUN + w.data + " --steps 30 --out " + w / "whole");
    CHECK(read_file(step_file(w / "left", 30)) == read_file(step_file(w / "whole", 30)));
}

TEST_CASE("train_gpt: NaN or Inf ends the run; the error names tensor, layer and step, and the last good checkpoint stays") {
    Workplace w;
    // Muon's matrices overflow in the first update.
    Result burst = check_refused(SPEEDRUN + w.data + " --steps 50 --save-every 1 --matrix-lr 1e30 --out " + w / "burst", "last good checkpoint: ");
    CHECK(std::regex_search(burst.err, std::regex("step [0-9]+: .* of layer [0-9]|step [0-9]+: .*\\(layer [0-9]\\)")));
    // A weight that is NaN from the start.
    go_well(SPEEDRUN + w.data + " --steps 3 --out " + w / "good");
    Checkpoint good = open_checkpoint(step_file(w / "good", 3));
    Values values;
    for (const Tensor& tensor : tensor_table(good.config)) values[tensor.name] = values_of(good, tensor.name);
    values["h.1.proj"][5] = std::numeric_limits<float>::infinity();
    write_checkpoint(w / "bad.bin", small_header(good.config), small_sources(good.config, values));
    Result bad = go("./train_gpt --steps 3 --batch-tokens 128 --init " + w / "bad.bin" + w.data + " --out " + w / "bad");
    CHECK(bad.code == 2);
    CHECK(contains(bad.err, "step 1: loss is "));
    CHECK(contains(bad.err, "first NaN or Inf in the weights h.1.proj (layer 1)"));
    CHECK(contains(bad.err, "last good checkpoint: none was saved yet"));
    CHECK(names_in(w / "bad") == Names{"log.jsonl"});
}
}  // namespace
