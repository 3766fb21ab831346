#!/bin/bash
# data/fineweb_edu.sh N [DIR]: fetches the first N of 1822 files of FineWeb-Edu (100 B tokens, shuffled, as published for nanochat), and the validation
# file, to DIR (default: fineweb_edu). Each is 100 MB of parquet with 250 million characters of text, about 55 M tokens with a vocabulary of 32768.
# BASE_URL: another URL to fetch shard_00000.parquet, ... and shard_01822.parquet, the validation file, from.
set -eu
. "$(dirname "$0")/download.sh"

[ $# -ge 1 ] && [ $# -le 2 ] && [[ $1 =~ ^[1-9][0-9]{0,3}$ ]] && [ "$1" -le 1822 ] ||
    fail "expected a number of files from 1 to 1822: data/fineweb_edu.sh N [DIR]"
dir=${2:-fineweb_edu}
base=${BASE_URL:-https://huggingface.co/datasets/karpathy/fineweb-edu-100b-shuffle/resolve/main}

# Parquet: PAR1, columns, a footer, its length in 4 bytes, PAR1.
check_parquet() {
    local bytes footer
    bytes=$(bytes_of "$1")
    if [ "$bytes" -lt 12 ] || ! cmp -s <(printf PAR1) <(head -c 4 "$1") || ! cmp -s <(printf PAR1) <(tail -c 4 "$1"); then
        echo "its $bytes bytes do not begin and end as parquet does, with PAR1"
        return
    fi
    footer=$(($(tail -c 8 "$1" | od -An -t u4 -N 4)))
    [ "$footer" -gt 0 ] && [ "$footer" -le $((bytes - 12)) ] || echo "its footer says that it has $footer bytes, in a file of $bytes"
}

open_folder "$dir"
for number in 1822 $(seq 0 $(($1 - 1))); do
    printf -v name 'shard_%05d.parquet' "$number"
    download "$base/$name" "$dir/$name" check_parquet
done
echo "next: python3 data/parquet_to_jsonl.py '$dir'/shard_*.parquet   # needs 2.5 times the disk space of the parquet files, in addition"
echo "then: data/tokenize '$dir'/shard_*.jsonl --val '$dir/shard_01822.jsonl' --train-tokenizer 32768 --out '$dir/tokens'"
