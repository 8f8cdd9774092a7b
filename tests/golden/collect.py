"""The commands that the goldens come from, and the numbers that they leave behind.

Only commands, flags, configs and files that a user knows are used here, and nothing of `jpeglm` is imported: so the
same code runs any checkout, whatever its modules are called.
"""

import base64
import hashlib
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands import UNOPTIMISED
from tests.golden import inputs

Run = Callable[..., subprocess.CompletedProcess]  # (module, *flags) -> `python -m module`, run to its end
# Programs are compiled without optimisation: twice as fast, and less of the machine's in the last bits.
VARIABLES = {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": UNOPTIMISED}
JPEG = ("--config=configs/jpeglm_demo.py", "--config.data.shards=2", "--config.data.holdout=12")
CLIPS = ("--config=configs/avclm_demo.py", "--config.data.shards=2", "--config.data.holdout=4")
CLIPS += ("--config.codec.frames=6", "--config.codec.fps=10", "--config.tokenizer.vocab_size=320")
MODEL = {"num_layers": 2, "width": 32, "num_heads": 4, "num_kv_heads": 4, "head_dim": 8, "ffn_width": 64}
TINY = tuple(f"--config.model.{key}={value}" for key, value in MODEL.items())
TINY += ("--config.optim.batch_size=4", "--config.optim.warmup_steps=2", "--config.eval.batches=1")
TINY += ("--config.log.every=1", "--config.steps=10")
VARIANTS = {
    "plain": ("--config.model.qk_norm=False",),
    "accumulated": ("--config.model.qk_norm=False", "--config.optim.accumulate=2"),
    "masked": ("--config.model.qk_norm=False", "--config.model.mask_documents=True"),
    "qk_norm": ("--config.model.qk_norm=True",),
}
PRETRAINED = "pretrained/demo"
DRAWS = ("--temperature=0.7", "--top_p=0.9")  # without top-k, whose borders `margins` does not know
SAMPLING = {"grammar": DRAWS, "no_grammar": (*DRAWS, "--nogrammar")}
TABLE = ("--config=configs/eval/demo.py", "--config.num=4", "--config.ratios=(0.5,)", "--config.pretrained=")
TABLE += ("--config.extractor=efficientnet_lite0", "--config.sampling.slots=4")
# The most probable tokens, so that no draw can be so near to its threshold that another machine draws another token.
TABLE += ("--config.sampling.temperature=0.0",)


def done(run: Run, module: str, *flags: object) -> str:
    """What a command printed; it must end with status 0."""
    finished = run(module, *map(str, flags))
    if finished.returncode:
        raise RuntimeError(f"{module} ended with status {finished.returncode}:\n{finished.stderr}")
    return finished.stdout


def prepare(run: Run, folder: Path) -> None:
    """Makes FOLDER/pictures and FOLDER/clips, and prepares FOLDER/jpeg and FOLDER/avc of them."""
    inputs.write_pictures(folder / "pictures", 48)
    inputs.write_clips(folder / "clips", 12)
    done(run, "jpeglm.prepare", *JPEG, f"--source={folder / 'pictures'}", f"--out={folder / 'jpeg'}")
    done(run, "jpeglm.prepare", *CLIPS, f"--source={folder / 'clips'}", f"--out={folder / 'avc'}")


def train(run: Run, data: Path, workdir: Path, *flags: str) -> None:
    """Trains ten steps of the tiny model on the pictures that `prepare` prepared."""
    done(run, "jpeglm.train", *JPEG, *TINY, *flags, f"--config.data.path={data}", f"--workdir={workdir}")


def sample(run: Run, pictures: Path, out: Path, *flags: str) -> None:
    """Completes eight pictures by the pretrained model."""
    done(run, "jpeglm.sample", f"--workdir={PRETRAINED}", f"--images={pictures}", "--num=8", *flags, f"--out={out}")


def make_table(run: Run, workdir: Path, data: Path, out: Path) -> None:
    """Completes four held-out pictures by a run's model and the controls."""
    where = {"workdir": workdir, "data": data, "out": out}
    done(run, "jpeglm.tables", *TABLE, *(f"--config.{key}={value}" for key, value in where.items()))


def shards(data: Path) -> dict[str, str]:
    """SHA-256 of each shard by its name, as the manifest has it."""
    splits = json.loads((data / "manifest.json").read_text())["splits"]
    return {shard["name"]: shard["sha256"] for split in splits.values() for shard in split["shards"]}


def losses(workdir: Path) -> list[float]:
    """The loss of each step."""
    rows = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    return [row["loss"] for row in rows if "loss" in row]


def files(out: Path) -> dict[str, dict[str, str]]:
    """By the name of each sample the SHA-256 and the bytes, in base 64, of its file."""
    found = {}
    for path in sorted(out.glob("*.jpg")):
        content = path.read_bytes()
        found[path.stem] = {"sha256": hashlib.sha256(content).hexdigest(), "file": base64.b64encode(content).decode()}
    return found


def cells(out: Path) -> dict[str, dict[str, Any]]:
    """The numbers of each row of a table, and of each model's held-out loss, by what the row is of."""
    table = json.loads((out / "table.json").read_text())
    rows = {f"{row['method']} {row['ratio']}": row for row in table["rows"]}
    rows |= {model["title"]: model for model in table["language_models"]}
    return {name: {key: value for key, value in row.items() if _is_number(value)} for name, row in rows.items()}


def everything(run: Run, folder: Path) -> dict[str, Any]:
    """Runs all commands below `folder`, which exists, and collects all numbers."""
    prepare(run, folder)
    found: dict[str, Any] = {"shards": {name: shards(folder / name) for name in ("jpeg", "avc")}, "losses": {}}
    for name, flags in VARIANTS.items():
        train(run, folder / "jpeg", folder / name, *flags)
        found["losses"][name] = losses(folder / name)
    found["samples"] = {}
    for name, flags in SAMPLING.items():
        sample(run, folder / "pictures", folder / name, *flags)
        found["samples"][name] = files(folder / name)
    make_table(run, folder / "plain", folder / "jpeg", folder / "table")
    return found | {"cells": cells(folder / "table")}


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
