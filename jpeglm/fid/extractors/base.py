"""What every feature extractor shares: a network on all devices of the process, the resize rule, the progress bar."""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from PIL import Image
from tqdm import tqdm


class Extractor:
    """Turns pictures into feature vectors, a batch spread over the devices of this process at a time.

    Attributes:
      name: of the network.
      metric: what a Fréchet distance of its features is called.
      mode: of resizing and normalising; "" where there is only one.
      dim: features a picture.
      spatial_dim: further features after them, which stand for places in the picture; mostly 0.
      size: pixels a side that pictures are resized to.
      weights_sha256: of the file that the weights come from.
      batch_size: pictures computed at once.
    """

    def __init__(
        self,
        *,
        name: str,
        metric: str,
        mode: str,
        dim: int,
        spatial_dim: int = 0,
        size: int,
        weights_sha256: str,
        params: Any,
        apply: Callable[[Any, jax.Array], jax.Array],
        batch_size: int | None,
        compiler_options: dict[str, str] | None = None,
    ):
        """`apply(params, float32 [batch, size, size, 3])` gives float32 [batch, dim + spatial_dim].

        `batch_size`: made a multiple of the devices; None: on a CPU few pictures, whose widest activations stay in
        its cache, on accelerators many.
        """
        self.name, self.metric, self.mode, self.size = name, metric, mode, size
        self.dim, self.spatial_dim = dim, spatial_dim
        self.weights_sha256 = weights_sha256
        devices = jax.local_devices()
        batch_size = batch_size or len(devices) * (4 if jax.default_backend() == "cpu" else 64)
        self.batch_size = -(-batch_size // len(devices)) * len(devices)
        mesh = Mesh(devices, "batch")
        self._rows = NamedSharding(mesh, PartitionSpec("batch"))
        everywhere = NamedSharding(mesh, PartitionSpec())
        self._params = jax.device_put(params, everywhere)
        self._run = _compiled(apply, everywhere, self._rows, tuple((compiler_options or {}).items()))

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        """One picture, uint8 [h, w, 3] or [h, w], as the network takes it: float32 [size, size, 3]."""
        return resize(picture, self.size)

    def compute(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Features float32 [n, dim + spatial_dim] of prepared pictures or clips, in order, a batch at a time."""
        under_way: tuple[jax.Array, int] | None = None  # computed while the next batch is gathered
        for batch in _batches(images, self.batch_size):
            # One shape, one compilation; the rows of the padding are cut off again below.
            padding = [(0, self.batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
            result = self._run(self._params, jax.device_put(np.pad(batch, padding), self._rows))
            if under_way:
                yield np.asarray(under_way[0])[: under_way[1]]
            under_way = result, len(batch)
        if under_way:
            yield np.asarray(under_way[0])[: under_way[1]]

    def __call__(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Features float32 [n, dim + spatial_dim] of uint8 pictures [h, w, 3] or [h, w]: an array, or any sizes."""
        empty = np.zeros((0, self.dim + self.spatial_dim), np.float32)
        return np.concatenate([empty, *self.compute(self.prepare(picture) for picture in pictures)])


@functools.cache
def _compiled(
    apply: Callable[[Any, jax.Array], jax.Array],
    everywhere: NamedSharding,
    rows: NamedSharding,
    compiler_options: tuple[tuple[str, str], ...],
) -> Callable[[Any, jax.Array], jax.Array]:
    """The program, one for all extractors of a kind."""

    def run(params: Any, images: jax.Array) -> jax.Array:
        with jax.default_matmul_precision("highest"):  # TensorFloat-32 would break the fourth digit of a distance
            return apply(params, images)

    return jax.jit(
        run, in_shardings=(everywhere, rows), out_shardings=rows, compiler_options=dict(compiler_options) or None
    )


def _batches(images: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    images = iter(images)
    while batch := list(itertools.islice(images, size)):
        yield np.stack(batch)


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
    extractor: Extractor, images: Iterable[np.ndarray], total: int, description: str = ""
) -> Iterator[np.ndarray]:
    """Yields features float32 [n, dim + spatial_dim] of prepared pictures, by batches in order, with a progress bar.

    Args:
        extractor: the network.
        images: what its `prepare` made of pictures.
        total: the number of pictures, for the bar.
        description: what the bar is called.
    """
    quiet = jax.process_index() > 0
    with tqdm(total=total, desc=description, unit=" pictures", dynamic_ncols=True, disable=quiet) as bar:
        for block in extractor.compute(images):
            yield block
            bar.update(len(block))
