"""Variants of a training picture: a little turned, scaled, slanted, shifted and bent.

There is no mirroring, because a mirrored digit or word is a different one.
"""

import hashlib

import numpy as np
import scipy.ndimage
from PIL import Image

TURN = np.deg2rad(8)  # this and the next ones: the maximum of a uniform draw
LOG_SCALE = 0.08
SLANT = 0.12
SHIFT = 0.04  # of the longer side
BEND = 0.02  # of the longer side: standard deviation at each knot of the grid that is bent
KNOTS = 4


def variant(image: Image.Image, number: int) -> Image.Image:
    """Variant `number` of a picture of mode L or RGB; a function of these two alone.

    All changes are combined into one map from pixels to positions in the original, which is sampled there by cubic
    splines. Beyond the edges, the edge pixels are repeated.
    """
    pixels = np.asarray(image)
    height, width = pixels.shape[:2]
    rng = np.random.default_rng([number, int.from_bytes(hashlib.sha256(pixels.tobytes()).digest())])
    turn, scale = rng.uniform(-TURN, TURN), np.exp(rng.uniform(-LOG_SCALE, LOG_SCALE))
    slant = np.array([[1, 0], [rng.uniform(-SLANT, SLANT), 1]])
    matrix = scale * np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]]) @ slant
    side = max(height, width)
    bend = side * BEND * rng.standard_normal((2, KNOTS, KNOTS))
    knots = np.meshgrid(np.linspace(0, KNOTS - 1, height), np.linspace(0, KNOTS - 1, width), indexing="ij")
    smooth = np.stack([scipy.ndimage.map_coordinates(axis, knots, mode="nearest") for axis in bend])

    places = np.mgrid[:height, :width].astype(np.float64)  # (row, column) of each pixel, [2, h, w]
    middle = np.array([height - 1, width - 1])[:, None, None] / 2
    shift = rng.uniform(-SHIFT, SHIFT, (2, 1, 1)) * side
    places = np.einsum("ij,jhw->ihw", matrix, places - middle) + middle + shift + smooth

    channels = np.atleast_3d(pixels).astype(np.float64)
    moved = [scipy.ndimage.map_coordinates(channel, places, mode="nearest") for channel in np.moveaxis(channels, 2, 0)]
    moved = np.rint(np.clip(np.stack(moved, axis=2), 0, 255)).astype(np.uint8)
    return Image.fromarray(moved.reshape(pixels.shape), image.mode)
