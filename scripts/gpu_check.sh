#!/usr/bin/env bash
# What hfcap gains on this machine's GPU, and whether results stay the same (scripts/gpu_check.py has the options).
#
#   bash scripts/gpu_check.sh                  on a machine with PyTorch for its GPU, hfcap's other packages or a network
#   bash scripts/gpu_check.sh --collect 3.12   first, here: wheels for a machine without a network, for its Python
#
#   HFCAP_GPU_PYTHON  the Python there that has PyTorch (default: python3)
#
# The wheels go to build/gpu_wheels (about 40 MB, Linux x86-64); carry the folder along with the project. Without it the
# environment of scripts/environment.sh is used.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
wheels=$project/build/gpu_wheels
cd "$project"

collect() { # $1 version of Python
    prepare_environment ""
    mkdir -p "$wheels"
    local all
    # What the present environment has was tested. Readers of data sets (pyarrow, pandas) are large and not needed for
    # this; PyTorch, numpy and Pillow are there with torchvision.
    all=$("$python" - <<'PROGRAM'
from importlib.metadata import distribution
from packaging.requirements import Requirement

wanted, versions = ["transformers", "accelerate", "peft", "pydantic", "rich", "regex", "jinja2", "typer"], {}
while wanted:
    name = wanted.pop()
    if name in versions or name in ("torch", "numpy", "pillow"):
        continue
    found = distribution(name)
    versions[name] = found.version
    needs = map(Requirement, found.requires or [])
    wanted += [one.name.lower() for one in needs if one.marker is None or one.marker.evaluate({"extra": ""})]
print(" ".join(f"{name}=={version}" for name, version in versions.items()))
PROGRAM
    )
    # shellcheck disable=SC2086  # several packages on purpose
    "$python" -m pip download -qq --no-deps --only-binary :all: --python-version "$1" --platform manylinux_2_28_x86_64 \
        --platform manylinux2014_x86_64 --platform manylinux_2_17_x86_64 -d "$wheels" $all
    say "$(du -sh "$wheels" | cut -f1) in $wheels"
}

if [ "${1:-}" = --collect ]; then
    collect "${2:?which Python has the other machine, e.g. 3.12?}"
    exit
fi
if [ -d "$wheels" ]; then
    # A folder of packages, not a virtual environment: the Python with PyTorch may be in one itself.
    python=${HFCAP_GPU_PYTHON:-python3}
    packages=$project/build/gpu_packages
    "$python" -m pip install -qq --no-index --no-deps --upgrade --target "$packages" "$wheels"/*.whl
    export PYTHONPATH=$packages:$project
else
    prepare_environment ""
fi
exec "$python" scripts/gpu_check.py "$@"
