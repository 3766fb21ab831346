#!/bin/bash
# data/fineweb10B.sh N [DIR]: the first N of 103 shards of 100 M tokens of FineWeb, and the validation shard, as llm.c
# publishes them, in GPT-2's tokens, to DIR (default: fineweb10B). 200 MB each.
# BASE_URL is another place to fetch fineweb_val_000000.bin and fineweb_train_NNNNNN.bin from.
set -eu
. "$(dirname "$0")/download.sh"

[ $# -ge 1 ] && [ $# -le 2 ] && [[ $1 =~ ^[1-9][0-9]{0,2}$ ]] && [ "$1" -le 103 ] ||
    fail "expected a number of shards from 1 to 103: data/fineweb10B.sh N [DIR]"
dir=${2:-fineweb10B}
base=${BASE_URL:-https://huggingface.co/datasets/karpathy/fineweb10B-gpt2/resolve/main}

# The header of llmc/text/shard.h: magic, version, tokens.
check_shard() {
    local magic version tokens bytes
    bytes=$(bytes_of "$1")
    read -r magic version tokens < <(od -An -t d4 -N 12 "$1") || true
    if [ "$bytes" -lt 1024 ] || [ "$magic" != 20240520 ] || [ "$version" != 1 ]; then
        echo "its $bytes bytes do not begin as a shard does, with 20240520 1"
    elif [ "$bytes" != $((1024 + 2 * tokens)) ]; then
        echo "its header says $tokens tokens, $((1024 + 2 * tokens)) bytes, but it has $bytes"
    fi
}

open_folder "$dir"
for name in fineweb_val_000000 $(seq -f 'fineweb_train_%06.0f' 1 "$1"); do
    download "$base/$name.bin" "$dir/$name.bin" check_shard
done
cp "$(dirname "$0")/gpt2_vocab.bpe" "$dir/tokenizer.txt"  # where the trainer looks for it
echo "next: ./train_gpt --data '$dir/fineweb_train_*.bin' --val-data '$dir/fineweb_val_*.bin' --vocab-size 50304 ..."
