# Sourced by train.sh and tests/run: makes or mends the virtual environment, and sets PYTHON.
# SIMPLEWAN_VENV      where it lives (default: .venv in the project); clones may share one
# SIMPLEWAN_PYTHON    the interpreter that makes it (default: python3, 3.10 or newer)
# SIMPLEWAN_CONSTRAINTS  the file of pinned versions (default: constraints.txt; for Python 3.10 constraints-py310.txt)
# Argument: the extras to install ("" or "dev"). The stamp is written last, so an install that was killed is repeated.
project=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
venv=${SIMPLEWAN_VENV:-$project/.venv}
PYTHON=$venv/bin/python
extras=${1:-}

ensure_environment() {
    local constraints wanted stamp=$venv/simplewan-dependencies${extras:+-$extras} place=$venv/simplewan-source
    if [ ! -x "$PYTHON" ]; then
        local base=${SIMPLEWAN_PYTHON:-python3}
        "$base" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || {
            echo "simplewan needs Python 3.10 or newer; '$base' is not: set SIMPLEWAN_PYTHON to one that is" >&2
            return 2
        }
        echo "making the environment in $venv" >&2
        "$base" -m venv "$venv" || return 1
    fi
    constraints=$project/constraints.txt
    "$PYTHON" -c 'import sys; sys.exit(sys.version_info >= (3, 11))' && constraints=$project/constraints-py310.txt
    constraints=${SIMPLEWAN_CONSTRAINTS:-$constraints}
    wanted=$(cat "$project/pyproject.toml" "$constraints" | cksum)
    if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
        echo "installing the pinned packages into $venv (a few minutes, several GB)" >&2
        "$PYTHON" -m pip install --quiet --disable-pip-version-check --constraint "$constraints" \
            setuptools || return 1
        (cd "$project" && "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-build-isolation \
            --constraint "$constraints" --editable ".${extras:+[$extras]}") || return 1
        echo "$project" > "$place"
        echo "$wanted" > "$stamp"
    elif [ "$(cat "$place" 2>/dev/null)" != "$project" ]; then
        # A shared environment: let its commands run this clone's code.
        (cd "$project" && "$PYTHON" -m pip install --quiet --disable-pip-version-check --no-deps \
            --no-build-isolation --editable .) || return 1
        echo "$project" > "$place"
    fi
}

mkdir -p "$(dirname "$venv")"
if command -v flock >/dev/null; then
    exec 9>"$venv.lock"
    flock 9
fi
ensure_environment || exit $?
if command -v flock >/dev/null; then
    exec 9>&-
fi
