# Sourced by tools/demo, tools/test and .ci/run: one virtual environment, made once, quiet when there is nothing to do.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
PYTHON=${PYTHON:-python3}

# environment EXTRAS [torch]: .venv with edgecl and these extras; done again only where what it depends on has changed.
environment() {
    local extras=$1 torch=${2:-} stamp
    stamp=$(cat pyproject.toml constraints.txt tools/lib.sh | sha256sum | cut -c1-16)
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info < (3, 10))' ||
        { echo "edgecl needs Python 3.10 or newer; $("$PYTHON" --version) is too old. Set PYTHON=python3.11 or so." >&2; exit 1; }
    if [ ! -x .venv/bin/python ]; then
        "$PYTHON" -m venv .venv ||
            { echo "python3 -m venv failed. On Debian: apt-get install python3-venv" >&2; exit 1; }
    fi
    [ -e ".venv/.done-$extras-$stamp" ] && return
    echo "installing edgecl[$extras] into .venv ..." >&2
    if [ -n "$torch" ]; then
        quietly .venv/bin/pip install -c constraints.txt torch
        quietly .venv/bin/pip install -c constraints.txt --no-deps torchvision
    fi
    quietly .venv/bin/pip install -c constraints.txt -e ".[$extras]"
    touch ".venv/.done-$extras-$stamp"
}

# quietly COMMAND...: its output only where it fails.
quietly() {
    local log
    log=$(mktemp)
    if ! "$@" >"$log" 2>&1; then
        cat "$log" >&2
        rm -f "$log"
        echo "failed: $*" >&2
        exit 1
    fi
    rm -f "$log"
}

# system_package COMMAND PACKAGE...: installs Debian packages that some tests need, where that is allowed.
system_package() {
    local command=$1
    shift
    command -v "$command" >/dev/null && return
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo="sudo -n"
    if command -v apt-get >/dev/null && { [ -z "$sudo" ] || sudo -n true 2>/dev/null; }; then
        echo "installing $* ..." >&2
        quietly $sudo apt-get update -q
        DEBIAN_FRONTEND=noninteractive quietly $sudo apt-get install -q -y --no-install-recommends "$@"
    else
        echo "$command is missing, so some tests are skipped; to enable them: apt-get install $*" >&2
    fi
}
