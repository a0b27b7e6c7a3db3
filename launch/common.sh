# shellcheck shell=bash
# Shared by the scripts beside it; sourced, not run. Leaves the caller in the repository root.

cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

# glibc on Linux: large arrays in huge pages. Without, an eighth of a train step on a CPU was page faults.
export GLIBC_TUNABLES="${GLIBC_TUNABLES:-glibc.malloc.hugetlb=1}"

# install [EXTRA]: makes .venv hold the project, with the named extra, at the versions of constraints.txt.
# PYTHON names the interpreter of a new .venv (default: python3).
install() {
  local extra="${1:-}" python="${PYTHON:-python3}"
  local state
  state="$(cat pyproject.toml constraints.txt | cksum)"
  # A stamp per extra: what the tests need includes what the plain project needs.
  local stamp
  for stamp in ".venv/installed-${extra:-plain}" .venv/installed-test; do
    if [ -x .venv/bin/python ] && [ "$(cat "$stamp" 2>/dev/null)" = "$state" ]; then
      return
    fi
  done

  if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "vitar_jax needs Python 3.11 or newer; '$python' is $("$python" --version 2>/dev/null || echo missing)." >&2
      echo "Name another one: PYTHON=python3.12 bash $0" >&2
      exit 2
    fi
    "$python" -m venv .venv
  fi
  echo "Installing into .venv; the first time this downloads for some minutes." >&2
  .venv/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".${extra:+[$extra]}"
  echo "$state" >".venv/installed-${extra:-plain}"
}
