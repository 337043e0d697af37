# Sourced by the other scripts: a virtual environment with hfcap in it, made once and brought up to date when needed.
#
#   HFCAP_VENV    its folder (default: .venv in the project); an environment that exists is used as it is and completed
#   HFCAP_TORCH   what to give pip for PyTorch (default: torch in the tested version); for a CPU-only or a certain CUDA
#                 build on Linux take the arguments that pytorch.org shows under "Get started"

project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${HFCAP_VENV:-$project/.venv}
python=$venv/bin/python

say() { printf '%s\n' "$*" >&2; }
stop() { say "error: $*"; exit 2; }

is_new_enough() { "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; }

base_python() { # prints the first Python of at least 3.11
    local name
    for name in python3.13 python3.12 python3.11 python3 python; do
        if command -v "$name" >/dev/null && is_new_enough "$name"; then command -v "$name"; return; fi
    done
    stop "hfcap needs Python 3.11 or newer; found: $(python3 --version 2>&1 || true)." \
        "Install one (python.org, your package manager, pyenv or uv) and run this script again."
}

stamp_of() { # $1 extras; changes whenever the installation must be brought up to date
    { "$python" -c 'import sys; print(sys.version)'; printf '%s\n' "$project" "${HFCAP_TORCH:-}" "$1"
      cat "$project/pyproject.toml" "$project/constraints.txt"; } | cksum
}

is_installed() { # $1 extras
    [ -x "$python" ] && [ "$(cat "$venv/.hfcap-installed-$1" 2>/dev/null)" = "$(stamp_of "$1")" ]
}

run_pip() { # progress bars for people, silence (but for errors) for logs
    local quiet=-qq
    if [ -t 2 ]; then quiet=; fi
    "$python" -m pip install $quiet --disable-pip-version-check "$@"
}

install_torch() {
    if "$python" -c 'import torch' 2>/dev/null; then return; fi
    if [ -n "${HFCAP_TORCH:-}" ]; then
        # shellcheck disable=SC2086  # several arguments on purpose
        run_pip $HFCAP_TORCH
    else
        run_pip -c "$project/constraints.txt" torch
    fi
}

prepare_environment() { # $1 extras: "" or "test"
    if is_installed "$1" || { [ -z "$1" ] && is_installed test; }; then return; fi
    if [ ! -x "$python" ] || ! "$python" -m pip --version >/dev/null 2>&1; then
        local base
        base=$(base_python) || exit 2
        say "Making a virtual environment in $venv ($("$base" --version))"
        "$base" -m venv "$venv" || stop "no virtual environment could be made in $venv;" \
            "on Debian and Ubuntu install the package python3-venv"
    fi
    is_new_enough "$python" || stop "$python is older than Python 3.11; set HFCAP_VENV to another folder"
    local size=250
    if [ -n "$1" ]; then size=350; fi
    say "Installing hfcap${1:+ with the packages for its tests}. pip downloads what is missing: about $size MB of packages"
    say "and PyTorch, where it is not in the environment yet (200 MB for CPU builds; on Linux the default build brings"
    say "CUDA, several GB: set HFCAP_TORCH to choose, see scripts/environment.sh). No model and no dataset is downloaded."
    install_torch
    # The torch that is there stays, whatever its version; pyproject.toml's lower bound still holds.
    grep -v '^torch==' "$project/constraints.txt" >"$venv/.hfcap-constraints.txt"
    run_pip -c "$venv/.hfcap-constraints.txt" -e "$project${1:+[$1]}"
    stamp_of "$1" >"$venv/.hfcap-installed-$1"
}
