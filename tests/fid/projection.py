"""A feature extractor that takes no time."""

import hashlib

import numpy as np

from jpeglm.fid.extractors.base import Extractor

SIZE, DIM = 16, 12


class Projection(Extractor):
    """Fixed random projections of the pixels: a real function of the pictures, and a fast one."""

    def __init__(self, seed: int = 0):
        matrix = np.random.default_rng(seed).normal(size=(SIZE * SIZE * 3, DIM)).astype(np.float32) / SIZE
        super().__init__(
            name="projection",
            metric="FD-projection",
            mode="",
            dim=DIM,
            size=SIZE,
            weights_sha256=hashlib.sha256(matrix.tobytes()).hexdigest(),
            params=matrix,
            apply=lambda matrix, images: images.reshape(len(images), -1) / 255 @ matrix,
            batch_size=4,
        )
        self.seen = 0

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        self.seen += 1
        return super().prepare(picture)
