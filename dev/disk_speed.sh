#!/bin/bash
# How fast grow and stack write, against reading their input and copying a file of their output's size on the same disk:
#     dev/disk_speed.sh FOLDER [GB]
# OUT has GB (10) gigabytes; FOLDER's disk needs 3.6 times as much. Caches are dropped before each run, which only root may do. Prints a table: the
# seconds of five runs each, their median, the speed as a share of the copy's, and the program's peak memory. Not a part of CI.
set -eu
[ $# -ge 1 ] && [ $# -le 2 ] && [ -d "$1" ] || { echo "usage: dev/disk_speed.sh FOLDER [GB]" >&2; exit 2; }
gigabytes=${2:-10}
[[ $gigabytes =~ ^[1-9][0-9]*$ ]] || { echo "disk_speed: GB is '$gigabytes', but must be a whole number, 1 or more" >&2; exit 2; }
[ -w /proc/sys/vm/drop_caches ] || { echo "disk_speed: only root may drop caches; run it as root" >&2; exit 2; }
for program in train_gpt grow stack; do [ -x ./$program ] || { echo "disk_speed: ./$program is missing; run make" >&2; exit 2; }; done

here=$(mktemp -d "$1/disk_speed.XXXXXX")
trap 'rm -rf "$here"' EXIT
free=$(df --output=avail -B1 "$here" | tail -n 1)
if [ "$free" -lt $((gigabytes * 3600000000)) ]; then
    echo "disk_speed: $1 has $((free / 1000000000)) GB free, but $gigabytes GB need $((gigabytes * 36 / 10)); name another folder, or fewer" >&2
    exit 2
fi

# IN: a model of width 2048 (201 MB per layer) with half of OUT's layers, grown from a model of one layer after one training step.
layers=$(((gigabytes * 1000 / 201 + 1) / 2))
./train_gpt --recipe speedrun --depth 1 --width 2048 --seq-len 8 --vocab-size 264 --data test/golden/checkpoint_v1/train_000000.bin --steps 1 --batch-tokens 8 \
    --out "$here/run" >"$here/log" 2>&1 || { cat "$here/log" >&2; exit 2; }
./grow "$here/run/step_0000001.bin" "$here/in.bin" --order stack --factor "$layers" >"$here/log"
rm -r "$here/run"
in=$here/in.bin out=$here/out.bin
./grow "$in" "$here/file.bin" --order stack --factor 2 >"$here/log"   # of OUT's size

# run NAME COMMAND: adds a line to $here/NAME: milliseconds, and the peak memory that the command printed.
run() {
    rm -f "$out" "$here/copy.bin"
    sync
    echo 3 >/proc/sys/vm/drop_caches
    local begin end
    begin=$(date +%s%N)
    bash -c "$2" >"$here/log"
    end=$(date +%s%N)
    echo "$(((end - begin) / 1000000)) $(sed -n 's/.*peak memory //p' "$here/log")" >>"$here/$1"
}
for ((i = 0; i < 5; i++)); do   # interleaved, so that a disk that slows down does so for all three
    run copy "cat '$in' >/dev/null && cp '$here/file.bin' '$here/copy.bin' && sync '$here/copy.bin'"
    run grow "./grow '$in' '$out' --order stack --factor 2"
    run stack "./stack '$in' '$in' --use-first-layer --use-last-layer --out '$out'"
done

median() { sort -n "$here/$1" | sed -n '3s/ .*//p'; }
echo "OUT: $(stat -c %s "$here/file.bin") bytes, IN: $(stat -c %s "$in") bytes; cat IN, cp and sync of a file of OUT's size, against grow and stack; commit $(git describe --always --dirty)"
printf '%-6s  %-40s  %8s  %6s  %s\n' command 'seconds of each' median speed 'peak memory'
for name in copy grow stack; do
    awk -v name=$name -v median="$(median $name)" -v copy="$(median copy)" '
        { seconds = seconds sprintf("%.2f ", $1 / 1000); if ($2 > peak) { peak = $2; unit = $3 } }
        END { printf "%-6s  %-40s  %8.2f  %5.0f%%  %s\n", name, seconds, median / 1000, 100 * copy / median, peak ? peak " " unit : "-" }' "$here/$name"
done
