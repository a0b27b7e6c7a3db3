#!/usr/bin/env bash
# Runs a command in several processes on this machine, connected by jax.distributed.
#   bash launch/local.sh 2 python -m vitar_jax.train --config=configs/quickstart.py --workdir=runs/two
# Prefixes each output line with its process number. If one process fails, the script terminates the others and exits with
# its status. On SIGTERM, the script forwards the signal and waits for all processes, because training saves a checkpoint first.
# --dry-run before the number prints the commands instead. JAX_COORDINATOR_ADDRESS sets the address (default: 127.0.0.1:8476).
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
