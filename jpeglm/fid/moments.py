"""Statistics files: the moments of a set of pictures, for later comparisons without the pictures.

The format is an npz with `mu` float64 [dim] and `sigma` float64 [dim, dim], as in pytorch-fid, clean-fid and
guided-diffusion (ADM). `mu_s` and `sigma_s` are the same for the spatial features of sFID. Our files also hold
`count`, the number of pictures, and `facts`, a JSON object that says how they were made, so that statistics of
different modes are not compared.
"""

import json
import os
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from absl import logging

from jpeglm.core.errors import InputError, printable, writing
from jpeglm.core.files import npz, write_whole
from jpeglm.data.sources.zips import check_zip_is_alone
from jpeglm.fid.frechet import Moments

_ROUNDING = 1e-5  # asymmetry that float32 sums can cause, relative to the largest entry
_MOST_BYTES = 1 << 30  # limit of one array, uncompressed; a covariance of 2,048 features takes 32 MiB
# What numpy, zipfile and zlib raise on damage; RuntimeError for encrypted members and unknown compression methods.
_DAMAGE = (
    OSError, EOFError, ValueError, KeyError, RuntimeError, OverflowError, MemoryError, struct.error, zlib.error,
    zipfile.BadZipFile,
)  # fmt: skip


def save_statistics(
    path: str | os.PathLike, moments: Moments, facts: Mapping[str, str], spatial: Moments | None = None
) -> None:
    """Writes a statistics file atomically.

    Args:
      path: of the npz.
      moments: of the features, with a known number of pictures.
      facts: how they were made: `metric`, `mode`, `weights_sha256`, `background`.
      spatial: moments of the spatial features of the same pictures.

    Raises:
      InputError: there are fewer than two pictures, or the file cannot be written.
      ValueError: the number of pictures is unknown, or `spatial` has another one.
    """
    if moments.count is None or (spatial and spatial.count != moments.count):
        raise ValueError("statistics are saved with their one number of pictures")
    arrays = {"mu": moments.mean, "sigma": moments.covariance}
    if spatial:
        arrays |= {"mu_s": spatial.mean, "sigma_s": spatial.covariance}
    arrays |= {"count": np.array(moments.count, np.int64), "facts": np.array(json.dumps(dict(facts)))}
    with writing(path):
        write_whole(Path(path), npz(arrays))


def load_statistics(path: str | os.PathLike, spatial: bool = False) -> tuple[Moments, dict[str, str]]:
    """Reads our own, pytorch-fid's, clean-fid's and guided-diffusion's statistics files.

    Args:
      path: of the npz. Pictures in it (`arr_0`) are not read.
      spatial: whether to read the statistics of the spatial features (`mu_s`, `sigma_s`) instead.

    Returns:
      the moments, and the facts from `save_statistics`; files of other programs have no facts and no number of
      pictures.

    Raises:
      InputError: the file is missing, damaged, or holds no such statistics.
    """
    mu, sigma = ("mu_s", "sigma_s") if spatial else ("mu", "sigma")
    name = printable(path)
    arrays, facts = _read_arrays(path, (mu, sigma))

    def check(holds: bool, what: str) -> None:
        if not holds:
            raise InputError(f"{name}: {what}")

    mean, covariance = arrays[mu], arrays[sigma]
    for key, array, ndim in ((mu, mean, 1), (sigma, covariance, 2)):
        check(array.dtype in (np.float64, np.float32), f"{key} is {array.dtype}, not float64 or float32")
        check(array.ndim == ndim and array.size > 0, f"{key} has the shape {array.shape}")
    check(
        covariance.shape == (len(mean), len(mean)),
        f"{sigma} has the shape {covariance.shape}, which does not fit {mu} with {len(mean)} features",
    )
    for key, array in ((mu, mean), (sigma, covariance)):
        check(bool(np.isfinite(array).all()), f"{key} holds NaN or infinity")
    covariance = covariance.astype(np.float64)
    slack = _ROUNDING * np.abs(covariance).max()
    check(np.abs(covariance - covariance.T).max() <= slack, f"{sigma} is not symmetric")
    check(covariance.diagonal().min() >= -slack, f"{sigma} holds a negative variance")
    count = None
    if (told := arrays.get("count")) is not None:
        check(told.dtype == np.int64 and told.ndim == 0 and int(told) >= 2, "count is no number of pictures")
        count = int(told)
    right = isinstance(facts, dict) and all(isinstance(value, str) for value in facts.values())
    check(right, "facts are not names with strings")
    return Moments.from_statistics(mean, (covariance + covariance.T) / 2, count), facts


