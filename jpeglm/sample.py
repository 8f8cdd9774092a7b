"""Completes partial pictures with a trained run, or writes pictures from nothing.

python -m jpeglm.sample --workdir=DIR --images=PATH --ratio=0.5 --top_p=0.9 --top_k=40 --samples=3 --out=OUT
python -m jpeglm.sample --workdir=DIR --num=64 --out=OUT

PATH is a folder of pictures, or one that `jpeglm.prepare` wrote (then its held-out pictures are taken). OUT gets a
file for each sample, as the model wrote it, restored to an ordinary file and not otherwise mended; samples.jsonl, with
a line for each that says whether it is valid; and grid.png (each row: prompt, completions, original). A command that
was interrupted goes on where it stood.

A grammar of legal files lets each draw choose only among tokens that lead to one, so every file is whole and valid;
samples.jsonl says how much of the model's probability that took away. With --nogrammar the model is alone, as in the
papers.
"""

import dataclasses
import hashlib
import json
import os
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from etils import epath
from PIL import Image
from tqdm import tqdm

from jpeglm import checkpoint, cli, runtime
from jpeglm.codecs import Codec
from jpeglm.data import documents, pipeline, shards, sources
from jpeglm.errors import InputError, Refused, printable
from jpeglm.sampling.engine import Settings
from jpeglm.sampling.sampler import Completion, Sampler

FLAGS = flags.FLAGS
GRID_ROWS = 16
GAP = 2  # pixels between the pictures of a grid


def read_pictures(path: str, codec: Codec, limit: int | None) -> dict[str, bytes]:
    """Canonical documents by name: a prepared folder's held-out ones, or those of a folder of pictures."""
    if (Path(path) / shards.MANIFEST).exists():
        heldout = pipeline.documents(path, "heldout", limit)
        return {f"heldout-{number:05d}": document for number, document in enumerate(heldout)}
    source, found, left_out = sources.open_source(path), {}, 0
    documents.check(source, codec, variants=0)
    for name in documents.names(source, codec):
        if limit is not None and len(found) == limit:
            break
        try:
            document = documents.of(source, name, codec)[0]
        except Refused as error:
            logging.warning("left out %s: %s", printable(name), error)
            left_out += 1
            continue
        found[_file_name(name, found)] = document
    if left_out:
        logging.warning("%d files left out, %d pictures read", left_out, len(found))
    if not found:
        raise InputError(f"{path} holds no picture that can be read")
    return found


def _file_name(name: str, taken: Container[str]) -> str:
    """What a picture's samples are called: its name without slashes, or a hash where that would be no good name."""
    flat = name.replace("/", "_")
    if flat.isprintable() and len(flat.encode()) <= 200 and flat not in taken:
        return flat
    chosen = "picture-" + hashlib.sha256(os.fsencode(name)).hexdigest()[:16]
    logging.info("%s is called %s here", printable(name), chosen)
    return chosen


def sample(sampler: Sampler, out: Path, pictures: dict[str, bytes], ratio: float, samples: int, seed: int) -> None:
    """Completes each picture `samples` times into `out`; those that samples.jsonl names already are left alone."""
    done = _read_log(out)
    names = [name for name in pictures if any(f"{name}-s{number}" not in done for number in range(samples))]
    completions = sampler.complete([pictures[name] for name in names], ratio, samples, seed)
    _write(sampler.codec, out, ((f"{names[c.index]}-s{c.sample}", c) for c in completions), len(names) * samples)

    def tiles(name: str) -> list[Image.Image]:
        prompt, _ = sampler.codec.cut(pictures[name], ratio)
        files = [(out / f"{name}-s{number}{sampler.codec.extension}").read_bytes() for number in range(samples)]
        return [view(sampler.codec, data) for data in (prompt, *files, pictures[name])]

    _save_grid(out, [tiles(name) for name in list(pictures)[:GRID_ROWS]])


def generate(sampler: Sampler, out: Path, num: int, seed: int) -> None:
    """Writes `num` pictures from nothing into `out`; a finished set is left alone."""
    names = [f"sample-{number:05d}" for number in range(num)]
    if not set(names) <= _read_log(out):
        _write(sampler.codec, out, ((names[c.sample], c) for c in sampler.generate(num, seed)), num)
    tiles = [view(sampler.codec, (out / f"{name}{sampler.codec.extension}").read_bytes()) for name in names]
    across = int(np.ceil(np.sqrt(min(num, GRID_ROWS**2))))
    _save_grid(out, [tiles[row : row + across] for row in range(0, min(num, GRID_ROWS**2), across)])


def view(codec: Codec, data: bytes) -> Image.Image:
    """What can be seen of a file, whole or not: unreadable parts are grey."""
    return codec.decode_leniently(data)[0]


def grid(rows: list[list[Image.Image]]) -> Image.Image:
    """One picture of rows of equally large ones."""
    width, height = rows[0][0].size
    across, down = max(map(len, rows)), len(rows)
    sheet = Image.new(rows[0][0].mode, (across * (width + GAP) - GAP, down * (height + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, tile in enumerate(row):
            sheet.paste(tile, (x * (width + GAP), y * (height + GAP)))
    return sheet


def _save_grid(out: Path, rows: list[list[Image.Image]]) -> None:
    beside = out / "grid.tmp.png"
    grid(rows).save(beside)
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
            beside = out / f".{name}.tmp"
            beside.write_bytes(codec.restore(completion.document))
            beside.replace(out / f"{name}{codec.extension}")
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


def main() -> None:
    if FLAGS.images is None and FLAGS.num is None:
        raise InputError("what shall be sampled? --images=PATH to complete pictures, or --num=N to write new ones")
    runtime.start()
    workdir, out = epath.Path(FLAGS.workdir), Path(FLAGS.out)
    max_tokens = FLAGS.max_tokens or checkpoint.read_config(workdir).data.seq_len
    settings = Settings(max_tokens, FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.slots, FLAGS.grammar)
    step = checkpoint.pick_step(workdir, FLAGS.step)
    sampler = Sampler.load(workdir, settings, step)
    what = {name: FLAGS[name].value for name in ("workdir", "images", "ratio", "samples", "num", "seed")}
    _claim(out, what | {"step": step} | dataclasses.asdict(settings))
    if FLAGS.images is None:
        generate(sampler, out, FLAGS.num, FLAGS.seed)
    else:
        pictures = read_pictures(FLAGS.images, sampler.codec, FLAGS.num)
        sample(sampler, out, pictures, FLAGS.ratio, FLAGS.samples, FLAGS.seed)
    print(out / "grid.png")


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures to complete: a folder of files, or of prepared data.")
    flags.DEFINE_float("ratio", 0.5, "Share of each picture that is given, rounded down to whole MCUs.")
    flags.DEFINE_integer("samples", 1, "Completions of each picture.", lower_bound=1)
    flags.DEFINE_integer("num", None, "New pictures to write; with --images, at most so many of them.", lower_bound=1)
    flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 takes the most probable token.")
    flags.DEFINE_integer("top_k", 0, "Draw among the k most probable tokens; 0: among all.")
    flags.DEFINE_float("top_p", 1.0, "Draw among the most probable tokens that sum to p.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    flags.DEFINE_integer("slots", 8, "Pictures decoded at once.")
    flags.DEFINE_integer("max_tokens", None, "Most tokens of a picture; data.seq_len if not given.")
    flags.DEFINE_bool("grammar", True, "Draw only what leads to a legal file; --nogrammar: the papers' sampling.")
    flags.DEFINE_string("out", None, "Folder for the files.")
    flags.mark_flags_as_required(["workdir", "out"])
    cli.run(main)
