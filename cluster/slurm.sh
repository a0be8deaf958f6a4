#!/usr/bin/env bash
#SBATCH --job-name=tune_rescon
#SBATCH --nodes=3
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=8
#SBATCH --gpus-per-node=1
#SBATCH --exclusive
#SBATCH --time=08:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:USR1@180
# A search on a Slurm allocation. It has NOT been run on Slurm; tests/clusters/test_slurm.py runs it with fakes of Slurm
# and Ray that record their calls.
#
#     sbatch cluster/slurm.sh --space att92 --resume-or-start first
#
# The job is queued again until the search is finished: by Slurm when it is preempted or loses a node (--requeue), and by
# this script when its time is up. The search then resumes. A search that fails ends the job with its exit code.
#
# The checkout, its .venv and $HOME must be on a file system that all nodes share. The first node runs the head and the
# driver, and trains as well. --exclusive, because `ray symmetric-run` starts one Ray on a machine, and at its end ends
# every Ray of this user there.
set -euo pipefail

export TUNE_RESCON_STORAGE=s3://CHANGE-bucket/tune_rescon    # CHANGE
export TUNE_RESCON_GRACE_SECONDS=90
export RAY_AUTH_MODE=token
# No port for metrics: they answer without the token.
export RAY_enable_metrics_collection=0 AUTOSCALER_METRIC_PORT=65536 DASHBOARD_METRIC_PORT=65536
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=300    # seconds for the head to answer, and for the nodes to join
export SRUN_CPUS_PER_TASK=$SLURM_CPUS_PER_TASK    # srun does not inherit it from sbatch
PATH=$SLURM_SUBMIT_DIR/.venv/bin:$PATH

# The files that this job's processes share: the job's own token, the driver's process number, its exit code.
shared=$(umask 077; mktemp -d "$HOME/.tune_rescon_job.XXXXXX")
export RAY_AUTH_TOKEN_PATH=$shared/token shared
trap 'rm -rf "$shared"' EXIT
(umask 077; python -c 'import secrets; print(secrets.token_hex(32), end="")' > "$RAY_AUTH_TOKEN_PATH")

nodes=$SLURM_JOB_NUM_NODES
read -r head < <(scontrol show hostnames "$SLURM_JOB_NODELIST")
address=$(srun --nodes=1 --ntasks=1 --nodelist="$head" hostname --ip-address | awk '{print $1}')

# A hundred ports and a directory of this job alone: another job's Ray may be about to end on a node, and another
# user's /tmp/ray cannot be written. The ports are below those that Linux gives to outgoing connections.
port=$((10000 + SLURM_JOB_ID % 200 * 100))
export RAY_TMPDIR=/tmp/tr-$SLURM_JOB_ID    # short: a socket has 107 characters for its whole path

# It runs on the first node, which is this one. `ray symmetric-run` exits with 0 also if Ray does not start, so the exit
# code of the search is written to a file.
driver='python -m tune_rescon.search --plain "$@" &
echo $! > "$shared/driver"; code=0; wait $! || code=$?; echo "$code" > "$shared/code"; exit "$code"'

RAY_AUTH_MODE=token srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 --kill-on-bad-exit=1 --wait=60 \
  ray symmetric-run --address="$address:$port" --min-nodes="$nodes" --dashboard-host=127.0.0.1 \
  --num-cpus="$SLURM_CPUS_PER_TASK" --node-manager-port=$((port + 1)) --object-manager-port=$((port + 2)) \
  --runtime-env-agent-port=$((port + 3)) --dashboard-agent-grpc-port=$((port + 4)) \
  --dashboard-agent-listen-port=$((port + 5)) --metrics-export-port=$((port + 6)) --dashboard-port=$((port + 7)) \
  --ray-client-server-port=$((port + 8)) --min-worker-port=$((port + 10)) --max-worker-port=$((port + 99)) \
  -- bash -c "$driver" driver --address="$address:$port" "$@" &
step=$!

# USR1 comes three minutes before the time is up, TERM when the job is preempted or cancelled. Either way the search
# finishes its epochs.
stop() { kill -TERM "$(cat "$shared/driver")" 2> /dev/null || true; }
time_is_up=
trap 'time_is_up=yes; stop' USR1
trap stop TERM
while kill -0 "$step" 2> /dev/null; do
  wait "$step" || true    # a signal ends the wait, not the step
done

srun --nodes="$nodes" --ntasks="$nodes" --ntasks-per-node=1 rm -rf "$RAY_TMPDIR" || true
if [ ! -s "$shared/code" ]; then
  echo "Ray did not start on $head, or it did not answer the other nodes. The lines above say more." >&2
  exit 1
fi
code=$(cat "$shared/code")
# 130: the search was stopped. 75: the driver of an earlier allocation still has the search.
if [ "$code" = 75 ] || { [ "$code" = 130 ] && [ -n "$time_is_up" ]; }; then
  rm -rf "$shared"    # Slurm ends this script to queue its job again
  scontrol requeue "$SLURM_JOB_ID"
fi
exit "$code"
