"""What every feature extractor shares: its interface, the resize rule, batches with a progress bar."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

import numpy as np
from PIL import Image
from tqdm import tqdm

BLOCK = 64  # pictures between two steps of the progress bar


class Extractor(Protocol):
    """Turns pictures into feature vectors."""

    name: str  # of the network
    metric: str  # what a Fréchet distance of its features is called
    dim: int  # features a picture
    size: int  # pixels a side that pictures are resized to
    batch_size: int  # pictures computed at once
    weights_sha256: str

    def __call__(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Features float32 [n, dim] of n uint8 pictures [h, w, 3], or [h, w] for grey."""


def resize(picture: np.ndarray, size: int) -> np.ndarray:
    """Resizes one picture to float32 [size, size, 3], values 0..255 that are not rounded.

    Pillow's bicubic filter on each channel in float32 (mode F), antialiased where it shrinks, clipped to 0..255: the
    "clean" rule of Parmar et al. 2022. A grey picture becomes three equal channels.

    Args:
        picture: uint8 [height, width, 3] or [height, width].
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise ValueError(f"a picture is uint8 [h, w] or [h, w, 3], not {picture.dtype} {list(picture.shape)}")

    def channel(values: np.ndarray) -> np.ndarray:
        plane = Image.fromarray(values.astype(np.float32))
        return np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)).clip(0.0, 255.0)

    planes = [channel(picture)] * 3 if picture.ndim == 2 else [channel(picture[..., c]) for c in range(3)]
    return np.stack(planes, axis=-1)


def extract(
    extractor: Extractor, pictures: Iterable[np.ndarray], total: int, description: str = ""
) -> Iterator[np.ndarray]:
    """Yields features float32 [<= BLOCK, dim] of uint8 pictures [h, w] or [h, w, 3], in order, with a progress bar.

    Args:
        extractor: the network.
        pictures: an array [n, h, w], [n, h, w, 3], or anything that yields single pictures, of any sizes.
        total: the number of pictures, for the bar.
        description: what the bar is called.
    """
    with tqdm(total=total, desc=description, unit=" pictures", dynamic_ncols=True) as bar:
        block: list[np.ndarray] = []
        for picture in pictures:
            block.append(picture)
            if len(block) == BLOCK:
                yield extractor(block)
                bar.update(len(block))
                block = []
        if block:
            yield extractor(block)
            bar.update(len(block))
