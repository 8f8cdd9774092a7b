"""The distance between two sets of pictures: one number.

    python -m jpeglm.fid --real=originals --fake=samples --mode=clean --weights=pt_inception-2015-12-05-6726825d.pth

The last line of standard output is the number; everything else goes to standard error. --real and --fake are folders,
zip or tar files, ArrayRecords, arrays (.npz, .npy, FILE.npz:NAME), what `jpeglm.prepare` wrote (its held-out
pictures), what `jpeglm.sample` wrote (its samples), or statistics that --save_stats wrote before:

    python -m jpeglm.fid --real=originals --save_stats=originals.npz --mode=... --weights=...
    python -m jpeglm.fid --real=originals.npz --fake=samples --mode=... --weights=...

Without --weights it is the Fréchet distance of EfficientNet-Lite0 features (FD-EfficientNet-Lite0), which needs no
download and is no FID: never compare one with the other. Several processes of one job share the pictures out.
"""

import dataclasses
import functools
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import flags, logging

from jpeglm.core import cli, distributed
from jpeglm.core.config import BACKGROUNDS, DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, writing
from jpeglm.core.files import check_outside, write_whole
from jpeglm.data.sources.arrays import without_array
from jpeglm.fid import images
from jpeglm.fid.extractors.base import Extractor
from jpeglm.fid.extractors.efficientnet import EfficientNetLite0
from jpeglm.fid.extractors.inception import MODES, Inception
from jpeglm.fid.frechet import bootstrap, frechet_distance
from jpeglm.fid.kid import kernel_distance
from jpeglm.fid.measure import LONGEST, Measured, measure
from jpeglm.fid.moments import check_comparable, holds_statistics, load_statistics, save_statistics

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Side:
    """One of the two sets: pictures to be measured, or statistics, which are.

    Attributes:
      path: as the flag names it.
      facts: what the features are made with; empty for statistics of another program.
      pictures: None for statistics.
      measured: filled in once the pictures are.
    """

    path: str
    facts: dict[str, str]
    pictures: images.Pictures | None
    measured: Measured | None


def main() -> None:
    _check_flags()
    with cli.only_standard_error():  # the number alone goes to standard output, whatever libraries print
        distributed.start(FLAGS.platform)
        if jax.process_index() == 0:  # which alone writes
            _check_outputs()
        sides = _open()
        for name, side in sides.items():
            side.measured = side.measured or _measure(name, side)
            if (count := side.measured.moments.count) in (0, 1):  # in all processes, before one goes on alone
                raise InputError(f"{side.path}: two pictures or more are needed, {count} can be used")
            if name == "real" and FLAGS.save_stats and jax.process_index() == 0:
                save_statistics(FLAGS.save_stats, side.measured.moments, side.facts, side.measured.spatial)
                logging.info("%s: statistics of %d pictures", FLAGS.save_stats, side.measured.moments.count)
        result = _compare(**sides) if "fake" in sides and jax.process_index() == 0 else None
        if result and FLAGS.json:
            with writing(FLAGS.json):
                write_whole(Path(FLAGS.json), (json.dumps(result, indent=2) + "\n").encode())
        if jax.process_count() > 1:  # JAX gives those that have ended five minutes' patience with those that have not
            distributed.wait_for_all("comparison", LONGEST)
    if result:
        print(f"{result['value']:.6f}")


def _check_flags() -> None:
    if not FLAGS.real:
        raise InputError("--real=PATH is needed")
    if not (FLAGS.fake or FLAGS.save_stats):
        raise InputError("--fake=PATH is needed, or --save_stats=FILE")
    if bool(FLAGS.mode) != bool(FLAGS.weights):
        raise InputError("--mode and --weights go together: they choose the 2015 Inception, whose distance is FID")
    if FLAGS.bootstrap == 1:
        raise InputError("--bootstrap=1: one resampling has no spread, 100 or more are usual")
    if FLAGS.save_stats and holds_statistics(FLAGS.real):
        raise InputError(f"--save_stats: {FLAGS.real} holds statistics already")
    if FLAGS.save_stats and not FLAGS.save_stats.lower().endswith(".npz"):
        raise InputError(f"--save_stats={FLAGS.save_stats}: its name must end in .npz")


def _check_outputs() -> None:
    for name in ("json", "save_stats"):
        if not FLAGS[name].value:
            continue
        path = Path(FLAGS[name].value)
        if not path.parent.is_dir() or path.is_dir():
            raise InputError(f"--{name}={path}: {'is a folder' if path.is_dir() else 'no such folder'}")
        check_outside(path, **{side: without_array(FLAGS[side].value) for side in ("real", "fake")})
    if FLAGS.json and FLAGS.save_stats and Path(FLAGS.json).resolve() == Path(FLAGS.save_stats).resolve():
        raise InputError(f"--json and --save_stats name one file: {FLAGS.json}")


@functools.cache
def _extractor() -> Extractor:
    if FLAGS.weights:
        return Inception(FLAGS.weights, FLAGS.mode, FLAGS.batch_size, FLAGS.spatial)
    return EfficientNetLite0(batch_size=FLAGS.batch_size)


