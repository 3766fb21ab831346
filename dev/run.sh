#!/bin/bash
# dev/run.sh: the main job (make run). Text to tokens; a shallow model, grown and trained on; the same depth from scratch with the
# same FLOPs; two models on one embedding, stacked; each with several seeds; a table, a sample, the curves.
#
#   MINUTES=n   trains for about n minutes in all (3), on whatever machine
#   RESTART=1   begins again; otherwise what was stopped goes on from its last checkpoints, and what is done is printed again
#   SMOKE=1     the same path in seconds, with fixed FLOPs
#
# Runs do not depend on each other beyond a chain (shallow, grown; one, two, stack), and a model as small as these leaves threads
# waiting for each other: so each run has one thread, and as many chains go side by side as there are cores.
set -euo pipefail
python=/usr/bin/python3   # the one that Debian's matplotlib is installed for
[ -x "$python" ] || python=python3
report=$(dirname "$(readlink -f train_gpt)")/report

say() { printf '\n== %s\n' "$*"; }
fail() {
    echo "run: $1" >&2
    exit "${2:-2}"
}

# ------------------------------------------------------------------------------------------------------------- settings
[[ ${MINUTES:-3} =~ ^[0-9]{1,6}(\.[0-9]+)?$ && ${MINUTES:-3} =~ [1-9] ]] || fail "MINUTES is '$MINUTES', but must be a number above 0: the minutes to train for"
for name in SMOKE RESTART; do
    [[ ${!name:-} =~ ^[01]?$ ]] || fail "$name is '${!name}', but must be 1, or left out"
done

# shallow_part: of the FLOPs of a way, those of the shallow model. pair_part: those of each model of the pair.
if [ "${SMOKE:-}" = 1 ]; then
    out=out/smoke text=(/usr/include/asm-generic) vocab=512 seeds=(1 2) smoke_flops=2e9
    width=32 heads=2 batch=256 rows=4 seq=64 measured=5 save_every=10 evals=4 eval_tokens=2048 sample=40
else
    out=out/run text=(/usr/include/asm-generic /usr/include/c++ /usr/include/linux) vocab=1024 seeds=(1 2 3) smoke_flops=
    width=64 heads=2 batch=1024 rows=8 seq=128 measured=30 save_every=50 evals=8 eval_tokens=32768 sample=200
fi
depth=2 factor=4 shallow_part=0.5 pair_part=0.125
corpus=$out/corpus
prompt='template <class T'
shape=(--width "$width" --heads "$heads" --seq-len "$seq" --vocab-size "$vocab")
steps_of=(--batch-tokens "$batch" --device-batch "$rows")
# The scaling rules are for batches of half a million tokens; these rates are for this size (dev/LOG.md).
nanochat_rates=(--no-scaling --matrix-lr 0.04)
speedrun_rates=(--embedding-lr 0.0036 --matrix-lr 0.0004)
data=(--data "$corpus/train_*.bin" --val-data "$corpus/val_*.bin" --eval-tokens "$eval_tokens")

# Only one at a time in a folder. The programs it starts hold the lock too, so that of a script that was killed none is still writing.
mkdir -p out
exec 9>"$out.lock"
for ((second = 0; ; second++)); do
    ! flock -w 1 9 || break
    [ "$second" != 0 ] || echo "run: waiting for another make run to end, or for what one that was killed has left"
    [ "$second" -lt 60 ] || fail "another make run is at work in $out; wait until it is done, or stop it"
done

# -------------------------------------------------------------------------------------------------------------- signals
chains=()   # processes: the script's, each with a program of its own
child=      # the program that this process waits for

