"""Pictures and clips that the goldens are made of: strokes and moving discs, the same on every machine.

They are drawn in whole numbers and stored without loss, so they do not depend on versions of numpy or Pillow.
"""

import random
from pathlib import Path

import numpy as np
from PIL import Image

SIZE = 32  # pixels, height and width
FRAMES = 8  # of a clip
MILLISECONDS = 100  # that a frame of a GIF is shown


def write_pictures(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` greyscale PNG files, each with three thick strokes; returns `folder`."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        picture = np.zeros((SIZE, SIZE), np.int64)
        corners = [(_below(chance, SIZE), _below(chance, SIZE)) for _ in range(4)]
        for (top, left), (bottom, right) in zip(corners, corners[1:], strict=False):
            for step in range(SIZE):
                centre = top + (bottom - top) * step // SIZE, left + (right - left) * step // SIZE
                picture = np.maximum(picture, _disc(*centre, radius=2, value=255))
        Image.fromarray(picture.astype(np.uint8)).save(folder / f"{number:03}.png")
    return folder


def write_clips(folder: Path, count: int, seed: int = 0) -> Path:
    """Writes `count` clips of a moving disc, in turn as a GIF and as a folder of PNG files; returns `folder`."""
    chance = random.Random(seed)
    folder.mkdir(parents=True)
    for number in range(count):
        top, left, down, across = (_below(chance, SIZE) for _ in range(4))
        radius, value = 4 + _below(chance, 6), 100 + _below(chance, 156)
        frames = []
        for time in range(FRAMES):
            centre = top + (down - top) * time // FRAMES, left + (across - left) * time // FRAMES
            frames.append(Image.fromarray(_disc(*centre, radius, value).astype(np.uint8)))
        if number % 2:
            (folder / f"{number:03}").mkdir()
            for time, frame in enumerate(frames):
                frame.save(folder / f"{number:03}" / f"{time:03}.png")
        else:
            path = folder / f"{number:03}.gif"
            frames[0].save(path, save_all=True, append_images=frames[1:], duration=MILLISECONDS, loop=0)
    return folder


def _below(chance: random.Random, limit: int) -> int:
    # Python promises the same `random()` in all its versions, and of no other method.
    return int(chance.random() * limit)


def _disc(top: int, left: int, radius: int, value: int) -> np.ndarray:
    """int64 [SIZE, SIZE]: `value` within `radius` of a pixel, 0 elsewhere."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.where((rows - top) ** 2 + (columns - left) ** 2 <= radius**2, value, 0)
