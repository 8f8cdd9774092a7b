"""Completes partial pictures or clips with a trained run, or writes new ones from nothing.

python -m jpeglm.sample --workdir=DIR --images=PATH --ratio=0.5 --top_p=0.9 --top_k=40 --samples=3 --out=OUT
python -m jpeglm.sample --workdir=DIR --images=PATH --frames=10 --top_p=0.9 --out=OUT
python -m jpeglm.sample --workdir=DIR --num=64 --out=OUT

PATH is a folder of pictures or clips, or one that `jpeglm.prepare` wrote (then its held-out ones are taken). OUT gets
a file for each sample, as the model wrote it, restored to an ordinary file and not otherwise mended; samples.jsonl,
with a line for each that says whether it is valid; and grid.png (each row: prompt, completions, original). Of a clip,
that file is an H.264 stream; beside it stand an mp4 and an animated WebP of what a decoder sees, and grid.png has a
row of frames for the original and for each completion. A command that was interrupted goes on where it stood.

A grammar of legal files, which JPEG has here, lets each draw choose only among tokens that lead to one, so every file
is whole and valid; samples.jsonl says how much of the model's probability that took away. With --nogrammar the model
is alone, as in the papers.
"""

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from etils import epath
from PIL import Image
from tqdm import tqdm

from jpeglm import checkpoint, cli, codecs, runtime, views
from jpeglm.codecs import Codec
from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import documents
from jpeglm.errors import InputError
from jpeglm.sampling.engine import Settings
from jpeglm.sampling.sampler import Completion, Sampler

FLAGS = flags.FLAGS
GRID_ROWS = 16


def sample(sampler: Sampler, out: Path, originals: dict[str, bytes], ratio: float, samples: int, seed: int) -> None:
    """Completes each document `samples` times into `out`; those that samples.jsonl names already are left alone."""
    codec, done = sampler.codec, _read_log(out)
    names = [name for name in originals if any(f"{name}-s{number}" not in done for number in range(samples))]
    completions = sampler.complete([originals[name] for name in names], ratio, samples, seed)
    _write(codec, out, ((f"{names[c.index]}-s{c.sample}", c) for c in completions), len(names) * samples)

    def rows(name: str) -> list[list[Image.Image]]:
        prompt, kept = codec.cut(originals[name], ratio)
        files = [(out / f"{name}-s{number}{codec.extension}").read_bytes() for number in range(samples)]
        return views.rows(codec, codec.restore(prompt), kept, files, codec.restore(originals[name]))

    _save_grid(out, [row for name in list(originals)[:GRID_ROWS] for row in rows(name)])


def generate(sampler: Sampler, out: Path, num: int, seed: int) -> None:
    """Writes `num` files from nothing into `out`; a finished set is left alone."""
    names = [f"sample-{number:05d}" for number in range(num)]
    if not set(names) <= _read_log(out):
        _write(sampler.codec, out, ((names[c.sample], c) for c in sampler.generate(num, seed)), num)
    tiles = [views.tile(sampler.codec, (out / f"{name}{sampler.codec.extension}").read_bytes()) for name in names]
    across = int(np.ceil(np.sqrt(min(num, GRID_ROWS**2))))
    _save_grid(out, [tiles[row : row + across] for row in range(0, min(num, GRID_ROWS**2), across)])


def _save_grid(out: Path, rows: list[list[Image.Image]]) -> None:
    beside = out / "grid.tmp.png"
    views.grid(rows).save(beside)
    beside.replace(out / "grid.png")


def _read_log(out: Path) -> set[str]:
    path = out / "samples.jsonl"
    return {json.loads(line)["name"] for line in path.read_text().splitlines()} if path.exists() else set()


def _write(codec: Codec, out: Path, named: Iterator[tuple[str, Completion]], total: int) -> None:
    done = _read_log(out)
    valid = 0
    with open(out / "samples.jsonl", "a") as log, tqdm(total=total, unit="file", desc="sample", disable=None) as bar:
        for name, completion in named:
            bar.update()
            is_valid = codec.is_valid(completion.document)
            valid += is_valid
            if name in done:
                continue
            file = codec.restore(completion.document)
            for suffix, content in {**views.films(codec, file), codec.extension: file}.items():
                beside = out / f".{name}.tmp"
                beside.write_bytes(content)
                beside.replace(out / f"{name}{suffix}")
            row = {
                "name": name,
                "valid": is_valid,
                "ended": completion.ended,
                "prompt_units": completion.prompt_units,
                "tokens": completion.tokens,
                "removed": completion.removed,
            }
            log.write(json.dumps(row) + "\n")  # after the file: a name in the log has its file
            log.flush()
    if total:
        logging.info("%d files, %d valid: %s", total, valid, out)


