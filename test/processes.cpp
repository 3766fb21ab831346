// ./train_gpt as several processes, started by mpirun: the same bytes with any number of processes, and the behaviour when something breaks.
#include <doctest/doctest.h>
#include <sys/resource.h>
#include <algorithm>
#include <filesystem>
#include <regex>
#include "llmc/checkpoint.h"
#include "llmc/io/build.h"
#include "llmc/io/mpi_job.h"
#include "test/mpirun.h"
#include "test/needs.h"
#include "test/small_run.h"

namespace fs = std::filesystem;

namespace {

bool contains(const std::string& text, const std::string& words) { return text.find(words) != std::string::npos; }

// Whether ./train_gpt is built for the CPU, with MPI.
bool can_start_jobs() {
    static const bool there = has_mpirun() && run("readlink -f train_gpt | grep -q cuda").code != 0;
    return there;
}
Needs needs_jobs() { return {can_start_jobs(), "MPI, and the programs built for a CPU"}; }

/// mpirun for any number of processes, as root too, and independent of a job that the tests themselves run in.
const std::string MPIRUN = "env $(env | sed -nE 's/^((SLURM|OMPI|PMIX|PMI)_[A-Za-z0-9_]*|RANK|WORLD_SIZE|LOCAL_RANK|LOCAL_WORLD_SIZE)=.*/-u \\1/p') "
                           + mpirun_variables() + "mpirun --oversubscribe --bind-to none --mca mpi_yield_when_idle 1";

std::string job(int count, const std::string& command) { return MPIRUN + " -n " + std::to_string(count) + " " + command; }

// Eight micro-batches a step, in four parts.
const std::string SIZES = " --depth 3 --width 32 --heads 2 --seq-len 16 --vocab-size 72 --device-batch 2 --batch-tokens 256 --no-scaling --parts 4";
const std::string NANO = "./train_gpt --recipe nanochat" + SIZES, SPEED = "./train_gpt --recipe speedrun" + SIZES;

Result go(const std::string& command) { return Child("exec " + command).finish(); }

/// The program's own output, without mpirun's, and without times, memory and speeds.
std::string own_lines(const std::string& text) {
    std::string lines;
    std::istringstream all(text);
    for (std::string line; std::getline(all, line);) {
        if (line.ends_with('\r')) line.pop_back();   // mpirun's terminal adds it
        line = std::regex_replace(line, std::regex("( ms | tok/s | mfu | eta )[^ ]*"), "");
        if (!line.starts_with("peak of") && !line.starts_with("memory") && !line.starts_with("  ") && !line.starts_with("saved")) lines += line + "\n";
    }
    return lines;
}

std::string steps_and_evaluations(const std::string& text) {
    std::string lines;
    std::istringstream all(own_lines(text));
    for (std::string line; std::getline(all, line);)
        if (line.starts_with("step ") || line.starts_with("eval ") || line.starts_with("val_")) lines += line + "\n";
    return lines;
}

/// Lines that begin with the program's name: its errors and warnings.
std::vector<std::string> complaints(const Result& result) {
    std::vector<std::string> lines;
    std::istringstream all(result.err);
    for (std::string line; std::getline(all, line);)
        if (line.starts_with("train_gpt: ")) lines.push_back(line);
    return lines;
}

/// The job ended with exit code 2 and exactly one line of the program's errors, which has these words.
void check_one_error(const Result& result, const std::string& words) {
    CAPTURE(result.err);
    CHECK(result.code == 2);
    const std::vector<std::string> lines = complaints(result);
    REQUIRE(lines.size() == 1);
    CHECK_MESSAGE(contains(lines[0], words), lines[0]);
}

std::string last_checkpoint(const std::string& folder) {
    std::string last;
    for (const fs::directory_entry& entry : fs::directory_iterator(folder))
        if (entry.path().extension() == ".bin") last = std::max(last, entry.path().string());
    return last;
}

void check_it_opens(const std::string& path) {
    REQUIRE(path != "");
    verify_tensors(open_checkpoint(path));
}

/// The process ids of the ranks that write to the folder `out`.
std::vector<pid_t> ranks_of(const std::string& out) {
    const Result found = run("pgrep -f -- '^./train_gpt .*--out " + out + "( |$)'");
    std::vector<pid_t> ranks;
    std::istringstream numbers(found.out);
    for (pid_t rank; numbers >> rank;) ranks.push_back(rank);
    std::sort(ranks.begin(), ranks.end());
    return ranks;
}

}  // namespace

