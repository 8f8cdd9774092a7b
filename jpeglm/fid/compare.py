"""Implements `python -m jpeglm.fid`: opens, measures and compares two sets of pictures."""

import dataclasses
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
from absl import logging

from jpeglm.core import distributed
from jpeglm.core.errors import InputError, writing
from jpeglm.core.files import check_outside, write_whole
from jpeglm.data.sources.arrays import without_array
from jpeglm.fid import extractors, images
from jpeglm.fid.extractors.base import Extractor
from jpeglm.fid.frechet import bootstrap, frechet_distance
from jpeglm.fid.kid import kernel_distance
from jpeglm.fid.measure import LONGEST, Measured, measure
from jpeglm.fid.moments import check_comparable, holds_statistics, load_statistics, save_statistics


@dataclasses.dataclass(frozen=True)
class Options:
    """The values of the command's flags of the same names. None, "", 0 and False mean that a flag was not given."""

    real: str | None
    fake: str | None
    extractor: str | None
    mode: str | None
    weights: str | None
    save_stats: str | None
    json: str | None
    spatial: bool
    kid: bool
    bootstrap: int
    seed: int
    allow_unreadable: bool
    background: str
    batch_size: int | None


@dataclasses.dataclass
class Side:
    """One of the two sets: pictures to be measured, or statistics.

    Attributes:
      path: as given by the flag.
      held: the pictures or the statistics at the path.
      facts: how the features are made; empty for statistics of another program.
      dim: number of features per picture.
    """

    path: str
    held: images.Pictures | Measured
    facts: dict[str, str]
    dim: int


def check(options: Options) -> None:
    """Checks that the flags fit together. Opens files only to see what they are.

    Raises:
      InputError: a flag is missing, or two flags do not fit together.
    """
    if not options.real:
        raise InputError("--real=PATH is needed")
    if not (options.fake or options.save_stats):
        raise InputError("--fake=PATH is needed, or --save_stats=FILE")
    _check_extractor(options)
    if options.bootstrap == 1:
        raise InputError("--bootstrap=1: one resampling has no spread, 100 or more are usual")
    if options.save_stats and holds_statistics(options.real):
        raise InputError(f"--save_stats: {options.real} holds statistics already")
    if options.save_stats and not options.save_stats.lower().endswith(".npz"):
        raise InputError(f"--save_stats={options.save_stats}: its name must end in .npz")


def _check_extractor(options: Options) -> None:
    if not options.extractor and bool(options.mode) != bool(options.weights):
        raise InputError("--mode and --weights go together: they choose the 2015 Inception, whose distance is FID")
    kind = extractors.find(_name(options))
    for flag, is_wanted in (("weights", kind.wants_weights), ("mode", bool(kind.modes))):
        if bool(getattr(options, flag)) != is_wanted:
            raise InputError(f"--extractor={_name(options)} {'needs' if is_wanted else 'takes no'} --{flag}")


def _name(options: Options) -> str:
    """The extractor that the flags ask for."""
    return options.extractor or (extractors.FID if options.weights else extractors.DEFAULT)


def run(options: Options) -> dict[str, Any] | None:
    """Measures both sides and compares them. All processes of the job call this; process 0 writes the files.

    Returns:
      all numbers and how they were made, as --json writes them; None in processes other than 0, and without --fake.

    Raises:
      InputError: a path, a picture or a file of weights cannot be used, a side has fewer than two pictures, or the
        two sides were made differently.
    """
    is_first = jax.process_index() == 0  # only process 0 writes
    if is_first:
        _check_outputs(options)
    sides, extractor = _open(options)
    measured = {}
    for name, side in sides.items():
        measured[name] = found = _measured(name, side, extractor, options)
        count = found.moments.count
        if count in (0, 1):  # raised in all processes, before process 0 continues alone
            raise InputError(f"{side.path}: two pictures or more are needed, {count} can be used")
        if name == "real" and options.save_stats and is_first:
            save_statistics(options.save_stats, found.moments, side.facts, found.spatial)
            logging.info("%s: statistics of %d pictures", options.save_stats, count)
    result = _compare(options, sides, measured) if "fake" in sides and is_first else None
    if result and options.json:
        with writing(options.json):
            write_whole(Path(options.json), (json.dumps(result, indent=2) + "\n").encode())
    if jax.process_count() > 1:  # JAX would stop process 0 five minutes after the others have ended
        distributed.wait_for_all("comparison", LONGEST)
    return result


def _check_outputs(options: Options) -> None:
    for name in ("json", "save_stats"):
        if not getattr(options, name):
            continue
        path = Path(getattr(options, name))
        if not path.parent.is_dir() or path.is_dir():
            raise InputError(f"--{name}={path}: {'is a folder' if path.is_dir() else 'no such folder'}")
        check_outside(path, **{side: without_array(getattr(options, side)) for side in ("real", "fake")})
    if options.json and options.save_stats and Path(options.json).resolve() == Path(options.save_stats).resolve():
        raise InputError(f"--json and --save_stats name one file: {options.json}")


