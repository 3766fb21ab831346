#!/bin/sh
# dev/setup.sh          installs the missing packages for building, testing and plotting, with apt-get; on other systems it prints their names
# dev/setup.sh --check  installs nothing: refuses an unsuitable machine or compiler, and prints what is missing for a build
# dev/setup.sh --check doctest  the same for doctest, which only the tests need
# All print nothing when nothing is missing, and exit with 2 when something that is needed is. A part counts as present when a program that
# includes it compiles, or links, wherever it is installed. CXX: the compiler; THIRD_PARTY: a folder of headers, with which nothing is installed;
# TARGET=cuda: a build for GPUs, which runs on any processor, and needs neither oneDNN nor PCRE2 nor MPI.
set -eu
CXX=${CXX:-g++}
python=/usr/bin/python3   # the one that dev/run.sh plots with
[ -x "$python" ] || python=python3
refuse() {
    echo "setup: $*" >&2
    exit 2
}

# ------------------------------------------------------------------------------------------------------ parts and packages

# part, and its package for apt, dnf, pacman and zypper
packages='
compiler       g++                   gcc-c++             gcc                gcc-c++
make           make                  make                make               make
oneDNN         libdnnl-dev           onednn-devel        onednn             onednn-devel
CLI11          libcli11-dev          cli11-devel         cli11              cli11-devel
nlohmann-json  nlohmann-json3-dev    json-devel          nlohmann-json      nlohmann_json-devel
xxHash         libxxhash-dev         xxhash-devel        xxhash             xxhash-devel
PCRE2          libpcre2-dev          pcre2-devel         pcre2              pcre2-devel
MPI            libopenmpi-dev        openmpi-devel       openmpi            openmpi-devel
doctest        doctest-dev           doctest-devel       doctest            doctest-devel
matplotlib     python3-matplotlib    python3-matplotlib  python-matplotlib  python3-matplotlib
curl           curl,ca-certificates  curl                curl               curl
'
needed="compiler make CLI11 nlohmann-json xxHash"
[ "${TARGET:-cpu}" = cuda ] || needed="$needed oneDNN"
wanted="$needed oneDNN PCRE2 MPI doctest matplotlib curl"
[ "${1:-}" != --check ] || wanted=${2:-$needed}

# packages_for MANAGER PARTS: the names of their packages, in one line.
packages_for() {
    for part in $2; do
        echo "$packages" | awk -v part="$part" -v manager="$1" '
            BEGIN { column["apt"] = 2; column["dnf"] = 3; column["pacman"] = 4; column["zypper"] = 5 }
            $1 == part { gsub(",", " ", $column[manager]); printf " %s", $column[manager] }'
    done
}

# how_to_install PARTS: the command of this machine's package manager; where it is unknown, the commands of all four.
how_to_install() {
    ways=
    for manager in apt-get dnf pacman zypper any; do
        [ $manager = any ] || command -v $manager >/dev/null || continue
        case $manager in
            apt-get) ways="apt-get install$(packages_for apt "$1")" ;;
            dnf) ways="dnf install$(packages_for dnf "$1")" ;;
            pacman) ways="pacman -S$(packages_for pacman "$1")" ;;
            zypper) ways="zypper install$(packages_for zypper "$1")" ;;
            any) ways="apt-get install$(packages_for apt "$1"), or dnf install$(packages_for dnf "$1"), or pacman -S$(packages_for pacman "$1"), or zypper install$(packages_for zypper "$1")" ;;
        esac
        break
    done
    echo "$ways"
}

# ------------------------------------------------------------------------------------------------------------ this machine

if [ "${TARGET:-cpu}" != cuda ]; then
    machine=$(uname -m)
    case $machine in
        x86_64 | amd64) ;;
        *) refuse "this processor is $machine; the CPU engine needs x86-64 with AVX2 (a build for GPUs runs on any: make DEVICE=cuda)" ;;
    esac
    [ ! -r /proc/cpuinfo ] || grep -qw avx2 /proc/cpuinfo ||
        refuse "this processor has no AVX2, which the CPU engine needs (Intel's have it since 2013, AMD's since 2015); use another machine"
fi

# ----------------------------------------------------------------------------------------------------------- what is there

found=$(mktemp -d)
trap 'rm -rf "$found"' EXIT
# compiles PART FLAGS...: creates $found/PART if the program on stdin compiles.
compiles() {
    part=$1
    shift
    # $CXX may be two words, as in ccache g++.
    $CXX -std=c++20 ${THIRD_PARTY:+-isystem "$THIRD_PARTY"} -x c++ - -o "$found/program.$part" "$@" >/dev/null 2>&1 && : >"$found/$part"
}
# The C++20 that the sources need and older compilers lack: std::from_chars of numbers, and lambdas that capture structured bindings.
cpp20='
    #include <charconv>
    #include <span>
    int main() {
        struct { double x; int n; } pair{.x = 0, .n = 0};
        auto& [x, n] = pair;
        auto read = [&](std::span<const char> text) { return std::from_chars(text.data(), text.data() + text.size(), x); };
        return read(std::span("1", 1)).ec == std::errc() ? n : 1;
    }'
