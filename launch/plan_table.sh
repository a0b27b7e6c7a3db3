#!/usr/bin/env bash
# Plans the recipe of 7 billion parameters for TPU slices and prints a table of them; nothing but this machine is needed.
#   bash launch/plan_table.sh [DIRECTORY]
# Each of the twelve cells takes minutes; a cell in DIRECTORY (runs/plans) is not made again. Ends with 1 where a program does
# not fit or could not be planned.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install test

directory="${1:-runs/plans}"
mkdir -p "$directory"
failed=0

cell() { # NAME FLAG...
  local file="$directory/$1.md"
  shift
  if [ ! -e "$file" ]; then
    # No plan depends on the data. A program that does not fit has a row too; one that could not be planned has none.
    JAX_PLATFORMS=cpu .venv/bin/python -m vitar_jax.plan --config=configs/vitar_7b.py --row \
      --config.data.source=none --config.data.processor=none "$@" >"$file.partial" || failed=1
    [ -s "$file.partial" ] || return 0
    mv "$file.partial" "$file"
  fi
  ! grep -q "does not fit" "$file" || failed=1
  cat "$file"
}

echo "| 7B | slice | mesh | GiB a chip | at least | compute | memory | interconnect |"
echo "|---|---|---|---|---|---|---|---|"
for topology in v5e:8x8 v6e:4x4 v5p:4x4x2 v5e:16x16; do
  for stage in sft grpo; do
    cell "$stage-${topology/:/-}" --program=train --stage="$stage" --topology="$topology"
  done
done
for topology in v5e:2x4 v6e:2x2; do
  for program in prefill decode; do
    cell "$program-${topology/:/-}" --program="$program" --topology="$topology"
  done
done
exit "$failed"
