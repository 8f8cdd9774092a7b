"""What a feature extractor is, and what all of them share: a network on all devices of the process, a progress bar.

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
    """Turns pictures, or clips, into feature vectors, a batch spread over the devices of this process at a time.

    A class of extractors declares the class attributes below. Its constructor takes these arguments by name:
    `weights` if it `wants_weights`; `mode` if it has `modes`; `spatial` if it `has_spatial`; and `batch_size` in any
    case, which has a default. It calls this class's constructor with what it is and what it computes. It raises
    InputError for weights or a mode that are not its own. Where pictures are not to be resized by `resize.bicubic`,
    the class also has its own `prepare`.

    Class attributes:
      wants_weights: whether its weights come from a file that the user names.
      modes: names of the ways to resize and normalise, of which the user chooses one; () where there is one way only.
      has_spatial: whether it can also give features that stand for places in the picture, for sFID.
      min_frames: the fewest frames that a clip needs; of no meaning for extractors of pictures.

    Attributes:
      name: of the network.
      metric: what a Fréchet distance of its features is called.
      caveat: a sentence for readers of a table: what this distance may be compared with.
      mode: one of `modes`; "" where there are none.
      dim: features a picture or clip.
      spatial_dim: number of the spatial features, which come after the others; 0 unless they were asked for.
      size: pixels a side that pictures are resized to.
      weights_sha256: of the file that the weights come from. Results are kept under it.
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
        """See the attributes of the class; and

        Args:
          params: a pytree of arrays, the weights.
          apply: the network, traced by JAX: `apply(params, batch)` of a batch of what `prepare` gives, float32
            [batch, size, size, 3] of pictures or [batch, frames, size, size, 3] of clips, is float32
            [batch, dim + spatial_dim]. Extractors whose `apply` is the same function share one compiled program.
          batch_size: made a multiple of the devices; None: on a CPU few pictures, whose widest activations stay in
            its cache, on accelerators many.
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
        """One picture, uint8 [h, w, 3] or [h, w], as the network takes it: float32 [size, size, 3], here 0..255.

        Of clips: one clip, uint8 [frames, h, w, 3], as float32 [frames, size, size, 3]. Called by several threads.
        """
        return resize.bicubic(picture, self.size)

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
