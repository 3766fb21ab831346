#!/bin/bash
# dev/run.sh: the whole pipeline (make run). It tokenizes text; trains a shallow model, grows it and trains it on; trains the same depth
# from scratch with the same FLOPs; trains two models on one embedding and stacks them; all with several seeds. Then it prints a table and
# a sample, and draws the curves.
#
#   MINUTES=n   trains for about n minutes in all (3), on any machine: a faster one trains more seeds, not longer, because the answer to
#               the question "grow or train from scratch?" depends on the FLOPs (dev/LOG.md)
#   RESTART=1   starts over; otherwise a run that was stopped goes on from its last checkpoints, and a finished one prints its results again
#   SMOKE=1     the same pipeline in seconds, with fixed FLOPs
#
# A chain is a sequence of runs that depend on each other (shallow, grown; one, two, stack). Models this small do not keep several threads
# busy, so each run has one thread, and as many chains run in parallel as there are cores.
# A way is one of the two that are compared, scratch or shallow and then grown; both have the same FLOPs. A place is a core that runs a chain.
set -euo pipefail
python=/usr/bin/python3   # the one that Debian's matplotlib is installed for
[ -x "$python" ] || python=python3
report=$(dirname "$(readlink -f train_gpt)")/report

say() { printf '\n== %s\n' "$*"; }
fail() {
    local text="run: ${1//[[:cntrl:]]/ }"
    [ ${#text} -le 600 ] || text="${text:0:360}... ($((${#text} - 600)) characters left out) ...${text: -240}"
    echo "$text" >&2
    exit "${2:-2}"
}

# -------------------------------------------------------------------------------------------------------------- signals
chains=()   # processes of this script, one per running chain
child=      # the program that this process waits for
locked=     # yes: this script holds the lock of its folder
exec {nothing}<> <(:)
pause() { read -rt "$1" -u "$nothing" || true; }   # a sleep that starts no program, and that a signal interrupts

# On a signal, at any point: every program saves a checkpoint, then the script ends.
stop() {
    trap '' INT TERM HUP
    local process processes
    processes=$(jobs -p)   # not $child and $chains: the signal may come before they are set
    kill -TERM $processes 2>/dev/null || true
    # Not wait: where a second signal came before it was ignored, it stays pending while the first is handled, and wait returns at once.
    for process in $processes; do
        while kill -0 "$process" 2>/dev/null; do sleep 0.05; done
    done
    if [ "$BASHPID" = $$ ]; then
        # What a command substitution started is no job, and may still run; it holds the lock.
        [ -z "$locked" ] || { exec 9>&- && flock -w 10 "$out.lock" true; } || true
        printf '\nrun: stopped by SIG%s; make run%s goes on from the last checkpoints\n' "$1" "${SMOKE:+ SMOKE=1}" >&2
    fi
    exit "$2"
}
watch() {
    trap 'stop INT 130' INT
    trap 'stop TERM 143' TERM
    trap 'stop HUP 129' HUP
}
watch

# ------------------------------------------------------------------------------------------------------------- settings
[[ ${MINUTES:-3} =~ ^[0-9]{1,6}(\.[0-9]+)?$ && ${MINUTES:-3} =~ [1-9] ]] || fail "MINUTES is '$MINUTES', but must be a number above 0: the minutes to train for"
for name in SMOKE RESTART; do
    [[ ${!name:-} =~ ^[01]?$ ]] || fail "$name is '${!name}', but must be 1, or left out"
done

# most_flops: FLOPs of a way; fewer where these, with the least number of seeds, do not fit into the time.
# shallow_part: the shallow model's share of the FLOPs of a way. pair_part: the same for each model of the pair that is stacked.
if [ "${SMOKE:-}" = 1 ]; then
    out=out/smoke text=(/usr/include/asm-generic) vocab=512 shard_tokens=1025 most_flops=6e9 least_seeds=2
    width=32 heads=2 batch=256 rows=4 seq=64 measured=5 save_every=5 evals=4 eval_tokens=2048 sample=40
else
    out=out/run text=(/usr/include/asm-generic /usr/include/c++ /usr/include/linux) vocab=1024 shard_tokens=16385 most_flops=1.2e12 least_seeds=3
    width=64 heads=2 batch=1024 rows=8 seq=128 measured=30 save_every=50 evals=6 eval_tokens=24576 sample=200
fi
depth=2 factor=4 shallow_part=0.5 pair_part=0.125
corpus=$out/corpus
prompt='template <class T'
shape=(--width "$width" --heads "$heads" --seq-len "$seq" --vocab-size "$vocab")
steps_of=(--batch-tokens "$batch" --device-batch "$rows")
# The recipes' scaling rules are for batches of half a million tokens; these learning rates are for this size (dev/LOG.md).
nanochat_rates=(--no-scaling --matrix-lr 0.04)
speedrun_rates=(--embedding-lr 0.02 --matrix-lr 0.005)
data=(--data "$corpus/train_*.bin" --val-data "$corpus/val_*.bin" --eval-tokens "$eval_tokens")

# Only one at a time in a folder. The programs that it starts inherit the lock: while one of a killed script still writes, the lock is held.
mkdir -p out
exec 9>"$out.lock"
for ((second = 0; ; second++)); do
    ! flock -w 1 9 || break
    [ "$second" != 0 ] || echo "run: waiting for another make run to end, or for programs that a killed one has left running"
    [ "$second" -lt 60 ] || fail "another make run is at work in $out; wait until it is done, or stop it"
done
locked=yes

# side_by_side FUNCTION...: runs it in a process of its own.
side_by_side() {
    { chains=() && watch && "$@"; } &
    chains+=($!)
}
orphan() {
    local parent
    read -r _ _ _ parent _ </proc/$BASHPID/stat
    [ $BASHPID != $$ ] && [ "$parent" != $$ ]
}
# follow COMMAND...: runs it; a signal to this process stops it too, and so does the end of the script, be it by SIGKILL.
follow() {
    "$@" </dev/null &
    child=$!
    while kill -0 "$child" 2>/dev/null; do
        ! orphan || stop KILL 137
        pause 0.1
    done
    local code=0
    wait "$child" || code=$?
    child=
    return "$code"
}

# --------------------------------------------------------------------------------------------------- resume or start over
# A plan is for one machine, one kind of build and these settings; their results are not mixed with those of others.
identity="$("$report" --machine)
settings $(sed -n '/^# ---.* settings$/,/^# Only one at a time/p' "$0" | cksum)"
planned() { sed -n "s/^$1 //p" "$out/plan"; }

begin=yes
if [ ! -e "$out/plan" ]; then
    :
elif [ "${RESTART:-}" = 1 ]; then
    echo "run: RESTART=1: starting over"
elif [ "$(grep -E '^(precision|processor|settings) ' "$out/plan")" != "$(grep -E '^(precision|processor|settings) ' <<<"$identity")" ]; then
    echo "run: $out is from another processor, build or version of this script ($(planned processor), $(planned precision)): starting over; it is kept as $out.before"
    rm -rf "$out.before"
    mv "$out" "$out.before"
elif [ -n "${MINUTES:-}" ] && awk "BEGIN { exit $MINUTES == $(planned minutes) }"; then
    echo "run: $out was made with MINUTES=$(planned minutes): starting over"
else
    begin=no
fi
if [ $begin = yes ]; then
    rm -f "$out/plan"   # first: without a plan a half-removed folder is never resumed
    rm -rf "$out"
    mkdir -p "$out"
fi

# ---------------------------------------------------------------------------------------------------------------- text
# The documents are the pieces between empty lines, shuffled: a batch of a few rows is then from many files, and its loss measures the
# model rather than one file.
if [ ! -e "$corpus" ]; then
    say "text: C and C++ headers, split at empty lines, shuffled; a tokenizer with $vocab tokens; shards"
    rm -rf "$corpus.tmp"
    follow data/tokenize "${text[@]}" --separator $'\n\n' --train-tokenizer "$vocab" --shard-tokens "$shard_tokens" --out "$corpus.tmp" >"$out/corpus.txt"
    grep -v '^shard: ' "$out/corpus.txt"   # there are hundreds, so that --data-seed changes their order
    mv "$corpus.tmp" "$corpus"
fi

# ------------------------------------------------------------------------------------------------------------- the plan
cores=$(nproc)
[[ $(readlink -f train_gpt) != */cuda-* ]] || cores=1   # one device
places=$((cores < 3 * least_seeds ? cores : 3 * least_seeds))
[ "$places" = 1 ] || export OMP_NUM_THREADS=1
deep=$((depth * factor))
nanochat=(--recipe nanochat "${shape[@]}" "${steps_of[@]}" "${nanochat_rates[@]}")

measure() { follow ./train_gpt "${nanochat[@]}" --depth $deep --steps "$measured" --eval-every 0 "${data[@]}" --out "$out/measure/$1" >"$out/measure/$1.txt" 2>&1; }
# Peak and speed in FLOP/s; the speed is the median of all steps but the first two.
measured() {
    awk '/^matmul peak:/ { peak = $3 * 1e9 } /^flops_per_token/ { flops = $2 }
         /^step / { for (f = 1; f < NF; f++) if ($f == "tok/s" && ++n > 2) rate[++kept] = $(f + 1) * flops }
         END { for (a = 1; a <= kept; a++) for (b = a + 1; b <= kept; b++) if (rate[b] < rate[a]) { t = rate[a]; rate[a] = rate[b]; rate[b] = t }
               print peak, rate[int((kept + 1) / 2)] }' "$1"
}

# choose MINUTES SPEED: the number of seeds, and the FLOPs of a way. rounds() is the work of the busiest place, in units of these FLOPs, when the
# longest chains start first; a quarter of the time is left for evaluations, checkpoints and starting programs.
choose() {
    awk -v places=$places -v least=$least_seeds -v pair=$pair_part -v most=$most_flops -v smoke="${SMOKE:-}" -v time=$1 -v speed=$2 '
        function rounds(seeds, c, p, least_p, load, longest) {
            for (p = 1; p <= places; p++) load[p] = 0
            for (c = 0; c < 3 * seeds; c++) {
                least_p = 1
                for (p = 2; p <= places; p++) if (load[p] < load[least_p]) least_p = p
                load[least_p] += c < 2 * seeds ? 1 : 2 * pair
            }
            longest = 0
            for (p = 1; p <= places; p++) if (load[p] > longest) longest = load[p]
            return longest
        }
        BEGIN {
            all = time * 60 * speed * 0.75
            seeds = least
            flops = all / rounds(seeds)
            if (flops > most || smoke) flops = most
            while (!smoke && seeds < 1000 && rounds(seeds + 1) * flops <= all) seeds++
            printf "%d %.3g\n", seeds, flops
        }'
}

if [ ! -e "$out/plan" ]; then
    say "measuring this machine: $measured steps of the model with $deep layers, $places in parallel"
    rm -rf "$out/measure"
    mkdir "$out/measure"
    for ((place = 1; place <= places; place++)); do side_by_side measure $place; done
    for ((place = 1; place <= places; place++)); do
        wait "${chains[place - 1]}" || fail "the trainer stopped: $(tail -n 1 "$out/measure/$place.txt")" 1
    done
    chains=()
    # (The subshells of < <( ) close the lock: they ignore Ctrl-C, and must not hold it after the script has ended.)
    read -r peak speed < <(exec 9>&-; for file in "$out"/measure/*.txt; do measured "$file"; done | sort -g -k 2 | head -n 1)
    minutes=${MINUTES:-3}
    read -r seeds flops < <(exec 9>&-; choose "$minutes" "$speed")
    printf '%s\nminutes %s\nseeds %s\nflops %s\npeak %s\nspeed %s\nplaces %s\n' "$identity" "$minutes" "$seeds" "$flops" "$peak" "$speed" "$places" >"$out/plan.tmp"
    mv "$out/plan.tmp" "$out/plan"
    rm -rf "$out/measure"
fi
flops=$(planned flops)
seeds=$(planned seeds)
part() { awk "BEGIN { printf \"%.6e\", $flops * $1 }"; }
all_flops=$(part "(2 + 2 * $pair_part) * $seeds")
giga() { awk "BEGIN { printf \"%.1f\", $(planned "$1") / 1e9 }"; }
say "$(planned processor), $(planned precision)"
echo "each of $(planned places) in parallel: peak matmul rate $(giga peak) GFLOP/s, training $(giga speed) GFLOP/s"
echo "$(printf %.2e "$flops") FLOPs for each way ($deep layers from scratch; $depth layers, grown to $deep), $seeds seeds; $(printf %.2e "$all_flops") FLOPs in all,"
echo "$([ "${SMOKE:-}" = 1 ] && echo "SMOKE=1: fixed" || echo "chosen for about $(planned minutes) minutes of training")"
[ "$(planned commit)" = "$(sed -n 's/^commit //p' <<<"$identity")" ] ||
    echo "note: started at commit $(planned commit), this is $(sed -n 's/^commit //p' <<<"$identity")"

# ----------------------------------------------------------------------------------------------------------------- runs
steps_of_run() { sed -n 's/.*"event":"start".*"steps":\([0-9]*\).*/\1/p' "$out/$1/log.jsonl" 2>/dev/null | tail -n 1; }
# A run ends with the evaluation of its last step.
finished() { grep -qE "\"event\":\"eval\".*\"step\":$(steps_of_run "$1" | grep . || echo none)[,}]" "$out/$1/log.jsonl" 2>/dev/null; }
# The newest checkpoint of a run, or nothing.
last() {
    local file newest=
    for file in "$out/$1"/step_*.bin; do [ ! -e "$file" ] || newest=$file; done
    echo "$newest"
}

# run_once NAME FILE COMMAND...: appends COMMAND's output to FILE; if it fails, the last line of FILE is the error.
run_once() {
    local name=$1 file=$2
    shift 2
    follow "$@" >>"$file" 2>&1 || { printf '\nrun: %s: %s\n' "$name" "$(tail -n 1 "$file")" >&2 && return 1; }
}

# train NAME FLAGS...: starts a run, or resumes it from its last checkpoint; a finished one is left alone.
train() {
    local name=$1 steps from
    shift
    ! finished "$name" || return 0
    steps=$(./train_gpt "$@" --plan | sed -n 's/^steps: //p')
    from=$(last "$name")
    # Stopped between its last checkpoint and the final evaluation: resume from the checkpoint before.
    if [ "$from" = "$out/$name/$(printf 'step_%07d.bin' "$steps")" ]; then
        rm "$from"
        from=$(last "$name")
    fi
    if [ -n "$from" ]; then set -- --resume "$from"; else set -- "$@" --out "$out/$name" --overwrite; fi
    run_once "$name" "$out/$name.txt" ./train_gpt "$@" "${data[@]}" --eval-every $(((steps + evals - 1) / evals)) --save-every "$save_every" --keep 2
    if ! finished "$name"; then   # stopped by a signal, which the trainer does not report as an error
        printf '\nrun: %s: %s\n' "$name" "$(grep '^stopped' "$out/$name.txt" | tail -n 1)" >&2
        return 1
    fi
    sed -nE "s/.*\"event\":\"eval\".*\"step\":$steps[,}].*\"val_bpb\":([0-9]+\.?[0-9]{0,4}).*/  $name: $steps steps, val bpb \1/p" "$out/$name/log.jsonl" | tail -n 1
}

chain_scratch() { train "scratch-$1" "${nanochat[@]}" --depth $deep --total-flops "$flops" --seed "$1" --data-seed "$1"; }

chain_grown() {
    train "shallow-$1" "${nanochat[@]}" --depth $depth --total-flops "$(part $shallow_part)" --warmdown-ratio 0 --seed "$1" --data-seed "$1"
    local grown=$out/grown-$1.bin
    [ -e "$grown" ] || run_once grow "$out/grow.txt" ./grow "$(last "shallow-$1")" "$grown" --order stack --factor $factor
    # Optimizer and schedule start anew, the data continues; the learning rate decays from the first step.
    train "grown-$1" --init "$grown" "${steps_of[@]}" "${nanochat_rates[@]}" --total-flops "$(part "(1 - $shallow_part)")" --warmdown-ratio 1 --seed "$1"
}

chain_pair() {
    local flags=(--recipe speedrun --depth $depth "${shape[@]}" "${steps_of[@]}" "${speedrun_rates[@]}" --total-flops "$(part $pair_part)")
    train "one-$1" "${flags[@]}" --seed "$1" --data-seed "$1"
    train "two-$1" "${flags[@]}" --seed "$((100 + $1))" --data-seed "$((100 + $1))" --embeddings-from "$(last "one-$1")"
    local stack=$out/stack-$1
    [ -e "$stack.bin" ] || run_once stack "$out/stack.txt" ./stack "$(last "one-$1")" "$(last "two-$1")" --use-first-layer --use-last-layer --out "$stack.bin"
    [ ! -e "$stack.eval" ] || return 0
    rm -f "$stack.eval.tmp"
    run_once "stack-$1" "$stack.eval.tmp" ./train_gpt --eval --init "$stack.bin" --val-data "$corpus/val_*.bin" --eval-tokens "$eval_tokens" --device-batch "$rows"
    mv "$stack.eval.tmp" "$stack.eval"
}

# The FLOPs done so far, as a share of all.
progress() {
    local name
    for name in "$out"/*/log.jsonl; do
        grep -oE '"flops":[0-9.e+]+' "$name" 2>/dev/null | tail -n 1 | cut -d : -f 2
    done | awk -v all="$all_flops" '{ done += $1 } END { printf "%d %%", 100 * done / all + 0.5 }'
}

waiting=()
for kind in scratch grown pair; do   # the longest first
    for ((seed = 1; seed <= seeds; seed++)); do waiting+=("$kind $seed"); done
done
say "training, $places runs in parallel"
for ((tick = 1; ${#waiting[@]} + ${#chains[@]} > 0; tick++)); do
    while [ ${#waiting[@]} != 0 ] && [ ${#chains[@]} -lt "$places" ]; do
        side_by_side chain_"${waiting[0]% *}" "${waiting[0]#* }"
        waiting=("${waiting[@]:1}")
    done
    pause 0.1
    [ $((tick % 100)) != 0 ] || echo "  $(progress) of the FLOPs"
    left=()
    for process in "${chains[@]}"; do
        if kill -0 "$process" 2>/dev/null; then
            left+=("$process")
        elif ! wait "$process"; then
            kill -TERM "${chains[@]}" 2>/dev/null || true
            wait
            fail "a run stopped; make run${SMOKE:+ SMOKE=1} goes on from the last checkpoints" 1
        fi
    done
    chains=("${left[@]}")
done

# -------------------------------------------------------------------------------------------------------------- results
say "results: $(planned processor), $(planned precision), commit $(planned commit), $flops FLOPs for each way"
"$report" "$out" | tee "$out/results.txt"
[ "${SMOKE:-}" = 1 ] || echo "note: this holds only for these sizes and FLOPs; at others the result may be the opposite (dev/LOG.md)"
[ "${SMOKE:-}" = 1 ] || awk "BEGIN { exit $flops < $most_flops }" || echo "note: this machine did not reach the $most_flops FLOPs of README's table in the time: MINUTES=n gives it more"
best=$(sed -n 's/^best: //p' "$out/results.txt")
say "a sample of the best, $best"
follow ./train_gpt --init "$(last "$best")" --sample "$prompt" --sample-tokens "$sample"
follow "$python" dev/plot.py "$out"/{shallow,grown,scratch,one,two}-*/ -o "$out/curves.png" >/dev/null
follow "$python" dev/saving.py "$out" -o "$out/saving.svg" >/dev/null
say "files"
for kind in scratch shallow grown one two; do last "$kind-1"; done
ls -1 "$out"/{grown,stack}-1.bin "$out/results.txt" "$out/curves.png" "$out/saving.svg"
echo "and those of the other seeds"
