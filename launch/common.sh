# shellcheck shell=bash
# Sourced by the other scripts of this directory. Changes to the repository root.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# glibc on Linux: allocates large arrays in huge pages. Without them, page faults took an eighth of a training step on a CPU.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# install [EXTRA]: installs the project, with the named extra, into .venv at the versions of constraints.txt.
# PYTHON sets the interpreter of a new .venv (default: python3).
install() {
  local extra="${1:-}" python="${PYTHON:-python3}"
  local state
  state="$(cat pyproject.toml constraints.txt | cksum)"
  # One stamp per extra. The extra "test" includes everything that the plain project needs.
  local stamp
  for stamp in ".venv/installed-${extra:-plain}" .venv/installed-test; do
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
      return
    fi
  done

  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "PYTHON: got '$python' ($("$python" --version 2>/dev/null || echo missing)), expected Python 3.11 or newer." >&2
      echo "Choose another interpreter: PYTHON=python3.12 bash $0" >&2
      exit 2
    fi
    "$python" -m venv .venv
  fi
  echo "Installing into .venv. The first installation downloads packages for a few minutes." >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extra:+[$extra]}"
  echo "$state" >".venv/installed-${extra:-plain}"
}