TEST_CASE("processes: one process with one part writes the same bytes with and without mpirun and --parts" * needs_jobs()) {
    Workplace w;
    const std::string sizes = "./train_gpt --depth 2 --width 32 --heads 2 --seq-len 32 --vocab-size 72 --device-batch 2 --batch-tokens 128 --steps 5" + w.data;
    CHECK(go(sizes + " --out " + w / "a").code == 0);
    CHECK(go(job(1, sizes + " --out " + w / "b")).code == 0);
    CHECK(go(sizes + " --parts 1 --out " + w / "c").code == 0);
    const std::string bytes = read_file(step_file(w / "a", 5));
    CHECK(bytes == read_file(step_file(w / "b", 5)));
    CHECK(!contains(bytes, "\"parts\""));
    const Checkpoint a = open_checkpoint(step_file(w / "a", 5)), c = open_checkpoint(step_file(w / "c", 5));
    for (const TensorEntry& entry : a.tensors) CHECK(entry.xxh3 == c.at(entry.name).xxh3);
}

TEST_CASE("processes: 40 steps give the same bytes and the same output with 1, 2 and 4 processes" * needs_jobs()) {
    Workplace w;
    CHECK(go(SPEED + w.data + " --steps 2 --out " + w / "parent").code == 0);
    const std::string models[] = {
        NANO,
        SPEED,
        NANO + " --packing bos-bestfit --coconut-every 3 --coconut-targets next",
        SPEED + " --packing bos-bestfit --coconut-every 3 --data-seed 5 --weight-decay 0.1",
        SPEED + " --embeddings-from " + step_file(w / "parent", 2),
        NANO + " --train-only 'h.1-2.*,x0_lambdas'",
        NANO + " --train-only 'h.0.k,lm_head' --kv-heads 1",
    };
    for (size_t i = 0; i < std::size(models); i++) {
        CAPTURE(models[i]);
        std::string said;
        for (int count : {1, 2, 4}) {
            const std::string out = w / (std::to_string(i) + "-" + std::to_string(count));
            // 1100 tokens are 34 micro-batches: no multiple of 4
            const Result result = go(job(count, models[i] + w.data + w.val + " --eval-every 20 --steps 40 --out " + out));
            CAPTURE(result.err);
            REQUIRE(result.code == 0);
            CHECK(complaints(result).empty());
            if (count == 1) said = steps_and_evaluations(result.out);
            CHECK(steps_and_evaluations(result.out) == said);
            CHECK(read_file(step_file(out, 40)) == read_file(step_file(w / (std::to_string(i) + "-1"), 40)));
        }
        CHECK(std::count(said.begin(), said.end(), '\n') == 43);
    }
    // --eval alone.
    std::string said;
    for (int count : {1, 2, 3, 4}) {
        const Result result = go(job(count, "./train_gpt --init " + step_file(w / "0-1", 40) + " --eval" + w.val));
        CHECK(result.code == 0);
        if (count == 1) said = steps_and_evaluations(result.out);
        CHECK(contains(said, "val_loss: "));
        CHECK(steps_and_evaluations(result.out) == said);
    }
}

TEST_CASE("processes: started with 4, killed, resumed with 1, killed, resumed with 2: the bytes of an uninterrupted run" * needs_jobs()) {
    Workplace w;
    const std::string flags = w.data + " --save-every 1 --steps 30", out = w / "out";
    REQUIRE(go(job(2, NANO + flags + " --out " + w / "whole")).code == 0);
    int from = 0;
    for (auto [count, until] : {std::pair{4, 9}, {1, 19}, {2, 30}}) {
        const std::string start = from == 0 ? NANO + flags : "./train_gpt --resume " + last_checkpoint(out) + w.data + " --save-every 1";
        Child child("exec " + job(count, start + " --out " + out));
        if (until < 30) {
            child.wait_for("saved " + step_file(out, until));
            for (pid_t rank : ranks_of(out)) kill(rank, SIGKILL);
        }
        CHECK((child.finish().code == 0) == (until == 30));
        check_it_opens(last_checkpoint(out));
        from = until;
    }
    CHECK(read_file(step_file(out, 30)) == read_file(step_file(w / "whole", 30)));
}

