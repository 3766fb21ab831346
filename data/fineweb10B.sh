#!/bin/bash
# data/fineweb10B.sh N [DIR]: the first N of 103 shards of 100 M tokens of FineWeb, and the validation shard, in llm.c's format and GPT-2's
# tokens, as the speedrun of GPT-2 publishes them, to DIR (default: fineweb10B). 200 MB each.
# BASE_URL is another place to fetch fineweb_val_000000.bin and fineweb_train_NNNNNN.bin from.
set -eu
. "$(dirname "$0")/fineweb_tokens.sh"
fetch_fineweb 10B 103 "$@"
