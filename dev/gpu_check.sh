#!/bin/bash
# dev/gpu_check.sh [SUITES]: make gpu-check, in under nine minutes on a machine with a GPU, CUDA's toolkit, make and g++. It builds for
# this GPU, runs the tests on it, checks that repeating and resuming a run gives the same bytes, looks for errors with compute-sanitizer,
# and measures. The report, dev/results/<gpu>.md, is written as it runs, so that an interrupted run keeps what it has; the full
# logs stay in build/gpu-check. SUITES: source files of test suites that run the programs; these suites are skipped.
# Exit code: 0 when nothing failed, 1 when something did, 2 when the machine lacks what it needs. What the machine does not have or does
# not allow (profiler, sanitizer, PyTorch) is noted in the report and is not a failure.
#
# shellcheck disable=SC2317  # functions that are exported to a bash of their own
set -u
cd "${0%/*}/.." || exit 2
budget=530     # seconds, the build included
refuse() {
    echo "gpu_check.sh: $*; nothing was built or written" >&2
    exit 2
}

# ------------------------------------------------------------------------------------------------------------------ GPU and toolkit

export CUDA_DEVICE_ORDER=PCI_BUS_ID     # CUDA's first GPU is nvidia-smi's
command -v nvidia-smi >/dev/null || refuse "no GPU here (no nvidia-smi); run it on a machine with an NVIDIA GPU and CUDA's toolkit"
ask() { nvidia-smi -i 0 --query-gpu="$1" --format=csv,noheader 2>&1; }
gpu=$(ask name) || refuse "no GPU here (nvidia-smi: ${gpu%%$'\n'*}); run it on a machine with an NVIDIA GPU and CUDA's toolkit"
capability=$(ask compute_cap)
[[ $capability =~ ^[0-9]+\.[0-9]+$ ]] || refuse "nvidia-smi does not tell the compute capability of $gpu, but: ${capability%%$'\n'*}"
((${capability%.*} >= 8)) || refuse "$gpu has compute capability $capability; the kernels need 8.0 or more"
nvcc=${NVCC:-nvcc}     # make exports an NVCC given on its command line
[[ $nvcc != */* ]] || PATH=$PATH:${nvcc%/*}     # the toolkit's other programs are there too
PATH=$PATH:${CUDA_HOME:-/usr/local/cuda}/bin
command -v "$nvcc" >/dev/null || refuse "$gpu is here, but no $nvcc, neither in PATH nor in ${CUDA_HOME:-/usr/local/cuda}/bin; install CUDA's toolkit or set CUDA_HOME or NVCC"
arch=sm_${capability/./}
[ "$capability" != 9.0 ] || arch=sm_90a     # wgmma and setmaxnreg need the architecture-specific target

# ---------------------------------------------------------------------------------------------------------------- running, reporting

logs=build/gpu-check
rm -rf "$logs" && mkdir -p "$logs" dev/results
slug=$(tr '[:upper:]' '[:lower:]' <<<"$gpu" | sed -E 's/[^a-z0-9]+/-/g; s/^-|-$//g')
report=dev/results/$slug.md
status=0
declare -A pids
trap 'kill "${pids[@]}" ${sampler:+"$sampler"} 2>/dev/null; say "Stopped after $SECONDS s."; exit 1' INT TERM

# Prints, and appends to the report.
say() { printf '%s\n' "$*" | tee -a "$report"; }
bad() { status=1 && say "$*"; }
left() { echo $((budget - SECONDS)); }

# start NAME SECONDS COMMAND...: starts the command, with a limit of SECONDS or of the time left; its output goes to $logs/NAME.log.
start() {
    local name=$1 limit=$2
    shift 2
    (($(left) >= limit)) || limit=$(left)
    : >"$logs/$name.log"
    if ((limit < 5)); then
        echo "left 0" >"$logs/$name.end"
        return
    fi
    (
        begin=$SECONDS
        timeout -k 3 "$limit" "$@" >"$logs/$name.log" 2>&1 </dev/null &
        trap 'kill $!; exit 1' TERM
        wait $!
        code=$?
        ((code != 124 && code != 137)) || code="time"
        echo "$code $((SECONDS - begin))" >"$logs/$name.end"
    ) &
    pids[$name]=$!
}

# finish NAME: waits for it. Sets $code: its exit code, `time` after a timeout, `left` when no time was left to start it; and $took: seconds.
finish() {
    [ -z "${pids[$1]:-}" ] || wait "${pids[$1]}"
    read -r code took <"$logs/$1.end"
}
run() {
    start "$@"
    finish "$1"
}

# $code in words.
verdict() {
    case $code in
        0) echo "fine" ;;
        time) echo "not done after $took s" ;;
        left) echo "left out: no time left" ;;
        *) echo "**failed** (exit code $code; $logs/$1.log)" ;;
    esac
}
quote() { say '```' && cat "$1" >>"$report" && cat "$1" && say '```'; }
# The errors in a log: the tests that failed, or else its last lines. The report is kept longer than the logs.
complain() {
    say ""
    say "$1:"
    grep -E '^TEST CASE: |ERROR: |^  values: ' "$2" | awk '!said[$0]++' | cut -c 1-300 | head -n 12 >"$logs/errors"
    [ -s "$logs/errors" ] || tail -n 5 "$2" | cut -c 1-300 >"$logs/errors"
    quote "$logs/errors"
}

# ------------------------------------------------------------------------------------------------------------------------ the machine

: >"$report"
say "# $gpu"
say ""
say "Written by \`make gpu-check${THIRD_PARTY:+ THIRD_PARTY=$THIRD_PARTY}\` (dev/gpu_check.sh) as it ran."
say ""
COMMIT=${COMMIT:-$(git describe --always --dirty 2>/dev/null || echo unknown)}
say "- date: $(date -u '+%Y-%m-%d %H:%M UTC'); commit: $COMMIT"
say "- GPU: $gpu, $(ask memory.total), driver $(ask driver_version), compute capability $capability, built for $arch"
say "- clocks: $(ask clocks.max.sm) at most, memory $(ask clocks.max.mem); power limit $(ask power.limit)"
say "- CUDA: $("$nvcc" --version | sed -n 's/.*release \([0-9.]*\).*/\1/p'); g++ $(g++ -dumpfullversion 2>/dev/null); $(nproc) processors"
say ""

# -------------------------------------------------------------------------------------------------------------------------- the build

say "## Build and tests"
say ""
say "| what | result | seconds |"
say "|---|---|--:|"
# Two makes at once: each precision has folders of its own, and build/commit gets the same text from both.
for p in bf16 fp32; do
    targets="build/cuda-$p/tests"
    [ $p = fp32 ] || targets+=" build/cuda-$p/train_gpt build/cuda-$p/bench build/cuda-$p/bench_ops build/cuda-$p/comm_worker"
    # shellcheck disable=SC2086
    start "build-$p" 300 make --no-print-directory -j"$(nproc)" DEVICE=cuda ARCH="$arch" PRECISION=$p PLAIN=build/plain-$p COMMIT="$COMMIT" $targets
done
# torch.compile takes minutes: it runs while nvcc does, and fills a cache for the benchmark.
if command -v python3 >/dev/null; then
    run torch-version 120 python3 -c 'import torch; print(torch.__version__)'   # the first import reads gigabytes
    torch=$code
    torch_verdict=$(verdict torch-version)
    export TORCHINDUCTOR_CACHE_DIR=$PWD/$logs/inductor
    [ "$torch" != 0 ] || start torch-warm 240 python3 dev/bench_torch.py --warm
fi
built=()
for p in bf16 fp32; do
    finish build-$p
    if [ "$code" = 0 ]; then built+=("$p"); else status=1; fi
    say "| build, $p | $(verdict build-$p) | $took |"
done
build_errors() {
    say ""
    for p in bf16 fp32; do
        [[ " ${built[*]} " == *" $p "* ]] || ! grep -m 5 -E 'error|Error|\*\*\*|^setup: ' "$logs/build-$p.log" >"$logs/errors" || quote "$logs/errors"
    done
}
if [ ${#built[@]} = 0 ]; then
    build_errors
    ! grep -qE '(nlohmann|CLI|doctest|xxhash).*: No such file|^setup: not here' "$logs"/build-*.log ||
        say "Headers are missing: make deps installs them, or names their packages; or say where they lie: make gpu-check THIRD_PARTY=dir."
    say "Nothing was built, so nothing was run."
    exit 1
fi

# -------------------------------------------------------------------------------------------------------------------------- the tests

# One process per suite: a CUDA error sticks until the process ends, and a kernel may hang; neither must affect other suites.
# Adds a line `PRECISION SUITE CODE` to $logs/tests.lines.
test_suite() {
    local code limit=$((deadline - EPOCHSECONDS))
    ((limit >= 5)) || return 0
    ((limit <= 75)) || limit=75     # a suite takes seconds
    timeout -k 2 "$limit" "build/cuda-$1/tests" "--source-file=*/$2.cpp" >"$logs/tests-$1-$2.log" 2>&1 </dev/null
    code=$?
    ((code != 124 && code != 137)) || code="time"
    echo "$1 $2 $code" >>"$logs/tests.lines"
}
export -f test_suite
export logs
export OMP_WAIT_POLICY=passive     # many processes share the processors: waiting threads must not spin
for source in test/*.cpp test/{ops,text,device,io}/*.cpp; do
    suite=$(basename "$source" .cpp)
    [[ ! -e $source || $suite == main || ",${1:-}," == *",*$source,"* ]] || printf '%s\n' "$suite"
done >"$logs/suites"
for p in "${built[@]}"; do sed "s/^/$p /" "$logs/suites"; done >"$logs/tests.todo"
: >"$logs/tests.lines"
limit=$(($(left) < 130 ? $(left) : 130))
export deadline=$((EPOCHSECONDS + limit - 5))
run tests "$limit" xargs -a "$logs/tests.todo" -P "$(nproc)" -L 1 bash -c 'test_suite "$@"' _
tests_took=$took
bad_suites=()
for p in "${built[@]}"; do
    # A suite that was killed has no code; one without a summary has crashed.
    failed=$(awk -v p="$p" 'FILENAME == ARGV[1] {if ($1 == p) code[$2] = $3; next} $1 == p && code[$2] != "0" {print $2, code[$2]}' "$logs/tests.lines" "$logs/tests.todo")
    read -r good bad < <(cat "$logs/tests-$p"-*.log | sed -nE 's/.*test cases: *[0-9]+ \| *([0-9]+) passed \| *([0-9]+) failed.*/\1 \2/p' | awk '{good += $1; bad += $2} END {print good + 0, bad + 0}')
    say "| op suites, golden cases and model, $p | $good passed, $bad failed; $([ -z "$failed" ] && echo "fine" || echo "**not fine**") | $tests_took |"
    while read -r suite code; do
        [ -n "$suite" ] || continue
        status=1
        bad_suites+=("$p $suite")
        name=tests-$p-$suite took=$tests_took
        say "| $suite, $p | $(case ${code:-left} in time) echo "not done in time" ;; left) echo "left out: no time left" ;; *) verdict "$name" ;; esac) | |"
    done <<<"$failed"
done
if grep -qs 'built without PCRE2' "$logs"/tests-*.log; then no_encoder=1; fi

# Two runs must give the same bytes, and so must one that stops half-way and is resumed. Their data is a shard made of the source files: each
# token is two ASCII characters, each reduced to its low four bits, so that ids stay below 4096.
shard() {
    local file=$1 bytes
    bytes=$(($(stat -c %s "$file.text") / 2 * 2))
    printf -v count '\\x%02x' $((bytes / 2 & 255)) $((bytes / 2 >> 8 & 255)) $((bytes / 2 >> 16 & 255)) $((bytes / 2 >> 24 & 255))
    # 20240520 = 0x0134d888
    { printf '\x88\xd8\x34\x01\x01\x00\x00\x00%b' "$count" && head -c 1012 /dev/zero && head -c "$bytes" "$file.text"; } >"$file"
    rm "$file.text"
}
check_repeat() {
    local name=$1 train=$2
    shift 2
    local flags=("$@" --data "$logs/tokens.bin" --eval-every 0 --steps 40 --save-every 20) out=$logs/$name last=step_0000040.bin half=step_0000020.bin
    "$train" "${flags[@]}" --out "$out/one" || return 1
    "$train" "${flags[@]}" --out "$out/two" || return 1
    cmp "$out/one/$half" "$out/two/$half" && cmp "$out/one/$last" "$out/two/$last" || return 1
    echo "repeated: the same bytes"
    rm "$out/two/$last"
    "$train" --data "$logs/tokens.bin" --eval-every 0 --resume "$out/two/$half" || return 1
    cmp "$out/one/$last" "$out/two/$last" || return 1
    echo "resumed: the same bytes"
    rm -r "$out"
}
export -f check_repeat
bad_repeats=()
if [[ " ${built[*]} " == *" bf16 "* ]]; then
    cat llmc/*.* llmc/*/*.* test/*.cpp 2>/dev/null | LC_ALL=C tr -d '\200-\377' | LC_ALL=C tr '\000-\177' '\000-\017\000-\017\000-\017\000-\017\000-\017\000-\017\000-\017\000-\017' >"$logs/tokens.bin.text"
    shard "$logs/tokens.bin"
    train=build/cuda-bf16/train_gpt
    start repeat-speedrun 60 bash -c 'check_repeat "$@"' _ speedrun $train --recipe speedrun --depth 4 --width 768 --heads 12 --seq-len 1024 \
        --vocab-size 4096 --device-batch 4 --batch-tokens 8192
    start repeat-nanochat 60 bash -c 'check_repeat "$@"' _ nanochat $train --recipe nanochat --depth 4 --width 768 --heads 6 --seq-len 2048 \
        --vocab-size 4096 --device-batch 2 --batch-tokens 8192
    for recipe in speedrun nanochat; do
        finish repeat-$recipe
        [ "$code" = 0 ] || { status=1 && bad_repeats+=("$recipe"); }
        say "| $recipe: 40 steps twice, and 20 + resume + 20: the same bytes | $(verdict repeat-$recipe) | $took |"
    done
fi
build_errors
for bad in "${bad_suites[@]}"; do complain "${bad#* }, ${bad% *}" "$logs/tests-${bad/ /-}.log"; done
for bad in "${bad_repeats[@]}"; do complain "$bad, repeated and resumed" "$logs/repeat-$bad.log"; done
[ -z "${no_encoder:-}" ] || say "PCRE2 is not on this machine: the tokenizer's encoder and its tests were left out."

# ----------------------------------------------------------------------------------------------------------------- compute-sanitizer

# Nothing is timed here: torch.compile may still be running.
#
# One suite under one tool; adds a line `TOOL SUITE clean|errors|time|refused|failed` to $logs/sanitizer.lines. Each has its own limit before
# the common deadline: the timeout around all of them does not reach the processes that an inner timeout has started.
sanitize() {
    local tool=$1 suite=$2 log=$logs/$1-$2.log code outcome limit=$((deadline - EPOCHSECONDS))
    ((limit >= 5)) || return 0
    ((limit <= 60)) || limit=60
    timeout -k 2 "$limit" compute-sanitizer --tool "$tool" --error-exitcode 9 --report-api-errors no build/cuda-bf16/tests "--source-file=*/$suite.cpp" >"$log" 2>&1 </dev/null
    code=$?
    if grep -qE 'Device not supported|Internal Sanitizer Error|Unable to (initialize|attach|find)|Failed to (initialize|attach)' "$log"; then outcome=refused
    elif ((code == 0)); then outcome=clean
    elif ((code == 9)); then outcome=errors
    elif ((code == 124 || code == 137)); then outcome="time"
    else outcome=failed
    fi
    echo "$tool $suite $outcome" >>"$logs/sanitizer.lines"
}
export -f sanitize

say ""
say "## compute-sanitizer over the op suites, bf16"
say ""
if [[ " ${built[*]} " != *" bf16 "* ]]; then
    say "Left out: the bf16 build failed."
elif ! command -v compute-sanitizer >/dev/null; then
    say "compute-sanitizer is not on this machine."
else
    suites=()
    for source in llmc/*/*.cu; do
        suite=${source#llmc/} suite=${suite%.cu}
        [ ! -e "test/$suite.cpp" ] || suites+=("${suite#*/}")
    done
    : >"$logs/sanitizer.lines"
    for tool in memcheck racecheck synccheck initcheck; do printf "$tool %s\n" "${suites[@]}"; done >"$logs/sanitizer.todo"
    limit=$(($(left) - 210))     # 210 s are for the benchmarks
    ((limit <= 110)) || limit=110
    export deadline=$((EPOCHSECONDS + limit - 5))
    run sanitizer $limit xargs -a "$logs/sanitizer.todo" -P "$((($(nproc) + 1) / 2))" -L 1 bash -c 'sanitize "$@"' _
    say "| tool | clean | errors | others |"
    say "|---|---|---|---|"
    for tool in memcheck racecheck synccheck initcheck; do
        clean=$(awk -v t=$tool '$1 == t && $3 == "clean" {print $2}' "$logs/sanitizer.lines" | sort | paste -sd ' ')
        errors=$(awk -v t=$tool '$1 == t && $3 == "errors" {print $2}' "$logs/sanitizer.lines" | sort | paste -sd ' ')
        others=$(awk -v t=$tool '$1 == t && $3 == "time" {print $2 ": not done in time"}
                                 $1 == t && $3 == "refused" {print $2 ": the tool does not run on this machine"}
                                 $1 == t && $3 == "failed" {print $2 ": the tests failed under it"}' "$logs/sanitizer.lines" | sort | paste -sd ';')
        rest=$(awk -v t=$tool 'FILENAME == ARGV[1] {done[$1 " " $2] = 1; next} $1 == t && !done[$1 " " $2] {print $2}' "$logs/sanitizer.lines" "$logs/sanitizer.todo" | sort | paste -sd ' ')
        say "| $tool | $clean | $errors | $others${rest:+${others:+; }no time left: $rest} |"
    done
    if grep -qE ' (errors|failed)$' "$logs/sanitizer.lines"; then
        status=1
        say ""
        read -r tool suite _ < <(grep -E ' (errors|failed)$' "$logs/sanitizer.lines")
        grep -m 8 -E '^=========' "$logs/$tool-$suite.log" >"$logs/errors"
        say "The first of $tool in $suite:"
        quote "$logs/errors"
    elif grep -q ' refused$' "$logs/sanitizer.lines"; then
        say ""
        read -r tool suite _ < <(grep ' refused$' "$logs/sanitizer.lines")
        grep -m 2 -hE 'not supported|Sanitizer Error|Unable|Failed to' "$logs/$tool-$suite.log" >"$logs/errors"
        quote "$logs/errors"
    fi
fi

# --------------------------------------------------------------------------------------------------------------------- the benchmarks

[ -z "${pids[torch-warm]:-}" ] || finish torch-warm   # from here on times are measured
if [[ " ${built[*]} " == *" bf16 "* ]]; then
    say ""
    say "## Training step"
    say ""
    attention=()
    if [[ ${capability%.*} = 9 && " ${bad_suites[*]} " == *" bf16 attention "* ]]; then
        attention=(--mma-sync)
        say "Attention failed its tests: the measurements below use the kernels for all GPUs instead of Hopper's own."
        say ""
    fi
    nvidia-smi -i 0 --query-gpu=clocks.sm,power.draw,temperature.gpu --format=csv,noheader,nounits -lms 500 >"$logs/clocks.log" 2>/dev/null &
    sampler=$!
    run bench 90 build/cuda-bf16/bench "${attention[@]}" speedrun124M nanochat-d12
    kill $sampler 2>/dev/null
    wait $sampler 2>/dev/null
    sampler=
    quote "$logs/bench.log"
    [ "$code" = 0 ] || bad "The benchmark of the step: $(verdict bench)."
    say ""
    say "Sampled twice a second while it ran: SM clock $(sort -n "$logs/clocks.log" | awk -F', ' 'NF == 3 {c[++n] = $1} END {if (n) print c[1], "to", c[n], "MHz, median", c[int((n + 1) / 2)]; else print "not told"}');" \
        "power $(awk -F', ' 'NF == 3 && $2 + 0 > most {most = $2} END {print most + 0}' "$logs/clocks.log") W at most."
    for model in speedrun124M nanochat-d12; do
        say ""
        say "## Ops of $model"
        say ""
        run "ops-$model" 60 build/cuda-bf16/bench_ops $model "${attention[@]}" --markdown
        tee -a "$report" <"$logs/ops-$model.log"
        [ "$code" = 0 ] || bad "The benchmark of the ops: $(verdict "ops-$model")."
    done
    say ""
    say "GB/s counts the bytes that the op must read and write; the percentages are shares of the ceilings above each table. Kernels that only"
    say "read can exceed 100 % of copy."
fi

# --------------------------------------------------------------------------------------------------------------------- several GPUs

# So far this part has only been tested with stand-ins for the GPU tools (test/gpu_check.cpp), on no machine with several GPUs.
#
# processes COUNT LOG COMMAND...: one process per GPU. The output of each goes to $logs/LOG-<rank>.log.
processes() {
    local count=$1 log=$2 rank process code=0 begun=()
    shift 2
    for ((rank = 0; rank < count; rank++)); do
        RANK=$rank WORLD_SIZE=$count LOCAL_RANK=$rank LOCAL_WORLD_SIZE=$count "$@" >"$logs/$log-$rank.log" 2>&1 &
        begun+=($!)
    done
    for process in "${begun[@]}"; do wait "$process" || code=$?; done
    ((code == 0)) || tail -n 3 "$logs/$log"-*.log
    return "$code"
}
# several PARTS: training steps of speedrun124M on 1, 2, ... PARTS GPUs. Prints a line for each: how many GPUs, and the median time of a step in ms.
several() {
    local parts=$1 count last=step_0000012.bin out=$logs/several
    MEET=$logs/meet DEADLINE=30 processes "$parts" worker build/cuda-bf16/comm_worker contract || return 1
    for ((count = 1; count <= parts; count *= 2)); do
        processes "$count" "several-$count" build/cuda-bf16/train_gpt --recipe speedrun --depth 12 --width 768 --heads 12 --seq-len 1024 --vocab-size 50304 --device-batch 16 \
            --batch-tokens $((32768 * parts)) --data "$logs/tokens.bin" --eval-every 0 --steps 12 --save-every 12 --parts "$parts" --meet "$logs/meet" --deadline 60 \
            --out "$out/$count" || return 1
        cmp "$out/1/$last" "$out/$count/$last" || return 1
        [ "$count" = 1 ] || rm -r "${out:?}/$count"
        sed -nE 's/^step .* ms ([0-9.]+).*/\1/p' "$logs/several-$count-0.log" | tail -n +4 | sort -n | awk -v count="$count" '{ms[NR] = $1} END {print count, ms[int((NR + 1) / 2)]}'
    done
    rm -r "$out"
}
export -f processes several

gpus=$(nvidia-smi -L 2>/dev/null | grep -c '^GPU')
say ""
say "## Several GPUs"
say ""
if ((gpus < 2)); then
    say "This machine has one GPU: nothing was run on several."
elif [[ " ${built[*]} " != *" bf16 "* ]]; then
    say "Left out: the bf16 build failed."
else
    parts=1
    while ((2 * parts <= gpus)); do parts=$((2 * parts)); done
    run several 120 bash -c 'several "$@"' _ $parts
    say "speedrun124M, $((32768 * parts)) tokens a step in $parts parts; the checkpoint on any number of GPUs has the same bytes as on one: $(verdict several)."
    if grep -qE '^[0-9]+ [0-9.]+$' "$logs/several.log"; then
        say ""
        say "| GPUs | ms per step, median | speedup | share of a step lost to communication and serial work |"
        say "|--:|--:|--:|--:|"
        awk 'NF == 2 && $1 + 0 > 0 && $2 + 0 > 0 {
            if ($1 == 1) one = $2
            printf "| %d | %.1f | %.2f | %.1f %% |\n", $1, $2, one / $2, 100 * (1 - one / ($1 * $2))
        }' "$logs/several.log" | tee -a "$report"
    fi
    [ "$code" = 0 ] || { status=1 && complain "Last lines of its log" "$logs/several.log"; }
fi

# ------------------------------------------------------------------------------------------------------------------------- PyTorch

say ""
say "## The same models in compiled PyTorch (dev/bench_torch.py)"
say ""
if [ -z "${torch:-}" ]; then
    say "There is no python3 on this machine."
elif [[ $torch == time || $torch == left ]]; then
    say "import torch: $torch_verdict."
elif [ "$torch" != 0 ]; then
    say "python3 has no torch here ($(tail -n 1 "$logs/torch-version.log"))."
else
    # One process per part, so that a timeout of one leaves the others.
    for part in attention speedrun124M nanochat-d12; do
        run "torch-$part" 200 python3 dev/bench_torch.py $part
        grep -E '^(torch|bench_torch)' "$logs/torch-$part.log" >"$logs/torch.short" && quote "$logs/torch.short"
        [ "$code" = 0 ] || say "$part: $(verdict "torch-$part")."
        [ "$code" = 0 ] || [ -s "$logs/torch.short" ] || complain "Last lines of its log" "$logs/torch-$part.log"
    done
fi

# -------------------------------------------------------------------------------------------------------------------------- the aims

# Taken from the output above. A kernel counts as memory-bound if its share of the copy bandwidth was printed, and no FLOP/s.
aims() {
    cat "$logs"/bench.log "$logs"/ops-*.log "$logs"/torch-*.log 2>/dev/null | awk '
        function row(aim, measured, reached) {printf "| %s | %s | %s |\n", aim, measured, reached ? "reached" : "missed"}
        /^step / {if ($7 > rate[$2]) rate[$2] = $7; if ($(NF) == "device_peak_flops" && $(NF - 3) > share[$2]) share[$2] = $(NF - 3)}
        /^torch .* step / && $7 == "ms" {if ($8 > torch[$2]) torch[$2] = $8}
        /^torch attention (flash|flex) .* us, / {
            shape = $5; gsub(/x/, " x ", shape)
            at[++n] = "attention_" $4 "|" shape ", window " ($7 + 0)
            way[n] = $3; theirs[n] = $8
        }
        /^\| [a-z]/ {
            split($0, cell, / *\| */)
            if (cell[2] ~ /^attention_/ && !((cell[2] "|" cell[3]) in us)) us[cell[2] "|" cell[3]] = cell[4]
            if (cell[6] != "" && cell[7] == "") {kernels++; if (cell[6] + 0 >= 85) fast++; else slow = slow (slow ? ", " : "") cell[2] " " cell[3] " " cell[6]}
        }
        END {
            if ("speedrun124M" in rate) row("speedrun124M: 600,000 tok/s on an H200", rate["speedrun124M"] " tok/s", rate["speedrun124M"] >= 600000)
            if ("nanochat-d12" in share) row("nanochat-d12: 55 % of the dense bf16 peak", share["nanochat-d12"] " %", share["nanochat-d12"] >= 55)
            for (i = 1; i <= n; i++) if (at[i] in us) {
                name = at[i]; sub(/\|/, " ", name); times = us[at[i]] / theirs[i]
                row(name ": within 1.3 times the time of PyTorch, " way[i], sprintf("%.2f times (%.1f us and %.1f us)", times, us[at[i]], theirs[i]), times <= 1.3)
            }
            if (kernels) row("memory-bound kernels: 85 % of the copy bandwidth", (fast + 0) " of " kernels (slow ? "; not " slow : ""), fast == kernels)
            models = split("speedrun124M nanochat-d12", model, " ")
            for (i = 1; i <= models; i++) if (model[i] in rate && model[i] in torch)
                row(model[i] ": as fast as compiled PyTorch", sprintf("%.2f times its tok/s", rate[model[i]] / torch[model[i]]), rate[model[i]] >= torch[model[i]])
        }'
}
aims >"$logs/aims"
if [ -s "$logs/aims" ]; then
    say ""
    say "## Aims"
    say ""
    say "| aim | measured here | |"
    say "|---|---|---|"
    tee -a "$report" <"$logs/aims"
fi

# ---------------------------------------------------------------------------------------------------------------------- the profiler

say ""
say "## Memory traffic of the kernels of nanochat-d12, by ncu"
say ""
if [[ " ${built[*]} " != *" bf16 "* ]]; then
    say "Left out: the bf16 build failed."
elif ! command -v ncu >/dev/null; then
    say "ncu is not on this machine."
else
    metrics=gpu__time_duration.sum,dram__bytes.sum,sm__throughput.avg.pct_of_peak_sustained_elapsed,sm__warps_active.avg.pct_of_peak_sustained_active,launch__registers_per_thread
    most=80
    run ncu 90 ncu --clock-control none --metrics $metrics --kernel-id '::regex:.:2' --launch-count $most --kill yes --csv --log-file "$logs/ncu.csv" --page raw \
        --print-units base build/cuda-bf16/bench_ops nanochat-d12
    # A header line, a line of units, then the kernels; every field is quoted, and numbers have commas between thousands.
    awk -F'","' '
        /^"ID"/ {for (i = 1; i <= NF; i++) {name = $i; gsub(/"/, "", name); at[name] = i}; next}
        !at["gpu__time_duration.sum"] || !/^"[0-9]/ {next}
        function value(what, text) {text = $at[what]; gsub(/[",]/, "", text); return text + 0}
        {
            # void name<(int)4, (bool)1>(float *): no types of template arguments, no parameters
            kernel = $at["Kernel Name"]; sub(/^void /, "", kernel); gsub(/(<unnamed>|\(anonymous namespace\))::/, "", kernel); gsub(/\([A-Za-z0-9_: ]+\)/, "", kernel); sub(/\(.*/, "", kernel); gsub(/\|/, "/", kernel)
            time = value("gpu__time_duration.sum"); bytes = value("dram__bytes.sum")
            if (time > 0) printf "| %s | %.1f | %.1f | %.0f | %.0f %% | %.0f %% | %d |\n", kernel, time / 1e3, bytes / 1e6, bytes / time,
                value("sm__throughput.avg.pct_of_peak_sustained_elapsed"), value("sm__warps_active.avg.pct_of_peak_sustained_active"), value("launch__registers_per_thread")
        }' "$logs/ncu.csv" >"$logs/ncu.rows" 2>/dev/null
    if [ -s "$logs/ncu.rows" ]; then
        say "The second call of each kernel, with clocks not locked. SM: utilization of the busiest unit of the SMs; warps: occupancy."
        say ""
        say "| kernel | us | MB of DRAM traffic | GB/s | SM | warps | registers |"
        say "|---|--:|--:|--:|--:|--:|--:|"
        tee -a "$report" <"$logs/ncu.rows"
        if (($(wc -l <"$logs/ncu.rows") >= most)); then say "ncu stopped after $most kernels, as it was told."
        elif [ "$code" != 0 ]; then say "The rest: $(verdict ncu)."
        fi
    else
        say "ncu measured nothing ($(verdict ncu)): $(cat "$logs/ncu.csv" "$logs/ncu.log" 2>/dev/null | grep -m 1 -E '==(ERROR|WARNING)==|rror')"
    fi
fi

say ""
say "Done after $SECONDS s: $([ $status = 0 ] && echo "nothing failed" || echo "something **failed**")."
exit $status
