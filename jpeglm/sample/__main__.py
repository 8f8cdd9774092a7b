"""Completes partial pictures or clips with a trained run, or generates new ones.

python -m jpeglm.sample --workdir=DIR --images=PATH --ratio=0.5 --top_p=0.9 --top_k=40 --samples=3 --out=OUT
python -m jpeglm.sample --workdir=DIR --images=PATH --ratio=0.25,0.5,0.75 --seed=0,1,2 --out=OUT
python -m jpeglm.sample --workdir=DIR --num=64 --out=OUT

PATH is a folder of pictures or clips, or one that `jpeglm.prepare` wrote (then its held-out ones are taken). OUT gets
a file for each sample, as the model wrote it, restored to an ordinary file but not repaired; samples.jsonl, with a
line for each that says whether it is valid; grid.html; and of clips OUT/films, an mp4 and an animated WebP of each.
With several values of a flag, each combination has a folder of its own, such as OUT/ratio-0.5-seed-1.

An interrupted command continues where it stopped; one with other settings, weights or pictures is refused. A picture
whose prompt leaves no room within --max_tokens is named and left out; the others are done, and the status is 2.
Several processes (srun, mpirun, the workers of a TPU slice, --part=K/N) share the work; none waits for another.

With a grammar of legal files (there is one for JPEG), each draw is restricted to tokens that can still lead to a legal
file; samples.jsonl says how much of the model's probability this removed. --nogrammar samples as the papers do.
"""

import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

from absl import flags
from etils import epath

from jpeglm.core import checkpoint, cli, files, parts, ranges
from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.core.workdir import read_config
from jpeglm.data import documents
from jpeglm.data.codecs import Codec
from jpeglm.data.sources.listing import SAMPLES_LOGS
from jpeglm.sample import job, too_long
from jpeglm.sample.sampler import Sampler
from jpeglm.sample.settings import Settings

FLAGS = flags.FLAGS
_DRAWING: dict[str, Callable[[str], float]] = {"temperature": float, "top_p": float, "top_k": int}


def _numbers(name: str, kind: Callable[[str], float]) -> list[float]:
    """The values of a flag that takes one number or several, separated by commas."""
    found: list[float] = []
    texts: list[str] = FLAGS[name].value or []
    for text in texts:
        try:
            value = kind(text)
        except ValueError:
            what = "a whole number" if kind is int else "a number"
            raise InputError(f"--{name}={text}: {what}, or several with commas between them") from None
        ranges.check_one(f"--{name}", value, config_lib.FLAGS.get(name, ranges.whole(0)))
        if value in found:
            raise InputError(f"--{name}={','.join(texts)}: {text} stands there twice")
        found.append(value)
    if not found:
        raise InputError(f"--{name}: a number is needed")
    return found


def _check_frames(frames: list[float], codec: Codec) -> None:
    if codec.unit != "frame":
        raise InputError(f"--frames is for runs on clips; for {codec.item}s there is --ratio")
    for each in frames:
        if not 0 <= each <= codec.units:
            raise InputError(f"--frames={each}: a {codec.item} of this run has {codec.units}")


def _check_flags() -> None:
    if FLAGS.images is None and FLAGS.num is None:
        raise InputError(
            "neither --images nor --num is set: --images=PATH completes pictures, --num=N writes new ones"
        )
    if FLAGS["ratio"].present and FLAGS.frames:
        raise InputError("--ratio and --frames: one of the two")
    if FLAGS.images is None and len(FLAGS.frames or FLAGS.ratio) > 1:
        raise InputError("several values of --ratio or --frames: without --images nothing is given")
    files.check_outside(FLAGS.out, images=FLAGS.images)


def _varied() -> dict[str, list[float]]:
    """The values of the flags that may have several, by name, in the order in which they name folders."""
    given = {"frames": _numbers("frames", int)} if FLAGS.frames else {"ratio": _numbers("ratio", float)}
    return given | {"seed": _numbers("seed", int)} | {name: _numbers(name, kind) for name, kind in _DRAWING.items()}


