// The launchers of clusters, tested on one machine: a Slurm cluster of one node (test/slurm.sh), and two hosts that are network namespaces
// (test/two_hosts.sh). Each command of dev/cluster.md that can run here starts test/comm_worker.cpp, and the trainer.
#include <doctest/doctest.h>
#include <unistd.h>
#include <filesystem>
#include <string>
#include "llmc/checkpoint.h"
#include "llmc/io/mpi_job.h"
#include "llmc/io/process.h"
#include "test/mpirun.h"
#include "test/small_run.h"

namespace fs = std::filesystem;

namespace {
const std::string WORKER = fs::read_symlink("/proc/self/exe").parent_path() / "comm_worker";
const std::string ENVIRONMENT = NO_LAUNCHER + "export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1 OMP_NUM_THREADS=1 WORKER=" + WORKER + "; ";

bool are_there(const std::string& commands) {
    return MpiJob::built_in() && geteuid() == 0 && run("PATH=$PATH:/usr/sbin:/sbin; for command in " + commands + "; do command -v $command || exit 1; done").code == 0;
}
Needs needs_slurm() {
    static const bool there = are_there("munged slurmctld slurmd srun python3");
    return {there, "Slurm daemons that root may start"};
}
Needs needs_namespaces() {
    static const bool there = are_there("mpirun nsenter ip") && run("unshare --net --uts true").code == 0;
    return {there, "namespaces that root may make"};
}

/// Whether ./train_gpt is built for the CPU; and the command that runs it, with four micro-batches a step, in four parts.
bool has_trainer() { return run("readlink -f train_gpt | grep -qv cuda").code == 0; }
std::string trainer(const Workplace& w) {
    return "train=\"" + fs::current_path().string() + "/train_gpt --depth 2 --width 32 --heads 2 --seq-len 16 --vocab-size 72 --device-batch 1 --batch-tokens 64 --no-scaling --parts 4 --data " +
           w.dir.path + "/train_0.bin\"\n";
}

/// Words of the scripts. step NAME COMMAND...: writes NAME.code, NAME.out and NAME.err. cut NAME WORDS TIMES COMMAND...: a step during which the network is cut, as soon as
/// its output has the words so often; mpirun itself waits for the other host for ever, so it is killed when both processes here have said what they waited for.
const std::string WORDS = R"script(
    step() { name=$1; shift; "$@" >$name.out 2>$name.err; echo $? >$name.code; }
    cut() {
        name=$1 words=$2 times=$3
        shift 3
        : >$name.out >$name.err
        {
            until [ "$(grep -c "$words" $name.out)" -ge "$times" ]; do sleep 0.1; done
            ip link set to_b down
            for i in $(seq 600); do [ "$(grep -c ' waited 4 s for ' $name.err)" -lt 2 ] || break; sleep 0.1; done
            sleep 3   # for what mpirun does at their end
            kill -KILL "$(cat $name.pid)" 2>/dev/null
        } &
        step $name sh -c 'echo $$ >'$name'.pid; exec "$@"' sh "$@"
        wait
    }
)script";

/// Runs a script on a cluster. It may use WORDS.
struct Cluster : TempDir {
    Result whole;

    Cluster(const std::string& program, const std::string& script) {
        write_file(*this / "script", WORDS + script);
        whole = run(ENVIRONMENT + "program=$PWD/test/" + program + "; cd " + path + " && timeout 300 $program bash ./script");
    }
    void check(const std::string& name, int code, const std::string& in_out, int times_out, const std::string& in_err, int times_err) const {
        CAPTURE(name);
        CAPTURE(whole.err);
        REQUIRE(fs::exists(*this / (name + ".code")));
        const std::string out = read_file(*this / (name + ".out")), err = read_file(*this / (name + ".err"));
        CAPTURE(out);
        CAPTURE(err);
        CHECK(read_file(*this / (name + ".code")) == std::to_string(code) + "\n");
        CHECK(occurrences(out, in_out) == times_out);
        CHECK(occurrences(err, in_err) == times_err);
    }
};
}  // namespace

