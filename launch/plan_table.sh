#!/usr/bin/env bash
# Plans the recipes of 7 and 3 billion parameters for TPU slices and prints a table; nothing but this machine is needed.
#   bash launch/plan_table.sh [DIRECTORY]
# Each of the cells takes minutes; a cell in DIRECTORY (runs/plans) is not made again. Ends with 1 where a program does not fit
# or could not be planned.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install test

directory="${1:-runs/plans}"
mkdir -p "$directory"
failed=0

cell() { # LABEL NAME CONFIG FLAG...
  local label="$1" file="$directory/$2.md" config="configs/$3.py"
  shift 3
  if [ ! -e "$file" ]; then
    # No plan depends on the data. A program that does not fit has a row too; one that could not be planned has none.
    JAX_PLATFORMS=cpu .venv/bin/python -m vitar_jax.plan --config="$config" --row \
      --config.data.sets=none --config.data.processor=none "$@" >"$file.partial" || failed=1
    [ -s "$file.partial" ] || return 0
    mv "$file.partial" "$file"
  fi
  ! grep -q "does not fit" "$file" || failed=1
  sed "s/^|/| $label/" "$file"
}

echo "| | slice | mesh | GiB a chip | at least | compute | memory | interconnect |"
echo "|---|---|---|---|---|---|---|---|"
for topology in v5e:8x8 v6e:4x4 v5p:4x4x2 v5e:16x16; do
  for stage in sft grpo; do
    cell 7B "$stage-${topology/:/-}" vitar_7b --program=train --stage="$stage" --topology="$topology"
  done
done
for topology in v5e:2x4 v6e:2x2; do
  for program in prefill decode; do
    cell 7B "$program-${topology/:/-}" vitar_7b --program="$program" --topology="$topology"
  done
done
for stage in sft grpo; do
  cell 3B "3b-$stage" vitar_3b --program=train --stage="$stage" --topology=v5e:4x4
  # One chip of a TPU stands for the GPU of 80 GB, whose compiler is not here.
  cell "7B LoRA" "lora-$stage" vitar_lora_7b --config.model.attention=splash --program=train --stage="$stage" --topology=v5p:1x1x1
done
exit "$failed"
