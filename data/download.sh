# Downloads that go on where they stopped, and folders that one script at a time works in. For the scripts beside it, which source this file.

# fail TEXT: ends the script with one short line, as the programs do (llmc/io/error.h).
fail() {
    local text
    text="$(basename "$0"): ${*//[[:cntrl:]]/ }"
    [ ${#text} -le 600 ] || text="${text:0:360}... ($((${#text} - 600)) characters left out) ...${text: -240}"
    echo "$text" >&2
    exit 2
}

bytes_of() { stat -c %s "$1" 2>/dev/null || echo 0; }

# lock_folder DIR: makes the folder, and keeps other scripts out of it until this one ends.
lock_folder() {
    { mkdir -p "$1" && exec 9<"$1"; } 2>/dev/null || fail "cannot make the folder '$1'; name another one"
    flock -n 9 || fail "another download is going into '$1'; wait for it, or name another folder"
}

# open_folder DIR: the same, for what comes through download.
open_folder() {
    command -v curl >/dev/null || fail "curl is missing; install it (make deps)"
    lock_folder "$1"
}

# download URL FILE CHECK: afterwards FILE is there and whole; else the script ends with a line that says why.
# Bytes arrive in FILE.tmp. It stays when the network fails, and the next run goes on from its end.
# CHECK FILE prints what is wrong with a file, nothing when it is as published. It judges what is there before, too.
download() {
    local url=$1 file=$2 check=$3 part=$2.tmp wrong before error status try
    if [ -e "$file" ]; then
        wrong=$($check "$file")
        [ -z "$wrong" ] || fail "'$file' is not the published file: $wrong; remove it and run this again"
        echo "$file: already there"
        return
    fi
    for try in 1 2 3 4 5 6 7 8 9 10; do
        before=$(bytes_of "$part")
        error=0
        status=$(curl --fail --location --continue-at - --connect-timeout 20 --speed-limit 1 --speed-time 60 \
                      "$([ -t 2 ] && echo --progress-bar || echo --silent)" --write-out '%{http_code}' --output "$part" "$url") || error=$?
        case $error,$status in
            0,*) break ;;
            22,416) break ;;  # nothing lies beyond what is here: the check below says whether that is all
            22,*) fail "the server answers $status for $url; is it published there? Nothing is lost, try again later" ;;
            23,*) fail "cannot write '$part'; is the disk full? Make room and run this again, it goes on from there" ;;
            33,*) rm -f "$part"; continue ;;  # this server cannot go on from the middle
        esac
        [ "$(bytes_of "$part")" -gt "$before" ] || break
    done
    [ "$error" = 0 ] || [ "$status" = 416 ] ||
        fail "cannot fetch $url (curl error $error); is there a network? What has arrived is kept, run this again to go on"
    wrong=$($check "$part")
    if [ -n "$wrong" ]; then
        rm -f "$part"
        fail "what came from $url is not the published file: $wrong; it was removed, run this again"
    fi
    sync "$part" && mv "$part" "$file"
    echo "$file: $(bytes_of "$file") bytes"
}
