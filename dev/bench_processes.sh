#!/bin/bash
# dev/bench_processes.sh (make bench-processes): a training step as one process with several threads, and as several processes with one thread each, on
# the CPU, with the same device batch and 8 micro-batches a step. Prints the median time of the steps after the first, the bytes that the processes send
# each other, and how long those take at this machine's memory bandwidth, as bench_ops measures it. CASE=nano|d12: one of them.
set -euo pipefail
processes=$(nproc)
while ((processes & (processes - 1))); do processes=$((processes - 1)); done   # a power of two
[ "$processes" -gt 1 ] || { echo "bench-processes: this machine has one core; there is nothing to compare" >&2; exit 2; }
command -v mpirun >/dev/null || { echo "bench-processes: no mpirun here; make deps installs Open MPI" >&2; exit 2; }
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
ls corpus/train_*.bin >/dev/null 2>&1 || data/default_corpus.sh corpus --shard-tokens 20481 | grep -v '^shard: '

# median FILE: of the milliseconds of all its steps but the first.
median() {
    sed -nE 's/.*"event":"step".*"ms":([0-9.]+).*/\1/p' "$1" | tail -n +2 | sort -n | awk '{ x[NR] = $1 } END { print (x[int((NR + 1) / 2)] + x[int(NR / 2) + 1]) / 2 }'
}

# step NAME LAUNCH THREADS FLAGS...: the median of its steps, in ms.
step() {
    local out=$folder/$1
    # shellcheck disable=SC2086 # a launcher is words
    OMP_NUM_THREADS=$3 $2 ./train_gpt "${@:4}" --data 'corpus/train_*.bin' --eval-every 0 --out "$out" >/dev/null
    median "$out/log.jsonl"
}

bandwidth=$("$1/bench_ops" trial-speedrun --batch 2 | sed -nE 's/^ceiling copy_on_device.* ([0-9.]+) GB\/s$/\1/p')
printf '%-6s %18s %18s %8s %12s %22s\n' case "1 x $processes threads" "$processes x 1 thread" ratio "bytes sent" "of a step at $bandwidth GB/s"
for case in ${CASE:-nano d12}; do
    case $case in
        nano) flags="--depth 4 --width 256 --heads 2 --seq-len 256 --vocab-size 4096 --device-batch 2 --batch-tokens 4096 --steps 21" ;;
        d12) flags="--depth 12 --seq-len 256 --vocab-size 32768 --device-batch 1 --batch-tokens 2048 --steps 6" ;;
        *) echo "bench-processes: CASE is '$case', but must be nano or d12" >&2; exit 2 ;;
    esac
    # shellcheck disable=SC2086 # flags are words
    {
        one=$(step "$case-one" "" "$processes" $flags)
        several=$(step "$case-several" "mpirun -n $processes --bind-to none" 1 $flags)
        sent=$(./train_gpt $flags --plan --processes "$processes" | awk '/^sent by each/ { print $7 + $11 }')
    }
    awk -v name="$case" -v one="$one" -v several="$several" -v sent="$sent" -v count="$processes" -v speed="$bandwidth" 'BEGIN {
        printf "%-6s %15.1f ms %15.1f ms %8.3f %9.0f MB %20.2f %%\n", name, one, several, several / one, count * sent * 1e-6, 100 * count * sent / (speed * 1e9) / (one * 1e-3)
    }'
done