openmp='
    #include <omp.h>
    int main() { return omp_get_max_threads() < 1; }'

# Headers only go through the preprocessor: compiling the largest of them takes seconds.
if $CXX --version >"$found/version" 2>&1; then
    echo "$cpp20" | compiles cpp20 -fsyntax-only &
    echo "$openmp" | compiles openmp -fopenmp &
    : >"$found/compiler"
else
    rm -f "$found/version"
fi
for part in $wanted; do
    case $part in
        compiler) ;;
        make) ! command -v make >/dev/null || : >"$found/make" ;;
        curl) ! command -v curl >/dev/null || : >"$found/curl" ;;
        matplotlib) { ! "$python" -c 'import matplotlib' >/dev/null 2>&1 || : >"$found/matplotlib"; } & ;;
        CLI11) echo '#include <CLI/CLI.hpp>' | compiles CLI11 -E & ;;
        nlohmann-json) echo '#include <nlohmann/json.hpp>' | compiles nlohmann-json -E & ;;
        xxHash) echo '#include <xxhash.h>' | compiles xxHash -E & ;;
        doctest) echo '#include <doctest/doctest.h>' | compiles doctest -E & ;;
        oneDNN) printf '#include <oneapi/dnnl/dnnl.h>\nint main() { return !dnnl_version(); }' | compiles oneDNN -ldnnl & ;;
        PCRE2) printf '#include <pcre2.h>\nint main() { return pcre2_config_8(PCRE2_CONFIG_JIT, 0); }' | compiles PCRE2 -DPCRE2_CODE_UNIT_WIDTH=8 -lpcre2-8 & ;;
        MPI)   # Open MPI's compiler wrapper prints the flags; Fedora and openSUSE do not put it on the PATH
            for mpicc in "$(command -v mpicc)" /usr/lib64/openmpi/bin/mpicc /usr/lib64/mpi/gcc/openmpi*/bin/mpicc; do
                [ ! -x "$mpicc" ] || break
            done
            printf '#include <mpi.h>\nint main() { return MPI_Init(nullptr, nullptr); }' |
                compiles MPI -DOMPI_SKIP_MPICXX $("$mpicc" --showme:compile 2>/dev/null) $("$mpicc" --showme:link 2>/dev/null) &
            ;;
    esac
done
wait

missing=
for part in $wanted; do
    case "$missing " in *" $part "*) continue ;; esac
    [ -e "$found/$part" ] || missing="$missing $part"
done
if [ -e "$found/version" ]; then
    compiler="$CXX ($(head -n 1 "$found/version"))"
    [ -e "$found/cpp20" ] || refuse "the compiler $compiler is too old for the C++20 of these sources: g++ 11 is the first that does; name another one, as in make CXX=g++-12"
    [ -e "$found/openmp" ] || refuse "the compiler $compiler has no OpenMP; install it (g++ brings its own, clang takes libomp), or name another one: make CXX=g++"
elif [ "$CXX" != g++ ]; then
    refuse "no compiler $CXX here; install it, or name another one: make CXX=g++"
fi
[ -n "$missing" ] || exit 0

# ---------------------------------------------------------------------------------------------------------- what is missing

# Without a compiler the other parts cannot be checked.
missing=${missing# }
says="not here: $(echo "$missing" | sed 's/ /, /g')"
[ -e "$found/version" ] || says="no compiler here (g++), and without one the other parts cannot be checked"
if [ "${1:-}" = --check ]; then
    refuse "$says; make deps installs what building and testing need, or: $(how_to_install "$missing")"
fi
if [ -n "${THIRD_PARTY:-}" ]; then
    for part in $needed; do
        [ -e "$found/$part" ] || refuse "$says, neither in $THIRD_PARTY nor elsewhere; put it there, or: $(how_to_install "$missing")"
    done
    echo "setup: $says; nothing is installed, since THIRD_PARTY is given" >&2
    exit 0
fi
command -v apt-get >/dev/null || refuse "$says; install it, as root: $(how_to_install "$missing")"
root=""
[ "$(id -u)" = 0 ] || root="sudo"
[ -z "$root" ] || command -v sudo >/dev/null || refuse "$says; not root, and no sudo here; as root: $(how_to_install "$missing")"
names=$(packages_for apt "$missing")
echo "setup: installing$names"
log=$found/log
install() { $root apt-get update -qq && $root env DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends $names; }
if ! install >"$log" 2>&1; then
    tail -n 5 "$log" >&2
    refuse "apt-get could not install$names (the end of its output is above)"
fi
