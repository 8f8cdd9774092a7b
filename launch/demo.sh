#!/usr/bin/env bash
# The whole main job on real data, in about ten minutes on two cores: 10,000 digits become JPEG files, tokens and
# chunks; a small Llama learns them; it completes held-out digits; a table and a report say how well.
#
#   ./launch/demo.sh [DIR]      DIR: where everything goes (runs/demo)
#
# Interrupted, it goes on where it stood.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
source launch/env.sh requirements.txt

out=${1:-runs/demo}
config=configs/jpeglm_demo.py

echo "== 1/3  pictures -> JPEG bytes -> tokens -> chunks" >&2
python -m jpeglm.prepare --config=$config --source=embedded:mnist --out="$out/data"

echo "== 2/3  training" >&2
python -m jpeglm.train --config=$config --config.data.path="$out/data" --workdir="$out/run"

echo "== 3/3  completing held-out pictures, and measuring" >&2
python -m jpeglm.tables --config=configs/eval/demo.py \
    --config.workdir="$out/run" --config.data="$out/data" --config.out="$out/tables"
