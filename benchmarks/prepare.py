"""Compares preparing pictures with a bare loop of Pillow: pictures per second on one core, and the ratio.

    python -m benchmarks.prepare [--source=FOLDER] [--config=configs/jpeglm_7b.py]

Without FOLDER the pictures are `--num` JPEG files of 500x375, cut from photographs, and four copies of each. The bare
loop opens each file, crops and resizes it, and encodes it as the codec does. It is compared with the stage of
`jpeglm.prepare` that does this (with refusals, strict rules, hashes and files on disk), and with all of
`jpeglm.prepare` with one worker and a given tokenizer, which also starts, lists, tokenizes and packs. The three
alternate `--rounds` times, and the table shows medians.
"""

import functools
import io
import json
import os
import shutil
import statistics
import tempfile
from pathlib import Path

from absl import app, flags
from ml_collections import ConfigDict, config_flags
from PIL import Image, ImageOps
from tabulate import tabulate

from benchmarks import report
from jpeglm.data import sources
from jpeglm.prepare import plan
from tests.photographs import photographs

_CONFIG = config_flags.DEFINE_config_file("config", "configs/jpeglm_7b.py")
_SOURCE = flags.DEFINE_string("source", None, "A folder of pictures.")
_NUM = flags.DEFINE_integer("num", 200, "Distinct pictures to make where no folder is given, and five copies of each.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Turns of each.")


def bare(names: list[str], folder: str, config: ConfigDict) -> None:
    """Opens, crops, resizes and encodes each file with Pillow alone. The output is dropped."""
    codec = config.codec
    for name in names:
        with Image.open(os.path.join(folder, name)) as image:
            image = ImageOps.fit(image.convert(codec.mode), (codec.width, codec.height), Image.Resampling.BICUBIC)
        image.save(io.BytesIO(), "JPEG", quality=codec.quality, restart_marker_blocks=1)


def encode_stage(names: list[str], folder: str, config: ConfigDict) -> None:
    """Runs the first stage of `jpeglm.prepare` on all files as one unit."""
    with tempfile.TemporaryDirectory() as out:
        sections = plan.config_sections(config)
        job = plan.Job(folder, out, sections["codec"], sections["data"], len(names))
        job.work.mkdir()
        (job.work / "names.jsonl").write_text("".join(json.dumps(name) + "\n" for name in names))
        plan.encode_unit(job, 0, 0)


def whole(names: list[str], folder: str, config: ConfigDict, tokenizer: str) -> None:
    """Runs all of `jpeglm.prepare`. Its one worker shares the core with its parent process."""
    with tempfile.TemporaryDirectory() as out:
        manifest = plan.prepare(config, folder, Path(out) / "data", tokenizer, workers=1)
        assert manifest["counts"]["kept"] == len(names), manifest["counts"]


def main(_: list[str]) -> None:
    """Takes all turns and prints the table."""
    config = _CONFIG.value
    config.data.shards, config.data.holdout = 2, 1
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:1])  # one core, for libraries' threads too
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    with tempfile.TemporaryDirectory() as made, tempfile.TemporaryDirectory() as learnt:
        folder = _SOURCE.value or made
        for number, picture in enumerate(photographs(_NUM.value, 256, 256) if not _SOURCE.value else []):
            picture.convert("RGB").resize((500, 375), Image.Resampling.BICUBIC).save(
                os.path.join(made, f"{number:05d}.jpg"), quality=90
            )
            for copy in range(1, 5):
                shutil.copy(os.path.join(made, f"{number:05d}.jpg"), os.path.join(made, f"{number:05d}-{copy}.jpg"))
        names = list(sources.open_source(folder).names())
        plan.prepare(config, folder, Path(learnt) / "data", workers=1)
        prepare = functools.partial(whole, tokenizer=os.path.join(learnt, "data", "tokenizer.json"))
        columns = {"bare Pillow": bare, "encode stage": encode_stage, "all of prepare": prepare}
        taken = [
            {name: report.seconds(run, names, folder, config) for name, run in columns.items()}
            for _ in range(_ROUNDS.value)
        ]
    rows = []
    for name in columns:
        ratios = [turn["bare Pillow"] / turn[name] for turn in taken]
        rate = len(names) / statistics.median(turn[name] for turn in taken)
        rows.append([name, rate, statistics.median(ratios), f"{min(ratios):.2f} to {max(ratios):.2f}"])
    print(
        f"{len(names)} pictures to {config.codec.width}x{config.codec.height} {config.codec.mode}; {report.machine()}"
    )
    print(
        tabulate(
            rows, ["", "pictures/s a core", "ratio", "range"], tablefmt="github", floatfmt=("", ",.1f", ".2f", "")
        )
    )


if __name__ == "__main__":
    app.run(main)
