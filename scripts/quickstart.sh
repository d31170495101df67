#!/usr/bin/env bash
# The whole main job on the embedded practice clinic: no GPU, no key, no download of weights.
#
#   bash scripts/quickstart.sh [--key value ...]     e.g. --seed 7; settings of configs/quickstart.yaml
#
# Needs Python >= 3.10 (python3, or name one: PYTHON=/path/to/python) and a package index. Makes .venv
# in the project's folder on the first run. Paths in the settings are relative to the project's folder.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source scripts/environment.sh

install_project
echo "+ .venv/bin/python scripts/align.py --config configs/quickstart.yaml $*"
exec .venv/bin/python scripts/align.py --config configs/quickstart.yaml "$@"
