"""Codecs: pictures to canonical compressed documents and back. No JAX below this line of the house."""

from collections.abc import Mapping
from typing import Any

from jpeglm.codecs.jpeg import JpegCodec
from jpeglm.errors import InputError

Codec = JpegCodec  # the only one so far; every room takes its codec from `make` and uses this interface


def make(config_codec: Mapping[str, Any]) -> Codec:
    """Makes the codec that a config's `codec` section names (keys name, height, width, mode, quality).

    Raises:
      InputError: unknown name, or a size, mode or quality that the codec does not have.
    """
    if config_codec["name"] != "jpeg":
        raise InputError(f"config.codec.name: unknown codec {config_codec['name']!r}; the codecs are: jpeg")
    return JpegCodec(
        height=config_codec["height"],
        width=config_codec["width"],
        mode=config_codec["mode"],
        quality=config_codec["quality"],
    )
