#!/bin/bash
# dev/run_tests.sh WHAT...: builds tests, runs them, says how far it is, and adds up their counts, which are the last line.
#   cpu, cuda   the suites on that device, in both precisions; ONCE: source files of suites that run the programs, which are run once, in the
#               precision of these, PROGRAMS_IN
#   avx2        before others: those of a build with ISA=avx2
#   isa         op suite, golden cases and the main job in small as a processor with AVX2 and no more has them
#   emulator    op suite and golden cases with the CUDA files on the emulator, and whole steps against those of the CPU; it is built while the
#               suites of cpu or cuda run
#   faults      faults planted in the CUDA files, which that suite must find
#   nvcc        the CUDA files by CUDA's compiler: what it reported, and what a program for a GPU says where there is none
# SMOKED=1: the main job in small has been run. make's variables, ISA=avx2 for one, reach the makes below by themselves.
set -u
make="make --no-print-directory"
processors=$(nproc)
status=0 passed=0 failed=0 skipped=0
titles=() commands=()   # of the parts
kinds=() logs=() jobs=()   # of what goes side by side in one part

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
    $make -j$((processors > 2 ? processors : 2)) "$@" && return
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

# job KIND LOG COMMAND...: one more of those that side_by_side runs. KIND is what its end means, a function of LOG and exit code: counted,
# needed (a build: without it the rest means nothing), or other_order.
job() {
    kinds+=("$1")
    logs+=("$2")
    jobs+=("$(printf '%q ' "${@:3}")")
}
needed() { [ "$2" = 0 ] || { fail "building failed (above)" && broken=1; }; }
other_order() { :; }   # that its bytes are there is the test

# side_by_side: the jobs in the order in which they were given, as many at a time as there are processors. Each is shown whole, and counted,
# when it ends. The longest come first, so that no processor waits long at the end.
side_by_side() {
    local at=0 ended=0 code process broken=
    local -A job_of=()
    while ((at < ${#jobs[@]} || ${#job_of[@]} > 0)); do
        if [ -z "$broken" ] && ((at < ${#jobs[@]} && ${#job_of[@]} < processors)); then
            eval "${jobs[at]}" >"${logs[at]}" 2>&1 </dev/null &
            job_of[$!]=$at
            at=$((at + 1))
            continue
        fi
        [ ${#job_of[@]} != 0 ] || break
        wait -n -p process
        code=$? ended=$((ended + 1))
        local which=${job_of[$process]}
        unset "job_of[$process]"
        printf -- '-- [%d/%d] %d:%02d %s\n' $ended ${#jobs[@]} $((SECONDS / 60)) $((SECONDS % 60)) "${jobs[which]}"
        cat "${logs[which]}"
        "${kinds[which]}" "${logs[which]}" $code
    done
    kinds=() logs=() jobs=()
    [ -z "$broken" ] || finish
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

# The suites of one device. Those that run the programs, or work with files alone, are named in ONCE.
device_suites() {
    local build=build/$1$isa precision programs=${PROGRAMS_IN:-fp32}
    [ "$emulator_beside" = no ] || job needed build/emulator.log build_emulator
    [ -z "${ONCE:-}" ] || job counted "$build-$programs/programs.log" "$build-$programs/tests" "--source-file=$ONCE"
    for precision in fp32 bf16; do
        job counted "$build-$precision/tests.log" "$build-$precision/tests" ${ONCE:+"--source-file-exclude=$ONCE"}
    done
    job counted "$build-fp32/tests_without_pcre2.log" "$build-fp32/tests_without_pcre2" '--test-case=split:*,tokenizer:*'
    OMP_WAIT_POLICY=passive side_by_side   # threads that wait must not keep others from working
}

# With as many processes as there are processors: the suites beside it leave some idle now and then, and end before it.
build_emulator() {
    $make -j$processors DEVICE=cpu plain && $make -j$processors DEVICE=cpu bf16/emulator_tests fp32/emulator_tests
}

# whole_step PRECISION: steps of the emulator against those of the CPU. Where the CPU has none in this precision, the emulator's are made all
# the same, to be compared with those of the other order.
whole_step() {
    local emulator=build/emulator$isa-$1 cpu=build/cpu$isa-$1
    rm -f "$cpu/step.out" "$emulator/step.out"
    "$cpu/step" "$cpu/step.out" || { echo "$cpu/step failed" && return 1; }
    "$emulator/step" "$emulator/step.out" $(ls "$cpu/step.out" 2>/dev/null)
}

# What runs on the emulator, each job on one core: its suites, in pieces, and whole steps in both precisions, and in bf16 once more with blocks and
# threads in another order.
on_the_emulator() {
    local bf16=build/emulator$isa-bf16 precision folder
    rm -f "$bf16/step.again"
    job counted "$bf16/comm.log" "$bf16/tests" '--source-file=*emulator/comm.cpp'   # once: it sends bytes. It waits more than it works
    job counted build/emulator$isa-fp32/golden.log build/emulator$isa-fp32/tests '--source-file=*golden.cpp'
    for precision in bf16 fp32; do
        folder=build/emulator$isa-$precision
        job counted "$folder/tests.log" "$folder/tests" '--source-file-exclude=*golden.cpp,*ops/attention.cpp,*emulator/comm.cpp,*emulator/processes.cpp'
        job counted "$folder/step.log" whole_step $precision
        job counted "$folder/processes.log" "$folder/tests" '--source-file=*emulator/processes.cpp'
    done
    job other_order "$bf16/step.again.log" env EMULATOR_SEED=2 "$bf16/step" "$bf16/step.again"
    for precision in bf16 fp32; do
        folder=build/emulator$isa-$precision
        job counted "$folder/attention.log" "$folder/tests" '--source-file=*ops/attention.cpp'
    done
    job counted "$bf16/golden.log" "$bf16/tests" '--source-file=*golden.cpp'
    side_by_side
    echo "-- in another order: the same bytes"
    check cmp "$bf16/step.out" "$bf16/step.again"
}

# What make says of a failure would come after the count.
planted_faults() { $make DEVICE=cpu PRECISION=bf16 planted_faults 2> >(grep -v '^make.*\*\*\*' >&2); }

# The logs are there once the files are compiled.
spills() { dev/check_spills.sh build/cuda-{bf16,fp32}/{llmc/*,dev/kernels}/*.cu.o.log; }

finish() {
    echo "$passed passed, $failed failed, $skipped skipped"
    exit $status
}

isa="" emulator_beside=no
for what in "$@"; do
    case $what in
        avx2) isa=-avx2 ;;
        cpu | cuda)
            part "building the programs, and what both precisions share" build all plain
            part "building the suites" build bf16/tests fp32/tests
            [[ " $* " != *" emulator "* ]] || emulator_beside=yes
            part "tests on the $what$([ $emulator_beside = no ] || echo "; the emulator is built beside them")" device_suites "$what"
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
            if [ $emulator_beside = no ]; then
                part "building what the emulator shares with the CPU" build DEVICE=cpu plain
                part "building the CUDA files for the emulator, and their suites" build DEVICE=cpu bf16/emulator_tests fp32/emulator_tests
            fi
            part "the CUDA files on the emulator, and whole steps there and on the CPU" on_the_emulator
            ;;
        faults) part "faults planted in the CUDA files" suite build/emulator$isa-bf16/faults.log planted_faults ;;
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
