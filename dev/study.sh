#!/bin/bash
# dev/study.sh COMMAND: carries out a study for dev/study.mk. The study is data, dev/STUDY.study: a bash file of declarations, which is read once
# and holds for every seed. The functions that it calls:
#
#   experiment NAME               the rows that follow belong to it. rank N: they are made after the rows of lower rank, of all seeds
#   train [+100] NAME FROM HORIZON DEPTH WIDTH FLAGS...
#                                 a model trained by ./train_gpt; +100: with a seed 100 higher, for weights and data. FROM: the model that it starts
#                                 from (--init), or - . A flag @MODEL stands for that model's file. HORIZON is one of
#                                   ratio:R         tokens per parameter (--param-data-ratio)
#                                   steps:N         optimizer steps
#                                   like:MODEL      the FLOPs of that model, its parents included
#                                   in-all:x*MODEL  x times these FLOPs (x* may be left out), minus those of FROM, its parents included
#                                   own             the recipe's default
#   grow NAME MODEL FLAGS...      a model made by ./grow
#   stack NAME A+B FLAGS...       a model made by ./stack of these models
#   mixed NAME COUNT EVERY WEIGHTS HORIZON DEPTH WIDTH FLAGS...
#                                 models NAME-1 to NAME-COUNT, with seeds 100 apart. After every EVERY steps each is mixed with the next one
#                                 (./stack --mix WEIGHTS), and goes on from the mixture
#   row MODEL column=value...     a row of the CSV for a trained model, from its log
#   eval_row MODEL A+B column=value...
#                                 a row of the CSV for a stack: its loss, and the mean loss of its parts
#   latents NAME A+B              the rows that ./latents prints for these two models
#   number EXPRESSION             arithmetic
#   ratio_of MODEL                the tokens per parameter that this model is trained on, without its parents
#
# A model that several rows need is declared by each of them and made once. Commands: graph (make targets for all that is missing), do TARGET
# (makes one of them), expected (every declared row, as CSV), speeds, plan, status, data.
set -euo pipefail
: "${STUDY:?is set by dev/growth.mk and dev/stacking.mk}" "${SCALE:=nano}" "${SEEDS:=3}" "${RESULTS:=dev/results}" "${KEEP:=models}" "${ONLY:=}" "${WORK:=out/studies}"

