"""Feature extractors by name: networks between whose features a distance is measured; see `base.Extractor`.

An entry is the class's place as text, "package.module:Class", which is imported when it is asked for. Those of other
packages come last; see jpeglm/core/registry.py.
"""

import contextlib
from typing import Any

from jpeglm.core.errors import InputError
from jpeglm.core.registry import check_free, resolved, with_installed
from jpeglm.fid.extractors.base import Extractor

# A new extractor is one line here. The first one is taken where none is named. A table asks for the one of clips by
# its weights (config.video_weights): it has a file of weights and no modes.
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
    """The class of this name.

    Raises:
      InputError: there is none or, of another package's, it cannot be imported or has a name of jpeglm's own.
    """
    for group in ("extractors", "clip_extractors"):
        check_free(name, _OWN, group)
    place = (PICTURES | CLIPS).get(name)
    if place is None:
        raise InputError(f"extractor {name!r} is none of {', '.join(PICTURES | CLIPS)}")
    return resolved(place)


def modes() -> list[str]:
    """All modes that an extractor of pictures has, of those that can be used."""
    found: dict[str, None] = {}
    for name in PICTURES:
        with contextlib.suppress(InputError):  # which whoever asks for that extractor is told
            found |= dict.fromkeys(find(name).modes)
    return list(found)


def make(
    name: str, weights: str = "", mode: str = "", batch_size: int | None = None, spatial: bool = False
) -> Extractor:
    """The extractor of this name, told of these what it takes.

    Args:
      name: a key of `PICTURES` or `CLIPS`.
      weights: file of its weights, if its class wants one.
      mode: of resizing and normalising, if its class has several.
      batch_size: pictures or clips computed at once; by default the extractor chooses.
      spatial: whether to give spatial features too, if its class has them.

    Raises:
      InputError: there is no such extractor, or its weights or mode are not its own.
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
