#!/usr/bin/env bash
# Lint and tests, from a fresh clone on.
#
#   ./launch/test.sh [--slow | --gpu] [pytest's own arguments]
#
# --slow adds the tests that take minutes each. --gpu runs those alone that want a GPU, with the Python that is there:
# they fail without one.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ "${1:-}" = --gpu ]; then
    exec "${PYTHON:-python3}" -m pytest -m gpu "${@:2}"
fi
source launch/env.sh requirements-dev.txt

# Encoders and transcoders that share no code with ours, as oracles, and compressors to compare with. Debian's names;
# elsewhere install libjpeg-turbo, zstd, libjxl and xz.
missing=()
command -v cjpeg djpeg jpegtran >/dev/null || missing+=(libjpeg-turbo-progs)
command -v zstd >/dev/null || missing+=(zstd)
command -v djxl >/dev/null || missing+=(libjxl-tools)
command -v xz >/dev/null || missing+=(xz-utils)
if [ ${#missing[@]} -gt 0 ]; then
    as_root=()
    [ "$(id -u)" = 0 ] || as_root=(sudo)
    "${as_root[@]}" apt-get update --quiet=2
    "${as_root[@]}" apt-get install --quiet=2 --yes --no-install-recommends "${missing[@]}" >/dev/null
fi

# Other people's evaluators, apart: see requirements-peers.txt.
if ! cmp --silent requirements-peers.txt .cache/fid-peers/requirements; then
    rm -rf .cache/fid-peers
    python -m pip install --quiet --disable-pip-version-check --no-deps --target .cache/fid-peers \
        --requirement requirements-peers.txt
    cp requirements-peers.txt .cache/fid-peers/requirements
fi

./launch/clips.sh .cache/clips films  # real clips for the H.264 codec

# All the quick tests run in two processes, whole files to each. Whoever names some wants to see what they print.
marker=()
arguments=()
[ $# -gt 0 ] || arguments=(--numprocesses=2 --dist=loadfile)
for argument in "$@"; do
    if [ "$argument" = --slow ]; then marker=(-m "not gpu"); else arguments+=("$argument"); fi
done

ruff check .
ruff format --check .
mypy
exec env JAX_PLATFORMS=cpu python -m pytest "${marker[@]}" "${arguments[@]}"
