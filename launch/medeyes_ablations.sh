#!/usr/bin/env bash
# Fills tables 2, 3 and 5 of MedEyes' paper on phantoms, with the paper's order beside ours, in ablations.md of the run's directory.
# Rerunning it resumes, and trains no arm again that is done. Arguments are passed to vitar_jax.quickstart, for example
#   bash launch/medeyes_ablations.sh --config.seed=1 --workdir=runs/medeyes_ablations_1
exec bash "$(dirname "${BASH_SOURCE[0]}")/quickstart.sh" --config=configs/medeyes_ablations.py --workdir=runs/medeyes_ablations "$@"
