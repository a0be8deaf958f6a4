#!/usr/bin/env bash
#SBATCH --job-name=tune_rescon
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --time=08:00:00
#SBATCH --signal=B:TERM@120
# A search on a Slurm allocation. NOT run for real.
#
#     sbatch cluster/slurm.sh --space att92 --name first --hours 7.5     # begins it
#     sbatch cluster/slurm.sh --resume first                             # goes on, in the next allocation
#
# The checkout, its .venv and $HOME are on a file system that all nodes share. The first node has the head and the
# driver, and trains as well: Slurm gives whole nodes. Two minutes before the time is up the search is told to stop.
set -euo pipefail

export TUNE_RESCON_STORAGE=s3://CHANGE-bucket/tune_rescon    # CHANGE
export RAY_AUTH_MODE=token
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK    # srun does not take it over by itself
PATH=$SLURM_SUBMIT_DIR/.venv/bin:$PATH

# A token of this job alone: other people's jobs may share the network.
RAY_AUTH_TOKEN_PATH=$(mktemp "$HOME/.tune_rescon_token.XXXXXX")
export RAY_AUTH_TOKEN_PATH
trap 'rm -f "$RAY_AUTH_TOKEN_PATH"' EXIT
(umask 077; python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

head=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')
# Of this job's own, as two jobs may have a node in common.
port=$((20000 + SLURM_JOB_ID % 10000))

# Ray would stop with the step that started it, so each step waits (--block).
RAY_AUTH_MODE=token srun --nodes=1 --ntasks=1 --overlap --nodelist="$head" \
  ray start --head --block --node-ip-address="$address" --port="$port" --dashboard-host=127.0.0.1 \
  --num-cpus="$SLURM_CPUS_PER_TASK" &
for _ in $(seq 60); do
  ray status --address="$address:$port" > /dev/null 2>&1 && break
  sleep 2
done
if [ "$SLURM_JOB_NUM_NODES" -gt 1 ]; then
  RAY_AUTH_MODE=token srun --nodes=$((SLURM_JOB_NUM_NODES - 1)) --ntasks=$((SLURM_JOB_NUM_NODES - 1)) --overlap \
    --exclude="$head" ray start --block --address="$address:$port" --num-cpus="$SLURM_CPUS_PER_TASK" &
fi

python -m tune_rescon.search --plain --address="$address:$port" "$@" &
search=$!
trap 'kill -TERM "$search"' TERM
# A signal ends the first wait; the search ends in its own time.
wait "$search" || wait "$search"
