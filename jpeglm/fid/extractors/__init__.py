"""Feature extractors by name: the networks whose features are compared; see `base.Extractor`.

An entry is a class or its import path as text, "package.module:Class", which is imported on first use. Extractors of
other packages come last; see jpeglm/core/registry.py.
"""

import contextlib
from typing import Any

from jpeglm.core.errors import InputError
from jpeglm.core.registry import check_free, resolved, with_installed
from jpeglm.fid.extractors.base import Extractor

# To add an extractor, add one line here. The first one is the default. A table uses an extractor of clips only if
# config.video_weights names its file of weights, and gives it no mode.
PICTURES: dict[str, type[Extractor] | str] = {
    "efficientnet_lite0": "jpeglm.fid.extractors.efficientnet:EfficientNetLite0",
    "inception": "jpeglm.fid.extractors.inception:Inception",
}
CLIPS: dict[str, type[Extractor] | str] = {
    "i3d": "jpeglm.fid.extractors.i3d:I3D",
}
_OWN = (*PICTURES, *CLIPS)
PICTURES = with_installed(PICTURES, "extractors")
CLIPS = with_installed(CLIPS, "clip_extractors")
DEFAULT = next(iter(PICTURES))
FID = "inception"  # the network of FID


def find(name: str) -> type[Extractor]:
    """The extractor class of this name.

    Raises:
      InputError: there is none; or it is from another package and cannot be imported, or has the name of one of
        jpeglm's own extractors.
    """
    for group in ("extractors", "clip_extractors"):
        check_free(name, _OWN, group)
    place = (PICTURES | CLIPS).get(name)
    if place is None:
        raise InputError(f"extractor {name!r} is none of {', '.join(PICTURES | CLIPS)}")
    return resolved(place)


def modes() -> list[str]:
    """The modes of all extractors of pictures that can be imported, each once."""
    found: dict[str, None] = {}
    for name in PICTURES:
        with contextlib.suppress(InputError):  # reported if the user asks for that extractor
            found |= dict.fromkeys(find(name).modes)
    return list(found)


def make(
    name: str, weights: str = "", mode: str = "", batch_size: int | None = None, spatial: bool = False
) -> Extractor:
    """Makes the extractor of this name. Arguments that its class does not take are ignored.

    Args:
      name: a key of `PICTURES` or `CLIPS`.
      weights: file of its weights, if its class wants one.
      mode: of resizing and normalising, if its class has several.
      batch_size: pictures or clips computed at once; by default the extractor chooses.
      spatial: whether to give spatial features too, if its class has them.

    Raises:
      InputError: there is no such extractor, or the weights or the mode do not belong to it.
    """
    kind = find(name)
    arguments: dict[str, Any] = {}
    if kind.wants_weights:
        arguments["weights"] = weights
    if kind.modes:
        arguments["mode"] = mode
    if batch_size is not None:
        arguments["batch_size"] = batch_size
    if kind.has_spatial:
        arguments["spatial"] = spatial
    return kind(**arguments)