def _folder(cell: dict[str, float], varied: dict[str, list[float]]) -> Path:
    """Where one combination of values goes: OUT, or a folder in it that has those in its name which differ."""
    names = [f"{name}-{str(cell[name]).removesuffix('.0')}" for name, values in varied.items() if len(values) > 1]
    out = Path(FLAGS.out)
    if names and out.is_dir() and any(SAMPLES_LOGS.fullmatch(path.name) for path in out.iterdir()):
        raise InputError(f"{out} itself holds samples, and folders of samples are asked: another --out")
    return out / "-".join(names)


def _jobs(varied: dict[str, list[float]], settings: Settings, units: int, **shared: Any) -> list[job.Job]:
    """A job for each combination of values."""
    found = []
    for values in itertools.product(*varied.values()):
        cell = dict(zip(varied, values, strict=True))
        ratio = cell["frames"] / units if "frames" in cell else cell["ratio"]
        drawn = Settings(
            settings.max_tokens,
            cell["temperature"],
            int(cell["top_k"]),
            cell["top_p"],
            settings.slots,
            settings.grammar,
        )
        where = _folder(cell, varied)
        found.append(job.Job(where, seed=int(cell["seed"]), ratio=ratio, settings=drawn, **shared))
    return found


def main() -> None:
    _check_flags()
    varied = _varied()
    part = parts.start(FLAGS.part)
    workdir = epath.Path(FLAGS.workdir)
    config = read_config(workdir)
    codec = CODECS.of(config)
    if "frames" in varied:
        _check_frames(varied["frames"], codec)
    max_tokens = config.data.seq_len if FLAGS.max_tokens is None else FLAGS.max_tokens
    settings = Settings(max_tokens, slots=FLAGS.slots, grammar=FLAGS.grammar and codec.grammar() is not None)
    step = checkpoint.pick_step(workdir, FLAGS.step)
    about = {name: FLAGS[name].value for name in ("workdir", "images", "samples", "num", "slots")} | {"step": step}
    weights = checkpoint.weights_hash(workdir, step)
    jobs = _jobs(varied, settings, codec.units, weights=weights, samples=FLAGS.samples, about=about)
    sampler = Sampler.load(workdir, jobs[0].settings or settings, step)
    if FLAGS.images is None:
        print(*job.generate(sampler, FLAGS.num, jobs, part).pages, sep="\n")
        return
    originals = documents.Documents(FLAGS.images, sampler.codec, FLAGS.num, sampler.config.data.background)
    done = job.complete(sampler, originals, jobs, part)
    originals.tell()
    print(*done.pages, sep="\n")
    too_long.finish(done.left_out, done.total, FLAGS.allow_too_long)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures or clips to complete: a folder, or prepared data.")
    flags.DEFINE_list("ratio", ["0.5"], "Share of each file that is given; one or several.")
    flags.DEFINE_list("frames", None, "For clips: given frames, instead of --ratio; one or several.")
    flags.DEFINE_integer("samples", 1, "Completions per file.", lower_bound=1)
    flags.DEFINE_integer("num", None, "Number of new files; with --images, the most files to complete.", lower_bound=1)
    flags.DEFINE_list("temperature", ["1"], "Divides the logits; 0: no draw; one or several.")
    flags.DEFINE_list("top_k", ["0"], "Draw from the k most probable tokens; 0: from all; one or several.")
    flags.DEFINE_list("top_p", ["1"], "Draw from the most probable tokens that sum to p; one or several.")
    flags.DEFINE_list("seed", ["0"], "Seed of the draws; one or several.")
    flags.DEFINE_string("part", None, "K/N: part K of N, from 1/N; else the launcher says it.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    flags.DEFINE_integer("slots", 8, "Number of files decoded at once.")
    flags.DEFINE_integer("max_tokens", None, "Largest number of tokens per file; data.seq_len if not given.")
    flags.DEFINE_bool("grammar", True, "Draw only tokens that lead to a legal file; the papers do not.")
    flags.DEFINE_bool("allow_too_long", False, "Status 0 even if too long pictures were left out.")
    flags.DEFINE_string("out", None, "Folder for the files.")
    cli.run(main, required=("workdir", "out"))
