"""Resizes pictures for a network: bicubic with antialiasing, or bilinear without."""

import numpy as np
from PIL import Image


def bicubic(picture: np.ndarray, size: int) -> np.ndarray:
    """Resizes one picture to float32 [size, size, 3], with values in 0..255 that are not rounded.

    Applies Pillow's bicubic filter to each channel in float32 (mode F), antialiased when it shrinks, and clips to
    0..255, as clean-fid does (Parmar et al. 2022). A grey picture becomes three equal channels.

    Args:
      picture: uint8 [height, width, 3] or [height, width].
      size: height and width of the result.

    Raises:
      ValueError: `picture` is not such an array.
    """
    if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or picture.shape[2:] not in ((), (3,)):
        raise ValueError(f"a picture is uint8 [h, w] or [h, w, 3], not {picture.dtype} {list(picture.shape)}")

    def channel(values: np.ndarray) -> np.ndarray:
        plane = Image.fromarray(values.astype(np.float32))
        return np.asarray(plane.resize((size, size), Image.Resampling.BICUBIC)).clip(0.0, 255.0)

    planes = [channel(picture)] * 3 if picture.ndim == 2 else [channel(picture[..., c]) for c in range(3)]
    return np.stack(planes, axis=-1)


def bilinear(
    values: np.ndarray, size: int, *, height_axis: int = 0, divisor: int = 1, half_pixels: bool = True
) -> np.ndarray:
    """Resizes two axes to `size` by linear interpolation between the two nearest pixels, without antialiasing.

    Args:
      values: uint8 [..., height, width, ...].
      size: of both axes in the result.
      height_axis: index of the height axis; the width axis follows it and is resized first.
      divisor: the values are divided by this first.
      half_pixels: whether pixel i is at i + 1/2, as in PyTorch's `interpolate(..., align_corners=False)`; otherwise it
        is at i, as in TensorFlow 1's `resize_bilinear`, which shifts pictures to the upper left.

    Returns:
      float32 [..., size, size, ...].
    """
    half = np.float32(0.5)

    def taken(places: np.ndarray, axis: int) -> np.ndarray:
        found = values.take(places, axis)
        return found if found.dtype == np.float32 else found.astype(np.float32) / np.float32(divisor)

    for axis in (height_axis + 1, height_axis):
        length = values.shape[axis]
        place, scale = np.arange(size, dtype=np.float32), np.float32(length / size)
        place = np.maximum((place + half) * scale - half, 0) if half_pixels else place * scale
        first = np.minimum(place.astype(np.int32), length - 1)
        share = np.expand_dims(place - first.astype(np.float32), tuple(range(1, values.ndim - axis)))
        low, high = taken(first, axis), taken(np.minimum(first + 1, length - 1), axis)
        values = low + (high - low) * share
    return values
