#!/bin/bash
# dev/run_tests.sh WHAT...: builds tests, runs them, prints the progress, and as the last line the sum of their counts. WHAT:
#   cpu, cuda   the suites on that device, in both precisions. ONCE: the source files of suites that run the programs; these run once, in the
#               precision PROGRAMS_IN, which the programs are built for
#   avx2        given before the others: they test a build with ISA=avx2
#   isa         op suites, golden cases and make run SMOKE=1 in a build for AVX2, on any processor
#   emulator    op suites and golden cases with the CUDA files on the emulator, and whole training steps compared with the CPU's; built while
#               the suites of cpu or cuda run
#   faults      faults planted in the CUDA files, which those suites must find
#   nvcc        the CUDA files compiled by nvcc: what it reports, and the error of a GPU program on a machine without a GPU
# Before the counts stands a line for each failure, which begins with "failed: ".
# SMOKED=1: make run SMOKE=1 has already been run. Variables of make, such as ISA=avx2, are inherited by the makes below.
set -u
make="make --no-print-directory"
processors=$(nproc)
status=0 passed=0 failed=0 skipped=0
failures=()   # their lines
titles=() commands=()   # of the parts, which run one after another
kinds=() logs=() jobs=()   # of the jobs, which run in parallel within a part

# part TITLE COMMAND...: adds a part.
part() {
    titles+=("$1")
    commands+=("$(printf '%q ' "${@:2}")")
}

# fail WHY: counts a failure that no suite counts.
fail() {
    echo "run_tests.sh: $1" >&2
    failures+=("failed: $1")
    status=1 failed=$((failed + 1))
}

# build GOAL...: ends the script if it fails.
build() {
    $make -j$((processors > 2 ? processors : 2)) "$@" && return
    fail "$make $* failed"
    finish
}

