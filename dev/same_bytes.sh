#!/bin/bash
# dev/same_bytes.sh COMMIT: do this tree and COMMIT give the same results, byte for byte? Builds both for the CPU, in fp32, and in bf16 where the
# processor has it, runs the same commands with both, and compares all that they write: checkpoints, safetensors, tokens, logs and
# standard output. It ignores the commit, times and rates, the memory of the program itself, and the list of orders in grow's errors. Exit code 0 when
# nothing differs. For refactoring: run it before the change, and after every step of it.
#   ONLY=PATTERN   the calls whose names match; those whose output others start from (NAME+) always run
set -u
cd "$(dirname "$0")/.." || exit 2
[ $# = 1 ] || { echo "usage: dev/same_bytes.sh COMMIT" >&2 && exit 2; }
commit=$(git rev-parse --verify --quiet "$1^{commit}") || { echo "same_bytes.sh: '$1' is no commit of this repository; git log lists them" >&2 && exit 2; }
top=$PWD work=$PWD/build/same
export OMP_NUM_THREADS=1   # both sides run at the same time
old=$work/tree-$commit
if [ ! -d "$old" ]; then
    rm -rf "$work"/tree-* && mkdir -p "$old.tmp" && git archive "$commit" | tar -x -C "$old.tmp" && mv "$old.tmp" "$old" || exit 2
fi

# The text that the models train on: generated, so that it is the same on every machine.
make_text() {
    awk 'BEGIN { srand(7); split("the of and a model layer grow stack deep loss token norm head block", w)
         for (d = 0; d < 400; d++) { for (n = 0; n < 30 + rand() * 60; n++) printf "%s%s", w[1 + int(rand() * rand() * 14)], rand() < 0.1 ? ".\n" : " "; print "\n" } }'
}

tiny="--depth 3 --width 64 --heads 2 --seq-len 32 --vocab-size 264"
plain="--batch-tokens 128 --device-batch 2 --no-scaling"
text="--data c/train_*.bin --val-data c/val_*.bin --eval-tokens 512"

# call NAME COMMAND...: keeps its output and exit code in NAME.out and NAME.err. train NAME FLAGS...: one run, into the folder NAME.
call() {
    local name=$1
    shift
    [[ $name == ${ONLY:-*} || $name == *+ ]] || return 0
    name=${name%+}
    "$@" >"$name.out" 2>"$name.err"
    echo "exit $?" >>"$name.out"
}
train() { call "$1" bin/train_gpt --out "${1%+}" $text --eval-every 4 "${@:2}"; }

