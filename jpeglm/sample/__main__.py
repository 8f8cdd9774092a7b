"""Completes partial pictures or clips with a trained run, or writes new ones from nothing.

python -m jpeglm.sample --workdir=DIR --images=PATH --ratio=0.5 --top_p=0.9 --top_k=40 --samples=3 --out=OUT
python -m jpeglm.sample --workdir=DIR --images=PATH --frames=10 --top_p=0.9 --out=OUT
python -m jpeglm.sample --workdir=DIR --num=64 --out=OUT

PATH is a folder of pictures or clips, or one that `jpeglm.prepare` wrote (then its held-out ones are taken). OUT gets
a file for each sample, as the model wrote it, restored to an ordinary file and not otherwise mended; samples.jsonl,
with a line for each that says whether it is valid; and the page grid.html (each row: prompt, completions, original).
Of a clip, that file is an H.264 stream; OUT/films has an mp4 and an animated WebP of what a decoder sees of it.

An interrupted command goes on where it stood; one with other settings, weights or pictures is refused. A picture
whose beginning leaves no room within --max_tokens is named and left out; the others are done, and the status is 2.

A grammar of legal files, which JPEG has here, lets each draw choose only among tokens that lead to one, so every file
is whole and valid; samples.jsonl says how much of the model's probability that took away. --nogrammar samples as the
papers do.
"""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags, logging
from etils import epath
from PIL import Image
from tqdm import tqdm

from jpeglm.core import checkpoint, cli, distributed, files
from jpeglm.core.errors import InputError, printable
from jpeglm.core.registry import CODECS, MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data import documents, render
from jpeglm.data.codecs import Codec
from jpeglm.sample import too_long
from jpeglm.sample.engine import Settings
from jpeglm.sample.folder import Samples
from jpeglm.sample.sampler import Completion, Sampler

FLAGS = flags.FLAGS
GRID_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Job:
    """What is sampled, and where to.

    Attributes:
      out: the folder.
      weights: hash of the parameters, see `checkpoint.weights_hash`.
      samples: for each picture.
      num: of new ones, or the most pictures to complete; None: all.
      seed: of the draws.
      ratio: share of each picture that is given.
      about: what settings.json shall tell beside all that.
    """

    out: Path
    weights: str
    samples: int = 1
    num: int | None = None
    seed: int = 0
    ratio: float = 0.5
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def identity(self, sampler: Sampler) -> dict[str, Any]:
        """All that the samples depend on beside their originals; JSON types."""
        drawn = dataclasses.asdict(sampler.settings)
        del drawn["slots"]
        section = sampler.config.model
        free = MODELS.kind(section.name).FREE
        model = {key: value for key, value in MODELS.identity(section).items() if key not in free}
        nested = {"model": model, "codec": sampler.config.codec}
        asked = {"ratio": self.ratio, "seed": self.seed}
        parts = {f"{part}.{key}": value for part, section in nested.items() for key, value in section.items()}
        return {"weights": self.weights, "tokenizer": sampler.tokenizer.sha256} | parts | asked | drawn


def sample(sampler: Sampler, originals: Mapping[str, bytes], job: Job) -> Path:
    """Completes each document `job.samples` times and returns the overview's path; what is done is left alone.

    Raises:
      InputError: `job.out` holds other samples, or cannot be written; see `Sampler.complete`, too.
    """
    codec = sampler.codec
    named = {name: [f"{name}-s{number}" for number in range(job.samples)] for name in originals}
    hashes = {name: hashlib.sha256(document).hexdigest() for name, document in originals.items()}
    wanted = {name: hashes[original] for original, names in named.items() for name in names}
    with files.owned(job.out):
        folder = Samples(job.out, codec.extension, job.identity(sampler), job.about, wanted)
        missing = [name for name in originals if not folder.rows.keys() >= set(named[name])]
        completions = sampler.complete([originals[name] for name in missing], job.ratio, job.samples, job.seed)
        _write(folder, codec, ((named[missing[c.index]][c.sample], c) for c in completions), len(wanted))

        def rows(name: str) -> list[list[Image.Image]]:
            prompt, kept = codec.cut(originals[name], job.ratio)
            written = [folder.path(sample).read_bytes() for sample in named[name]]
            return codec.display.rows(codec.restore(prompt), kept, written, codec.restore(originals[name]))

        shown = list(originals)[:GRID_ROWS]
        moving = {}
        for name in shown if codec.fps else ():
            moving |= {name: codec.restore(originals[name])} | {s: folder.path(s).read_bytes() for s in named[name]}
        return _write_grid(folder, codec, codec.display.caption, [row for name in shown for row in rows(name)], moving)


def generate(sampler: Sampler, job: Job) -> Path:
    """Writes `job.num` files from nothing and returns the overview's path; see `sample`."""
    codec = sampler.codec
    names = [f"sample-{number:05d}" for number in range(job.num)]
    with files.owned(job.out):
        folder = Samples(job.out, codec.extension, job.identity(sampler), job.about, dict.fromkeys(names))
        done = {number for number, name in enumerate(names) if name in folder.rows}
        completions = sampler.generate(job.num, job.seed, done)
        _write(folder, codec, ((names[c.sample], c) for c in completions), job.num)
        shown = {name: folder.path(name).read_bytes() for name in names[: GRID_ROWS**2]}
        tiles = [codec.display.tile(file) for file in shown.values()]
        across = int(np.ceil(np.sqrt(len(tiles))))
        rows = [tiles[row : row + across] for row in range(0, len(tiles), across)]
        return _write_grid(folder, codec, "Samples in the order of their numbers, row by row.", rows, shown)


