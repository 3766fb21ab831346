#!/bin/bash
# dev/run.sh: the main job (make run). Text to tokens; a shallow model, grown and trained on; the same depth from scratch with the
# same FLOPs; two models on one embedding, stacked; a table, a sample, the curves. SMOKE=1: the same path in seconds.
set -euo pipefail
out=out/run
python=/usr/bin/python3   # the one that Debian's matplotlib is installed for
[ -x "$python" ] || python=python3
if [ "${SMOKE:-}" = 1 ]; then
    out=out/smoke flops=6e10 pair_steps=20 width=64 heads=1 pair_heads=2 batch=1024 rows=4 seq=64 every=10 eval_tokens=16384
else
    flops=2.6e13 pair_steps=130 width=256 heads=2 pair_heads=4 batch=4096 rows=16 seq=256 every=25 eval_tokens=65536
fi
say() { printf '\n== %s\n' "$*"; }
last() { ls "$1"/step_*.bin | tail -n 1; }
part() { awk "BEGIN { printf \"%.6e\", $flops * $1 }"; }

rm -rf "$out"
mkdir -p "$out"
say "the default corpus: C and C++ headers, a tokenizer of 4096, shards"
data/default_corpus.sh corpus --shard-tokens 20481 --overwrite | grep -v '^shard: '   # there are hundreds
data=(--data 'corpus/train_*.bin' --val-data 'corpus/val_*.bin' --eval-every "$every" --eval-tokens "$eval_tokens")
shape=(--width "$width" --seq-len "$seq" --vocab-size 4096 --batch-tokens "$batch" --device-batch "$rows")
# The scaling rules are off: at this size the recipe's own rates do best (dev/LOG.md).
nanochat=(--recipe nanochat --heads "$heads" "${shape[@]}" --no-scaling)
text='template <class T'

say "a shallow model, 2 layers at the width of 4: a quarter of the FLOPs, the rate never falls"
./train_gpt "${nanochat[@]}" --depth 2 --total-flops "$(part 0.25)" --warmdown-ratio 0 "${data[@]}" --data-seed 1 --sample "$text" --out "$out/shallow"
say "grown by 2"
./grow "$(last "$out/shallow")" "$out/grown.bin" --factor 2 --order stack
say "the grown model: the other three quarters, the rate falls from the start"
./train_gpt --init "$out/grown.bin" --batch-tokens "$batch" --device-batch "$rows" --no-scaling --total-flops "$(part 0.75)" --warmdown-ratio 1 "${data[@]}" --data-seed 1 \
    --sample "$text" --out "$out/grown"
say "4 layers from scratch with all of the FLOPs"
./train_gpt "${nanochat[@]}" --depth 4 --total-flops "$flops" "${data[@]}" --data-seed 1 --sample "$text" --out "$out/scratch"
say "two models on one embedding, seeds 1 and 2"
speedrun=(--recipe speedrun --depth 2 --heads "$pair_heads" "${shape[@]}" --steps "$pair_steps" --embedding-lr 0.0036 --matrix-lr 0.0004 "${data[@]}")
./train_gpt "${speedrun[@]}" --seed 1 --data-seed 1 --out "$out/one"
./train_gpt "${speedrun[@]}" --seed 2 --data-seed 2 --embeddings-from "$(last "$out/one")" --out "$out/two"
say "stacked, all layers kept"
./stack "$(last "$out/one")" "$(last "$out/two")" --use-first-layer --use-last-layer --out "$out/stack.bin"
./train_gpt --eval --init "$out/stack.bin" --val-data 'corpus/val_*.bin' --eval-tokens "$eval_tokens" --device-batch "$rows" | tee "$out/stack.eval"

say "results"
"$(dirname "$(readlink -f train_gpt)")/report" "$out"
best=$("$(dirname "$(readlink -f train_gpt)")/report" "$out" | awk '$1 == "grown" || $1 == "scratch" { if (!n || $3 < n) { n = $3; name = $1 } } END { print name }')
say "a sample of the best, $best"
./train_gpt --init "$(last "$out/$best")" --sample "$text" --sample-tokens 200
"$python" dev/plot.py "$out/shallow" "$out/grown" "$out/scratch" "$out/one" "$out/two" -o "$out/curves.png"
say "files"
ls -1 "$out"/*.bin "$out"/*/step_*.bin "$out"/*/log.jsonl "$out/curves.png"
