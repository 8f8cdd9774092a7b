"""A loss in the field's units."""

import math
from collections.abc import Mapping
from typing import Any

from jpeglm.core.errors import Diverged
from jpeglm.core.registry import CODECS


def heldout_units(nats_per_token: float, manifest: Mapping[str, Any]) -> dict[str, float]:
    """The held-out loss in the field's three units; bytes and pixels are those of the split's complete files.

    Raises:
      Diverged: the loss is not finite.
    """
    if not math.isfinite(nats_per_token):
        raise Diverged(f"the held-out loss is {nats_per_token}")
    split = manifest["splits"]["heldout"]
    bits = nats_per_token / math.log(2) * split["tokens"]
    return {
        "nats_per_token": nats_per_token,
        "bits_per_byte": bits / split["bytes"],
        "bits_per_pixel": bits / (split["documents"] * CODECS.of(manifest["config"]).pixels),
    }
