#!/bin/bash
# data/linux_source.sh [--vocab-size V] [--tokens N] [--val-tokens N] [--piece-bytes N] [--out DIR]: makes a corpus of the Linux source in Debian's
# package linux-source: shards of a million tokens, and a tokenizer of V tokens, in DIR (defaults: 4096; all of the text; 2e6; whole files; linux). The
# same package gives the same bytes.
#
# --piece-bytes splits files, each time at the first line end after N bytes, and shuffles the pieces. Without it a batch of a few rows is from one
# file, and successive batches are so similar that the order of the data changes the loss more than the model does.
#
# The text is LINUX_SOURCE=linux-6.1.tar.xz, else /usr/src/linux-source-*.tar.xz, else what apt-get download fetches (140 MB, kept beside DIR for the
# next call; nothing is installed). Unpacked it takes 1.2 GB for a minute. DIR appears when it is complete; source.txt in it names what it was made of.
#
# A document is a file, or a piece of one: C, assembly, Kconfig, and English (.rst, .txt, the descriptions in Documentation/ABI), 770 MB in all.
# Duplicates are dropped, and the order is shuffled. Every hundredth file is for validation; files are assigned before they are split, so no file is on
# both sides. What is left out would be a third of the text, and teaches a model little more than to count:
#   asic_reg, drivers/gpu/drm/amd/include   generated register definitions: 380 MB of #define
#   files of more than 256 KiB              mostly tables of the same kind; 105 of 63,500
#   .dts, .json and all else                boards and performance counters as data, pictures, scripts
set -eu
export LC_ALL=C
. "$(dirname "$0")/download.sh"
tokenize=$(dirname "$0")/tokenize
unwanted=(asic_reg drivers/gpu/drm/amd/include '*.json' '*.dts' '*.dtsi' '*.svg' '*.ppm')
wanted=(-name '*.c' -o -name '*.h' -o -name '*.S' -o -name '*.rst' -o -name '*.txt' -o -name 'Kconfig*' -o -path '*/Documentation/ABI/*')

# ------------------------------------------------------------------------------------------------------------ arguments
vocab=4096 tokens=0 val_tokens=2e6 piece_bytes=0 out=linux
usage="data/linux_source.sh [--vocab-size V] [--tokens N] [--val-tokens N] [--piece-bytes N] [--out DIR]"
while [ $# -gt 0 ]; do
    [ $# -ge 2 ] || fail "'$1' is no option, or lacks its value; expected $usage"
    case $1 in
        --vocab-size) vocab=$2 ;;
        --tokens) tokens=$2 ;;
        --val-tokens) val_tokens=$2 ;;
        --piece-bytes) piece_bytes=$2 ;;
        --out) out=$2 ;;
        *) fail "'$1' is no option; expected $usage" ;;
    esac
    shift 2
done
while [[ $out == ?*/ ]]; do out=${out%/}; done
[ -n "$out" ] || fail "--out is empty; name a folder"
[[ $vocab =~ ^[1-9][0-9]{0,5}$ ]] && [ "$vocab" -ge 257 ] && [ "$vocab" -le 65536 ] ||
    fail "--vocab-size is '$vocab', but must be 257 (every byte, and the start of a document) to 65536"
number='^[0-9]{1,12}(\.[0-9]{1,9})?(e[0-9])?$'
[[ $tokens =~ $number ]] || fail "--tokens is '$tokens', but must be a number like 60e6, or 0 for all there are"
[[ $val_tokens =~ $number ]] || fail "--val-tokens is '$val_tokens', but must be a number like 2e6, or 0 for all there are"
[[ $piece_bytes =~ ^[0-9]{1,9}$ ]] || fail "--piece-bytes is '$piece_bytes', but must be a number of bytes, or 0 for whole files"
printf -v tokens %.0f "$tokens"
printf -v val_tokens %.0f "$val_tokens"
made_by="data/linux_source.sh --vocab-size $vocab --tokens $tokens --val-tokens $val_tokens --piece-bytes $piece_bytes"

[ -x "$tokenize" ] || fail "data/tokenize is not built; run make"
tarball=${LINUX_SOURCE:-}
[ -z "$tarball" ] || [ -f "$tarball" ] || fail "LINUX_SOURCE is '$tarball', which is not a file; name a tar of Linux's source"

sum_of() { sha256sum <"$1" | cut -d ' ' -f 1; }

# Ends the script if the folder has what was asked for, and with an error if it has something else.
look_at_out() {
    local first= line
    [ -e "$out" ] && [ -n "$(ls -A "$out")" ] || return 0
    [ -f "$out/source.txt" ] || fail "'$out' is there and was not made by this script; name another folder with --out"
    read -r first <"$out/source.txt" || true
    [ "$first" = "$made_by" ] || fail "'$out' has what $first made; remove it, or name another folder with --out"
    line="SHA-256 $([ -z "$tarball" ] || sum_of "$tarball")"
    [ -z "$tarball" ] || grep -qxF "$line" "$out/source.txt" ||
        fail "'$out' was made of another text than LINUX_SOURCE=$tarball; remove it, or name another folder with --out"
    echo "$out: already there"
    exit 0
}

