#!/usr/bin/env bash
# Everything that wants a GPU, on one NVIDIA GPU: tests of correctness, then the tables of speed, in half an hour.
#
#   [OUT=FOLDER] [WHEELS=FOLDER] [MINUTES=M] ./launch/gpu.sh [PART ...]
#
#   correctness   tests/gpu; what follows does not run if they fail              MINUTES=6
#   train         training at 12,288 and 32,768 tokens against torch             MINUTES=6 each
#   kept          the same with fewer layers, where nothing need be recomputed   MINUTES=5 each
#   decode        prefill and decode against transformers' generate              MINUTES=7
#   grammar       what the grammar of legal files adds to a step of decoding     MINUTES=4
#   inception     features of FID against pytorch-fid and torch-fidelity         MINUTES=4
#   demo          the model of pretrained/demo, trained five times as long       MINUTES=20
#
# Without parts: correctness train decode grammar. Single tables: train-12288, train-32768, kept-12288, kept-32768.
# MINUTES is the limit of each part. Results are written as they come: FOLDER/report.md (runs/gpu), a JSON file for each
# table, log.txt.
#
# A python3 with JAX for CUDA is used as it is (PYTHON names another), and what it lacks is installed beside it, from
# WHEELS alone if that is given. Else .venv is made as requirements-gpu.txt says. TORCH_PYTHON names the Python that has
# torch and transformers, if it is not the same; where none has, an environment for them is made in .cache/torch.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

out=${OUT:-runs/gpu}
mkdir -p "$out"
parts=("$@")
[ $# -gt 0 ] || parts=(correctness train decode grammar)
for part in "${parts[@]}"; do
    case $part in
    correctness | train | train-12288 | train-32768 | kept | kept-12288 | kept-32768 | decode | grammar | inception | demo) ;;
    *)
        echo "error: no part is called \"$part\"; there are correctness, train, kept, decode, grammar, inception, demo" >&2
        exit 2
        ;;
    esac
done

# Environment
python=${PYTHON:-python3}
export PYTHONUNBUFFERED=1
unset JAX_PLATFORMS
has_cuda='import importlib.util as u, sys; sys.exit(not any(u.find_spec(f"jax_cuda{n}_plugin") for n in (12, 13)))'
if ! "$python" -c "$has_cuda" 2>/dev/null; then
    echo "no JAX for CUDA in $python: making .venv" >&2
    source launch/env.sh requirements-gpu.txt
    python=python
fi
# What the parts import, and its name for pip where that is another.
missing=$("$python" - <<'PYTHON'
import importlib.util

needed = """absl=absl-py array_record=array-record cloudpickle etils=etils[epath] flax grain
imageio_ffmpeg=imageio-ffmpeg jinja2 lazy_loader=lazy-loader matplotlib ml_collections=ml-collections optax
orbax.checkpoint=orbax-checkpoint PIL=pillow portpicker yaml=pyyaml pytest safetensors scipy sentencepiece
skimage=scikit-image tabulate tensorboardX tokenizers tqdm"""


def lacks(module):
    try:
        return importlib.util.find_spec(module) is None
    except ModuleNotFoundError:
        return True


pairs = [entry.partition("=") for entry in needed.split()]
print(*[package or module for module, _, package in pairs if lacks(module)])
PYTHON
)
if [ -n "$missing" ]; then
    echo "missing: $missing" >&2
    where=()
    [ -z "${WHEELS:-}" ] || where=(--no-index --find-links "$WHEELS")
    # Beside the Python that is there, which need not be writable, and without changing what it has.
    # shellcheck disable=SC2086
    "$python" -m pip install --quiet --disable-pip-version-check --no-deps "${where[@]}" --target .cache/gpu-packages $missing || {
        echo "error: not installed: $missing. Where nothing can be downloaded: WHEELS=FOLDER with their wheels, as" \
            "\"pip download --no-deps --dest FOLDER $missing\" gets them elsewhere" >&2
        exit 2
    }
    export PYTHONPATH=$PWD/.cache/gpu-packages${PYTHONPATH:+:$PYTHONPATH}
fi
torch_python=${TORCH_PYTHON:-$python}
nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader >&2 || {
    echo "error: nvidia-smi finds no GPU" >&2
    exit 2
}

# The parts. Each has its own limit of time; a part that fails or runs out of it leaves what it has measured.
limited() { # DEFAULT_MINUTES COMMAND...
    local minutes=${MINUTES:-$1}
    timeout --kill-after=30 "$((minutes * 60 + 60))" "${@:2}" 2>&1 | tee -a "$out/log.txt"
}

has_torch='import torch, transformers; assert torch.cuda.is_available()'

