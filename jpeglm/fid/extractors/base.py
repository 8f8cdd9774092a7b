"""The base class of feature extractors, which runs a network on all devices of the process.

To add one, write one file with a class that inherits from `Extractor`, and add one line to
`jpeglm.fid.extractors.PICTURES`, or to `CLIPS` there.
"""

import functools
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from tqdm import tqdm

from jpeglm.fid.extractors import resize

NO_FID = "It is not FID and is not to be set beside one."


class Extractor:
    """Turns pictures or clips into feature vectors. Each batch is sharded over the devices of this process.

    A subclass sets the class attributes below. Its constructor takes these arguments by name: `weights` if
    `wants_weights`; `mode` if it has `modes`; `spatial` if `has_spatial`; and always `batch_size`, with a default. It
    calls the constructor of this class, and raises InputError for weights or a mode that do not belong to it. If it
    does not resize pictures by `resize.bicubic`, it overrides `prepare`.

    Class attributes:
      wants_weights: whether its weights come from a file that the user names.
      modes: names of the ways to resize and normalise, of which the user chooses one; () if there is only one way.
      has_spatial: whether it can also compute spatial features, for sFID.
      min_frames: smallest number of frames of a clip; not used for pictures.

    Attributes:
      name: of the network.
      metric: name of the Fréchet distance between its features.
      caveat: a sentence for readers of a table: what this distance may be compared with.
      mode: one of `modes`; "" if there are none.
      dim: number of features per picture or clip, without spatial features.
      spatial_dim: number of spatial features, which come after the others; 0 unless they were asked for.
      size: height and width in pixels to which pictures are resized.
      weights_sha256: SHA-256 of the file that the weights come from; identifies cached results.
      batch_size: pictures or clips computed at once.
    """

    wants_weights: ClassVar[bool] = False
    modes: ClassVar[tuple[str, ...]] = ()
    has_spatial: ClassVar[bool] = False
    min_frames: ClassVar[int] = 1

    def __init__(
        self,
        *,
        name: str,
        metric: str,
        caveat: str = NO_FID,
        mode: str = "",
        dim: int,
        spatial_dim: int = 0,
        size: int,
        weights_sha256: str,
        params: Any,
        apply: Callable[[Any, jax.Array], jax.Array],
        batch_size: int | None = None,
        compiler_options: dict[str, str] | None = None,
    ):
        """Copies the weights to the devices. Arguments that are not listed here are attributes of the class.

        Args:
          params: a pytree of arrays, the weights.
          apply: the network as a function that JAX can trace. It takes `params` and a batch of results of `prepare`,
            float32 [batch, size, size, 3] for pictures or [batch, frames, size, size, 3] for clips. It returns float32
            [batch, dim + spatial_dim]. Extractors with the same function share one compiled program.
          batch_size: rounded up to a multiple of the number of devices. None: 64 per device, but 4 on a CPU, so that
            the largest activations stay in its cache.
          compiler_options: of XLA, for this network.
        """
        self.name, self.metric, self.caveat, self.mode = name, metric, caveat, mode
        self.dim, self.spatial_dim, self.size = dim, spatial_dim, size
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
        """Converts one picture, uint8 [h, w, 3] or [h, w], to float32 [size, size, 3], here with values in 0..255.

        An extractor of clips converts one clip, uint8 [frames, h, w, 3], to float32 [frames, size, size, 3]. Several
        threads call this at once.

        Raises:
          ValueError: this is not such an array.
        """
        return resize.bicubic(picture, self.size)

    def compute(self, images: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Yields features float32 [n, dim + spatial_dim] of prepared pictures or clips, in order, by batches."""
        under_way: tuple[jax.Array, int] | None = None  # computed while the next batch is gathered
        for batch in _batches(images, self.batch_size):
            # Padded to one shape, so that the program is compiled once. The padding is cut off below.
            padding = [(0, self.batch_size - len(batch))] + [(0, 0)] * (batch.ndim - 1)
            result = self._run(self._params, jax.device_put(np.pad(batch, padding), self._rows))
            if under_way:
                yield np.asarray(under_way[0])[: under_way[1]]
            under_way = result, len(batch)
        if under_way:
            yield np.asarray(under_way[0])[: under_way[1]]

    def __call__(self, pictures: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
        """Features float32 [n, dim + spatial_dim] of pictures or clips as `prepare` takes them, of any sizes."""
        empty = np.zeros((0, self.dim + self.spatial_dim), np.float32)
        return np.concatenate([empty, *self.compute(self.prepare(picture) for picture in pictures)])


@functools.cache
def _compiled(
    apply: Callable[[Any, jax.Array], jax.Array],
    everywhere: NamedSharding,
    rows: NamedSharding,
    compiler_options: tuple[tuple[str, str], ...],
) -> Callable[[Any, jax.Array], jax.Array]:
    """The jitted network, shared by all extractors with the same `apply`."""

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


def extract(
    extractor: Extractor, images: Iterable[np.ndarray], total: int, description: str = ""
) -> Iterator[np.ndarray]:
    """Yields features float32 [n, dim + spatial_dim] of prepared pictures, by batches in order, with a progress bar.

    Args:
      extractor: the network.
      images: pictures or clips after `prepare`.
      total: number of pictures or clips, for the bar.
      description: label of the bar.
    """
    quiet = jax.process_index() > 0
    with tqdm(total=total, desc=description, unit=" pictures", dynamic_ncols=True, disable=quiet) as bar:
        for block in extractor.compute(images):
            yield block
            bar.update(len(block))
