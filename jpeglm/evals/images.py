"""Folders of finished pictures, as the evaluator reads them."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from PIL import Image, ImageOps

from jpeglm.errors import InputError

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}


def find(folder: str | Path) -> list[Path]:
    """All pictures below `folder`, by their suffix, sorted by relative name; raises InputError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    paths = [path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()]
    if not paths:
        raise InputError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def read(path: str | Path) -> np.ndarray:
    """One picture as uint8 [h, w] (grey) or [h, w, 3], turned as its EXIF orientation says.

    Palette, CMYK and YCbCr are converted to RGB. Raises InputError for a file that does not decode, several frames,
    more than 8 bits a channel, or transparency, for which there is no one right background.
    """
    try:
        with Image.open(path) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise InputError(f"{path}: has several frames")
            if image.mode not in _MODES or "transparency" in image.info:
                raise InputError(f"{path}: mode {image.mode} (transparent, or not 8 bits a channel)")
            image = ImageOps.exif_transpose(image)
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: {error}") from error


def read_all(paths: list[Path]) -> Iterator[np.ndarray]:
    """Yields `read(path)` of each. After the first failure it only looks for further ones, names each, and raises."""
    broken = []
    for path in paths:
        try:
            picture = read(path)
        except InputError as error:
            logging.error("%s", error)
            broken.append(path)
        else:
            if not broken:
                yield picture
    if broken:
        raise InputError(f"{len(broken)} of {len(paths)} pictures cannot be used, the first is {broken[0]}")
