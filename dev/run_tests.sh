#!/bin/bash
# dev/run_tests.sh WHAT...: builds tests, runs them, says how far it is, and adds up their counts, which are the last line.
#   cpu, cuda   the suites on that device, in both precisions; ONCE: source files of suites that run the programs, which are run once, in the
#               precision of these, PROGRAMS_IN
#   avx2        before others: those of a build with ISA=avx2
#   isa         op suite, golden cases and the main job in small as a processor with AVX2 and no more has them
#   emulator    op suite and golden cases with the CUDA files on the emulator, and whole steps against those of the CPU
#   faults      faults planted in the CUDA files, which that suite must find
#   nvcc        the CUDA files by CUDA's compiler: what it reported, and what a program for a GPU says where there is none
# SMOKED=1: the main job in small has been run. make's variables, ISA=avx2 for one, reach the makes below by themselves.
set -u
make="make --no-print-directory"
status=0 passed=0 failed=0 skipped=0
titles=() commands=()

# part TITLE COMMAND...: one more part of what will be done.
part() {
    titles+=("$1")
    commands+=("$(printf '%q ' "${@:2}")")
}

# fail WHY: a failure where there is no count of tests to tell it.
fail() {
    echo "run_tests.sh: $1" >&2
    status=1 failed=$((failed + 1))
}

# build GOAL...: without it the rest means nothing.
build() {
    $make -j2 "$@" && return
    fail "$make $* failed"
    finish
}

# counted LOG CODE: adds the counts that a log ends with.
counted() {
    local counts p f s
    counts=$(tail -n 1 "$1" | sed -nE 's/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p')
    read -r p f s <<<"${counts:-0 0 0}"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    [ "$f" = 0 ] || status=1
    if [ -z "$counts" ] || ((p + f + s == 0)); then
        fail "$1 ends without a test (exit $2)"
    elif [ "$2" != 0 ] && [ "$f" = 0 ]; then
        fail "$1 counts no failure, but ended with exit $2"
    fi
}

# suite LOG COMMAND...
suite() {
    "${@:2}" 2>&1 | tee "$1"
    counted "$1" "${PIPESTATUS[0]}"
}