# What a signal does, at any point: every program saves what it has, then the script ends.
stop() {
    trap '' INT TERM HUP
    [ -z "$child" ] || kill -TERM "$child" 2>/dev/null || true
    [ ${#chains[@]} = 0 ] || kill -TERM "${chains[@]}" 2>/dev/null || true
    wait
    [ "$BASHPID" != $$ ] || printf '\nrun: stopped by SIG%s; make run%s goes on from the last checkpoints\n' "$1" "${SMOKE:+ SMOKE=1}" >&2
    exit "$2"
}
trap 'stop INT 130' INT
trap 'stop TERM 143' TERM
trap 'stop HUP 129' HUP

# follow COMMAND...: runs it, so that a signal to this process, and the end of the script, stop it too.
follow() {
    "$@" </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        kill -0 $$ 2>/dev/null || stop KILL 137
        sleep 0.1
    done
    local code=0
    wait "$child" || code=$?
    child=
    return "$code"
}

# ------------------------------------------------------------------------------------------- what was begun, and what not
# A plan holds for one machine, one kind of build and these settings; results of others are not mixed with it.
identity="$("$report" --machine)
settings $(sed -n '/^# ---.* settings$/,/^# Only one at a time/p' "$0" | cksum)"
planned() { sed -n "s/^$1 //p" "$out/plan"; }

begin=yes
if [ ! -e "$out/plan" ]; then
    :
elif [ "${RESTART:-}" = 1 ]; then
    echo "run: RESTART=1: beginning again"
elif [ "$(grep -E '^(precision|processor|settings) ' "$out/plan")" != "$(grep -E '^(precision|processor|settings) ' <<<"$identity")" ]; then
    echo "run: $out is of another processor, build or version of this script ($(planned processor), $(planned precision)): beginning again"
elif [ -n "${MINUTES:-}" ] && [ "$MINUTES" != "$(planned minutes)" ]; then
    echo "run: $out is of MINUTES=$(planned minutes): beginning again"
else
    begin=no
fi
if [ $begin = yes ]; then
    rm -rf "$out"
    mkdir -p "$out"
fi

# ---------------------------------------------------------------------------------------------------------------- text
# Pieces between empty lines are the documents, shuffled: a step of a few rows is of many files, and the loss of one step tells of
# the model, not of the file.
if [ ! -e "$corpus" ]; then
    say "text: C and C++ headers, cut at empty lines, shuffled; a tokenizer of $vocab; shards"
    rm -rf "$corpus.tmp"
    follow data/tokenize "${text[@]}" --separator $'\n\n' --train-tokenizer "$vocab" --out "$corpus.tmp"
    mv "$corpus.tmp" "$corpus"
fi

# ------------------------------------------------------------------------------------------------------------- the plan
cores=$(nproc)
if [[ $(readlink -f train_gpt) == */cuda-* ]]; then
    cores=1   # one device
fi
chain_count=$((3 * ${#seeds[@]}))
side_by_side=$((cores < chain_count ? cores : chain_count))
[ "$side_by_side" = 1 ] || export OMP_NUM_THREADS=1
deep=$((depth * factor))
nanochat=(--recipe nanochat "${shape[@]}" "${steps_of[@]}" "${nanochat_rates[@]}")

# Trains the deep model for some steps in every place at once. Prints peak and speed, in FLOP/s, of the slowest.
measure() {
    local i
    rm -rf "$out/measure"
    mkdir -p "$out/measure"
    for ((i = 1; i <= side_by_side; i++)); do
        follow ./train_gpt "${nanochat[@]}" --depth $deep --steps "$measured" --eval-every 0 "${data[@]}" --out "$out/measure/$i" >"$out/measure/$i.txt" 2>&1 &
        chains+=($!)
    done
    for i in "${chains[@]}"; do wait "$i" || fail "the trainer does not run: $(tail -n 1 "$out"/measure/1.txt)"; done
    chains=()
    for ((i = 1; i <= side_by_side; i++)); do
        awk '/^peak of matrix products/ { peak = $5 * 1e9 } /^flops_per_token/ { flops = $2 }
             /^step / { for (f = 1; f < NF; f++) if ($f == "tok/s" && ++n > 2) rate[++kept] = $(f + 1) * flops }
             END { for (a = 1; a <= kept; a++) for (b = a + 1; b <= kept; b++) if (rate[b] < rate[a]) { t = rate[a]; rate[a] = rate[b]; rate[b] = t }
                   print peak, rate[int((kept + 1) / 2)] }' "$out/measure/$i.txt"
    done | sort -g -k 2 | head -n 1
}

# FLOPs that a place goes through, in FLOPs of a way, when the longest chains begin first.
rounds() {
    awk -v places=$side_by_side -v seeds=${#seeds[@]} -v pair=$pair_part 'BEGIN {
        for (c = 0; c < 3 * seeds; c++) {
            least = 1
            for (p = 2; p <= places; p++) if (load[p] < load[least]) least = p
            load[least] += c < 2 * seeds ? 1 : 2 * pair
        }
        for (p = 1; p <= places; p++) if (load[p] > most) most = load[p]
        print most }'
}

if [ ! -e "$out/plan" ]; then
    say "how fast this machine is"
    read -r peak speed < <(measure)
    minutes=${MINUTES:-3}
    # A seventh of the time is left to evaluations, checkpoints and starting.
    flops=${smoke_flops:-$(awk "BEGIN { printf \"%.2e\", $minutes * 60 * $speed * 6 / 7 / $(rounds) }")}
    printf '%s\nminutes %s\nflops %s\npeak %s\nspeed %s\nplaces %s\n' "$identity" "$minutes" "$flops" "$peak" "$speed" "$side_by_side" >"$out/plan.tmp"
    mv "$out/plan.tmp" "$out/plan"
    rm -rf "$out/measure"
fi
