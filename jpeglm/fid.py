"""The distance between two sets of pictures: one number.

    python -m jpeglm.fid --real=originals --fake=samples --mode=clean --weights=pt_inception-2015-12-05-6726825d.pth

The last line of standard output is the number; everything else goes to standard error. --real and --fake are folders,
zip or tar files, ArrayRecords, arrays (.npz, .npy), or statistics that --save_stats wrote before:

    python -m jpeglm.fid --real=originals --save_stats=originals.npz --mode=... --weights=...
    python -m jpeglm.fid --real=originals.npz --fake=samples --mode=... --weights=...

Without --weights it is the Fréchet distance of EfficientNet-Lite0 features (FD-EfficientNet-Lite0), which needs no
download and is no FID: never compare one with the other. Several processes of one job share the pictures out.
"""

import dataclasses
import json
import platform
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import flags, logging

from jpeglm import cli, runtime
from jpeglm.data.shards import write_whole
from jpeglm.errors import InputError, writing
from jpeglm.evals import images
from jpeglm.evals.efficientnet import EfficientNetLite0
from jpeglm.evals.features import Extractor
from jpeglm.evals.fid import Moments, bootstrap, frechet_distance
from jpeglm.evals.inception import MODES, Inception
from jpeglm.evals.kid import kernel_distance
from jpeglm.evals.measure import measure
from jpeglm.evals.statistics import check_comparable, holds_statistics, load_statistics, save_statistics

FLAGS = flags.FLAGS


@dataclasses.dataclass
class Side:
    """One of the two sets."""

    path: str
    facts: dict[str, str]  # what the features were made with; empty for statistics of another program
    moments: Moments
    spatial: Moments | None = None
    features: np.ndarray | None = None  # float32 [n, dim]
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def main() -> None:
    _check_flags()
    runtime.start(FLAGS.platform)
    paths = {name: FLAGS[name].value for name in ("real", "fake") if FLAGS[name].value}
    # Everything is opened before anything is computed.
    sets = {name: None if holds_statistics(path) else images.open_pictures(path) for name, path in paths.items()}
    from_statistics = [paths[name] for name, pictures in sets.items() if pictures is None]
    if from_statistics and (FLAGS.kid or FLAGS.bootstrap):
        raise InputError(f"{from_statistics[0]}: --kid and --bootstrap need pictures, statistics are not enough")
    extractor = _extractor() if any(sets.values()) else None
    sides = {name: _side(name, path, sets[name], extractor) for name, path in paths.items()}
    if jax.process_index() > 0:
        return
    if FLAGS.save_stats:
        real = sides["real"]
        save_statistics(FLAGS.save_stats, real.moments, real.facts, real.spatial)
        logging.info("%s: statistics of %d pictures", FLAGS.save_stats, real.moments.count)
    if "fake" in sides:
        result = _compare(sides["real"], sides["fake"])
        if FLAGS.json:
            with writing(FLAGS.json):
                write_whole(Path(FLAGS.json), (json.dumps(result, indent=2) + "\n").encode())
        sys.stderr.flush()
        print(f"{result['value']:.6f}")


def _check_flags() -> None:
    if not FLAGS.real:
        raise InputError("--real=PATH is needed")
    if not (FLAGS.fake or FLAGS.save_stats):
        raise InputError("--fake=PATH is needed, or --save_stats=FILE")
    if bool(FLAGS.mode) != bool(FLAGS.weights):
        raise InputError("--mode and --weights go together: they choose the 2015 Inception, whose distance is FID")
    if FLAGS.spatial and not FLAGS.weights:
        raise InputError("--spatial is of the 2015 Inception: it needs --weights")
    if FLAGS.save_stats and holds_statistics(FLAGS.real):
        raise InputError(f"--save_stats: {FLAGS.real} holds statistics already")
    if FLAGS.save_stats and not FLAGS.save_stats.endswith(".npz"):
        raise InputError(f"--save_stats={FLAGS.save_stats}: its name must end in .npz")
    for name in ("json", "save_stats"):
        if FLAGS[name].value and not Path(FLAGS[name].value).parent.is_dir():
            raise InputError(f"--{name}={FLAGS[name].value}: no such folder")


