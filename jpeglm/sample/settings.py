"""How tokens are drawn."""

import dataclasses
import operator
from typing import Any

import numpy as np

from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError


def integer(name: str, value: Any, least: int | None = None) -> int:
    """`value` as an int; raises InputError if it is not a whole number, or is below `least`."""
    try:
        number = operator.index(value)
    except TypeError:
        raise InputError(f"{name}={value!r} is no whole number") from None
    if least is not None and number < least:
        raise InputError(f"{name}={number}: {least} is the least")
    return number


@dataclasses.dataclass(frozen=True)
class Settings:
    """How tokens are drawn.

    `max_tokens` limits prompt and continuation together. `grammar`: write only legal files, if the codec has a
    grammar.
    """

    max_tokens: int
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    slots: int = 8
    grammar: bool = True

    def __post_init__(self) -> None:
        for name in ("max_tokens", "top_k", "slots"):
            object.__setattr__(self, name, integer(name, getattr(self, name)))
        if isinstance(self.grammar, np.bool_):
            object.__setattr__(self, "grammar", bool(self.grammar))
        config_lib.check_sampling(dataclasses.asdict(self))
