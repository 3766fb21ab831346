#!/bin/sh
# test/two_hosts.sh COMMAND...: runs the command on a host a, whose only network is a link to a host b. Both are network namespaces of this machine
# (it takes root), and share its files and processes. mpirun --host a:2,b:2 works as it is: an agent takes the place of ssh. On host a,
# `ip link set to_b down` cuts the network.
set -eu
PATH=$PATH:/usr/sbin:/sbin
folder=$(mktemp -d)
networks=
end() {   # kills all that still runs on the hosts: where the network is cut, no signal reaches it otherwise
    for process in /proc/[0-9]*; do
        case "$networks" in *" $(readlink "$process/ns/net" 2>/dev/null || echo gone) "*) kill -9 "${process#/proc/}" 2>/dev/null || true ;; esac
    done
    rm -rf "$folder"
}
trap end EXIT
trap 'exit 130' INT TERM

# A host exists as long as a process runs in its namespaces.
for name in a b; do
    unshare --net --uts sh -c "hostname $name && ip link set lo up && touch '$folder/up.$name' && exec sleep 3600" &
    echo $! >"$folder/$name"
done
for try in $(seq 100); do
    [ -e "$folder/up.a" ] && [ -e "$folder/up.b" ] && break
    [ "$try" != 100 ] || { echo "two_hosts.sh: no namespaces here: it takes root, unshare of util-linux, and ip of iproute2" >&2; exit 3; }
    sleep 0.1
done
a=$(cat "$folder/a") b=$(cat "$folder/b")
networks=" $(readlink "/proc/$a/ns/net") $(readlink "/proc/$b/ns/net") "
ip link add to_b netns "$a" type veth peer name to_a netns "$b"
nsenter --net --target "$a" sh -c 'ip address add 10.77.0.1/24 dev to_b && ip link set to_b up'
nsenter --net --target "$b" sh -c 'ip address add 10.77.0.2/24 dev to_a && ip link set to_a up'
cat >"$folder/agent" <<AGENT
#!/bin/sh
host=\$1
shift
exec nsenter --net --uts --target "\$(cat "$folder/\$host")" sh -c "\$*"
AGENT
chmod +x "$folder/agent"
export OMPI_MCA_plm=rsh OMPI_MCA_plm_rsh_agent="$folder/agent" OMPI_MCA_oob_tcp_if_include=10.77.0.0/24 OMPI_MCA_btl_tcp_if_include=10.77.0.0/24
code=0
nsenter --net --uts --target "$a" "$@" || code=$?
exit $code
