#!/bin/sh
# dev/setup.sh          installs the Debian packages that building, testing and plotting need; nothing when all are there
# dev/setup.sh --check  only says which of those that building needs are missing; exit 2 if any is
set -eu
build="g++ make libcli11-dev nlohmann-json3-dev libxxhash-dev"
[ "${TARGET:-cpu}" = cuda ] || build="$build libdnnl-dev libpcre2-dev"
rest="libdnnl-dev libpcre2-dev doctest-dev python3-matplotlib curl ca-certificates"

missing() {
    for package in "$@"; do
        dpkg-query -W -f '${Status}' "$package" 2>/dev/null | grep -q 'ok installed' || printf ' %s' "$package"
    done
}

if [ "${1:-}" = --check ]; then
    # Headers may also come from a folder (make THIRD_PARTY=dir): then the compiler tells what is missing.
    [ -n "${THIRD_PARTY:-}" ] || ! command -v dpkg-query >/dev/null || wanted=$(missing $build)
    [ -z "${wanted:-}" ] || { echo "setup: missing packages:$wanted; run dev/setup.sh" >&2; exit 2; }
    exit 0
fi

# Headers come from a folder: the compiler tells what is missing there.
[ -z "${THIRD_PARTY:-}" ] || exit 0
command -v apt-get >/dev/null || { echo "setup: no apt-get here; install the equivalents of: $build $rest" >&2; exit 2; }
wanted=$(missing $build $rest)
[ -n "$wanted" ] || exit 0
echo "setup: installing$wanted"
root=""
[ "$(id -u)" = 0 ] || root="sudo"
[ -z "$root" ] || command -v sudo >/dev/null || { echo "setup: not root, and no sudo here; as root: apt-get install$wanted" >&2; exit 2; }
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
install() { $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $wanted; }
if ! install >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    echo "setup: apt-get could not install$wanted (its last words are above)" >&2
    rm -f "$log"
    exit 2
fi
rm -f "$log"
