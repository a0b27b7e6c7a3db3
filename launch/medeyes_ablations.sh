#!/usr/bin/env bash
# Fills tables 2, 3 and 5 of MedEyes' paper on phantoms, and prints the paper's order below ours. Arguments are passed to
# vitar_jax.quickstart, for example
#   bash launch/medeyes_ablations.sh --config.seed=1
exec bash "$(dirname "${BASH_SOURCE[0]}")/quickstart.sh" --config=configs/medeyes_ablations.py --workdir=runs/medeyes_ablations "$@"
