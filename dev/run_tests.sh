#!/bin/bash
# dev/run_tests.sh SUITES: runs every test in both precisions (make test builds them) and adds up the counts. SUITES: source files
# of those that run the programs, which are run once.
set -u
status=0 passed=0 failed=0
for precision in bf16 fp32; do
    once=()
    [ $precision = bf16 ] || once=("--source-file-exclude=$1")
    echo "== tests in $precision"
    log=build/cpu-$precision/tests.log
    "build/cpu-$precision/tests" "${once[@]}" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || status=1
    counts=$(sed -nE 's/.*test cases: *[0-9]+ \| *([0-9]+) passed \| *([0-9]+) failed.*/\1 \2/p' "$log")
    if [ -z "$counts" ]; then
        echo "run_tests.sh: the tests in $precision ended without a summary (exit $code)" >&2
        status=1 counts="0 1"
    fi
    read -r p f <<<"$counts"
    passed=$((passed + p)) failed=$((failed + f))
done
echo "$passed passed, $failed failed"
exit $status
