#!/usr/bin/env bash
# Four workers on SLURM: sbatch slurm.sh
#
# TensorFlow's SlurmClusterResolver reads the step's variables. A worker that fails ends
# the others (--kill-on-bad-exit). The job is then queued again and resumes from its
# backup; so it does where SLURM takes the nodes back.
#SBATCH --job-name=distil
#SBATCH --nodes=4
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=12:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
set -uo pipefail

srun --kill-on-bad-exit=1 \
  python several_workers.py --directory "$SLURM_SUBMIT_DIR/distil" --epochs 90
code=$?
# Ten attempts at most.
if [ "$code" -ne 0 ] && [ "${SLURM_RESTART_COUNT:-0}" -lt 9 ]; then
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
