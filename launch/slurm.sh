#!/usr/bin/env bash
# Submits a run to Slurm: one process a node with all its GPUs, joined by jax.distributed.
#   NODES=4 GPUS=8 bash launch/slurm.sh python -m vitar_jax.train --config=configs/quickstart.py --workdir=/shared/runs/mine
# NODES (1), GPUS a node (8), TIME (24:00:00), PARTITION, ACCOUNT and NAME (vitar) go to sbatch. The repository, .venv and the
# working directory must be seen by all nodes. --dry-run before the command prints the batch script instead.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
if [ $# -eq 0 ]; then
  echo "usage: [NODES=n GPUS=n ...] bash launch/slurm.sh [--dry-run] COMMAND..." >&2
  exit 2
fi

script="$(
  cat <<EOF
#!/usr/bin/env bash
#SBATCH --job-name=${NAME:-vitar}
#SBATCH --nodes=${NODES:-1}
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=${GPUS:-8}
#SBATCH --time=${TIME:-24:00:00}
#SBATCH --signal=TERM@120
#SBATCH --requeue
${PARTITION:+#SBATCH --partition=$PARTITION}
${ACCOUNT:+#SBATCH --account=$ACCOUNT}
set -euo pipefail
cd $(printf '%q' "$PWD")
source .venv/bin/activate
# All GPUs of a node belong to its one process; JAX would give it the first alone.
JAX_LOCAL_DEVICE_IDS="\$(seq -s, 0 $((${GPUS:-8} - 1)))"
export JAX_LOCAL_DEVICE_IDS
exec srun --kill-on-bad-exit=1 $(printf '%q ' "$@")
EOF
)"
if [ -n "$dry_run" ]; then
  printf '%s\n' "$script"
else
  sbatch <<<"$script"
fi
