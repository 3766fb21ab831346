#!/bin/bash
# data/fineweb10B.sh N [DIR]: fetches the first N of 103 shards of FineWeb, and the validation shard, to DIR (default: fineweb10B). They are in
# llm.c's format with GPT-2 tokens, as published for the GPT-2 speedrun; 100 M tokens, 200 MB each.
# BASE_URL: another URL to fetch fineweb_val_000000.bin and fineweb_train_NNNNNN.bin from.
set -eu
. "$(dirname "$0")/fineweb_tokens.sh"
fetch_fineweb 10B 103 "$@"