def _open(options: Options) -> tuple[dict[str, Side], Extractor | None]:
    """Opens both sides (or only --real), and makes the extractor if there are pictures to measure.

    All input is checked here, before anything is measured.
    """
    paths = {name: path for name in ("real", "fake") if (path := getattr(options, name))}
    sides = {name: _side(path, options) for name, path in paths.items()}
    pictures = [side.held for side in sides.values() if isinstance(side.held, images.Pictures)]
    extractor = None
    if pictures:
        extractor = _extractor(options)
        made_with = {"metric": extractor.metric, "mode": extractor.mode, "weights_sha256": extractor.weights_sha256}
        for side in sides.values():
            if isinstance(side.held, images.Pictures):
                side.facts, side.dim = made_with | {"background": options.background}, extractor.dim
    elif options.weights or options.extractor:
        raise InputError("--extractor, --mode and --weights are for pictures, and both sides are statistics")
    if len(sides) == 2:
        real, fake = sides.values()
        check_comparable(real.facts, fake.facts, (real.path, fake.path))
        if real.dim != fake.dim:
            raise InputError(f"{real.path} and {fake.path}: features of two networks, {real.dim:,} and {fake.dim:,}")
    for found in pictures:
        logging.info("%s: %d pictures%s", found.path, len(found), found.passed_over.after("; "))
    return sides, extractor


def _side(path: str, options: Options) -> Side:
    """Opens one side. For pictures, `facts` and `dim` stay empty until the extractor is made."""
    if not holds_statistics(path):
        return Side(path, images.open_pictures(path, options.background), {}, 0)
    if options.kid or options.bootstrap:
        raise InputError(f"{path}: --kid and --bootstrap need pictures, statistics are not enough")
    moments, facts = load_statistics(path)
    spatial = load_statistics(path, spatial=True)[0] if options.spatial else None
    return Side(path, Measured(moments, spatial), facts, moments.dim)


def _extractor(options: Options) -> Extractor:
    name = _name(options)
    if options.spatial and not extractors.find(name).has_spatial:
        raise InputError("--spatial is of the 2015 Inception: it needs --weights")
    return extractors.make(name, options.weights or "", options.mode or "", options.batch_size, options.spatial)


def _measured(name: str, side: Side, extractor: Extractor | None, options: Options) -> Measured:
    """Measures the pictures of a side, or returns its statistics. `extractor`: None if both sides are statistics."""
    if isinstance(side.held, Measured):
        return side.held
    assert extractor is not None  # `_open` makes one if a side has pictures
    return measure(
        side.held,
        extractor,
        name,
        keep_features=bool(options.kid or options.bootstrap),
        allow_unreadable=options.allow_unreadable,
    )


def _compare(options: Options, sides: dict[str, Side], measured: dict[str, Measured]) -> dict[str, Any]:
    """Computes all numbers that the options ask for, and records how they were made."""
    ours, theirs = measured["real"], measured["fake"]
    facts = sides["real"].facts or sides["fake"].facts or {"metric": "Fréchet distance of statistics"}
    value = frechet_distance(ours.moments, theirs.moments)
    result: dict[str, Any] = {**facts, "value": value}
    counts = [side.moments.count or "an unknown number of" for side in (ours, theirs)]
    logging.info("%s of %s and %s pictures: %.6f", facts["metric"], *counts, value)
    if options.spatial:
        assert ours.spatial and theirs.spatial  # every side has them with --spatial
        result["sfid"] = frechet_distance(ours.spatial, theirs.spatial)
        logging.info("sFID: %.6f", result["sfid"])
    if options.kid:
        kid = kernel_distance(ours.features, theirs.features, seed=options.seed)
        result["kid"] = dataclasses.asdict(kid) | {"seed": options.seed}
        logging.info("KID: %.7f (deviation of the subsets %.7f)", kid.mean, kid.deviation)
    if options.bootstrap:
        interval = bootstrap(ours.features, theirs.features, options.bootstrap, options.seed)
        drawn = {"replicates": options.bootstrap, "seed": options.seed}
        result["interval"] = drawn | dataclasses.asdict(interval)
        logging.info("95%% by resampling pictures: %.6f to %.6f", interval.low, interval.high)
    pictures = {name: side.held for name, side in sides.items() if isinstance(side.held, images.Pictures)}
    return result | {
        "paths": {name: side.path for name, side in sides.items()},
        "n": {name: found.moments.count for name, found in measured.items()},
        "refused": {name: found.refused for name, found in measured.items()},
        "passed_over": {name: found.passed_over.to_json() for name, found in pictures.items()},
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in ("jax", "jaxlib", "numpy", "scipy", "pillow")},
        "device": jax.devices()[0].device_kind,
    }
