# Downloads that resume, and folders that only one script at a time writes to. For the scripts in this folder, which source this file.

# fail TEXT: ends the script with one short line, as the programs do (llmc/io/error.h).
fail() {
    local text
    text="$(basename "$0"): ${*//[[:cntrl:]]/ }"
    [ ${#text} -le 600 ] || text="${text:0:360}... ($((${#text} - 600)) characters left out) ...${text: -240}"
    echo "$text" >&2
    exit 2
}

bytes_of() { stat -c %s "$1" 2>/dev/null || echo 0; }

# lock_folder DIR: makes the folder, and locks it until this script ends.
lock_folder() {
    { mkdir -p "$1" && exec 9<"$1"; } 2>/dev/null || fail "cannot make the folder '$1'; name another one"
    flock -n 9 || fail "another download is going into '$1'; wait for it, or name another folder"
}

# open_folder DIR: the same, for scripts that call download.
open_folder() {
    command -v curl >/dev/null || fail "curl is missing; install it (make deps)"
    lock_folder "$1"
}

# download URL FILE CHECK: fetches URL to FILE, whole, or ends the script with one line of error.
# The bytes arrive in FILE.tmp, which is kept when the network fails; the next call resumes at its end.
# CHECK FILE prints what is wrong with a file, and nothing for the published one. It also checks a FILE that exists already.
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
            22,416) break ;;  # no bytes beyond those that we have: the check below decides whether they are complete
            22,*) fail "the server answers $status for $url; is it published there? What has arrived is kept; try again later" ;;
            23,*) fail "cannot write '$part'; is the disk full? Make room and run this again; it resumes there" ;;
            33,*) rm -f "$part"; continue ;;  # this server does not support ranges
        esac
        [ "$(bytes_of "$part")" -gt "$before" ] || break
    done
    [ "$error" = 0 ] || [ "$status" = 416 ] ||
        fail "cannot fetch $url (curl error $error); is there a network? What has arrived is kept; run this again to resume"
    wrong=$($check "$part")
    if [ -n "$wrong" ]; then
        rm -f "$part"
        fail "what came from $url is not the published file: $wrong; it was removed, run this again"
    fi
    sync "$part" && mv "$part" "$file"
    echo "$file: $(bytes_of "$file") bytes"
}
