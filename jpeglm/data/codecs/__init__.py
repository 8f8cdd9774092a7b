"""Codecs: pictures and clips to canonical compressed documents and back. No JAX here.

`CODECS` in jpeglm/core/registry.py has them by name.
"""

from jpeglm.data.codecs.base import Codec

__all__ = ["Codec"]