def _claim(out: Path, settings: dict[str, Any]) -> None:
    """Marks `out` as holding samples of these settings; refuses one that holds others'."""
    path = out / "settings.json"
    if path.exists() and (out / "samples.jsonl").exists():
        found = {"grammar": False} | json.loads(path.read_text())  # older folders know of no grammar
        for key, value in settings.items():
            if found.get(key) != value:
                raise InputError(
                    f"{out} holds samples with {key}={found.get(key)}, now {value} is asked: another --out"
                )
    out.mkdir(parents=True, exist_ok=True)
    beside = out / ".settings.tmp"
    beside.write_text(json.dumps(settings, indent=1) + "\n")
    beside.replace(path)


def _ratio_of(frames: int, codec: Codec) -> float:
    """The share of a clip that so many frames are."""
    if FLAGS["ratio"].present:
        raise InputError("--ratio and --frames: one of the two")
    if not isinstance(codec, AvcCodec):
        raise InputError("--frames is for runs on clips; for pictures there is --ratio")
    if not 0 <= frames <= codec.frames:
        raise InputError(f"--frames={frames}: a clip of this run has {codec.frames}")
    return frames / codec.frames


def main() -> None:
    if FLAGS.images is None and FLAGS.num is None:
        raise InputError("what shall be sampled? --images=PATH to complete pictures, or --num=N to write new ones")
    runtime.start()
    workdir, out = epath.Path(FLAGS.workdir), Path(FLAGS.out)
    max_tokens = FLAGS.max_tokens or checkpoint.read_config(workdir).data.seq_len
    grammar = FLAGS.grammar and codecs.make(checkpoint.read_config(workdir).codec).has_grammar
    settings = Settings(max_tokens, FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.slots, grammar)
    step = checkpoint.pick_step(workdir, FLAGS.step)
    sampler = Sampler.load(workdir, settings, step)
    ratio = FLAGS.ratio if FLAGS.frames is None else _ratio_of(FLAGS.frames, sampler.codec)
    what = {name: FLAGS[name].value for name in ("workdir", "images", "samples", "num", "seed")}
    _claim(out, what | {"ratio": ratio, "step": step} | dataclasses.asdict(settings))
    if FLAGS.images is None:
        generate(sampler, out, FLAGS.num, FLAGS.seed)
    else:
        originals = documents.read(FLAGS.images, sampler.codec, FLAGS.num, sampler.config.data.background)
        sample(sampler, out, originals, ratio, FLAGS.samples, FLAGS.seed)
    print(out / "grid.png")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures or clips to complete: a folder of files, or of prepared data.")
    flags.DEFINE_float(
        "ratio", 0.5, "Share of each picture that is given, rounded down to whole MCUs; of clips, frames.", 0, 1
    )
    flags.DEFINE_integer("frames", None, "Or, of clips, the number of frames that are given.")
    flags.DEFINE_integer("samples", 1, "Completions of each.", lower_bound=1)
    flags.DEFINE_integer("num", None, "New ones to write; with --images, at most so many of them.", lower_bound=1)
    flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 takes the most probable token.")
    flags.DEFINE_integer("top_k", 0, "Draw among the k most probable tokens; 0: among all.")
    flags.DEFINE_float("top_p", 1.0, "Draw among the most probable tokens that sum to p.")
    flags.DEFINE_integer("seed", 0, "Of the draws.", 0, 2**32 - 1)
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    flags.DEFINE_integer("slots", 8, "Files written at once.", lower_bound=1)
    flags.DEFINE_integer("max_tokens", None, "Most tokens of a file; data.seq_len if not given.", lower_bound=2)
    flags.DEFINE_bool("grammar", True, "Draw only what leads to a legal file; --nogrammar: the papers' sampling.")
    flags.DEFINE_string("out", None, "Folder for the files.")
    cli.run(main, required=("workdir", "out"))