calls() {
    call tokens+ bin/tokenize text.txt --separator $'\n\n' --train-tokenizer 264 --shard-tokens 3000 --out c
    local recipe
    for recipe in nanochat speedrun; do
        local model="--recipe $recipe $tiny"
        train $recipe+ $model $plain --steps 6 --save-every 3
        train $recipe-six $model $plain --steps 9 --warmup-steps 2 --warmdown-ratio 0.4 --seed 5
        call $recipe-resume bin/train_gpt --resume $recipe/step_0000003.bin --data c/train_*.bin --val-data c/val_*.bin --out $recipe-resume --sample-every 2 --sample "a model" \
            --save-every 1
        call $recipe-longer bin/train_gpt --resume $recipe/step_0000003.bin $text --steps 8 --warmdown-steps 3 --out $recipe-longer
        train $recipe-start --init $recipe/step_0000006.bin $plain --steps 4
        train $recipe-rates $model --device-batch 2 --batch-tokens 256 --steps 5 --embedding-lr 0.05 --unembedding-lr 0.003 --matrix-lr 0.01 --scalar-lr 0.1 \
            --weight-decay 0.3 --warmdown-ratio 1.5
        train $recipe-scaled $model --device-batch 2 --param-data-ratio 0.01
        train $recipe-flops $model $plain --total-flops 2e9
        train $recipe-order $model $plain --steps 5 --data-seed 3 --seed 9
        train $recipe-bestfit $model $plain --steps 5 --packing bos-bestfit
        train $recipe-loop $model $plain --steps 5 --coconut-every 2
        train $recipe-loop-next $model $plain --steps 5 --coconut-every 1 --coconut-targets next
        train $recipe-frozen $model $plain --steps 4 --embeddings-from $recipe/step_0000006.bin --seed 3
        call $recipe-frozen-resume bin/train_gpt --resume $recipe-frozen/step_0000004.bin $text --steps 6 --out $recipe-frozen-resume
        local switch
        for switch in "--activation gelu" "--activation relu2" "--tied yes" "--tied no" "--qk-norm yes" "--qk-norm no" "--value-embeds pattern" \
            "--value-embeds none" "--lambdas yes" "--lambdas no" "--norm-wte none" "--norm-wte rms_norm" "--norm-wte layer_norm" "--norm-lm-head none" \
            "--norm-lm-head layer_norm" "--softcap 0" "--softcap 5" "--attn-scale 0.5" "--window-pattern SSL" "--window-pattern S" "--kv-heads 1"; do
            train "$recipe${switch// /-}" $model $plain --steps 3 $switch
        done
        call $recipe-eval bin/train_gpt --init $recipe/step_0000006.bin --eval --val-data c/val_*.bin
        call $recipe-sample bin/train_gpt --init $recipe/step_0000006.bin --sample "the" --sample-tokens 80 --temperature 0.7 --top-k 20
        call $recipe-plan bin/train_gpt --recipe $recipe --plan
        call $recipe-plan-12 bin/train_gpt --recipe $recipe --plan --depth 12 --width 768 --seq-len 1024 --sample-every 5
        call $recipe-plan-own bin/train_gpt --recipe $recipe --plan --depth 5 --vocab-size 4096 --device-batch 1 --kv-heads 1 --window-pattern L
        call $recipe-plan-wide bin/train_gpt --recipe $recipe --plan --depth 1000000
        call $recipe-plan-heads bin/train_gpt --recipe $recipe --plan --depth 3 --width 72
        call $recipe-to bin/convert $recipe/step_0000006.bin $recipe.safetensors
        call $recipe-from bin/convert $recipe.safetensors $recipe.bin
        local order
        for order in stack interleave; do
            call $recipe-grow-$order bin/grow $recipe/step_0000006.bin $recipe-$order.bin --order $order --factor 3
            call $recipe-grow-$order-pattern bin/grow $recipe/step_0000006.bin $recipe-$order-pattern.bin --order $order --factor 2 --value-embeds pattern
        done
        call $recipe-grow-list bin/grow $recipe/step_0000006.bin $recipe-list.bin --order 2,0,1,1 --dry-run
        call $recipe-grow-list-written bin/grow $recipe/step_0000006.bin $recipe-list.bin --order 2,0,1,1
        call $recipe-grow-wrong bin/grow $recipe/step_0000006.bin wrong.bin --order 2,3
        call $recipe-grow-name bin/grow $recipe/step_0000006.bin wrong.bin --order sideways
        train $recipe-grown --init $recipe-stack.bin $plain --steps 3
        local one=$recipe/step_0000006.bin two=$recipe-order/step_0000005.bin
        call $recipe-stack bin/stack $one $two --out $recipe-pair.bin
        call $recipe-stack-all bin/stack $one $two $one --out $recipe-three.bin --use-first-layer --use-last-layer --norm-inter-model rms_norm
        call $recipe-stack-norms bin/stack $one $two --out $recipe-norms.bin --use-first-layer --norm-inter-model layer_norm --norm-wte layer_norm --norm-lm-head none --head first
        call $recipe-stack-last bin/stack $two $one --out $recipe-last.bin --use-last-layer --head last
        train $recipe-stacked --init $recipe-three.bin $plain --steps 3
        call $recipe-stacked-eval bin/train_gpt --init $recipe-norms.bin --eval --val-data c/val_*.bin
    done
    call pair-wrong bin/stack nanochat/step_0000006.bin speedrun/step_0000006.bin --out wrong.bin
    call recipe-wrong bin/train_gpt --plan --recipe gpt5
    call init-wrong bin/train_gpt --init nanochat/step_0000006.bin --recipe speedrun --plan
}

# Removes what differs from one run to the next, or with the commit.
clean() {
    find . -name '*.out' -o -name '*.err' -o -name log.jsonl | xargs sed -i -E \
        -e 's/ ms [0-9.]+ tok\/s [0-9]+ mfu [0-9.]+% eta [0-9:]+//' -e 's/^(peak of matrix products|matmul peak): .*//' -e 's/^[0-9.]+ tok\/s$//' \
        -e 's/^(memory: (program|peak measurement|all|peak of the process)|memory_bytes:).*/\1/' -e 's/^(deepen train_gpt) [^,]*/\1/' \
        -e 's/ in [0-9.]+ s \(.*peak memory.*//' -e 's/^(tokenizer|tokens|trained|shards): .* s.*//' \
        -e "s/(--order is '[^']*', but must be ).*/\1/" \
        -e 's/"commit":"[^"]*"//; s/"(ms|tok_s|mfu)":[0-9.e+-]+//g' -e 's/[0-9.]+ (s|MB\/s)\b//g'
}

differing=0
precisions=fp32
! grep -qsE 'avx512_bf16|amx_bf16' /proc/cpuinfo || precisions+=" bf16"
for precision in $precisions; do
    for side in old new; do
        tree=$top
        [ $side = new ] || tree=$old
        make --no-print-directory -C "$tree" -j2 DEVICE=cpu PRECISION=$precision all >"$work/build.log" 2>&1 || { tail -20 "$work/build.log" >&2 && exit 2; }
        place=$work/$precision-$side
        rm -rf "$place" && mkdir -p "$place/bin" && make_text >"$place/text.txt"
        for program in train_gpt grow stack convert data/tokenize; do cp -L "$tree/$program" "$place/bin/"; done
    done
    for side in old new; do
        (cd "$work/$precision-$side" && calls && clean && rm -rf bin) &
    done
    wait
    failures=$(grep -l '^exit [^02]' "$work/$precision-old"/*.out | wc -l)
    diff -r "$work/$precision-old" "$work/$precision-new" >"$work/$precision.diff" || differing=1
    echo "$precision: $(ls "$work/$precision-old"/*.out | wc -l) calls, $(find "$work/$precision-old" -type f | wc -l) files; $failures ended by a crash;" \
        "$(grep -cE '^(diff|Only|Binary)' "$work/$precision.diff") files differ"
    head -c 4000 "$work/$precision.diff"
done
exit $differing
