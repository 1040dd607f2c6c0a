#!/bin/bash
# Train on Slurm: sbatch cluster/slurm.sh. One torchrun a node; a preempted or timed-out job saves and is queued again.
#SBATCH --job-name=convzoo
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=32
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@120
RECIPE=${RECIPE:-densenet121-imagenet}
DATA=${DATA:?the folder of the pictures, on every node}
RUN=${RUN:-$PWD/runs/$RECIPE-$SLURM_JOB_ID} # on a disk that all nodes share; the job's number outlives a requeue
RANKS_PER_NODE=${RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
HEAD=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
HERE=${SLURM_SUBMIT_DIR:-$PWD}

srun --kill-on-bad-exit=1 bash "$HERE/cluster/run.sh" "$RUN" torchrun \
    --nnodes="$SLURM_JOB_NUM_NODES" --nproc-per-node="$RANKS_PER_NODE" --max-restarts=3 \
    --rdzv-id="$SLURM_JOB_ID" --rdzv-backend=c10d --rdzv-endpoint="$HEAD:${PORT:-29400}" \
    -m convzoo train "$RECIPE" --data "$DATA" --out "$RUN" "$@" &
step=$!
trap 'kill -TERM $step 2>/dev/null' USR1 TERM
while :; do
    wait "$step"
    code=$?
    kill -0 "$step" 2>/dev/null || break
done
if [ "$code" -eq 75 ]; then
    echo "stopped and saved: queued again"
    scontrol requeue "$SLURM_JOB_ID"
    exit 0
fi
exit "$code"
