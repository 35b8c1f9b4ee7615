#!/usr/bin/env bash
# Run a job on its own Ray cluster, on the nodes that SLURM allocates:
#
#   sbatch --nodes=4 cluster/slurm.sh python jobs/train.py --task synapse --storage /shared/runs --name synapse-1
#
# The job needs whole nodes (--exclusive), because `ray symmetric-run` stops every Ray on its machine at the end. The
# environment that is active where you type sbatch, and --storage, must be on a disk that all nodes share. A job that is
# requeued after a preemption resumes with the same command: set --name (or --output).
#SBATCH --job-name=kasthuri_ray
#SBATCH --nodes=2
#SBATCH --exclusive
#SBATCH --mem=0
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=1
#SBATCH --time=24:00:00
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --signal=B:TERM@60
set -euo pipefail

if [[ $# -eq 0 ]]; then
    echo "usage: sbatch [--nodes=N] $0 COMMAND ..., such as python jobs/train.py --task synapse" >&2
    exit 2
fi

# The token of this cluster, which only you can read, in a folder that all nodes share.
tokens=$(mktemp --directory "${SLURM_SUBMIT_DIR:?is set by sbatch}/.ray-${SLURM_JOB_ID:?is set by sbatch}-XXXXXX")
chmod 700 "$tokens"
trap 'rm -rf "$tokens"' EXIT
(umask 077 && head --bytes=32 /dev/urandom | od --address-radix=n --format=x1 | tr --delete ' \n' >"$tokens/token")
export RAY_AUTH_MODE=token RAY_AUTH_TOKEN_PATH="$tokens/token" RAY_USAGE_STATS_ENABLED=0
export RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT=${RAY_SYMMETRIC_RUN_CLUSTER_WAIT_TIMEOUT:-300}

# The head is the first node, at the address by which the others reach it. The port depends on the job id, so that jobs
# do not share one.
hosts=$(scontrol show hostnames "${SLURM_JOB_NODELIST:?is set by sbatch}")
addresses=$(getent ahostsv4 "${hosts%%$'\n'*}")
address=${addresses%% *}
if [[ $address == 127.* ]]; then # Debian resolves a host's own name to the loopback
    addresses=$(hostname --all-ip-addresses)
    address=${addresses%% *}
fi
port=$((20000 + SLURM_JOB_ID % 10000))

# The dashboard listens on the loopback only. srun runs in the background, so that SLURM's TERM reaches the job at once.
nodes=${SLURM_JOB_NUM_NODES:?is set by sbatch}
srun --nodes="$nodes" --ntasks="$nodes" --kill-on-bad-exit=1 \
    ray symmetric-run --address "$address:$port" --min-nodes "$nodes" -- \
    env RAY_ADDRESS="$address:$port" "$@" &
steps=$!
trap 'kill -TERM "$steps" 2>/dev/null; wait "$steps"' TERM
wait "$steps"
