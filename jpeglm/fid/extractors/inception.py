"""The Inception network of 2015, which defines FID, in Flax.

It is the Inception v3 of Szegedy et al. (2015) with the weights of TensorFlow's graph `inception-2015-12-05`. That
graph differs from torchvision's: average pools do not count their padding, the pool of the last block is a max pool,
the batch norms' epsilon is 1e-3, and there are 1,008 classes. The weights are a state dict with torchvision's names,
as pytorch-fid and torch-fidelity distribute them: https://github.com/mseitzer/pytorch-fid, release "fid_weights".
Inference only: batch norms are folded into the convolutions when the weights are read.

Blocks and branches have torchvision's names, so that a module's path is the prefix of its keys in the state dict.
"""

import functools
import hashlib
import operator
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import safetensors.numpy
from absl import logging
from flax import nnx

from jpeglm.core.errors import InputError
from jpeglm.core.files import write_whole
from jpeglm.core.weights.torch_file import check_state_dict, load_state_dict
from jpeglm.data.records import sha256_of
from jpeglm.fid.extractors import base, resize

SIZE = 299  # height and width of pictures in pixels
DIM = 2048  # features: the mean of the last block over its 8 x 8 positions, "pool3"
SPATIAL_CHANNELS = 7  # first channels of Mixed_6d at 17 x 17 positions: the features of sFID (Nash et al. 2021)
SPATIAL_DIM = 17 * 17 * SPATIAL_CHANNELS
OFFICIAL_NAME = "pt_inception-2015-12-05-6726825d.pth"
OFFICIAL_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
_CLASSIFIER = {"fc.weight": (1008, DIM), "fc.bias": (1008,)}  # in the file, not needed for features
_BATCH_NORM_EPSILON = 1e-3
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


############################ The network ############################


class Conv(nnx.Module):
    """Convolution, folded batch norm and ReLU on [batch, height, width, channels_in]; padded ("SAME") or not."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        kernel: int | tuple[int, int] = 1,
        stride: int = 1,
        padding: str = "SAME",
    ):
        # At stride 1 XLA is faster on CPUs with padding than without: a 3 x 3 kernel's border is cut off afterwards.
        self.cut = 1 if padding == "VALID" and stride == 1 else 0
        self.conv = nnx.Conv(
            channels_in,
            channels,
            (kernel, kernel) if isinstance(kernel, int) else kernel,
            stride,
            padding="SAME" if stride == 1 else padding,
            kernel_init=nnx.initializers.zeros,
            rngs=nnx.Rngs(0),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        y, cut = nnx.relu(self.conv(x)), self.cut
        return y[:, cut : y.shape[1] - cut, cut : y.shape[2] - cut]


def _window(x: jax.Array, combine: Callable, stride: int) -> jax.Array:
    """Combines the pixels of each 3 x 3 window, first those of a column. XLA's reduce_window is slow on CPUs."""
    for axis in (1, 2):
        count = (x.shape[axis] - 3) // stride + 1
        ends = [start + (count - 1) * stride + 1 for start in range(3)]
        x = functools.reduce(combine, (jax.lax.slice_in_dim(x, end - ends[0], end, stride, axis) for end in ends))
    return x


def _padded(x: jax.Array, value: float) -> jax.Array:
    return jnp.pad(x, [(0, 0), (1, 1), (1, 1), (0, 0)], constant_values=value)


def _max_pool(x: jax.Array) -> jax.Array:
    """3 x 3, stride 2, no padding."""
    return _window(x, jnp.maximum, 2)


def _same_max_pool(x: jax.Array) -> jax.Array:
    return _window(_padded(x, -jnp.inf), jnp.maximum, 1)


def _same_average_pool(x: jax.Array) -> jax.Array:
    """3 x 3, stride 1: the mean of the pixels inside the picture."""
    pixels = _window(_padded(jnp.ones_like(x[:1, :, :, :1]), 0.0), operator.add, 1)
    return _window(_padded(x, 0.0), operator.add, 1) / pixels


