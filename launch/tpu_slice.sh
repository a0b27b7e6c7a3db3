#!/usr/bin/env bash
# Copies the last commit of the checkout to every worker of a Cloud TPU slice and runs a command there over ssh.
#   TPU=my-slice ZONE=us-east5-b bash launch/tpu_slice.sh \
#       python -m vitar_jax.train --config=configs/quickstart.py --workdir=/mnt/shared/runs/mine
# PROJECT sets the project (default: gcloud's), PYTHON the interpreter on the workers (default: python3). --dry-run before the
# command prints the gcloud commands instead. Rerun the script to resume. The workers find each other through the metadata of
# the slice. The working directory must be on a file system that every worker mounts.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

run=()
if [ "${1:-}" = --dry-run ]; then
  run=(printf '%q ')
  shift
fi
if [ $# -eq 0 ] || [ -z "${TPU:-}" ] || [ -z "${ZONE:-}" ]; then
  echo "usage: TPU=NAME ZONE=ZONE [PROJECT=ID] bash launch/tpu_slice.sh [--dry-run] COMMAND..." >&2
  exit 2
fi
where=(--zone="$ZONE" --worker=all ${PROJECT:+"--project=$PROJECT"})

archive="$(mktemp -d)/vitar_jax.tar.gz"
trap 'rm -rf "$(dirname "$archive")"' EXIT
git archive --format=tar.gz --prefix=vitar_jax/ --output="$archive" HEAD
"${run[@]}" gcloud compute tpus tpu-vm scp "$archive" "$TPU:vitar_jax.tar.gz" "${where[@]}"
[ ${#run[@]} -eq 0 ] || echo
remote="set -e; tar xzf vitar_jax.tar.gz; cd vitar_jax; source launch/common.sh; PYTHON=$(printf '%q' "${PYTHON:-python3}") install tpu; source .venv/bin/activate;"
remote+=" export VITAR_DISTRIBUTED=1; exec $(printf '%q ' "$@")"
"${run[@]}" gcloud compute tpus tpu-vm ssh "$TPU" "${where[@]}" --command="$remote"
[ ${#run[@]} -eq 0 ] || echo
