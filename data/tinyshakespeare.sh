#!/bin/bash
# data/tinyshakespeare.sh [DIR]: fetches 1.1 MB of plays (Karpathy 2015) to DIR (default: tinyshakespeare).
# BASE_URL: another URL to fetch input.txt from.
set -eu
. "$(dirname "$0")/download.sh"

dir=${1:-tinyshakespeare}
base=${BASE_URL:-https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare}
[ $# -le 1 ] || fail "expected one folder at most: data/tinyshakespeare.sh [DIR]"

check_text() {
    local sum
    sum=$(sha256sum <"$1")
    [ "${sum%% *}" = 86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed ] ||
        echo "its $(bytes_of "$1") bytes have the SHA-256 ${sum%% *}, expected 86c4e6aa..."
}

open_folder "$dir"
download "$base/input.txt" "$dir/input.txt" check_text
# The last tenth, from the start of a speech, is for validation.
head -n 35527 "$dir/input.txt" >"$dir/train.txt"
tail -n +35528 "$dir/input.txt" >"$dir/val.txt"
echo "next: data/tokenize $dir/train.txt --val $dir/val.txt --train-tokenizer 1024 --out $dir"
