#!/usr/bin/env bash
# Lint, spelling, types and tests in a virtual environment that this script makes (see scripts/environment.sh).
# Arguments go to pytest: bash scripts/test.sh tests/metrics -k cider
# With --quick first, only the tests of tests/quick.txt: bash scripts/test.sh --quick
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
prepare_environment test
cd "$project"

quick=()
if [ "${1:-}" = --quick ]; then
    shift
    while read -r line; do
        case $line in
            "" | "#"*) ;;
            -*) quick+=("--ignore=tests/${line#-}") ;;
            *) quick+=("tests/$line") ;;
        esac
    done <tests/quick.txt
fi

say "ruff check"
"$python" -m ruff check .
say "ruff format --check"
"$python" -m ruff format --check .
say "codespell"
"$python" -m codespell_lib ./*.md docs hfcap recipes scripts tests model_cards mkdocs.yml pyproject.toml .github
say "mypy"
# Named one by one: mypy refuses a folder without Python files.
# shellcheck disable=SC2046  # file names of ours, without blanks
"$python" -m mypy hfcap tests $(find scripts examples -name '*.py')
say "pytest"
# Each of the two workers gets one thread: torch would otherwise start as many threads as cores in both.
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
# A file stays with one worker: both would otherwise make what its tests share, in publishing two minutes of work.
# An empty list is nothing to the bash of macOS.
exec "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder ${quick[@]+"${quick[@]}"} "$@"
