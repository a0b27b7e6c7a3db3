#!/usr/bin/env bash
# Plans the 7B, 4B and 3B recipes for TPU slices and prints a Markdown table. Runs on this machine; no TPU is needed.
#   bash launch/plan_table.sh [DIRECTORY]
# Each row takes minutes. Rows already in DIRECTORY (default: runs/plans) are reused. Exits with 1 if a program does not fit or
# could not be planned.
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
    # Plans do not depend on the data. A program that does not fit still prints a row; a failed plan prints none.
    JAX_PLATFORMS=cpu .venv/bin/python -m vitar_jax.plan --config="$config" --row \
      --config.data.sets=none --config.data.processor=none "$@" >"$file.partial" || failed=1
    [ -s "$file.partial" ] || return 0
    mv "$file.partial" "$file"
  fi
  ! grep -q "does not fit" "$file" || failed=1
  sed "s/^|/| $label/" "$file"
}

echo "| | slice | mesh | GiB per chip | at least | compute | memory | interconnect |"
echo "|---|---|---|---|---|---|---|---|"
for topology in v5e:8x8 v6e:4x4 v5p:4x4x2 v5e:16x16; do
  for stage in sft grpo; do
    cell 7B "$stage-${topology/:/-}" vitar_7b --program=train --stage="$stage" --topology="$topology"
  done
done
for topology in v5e:8x8 v6e:4x4; do
  for stage in sft grpo; do
    cell "Qwen3-VL 4B" "qwen3-4b-$stage-${topology/:/-}" vitar_qwen3_4b --program=train --stage="$stage" --topology="$topology"
  done
done
for stage in sft grpo; do
  cell "VRT 4B" "vrt-4b-$stage" vrt_qwen3_4b --program=train --stage="$stage" --topology=v5e:8x8
done
# maps encodes images for masks, and masks decodes the masks of turns.
for program in maps masks; do
  cell "VRT 4B" "vrt-4b-$program" vrt_qwen3_4b --program="$program" --topology=v5e:2x4
done
for topology in v5e:2x4 v6e:2x2; do
  for program in prefill decode; do
    cell 7B "$program-${topology/:/-}" vitar_7b --program="$program" --topology="$topology"
  done
done
for stage in sft grpo; do
  cell 3B "3b-$stage" vitar_3b --program=train --stage="$stage" --topology=v5e:4x4
  # One TPU chip stands in for an 80 GB GPU, because compiling for a GPU needs a GPU.
  cell "7B LoRA" "lora-$stage" vitar_lora_7b --config.model.attention=splash --program=train --stage="$stage" --topology=v5p:1x1x1
done
# What the expert's six episodes per question cost: the step beside the same one without them.
traces="--config.data.traces=('none',)"
cell "3B, MedEyes" "medeyes" medeyes_3b --program=train --stage=grpo --topology=v5e:4x4 "$traces"
cell "3B, MedEyes without experts" "medeyes-alone" eval_medeyes_five --program=train --stage=grpo --topology=v5e:4x4
exit "$failed"
