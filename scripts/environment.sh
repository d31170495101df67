# shellcheck shell=bash
# Sourced by quickstart.sh and test.sh: makes .venv in the project's folder and installs the project.
#
# Which index, proxy or torch build pip takes is pip's own configuration. On a Linux machine without
# a GPU, for instance, the smaller CPU build of torch (200 MB instead of some GB) is taken with
#   PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu bash scripts/quickstart.sh

stop() {
    echo "error: $*" >&2
    exit 2
}

# Prints the first Python >= 3.10: $PYTHON, else what the usual names find.
find_python() {
    local candidate
    for candidate in ${PYTHON:+"$PYTHON"} python3 python3.13 python3.12 python3.11 python3.10 python; do
        if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
            echo "$candidate"
            return
        fi
        if [ "$candidate" = "${PYTHON:-}" ]; then
            stop "PYTHON=$PYTHON is not a Python of version 3.10 or newer."
        fi
    done
    stop "no Python of version 3.10 or newer. Install one from https://www.python.org/downloads/ or" \
        "your system's packages, or name it: PYTHON=/path/to/python3 bash $0"
}

# install_project [EXTRA]: does nothing where this version of the project is installed already.
install_project() {
    local extra="${1:-}" python wanted installed
    if [ ! -x .venv/bin/python ]; then
        python=$(find_python)
        echo "+ $python -m venv .venv   ($("$python" --version))"
        if ! "$python" -m venv .venv; then
            rm -rf .venv
            stop "$python cannot make virtual environments. On Debian and Ubuntu:" \
                "sudo apt install python3-venv; elsewhere install the venv and pip modules of $python."
        fi
    fi
    .venv/bin/python -c '' 2>/dev/null ||
        stop "the Python of .venv is gone or broken. Remove the folder .venv and start again."
    # The folder is part of it, because an editable install breaks where the folder is moved.
    wanted=$(.venv/bin/python -c 'import hashlib, sys
parts = [open(name, "rb").read() for name in ("pyproject.toml", "constraints.txt")]
print(hashlib.sha256(b"\n".join([*parts, sys.argv[1].encode()])).hexdigest())' "$PWD")
    installed=$(cat .venv/installed 2>/dev/null || true)
    case "$installed" in
        "$wanted test" | "$wanted $extra") return ;;
    esac
    echo "+ installing the project and its libraries into .venv (once; some minutes)"
    .venv/bin/python -m pip install --disable-pip-version-check --constraint constraints.txt \
        --editable ".${extra:+[$extra]}" ||
        stop "pip could not install the libraries (see above). Check the network, the free disk space" \
            "and pip's index settings, then run the same command again."
    echo "$wanted $extra" >.venv/installed
}
