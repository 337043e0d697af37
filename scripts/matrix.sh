#!/usr/bin/env bash
# The tests in several environments: pinned, lowest and newest versions, with and without torchvision, Python 3.11 to
# 3.13. Each cell of the matrix has a virtual environment of its own; what was tested goes to docs/tested_versions.md.
#
#   bash scripts/matrix.sh                   all cells
#   bash scripts/matrix.sh newest vision     some of them
#
#   HFCAP_MATRIX        folder of environments and results (default: build/matrix in the project)
#   HFCAP_MATRIX_TABLE  where the table goes (default: table.md in that folder; docs/tested_versions.md to record it)
#   HFCAP_MATRIX_REPORTED  cells whose failures are printed and do not end the run with an error
#   HFCAP_MATRIX_DISCARD  set to remove a cell's environment before the next is made (two hold CUDA: 6 GB each) and to let
#                       pip keep no cache
#   HFCAP_MATRIX_UNTIL  seconds since 1970: no cell begins later, and those left out are named (continuous integration)
#   HFCAP_SUITE_RAN     set where the whole suite has just run, its counts in pinned.xml of that folder
#   HFCAP_TORCH, HFCAP_TORCH_VISION  what to give pip for PyTorch, without and with torchvision
#
# Cells: pinned (the whole suite, and the quick start), lowest, newest, vision, python3.12 (the contract suite: captions
# equal to generate, loss equal to the plain forward, save and reload, publish and verify, pixels equal to the processor).
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"
matrix=${HFCAP_MATRIX:-$project/build/matrix}
table=${HFCAP_MATRIX_TABLE:-$matrix/table.md}
mkdir -p "$matrix"
cd "$project"
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
if [ -n "${HFCAP_MATRIX_DISCARD:-}" ]; then export PIP_NO_CACHE_DIR=1; fi

with_vision="${HFCAP_TORCH_VISION:-torch==2.14.1 torchvision==0.29.1} timm"

describe() { # $1 cell: sets version (of Python), constraints (a file, or none), torch, suite
    version=3.11 torch=${HFCAP_TORCH:-torch==2.13.0} suite=contract
    case $1 in
        pinned) constraints=constraints.txt suite=all ;;
        lowest) constraints=constraints-lowest.txt ;;
        newest) constraints=none ;;
        vision) constraints=none version=3.13 torch=$with_vision ;;
        python3.12) constraints=constraints.txt version=3.12 torch=$with_vision ;;
        *) stop "no cell $1; there are pinned, lowest, newest, vision and python3.12" ;;
    esac
}

python_of_version() { # $1 e.g. 3.12: prints an interpreter, or nothing
    local candidate
    for candidate in "python$1" "${PYENV_ROOT:-$HOME/.pyenv}/versions/$1".*/bin/python; do
        if command -v "$candidate" >/dev/null &&
            [ "$("$candidate" -c 'import sys; print("%d.%d" % sys.version_info[:2])' 2>/dev/null)" = "$1" ]; then
            command -v "$candidate"
            return
        fi
    done
}

install_cell() { # $1 cell: fails where pip does
    local given=()
    if [ ! -x "$python" ]; then "$(python_of_version "$version")" -m venv "$venv" || return 1; fi
    if [ "$constraints" != none ]; then
        # The cell names its torch itself.
        grep -vE '^(torch|torchvision)==' "$project/$constraints" >"$venv/.hfcap-constraints.txt"
        given=(-c "$venv/.hfcap-constraints.txt")
    fi
    # shellcheck disable=SC2086  # several packages on purpose
    run_pip "${given[@]}" $torch || return 1
    run_pip "${given[@]}" -e "$project[test]" || return 1
    # gradio, for the demo alone, holds Pillow back.
    if [ "$constraints" = none ]; then run_pip --upgrade pillow || return 1; fi
}

discard_cell_before() { # the last one stays: it writes the table
    if [ -z "${HFCAP_MATRIX_DISCARD:-}" ]; then return; fi
    case $table_python in "$matrix"/*) rm -rf "${table_python%/bin/python}" ;; esac
}

run_cell() { # $1 cell
    local began status=0 junit="$matrix/$1.xml"
    describe "$1"
    venv=$matrix/$1
    if [ "$1" = pinned ]; then venv=${HFCAP_VENV:-$project/.venv}; fi
    python=$venv/bin/python
    began=$SECONDS
    rm -f "$matrix/$1.json" "$matrix/$1-speed.xml"
    say "== $1: Python $version, $constraints, $torch"
    if [ -z "$(python_of_version "$version")" ]; then
        say "$1: no Python $version here; not run"
        return 0
    fi
    discard_cell_before
    install_cell "$1" || return 1
    table_python=$python
    if [ "$suite" = all ]; then
        if [ -z "${HFCAP_SUITE_RAN:-}" ]; then "$python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder --junitxml "$junit" || status=$?; fi
        "$venv/bin/hfcap" run recipes/quickstart.yaml "output_dir=$matrix/runs" || status=$?
    else
        "$python" -m pytest -n 2 --dist loadfile -m contract --junitxml "$junit" || status=$?
        # What only makes things faster is reported; where it fails, hfcap takes the plain way.
        "$python" -m pytest -n 2 --dist loadfile -m speed --junitxml "$matrix/$1-speed.xml" ||
            say "$1: some of what makes hfcap faster gives way here; its results do not change"
    fi
    if ! "$python" scripts/matrix_results.py cell "$matrix" "$1" $((SECONDS - began)); then
        say "$1: captions or scores of the quick start's model are not those of the pinned cell (see above)"
        status=1
    fi
    return "$status"
}

cells=("$@")
if [ $# -eq 0 ]; then cells=(pinned lowest newest vision python3.12); fi
failed=() table_python=
for cell in "${cells[@]}"; do
    if [ -n "${HFCAP_MATRIX_UNTIL:-}" ] && [ "$(date +%s)" -gt "$HFCAP_MATRIX_UNTIL" ]; then
        say "== $cell: NOT RUN, because the time for it is over; bash scripts/matrix.sh $cell runs it"
        continue
    fi
    if ! run_cell "$cell"; then
        case " ${HFCAP_MATRIX_REPORTED:-} " in
            *" $cell "*) say "$cell: FAILED; reported only (HFCAP_MATRIX_REPORTED)" ;;
            *) failed+=("$cell") ;;
        esac
    fi
done
if [ -n "$table_python" ]; then "$table_python" scripts/matrix_results.py table "$matrix" "$table"; fi
if [ ${#failed[@]} -gt 0 ]; then stop "failed: ${failed[*]} (see above)"; fi