# check COMMAND...: one test, passed when the command is content.
check() {
    if "$@"; then
        passed=$((passed + 1))
    else
        fail "$* failed"
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

# The main job in small as a processor with AVX2 has it; the programs at the top are then again those that they were.
smoke_avx2() {
    $make ISA=avx2 DEVICE=cpu PRECISION=fp32 run SMOKE=1
    local code=$?
    $make -s all && return $code
}

# Suites that each run on one core, side by side.
emulator_suites() {
    local parts=(bf16 '' fp32 --source-file=*golden.cpp fp32 --source-file-exclude=*golden.cpp) i log pids=()
    for ((i = 0; i < ${#parts[@]}; i += 2)); do
        "build/emulator$isa-${parts[i]}/tests" ${parts[i + 1]:+"${parts[i + 1]}"} >"build/emulator$isa-${parts[i]}/tests.$i" 2>&1 &
        pids+=($!)
    done
    for ((i = 0; i < ${#parts[@]}; i += 2)); do
        wait "${pids[i / 2]}"
        code=$?
        log="build/emulator$isa-${parts[i]}/tests.$i"
        echo "-- in ${parts[i]} ${parts[i + 1]}"
        cat "$log"
        counted "$log" $code
    done
}

# Both precisions, and bf16 once more with blocks and threads in another order, side by side: each runs on one core. Without the CPU's steps
# the emulator's are made all the same, to be compared with those of the other order.
whole_steps() {
    local precision emulator cpu pids=() again=build/emulator$isa-bf16/step.again
    for precision in bf16 fp32; do
        emulator=build/emulator$isa-$precision cpu=build/cpu$isa-$precision
        rm -f "$cpu/step.out" "$emulator/step.out"
        "$cpu/step" "$cpu/step.out" || fail "$cpu/step failed"
        "$emulator/step" "$emulator/step.out" $(ls "$cpu/step.out" 2>/dev/null) >"$emulator/step.log" 2>&1 &
        pids+=($!)
    done
    rm -f "$again"
    EMULATOR_SEED=2 "build/emulator$isa-bf16/step" "$again" >"$again.log" 2>&1 &
    for precision in bf16 fp32; do
        wait "${pids[0]}"
        code=$?
        pids=("${pids[@]:1}")
        echo "-- in $precision"
        cat "build/emulator$isa-$precision/step.log"
        counted "build/emulator$isa-$precision/step.log" $code
    done
    wait
    echo "-- in another order: the same bytes"
    check cmp "build/emulator$isa-bf16/step.out" "$again"
}

# The logs are there once the files are compiled.
spills() { dev/check_spills.sh build/cuda-{bf16,fp32}/{llmc/*,dev/kernels}/*.cu.o.log; }

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    exit $status
}

isa=""
for what in "$@"; do
    case $what in
        avx2) isa=-avx2 ;;
        cpu | cuda)
            part "building the programs, and what both precisions share" build all plain
            part "building the suites" build bf16/tests fp32/tests
            for precision in bf16 fp32; do
                once=()
                [ $precision = "${PROGRAMS_IN:-$precision}" ] || [ -z "${ONCE:-}" ] || once=("--source-file-exclude=$ONCE")
                part "tests on the $what in $precision" suite build/$what$isa-$precision/tests.log build/$what$isa-$precision/tests "${once[@]}"
            done
            part "what is left of the tokenizer without PCRE2" suite build/$what$isa-fp32/tests_without_pcre2.log build/$what$isa-fp32/tests_without_pcre2 \
                '--test-case=split:*,tokenizer:*'
            ;;
        isa)
            if grep -qs avx512f /proc/cpuinfo; then
                part "building for AVX2 (ISA=avx2)" build ISA=avx2 DEVICE=cpu PRECISION=fp32 all build/cpu-avx2-fp32/op_tests
                part "op suite and golden cases for AVX2" suite build/cpu-avx2-fp32/op_tests.log build/cpu-avx2-fp32/op_tests
                part "the main job in small for AVX2" check smoke_avx2
            else
                echo "ISA=avx2: this processor has no AVX-512, so that the build for it is one for AVX2, and its tests in fp32 are not run again"
                [ "${SMOKED:-}" = 1 ] || part "the main job in small" check $make run SMOKE=1
            fi
            ;;
        emulator)
            part "building the CUDA files for the emulator" build DEVICE=cpu plain
            part "building the CUDA files for the emulator, and their suites" build DEVICE=cpu bf16/emulator_tests fp32/emulator_tests
            part "the CUDA files on the emulator" emulator_suites
            part "whole steps on the emulator and on the CPU" whole_steps
            ;;
        faults) part "faults planted in the CUDA files" suite build/emulator$isa-bf16/faults.log build/emulator$isa-bf16/faults.sh ;;
        nvcc)
            part "building with CUDA's compiler" build ISA= DEVICE=cuda bf16/cuda_binaries fp32/cuda_binaries
            part "registers and local memory of the CUDA files" check spills
            part "a program for a GPU where there is none" check without_gpu
            ;;
        *) echo "run_tests.sh: avx2, cpu, cuda, isa, emulator, faults or nvcc, not '$what'" >&2 && exit 2 ;;
    esac
done
for ((at = 0; at < ${#titles[@]}; at++)); do
    printf '== [%d/%d] %d:%02d %s\n' $((at + 1)) ${#titles[@]} $((SECONDS / 60)) $((SECONDS % 60)) "${titles[at]}"
    eval "${commands[at]}"
done
printf '== %d:%02d in all\n' $((SECONDS / 60)) $((SECONDS % 60))
finish
