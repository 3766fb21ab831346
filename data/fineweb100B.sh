#!/bin/bash
# data/fineweb100B.sh N [DIR]: as fineweb10B.sh, from FineWeb's sample of 100 B tokens, which has 1030 shards, to DIR (default: fineweb100B).
set -eu
. "$(dirname "$0")/fineweb_tokens.sh"
fetch_fineweb 100B 1030 "$@"
