#!/bin/bash
# dev/run_tests.sh WHAT...: runs tests that make built, and adds up their counts, which are the last line.
#   cpu, cuda   the suites on that device, in both precisions; ONCE: source files of those that run the programs, which are run once
#   emulator    op suite and golden cases with the CUDA files on the emulator, and whole steps against those of the CPU
#   faults      faults planted in the CUDA files, which that suite must find
#   nvcc        what CUDA's compiler reported, and what a program for a GPU says where there is none
set -u
status=0 passed=0 failed=0

# counted NAME LOG CODE: adds the counts that a log ends with.
counted() {
    local counts p f
    counts=$(sed -nE 's/.*test cases: *[0-9]+ \| *([0-9]+) passed \| *([0-9]+) failed.*/\1 \2/p; s/^([0-9]+) passed, ([0-9]+) failed$/\1 \2/p' "$2" | tail -n 1)
    if [ -z "$counts" ] || [ "$counts" = "0 0" ]; then
        echo "run_tests.sh: $1 ended without a test (exit $3)" >&2
        counts="0 1"
    fi
    read -r p f <<<"$counts"
    [ "$3" = 0 ] && [ "$f" = 0 ] || status=1
    passed=$((passed + p)) failed=$((failed + f))
}

# suite NAME LOG COMMAND...
suite() {
    local name=$1 log=$2
    shift 2
    echo "== $name"
    "$@" 2>&1 | tee "$log"
    counted "$name" "$log" "${PIPESTATUS[0]}"
}

# ran FILE: what a program that ran in the background said, with its exit code.
ran() {
    cat "$1"
    return "$(<"$1.rc")"
}

# check NAME COMMAND...: one test, passed when the command is content.
check() {
    echo "== $1"
    if "${@:2}"; then
        passed=$((passed + 1))
    else
        status=1 failed=$((failed + 1))
    fi
}

without_gpu() {
    local says code
    says=$(CUDA_VISIBLE_DEVICES='' build/cuda-bf16/bench 2>&1 >/dev/null)
    code=$?
    [ $code = 2 ] && [ "$(wc -l <<<"$says")" = 1 ] && [[ $says == *"no GPU"*"make DEVICE=cpu"* ]] && return
    echo "build/cuda-bf16/bench without a GPU should say so in one line and exit with 2; exit $code: $says"
    return 1
}

another_order() { EMULATOR_SEED=2 build/emulator-bf16/step build/emulator-bf16/step.again && cmp build/emulator-bf16/step.out build/emulator-bf16/step.again; }

for what in "$@"; do
    case $what in
        cpu | cuda)
            for precision in bf16 fp32; do
                once=()
                [ $precision = bf16 ] || [ -z "${ONCE:-}" ] || once=("--source-file-exclude=$ONCE")
                suite "tests on the $what in $precision" "build/$what-$precision/tests.log" "build/$what-$precision/tests" "${once[@]}"
            done
            suite "what is left of the tokenizer without PCRE2" build/$what-fp32/tests_without_pcre2.log build/$what-fp32/tests_without_pcre2 \
                '--test-case=split:*,tokenizer:*'
            ;;
        emulator)   # runs on one core: parts of about the same length, side by side
            parts=(bf16 '' fp32 --source-file=*golden.cpp fp32 --source-file-exclude=*golden.cpp)
            for ((i = 0; i < ${#parts[@]}; i += 2)); do
                build=build/emulator-${parts[i]}
                { "$build/tests" ${parts[i + 1]:+"${parts[i + 1]}"} >"$build/tests.$i" 2>&1; echo $? >"$build/tests.$i.rc"; } &
            done
            wait
            for ((i = 0; i < ${#parts[@]}; i += 2)); do
                build=build/emulator-${parts[i]}
                suite "the CUDA files on the emulator in ${parts[i]} ${parts[i + 1]}" "$build/tests.log" ran "$build/tests.$i"
            done
            for precision in bf16 fp32; do
                build=build/emulator-$precision
                build/cpu-$precision/step build/cpu-$precision/step.out
                suite "whole steps on the emulator and on the CPU in $precision" $build/step.log $build/step $build/step.out build/cpu-$precision/step.out
            done
            check "whole steps in bf16 with blocks and threads in another order: the same bytes" another_order
            ;;
        faults) suite "faults planted in the CUDA files" build/emulator-bf16/faults.log build/emulator-bf16/faults.sh ;;
        nvcc)
            check "registers and local memory of the CUDA files" dev/check_spills.sh build/cuda-{bf16,fp32}/{llmc,dev/kernels}/*.cu.o.log
            check "a program for a GPU where there is none" without_gpu
            ;;
        *) echo "run_tests.sh: cpu, cuda, emulator, faults or nvcc, not '$what'" >&2 && exit 2 ;;
    esac
done
echo "$passed passed, $failed failed"
exit $status
