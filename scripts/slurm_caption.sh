#!/usr/bin/env bash
# Many images on a SLURM cluster: a job array whose tasks caption into one folder. Called in the project's folder; options of
# sbatch stand before the script, what follows it goes to hfcap caption:
#   sbatch --array=0-15 --gpus-per-node=1 scripts/slurm_caption.sh runs/mine 'shards/*.tar' -o captions --to-shards parquet
# A task that is stopped, before its time is over or by SLURM, gives its shard up and queues itself again; the others go on
# with that shard meanwhile. HFCAP_VENV names the virtual environment (default: .venv in the project).
#SBATCH --job-name=hfcap-caption
#SBATCH --array=0-7
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=04:00:00
#SBATCH --signal=B:TERM@60
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

stop() { printf 'error: %s\n' "$*" >&2; exit 2; }

usage="sbatch --array=0-7 scripts/slurm_caption.sh MODEL INPUT ... -o FOLDER --to-shards parquet"
[ -n "${SLURM_ARRAY_TASK_ID:-}" ] || stop "this script is a job array of a SLURM cluster: $usage"
[ $# -gt 0 ] || stop "which model and images? $usage"
# SLURM runs a copy of this file from elsewhere: the project is where sbatch was called.
cd "$SLURM_SUBMIT_DIR"
python=${HFCAP_VENV:-$PWD/.venv}/bin/python
[ -x "$python" ] || stop "no $python; make the environment first (scripts/quickstart.sh), or name it in HFCAP_VENV"

# A process for each GPU of the task.
processes=()
if ((${SLURM_GPUS_ON_NODE:-1} > 1)); then processes=(--num-processes "$SLURM_GPUS_ON_NODE"); fi

again=
"$python" -m hfcap caption "$@" ${processes[@]+"${processes[@]}"} &
working=$!
# The signal reaches this script alone.
trap 'again=yes; kill -TERM $working' TERM
code=0
wait $working || code=$?
if [ -n "$again" ]; then
    wait $working || true # the signal ended the first wait
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