TEST_CASE("processes: the memory of each process is as planned, within 5 %" * needs_jobs()) {
    Workplace w;
    const std::string model = "./train_gpt --depth 4 --width 256 --heads 2 --seq-len 256 --vocab-size 4096 --device-batch 4 --batch-tokens 4096 --parts 4 --steps 2";
    for (int count : {1, 2, 4}) {
        CAPTURE(count);
        const std::string plan = go(model + " --plan --processes " + std::to_string(count)).out;
        const Result result = go(job(count, model + w.data + " --out " + w / std::to_string(count)));
        CAPTURE(result.err);
        REQUIRE(result.code == 0);
        const double planned = number_after(plan, "memory_bytes: "), had = number_after(result.out, "memory: peak of the process ") * (1 << 20);
        CHECK(std::abs(had - planned) <= 0.05 * planned);
    }
    const std::string plan = go(model + " --plan --processes 4").out;
    CHECK(contains(plan, "processes: 4, parts of a step: 4\n"));
    for (int rank = 0; rank < 4; rank++) CHECK(contains(plan, "\nrank " + std::to_string(rank) + " updates "));
}

TEST_CASE("processes: numbers of processes and flags that do not fit are refused in one line" * needs_jobs()) {
    Workplace w;
    const std::string flags = w.data + " --steps 5 --out " + w / "out", no_parts = NANO.substr(0, NANO.find(" --parts"));
    check_one_error(go(job(3, NANO + flags)), "3 processes cannot share 4 parts of a step (--parts); start 1, 2 or 4, or give --parts");
    check_one_error(go(job(4, no_parts + " --parts 2" + flags)), "4 processes cannot share 2 parts of a step (--parts); start 1 or 2");
    check_one_error(go(job(2, no_parts + " --parts 16" + flags)), "must be a multiple of device_batch x seq_len x parts (2 x 16 x 16 = 512)");
    check_one_error(go(job(2, NANO + " --steps 5" + w.data)), "--out is missing");
    check_one_error(go(job(2, NANO + flags + " --processes 2")), "--processes is for --plan alone");
    CHECK(!fs::exists(w / "out"));

    // A run that was started by one process has one part.
    REQUIRE(go(no_parts + flags).code == 0);
    check_one_error(go(job(2, "./train_gpt --resume " + step_file(w / "out", 5) + w.data)), "2 processes cannot share 1 part of a step");
}

TEST_CASE("processes: ranks that were started with different flags, data, checkpoints or programs" * needs_jobs()) {
    Workplace w;
    const std::string out = " --out " + w / "out", all = w.data + " --steps 5" + out;
    auto two = [&](const std::string& first, const std::string& second) { return go(MPIRUN + " -n 1 " + first + " : -n 1 " + second); };
    check_one_error(two(NANO + all, NANO + all + " --matrix-lr 0.5"), "--matrix-lr differs between the processes of this job: 0.02 at rank 0 on ");
    check_one_error(two(NANO + all, NANO + all + " --eval-every 7"), "--eval-every differs");
    check_one_error(two(NANO + all, SPEED + all), "the model differs");
    write_shard(w / "other.bin", random_tokens(3000, 9));
    check_one_error(two(NANO + all, NANO + " --steps 5 --data " + w / "other.bin" + out), "the shards of --data differs");
    for (int i : {1, 2}) REQUIRE(go(NANO + w.data + " --steps 1 --seed " + std::to_string(i) + " --out " + w / std::to_string(i)).code == 0);
    check_one_error(two(NANO.substr(0, 12) + w.data + " --parts 2 --steps 3 --init " + step_file(w / "1", 1) + out,
                        NANO.substr(0, 12) + w.data + " --parts 2 --steps 3 --init " + step_file(w / "2", 1) + out), "the checkpoint that the run starts from differs");

    // Another commit: the same program with its commit string patched.
    std::string program = read_file("train_gpt");
    const std::string commit = build_commit(), other(commit.size(), 'x');
    const size_t at = program.find(commit + '\0');
    REQUIRE(at != std::string::npos);
    program.replace(at, commit.size(), other);
    write_file(w / "train_gpt", program);
    fs::permissions(w / "train_gpt", fs::perms::owner_all);
    check_one_error(two(NANO + all, w / "train_gpt" + NANO.substr(11) + all), "the commit of train_gpt differs between the processes of this job: " + commit);
    CHECK(!fs::exists(w / "out"));

    // An error on one rank ends the others at once.
    check_one_error(two(NANO + all, NANO + " --steps 5 --data " + w / "nothing.bin" + out), "rank 1 on ");
}

