#!/usr/bin/env bash
# A real Slurm on one machine, for the tests: two nodes with four CPUs and four GPUs each, which are none. As root on
# Debian or Ubuntu:
#
#     slurm.sh install          # by apt
#     slurm.sh up FOLDER        # then: export SLURM_CONF=FOLDER/slurm.conf
#     slurm.sh down FOLDER
#
# Whatever it writes is in FOLDER, and its ports are free ones, so that it meets no other Slurm of the machine.
set -euo pipefail

install() {
    apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends slurm-wlm munge
}

free_ports() {
    python3 -c 'import socket
print(*[s.getsockname()[1] for s in [socket.create_server(("127.0.0.1", 0)) for _ in range(3)]])'
}

# The nodes are named by addresses of the loopback, so that a task finds the first node by its name. Jobs begin with
# any number, since JAX derives the coordinator's port from it.
configure() {
    local controller first second
    read -r controller first second < <(free_ports)
    mkdir -p "$folder"/{state,log,spool/127.0.0.{1,2}}
    for gpu in 0 1 2 3; do ln -sf /dev/null "$folder/gpu$gpu"; done
    echo "CgroupAutomount=no" >"$folder/cgroup.conf"
    echo "NodeName=127.0.0.[1-2] Name=gpu File=$folder/gpu[0-3]" >"$folder/gres.conf"
    cat >"$folder/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=$(hostname -s)(127.0.0.1)
SlurmctldPort=$controller
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/munge.socket
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.%n.pid
SlurmctldLogFile=$folder/log/slurmctld
SlurmdLogFile=$folder/log/slurmd.%n
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
FirstJobId=$((RANDOM + 1))
GresTypes=gpu
NodeName=127.0.0.1 Port=$first CPUs=4 Gres=gpu:4
NodeName=127.0.0.2 Port=$second CPUs=4 Gres=gpu:4
PartitionName=test Nodes=ALL Default=YES
CONF
}

up() {
    configure
    export SLURM_CONF=$folder/slurm.conf
    (umask 077 && head -c 128 /dev/urandom >"$folder/munge.key")
    munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munged.pid" \
        --log-file="$folder/log/munged" --seed-file="$folder/munge.seed"
    slurmctld
    for node in 127.0.0.1 127.0.0.2; do slurmd -N "$node"; done
    for _ in {1..300}; do
        [ "$(sinfo --noheader --format=%T%D 2>&1)" != idle2 ] || return 0
        sleep 0.1
    done
    tail -n 20 "$folder"/log/* >&2
    down
    return 1
}

down() {
    local file pid
    SLURM_CONF=$folder/slurm.conf scancel --full --signal=KILL --user=root 2>/dev/null || true
    for file in "$folder"/slurmd.*.pid "$folder"/{slurmctld,munged}.pid; do
        read -r pid 2>/dev/null <"$file" && kill "$pid" && timeout 20 tail --pid="$pid" -f /dev/null || true
    done
}

[ "$1" = install ] || folder=$(realpath -m "$2")
"$1"
