#!/usr/bin/env bash
# A tiny model learns to look twice, on this machine, from nothing. Arguments go on to vitar_jax.quickstart, for example
#   bash launch/quickstart.sh --config.seed=1
# Relative paths in them are seen from the repository root.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install

# Notes that TensorFlow (behind the metric writers) and transformers (which looks for torch) print when loaded.
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" TRANSFORMERS_NO_ADVISORY_WARNINGS=1
exec .venv/bin/python -m vitar_jax.quickstart --workdir=runs/quickstart "$@"
