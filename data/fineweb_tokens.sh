# FineWeb in GPT-2 tokens: the common part of fineweb10B.sh and fineweb100B.sh, which source this file.
. "$(dirname "$0")/download.sh"

# Checks the header that llmc/text/shard.h documents: magic, version, number of tokens.
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

# fetch_fineweb SIZE SHARDS N [DIR]: the first N shards, and the validation shard, of the set named SIZE, which has SHARDS shards.
fetch_fineweb() {
    local size=$1 shards=$2 name dir base
    shift 2
    [ $# -ge 1 ] && [ $# -le 2 ] && [[ $1 =~ ^[1-9][0-9]{0,3}$ ]] && [ "$1" -le "$shards" ] ||
        fail "expected a number of shards from 1 to $shards: data/fineweb$size.sh N [DIR]"
    dir=${2:-fineweb$size}
    base=${BASE_URL:-https://huggingface.co/datasets/kjj0/fineweb$size-gpt2/resolve/main}
    open_folder "$dir"
    for name in fineweb_val_000000 $(seq -f 'fineweb_train_%06.0f' 1 "$1"); do
        download "$base/$name.bin" "$dir/$name.bin" check_shard
    done
    cp "$(dirname "$0")/gpt2_vocab.bpe" "$dir/tokenizer.txt"  # where the trainer looks for it
    echo "next: ./train_gpt --data '$dir/fineweb_train_*.bin' --val-data '$dir/fineweb_val_*.bin' --vocab-size 50304 ..."
}
