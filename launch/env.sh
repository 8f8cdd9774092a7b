# shellcheck shell=bash
# Sourced by the other scripts: `source launch/env.sh REQUIREMENTS` makes .venv fit that file and puts it on PATH.
# An environment that fits already is used as it is. Python 3.11 or newer and pip are all that the machine needs.
# requirements-lock.txt holds the version of every package that comes along; those of Python 3.11, 3.12 and 3.13 agree.

_requirements=$1
_python=${PYTHON:-python3}

"$_python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || {
    echo "error: Python 3.11 or newer is needed and \"$_python\" is not; name one as PYTHON=/path/to/python" >&2
    exit 2
}

# Files that name others with -r change with them, so the stamp covers every requirements file.
_stamp=.venv/.fits-$_requirements
_wanted=$(cat requirements*.txt | "$_python" -c 'import hashlib, sys; print(hashlib.sha256(sys.stdin.buffer.read()).hexdigest())')

if [ "$(cat "$_stamp" 2>/dev/null)" != "$_wanted" ]; then
    echo "installing $_requirements into .venv (once; a few minutes)" >&2
    if [ ! -x .venv/bin/python ]; then
        # Debian's python3 comes without ensurepip; virtualenv, from pip, does not need it.
        "$_python" -m venv .venv 2>/dev/null || {
            rm -rf .venv
            "$_python" -m pip install --quiet --target .cache/virtualenv virtualenv
            PYTHONPATH=.cache/virtualenv "$_python" -m virtualenv --quiet .venv
        }
    fi
    .venv/bin/python -m pip install --quiet --disable-pip-version-check --requirement "$_requirements" \
        --constraint requirements-lock.txt
    echo "$_wanted" > "$_stamp"
fi
export PATH=$PWD/.venv/bin:$PATH