# ----------------------------------------------------------------------------------------------------- one at a time, whole or not at all
work=$out.tmp
look_at_out
lock_folder "$work"
look_at_out   # the process that held the lock may have made it
trap 'rm -rf "$work"' EXIT
# On a signal: ends the running program, too.
stop() {
    trap '' INT TERM HUP
    kill $(jobs -p) 2>/dev/null || true
    wait
    fail "stopped by a signal; '$out' was not made"
}
trap stop INT TERM HUP

# try COMMAND...: runs it so that a signal to the script ends it too. When it fails, $said is its error message.
try() {
    "$@" 2>"$work/said" &
    wait $! && return
    said=$(grep -v warning: "$work/said" | head -n 1)
    said=${said:-it printed no error; is the disk full?}
    return 1
}

rm -rf "${work:?}"/*
mkdir "$work/text"

# -------------------------------------------------------------------------------------------------------------- the tar
# newest FOLDER: the tar of the highest version in it.
newest() { find "$1" -type f -name 'linux-source-*.tar.*' 2>/dev/null | sort -V | tail -n 1; }

# get_package: leaves the package in $package, beside DIR.
get_package() {
    local tool name version sum beside
    beside=$(dirname "$out")
    for tool in apt-get apt-cache dpkg-deb; do
        command -v $tool >/dev/null || fail "$tool is missing, so there is no package linux-source; get a tar from kernel.org and name it: LINUX_SOURCE=linux-6.1.tar.xz"
    done
    name=$(apt-cache depends linux-source 2>/dev/null | sed -n 's/^ *Depends: \(linux-source-[^ ]*\)$/\1/p' | head -n 1)
    [ -n "$name" ] || fail "apt-cache knows no package linux-source; run apt-get update as root, or name a tar of the source: LINUX_SOURCE=linux-6.1.tar.xz"
    version=$(apt-cache show --no-all-versions "$name" | sed -n 's/^Version: //p')
    sum=$(apt-cache show --no-all-versions "$name" | sed -n 's/^SHA256: //p')
    package=$beside/${name}_${version//:/%3a}_all.deb

    exec 8<"$beside"
    flock -n 8 || { echo "waiting for another linux_source.sh, which downloads into '$beside'" && try flock 8; }
    if [ ! -f "$package" ] || [ "$(sum_of "$package")" != "$sum" ]; then
        echo "fetching $name $version"
        # As root, apt-get would download as the user _apt, who may not be allowed to write here.
        try env -C "$beside" apt-get -qq -o APT::Sandbox::User="$(id -un)" download "$name=$version" ||
            fail "cannot fetch $name $version: $said; what has arrived is kept: run this again, or as root apt-get update before"
        if [ "$(sum_of "$package")" != "$sum" ]; then
            rm -f "$package"
            fail "'$package' does not have the SHA-256 that apt-cache lists for it; it was removed, run this again"
        fi
    fi
    exec 8<&-
}

[ -n "$tarball" ] || tarball=$(newest /usr/src)
if [ -z "$tarball" ]; then
    get_package
    try dpkg-deb --extract "$package" "$work/package" || fail "cannot unpack '$package' to '$work': $said"
    tarball=$(newest "$work/package/usr/src")
    [ -n "$tarball" ] || fail "'$package' has no usr/src/linux-source-*.tar.*; name a tar of the source: LINUX_SOURCE=linux-6.1.tar.xz"
fi

# ------------------------------------------------------------------------------------------------------- text, and tokens
echo "unpacking $tarball"
case $tarball in *.xz) command -v xz >/dev/null || fail "xz is missing; install it (the package xz-utils, or xz)" ;; esac
try tar --force-local -xf "$tarball" -C "$work/text" --no-same-owner --no-same-permissions "${unwanted[@]/#/--exclude=}" ||
    fail "cannot unpack '$tarball' to '$work': $said; is it whole, and are 1.5 GB free there?"
sum=$(sum_of "$tarball")
find "$work/text" ! -type d \( ! -type f -o -empty -o -size +256k -o ! \( "${wanted[@]}" \) \) -delete
# Validation is chosen by file, so that no file has pieces on both sides.
mkdir "$work/val"
(cd "$work/text" && find . -type f | sort | awk 'NR % 100 == 0' | tar -cf - -T - --remove-files) | tar -xf - -C "$work/val" ||
    fail "cannot hold out files in '$work'; is the disk full?"
pieces=()
[ "$piece_bytes" = 0 ] || pieces=(--separator $'\n' --piece-bytes "$piece_bytes")

try "$tokenize" "$work/text" --val "$work/val" --unique "${pieces[@]}" --train-tokenizer "$vocab" --train-tokens "$tokens" --val-tokens "$val_tokens" \
    --shard-tokens 1000000 --out "$work/shards" >"$work/printed" || fail "${said//train-tokens/tokens}"
cat "$work/said" >&2
grep -v -e '^shard: ' -e '^written: ' "$work/printed"
printf '%s\ntext %s\nSHA-256 %s\n' "$made_by" "$(basename "${package:-$tarball}")" "$sum" >"$work/shards/source.txt" &&
    sync "$work/shards/source.txt" && mv -T "$work/shards" "$out" || fail "cannot make '$out'; name another folder with --out"
echo "next: ./train_gpt --data '$out/train_*.bin' --val-data '$out/val_*.bin' --vocab-size $vocab ..."
