"""The methods of completion tables, which are their rows.

Each method gets the same cut documents and returns a completed one for each. The controls give distances a meaning:
the model before its first step, and the prompt followed by something simple. A network can complete by plain sampling
or, if the codec has a grammar, from legal tokens only.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from ml_collections import ConfigDict

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
    "complete",
    "identity",
    "networks",
    "rows_of",
    "runs_of",
    "title_of",
    "trained",
]

# In the order of tables; a new method is one line here. Those of other packages: see jpeglm/core/registry.py.
_METHODS: tuple[Method, ...] = (
    TRAINED,
    PRETRAINED,
    UNTRAINED,
    LastFrame(),
    RandomBytes(),
    Flat(),
    TrainingMean(),
    TrainingPicture(),
    *(resolved(place)() for place in installed("methods").values()),
)
REGISTRY: dict[str, Method] = {method.name: method for method in _METHODS}


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
