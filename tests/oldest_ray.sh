#!/usr/bin/env bash
# The cluster's tests on the oldest Ray that is supported, beside .venv, whose other packages are used: `make setup` first.
#   tests/oldest_ray.sh [arguments of pytest]        OLDEST_RAY=folder of the environment, VENV=.venv
set -euo pipefail
cd "$(dirname "$0")/.."
oldest=$(sed -n 's/.*"ray\[.*\]>=\([0-9.]*\)".*/\1/p' pyproject.toml)
folder=${OLDEST_RAY:-.venv-oldest-ray}
main=${VENV:-.venv}
if [ ! -x "$folder/bin/raybasin" ]; then
    "$main/bin/python" -m venv "$folder"
    "$folder/bin/pip" install --quiet --disable-pip-version-check "ray[default,tune,train]==$oldest.*" "psutil>=6"
    "$folder/bin/pip" install --quiet --disable-pip-version-check --no-deps -e .
    purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
    "$main/bin/python" -c "$purelib" > "$("$folder/bin/python" -c "$purelib")/others.pth"
fi
"$folder/bin/python" -c 'import ray; print("Ray", ray.__version__)'
PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" "$folder/bin/python" -m pytest tests/cluster "$@"
