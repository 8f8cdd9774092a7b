"""The digits that are part of this package."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver, Rule


class EmbeddedMnist(Source):
    """10,000 MNIST digits with 2 black pixels around each: 32x32 greyscale (see MNIST_LICENSE.txt)."""

    def __init__(self, path: str):
        super().__init__(path)
        with np.load(Path(__file__).parent / "mnist10k.npz") as file:
            self._images = np.pad(file["images"], ((0, 0), (2, 2), (2, 2)))  # uint8 [10000, 32, 32]
            self._labels = file["labels"]  # uint8 [10000]

    @classmethod
    def takes(cls, path: str) -> bool:
        return path == "embedded:mnist"

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        return (f"{index:05d}-digit{label}" for index, label in enumerate(self._labels))

    def load(self, name: str) -> Image.Image:
        return Image.fromarray(self._images[int(name[:5])])