TEST_CASE("cluster: Slurm's srun and sbatch" * needs_slurm()) {
    const Cluster cluster("slurm.sh", R"script(
        step pmix srun --mpi=pmix -n 3 $WORKER contract
        step plain srun -n 2 $WORKER contract
        step one srun -n 1 $WORKER contract
        step killed srun --mpi=pmix -n 2 --kill-on-bad-exit=1 $WORKER killed 1
        export DEADLINE=5
        step stopped srun --mpi=pmix -n 2 $WORKER stopped 1
        printf '#!/bin/sh\nexec srun --mpi=pmix -n 2 %s until-stop\n' $WORKER >batch.sh
        step batch sbatch --parsable -n 2 --output=batch.log batch.sh
        for i in $(seq 600); do [ "$(grep -cs begins batch.log)" != 2 ] || break; sleep 0.1; done
        step signal scancel --signal=USR1 $(cat batch.out)
        for i in $(seq 600); do [ -n "$(squeue -h)" ] || break; sleep 0.1; done
        step log cat batch.log
    )script");
    const std::string host = own_host_name();
    cluster.check("pmix", 0, ": OK\n", 3, "comm_worker", 0);
    cluster.check("plain", 2, "OK", 0, "comm_worker: comm: srun started 2 tasks, and without PMIx MPI cannot reach them; give srun --mpi=pmix, or use mpirun\n", 2);
    cluster.check("one", 0, "rank 0 of 1 (0 of 1 on " + host + "): OK\n", 1, "comm_worker", 0);
    cluster.check("killed", 137, "OK", 0, "comm_worker: rank 0 on host " + host + ", step 17: collect was asked to stop, and still waits for rank 1 on host " + host + "\n", 1);
    cluster.check("stopped", 2, "OK", 0, "comm_worker: rank 0 on host " + host + ", step 17: collect waited 5 s for rank 1 on host " + host + "; ", 1);
    cluster.check("signal", 0, "-", 0, "error", 0);
    cluster.check("log", 0, ": OK\n", 2, "-", 0);
}

TEST_CASE("cluster: two hosts, and mpirun that reaches the other through an agent" * needs_namespaces()) {
    const Cluster cluster("two_hosts.sh", R"script(
        mpirun="mpirun --oversubscribe --bind-to none -x OMP_NUM_THREADS -x DEADLINE --host a:2,b:2 --mca odls_base_sigkill_timeout 3 $WORKER"
        export DEADLINE=60
        step whole $mpirun contract
        step killed $mpirun killed 3
        export DEADLINE=4
        cut cut begins 4 $mpirun until-stop
    )script");
    for (std::string who : {"0 of 4 (0 of 2 on a)", "1 of 4 (1 of 2 on a)", "2 of 4 (0 of 2 on b)", "3 of 4 (1 of 2 on b)"}) cluster.check("whole", 0, "rank " + who + ": OK\n", 1, "comm_worker", 0);
    // It names rank 3; or, if a call of Open MPI did not return, the others.
    cluster.check("killed", 137, "OK", 0, "comm_worker: rank 0 on host a, step 17: collect was asked to stop, and still waits for ", 1);
    const std::string err = read_file(cluster / "cut.err");
    CAPTURE(err);
    for (int rank : {0, 1}) CHECK(occurrences(err, "comm_worker: rank " + std::to_string(rank) + " on host a, step 17: collect waited 4 s for rank 2 on host b, rank 3 on host b; ") == 1);
}

TEST_CASE("cluster: the trainer writes the same bytes under srun as in one process" * needs_slurm()) {
    if (!has_trainer()) return;
    Workplace w;
    const Cluster cluster("slurm.sh", trainer(w) + R"script(
        step one $train --steps 9 --out one
        step srun srun --mpi=pmix -n 2 $train --steps 9 --out srun
    )script");
    for (const char* name : {"one", "srun"}) cluster.check(name, 0, "\nsaved ", 1, "train_gpt", 0);
    CHECK(read_file(step_file(cluster / "srun", 9)) == read_file(step_file(cluster / "one", 9)));
}

TEST_CASE("cluster: the trainer writes the same bytes on two hosts as on one; when the network is cut, both sides end, and the last checkpoint opens" * needs_namespaces()) {
    if (!has_trainer()) return;
    Workplace w;
    const Cluster cluster("two_hosts.sh", trainer(w) + R"script(
        mpirun="mpirun --oversubscribe --bind-to none -x OMP_NUM_THREADS --host a:2,b:2 --mca odls_base_sigkill_timeout 3 $train"
        step one $train --steps 9 --out one
        step whole $mpirun --steps 9 --out whole
        cut cut 'saved .*step_0000020' 1 $mpirun --steps 1000000 --save-every 10 --keep 2 --deadline 4 --out cut
    )script");
    for (const char* name : {"one", "whole"}) cluster.check(name, 0, "saved ", 1, "train_gpt", 0);
    CHECK(read_file(step_file(cluster / "whole", 9)) == read_file(step_file(cluster / "one", 9)));
    const std::string err = read_file(cluster / "cut.err");
    CAPTURE(err);
    for (int rank : {0, 1}) CHECK(occurrences(err, "train_gpt: rank " + std::to_string(rank) + " on host a, ") == 1);
    CHECK(occurrences(err, " waited 4 s for ") >= 2);
    std::string last;
    for (const fs::directory_entry& entry : fs::directory_iterator(cluster / "cut"))
        if (entry.path().extension() == ".bin") last = std::max(last, entry.path().string());
    REQUIRE(last != "");
    verify_tensors(open_checkpoint(last));
}