def _read_arrays(path: str | os.PathLike, keys: tuple[str, str]) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Reads the arrays of these keys, `count` if it is there, and the facts. Raises InputError if it cannot."""
    name = printable(path)
    try:
        file = np.load(path, allow_pickle=False)
        if not isinstance(file, np.lib.npyio.NpzFile):
            raise ValueError("one array, and no npz")
        with file:
            archive = file.zip
            assert archive is not None  # it is open
            check_zip_is_alone(archive)
            absent = [key for key in keys if key not in file]
            if absent:
                held = ", ".join(printable(key) for key in file.files)
                raise InputError(f"{name}: lacks {' and '.join(absent)}; it holds {held or 'nothing'}")
            wanted = [key for key in (*keys, "count", "facts") if key in file]
            if any(archive.getinfo(f"{key}.npy").file_size > _MOST_BYTES for key in wanted):
                raise ValueError(f"an array of more than {_MOST_BYTES >> 30} GiB")
            arrays = {key: file[key] for key in wanted}
        strange = [key for key, array in arrays.items() if not isinstance(array, np.ndarray)]
        if strange:  # NumPy returns the raw bytes of an entry that is not in npy format
            raise ValueError(f"{strange[0]} is no array")
        return arrays, json.loads(str(arrays["facts"])) if "facts" in arrays else {}
    except InputError:
        raise
    except FileNotFoundError as error:
        raise InputError(f"{name}: no such file") from error
    except _DAMAGE as error:
        why = printable(str(error) or type(error).__name__)
        raise InputError(f"{name}: cannot be read as a statistics file: {why}") from error


def holds_statistics(path: str | os.PathLike) -> bool:
    """Whether `path` is an npz file with statistics, not one with pictures, another file or a folder."""
    try:
        if Path(path).suffix.lower() != ".npz" or not Path(path).is_file():
            return False
        with zipfile.ZipFile(path) as file:
            return "mu.npy" in file.namelist()
    except _DAMAGE:
        return False


def check_comparable(facts_a: Mapping[str, str], facts_b: Mapping[str, str], names: tuple[str, str]) -> None:
    """Refuses to compare sides that were made differently, and warns if a side does not say how it was made.

    Args:
      facts_a: how the first side was made, from `load_statistics`; empty for another program's file.
      facts_b: how the second side was made.
      names: files or folders of the two sides, for messages.

    Raises:
      InputError: the sides were made differently; the message names both sides, what differs, and the two values.
    """
    name_a, name_b = (printable(name) for name in names)
    for facts, name in ((facts_a, name_a), (facts_b, name_b)):
        if not facts:
            logging.warning("%s does not tell what it was made with: taken as made in the same mode.", name)
    if not (facts_a and facts_b):
        return
    differing = [fact for fact in {**facts_a, **facts_b} if facts_a.get(fact) != facts_b.get(fact)]
    # A side that refused transparent pictures used no background. Older files do not record it.
    if "refuse" in (facts_a.get("background", "refuse"), facts_b.get("background", "refuse")):
        differing = [fact for fact in differing if fact != "background"]
    if differing:
        values = "; ".join(
            f"{printable(fact)}: {printable(facts_a.get(fact, 'none'))} against {printable(facts_b.get(fact, 'none'))}"
            for fact in differing
        )
        raise InputError(f"{name_a} and {name_b} cannot be compared, they were made in two ways: {values}")
