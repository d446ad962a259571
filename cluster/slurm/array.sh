#!/bin/sh
# A profile as a job array, without any engine: each task takes its share of the runs.
#
#   sbatch --array=0-3 cluster/slurm/array.sh lab                       # four tasks; numbers from 0, without gaps
#   sbatch --dependency=afterany:JOBID cluster/slurm/array.sh lab       # then what comes last, and what no task did
#
# Submit in the repository's folder. PYTHON names another environment than .venv.
#SBATCH --job-name=prehab
#SBATCH --cpus-per-task=2
#SBATCH --mem=16G
#SBATCH --time=12:00:00
#SBATCH --output=slurm-%x-%A_%a.log
set -eu
profile=${1:?name a profile: sbatch --array=0-3 cluster/slurm/array.sh lab}
shift
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  set -- --shard "$SLURM_ARRAY_TASK_ID/$SLURM_ARRAY_TASK_COUNT" "$@"
fi
# exec: what SLURM signals is the runner itself, whose runs die with it.
exec "${PYTHON:-.venv/bin/python}" -m prehab_lib run "$profile" -j "${SLURM_CPUS_PER_TASK:-2}" "$@"