def _open() -> dict[str, Side]:
    """Both sides, or --real alone; all that can be refused is refused before anything is measured."""
    sides = {}
    for name in ("real", "fake"):
        if not (path := FLAGS[name].value):
            continue
        if holds_statistics(path):
            if FLAGS.kid or FLAGS.bootstrap:
                raise InputError(f"{path}: --kid and --bootstrap need pictures, statistics are not enough")
            moments, facts = load_statistics(path)
            spatial = load_statistics(path, spatial=True)[0] if FLAGS.spatial else None
            sides[name] = Side(path, facts, None, Measured(moments, spatial))
        else:
            sides[name] = Side(path, {}, images.open_pictures(path, FLAGS.background), None)
    to_measure = [side for side in sides.values() if side.pictures is not None]
    if FLAGS.weights and not to_measure:
        raise InputError("--mode and --weights are for pictures, and both sides are statistics")
    if FLAGS.spatial and to_measure and not FLAGS.weights:
        raise InputError("--spatial is of the 2015 Inception: it needs --weights")
    for side in to_measure:
        network = _extractor()
        side.facts = {"metric": network.metric, "mode": network.mode, "weights_sha256": network.weights_sha256}
        side.facts["background"] = FLAGS.background
    if len(sides) == 2:
        real, fake = sides.values()
        check_comparable(real.facts, fake.facts, (real.path, fake.path))
        dims = [side.measured.moments.dim if side.measured else _extractor().dim for side in (real, fake)]
        if dims[0] != dims[1]:
            raise InputError(f"{real.path} and {fake.path}: features of two networks, {dims[0]:,} and {dims[1]:,}")
    for side in to_measure:
        found = side.pictures
        logging.info("%s: %d pictures%s", found.path, len(found), found.passed_over.after("; "))
    return sides


def _measure(name: str, side: Side) -> Measured:
    return measure(
        side.pictures,
        _extractor(),
        name,
        keep_features=bool(FLAGS.kid or FLAGS.bootstrap),
        allow_unreadable=FLAGS.allow_unreadable,
    )


def _compare(real: Side, fake: Side) -> dict[str, Any]:
    """All numbers, and what they were made with."""
    ours, theirs = real.measured, fake.measured
    facts = real.facts or fake.facts or {"metric": "Fréchet distance of statistics"}
    value = frechet_distance(ours.moments, theirs.moments)
    result = facts | {"value": value}
    counts = [side.moments.count or "an unknown number of" for side in (ours, theirs)]
    logging.info("%s of %s and %s pictures: %.6f", facts["metric"], *counts, value)
    if FLAGS.spatial:
        result["sfid"] = frechet_distance(ours.spatial, theirs.spatial)
        logging.info("sFID: %.6f", result["sfid"])
    if FLAGS.kid:
        kid = kernel_distance(ours.features, theirs.features, seed=FLAGS.seed)
        result["kid"] = dataclasses.asdict(kid) | {"seed": FLAGS.seed}
        logging.info("KID: %.7f (deviation of the subsets %.7f)", kid.mean, kid.deviation)
    if FLAGS.bootstrap:
        interval = bootstrap(ours.features, theirs.features, FLAGS.bootstrap, FLAGS.seed)
        result["interval"] = {"replicates": FLAGS.bootstrap, "seed": FLAGS.seed} | dataclasses.asdict(interval)
        logging.info("95%% by resampling pictures: %.6f to %.6f", interval.low, interval.high)
    sides = {"real": real, "fake": fake}
    return result | {
        "paths": {name: side.path for name, side in sides.items()},
        "n": {name: side.measured.moments.count for name, side in sides.items()},
        "refused": {name: side.measured.refused for name, side in sides.items()},
        "passed_over": {name: side.pictures.passed_over.to_json() for name, side in sides.items() if side.pictures},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "scipy", "pillow")},
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "The reference pictures: a folder, an archive, arrays, prepared data, statistics."
    )
    flags.DEFINE_string("fake", None, "The pictures to judge: likewise.")
    flags.DEFINE_enum("mode", None, list(MODES), "How pictures are resized and normalised for the 2015 Inception.")
    flags.DEFINE_string("weights", None, "Weights of the 2015 Inception: its .pth, or what jpeglm.convert made of it.")
    flags.DEFINE_string("save_stats", None, "File for the statistics of --real, to compare with again (.npz).")
    flags.DEFINE_string("json", None, "File to write the numbers and what they were made with to.")
    flags.DEFINE_bool("spatial", False, "Also sFID, of the network's spatial features.")
    flags.DEFINE_bool("kid", False, "Also the kernel distance, over 100 subsets of 1,000 pictures.")
    flags.DEFINE_integer("bootstrap", 0, "Also an interval, by resampling the pictures so many times.", lower_bound=0)
    flags.DEFINE_integer("seed", 2020, "Of --kid and --bootstrap.", 0, 2**32 - 1)
    flags.DEFINE_bool("allow_unreadable", False, "Leave out pictures that cannot be used, instead of ending.")
    flags.DEFINE_enum(
        "background",
        DEFAULT_BACKGROUND,
        list(BACKGROUNDS),
        "What transparent pictures are put over; `refuse` takes none. The same default as of jpeglm.prepare.",
    )
    flags.DEFINE_integer("batch_size", None, "Pictures computed at once; chosen by the device if not given.", 1)
    flags.DEFINE_string("platform", "", "cpu, gpu or tpu; what JAX finds if not given.")
    cli.run(main)
