#!/usr/bin/env bash
# Trains a tiny model from scratch, on this machine, to look twice. Arguments are passed to vitar_jax.quickstart, for example
#   bash launch/quickstart.sh --config.seed=1
# Relative paths are relative to the repository root.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install

# Silences import messages of TensorFlow (used by the metric writers) and transformers (which looks for torch).
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-2}" TRANSFORMERS_NO_ADVISORY_WARNINGS=1
exec .venv/bin/python -m vitar_jax.quickstart --workdir=runs/quickstart "$@"
