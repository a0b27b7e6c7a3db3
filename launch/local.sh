#!/usr/bin/env bash
# Runs a command as several processes of one run on this machine, joined by jax.distributed.
#   bash launch/local.sh 2 python -m vitar_jax.train --config=configs/quickstart.py --workdir=runs/two
# Every process says who it is at the start of its lines. When one fails, the others are ended and its status is returned. A
# SIGTERM is passed on, and the end of all is waited for: training saves first.
# --dry-run before the number prints the commands. JAX_COORDINATOR_ADDRESS may name another port than 127.0.0.1:8476.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"

dry_run=
if [ "${1:-}" = --dry-run ]; then
  dry_run=1
  shift
fi
if [ $# -lt 2 ] || ! [ "$1" -ge 1 ] 2>/dev/null; then
  echo "usage: bash launch/local.sh [--dry-run] PROCESSES COMMAND..." >&2
  exit 2
fi
count=$1
shift
export JAX_NUM_PROCESSES="$count" JAX_COORDINATOR_ADDRESS="${JAX_COORDINATOR_ADDRESS:-127.0.0.1:8476}"

if [ -n "$dry_run" ]; then
  for ((i = 0; i < count; i++)); do
    printf '%s ' "JAX_COORDINATOR_ADDRESS=$JAX_COORDINATOR_ADDRESS" "JAX_NUM_PROCESSES=$count" "JAX_PROCESS_ID=$i"
    printf '%q ' "$@"
    printf '\n'
  done
  exit 0
fi

pids=()
end() { [ ${#pids[@]} -eq 0 ] || kill "${pids[@]}" 2>/dev/null || true; }
trap end EXIT
stopping=
trap 'stopping=1; end' TERM
for ((i = 0; i < count; i++)); do
  JAX_PROCESS_ID=$i "$@" > >(sed -u "s/^/[$i] /") 2>&1 &
  pids+=($!)
done
for ((i = 0; i < count; i++)); do
  wait -n || {
    status=$?
    [ -n "$stopping" ] || exit "$status"
    break
  }
done
[ -z "$stopping" ] || wait "${pids[@]}"
