"""Codecs: pictures and clips to canonical compressed documents and back. No JAX below this line of the house."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import BY_TYPE, check_one
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.base import Codec
from jpeglm.data.codecs.jpeg import JpegCodec

__all__ = ["REGISTRY", "Codec", "defaults", "make"]

# By `config.codec.name`; a new codec is one line here.
REGISTRY: dict[str, type[Codec]] = {
    JpegCodec.name: JpegCodec,
    AvcCodec.name: AvcCodec,
}


def defaults(name: str) -> dict[str, Any]:
    """The section `codec` of a config that names this codec and says nothing else; `InputError` for an unknown one."""
    return {"name": name, **_named(name).defaults}


def make(config_codec: Mapping[str, Any]) -> Codec:
    """Makes the codec that a config's `codec` section names; the section's other keys are the codec's fields.

    Raises:
      InputError: unknown name, missing or surplus keys, or a value of a type or range that the codec does not have.
    """
    settings = dict(config_codec)
    name = settings.pop("name", None)
    codec = _named(name)
    wanted = {field.name: field.type for field in dataclasses.fields(codec)}
    for key in sorted(wanted.keys() ^ settings.keys()):
        what = "is missing" if key in wanted else f"is nothing that the codec {name} has"
        raise InputError(f"config.codec.{key} {what}: its keys are {', '.join(sorted(wanted))}")
    for key, kind in wanted.items():
        check_one(f"config.codec.{key}", settings[key], BY_TYPE[kind])
    return codec(**settings)


def _named(name: Any) -> type[Codec]:
    if not isinstance(name, str) or name not in REGISTRY:
        raise InputError(f"config.codec.name: unknown codec {name!r}; the codecs are: {', '.join(REGISTRY)}")
    return REGISTRY[name]
