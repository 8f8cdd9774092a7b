"""Folders of finished pictures, as the evaluator reads them."""

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from absl import logging
from PIL import ImageOps

from jpeglm.data import sources
from jpeglm.errors import InputError, printable

SUFFIXES = {".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"}
_MODES = {"1", "L", "P", "RGB", "CMYK", "YCbCr"}


def find(folder: str | Path) -> list[Path]:
    """All files below `folder` with a picture's suffix, sorted by relative name; links to folders are not followed.

    Raises:
      InputError: there is none, or a folder that cannot be listed.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")

    def refuse(error: OSError) -> None:
        raise InputError(f"cannot list {printable(error.filename)}: {error.strerror}") from error

    found = (Path(parent, name) for parent, _, names in os.walk(folder, onerror=refuse) for name in names)
    paths = [path for path in found if path.suffix.lower() in SUFFIXES]
    if not paths:
        raise InputError(f"{folder}: holds no pictures ({', '.join(sorted(SUFFIXES))})")
    return sorted(paths, key=lambda path: path.relative_to(folder).as_posix())


def read(path: str | Path) -> np.ndarray:
    """One picture as uint8 [h, w] (grey) or [h, w, 3], turned as its EXIF orientation says.

    Palette, CMYK and YCbCr are converted to RGB. Raises InputError for what `jpeglm.data.sources` refuses (no regular
    file, no picture, too large), a file that does not decode, several frames, more than 8 bits a channel, or
    transparency, for which there is no one right background.
    """
    try:
        with sources.limited(), sources.open_picture(sources.read_file(path)) as image:
            if getattr(image, "n_frames", 1) > 1:
                raise InputError("has several frames")
            if image.mode not in _MODES or "transparency" in image.info:
                raise InputError(f"mode {image.mode} (transparent, or not 8 bits a channel)")
            image = ImageOps.exif_transpose(image)
            return np.asarray(image.convert("L" if image.mode in ("1", "L") else "RGB"))
    except Exception as error:  # decoders raise nearly everything on a damaged file
        raise InputError(f"{printable(path)}: {printable(error)}") from error


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
        raise InputError(f"{len(broken)} of {len(paths)} pictures cannot be used, the first is {printable(broken[0])}")