def _write_grid(
    folder: Samples, codec: Codec, caption: str, rows: list[list[Image.Image]], clips: Mapping[str, bytes]
) -> Path:
    moving = {}
    if codec.fps:
        moving = {printable(name): render.animation(codec.see(file), codec.fps) for name, file in clips.items()}
    return folder.write_grid(render.page("Samples", caption, render.grid(rows), moving))


def _write(folder: Samples, codec: Codec, named: Iterable[tuple[str, Completion]], total: int) -> None:
    """Writes what is not there yet, and tells how many of all samples are valid."""
    with tqdm(total=total, initial=len(folder.rows), unit="file", desc="sample", disable=None) as bar:
        for name, completion in named:
            if name in folder.rows:
                continue
            facts = {
                "valid": codec.is_valid(completion.document),
                "ended": completion.ended,
                "prompt_units": completion.prompt_units,
                "tokens": completion.tokens,
                "removed": completion.removed,
            }
            folder.add(name, codec.restore(completion.document), facts)
            bar.update()
    for name in folder.rows:
        if not folder.has_films(name, codec.display.film_suffixes):  # which still pictures have none of
            folder.add_films(name, codec.display.films(folder.path(name).read_bytes()))
    valid = sum(row["valid"] for row in folder.rows.values())
    logging.info("%d files, %d valid: %s", total, valid, folder.out)


def _ratio_of(frames: int, codec: Codec) -> float:
    """The share of a clip that so many frames are."""
    if FLAGS["ratio"].present:
        raise InputError("--ratio and --frames: one of the two")
    if codec.unit != "frame":
        raise InputError(f"--frames is for runs on clips; for {codec.item}s there is --ratio")
    if not 0 <= frames <= codec.units:
        raise InputError(f"--frames={frames}: a {codec.item} of this run has {codec.units}")
    return frames / codec.units


def _check_flags() -> None:
    if FLAGS.images is None and FLAGS.num is None:
        raise InputError(
            "neither --images nor --num is set: --images=PATH completes pictures, --num=N writes new ones"
        )
    files.check_outside(FLAGS.out, images=FLAGS.images)


def main() -> None:
    _check_flags()
    distributed.start()
    distributed.refuse_several("jpeglm.sample")
    workdir = epath.Path(FLAGS.workdir)
    config = read_config(workdir)
    max_tokens = config.data.seq_len if FLAGS.max_tokens is None else FLAGS.max_tokens
    grammar = FLAGS.grammar and CODECS.of(config).grammar() is not None
    settings = Settings(max_tokens, FLAGS.temperature, FLAGS.top_k, FLAGS.top_p, FLAGS.slots, grammar)
    step = checkpoint.pick_step(workdir, FLAGS.step)
    sampler = Sampler.load(workdir, settings, step)
    ratio = FLAGS.ratio if FLAGS.frames is None else _ratio_of(FLAGS.frames, sampler.codec)
    about = {name: FLAGS[name].value for name in ("workdir", "images", "samples", "num", "slots")} | {"step": step}
    weights = checkpoint.weights_hash(workdir, step)
    job = Job(Path(FLAGS.out), weights, FLAGS.samples, FLAGS.num, FLAGS.seed, ratio, about)
    if FLAGS.images is None:
        print(generate(sampler, job))
        return
    originals = documents.read(FLAGS.images, sampler.codec, FLAGS.num, sampler.config.data.background)
    left_out = sampler.too_long(originals, ratio)
    print(sample(sampler, too_long.leave_out(originals, left_out), job))
    too_long.finish(left_out, len(originals), FLAGS.allow_too_long)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures or clips to complete: a folder, or prepared data.")
    flags.DEFINE_float("ratio", 0.5, "Share of each that is given, in whole MCUs or frames.")
    flags.DEFINE_integer("frames", None, "Or, of clips, the number of frames that are given.")
    flags.DEFINE_integer("samples", 1, "Completions of each.", lower_bound=1)
    flags.DEFINE_integer("num", None, "New ones to write; with --images, at most so many of them.", lower_bound=1)
    flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 takes the most probable token.")
    flags.DEFINE_integer("top_k", 0, "Draw among the k most probable tokens; 0: among all.")
    flags.DEFINE_float("top_p", 1.0, "Draw among the most probable tokens that sum to p.")
    flags.DEFINE_integer("seed", 0, "Of the draws.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    flags.DEFINE_integer("slots", 8, "Files written at once.")
    flags.DEFINE_integer("max_tokens", None, "Most tokens of a file; data.seq_len if not given.")
    flags.DEFINE_bool("grammar", True, "Draw only what leads to a legal file, not as in the papers.")
    flags.DEFINE_bool("allow_too_long", False, "Status 0 although pictures were left out as too long.")
    flags.DEFINE_string("out", None, "Folder for the files.")
    cli.run(main, required=("workdir", "out"))
