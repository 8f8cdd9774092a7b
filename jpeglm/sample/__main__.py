"""Completes partial pictures or clips with a trained run, or generates new ones.

python -m jpeglm.sample --workdir=DIR --images=PATH --ratio=0.5 --top_p=0.9 --top_k=40 --samples=3 --out=OUT
python -m jpeglm.sample --workdir=DIR --images=PATH --frames=10 --top_p=0.9 --out=OUT
python -m jpeglm.sample --workdir=DIR --num=64 --out=OUT

PATH is a folder of pictures or clips, or one that `jpeglm.prepare` wrote (then its held-out ones are taken). OUT
receives a file for each sample, as the model wrote it, restored to an ordinary file but not repaired; samples.jsonl,
with a line for each that says whether it is valid; and the page grid.html (each row: prompt, completions, original).
For a clip, the file is an H.264 stream; OUT/films has an mp4 and an animated WebP of the decoded stream.

An interrupted command continues where it stopped; one with other settings, weights or pictures is refused. A picture
whose prompt leaves no room within --max_tokens is named and left out; the others are done, and the status is 2.

With a grammar of legal files (there is one for JPEG), each draw is restricted to tokens that can still lead to a legal
file, so every file is complete and valid; samples.jsonl records how much of the model's probability this removed.
--nogrammar samples as the papers do.
"""

from pathlib import Path

from absl import flags
from etils import epath

from jpeglm.core import checkpoint, cli, distributed, files
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.core.workdir import read_config
from jpeglm.data import documents
from jpeglm.data.codecs import Codec
from jpeglm.sample import job, too_long
from jpeglm.sample.sampler import Sampler
from jpeglm.sample.settings import Settings

FLAGS = flags.FLAGS


def _ratio_of(frames: int, codec: Codec) -> float:
    """The ratio that corresponds to `frames` frames of a clip."""
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
    asked = job.Job(Path(FLAGS.out), weights, FLAGS.samples, FLAGS.seed, ratio, about)
    if FLAGS.images is None:
        print(job.generate(sampler, FLAGS.num, asked))
        return
    originals = documents.read(FLAGS.images, sampler.codec, FLAGS.num, sampler.config.data.background)
    left_out = sampler.too_long(originals, ratio)
    print(job.complete(sampler, too_long.leave_out(originals, left_out), asked))
    too_long.finish(left_out, len(originals), FLAGS.allow_too_long)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures or clips to complete: a folder, or prepared data.")
    flags.DEFINE_float("ratio", 0.5, "Share of each file that is given, in whole MCUs or frames.")
    flags.DEFINE_integer("frames", None, "For clips, instead of --ratio: the number of given frames.")
    flags.DEFINE_integer("samples", 1, "Completions per file.", lower_bound=1)
    flags.DEFINE_integer("num", None, "Number of new files; with --images, the most files to complete.", lower_bound=1)
    flags.DEFINE_float("temperature", 1.0, "Divides the logits; 0 always takes the most probable token.")
    flags.DEFINE_integer("top_k", 0, "Draw from the k most probable tokens; 0: from all.")
    flags.DEFINE_float("top_p", 1.0, "Draw from the most probable tokens that sum to p.")
    flags.DEFINE_integer("seed", 0, "Seed of the draws.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    flags.DEFINE_integer("slots", 8, "Number of files decoded at once.")
    flags.DEFINE_integer("max_tokens", None, "Largest number of tokens per file; data.seq_len if not given.")
    flags.DEFINE_bool("grammar", True, "Draw only tokens that lead to a legal file; the papers do not.")
    flags.DEFINE_bool("allow_too_long", False, "Exit with status 0 even if too long pictures were left out.")
    flags.DEFINE_string("out", None, "Folder for the files.")
    cli.run(main, required=("workdir", "out"))
