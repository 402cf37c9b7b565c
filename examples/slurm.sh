#!/bin/bash
# Trainshed under Slurm: one supervisor on one node, on the GPUs that the job was given. Several nodes are several jobs, each with a file of its own.
#
#     sbatch examples/slurm.sh mine.toml
#
#SBATCH --job-name=trainshed
#SBATCH --nodes=1
#SBATCH --ntasks=1
#SBATCH --gpus-per-node=8
#SBATCH --exclusive
#SBATCH --time=2-00:00:00
#SBATCH --signal=B:TERM@300
#SBATCH --requeue
#SBATCH --output=trainshed-%j.log

# `--signal` above: five minutes before the end of its time the run is told to stop, and its trainers save what they have.
# The job is put back into the queue then, and goes on from the newest checkpoint.
set -u
file=$1
name=$(basename "$file" .toml)
resume=()
if compgen -G "runs/$name/attempt_*" >/dev/null; then
    resume=(--resume)
fi
# The GPUs of the job, by UUID: Slurm counts them in its own way
gpus=$(nvidia-smi --query-gpu=uuid --format=csv,noheader | sed 's/.*/"&"/' | paste -sd, -)

supervisor=
told=
trap 'told=yes; kill -TERM $supervisor' TERM
"${TRAINSHED:-$HOME/trainshed}/bin/supervise" run "$file" --set "host.gpus=[$gpus]" "${resume[@]}" &
supervisor=$!
wait "$supervisor"
code=$?
while [ -n "$told" ]; do # the signal has ended the waiting, not the run
    told=
    wait "$supervisor"
    code=$?
done
if [ "$code" -eq 5 ]; then # stopped before its end: go on later
    scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