# counted LOG CODE: adds the counts in the last line of a log, and its lines of failures.
counted() {
    local counts p f s
    counts=$(tail -n 1 "$1" | sed -nE 's/^([0-9]+) passed, ([0-9]+) failed, ([0-9]+) skipped$/\1 \2 \3/p')
    read -r p f s <<<"${counts:-0 0 0}"
    passed=$((passed + p)) failed=$((failed + f)) skipped=$((skipped + s))
    if [ "$f" != 0 ]; then
        status=1
        mapfile -t -O ${#failures[@]} failures < <(sed -n "s|^failed: |&$1: |p" "$1")
    fi
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

# job KIND LOG COMMAND...: adds a job for side_by_side. KIND is the function that judges LOG and the exit code: counted, needed (a build that the
# rest depends on), or other_order.
job() {
    kinds+=("$1")
    logs+=("$2")
    jobs+=("$(printf '%q ' "${@:3}")")
}
needed() { [ "$2" = 0 ] || { fail "building failed (above)" && broken=1; }; }
other_order() { :; }   # its output is compared later

# side_by_side: runs the jobs in the order given, as many at a time as there are processors. When a job ends, its whole log is printed, and counted.
# The longest come first, so that no processor is idle for long at the end.
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

# check COMMAND...: one test, which passes when the command exits with 0.
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

# make run SMOKE=1 in a build for AVX2; then the links at the top point to the usual build again.
smoke_avx2() {
    $make ISA=avx2 DEVICE=cpu PRECISION=fp32 run SMOKE=1
    local code=$?
    $make -s all && return $code
}

# The suites of one device. Those that run the programs, or only handle files, are named in ONCE.
device_suites() {
    local build=build/$1$isa precision programs=${PROGRAMS_IN:-fp32}
    [ "$emulator_beside" = no ] || job needed build/emulator.log build_emulator
    [ -z "${ONCE:-}" ] || job counted "$build-$programs/programs.log" "$build-$programs/tests" "--source-file=$ONCE"
    for precision in fp32 bf16; do
        job counted "$build-$precision/tests.log" "$build-$precision/tests" ${ONCE:+"--source-file-exclude=$ONCE"}
    done
    job counted "$build-fp32/tests_without_pcre2.log" "$build-fp32/tests_without_pcre2" '--test-case=split:*,tokenizer:*'
    OMP_WAIT_POLICY=passive side_by_side   # waiting threads must not spin: other jobs need the processor
}

# With one compiler per processor, although the suites run too: these leave processors idle at times, and end earlier.
build_emulator() {
    $make -j$processors DEVICE=cpu plain && $make -j$processors DEVICE=cpu bf16/emulator_tests fp32/emulator_tests
}

# whole_step PRECISION: training steps on the emulator compared with the CPU's. Where the CPU has none in this precision, the emulator still runs
# its own, to be compared with those in another thread order.
whole_step() {
    local emulator=build/emulator$isa-$1 cpu=build/cpu$isa-$1
    rm -f "$cpu/step.out" "$emulator/step.out"
    "$cpu/step" "$cpu/step.out" || { echo "$cpu/step failed" && return 1; }
    "$emulator/step" "$emulator/step.out" $(ls "$cpu/step.out" 2>/dev/null)
}

# What runs on the emulator, each job on one core: its suites, split into several jobs; whole steps in both precisions, and in bf16 once more with
# blocks and threads in another order.
on_the_emulator() {
    local bf16=build/emulator$isa-bf16 precision folder
    rm -f "$bf16/step.again"
    job counted "$bf16/comm.log" "$bf16/tests" '--source-file=*emulator/comm.cpp'   # in one precision: it only moves bytes. First, because it mostly waits
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
    echo "-- blocks and threads in another order: the same bytes"
    check cmp "$bf16/step.out" "$bf16/step.again"
}

# make's own error message would come after the count, which must be the last line.
planted_faults() { $make DEVICE=cpu PRECISION=bf16 planted_faults 2> >(grep -v '^make.*\*\*\*' >&2); }

# The logs are there once the files are compiled.
spills() { dev/check_spills.sh build/cuda-{bf16,fp32}/{llmc/*,dev/kernels}/*.cu.o.log; }

finish() {
    [ ${#failures[@]} = 0 ] || printf '%s\n' "${failures[@]}"
    echo "$passed passed, $failed failed, $skipped skipped"
    exit $status
}

isa="" emulator_beside=no
for what in "$@"; do
    case $what in
        avx2) isa=-avx2 ;;
        cpu | cuda)
            part "building the programs, and the objects that both precisions share" build all plain
            part "building the suites" build bf16/tests fp32/tests
            [[ " $* " != *" emulator "* ]] || emulator_beside=yes
            part "tests on the $what$([ $emulator_beside = no ] || echo "; meanwhile the emulator is built")" device_suites "$what"
            ;;
        isa)
            if grep -qs avx512f /proc/cpuinfo; then
                part "building for AVX2 (ISA=avx2)" build ISA=avx2 DEVICE=cpu PRECISION=fp32 all build/cpu-avx2-fp32/op_tests
                part "op suites and golden cases for AVX2" suite build/cpu-avx2-fp32/op_tests.log build/cpu-avx2-fp32/op_tests
                part "make run SMOKE=1 for AVX2" check smoke_avx2
            else
                echo "ISA=avx2: this processor has no AVX-512: the native build is one for AVX2, and its fp32 tests are not run again"
                [ "${SMOKED:-}" = 1 ] || part "make run SMOKE=1" check $make run SMOKE=1
            fi
            ;;
        emulator)
            if [ $emulator_beside = no ]; then
                part "building the objects that the emulator shares with the CPU" build DEVICE=cpu plain
                part "building the CUDA files for the emulator, and their suites" build DEVICE=cpu bf16/emulator_tests fp32/emulator_tests
            fi
            part "the CUDA files on the emulator, and whole training steps against the CPU" on_the_emulator
            ;;
        faults) part "faults planted in the CUDA files" suite build/emulator$isa-bf16/faults.log planted_faults ;;
        nvcc)
            part "building with nvcc" build ISA= DEVICE=cuda bf16/cuda_binaries fp32/cuda_binaries
            part "register spills of the CUDA files" check spills
            part "a GPU program on a machine without a GPU" check without_gpu
            ;;
        *) echo "run_tests.sh: WHAT must be avx2, cpu, cuda, isa, emulator, faults or nvcc, not '$what'" >&2 && exit 2 ;;
    esac
done
for ((at = 0; at < ${#titles[@]}; at++)); do
    printf '== [%d/%d] %d:%02d %s\n' $((at + 1)) ${#titles[@]} $((SECONDS / 60)) $((SECONDS % 60)) "${titles[at]}"
    eval "${commands[at]}"
done
printf '== %d:%02d in all\n' $((SECONDS / 60)) $((SECONDS % 60))
finish
