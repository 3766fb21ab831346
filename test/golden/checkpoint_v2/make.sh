#!/bin/bash
# How the file here was made: with programs of commit f4bf0f4 (make DEVICE=cpu PRECISION=fp32), whose folder is $1, from the shard of
# checkpoint_v1. A run from a growth goes on in schedule and optimizer, and another is mixed into it: every key of version 2 is in it.
set -eu
here=$(cd "$(dirname "$0")" && pwd) programs=$(cd "$1" && pwd) work=$(mktemp -d)
shard=$here/../checkpoint_v1/train_000000.bin
cd "$work"
train() { OMP_NUM_THREADS=1 "$programs/train_gpt" --data "$shard" --batch-tokens 32 --device-batch 2 --no-scaling "$@"; }
train --recipe speedrun --depth 1 --width 8 --heads 1 --seq-len 16 --vocab-size 264 --steps 4 --out one
"$programs/grow" one/step_0000004.bin grown.bin --order zero --factor 2
train --init grown.bin --schedule continue --steps 8 --stop-at-step 2 --out two
train --init two/step_0000002.bin --schedule continue --optimizer keep --steps 10 --stop-at-step 2 --out three
train --init two/step_0000002.bin --schedule continue --optimizer keep --steps 10 --stop-at-step 2 --matrix-lr 0.01 --out other
"$programs/stack" --mix 0.75,0.25 three/step_0000002.bin other/step_0000002.bin --out "$here/checkpoint.bin"
rm -r "$work"
