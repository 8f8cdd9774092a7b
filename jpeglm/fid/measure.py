"""Features and moments of many pictures, computed by all processes of a job."""

import dataclasses
import hashlib
import io
import json
from collections.abc import Iterable, Sequence

import jax
import numpy as np

from jpeglm.core import distributed
from jpeglm.core.errors import InputError
from jpeglm.core.files import npz
from jpeglm.fid import images
from jpeglm.fid.extractors.base import Extractor, extract
from jpeglm.fid.frechet import Moments

LONGEST = 30 * 24 * 3600  # seconds that one process waits for another's share


@dataclasses.dataclass
class Measured:
    """The measurements of a set of pictures.

    Attributes:
      moments: of the network's main features.
      spatial: moments of the features of sFID, if the extractor has them.
      features: float32 [n, dim] in the order of the pictures, without those of sFID; [0, 0] if not asked for.
      refused: names and reasons of pictures that could not be used.
    """

    moments: Moments
    spatial: Moments | None = None
    features: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros((0, 0), np.float32))
    refused: list[tuple[str, str]] = dataclasses.field(default_factory=list)


def measure(
    pictures: images.Pictures,
    extractor: Extractor,
    description: str,
    *,
    keep_features: bool = False,
    allow_unreadable: bool = False,
) -> Measured:
    """Measures the pictures. Each process of the job reads a part of them, and all get the whole result.

    Args:
      pictures: the same in every process.
      extractor: with the same weights in every process.
      description: label of the progress bar.
      keep_features: whether to also return the features, which take 8 KB per picture for 2,048 of them.
      allow_unreadable: whether pictures that cannot be used are left out.

    Raises:
      InputError: pictures cannot be used and `allow_unreadable` is False, a feature is not a finite number, or the
        processes have not found the same pictures.
    """
    if jax.process_count() > 1:
        _check_same(pictures)
    bounds = np.linspace(0, len(pictures), jax.process_count() + 1).astype(int)
    mine = range(bounds[jax.process_index()], bounds[jax.process_index() + 1])
    reader = images.Reader(pictures, extractor.prepare, mine, allow_unreadable=allow_unreadable)
    whole, kept = _nothing(extractor), []
    for features in extract(extractor, reader, len(mine), description):
        whole.moments.update(features[:, : extractor.dim])
        if whole.spatial:
            whole.spatial.update(features[:, extractor.dim :])
        if keep_features:
            kept.append(features[:, : extractor.dim])
    whole.refused = reader.refused
    if jax.process_count() > 1:
        # A process with an unusable picture, or with small ones, arrives here long before the others.
        distributed.wait_for_all(f"features of {description}", LONGEST)
        whole, kept = _merged(distributed.from_each(_packed(whole, kept)), _nothing(extractor))
    if whole.refused and not allow_unreadable:
        raise images.unreadable(pictures.path, whole.refused, len(pictures))
    if keep_features:
        whole.features = np.concatenate([np.zeros((0, extractor.dim), np.float32), *kept])
    return whole


def _check_same(pictures: images.Pictures) -> None:
    """Raises InputError in every process if one of them has listed other pictures."""
    distributed.wait_for_all(f"names of {pictures.path}", LONGEST)
    names = json.dumps(list(pictures.names)).encode()
    if len(set(distributed.from_each(hashlib.sha256(names).digest()))) > 1:
        raise InputError(f"{pictures.path}: the processes of this job do not see the same pictures there")


def _nothing(extractor: Extractor) -> Measured:
    return Measured(Moments(), Moments() if extractor.spatial_dim else None)


def _merged(parts: Iterable[bytes], whole: Measured) -> tuple[Measured, list[np.ndarray]]:
    """Adds the moments of all processes, in order, to `whole`; also collects their features."""
    kept = []
    for content in parts:
        part, features = _unpacked(content)
        whole.moments.merge(part.moments)
        if whole.spatial:
            assert part.spatial  # all processes have the same extractor
            whole.spatial.merge(part.spatial)
        whole.refused += part.refused
        if len(features):
            kept.append(features)
    return whole, kept


def _packed(part: Measured, features: Sequence[np.ndarray]) -> bytes:
    arrays = {"refused": np.array(json.dumps(part.refused))}
    if features:
        arrays["features"] = np.concatenate(features)
    arrays |= {f"moments.{key}": value for key, value in part.moments.to_arrays().items()}
    if part.spatial:
        arrays |= {f"spatial.{key}": value for key, value in part.spatial.to_arrays().items()}
    return npz(arrays)


def _unpacked(content: bytes) -> tuple[Measured, np.ndarray]:
    """One process's part, and its features float32 [n, dim], [0, 0] if it has none."""
    with np.load(io.BytesIO(content)) as arrays:

        def moments_of(name: str) -> Moments:
            own = [key for key in arrays if key.startswith(f"{name}.")]
            return Moments.from_arrays({key.removeprefix(f"{name}."): arrays[key] for key in own})

        spatial = moments_of("spatial") if "spatial.folded" in arrays else None
        refused = [tuple(entry) for entry in json.loads(str(arrays["refused"]))]
        features = arrays["features"] if "features" in arrays else np.zeros((0, 0), np.float32)
        return Measured(moments_of("moments"), spatial, refused=refused), features
