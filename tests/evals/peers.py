"""Other people's evaluators, as oracles."""

import functools

import torch

_OPERATORS = []  # a definition lasts as long as its library object


@functools.cache
def define_operators() -> None:
    """Lets `import torchvision` pass where its compiled operators do not fit torch; nothing here calls them."""
    library = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _OPERATORS.append(library)


def pytorch_fid():
    """The module `pytorch_fid.fid_score`."""
    define_operators()
    from pytorch_fid import fid_score

    return fid_score


def torch_fidelity_fid():
    """The module `torch_fidelity.metric_fid`."""
    define_operators()
    from torch_fidelity import metric_fid

    return metric_fid


def torch_fidelity_kid():
    """The module `torch_fidelity.metric_kid`."""
    define_operators()
    from torch_fidelity import metric_kid

    return metric_kid


def torch_fidelity_defaults() -> dict:
    """What torch-fidelity does if it is not told."""
    define_operators()
    from torch_fidelity.defaults import DEFAULTS

    return DEFAULTS


def clean_fid():
    """The module `cleanfid.fid`."""
    define_operators()
    from cleanfid import fid

    return fid
