#!/bin/sh
# The whole SLURM path on this machine alone: a one-node SLURM on loopback, then cluster/slurm_scenario.py in it.
#
#   apt-get install slurm-wlm munge         # Debian 12 or newer, Ubuntu 22.04 or newer; then, as root:
#   cluster/try_slurm.sh                    # five small notebooks; three to six minutes
#
# Everything lies in a folder that is removed at the end, but /etc/slurm/slurm.conf, which has to stand there: the job step of
# Snakemake's plugin drops the variable SLURM_CONF. One that is there already is left alone, and nothing is run.
set -eu
home=$(cd "$(dirname "$0")/.." && pwd)
python=${PYTHON:-$home/.venv/bin/python}
conf=/etc/slurm/slurm.conf
mark="# written by try_slurm.sh"

[ "$(id -u)" = 0 ] || { echo "run this as root, in a container or a machine that nobody else uses: it starts daemons" >&2; exit 2; }
for command in slurmctld slurmd munged; do
  command -v $command >/dev/null || { echo "there is no $command: apt-get install slurm-wlm munge" >&2; exit 2; }
done
if [ -e $conf ] && ! grep -qx "$mark" $conf; then
  echo "$conf is somebody's: this script would replace it, so it stops" >&2; exit 2
fi
"$python" -c "import snakemake, snakemake_executor_plugin_slurm" || {
  echo "$python has no Snakemake for SLURM: pip install -e '.[batch]'" >&2; exit 2; }

folder=$(mktemp -d); node=$(hostname -s); slurmctld=""; slurmd=""; munged=""
finish() {
  scancel --user=root 2>/dev/null && sleep 2 || true
  for pid in $slurmd $slurmctld $munged; do kill "$pid" 2>/dev/null || true; done
  rm -f $conf
  if [ -n "${KEEP:-}" ]; then echo "kept: $folder"; else rm -rf "$folder"; fi
}
trap finish EXIT
trap 'exit 130' INT TERM

if ! munge -n 2>/dev/null | unmunge >/dev/null 2>&1; then # no munged answers yet
  install -d -m 755 -o munge -g munge /run/munge
  su -s /bin/sh munge -c "exec munged --foreground" 2>"$folder/munged.log" & munged=$!
  sleep 1
fi
mkdir -p /etc/slurm "$folder/state" "$folder/spool"
cat >$conf <<EOF
$mark
ClusterName=loopback
SlurmctldHost=$node(127.0.0.1)
SlurmUser=root
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/slurmd.pid
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
NodeName=$node NodeAddr=127.0.0.1 CPUs=$(getconf _NPROCESSORS_ONLN) RealMemory=$(awk '/MemTotal/ {print int($2 / 1024 * 0.8)}' /proc/meminfo) State=UNKNOWN
PartitionName=main Nodes=$node Default=YES MaxTime=INFINITE State=UP
EOF
slurmctld -D >"$folder/slurmctld.log" 2>&1 & slurmctld=$!
slurmd -D >"$folder/slurmd.log" 2>&1 & slurmd=$!
for _ in $(seq 30); do sinfo -h -o %T 2>/dev/null | grep -q idle && break; sleep 0.5; done
sinfo -h -o %T 2>/dev/null | grep -q idle || { echo "SLURM did not come up:" >&2; tail "$folder"/*.log >&2; exit 1; }
echo "SLURM $(sinfo --version | cut -d' ' -f2), node $node with $(sinfo -h -o '%c CPUs and %m MB')"

cd "$home"
"$python" -m cluster.slurm_scenario "$folder"
