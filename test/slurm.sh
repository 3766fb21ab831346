#!/bin/sh
# test/slurm.sh COMMAND...: starts a Slurm cluster of one node, this machine, and runs the command on it (as root; packages: munge, slurmd,
# slurmctld, slurm-client). Everything is removed afterwards. The daemons' logs are in $SLURM_FOLDER until then.
set -eu
PATH=$PATH:/usr/sbin:/sbin
SLURM_FOLDER=$(mktemp -d)
export SLURM_FOLDER SLURM_CONF="$SLURM_FOLDER/slurm.conf"
chmod 755 "$SLURM_FOLDER"
daemons=
end() {
    for daemon in $daemons; do kill "$daemon" 2>/dev/null || true; done
    wait || true
    rm -rf "$SLURM_FOLDER"
}
trap end EXIT
trap 'exit 130' INT TERM

# A port that is free together with the next one.
port=$(python3 -c '
import socket
while True:
    with socket.socket() as a, socket.socket() as b:
        a.bind(("", 0))
        port = a.getsockname()[1]
        try: b.bind(("", port + 1))
        except OSError: continue
        print(port)
        break')
host=$(hostname -s)
cpus=$(nproc)
mkdir "$SLURM_FOLDER/state" "$SLURM_FOLDER/spool"
cat >"$SLURM_CONF" <<CONFIGURATION
ClusterName=here
SlurmctldHost=$host(127.0.0.1)
SlurmctldPort=$port
SlurmdPort=$((port + 1))
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$SLURM_FOLDER/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
ReturnToService=2
SlurmctldPidFile=$SLURM_FOLDER/slurmctld.pid
SlurmdPidFile=$SLURM_FOLDER/slurmd.pid
StateSaveLocation=$SLURM_FOLDER/state
SlurmdSpoolDir=$SLURM_FOLDER/spool
SlurmctldLogFile=$SLURM_FOLDER/slurmctld.log
SlurmdLogFile=$SLURM_FOLDER/slurmd.log
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
KillWait=2
SlurmdParameters=config_overrides
NodeName=$host NodeAddr=127.0.0.1 CPUs=$((cpus > 4 ? cpus : 4)) State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=INFINITE State=UP OverSubscribe=YES
CONFIGURATION

head -c 1024 /dev/urandom >"$SLURM_FOLDER/munge.key"
chmod 400 "$SLURM_FOLDER/munge.key"
munged --foreground --force --socket="$SLURM_FOLDER/munge.socket" --key-file="$SLURM_FOLDER/munge.key" --pid-file="$SLURM_FOLDER/munged.pid" \
    --seed-file="$SLURM_FOLDER/munge.seed" --log-file="$SLURM_FOLDER/munged.log" 2>/dev/null &
daemons="$daemons $!"
for try in $(seq 50); do [ -S "$SLURM_FOLDER/munge.socket" ] && break; sleep 0.1; done
slurmctld -D -f "$SLURM_CONF" >/dev/null 2>&1 &
daemons="$daemons $!"
slurmd -D -N "$host" -f "$SLURM_CONF" >/dev/null 2>&1 &
daemons="$daemons $!"
for try in $(seq 100); do
    [ "$(sinfo -h -o %T 2>/dev/null)" = idle ] && break
    [ "$try" != 100 ] || { tail -n 5 "$SLURM_FOLDER"/*.log >&2; echo "slurm.sh: Slurm did not start in ten seconds; the last lines of its logs are above" >&2; exit 3; }
    sleep 0.1
done
code=0
"$@" || code=$?
exit $code