TEST_CASE("processes: a rank that is killed, or hangs, ends the job; an error names the place, and the last checkpoint opens" * needs_jobs()) {
    Workplace w;
    for (int signal : {SIGKILL, SIGSTOP}) {
        CAPTURE(signal);
        const std::string out = w / std::to_string(signal);
        Child child("exec " + job(4, NANO + w.data + " --save-every 5 --steps 1000000 --deadline 3 --out " + out));
        child.wait_for("saved " + step_file(out, 10));
        const std::vector<pid_t> ranks = ranks_of(out);
        REQUIRE(ranks.size() == 4);
        kill(ranks[2], signal);
        const Result& result = child.finish();
        CAPTURE(result.err);
        CHECK(result.code != 0);
        const std::vector<std::string> lines = complaints(result);
        REQUIRE(!lines.empty());
        const std::regex form("train_gpt: rank [0-3] on host [^ ,]+, (step|the checkpoint of step) [0-9]+: [a-z ]+ (waited [0-9.]+ s for|was asked to stop, and "
                              "still waits for) (rank [0-3] on host|the others).*");
        for (const std::string& line : lines) CHECK_MESSAGE(std::regex_match(line, form), line);
        check_it_opens(last_checkpoint(out));
        CHECK(ranks_of(out).empty());
    }
}

TEST_CASE("processes: on a signal the job saves once and ends, and the run resumes from there" * needs_jobs()) {
    Workplace w;
    const std::string out = w / "out", flags = w.data + " --steps 1000000";
    {
        Child child("exec " + job(2, NANO + flags + " --out " + out));
        child.wait_for("step 10/");
        child.signal(SIGUSR1);   // mpirun forwards it
        CHECK(child.finish().code == 0);
        CHECK(contains(child.finish().out, "go on with --resume " + out));
    }
    const std::string saved = last_checkpoint(out);
    CHECK(events(out, "save").size() == 1);
    const int64_t step = open_checkpoint(saved).header["progress"]["step"];
    REQUIRE(step >= 10);
    const std::string steps = std::to_string(step + 3);
    CHECK(go(job(4, "./train_gpt --resume " + saved + w.data + " --steps " + steps)).code == 0);
    CHECK(go(NANO + w.data + " --steps " + steps + " --out " + w / "whole").code == 0);
    const Checkpoint a = open_checkpoint(step_file(out, static_cast<int>(step) + 3)), b = open_checkpoint(step_file(w / "whole", static_cast<int>(step) + 3));
    for (const TensorEntry& entry : b.tensors)
        if (!contains(entry.name, "tokenizer")) CHECK(a.find(entry.name) != nullptr);

    // A signal to one rank stops all.
    const std::string other = w / "other";
    Child child("exec " + job(2, NANO + flags + " --out " + other));
    child.wait_for("step 10/");
    kill(ranks_of(other).back(), SIGTERM);
    CHECK(child.finish().code == 0);
    check_it_opens(last_checkpoint(other));
}

TEST_CASE("processes: a bad token, a full disk and NaN end the job with one line of error, and earlier checkpoints stay" * needs_jobs()) {
    Workplace w;
    const std::string flags = " --steps 1000";
    // The token is in the data that rank 3 of 4 reads in a later step; the steps before are saved.
    std::vector<uint16_t> tokens = random_tokens(40000, 1);
    tokens[256 * 20 + 250] = 100;
    write_shard(w / "bad.bin", tokens);
    check_one_error(go(job(4, NANO + flags + " --data " + w / "bad.bin --out " + w / "bad")), "holds token 100 at position 5370");
    CHECK(last_checkpoint(w / "bad") == step_file(w / "bad", 20));
    check_it_opens(step_file(w / "bad", 20));

    // From step 10 on, a limit on file sizes is smaller than a checkpoint.
    const std::string full = w / "full";
    {
        Child child("exec " + job(2, NANO + w.data + " --save-every 400 --steps 1000000 --out " + full));
        child.wait_for("step 10/");
        const rlimit limit{20000, 20000};
        for (pid_t rank : ranks_of(full)) REQUIRE(prlimit(rank, RLIMIT_FSIZE, &limit, nullptr) == 0);
        check_one_error(child.finish(), full);
        CHECK(last_checkpoint(full) == "");
    }

    // Muon's matrices overflow in the first update: the error names the first micro-batch, and its rank.
    check_one_error(go(job(2, SPEED + w.data + " --save-every 1 --matrix-lr 1e30 --steps 50 --out " + w / "nan")), ", in micro-batch 0, which rank 0 on host ");
    if (const std::string last = last_checkpoint(w / "nan"); !last.empty()) check_it_opens(last);
}