def _joined(*branches: jax.Array) -> jax.Array:
    return jnp.concatenate(branches, axis=-1)


class InceptionA(nnx.Module):
    """Maps [batch, 35, 35, channels_in] to [batch, 35, 35, 224 + pooled]."""

    def __init__(self, channels_in: int, pooled: int):
        self.branch1x1 = Conv(channels_in, 64)
        self.branch5x5_1 = Conv(channels_in, 48)
        self.branch5x5_2 = Conv(48, 64, 5)
        self.branch3x3dbl_1 = Conv(channels_in, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3)
        self.branch_pool = Conv(channels_in, pooled)

    def __call__(self, x: jax.Array) -> jax.Array:
        return _joined(
            self.branch1x1(x),
            self.branch5x5_2(self.branch5x5_1(x)),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            self.branch_pool(_same_average_pool(x)),
        )


class InceptionB(nnx.Module):
    """Maps [batch, 35, 35, channels_in] to [batch, 17, 17, 480 + channels_in]."""

    def __init__(self, channels_in: int):
        self.branch3x3 = Conv(channels_in, 384, 3, 2, "VALID")
        self.branch3x3dbl_1 = Conv(channels_in, 64)
        self.branch3x3dbl_2 = Conv(64, 96, 3)
        self.branch3x3dbl_3 = Conv(96, 96, 3, 2, "VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        return _joined(
            self.branch3x3(x),
            self.branch3x3dbl_3(self.branch3x3dbl_2(self.branch3x3dbl_1(x))),
            _max_pool(x),
        )


class InceptionC(nnx.Module):
    """Maps [batch, 17, 17, 768] to [batch, 17, 17, 768]."""

    def __init__(self, narrow: int):
        self.branch1x1 = Conv(768, 192)
        self.branch7x7_1 = Conv(768, narrow)
        self.branch7x7_2 = Conv(narrow, narrow, (1, 7))
        self.branch7x7_3 = Conv(narrow, 192, (7, 1))
        self.branch7x7dbl_1 = Conv(768, narrow)
        self.branch7x7dbl_2 = Conv(narrow, narrow, (7, 1))
        self.branch7x7dbl_3 = Conv(narrow, narrow, (1, 7))
        self.branch7x7dbl_4 = Conv(narrow, narrow, (7, 1))
        self.branch7x7dbl_5 = Conv(narrow, 192, (1, 7))
        self.branch_pool = Conv(768, 192)

    def __call__(self, x: jax.Array) -> jax.Array:
        double = self.branch7x7dbl_3(self.branch7x7dbl_2(self.branch7x7dbl_1(x)))
        return _joined(
            self.branch1x1(x),
            self.branch7x7_3(self.branch7x7_2(self.branch7x7_1(x))),
            self.branch7x7dbl_5(self.branch7x7dbl_4(double)),
            self.branch_pool(_same_average_pool(x)),
        )


class InceptionD(nnx.Module):
    """Maps [batch, 17, 17, 768] to [batch, 8, 8, 1280]."""

    def __init__(self) -> None:
        self.branch3x3_1 = Conv(768, 192)
        self.branch3x3_2 = Conv(192, 320, 3, 2, "VALID")
        self.branch7x7x3_1 = Conv(768, 192)
        self.branch7x7x3_2 = Conv(192, 192, (1, 7))
        self.branch7x7x3_3 = Conv(192, 192, (7, 1))
        self.branch7x7x3_4 = Conv(192, 192, 3, 2, "VALID")

    def __call__(self, x: jax.Array) -> jax.Array:
        seven = self.branch7x7x3_3(self.branch7x7x3_2(self.branch7x7x3_1(x)))
        return _joined(self.branch3x3_2(self.branch3x3_1(x)), self.branch7x7x3_4(seven), _max_pool(x))