def _extractor() -> Extractor:
    if FLAGS.weights:
        return Inception(FLAGS.weights, FLAGS.mode, FLAGS.batch_size, FLAGS.spatial)
    return EfficientNetLite0(batch_size=FLAGS.batch_size)


def _side(name: str, path: str, pictures: images.Pictures | None, extractor: Extractor | None) -> Side:
    if pictures is None:
        moments, facts = load_statistics(path)
        spatial = load_statistics(path, spatial=True)[0] if FLAGS.spatial else None
        return Side(path, facts, moments, spatial)
    keep = bool(FLAGS.kid or FLAGS.bootstrap)
    found = measure(pictures, extractor, name, keep_features=keep, allow_unreadable=FLAGS.allow_unreadable)
    facts = {"metric": extractor.metric, "mode": extractor.mode, "weights_sha256": extractor.weights_sha256}
    return Side(path, facts, found.moments, found.spatial, found.features, found.refused)


def _compare(real: Side, fake: Side) -> dict[str, Any]:
    """All numbers, and what they were made with."""
    check_comparable(real.facts, fake.facts, (real.path, fake.path))
    facts = real.facts or fake.facts or {"metric": "Fréchet distance of statistics"}
    value = frechet_distance(real.moments, fake.moments)
    result = facts | {"value": value}
    counts = [side.moments.count or "an unknown number of" for side in (real, fake)]
    logging.info("%s of %s and %s pictures: %.6f", facts["metric"], *counts, value)
    if FLAGS.spatial:
        result["sfid"] = frechet_distance(real.spatial, fake.spatial)
        logging.info("sFID: %.6f", result["sfid"])
    if FLAGS.kid:
        kid = kernel_distance(real.features, fake.features, seed=FLAGS.seed)
        result["kid"] = dataclasses.asdict(kid) | {"seed": FLAGS.seed}
        logging.info("KID: %.7f (deviation of the subsets %.7f)", kid.mean, kid.deviation)
    if FLAGS.bootstrap:
        interval = bootstrap(real.features, fake.features, FLAGS.bootstrap, FLAGS.seed)
        result["interval"] = {"replicates": FLAGS.bootstrap, "seed": FLAGS.seed} | dataclasses.asdict(interval)
        logging.info("95%% by resampling pictures: %.6f to %.6f", interval.low, interval.high)
    sides = {"real": real, "fake": fake}
    return result | {
        "paths": {name: side.path for name, side in sides.items()},
        "n": {name: side.moments.count for name, side in sides.items()},
        "refused": {name: side.refused for name, side in sides.items()},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "scipy", "pillow")},
        "device": jax.devices()[0].device_kind,
    }


if __name__ == "__main__":
    flags.DEFINE_string("real", None, "The reference pictures: a folder, an archive, arrays or statistics.")
    flags.DEFINE_string("fake", None, "The pictures to judge: likewise.")
    flags.DEFINE_enum("mode", None, list(MODES), "How pictures are resized and normalised for the 2015 Inception.")
    flags.DEFINE_string("weights", None, "Weights of the 2015 Inception: its .pth, or what jpeglm.convert made of it.")
    flags.DEFINE_string("save_stats", None, "File for the statistics of --real, to compare with again (.npz).")
    flags.DEFINE_string("json", None, "File to write the numbers and what they were made with to.")
    flags.DEFINE_bool("spatial", False, "Also sFID, of the network's spatial features.")
    flags.DEFINE_bool("kid", False, "Also the kernel distance, over 100 subsets of 1,000 pictures.")
    flags.DEFINE_integer("bootstrap", 0, "Also an interval, by resampling the pictures so many times.", lower_bound=0)
    flags.DEFINE_integer("seed", 2020, "Of --kid and --bootstrap.")
    flags.DEFINE_bool("allow_unreadable", False, "Leave out pictures that cannot be used, instead of ending.")
    flags.DEFINE_integer("batch_size", None, "Pictures computed at once; chosen by the device if not given.", 1)
    flags.DEFINE_string("platform", "", "cpu, gpu or tpu; what JAX finds if not given.")
    cli.run(main)
