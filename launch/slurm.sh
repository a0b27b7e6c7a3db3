#!/usr/bin/env bash
# Submits a run to Slurm with one process per node, which uses all GPUs of the node, connected by jax.distributed.
#   NODES=4 GPUS=8 bash launch/slurm.sh python -m vitar_jax.train --config=configs/quickstart.py --workdir=/shared/runs/mine
# NODES (default: 1), GPUS per node (default: 8), TIME (default: 24:00:00), PARTITION, ACCOUNT and NAME (default: vitar) set the
# sbatch options. All nodes must share the repository, .venv and the working directory. --dry-run before the command prints
# the batch script instead.
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
# One process uses all GPUs of its node. By default JAX would assign only the first GPU.
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