class InceptionE(nnx.Module):
    """Maps [batch, 8, 8, channels_in] to [batch, 8, 8, 2048]."""

    def __init__(self, channels_in: int, pool: Callable[[jax.Array], jax.Array]):
        self.pool = pool
        self.branch1x1 = Conv(channels_in, 320)
        self.branch3x3_1 = Conv(channels_in, 384)
        self.branch3x3_2a = Conv(384, 384, (1, 3))
        self.branch3x3_2b = Conv(384, 384, (3, 1))
        self.branch3x3dbl_1 = Conv(channels_in, 448)
        self.branch3x3dbl_2 = Conv(448, 384, 3)
        self.branch3x3dbl_3a = Conv(384, 384, (1, 3))
        self.branch3x3dbl_3b = Conv(384, 384, (3, 1))
        self.branch_pool = Conv(channels_in, 192)

    def __call__(self, x: jax.Array) -> jax.Array:
        single = self.branch3x3_1(x)
        double = self.branch3x3dbl_2(self.branch3x3dbl_1(x))
        return _joined(
            self.branch1x1(x),
            self.branch3x3_2a(single),
            self.branch3x3_2b(single),
            self.branch3x3dbl_3a(double),
            self.branch3x3dbl_3b(double),
            self.branch_pool(self.pool(x)),
        )


class Network(nnx.Module):
    """Maps float32 [batch, 299, 299, 3] in -1..1 to features [batch, 2048] and those of Mixed_6d [batch, 2023]."""

    def __init__(self) -> None:
        self.Conv2d_1a_3x3 = Conv(3, 32, 3, 2, "VALID")
        self.Conv2d_2a_3x3 = Conv(32, 32, 3, 1, "VALID")
        self.Conv2d_2b_3x3 = Conv(32, 64, 3)
        self.Conv2d_3b_1x1 = Conv(64, 80)
        self.Conv2d_4a_3x3 = Conv(80, 192, 3, 1, "VALID")
        self.Mixed_5b = InceptionA(192, pooled=32)
        self.Mixed_5c = InceptionA(256, pooled=64)
        self.Mixed_5d = InceptionA(288, pooled=64)
        self.Mixed_6a = InceptionB(288)
        self.Mixed_6b = InceptionC(128)
        self.Mixed_6c = InceptionC(160)
        self.Mixed_6d = InceptionC(160)
        self.Mixed_6e = InceptionC(192)
        self.Mixed_7a = InceptionD()
        self.Mixed_7b = InceptionE(1280, _same_average_pool)
        self.Mixed_7c = InceptionE(2048, _same_max_pool)

    def __call__(self, x: jax.Array) -> tuple[jax.Array, jax.Array]:
        x = self.Conv2d_2b_3x3(self.Conv2d_2a_3x3(self.Conv2d_1a_3x3(x)))  # [batch, 147, 147, 64]
        x = self.Conv2d_4a_3x3(self.Conv2d_3b_1x1(_max_pool(x)))  # [batch, 71, 71, 192]
        x = self.Mixed_5d(self.Mixed_5c(self.Mixed_5b(_max_pool(x))))  # [batch, 35, 35, 288]
        x = self.Mixed_6d(self.Mixed_6c(self.Mixed_6b(self.Mixed_6a(x))))  # [batch, 17, 17, 768]
        spatial = x[..., :SPATIAL_CHANNELS].reshape(len(x), SPATIAL_DIM)
        x = self.Mixed_7c(self.Mixed_7b(self.Mixed_7a(self.Mixed_6e(x))))  # [batch, 8, 8, 2048]
        return x.mean(axis=(1, 2)), spatial


