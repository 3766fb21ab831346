#!/bin/bash
# dev/check_spills.sh LOG...: reads what ptxas reported when the CUDA files were compiled (build/cuda-*/{llmc/*,dev/kernels}/*.cu.o.log).
# A kernel that uses local memory (spilled registers, arrays), which is as slow as global memory, is an error.
set -u

for log in "$@"; do
    [ -r "$log" ] || { echo "check_spills.sh: $log cannot be read; compile the CUDA files first" >&2; exit 2; }
done
if grep -H 'Potential Performance Loss' "$@"; then
    echo "check_spills.sh: ptxas serialized the wgmma instructions (above): something touches their registers while they are in flight" >&2
    exit 1
fi
found=$(awk '
    /Compiling entry function/ { match($0, /for .sm_[0-9a-z]+/); target = substr($0, RSTART + 5, RLENGTH - 5) }
    /Function properties for/  { name = $NF; kernels++ }
    /bytes stack frame/ && ($1 > 0 || $5 > 0 || $9 > 0) {
        last = split(FILENAME, part, "/")
        print part[2], part[last], target, $1, $5, $9, name
    }
    END { if (kernels == 0) print "none" }' "$@")
if [ "$found" = none ]; then
    echo "check_spills.sh: no report of ptxas in the logs" >&2
    exit 2
fi
status=0
while read -r build file target stack stored loaded name; do
    [ -n "$build" ] || continue
    kernel=$(c++filt "$name") file=${file%.o.log}
    kernel=${kernel#void } kernel=${kernel%%(*}
    echo "spill: $kernel of $file for $target ($build): $stack bytes of local memory, $stored written and $loaded read as spills"
    status=1
done <<<"$found"
exit $status
