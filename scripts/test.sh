#!/usr/bin/env bash
# Lint, types and tests in a virtual environment that this script makes (see scripts/environment.sh).
# Arguments go to pytest: bash scripts/test.sh tests/metrics -k cider
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment test
cd "$project"

say "ruff check"
"$python" -m ruff check .
say "ruff format --check"
"$python" -m ruff format --check .
say "mypy"
# Named one by one: mypy refuses a folder without Python files.
# shellcheck disable=SC2046  # file names of ours, without blanks
"$python" -m mypy hfcap tests $(find scripts examples -name '*.py')
say "pytest"
# Each of the two workers gets one thread: torch would otherwise start as many threads as cores in both.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec "$python" -m pytest -n 2 "$@"
