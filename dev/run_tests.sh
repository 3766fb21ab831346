#!/bin/bash
# dev/run_tests.sh WHERE [SUITES]: runs the tests that make built in build/WHERE-bf16 and build/WHERE-fp32, and adds up the counts.
# SUITES: source files of those that run the programs, which are run once.
set -u
status=0 passed=0 failed=0
for precision in bf16 fp32; do
    once=()
    [ $precision = bf16 ] || [ -z "${2:-}" ] || once=("--source-file-exclude=$2")
    echo "== tests on the $1 in $precision"
    log=build/$1-$precision/tests.log
    "build/$1-$precision/tests" "${once[@]}" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || status=1
    counts=$(sed -nE 's/.*test cases: *([0-9]+) \| *([0-9]+) passed \| *([0-9]+) failed.*/\2 \3/p' "$log")
    if [ -z "$counts" ]; then
        echo "run_tests.sh: the tests on the $1 in $precision ended without a summary (exit $code)" >&2
        status=1 counts="0 1"
    fi
    read -r p f <<<"$counts"
    passed=$((passed + p)) failed=$((failed + f))
done
echo "$passed passed, $failed failed"
exit $status