############################ Weights ############################


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], str]:
    """Reads the state dict of the 2015 Inception and checks each key; also returns the SHA-256 of torch's file.

    Args:
      path: what `torch.save` wrote, in either of its formats, or what `write_safetensors` made of that.

    Raises:
      InputError: the file is unreadable, or a key, a shape or a dtype is not the network's.
    """
    path = Path(path)
    try:
        if path.suffix == ".safetensors":
            tensors, sha256 = _read_safetensors(path)
        else:
            tensors, sha256 = load_state_dict(path), sha256_of(path)
    except InputError as error:
        raise InputError(f"{error}; FID wants the state dict {OFFICIAL_NAME}") from error
    # torch adds these counters to batch norms; the published file has none.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".bn.num_batches_tracked")}
    check_state_dict(path, tensors, expected_shapes(), "the 2015 Inception")
    return tensors, sha256


def write_safetensors(tensors: dict[str, np.ndarray], sha256: str, path: Path) -> None:
    """Writes the result of `read_weights` as a safetensors file, which `read_weights` can read.

    The file records `sha256`, the hash of torch's file, and the hash of the tensors. Reading it detects damage, but
    cannot check that the tensors come from the file with that hash.
    """
    metadata = {"source_sha256": sha256, "tensors_sha256": _sha256_of_tensors(tensors)}
    content = safetensors.numpy.save({name: np.ascontiguousarray(x) for name, x in tensors.items()}, metadata)
    write_whole(path, content)


def _read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], str]:
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            if "source_sha256" not in metadata:
                raise InputError(f"{path}: not made by `python -m jpeglm.convert inception`")
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (OSError, safetensors.SafetensorError, AttributeError, TypeError) as error:  # the last two for odd dtypes
        raise InputError(f"{path}: {error}") from error
    if any(tensor.dtype != np.float32 for tensor in tensors.values()):
        raise InputError(f"{path}: holds other numbers than float32")
    if metadata.get("tensors_sha256") != _sha256_of_tensors(tensors):
        raise InputError(f"{path}: damaged: its tensors are not those that were written")
    return tensors, metadata["source_sha256"]


def _sha256_of_tensors(tensors: dict[str, np.ndarray]) -> str:
    digest = hashlib.sha256()
    for name in sorted(tensors):
        digest.update(f"{name} {tensors[name].shape} ".encode())
        digest.update(np.ascontiguousarray(tensors[name]).data)
    return digest.hexdigest()


@functools.cache
def _blank() -> Network:
    """The network with shapes in place of weights."""
    return nnx.eval_shape(Network)