peer() { # torch brings CUDA libraries of its own versions, so it gets an environment of its own where there is none
    "$torch_python" -c "$has_torch" 2>/dev/null && return
    torch_python=$PWD/.cache/torch/bin/python
    "$torch_python" -c "$has_torch" 2>/dev/null && return
    echo "installing torch and transformers into .cache/torch (once; some GB)" >&2
    if [ ! -x "$torch_python" ]; then "$python" -m venv .cache/torch || true; fi
    "$torch_python" -m pip install --quiet --disable-pip-version-check numpy torch==2.13.0 transformers==5.23.0 || true
    "$torch_python" -c "$has_torch" 2>/dev/null || {
        echo "error: no Python has torch for CUDA with transformers: TORCH_PYTHON names one that has" >&2
        exit 2
    }
}

# Ours: cuDNN's attention (auto) with both kinds of recomputation. Theirs: the same, by cuDNN's kernel and by
# FlashAttention-2.
train() { # SEQ_LEN
    peer
    limited 6 "$python" -m benchmarks.train_step --config=configs/jpeglm_7b.py --layers=fit --steps=12 --rounds=2 \
        --config.data.seq_len="$1" --config.optim.batch_size=1 --minutes="${MINUTES:-6}" --torch_python="$torch_python" \
        --ours=model.remat=attention --ours=model.remat=full \
        --theirs=recompute=all,compile=layers,attention=cudnn --theirs=recompute=all,compile=layers,attention=flash \
        --theirs=recompute=attention,compile=layers,attention=cudnn \
        --out="$out" --name="train-$1"
}

# And what costs speed: Pallas' kernel, which documents need, and the same bits at each resume.
kept() { # SEQ_LEN LAYERS
    peer
    limited 5 "$python" -m benchmarks.train_step --config=configs/jpeglm_7b.py --layers="$2" --steps=12 --rounds=2 \
        --config.data.seq_len="$1" --config.optim.batch_size=1 --minutes="${MINUTES:-5}" --torch_python="$torch_python" \
        --ours=model.remat=none --ours=model.remat=attention \
        --ours=model.remat=none,deterministic=True --ours=model.remat=attention,model.mask_documents=True \
        --theirs=recompute=none,compile=layers,attention=cudnn --theirs=recompute=none,compile=layers,attention=flash \
        --out="$out" --name="kept-$1"
}

# As launch/pretrained.sh, and like it: what was interrupted goes on where it stood.
demo() {
    local dir=$out/demo config=configs/jpeglm_demo_long.py
    limited 20 "$python" -m jpeglm.prepare --config=configs/jpeglm_demo.py --source=embedded:mnist --out="$dir/plain" &&
        limited 20 "$python" -m jpeglm.prepare --config=$config --source=embedded:mnist \
            --tokenizer="$dir/plain/tokenizer.json" --out="$dir/data" &&
        limited 20 "$python" -m jpeglm.train --config=$config --config.platform=gpu --config.steps=30000 \
            --config.data.path="$dir/data" --workdir="$dir/run" &&
        limited 20 "$python" -m jpeglm.convert slim "$dir/run" "$dir/slim"
}

failed=0
for part in "${parts[@]}"; do
    echo "== $part" >&2
    case $part in
    correctness)
        limited 6 "$python" -m pytest -m gpu tests/gpu --junitxml="$out/correctness.xml" || {
            "$python" -m benchmarks.report "$out" >/dev/null || true
            echo "error: the tests of correctness failed, so nothing is timed" >&2
            exit 1
        }
        "$python" -m benchmarks.report "$out" >/dev/null
        ;;
    train) train 12288 && train 32768 || failed=1 ;;
    train-*) train "${part#*-}" || failed=1 ;;
    kept) kept 12288 8 && kept 32768 4 || failed=1 ;;
    kept-12288) kept 12288 8 || failed=1 ;;
    kept-32768) kept 32768 4 || failed=1 ;;
    decode)
        peer
        limited 7 "$python" -m benchmarks.decode --config=configs/jpeglm_7b.py --config.model.num_layers=8 --slots=1,16,64 \
            --prompt=3840 --tokens=4096 --rounds=1 --minutes="${MINUTES:-7}" --torch_python="$torch_python" \
            --out="$out" --name=decode-4096 || failed=1
        ;;
    grammar)
        limited 4 "$python" -m benchmarks.grammar --config=configs/jpeglm_7b.py --config.model.num_layers=8 \
            --slots=1,16,64 --tokens=4096 --out="$out" || failed=1
        ;;
    inception)
        [ -d .cache/fid-peers ] || "$python" -m pip install --quiet --disable-pip-version-check --no-deps \
            ${WHEELS:+--no-index --find-links "$WHEELS"} --target .cache/fid-peers --requirement requirements-peers.txt
        limited 4 "$python" -m benchmarks.inception --pictures=2048 --out="$out" || failed=1
        ;;
    demo)
        demo || failed=1
        ;;
    esac
done
echo "the results: $out/report.md" >&2
exit "$failed"
