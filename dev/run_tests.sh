#!/bin/bash
# dev/run_tests.sh WHERE [SUITES]: runs the tests that make built in build/WHERE-bf16 and build/WHERE-fp32, and adds up the counts.
# SUITES: source files of those that run the programs, which are run once.
set -u
status=0 passed=0 failed=0

# suite NAME PROGRAM [ARGUMENT...]
suite() {
    local name=$1 program=$2 log=$2.log code counts p f
    shift 2
    echo "== $name"
    "$program" "$@" 2>&1 | tee "$log"
    code=${PIPESTATUS[0]}
    [ "$code" = 0 ] || status=1
    counts=$(sed -nE 's/.*test cases: *([0-9]+) \| *([0-9]+) passed \| *([0-9]+) failed.*/\2 \3/p' "$log")
    if [ -z "$counts" ] || [ "$counts" = "0 0" ]; then
        echo "run_tests.sh: $name ended without a test (exit $code)" >&2
        status=1 counts="0 1"
    fi
    read -r p f <<<"$counts"
    passed=$((passed + p)) failed=$((failed + f))
}

for precision in bf16 fp32; do
    once=()
    [ $precision = bf16 ] || [ -z "${2:-}" ] || once=("--source-file-exclude=$2")
    suite "tests on the $1 in $precision" "build/$1-$precision/tests" "${once[@]}"
done
if [ -x "build/$1-fp32/tests_without_pcre2" ]; then
    suite "what is left of the tokenizer without PCRE2" "build/$1-fp32/tests_without_pcre2" '--test-case=split:*,tokenizer:*'
fi
echo "$passed passed, $failed failed"
exit $status
