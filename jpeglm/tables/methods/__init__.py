"""The methods of completion tables, which are their rows.

Each method gets the same cut documents and returns a completed one for each. The controls give distances a meaning:
the model before its first step, and the prompt followed by something simple. A network can complete by plain sampling
or, if the codec has a grammar, from legal tokens only.
"""

import functools
from collections.abc import Iterable, Sequence
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jpeglm.core.errors import InputError
from jpeglm.core.registry import installed, resolved
from jpeglm.tables.context import Context, Run
from jpeglm.tables.methods.base import Completed, Method
from jpeglm.tables.methods.flat import Flat
from jpeglm.tables.methods.last_frame import LastFrame
from jpeglm.tables.methods.networks import PRETRAINED, TRAINED, UNTRAINED
from jpeglm.tables.methods.random_bytes import RandomBytes
from jpeglm.tables.methods.training import TrainingMean, TrainingPicture

__all__ = [
    "REGISTRY",
    "Completed",
    "Method",
    "add_installed",
    "complete",
    "identity",
    "networks",
    "rows_of",
    "runs_of",
    "title_of",
    "trained",
]

# In the order of tables; a new method is one line here. Those of other packages come last, see `add_installed`.
_METHODS: tuple[Method, ...] = (
    TRAINED,
    PRETRAINED,
    UNTRAINED,
    LastFrame(),
    RandomBytes(),
    Flat(),
    TrainingMean(),
    TrainingPicture(),
)
REGISTRY: dict[str, Method] = {method.name: method for method in _METHODS}


@functools.cache
def add_installed() -> None:
    """Adds the methods of other packages (see jpeglm/core/registry.py); warns of those that cannot be used.

    A table that has no such row is made nevertheless; one that asks for it is refused. Not done when this package is
    imported: the modules of such methods import it.
    """
    for place in installed("methods").values():
        try:
            method = resolved(place)()
            if method.name in REGISTRY:
                raise InputError(f"another one is called {method.name}")
        except Exception as error:  # a class that lacks something, too
            logging.warning("the method of tables %s is left out: %s", place, error)
        else:
            REGISTRY[method.name] = method


def networks() -> tuple[str, ...]:
    """The names of the methods that draw tokens."""
    return tuple(name for name, method in REGISTRY.items() if method.is_network)


def trained() -> tuple[str, ...]:
    """The names of the trained networks."""
    return tuple(name for name, method in REGISTRY.items() if method.is_trained)


def title_of(row: str, grammar: bool) -> str:
    """The title of a row, for sampling with the grammar or plain sampling."""
    title = REGISTRY[row].title
    return f"{title} with grammar" if grammar else title


def rows_of(config: ConfigDict) -> list[str]:
    """The rows of a table: those that the config asks for and whose requirements it names."""
    return [row for row in config.rows if REGISTRY[row].is_available(config)]


def runs_of(context: Context, rows: Iterable[str]) -> list[Run]:
    """The runs whose networks are among these rows."""
    return [context.runs[run] for row in rows if (run := REGISTRY[row].run) in context.runs]


def complete(context: Context, row: str, originals: Sequence[bytes], ratio: float, grammar: bool = False) -> Completed:
    """Completes each original from its first `ratio` of MCUs or frames with the method of `row`.

    Args:
      context: of the table.
      row: a key of `REGISTRY`.
      originals: valid documents.
      ratio: 0 to 1.
      grammar: whether a network draws only from legal tokens; other methods draw no tokens.
    """
    return REGISTRY[row].complete(context, originals, ratio, grammar)


def identity(context: Context, row: str, grammar: bool = False) -> dict[str, Any]:
    """Everything that the completions of `row` depend on besides originals and ratio, by content; JSON types."""
    codec = {"codec": context.run_config.codec.to_dict(), "versions": context.codec.encoder_versions()}
    return {"row": row} | codec | REGISTRY[row].identity(context, grammar)
