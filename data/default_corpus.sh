#!/bin/bash
# data/default_corpus.sh [DIR [OPTIONS OF data/tokenize]]: makes the default corpus, the C and C++ headers that every machine with
# g++ has, as shards in DIR (default: corpus). About 16 MB of text, 5 M tokens.
set -eu
top=$(dirname "$0")/..
out=${1:-corpus}
[ -x "$top/data/tokenize" ] || { echo "default_corpus.sh: data/tokenize is not built; run make" >&2; exit 2; }
exec "$top/data/tokenize" /usr/include/asm-generic /usr/include/c++ /usr/include/linux --train-tokenizer 4096 --out "$out" "${@:2}"