fail() {
    local text="$STUDY: ${1//[[:cntrl:]]/ }"
    [ ${#text} -le 600 ] || text="${text:0:360}... ($((${#text} - 600)) characters left out) ...${text: -240}"
    echo "$text" >&2
    exit "${2:-2}"
}
unplanned=   # yes: the study is read only for the names and columns of its rows, which needs no program and writes nothing
[[ ! ${1:-} =~ ^(expected|status)$ ]] || unplanned=yes
[ -e train_gpt ] || [ -n "$unplanned" ] || fail "./train_gpt is not built; make builds it"
programs=$(dirname "$(readlink -f train_gpt)")
[[ $SCALE =~ ^(smoke|nano|small|paper)$ ]] || fail "SCALE is '$SCALE', but must be smoke, nano, small or paper"
[[ $SEEDS =~ ^([1-9][0-9]{0,3})(-([1-9][0-9]{0,3}))?$ ]] || fail "SEEDS is '$SEEDS', but must be a number (3 means 1 to 3) or a range such as 4-6"
first_seed=1 last_seed=${BASH_REMATCH[1]}
[ -z "${BASH_REMATCH[3]:-}" ] || { first_seed=$last_seed && last_seed=${BASH_REMATCH[3]}; }
[ "$first_seed" -le "$last_seed" ] || fail "SEEDS is '$SEEDS', but its first is above its last"
[[ $WORK =~ ^[A-Za-z0-9_./+-]+$ ]] || fail "WORK is '$WORK', but must be a path of letters, digits and . _ + - /, because make targets allow no others"
[[ $KEEP =~ ^(models|rows)$ ]] || fail "KEEP is '$KEEP', but must be models or rows"

# shellcheck source=dev/growth.study
. "dev/$STUDY.study"
sizes
[[ $programs != */cuda-* ]] || gpu_flops=0   # on a GPU the speed is measured
export OMP_NUM_THREADS=$threads
csv=$RESULTS/$STUDY.csv curves_csv=$RESULTS/${STUDY}_curves.csv latents_csv=$RESULTS/${STUDY}_latents.csv

# Only models of one processor, one precision and one number of threads (a kind of machine) are compared. Each kind has its own folder of models, so
# that on another machine a study starts anew beside what is there.
kind='' processor='' precision=''   # unknown if the programs are not built
if [ -e train_gpt ] && [ "${1:-}" != expected ]; then
    machine=$("$programs/report" --machine)
    machine_is() { sed -n "s/^$1 //p" <<<"$machine"; }
    precision=$(machine_is precision) commit=$(machine_is commit) processor=$(machine_is processor)
    processor=$(sed 's/, [0-9]* threads\?//; s/,//g' <<<"$processor")
    kind="$processor $precision $threads"
fi
dir=${STUDY_DIR:-$WORK/$STUDY-$SCALE/${kind//[^A-Za-z0-9]/-}}   # STUDY_DIR comes from make, because LAUNCH may start this script on another machine
data=$WORK/data/$corpus
shards=(--data "$data/*train_*.bin" --val-data "$data/*val_*.bin" "${evaluation[@]}")

number() { awk "BEGIN { printf \"%.10g\", ($1) }"; }
quoted() { printf '%q ' "$@"; }

# ------------------------------------------------------------------------------------------------- the declarations of a study
declare -A declared=() needs=() total=() tokens_a_parameter=() node_of=() memory=() plans=()   # by model; plans: by flags
declare -A row_needs=() row_experiment=() row_rank=() row_csv=() row_line=()
rows=() models=()

experiment() { experiment=$1 rank=0; }
rank() { rank=$1; }
known() { [ -n "${declared[$1]:-}" ] || fail "dev/$STUDY.study: $2 names the model $1, which is not declared before it"; }
ratio_of() { echo "${tokens_a_parameter[$1]-undeclared $1}"; }   # declare_row refuses the word `undeclared`; an error here would only end a subshell

# node NAME OP "MODELS" LINES...: writes what `do` needs to make a model or a row; the file's time changes only with its text.
node() {
    local text
    printf -v text '%s\n' "op=$2" "from=($3)" "${@:4}"
    node_of[$1]=$text
    holds "$dir/$1.node" "$text"
}
holds() { [ -n "$unplanned" ] || { [ -e "$1" ] && [ "$(<"$1")" = "${2%$'\n'}" ]; } || printf '%s' "$2" >"$1"; }
declare_model() {
    local text="$2 of ${*:3}"
    [[ $1 =~ ^[A-Za-z0-9._-]{1,100}$ ]] || fail "dev/$STUDY.study: a model is called '$1', but a name may have only letters, digits, points, - and _"
    if [ -n "${declared[$1]:-}" ]; then
        [ "${declared[$1]}" = "$text" ] || fail "dev/$STUDY.study declares $1 twice, with different settings: $text; before: ${declared[$1]}"
        return
    fi
    declared[$1]=$text needs[$1]=$3
    models+=("$1")
    node "$@"
}

# plan FLAGS...: sets steps_of, tokens_of, matmul_of, memory_of, flops_token.
plan() {
    local key="$*" text
    if [ -z "${plans[$key]:-}" ]; then
        text=$(./train_gpt "$@" --plan 2>&1) || fail "there is no plan for $key: $(tail -n 1 <<<"$text")"
        plans[$key]=$(awk '{ v[$1] = $2 } END { print v["steps:"], v["tokens:"], v["matmul_params:"], v["memory_bytes:"], v["flops_per_token:"] }' <<<"$text")
    fi
    read -r steps_of tokens_of matmul_of memory_of flops_token <<<"${plans[$key]}"
}

# planned NAME FROM HORIZON DEPTH WIDTH FLAGS...: sets what plan sets, and shape, flags, parents, own, spent, ratio.
planned() {
    local name=$1 from=$2 horizon=$3 depth=$4 width=$5 free=() asked=() continues= goal like times=1
    shift 5
    shape=(--recipe "$recipe" --depth "$depth" --width "$width" --heads $((width / head)) "${model[@]}") flags=() parents= spent=0
    if [ "$from" != - ]; then
        known "$from" "$name"
        parents=$from spent=${total[$from]}
    fi
    for (( ; $# > 0; )); do
        case $1 in
            --embeddings-from) known "${2#@}" "$name" && flags+=("$1" "$2") && parents+=" ${2#@}" ;;
            --optimizer | --schedule) flags+=("$1" "$2") && [[ $2 != continue ]] || continues=yes ;;   # --init's
            *) flags+=("$1" "$2") && free+=("$1" "$2") ;;
        esac
        shift 2
    done
    if [ -n "$unplanned" ]; then
        own='' ratio='' run=()
        return
    fi
    case $horizon in
        own) ;;
        ratio:*) asked=(--param-data-ratio "${horizon#ratio:}") ;;
        steps:*) asked=(--steps "${horizon#steps:}") ;;
        like:*) known "${horizon#like:}" "$name" && asked=(--total-flops "${total[${horizon#like:}]}") ;;
        in-all:*)
            like=${horizon#in-all:}
            [[ $like != *\** ]] || { times=${like%%\**} && like=${like#*\*}; }
            known "$like" "$name"
            goal=$(number "$times * ${total[$like]}")
            [ "$(number "$goal > $spent")" = 1 ] || fail "dev/$STUDY.study: $name is to have spent $goal FLOPs in all, but $from has spent $spent"
            asked=(--total-flops "$(number "$goal - $spent")") ;;
        *) fail "dev/$STUDY.study: the horizon of $name is '$horizon', but must be ratio:R, steps:N, like:MODEL, in-all:MODEL or own" ;;
    esac
    plan "${shape[@]}" "${steps[@]}" "${asked[@]}" "${free[@]}"
    [ -z "$continues" ] || asked=(--total-flops "$goal")   # with --schedule continue it includes the FLOPs of the parents
    flags=("${steps[@]}" "${asked[@]}" "${flags[@]}")
    read -r own spent ratio < <(awk "BEGIN { printf \"%.10g %.10g %.4f\n\", $tokens_of * $flops_token, $spent + $tokens_of * $flops_token, $tokens_of / $matmul_of }")
    memory[$name]=$memory_of   # not in the node: it includes the memory of the process itself, which varies from call to call
    run=("steps_of=$steps_of" "tokens_of=$tokens_of" "own=$own" "size=d$depth-w$width" "shape=($(quoted "${shape[@]}"))")
}

train() {
    local steps_of tokens_of matmul_of memory_of flops_token shape flags parents spent own ratio run offset=0
    if [ "$1" = +100 ]; then offset=100 && shift; fi
    planned "$@"
    if [ "$2" = - ]; then flags=("${shape[@]}" "${flags[@]}"); else flags=(--init "@$2" "${flags[@]}"); fi
    total[$1]=$spent tokens_a_parameter[$1]=$ratio
    declare_model "$1" train "$parents" "${run[@]}" "offset=$offset" "flags=($(quoted "${flags[@]}"))"
}

mixed() {
    local name=$1 count=$2 every=$3 weights=$4 i
    local steps_of tokens_of matmul_of memory_of flops_token shape flags parents spent own ratio run
    planned "$1" - "${@:5}"
    for ((i = 1; i <= count; i++)); do
        total[$name-$i]=$spent tokens_a_parameter[$name-$i]=$ratio declared[$name-$i]="mixed $*" needs[$name-$i]=$name
    done
    declare_model "$name" mixed "" "${run[@]}" "count=$count" "every=$every" "weights=$weights" "flags=($(quoted "${shape[@]}" "${flags[@]}"))"
}

# made OP NAME A+B FLAGS...
made() {
    local parent
    for parent in ${3//+/ }; do known "$parent" "$2"; done
    total[$2]=${total[${3%%+*}]}
    declare_model "$2" "$1" "${3//+/ }" "flags=($(quoted "${@:4}"))"
}
grow() { made grow "$@"; }
stack() { made stack "$@"; }

row() {
    local pair baseline=
    for pair in "$@"; do [[ $pair != baseline=* ]] || baseline=${pair#baseline=}; done
    declare_row row "$1" "$1 $baseline" "${@:2}"
}
eval_row() { declare_row eval_row "$1" "$1 ${2//+/ }" parts="$2" "${@:3}"; }
latents() { declare_row latents "$1" "${2//+/ }"; }

# declare_row OP NAME "MODELS" column=value...: a row that is made from these models. If several experiments declare it, it belongs to the first.
declare_row() {
    local op=$1 name=$2 pair
    local -A column=([scale]=$SCALE [experiment]=$experiment [model]=$name)
    for pair in "${@:4}"; do
        [[ " ${columns[*]} " == *" ${pair%%=*} "* ]] || fail "dev/$STUDY.study: the row $name has '${pair%%=*}', which is none of its columns"
        [[ $pair != *"=undeclared "* ]] || fail "dev/$STUDY.study: the row $name asks for the ratio of ${pair##* }, which is not declared before it"
        [[ ${pair#*=} != *[[:cntrl:],\"]* ]] || fail "dev/$STUDY.study: the row $name has $pair, but a value holds no comma, quote or line end"
        column[${pair%%=*}]=${pair#*=}
    done
    [ -z "${row_needs[$name]:-}" ] || return 0
    row_needs[$name]=$3 row_experiment[$name]=$experiment row_rank[$name]=$rank row_csv[$name]=$STUDY
    [ "$op" != latents ] || row_csv[$name]=${STUDY}_latents
    rows+=("$name")
    if [ -n "$unplanned" ]; then
        column[seed]=SEED
        line_of_columns
        row_line[$name]=$line
    else
        node "$name.row" "$op" "$3" "$(declare -p column)"
    fi
}

read_study() {
    local row name
    [ -n "$unplanned" ] || { mkdir -p "$dir" && echo "$kind" >"$dir/kind"; } 2>/dev/null || fail "cannot write into the folder $dir"
    experiment=none rank=0
    study
    for row in "${rows[@]}"; do
        for name in ${row_needs[$row]}; do
            [ -n "${declared[$name]:-}" ] || fail "dev/$STUDY.study: the row $row is of the model $name, which is not declared"
        done
    done
}

# ------------------------------------------------------------------------------------------- what is there, and what is missing
# in_csv FILE: MODEL-sSEED of each row of this scale and kind of machine, or of any kind if this machine's is unknown.
in_csv() { of_csv "$1" '$at["model"] "-s" $at["seed"]'; }
of_csv() { # FILE EXPRESSION
    [ ! -e "$1" ] || awk -F, -v kind="${kind:+$SCALE,$processor,$precision,$threads}" -v scale="$SCALE" '
        NR == 1 { for (f = 1; f <= NF; f++) at[$f] = f; next }
        kind ? $at["scale"] "," $at["processor"] "," $at["precision"] "," $at["threads"] == kind : $at["scale"] == scale { print '"$2"' }' "$1"
}
# Every line must be whole: a truncated row would count as present.
check_csv() {
    local file wrong
    for file in "$csv" "$curves_csv" "$latents_csv"; do
        [ -s "$file" ] || continue
        [ -z "$(tail -c 1 "$file")" ] || fail "$file does not end with a whole line; remove the last one: the study writes it again"
        wrong=$(awk -F, 'NR == 1 { fields = NF } NF != fields { print NR " has " NF " fields, and there are " fields " columns"; exit }' "$file")
        [ -z "$wrong" ] || fail "$file: line $wrong; remove the line: the study writes it again"
    done
}

# Sets wanted_rows: the rows that ONLY selects and those that they are compared with, of every seed, in the order in which they are made: noise first,
# then by rank and by seed.
choose() {
    local row other seed at=0 seeds after
    local -A chosen=()
    for row in "${rows[@]}"; do
        # shellcheck disable=SC2053 # ONLY is a pattern
        [ -z "$ONLY" ] || [[ ${row_experiment[$row]} == $ONLY || $row == $ONLY ]] || continue
        for other in $row ${row_needs[$row]}; do chosen[$other]=yes; done
    done
    [ ${#chosen[@]} != 0 ] || fail "ONLY is '$ONLY', which is no row and none of the experiments $(printf '%s\n' "${row_experiment[@]}" | sort -u | paste -sd ' ')"
    mapfile -t wanted_rows < <(
        for row in "${rows[@]}"; do
            [ -n "${chosen[$row]:-}" ] || continue
            at=$((at + 1)) seeds=$last_seed after=1
            if [ "${row_experiment[$row]}" = noise ]; then
                after=0
                # The noise experiment has more seeds, unless others are asked for.
                if [ "$first_seed" = 1 ] && [[ -z $ONLY || $ONLY == noise ]] && [ "$noise_seeds" -gt "$seeds" ]; then seeds=$noise_seeds; fi
            fi
            for ((seed = first_seed; seed <= seeds; seed++)); do echo "$after ${row_rank[$row]} $seed $at $row-s$seed"; done
        done | sort -n -k 1,1 -k 2,2 -k 3,3 -k 4,4 | cut -d ' ' -f 5)
}

# Sets what choose sets, and left: the rows that are in no CSV, or that were made by another definition than the study's present one.
missing() {
    local row
    local -A there=()
    check_csv
    choose
    while read -r row; do there[$row]=yes; done < <(in_csv "$csv"; in_csv "$latents_csv")
    left=()
    for row in "${wanted_rows[@]}"; do
        [ -n "${there[$row]:-}" ] && ! redefined "${row%-s*}" "${row##*-s}" || left+=("$row")
    done
}

# definition ROW: sets whole, the definitions of all models that the row depends on; its own is in node_of.
definition() {
    local name
    local -A seen=()
    whole=
    for name in ${row_needs[$1]}; do define "$name"; done
}
define() {
    local parent
    [ -z "${seen[$1]:-}" ] || return 0
    seen[$1]=yes whole+=${node_of[$1]:-}
    for parent in ${needs[$1]}; do define "$parent"; done
}
# redefined ROW SEED: whether the row must be made again: the declaration of one of its models has changed, or that of its own columns has and its
# models still exist. Its .done holds the definition that it was made by (an empty or absent one, as of another machine, decides nothing).
redefined() {
    local made=$dir/$1-s$2.done text name whole
    if [ -n "$unplanned" ] || [ ! -s "$made" ]; then return 1; fi
    definition "$1"
    IFS='' read -r -d '' text <"$made" || true
    [ "$text" != "$whole${node_of[$1.row]}" ] || return 1
    [[ $text == "$whole"* ]] || return 0
    for name in ${row_needs[$1]}; do [ -e "$dir/$name-s$2.bin" ] || return 1; done
}

# of_seed SEED NAME...: their files of this seed.
of_seed() { [ $# = 1 ] || printf "$dir/%s-s$1.bin " "${@:2}"; }
dones() { [ $# = 0 ] || printf "$dir/%s.done " "$@"; }

graph() {
    read_study
    missing
    local row name model seed i outputs whole file=$dir/graph.mk
    {
        echo "export STUDY_DIR := $dir"
        echo "rows: $(dones "${left[@]}")"
        [ ${#left[@]} != 0 ] || printf '\t@echo "%s"\n' "$STUDY: all ${#wanted_rows[@]} rows of $SCALE are in $csv"
        for row in "${left[@]}"; do
            name=${row%-s*}
            rm -f "$dir/$row.done"
            definition "$name"
            holds "$dir/$name.row.definition" "$whole${node_of[$name.row]}"
            printf '%s: %s %s\n\t@$(LAUNCH) dev/study.sh do %s.row\n' "$dir/$row.done" "$dir/$name.row.node" "$(of_seed "${row##*-s}" ${row_needs[$name]})" "$row"
        done
        for model in "${models[@]}"; do
            i=$(sed -n 's/^count=//p' "$dir/$model.node")
            for ((seed = first_seed; seed <= (last_seed > noise_seeds ? last_seed : noise_seeds); seed++)); do
                outputs=$(of_seed $seed "$model"):
                # the models of `mixed` are made by one target
                [ -z "$i" ] || outputs="$(of_seed $seed $(seq -f "$model-%g" "$i"))&:"
                printf '%s %s %s| %s\n\t@$(LAUNCH) dev/study.sh do %s\n' "$outputs" "$dir/$model.node" "$(of_seed $seed ${needs[$model]})" "$data/tokenizer.txt" "$model-s$seed"
                [ "$KEEP" = models ] || echo ".INTERMEDIATE: ${outputs%%[&:]*}"
            done
        done
        printf '%s/tokenizer.txt:\n\t@dev/study.sh data\n' "$data"
    } >"$file.$$"
    mv "$file.$$" "$file"
    echo "$file"
}

# ----------------------------------------------------------------------------------------------------------------- making one
# The machine must be of the kind that the study was started on: --resume on another processor or precision would mix them.
begin() { # TARGET: locks it. The programs that this process starts inherit the lock, and hold it even after a kill of this process
    local began
    began=$(cat "$dir/kind") || fail "$dir is no folder of a study; make -f dev/$STUDY.mk makes it"
    [ "$began" = "$kind" ] || fail "$1 belongs to runs on '$began', and this is '$kind' (processor, precision, threads), which a study does not mix; keep LAUNCH to machines of one kind"
    exec 9>"$dir/$1.lock"
    flock -n 9 || fail "$1 is being made by another process; wait for it, or stop it"
    child=
    trap 'stopped 130' INT
    trap 'stopped 143' TERM
    trap 'stopped 129' HUP
}
stopped() {
    if [ -n "$child" ]; then
        kill -TERM "$child" 2>/dev/null || true
        while kill -0 "$child" 2>/dev/null; do sleep 0.05; done   # not wait, which a second signal would end: see stop() of dev/run.sh
    fi
    exit "$1"
}
# call COMMAND...: appends its output to $log; if it fails, the last line is the error.
call() {
    "$@" </dev/null >>"$log" 2>&1 &
    child=$!
    local code=0
    wait "$child" || code=$?
    child=
    [ $code = 0 ] || fail "$target: $(tail -n 1 "$log")" 1
}

last() { # FOLDER: its newest checkpoint, or nothing
    local file newest=
    for file in "$1"/step_*.bin; do [ ! -e "$file" ] || newest=$file; done
    echo "$newest"
}
# @MODEL in $flags: that model's file, of this seed.
name_files() {
    local at
    for at in "${!flags[@]}"; do [[ ${flags[at]} != @* ]] || flags[at]=$dir/${flags[at]#@}-s$seed.bin; done
}
name_seed() {
    flags+=(--seed $((seed + offset)))
    [ "${flags[0]}" = --init ] || flags+=(--data-seed $((seed + offset)))   # --init continues the data where the model was
}
step_in() { local name=${1##*/step_} && name=${name%.bin} && echo $((10#$name)); }
# FOLDER: the number of steps of its run, which may differ from the plan's (a grown model may have other windows); and whether the last one was evaluated.
steps_in() { sed -n 's/.*"event":"start".*"steps":\([0-9]*\).*/\1/p' "$1/log.jsonl" 2>/dev/null | tail -n 1; }
finished() { grep -qE "\"event\":\"eval\".*\"step\":$(steps_in "$1" | grep . || echo none)[,}]" "$1/log.jsonl" 2>/dev/null; }

# outdated: what exists of this model comes from another node or from other parents, or is finished and yet requested again.
outdated() {
    local parent
    [ ! -e "$dir/$target.bin" ] && cmp -s "$dir/$name.node" "$dir/$target.begun" || return 0
    for parent in "${from[@]}"; do [ ! "$dir/$parent-s$seed.bin" -nt "$dir/$target.begun" ] || return 0; done
    return 1
}
begin_again() { # FOLDER...
    rm -rf "$@" "$dir/$target.bin" "$dir/$target.eval"
    cp "$dir/$name.node" "$dir/$target.begun"
}

# Each evaluation also saves: a kill loses at most the steps since.
do_train() {
    local folder=$dir/$target newest every
    newest=$(last "$folder")
    if outdated || { finished "$folder" && [ -z "$newest" ]; }; then begin_again "$folder" && newest=; fi
    every=$(((steps_of + evals - 1) / evals))
    local always=("${shards[@]}" --eval-every $every --save-every $every --keep 1)
    if [ -n "$newest" ] && [ "$(step_in "$newest")" = "$(steps_in "$folder")" ] && ! finished "$folder"; then
        begin_again "$folder" && newest=   # stopped between the last checkpoint, the only one, and its evaluation
    fi
    if [ -z "$newest" ]; then
        name_files
        name_seed
        call ./train_gpt "${flags[@]}" "${always[@]}" --out "$folder" --overwrite
    elif ! finished "$folder"; then
        call ./train_gpt --resume "$newest" "${always[@]}"
    fi
    finished "$folder" || fail "$target: $(grep '^stopped' "$log" | tail -n 1)" 1
    mv "$(last "$folder")" "$dir/$target.bin"
}

do_grow() { do_made; }
do_stack() { do_made; }
do_made() {
    local files=() parent
    rm -f "$dir/$target.eval"
    for parent in "${from[@]}"; do files+=("$dir/$parent-s$seed.bin"); done
    if [ "$op" = grow ]; then call ./grow "${files[0]}" "$dir/$target.bin" "${flags[@]}" --overwrite
    else call ./stack "${files[@]}" --out "$dir/$target.bin" "${flags[@]}" --overwrite; fi
}

# Segment by segment: train every model to the next multiple of $every, then mix each with the next one. A second call resumes from the files that exist.
do_mixed() {
    local i at folder newest before=0 always=("${shards[@]}" --eval-every 0)
    if [ -e "$dir/$name-1-s$seed.bin" ] || outdated; then begin_again "$dir/$name"-[0-9]*-s"$seed" "$dir/$name"-[0-9]*-s"$seed".{bin,eval}; fi
    for ((at = every; ; at += every)); do
        [ $at -lt "$steps_of" ] || at=$steps_of
        for ((i = 1; i <= count; i++)); do
            folder=$dir/$name-$i-s$seed
            newest=$(last "$folder")
            if [ -n "$newest" ] && [ "$(step_in "$newest")" -ge $at ]; then continue; fi
            # Within a segment resume from the run's own checkpoint; at its beginning, from the mixed one.
            if [ $before != 0 ] && { [ -z "$newest" ] || [ "$(step_in "$newest")" -le $before ]; }; then newest=$folder/mixed_$before.bin; fi   # its run continues in the folder that the file is in
            if [ -z "$newest" ]; then
                call ./train_gpt "${flags[@]}" --seed $((seed + 100 * (i - 1))) --data-seed $((seed + 100 * (i - 1))) "${always[@]}" --out "$folder" --overwrite --stop-at-step $at
            else
                call ./train_gpt --resume "$newest" "${always[@]}" --stop-at-step $at
            fi
            [ "$(step_in "$(last "$folder")")" = $at ] || fail "$target: $(grep '^stopped' "$log" | tail -n 1)" 1
        done
        [ $at -lt $steps_of ] || break
        for ((i = 1; i <= count; i++)); do
            folder=$dir/$name-$i-s$seed
            [ -e "$folder/mixed_$at.bin" ] || call ./stack "$(step_file $i)" "$(step_file $((i % count + 1)))" --mix "$weights" --out "$folder/mixed_$at.bin"
        done
        before=$at
    done
    for ((i = 1; i <= count; i++)); do
        folder=$dir/$name-$i-s$seed
        mv "$(last "$folder")" "$folder.bin"
        rm -f "$folder"/mixed_*.bin "$folder"/step_*.bin
    done
}
step_file() { echo "$dir/$name-$1-s$seed/step_$(printf %07d $at).bin"; }

# --------------------------------------------------------------------------------------------------------------- rows
# append FILE HEADER LINES: whole lines at the end of a CSV, one process at a time.
append() {
    mkdir -p "$RESULTS"
    (
        flock 8
        [ -s "$1" ] || echo "$2" >"$1"
        [ "$(head -n 1 "$1")" = "$2" ] || fail "$1 begins with other columns than $2; move it away"
        [ -z "$(tail -c 1 "$1")" ] || fail "$1 does not end with a whole line; remove the last one"
        if in_csv "$1" | grep -qxF "$name-s$seed"; then   # made by an older definition, or not marked as done because of a kill: replace it
            { without_row "$1" && printf '%s\n' "$3"; } >"$1.tmp" && mv "$1.tmp" "$1" || fail "cannot write $1; is the disk full?"
        else
            printf '%s\n' "$3" >>"$1" || fail "cannot write $1; is the disk full?"
        fi
    ) 8>>"$WORK/rows.lock"
}
without_row() { # FILE
    awk -F, -v row="$SCALE,$name,$seed,$processor,$precision,$threads" '
        NR == 1 { for (f = 1; f <= NF; f++) at[$f] = f }
        $at["scale"] "," $at["model"] "," $at["seed"] "," $at["processor"] "," $at["precision"] "," $at["threads"] != row' "$1"
}
joined() { local IFS=,; echo "$*"; }
line_of_columns() { # sets line
    local name values=() IFS=,
    for name in "${columns[@]}"; do values+=("${column[$name]:-}"); done
    line="${values[*]}"
}
# The columns that every row has: where it was measured, and the command that repeats it.
common_columns() {
    column[seed]=$seed column[processor]=$processor column[precision]=$precision column[threads]=$threads
    column[command]="make -f dev/$STUDY.mk SCALE=$SCALE SEEDS=$seed-$seed ONLY=$name"
}
measured() { # COMMAND...: prints lines `name value`, which are put into the columns of that name
    local text name value
    text=$("$@") || fail "$target: no measurement" 1
    while read -r name value; do [[ " ${columns[*]} " != *" $name "* ]] || column[$name]=$value; done <<<"$text"
}

do_row() {
    local model=$dir/${from[0]}-s$seed baseline=${from[1]:+$dir/${from[1]}-s$seed} arguments
    arguments=("$model.bin" "$model")
    [ -z "$baseline" ] || arguments+=("$baseline.bin" "$baseline")
    measured "$programs/measure" "${arguments[@]}"
    common_columns
    append "$curves_csv" scale,model,seed,processor,precision,threads,round,event,step,total_flops,lr,loss "$(curve)"
    add_row
    say "val bpb ${column[val_bpb]}${baseline:+, its baseline $("$programs/measure" "$baseline.bin" "$baseline" | sed -n 's/^val_bpb //p')}"
}
add_row() {
    local line
    line_of_columns
    append "$csv" "$(joined "${columns[@]}")" "$line"
    row_done
}
row_done() { cp "$dir/$name.row.definition" "$dir/$what.done"; }
# A grown model's rounds, the shallow one first.
curve() {
    local round=scratch start prefix="$SCALE,$name,$seed,$processor,$precision,$threads"
    start=$(. "$dir/$name.node" && echo "${from[0]:-}")
    if [ -n "$start" ]; then
        start=$(. "$dir/$start.node" && echo "${from[0]}")
        "$programs/measure" --curve "$dir/$start-s$seed" | sed "s/^/$prefix,shallow,/"
        round=deep
    fi
    "$programs/measure" --curve "$dir/$name-s$seed" | sed "s/^/$prefix,$round,/"
}

# evaluate MODEL: sets val_loss and val_bpb, for this seed. Each model is evaluated once.
evaluate() {
    local file=$dir/$1-s$seed.eval
    if [ ! -s "$file" ]; then
        ./train_gpt --eval --init "$dir/$1-s$seed.bin" "${shards[@]:2}" >"$file.$$" 2>>"$log" </dev/null ||
            fail "$target: $(tail -n 1 "$log")" 1
        mv "$file.$$" "$file"
    fi
    val_loss=$(sed -n 's/^val_loss: //p' "$file") val_bpb=$(sed -n 's/^val_bpb: //p' "$file")
}
do_eval_row() {
    local part sum=0 text val_loss val_bpb
    for part in "${from[@]:1}"; do evaluate "$part" && sum="$sum + $val_loss"; done
    column[mean_val_loss]=$(number "($sum) / $((${#from[@]} - 1))")
    evaluate "$name"
    [ "${from[*]}" = "$name $name" ] || column[val_loss_stack]=$val_loss   # a part's own row has none
    column[val_bpb]=$val_bpb column[commit]=$commit
    text=$(./train_gpt --describe "$dir/$name-s$seed.bin") || fail "$target: $name cannot be described" 1
    column[total_flops]=$(sed -n 's/^total_flops: //p' <<<"$text") column[tokens]=$(sed -n 's/^total_tokens: //p' <<<"$text")
    common_columns
    add_row
    say "val loss $val_loss, of its parts ${column[mean_val_loss]}"
}
do_latents() {
    local text files=() part
    for part in "${from[@]}"; do files+=("$dir/$part-s$seed.bin"); done
    text=$(./latents "${files[@]}" "${shards[@]:2:2}" 2>>"$log" </dev/null) || fail "$target: $(tail -n 1 "$log")" 1
    append "$latents_csv" "scale,experiment,model,seed,commit,processor,precision,threads,$(head -n 1 <<<"$text")" \
        "$(tail -n +2 <<<"$text" | sed "s|$dir/||g; s|-s$seed\.bin||g; s|^|$SCALE,${column[experiment]},$name,$seed,$commit,$processor,$precision,$threads,|")"
    row_done
    say "$(($(wc -l <<<"$text") - 1)) lines of latents"
}

say() { printf '%s %-40s %s\n' "$(date +%H:%M:%S)" "$target" "$*"; }
do_target() {
    target=$1
    local what=${1%.row} began=$SECONDS
    name=${what%-s*} seed=${what##*-s}
    log=$dir/$target.txt
    local node=$dir/$name${1#"$what"}.node
    [ -e "$node" ] || fail "'$target' is no target of this study"
    begin "$target"
    # shellcheck disable=SC1090
    . "$node"
    "do_$op"
    case $op in
        train) say "$op: $(steps_in "$dir/$target") steps, $((SECONDS - began)) s" ;;
        mixed) say "$op: $count x $steps_of steps, $((SECONDS - began)) s" ;;
        grow | stack) say "$op" ;;
    esac
}

# ------------------------------------------------------------------------------------------------------------- plan and status
# The speed of a model size, in FLOP/s: the median of 20 steps but the first two, read from the lines in $log.
do_speed() {
    local folder=$dir/$target.run
    : >"$log"
    call ./train_gpt "${flags[@]}" --steps 20 --eval-every 0 "${shards[@]:0:2}" --out "$folder" --overwrite
    rm -rf "$folder"
    awk '/^flops_per_token/ { flops = $2 } /^step / { for (f = 1; f < NF; f++) if ($f == "tok/s" && ++n > 2) print $(f + 1) * flops }' "$log" |
        sort -g | awk '{ rate[NR] = $1 } END { print rate[int((NR + 1) / 2)] }' >"$dir/$target.done"
}

# need MODEL SEED: counts the model and all that it is made from, once per seed.
declare -A needed=() runs_of=()
need() {
    local parent
    [ -z "${needed[$1 $2]:-}" ] || return 0
    needed[$1 $2]=yes runs_of[$1]=$((${runs_of[$1]:-0} + 1))
    for parent in ${needs[$1]:-}; do need "$parent" "$2"; done
}
need_rows() {
    local row name
    for row in "$@"; do for name in ${row_needs[${row%-s*}]}; do need "$name" "${row##*-s}"; done; done
}

# The targets that measure the speed of each model size, for the plan.
speeds() {
    [ "$gpu_flops" = 0 ] || return 0
    if [ ! -e "$data/tokenizer.txt" ]; then
        [[ $corpus == headers-* ]] || return 0   # a plan downloads nothing
        get_data >/dev/null
    fi
    read_study
    missing
    need_rows "${wanted_rows[@]}"
    local name size
    local -A seen=()
    for name in "${models[@]}"; do
        [ -n "${runs_of[$name]:-}" ] || continue
        size=$(sed -n 's/^size=//p' "$dir/$name.node")
        [ -n "$size" ] && [ -z "${seen[$size]:-}" ] || continue
        seen[$size]=yes
        ( . "$dir/$name.node" && node "speed-$size" speed "" "flags=($(quoted "${shape[@]}" "${steps[@]}"))" )
        echo "$dir/speed-$size-s0.done"
    done
}

# Prints name, number of seeds, size, steps, tokens, FLOPs and memory of each run.
planned_runs() {
    local name
    for name in "${models[@]}"; do
        [ -n "${runs_of[$name]:-}" ] || continue
        ( . "$dir/$name.node" && [ -z "${steps_of:-}" ] || echo "$name ${runs_of[$name]} $size $steps_of $tokens_of $(number "$own * ${count:-1}") ${memory[$name]}" )
    done
}

show_plan() {
    read_study
    missing
    need_rows "${wanted_rows[@]}"
    local list
    list=$(planned_runs)
    echo "$STUDY, $SCALE: ${#wanted_rows[@]} rows of $(wc -l <<<"$list") runs, seeds $first_seed to $last_seed; on $kind thread(s), commit $commit"
    awk -v study="$STUDY" -v scale="$SCALE" -v dir="$dir" -v gpu="$gpu_flops" -v places="$(env -u OMP_NUM_THREADS nproc)" '
        function speed(size, file, s) {
            file = dir "/speed-" size "-s0.done"
            if (!(size in known)) { known[size] = (getline s < file) > 0 ? s : 0; close(file) }
            return known[size]
        }
        BEGIN { printf "%-40s %5s %8s %8s %10s %9s %8s %9s\n", "run", "seeds", "size", "steps", "tokens", "FLOPs", "MiB", "hours" }
        {
            rate = gpu > 0 ? gpu : speed($3)
            hours = rate ? $2 * $6 / rate / 3600 : 0
            all += $2 * $6; all_hours += hours
            printf "%-40s %5d %8s %8d %10.3g %9.2e %8.0f %9s\n", $1, $2, $3, $4, $5, $6, $7 / 2^20, rate ? sprintf("%.3f", hours) : "?"
        }
        END {
            if (gpu > 0) printf "in all %.2e FLOPs: %.1f hours of one GPU at %.2e FLOP/s, an assumption (40 %% of 989e12, the dense bf16 peak of an H100), not a measurement\n", all, all_hours, gpu
            else if (!all_hours) printf "in all %.2e FLOPs; hours are not known: steps are measured once the data are there (make -f dev/%s.mk SCALE=%s data)\n", all, study, scale
            else printf "in all %.2e FLOPs: %.2f hours if one run follows another, %.2f hours with %d in parallel; evaluations not included\n", all, all_hours, all_hours / places, places
        }' <<<"$list"
    [ "$SCALE" != paper ] || show_commands
}

# The commands of one seed, as make runs them.
show_commands() {
    local name seed=$first_seed data_flags="--data '${shards[1]}' --val-data '${shards[3]}' ${evaluation[*]}"
    echo
    echo "the commands of seed $seed, in $dir (make -f dev/$STUDY.mk SCALE=$SCALE runs these, and resumes where it was stopped):"
    echo "  $(data_command)"
    for name in "${models[@]}"; do
        [ -n "${runs_of[$name]:-}" ] || continue
        ( . "$dir/$name.node"
          case $op in
              train) name_seed && name_files && echo "  ./train_gpt ${flags[*]} $data_flags --out $dir/$name-s$seed" ;;
              grow) echo "  ./grow $(of_seed $seed "${from[@]}")$(of_seed $seed "$name")${flags[*]}" ;;
              stack) echo "  ./stack $(of_seed $seed "${from[@]}")--out $(of_seed $seed "$name")${flags[*]}" ;;
              mixed) echo "  # $count models, $every steps at a time, between which ./stack --mix $weights: ./train_gpt ${flags[*]} $data_flags" ;;
          esac )
    done
}

show_status() {
    read_study
    missing
    local key target count other running=() stopped=()
    need_rows "${left[@]}"
    echo "$STUDY, $SCALE: ${#wanted_rows[@]} rows${kind:+; this machine is $kind thread(s)}"
    while read -r count other; do echo "  $count of them are in $csv, of $other thread(s)"; done < <(machines)
    if [ -n "$kind" ]; then
        for key in "${!needed[@]}"; do
            target=${key/ /-s}
            if [ -e "$dir/$target.lock" ] && ! flock -n "$dir/$target.lock" true; then
                running+=("$target: $(grep -E '^step ' "$dir/$target.txt" 2>/dev/null | tail -n 1)")
            elif [ -n "$(last "$dir/$target")" ]; then
                stopped+=("$target: $(basename "$(last "$dir/$target")")")
            fi
        done
    else
        echo "what runs on this machine is not known: ./train_gpt is not built; make builds it"
    fi
    [ ${#running[@]} = 0 ] || { echo "running:" && printf '  %s\n' "${running[@]}"; }
    [ ${#stopped[@]} = 0 ] || { echo "stopped; they go on from:" && printf '  %s\n' "${stopped[@]}"; }
    [ ${#left[@]} = 0 ] || { echo "left${kind:+ on this machine}:" && printf '  %s\n' "${left[@]}"; }
}
# How many of the wanted rows each kind of machine has.
machines() {
    local file
    local kind=
    for file in "$csv" "$latents_csv"; do of_csv "$file" '$at["model"] "-s" $at["seed"] "," $at["processor"] " " $at["precision"] " " $at["threads"]'; done |
        sort -u | awk -F, 'NR == FNR { wanted[$1] = 1; next } $1 in wanted { count[$2]++ } END { for (kind in count) print count[kind], kind }' \
            <(printf '%s\n' "${wanted_rows[@]}") - | sort -k 1,1rn -k 2
}

# Every declared and chosen row, of each seed, as lines of CSV; the first column, csv, names the file that it belongs to.
show_expected() {
    read_study
    choose
    local row name
    echo "csv,$(joined "${columns[@]}")"
    for row in "${wanted_rows[@]}"; do
        name=${row%-s*}
        echo "${row_csv[$name]},${row_line[$name]/,SEED,/,${row##*-s},}"
    done
}

# ---------------------------------------------------------------------------------------------------------------------- data
# The command that makes $data. At the scale paper it fetches so many files that no token is read twice.
data_command() {
    case $corpus in
        headers-*) echo "data/tokenize /usr/include/asm-generic --separator \$'\n\n' --train-tokenizer ${corpus#headers-} --shard-tokens 4097 --out $data" ;;
        linux-*) echo "data/linux_source.sh --vocab-size ${corpus#linux-} ${corpus_flags[*]} --out $data" ;;
        fineweb100B) echo "data/fineweb100B.sh $corpus_files $data" ;;
        fineweb-edu)
            echo "data/fineweb_edu.sh $corpus_files $data.parquet && python3 data/parquet_to_jsonl.py $data.parquet/shard_*.parquet &&" \
                "data/tokenize $data.parquet/shard_*.jsonl --val $data.parquet/shard_01822.jsonl --train-tokenizer 32768 --out $data" ;;
    esac
}
get_data() {
    [ ! -e "$data/tokenizer.txt" ] || return 0
    mkdir -p "$WORK/data"
    eval "$(data_command)"
}

case ${1:-} in
    graph) graph ;;
    do) do_target "$2" ;;
    expected) show_expected ;;
    speeds) speeds ;;
    plan) show_plan ;;
    status) show_status ;;
    data) get_data ;;
    *) fail "dev/study.sh takes graph, do TARGET, expected, speeds, plan, status or data, not '${1:-}'" ;;
esac
