"""Codecs: pictures and clips to canonical compressed documents and back. No JAX below this line of the house."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jpeglm.codecs.avc import AvcCodec
from jpeglm.codecs.jpeg import JpegCodec
from jpeglm.errors import InputError
from jpeglm.ranges import BY_TYPE, check_one

Codec = JpegCodec | AvcCodec
_CODECS = {"jpeg": JpegCodec, "avc": AvcCodec}
NAMES = tuple(_CODECS)
_DEFAULTS = {  # of JPEG-LM and of AVC-LM (sections 3.1 and 4.2)
    "jpeg": {
        "height": 256,  # pixels
        "width": 256,
        "mode": "RGB",  # or "L", greyscale
        "quality": 25,
    },
    "avc": {
        "height": 144,  # pixels
        "width": 256,
        "fps": 3,  # frames a second
        "frames": 15,  # of a clip: its first 5 seconds
        "qp": 37,  # quantiser
        "strip_headers": False,  # True leaves out parameter sets and x264's message, the same for all clips
    },
}


def defaults(name: str) -> dict[str, Any]:
    """The keys of a config's `codec` section but `name`, with their defaults."""
    return dict(_DEFAULTS[name])


def make(config_codec: Mapping[str, Any]) -> Codec:
    """Makes the codec that a config's `codec` section names; the section's other keys are the codec's fields.

    Raises:
      InputError: unknown name, missing or surplus keys, or a value of a type or range that the codec does not have.
    """
    settings = dict(config_codec)
    name = settings.pop("name", None)
    if name not in NAMES:
        raise InputError(f"config.codec.name: unknown codec {name!r}; the codecs are: {', '.join(NAMES)}")
    wanted = {field.name: field.type for field in dataclasses.fields(_CODECS[name])}
    for key in sorted(wanted.keys() ^ settings.keys()):
        what = "is missing" if key in wanted else f"is nothing that the codec {name} has"
        raise InputError(f"config.codec.{key} {what}: its keys are {', '.join(sorted(wanted))}")
    for key, kind in wanted.items():
        check_one(f"config.codec.{key}", settings[key], BY_TYPE[kind])
    return _CODECS[name](**settings)
