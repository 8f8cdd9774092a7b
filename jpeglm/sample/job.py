"""The sampling job: writes completions or new files to a folder, with an overview."""

import dataclasses
import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from PIL import Image
from tqdm import tqdm

from jpeglm.core import files
from jpeglm.core.errors import printable
from jpeglm.core.registry import MODELS
from jpeglm.data import render
from jpeglm.data.codecs import Codec
from jpeglm.sample.folder import Samples
from jpeglm.sample.sampler import Completion, Sampler

GRID_ROWS = 16


@dataclasses.dataclass(frozen=True)
class Job:
    """What to sample, and where to.

    Attributes:
      out: the folder.
      weights: hash of the parameters, see `checkpoint.weights_hash`.
      samples: per picture.
      seed: of the draws.
      ratio: share of each picture that is given.
      about: further entries of settings.json.
    """

    out: Path
    weights: str
    samples: int = 1
    seed: int = 0
    ratio: float = 0.5
    about: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def identity(self, sampler: Sampler) -> dict[str, Any]:
        """Everything that the samples depend on besides their originals; JSON types."""
        drawn = dataclasses.asdict(sampler.settings)
        del drawn["slots"]
        section = sampler.config.model
        free = MODELS.kind(section.name).FREE
        model = {key: value for key, value in MODELS.identity(section).items() if key not in free}
        nested = {"model": model, "codec": sampler.config.codec}
        asked = {"ratio": self.ratio, "seed": self.seed}
        parts = {f"{part}.{key}": value for part, section in nested.items() for key, value in section.items()}
        return {"weights": self.weights, "tokenizer": sampler.tokenizer.sha256} | parts | asked | drawn


def complete(sampler: Sampler, originals: Mapping[str, bytes], job: Job) -> Path:
    """Completes each document `job.samples` times, skipping what is done; returns the overview's path.

    Raises:
      InputError: `job.out` holds other samples, or cannot be written; also as `Sampler.complete`.
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
        moving: dict[str, bytes] = {}
        for name in shown if codec.fps else ():
            moving |= {name: codec.restore(originals[name])} | {s: folder.path(s).read_bytes() for s in named[name]}
        return _write_grid(folder, codec, codec.display.caption, [row for name in shown for row in rows(name)], moving)


def generate(sampler: Sampler, num: int, job: Job) -> Path:
    """Writes `num` files without a prompt; returns the overview's path. See `complete`."""
    codec = sampler.codec
    names = [f"sample-{number:05d}" for number in range(num)]
    with files.owned(job.out):
        folder = Samples(job.out, codec.extension, job.identity(sampler), job.about, dict.fromkeys(names))
        done = {number for number, name in enumerate(names) if name in folder.rows}
        completions = sampler.generate(num, job.seed, done)
        _write(folder, codec, ((names[c.sample], c) for c in completions), num)
        shown = {name: folder.path(name).read_bytes() for name in names[: GRID_ROWS**2]}
        tiles = [codec.display.tile(file) for file in shown.values()]
        across = int(np.ceil(np.sqrt(len(tiles))))
        rows = [tiles[row : row + across] for row in range(0, len(tiles), across)]
        return _write_grid(folder, codec, "Samples in the order of their numbers, row by row.", rows, shown)


def _write_grid(
    folder: Samples, codec: Codec, caption: str, rows: list[list[Image.Image]], clips: Mapping[str, bytes]
) -> Path:
    moving = {}
    if codec.fps:  # then the decoded item is an array of frames
        for name, file in clips.items():
            moving[printable(name)] = render.animation(np.asarray(codec.see(file)), codec.fps)
    return folder.write_grid(render.page("Samples", caption, render.grid(rows), moving))


def _write(folder: Samples, codec: Codec, named: Iterable[tuple[str, Completion]], total: int) -> None:
    """Writes the missing samples, and logs how many of all samples are valid."""
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
        if not folder.has_films(name, codec.display.film_suffixes):  # never true for still pictures
            folder.add_films(name, codec.display.films(folder.path(name).read_bytes()))
    valid = sum(row["valid"] for row in folder.rows.values())
    logging.info("%d files, %d valid: %s", total, valid, folder.out)
