#!/usr/bin/env bash
# Lint, format check, types and tests; the last line is pytest's closing line.
#
#   bash scripts/test.sh [--slow] [pytest options ...]     --slow runs the slow tests too
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

selection=()
if [ "${1:-}" = "--slow" ]; then
    shift
    selection=(-m "not gpu and not network")
fi

step() {
    echo "+ $*"
    .venv/bin/python -m "$@"
}

install_project test
# Each of the two test processes would otherwise start a thread per core.
export OMP_NUM_THREADS=1
step ruff check .
step ruff format --check .
step mypy
step pytest -n 2 ${selection[@]+"${selection[@]}"} "$@"
