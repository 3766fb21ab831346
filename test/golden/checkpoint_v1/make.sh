#!/bin/bash
# How the files here were made: with programs of commit de2fbcc (make DEVICE=cpu PRECISION=fp32), whose folder is $1. The checkpoint is of
# a run that was stopped halfway, from a model that was grown from another: it holds weights, state, data position, tokenizer and lineage.
set -eu
here=$(cd "$(dirname "$0")" && pwd) programs=$(cd "$1" && pwd) work=$(mktemp -d)
cd "$work"
awk 'BEGIN { srand(7); split("the of and a model layer grow stack deep loss token norm head block", w)
     for (d = 0; d < 24; d++) { for (n = 0; n < 30 + rand() * 30; n++) printf "%s%s", w[1 + int(rand() * rand() * 14)], rand() < 0.1 ? ".\n" : " "; print "\n" } }' >text.txt
"$programs/data/tokenize" text.txt --separator $'\n\n' --train-tokenizer 264 --out c
train() { OMP_NUM_THREADS=1 "$programs/train_gpt" --data c/train_*.bin --batch-tokens 32 --device-batch 2 --no-scaling "$@"; }
train --recipe speedrun --lambdas yes --depth 1 --width 8 --heads 1 --seq-len 16 --vocab-size 264 --steps 4 --out one
"$programs/grow" one/step_0000004.bin grown.bin --order 0
train --init grown.bin --steps 6 --save-every 3 --weight-decay 0.1 --out two
cp two/step_0000003.bin "$here/checkpoint.bin"
cp c/*_000000.bin "$here"
rm -r "$work"