def _convolutions(network: Network) -> Iterator[tuple[str, nnx.Conv]]:
    """Yields each convolution with the prefix of its keys in the state dict."""
    for path, module in nnx.iter_modules(network):
        if isinstance(module, Conv):
            yield ".".join(map(str, path)), module.conv


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of the state dict, by key."""
    shapes = dict(_CLASSIFIER)
    for name, convolution in _convolutions(_blank()):
        height, width, channels_in, channels = convolution.kernel.shape
        shapes[f"{name}.conv.weight"] = (channels, channels_in, height, width)
        shapes |= {f"{name}.bn.{key}": (channels,) for key in _BATCH_NORM}
    return shapes


def network_of(tensors: dict[str, np.ndarray]) -> Network:
    """The network with float32 weights from `read_weights`. Batch norms are folded in float64."""
    network = nnx.clone(_blank())
    for name, convolution in _convolutions(network):
        gain, offset, mean, variance = (tensors[f"{name}.bn.{key}"].astype(np.float64) for key in _BATCH_NORM)
        scale = gain / np.sqrt(variance + _BATCH_NORM_EPSILON)
        kernel = tensors[f"{name}.conv.weight"] * scale[:, None, None, None]  # [out, in, height, width]
        convolution.kernel = nnx.Param(jnp.asarray(kernel.transpose(2, 3, 1, 0), jnp.float32))
        convolution.bias = nnx.Param(jnp.asarray(offset - mean * scale, jnp.float32))
    return network


############################ Features ############################


def _clean(picture: np.ndarray) -> np.ndarray:
    return resize.bicubic(picture, SIZE)


def _legacy_tensorflow(picture: np.ndarray) -> np.ndarray:
    return _three_channels(resize.bilinear(picture, SIZE, half_pixels=False))


def _legacy_pytorch(picture: np.ndarray) -> np.ndarray:
    return _three_channels(resize.bilinear(picture, SIZE, divisor=255))


def _three_channels(picture: np.ndarray) -> np.ndarray:
    return picture if picture.ndim == 3 else np.repeat(picture[..., None], 3, axis=-1)


# For each mode: the function that resizes a picture, uint8 [h, w, 3] or [h, w], to float32 [299, 299, 3]; and (mean,
# deviation), by which the network's input is normalised.
MODES = {
    "clean": (_clean, (128.0, 128.0)),
    "legacy_tensorflow": (_legacy_tensorflow, (128.0, 128.0)),
    "legacy_pytorch": (_legacy_pytorch, (0.5, 0.5)),
}


class Inception(base.Extractor):
    """Features of the 2015 Inception, for FID in one of its three modes.

    There are 2,048 features and, with `spatial`, after them the 2,023 features of sFID.
    """

    wants_weights = True
    modes = tuple(MODES)
    has_spatial = True

    def __init__(self, weights: str | Path, mode: str, batch_size: int | None = None, spatial: bool = False):
        """`weights`: for `read_weights`; `mode`: a key of `MODES`; `batch_size`: see `base.Extractor`.

        Raises:
          InputError: there is no such mode, or these are not weights of the 2015 Inception.
        """
        if mode not in MODES:
            raise InputError(f"mode {mode!r} is none of {', '.join(MODES)}")
        tensors, sha256 = read_weights(weights)
        if sha256 == OFFICIAL_SHA256:
            metric = f"FID ({mode})"
            caveat = f"The weights are those of FID, the mode is {mode}: numbers of other modes are no peers."
            logging.info("weights: %s", OFFICIAL_NAME)
        else:
            metric, caveat = f"FD of Inception weights {sha256[:8]} ({mode})", base.NO_FID
            logging.warning("%s is not %s: the distance is not the FID of papers", weights, OFFICIAL_NAME)
        self._resized, (mean, deviation) = MODES[mode]
        weights_only = nnx.state(network_of(tensors))
        super().__init__(
            name="Inception 2015",
            metric=metric,
            caveat=caveat,
            mode=mode,
            dim=DIM,
            spatial_dim=SPATIAL_DIM if spatial else 0,
            size=SIZE,
            weights_sha256=sha256,
            params=(weights_only, np.float32(mean), np.float32(deviation)),
            apply=_all_features if spatial else _pool_features,
            batch_size=batch_size,
            compiler_options=_compiler_options(),
        )

    def prepare(self, picture: np.ndarray) -> np.ndarray:
        """Resizes to float32 [299, 299, 3] by the rule of the mode; 0..1 for legacy_pytorch, 0..255 for the others."""
        return self._resized(picture)


def _pool_features(params: tuple[nnx.State, jax.Array, jax.Array], images: jax.Array) -> jax.Array:
    """Features without those of sFID. `params`: weights, and mean and deviation by which the input is normalised.

    A function of the module, so that all extractors share one compiled program.
    """
    return _all_features(params, images)[:, :DIM]


def _all_features(params: tuple[nnx.State, jax.Array, jax.Array], images: jax.Array) -> jax.Array:
    weights, mean, deviation = params
    network = nnx.merge(nnx.graphdef(_blank()), weights)
    return jnp.concatenate(network((images - mean) / deviation), axis=-1)


def _compiler_options() -> dict[str, str] | None:
    """Makes XLA convolve on CPUs by Eigen instead of YNNPACK: twice as fast here (docs/measurements.md)."""
    options = {"xla_cpu_experimental_ynn_fusion_type": "LIBRARY_FUSION_TYPE_DOT"}
    if jax.default_backend() != "cpu":
        return None
    try:
        jax.jit(lambda: 0, compiler_options=options).lower().compile()
    except jax.errors.JaxRuntimeError:
        return None  # another version of XLA, without this option
    return options
