#!/usr/bin/env bash
# A training on a SLURM cluster, on one machine or several. Called in the project's folder; options of sbatch stand
# before the script, what follows it goes to hfcap run:
#   sbatch --gpus-per-node=4 --time=12:00:00 scripts/slurm.sh recipes/blip/coco_full.yaml data.root=/data/coco
# Two minutes before its time is over the training writes a checkpoint, and the job queues itself again and goes on from
# there; one that SLURM takes off a machine goes on from its last checkpoint. HFCAP_VENV names the virtual environment
# (default: .venv in the project), HFCAP_ACCELERATE a configuration of accelerate: for weights in pieces
#   HFCAP_ACCELERATE=recipes/accelerate/fsdp2.yaml sbatch --nodes=2 --gpus-per-node=8 scripts/slurm.sh RECIPE
#SBATCH --job-name=hfcap
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
set -euo pipefail

stop() { printf 'error: %s\n' "$*" >&2; exit 2; }

[ -n "${SLURM_JOB_ID:-}" ] || stop "this script is for a SLURM cluster: sbatch scripts/slurm.sh RECIPE [KEY=VALUE ...]"
[ $# -gt 0 ] || stop "which recipe? sbatch scripts/slurm.sh RECIPE [KEY=VALUE ...]"
# SLURM runs a copy of this file from elsewhere: the project is where sbatch was called.
cd "$SLURM_SUBMIT_DIR"
python=${HFCAP_VENV:-$PWD/.venv}/bin/python
[ -x "$python" ] || stop "no $python; make the environment first (scripts/quickstart.sh), or name it in HFCAP_VENV"

gpus=${SLURM_GPUS_ON_NODE:-0}
processes=$((SLURM_JOB_NUM_NODES * (gpus > 0 ? gpus : 1)))
nodes=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
launch=(--num_machines "$SLURM_JOB_NUM_NODES" --num_processes "$processes" --main_process_ip "${nodes%%$'\n'*}"
    --main_process_port $((20000 + SLURM_JOB_ID % 20000)) --mixed_precision no --dynamo_backend no)
config=${HFCAP_ACCELERATE:-}
if [ -n "$config" ]; then
    [ -f "$config" ] || stop "HFCAP_ACCELERATE: no file $config; name a configuration, such as recipes/accelerate/fsdp2.yaml"
    launch+=(--config_file "$config")
elif ((gpus == 0)); then
    launch+=(--cpu)
elif ((processes > 1)); then
    launch+=(--multi_gpu)
fi

again=
# The signal reaches this script alone; scancel hands it to the training.
trap 'again=yes; scancel --signal=TERM "$SLURM_JOB_ID"' TERM
# shellcheck disable=SC2016  # the number of the machine is known there
srun --kill-on-bad-exit=1 --cpus-per-task="${SLURM_CPUS_PER_TASK:-1}" bash -c '"$0" -m accelerate.commands.launch --machine_rank "$SLURM_NODEID" "$@"' \
    "$python" "${launch[@]}" -m hfcap run "$@" &
code=0
wait $! || code=$?
if [ -n "$again" ]; then
    wait || true # the signal ended the first wait
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
