"""The content of a completion table."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from jpeglm.core.errors import InputError
from jpeglm.data.codecs import Codec
from jpeglm.tables.metrics import METRICS

FLOOR = "heldout"
FLOOR_TITLE = "held-out originals"
NGRAM_ORDER = 4


def _check_finite(record: Any) -> None:
    """Raises InputError if a line of a table holds NaN or infinity. None is allowed: there is no such number."""
    values = {field.name: getattr(record, field.name) for field in dataclasses.fields(record)}
    for name, value in (values | values.get("scores", {})).items():
        if isinstance(value, float) and not math.isfinite(value):
            place = "" if getattr(record, "ratio", None) is None else f" at ratio {record.ratio:g}"
            raise InputError(f"“{record.title}”{place}: {name} is {value}, so there is no table")


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. For a network it describes plain sampling, except for the three fields about the grammar.

    A floor is a `Row`, the line of a method a `MethodRow`.

    Attributes:
      method: a key of `methods.REGISTRY`, or "heldout" for the originals themselves.
      title: its name in the table.
      ratio: share of the units (MCUs, frames) that were given; None for original pictures.
      num: number of pictures or clips.
      valid: share of the files that decode strictly.
      ended: share of the files that the model ended itself within its token budget; None without a model.
      readable: mean share of the units to be completed that are readable in sequence, leniently; None for originals.
      distance: between the features of these pictures, or completed frames, and of the reference.
      tokens: mean number that the model wrote; None without a model.
      valid_with_grammar: share of the files written with the grammar that decode strictly; None without a model.
      distance_with_grammar: between the features of those files' pictures and of the reference; None without a model.
      removed: the share of the model's probability that the grammar removed per token, averaged over each file's
        tokens and then over the files; None without a model.
      scores: of each of `metrics.METRICS`, by name; None or no entry if there is no such number.
      video_distance: between the features of whole clips and of the reference; None without `config.video_weights`.

    Raises:
      InputError: a number is not finite.
    """

    method: str
    title: str
    ratio: float | None
    num: int
    valid: float
    ended: float | None
    readable: float | None
    distance: float
    tokens: float | None
    valid_with_grammar: float | None = None
    distance_with_grammar: float | None = None
    removed: float | None = None
    scores: Mapping[str, float | None] = dataclasses.field(default_factory=dict)
    video_distance: float | None = None

    def __post_init__(self) -> None:
        _check_finite(self)

    def record(self) -> dict[str, Any]:
        """All numbers by name, with each score as a separate entry."""
        found: dict[str, Any] = {}
        for field in dataclasses.fields(self):
            if field.name == "scores":
                found |= {metric.name: self.scores.get(metric.name) for metric in METRICS}
            else:
                found[field.name] = getattr(self, field.name)
        return found

    def distance_by(self, grammar: bool) -> float:
        """The distance with or without the grammar; without a model there is only one distance."""
        return self.distance if self.distance_with_grammar is None or not grammar else self.distance_with_grammar


@dataclasses.dataclass(frozen=True)
class MethodRow(Row):
    """The line of a method. Unlike a floor it always has a ratio."""

    ratio: float


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Held-out loss of a model of the tokens, in the field's three units.

    `fitted_tokens`: for an n-gram model, the number of training tokens it was fitted on; None for a network.

    Raises:
      InputError: a loss is not finite.
    """

    title: str
    nats_per_token: float
    bits_per_byte: float
    bits_per_pixel: float
    fitted_tokens: int | None = None

    def __post_init__(self) -> None:
        _check_finite(self)


@dataclasses.dataclass(frozen=True)
class Shown:
    """What the report shows of a cell.

    Attributes:
      pictures: uint8 [n, h, w] or [n, h, w, 3]; clips are [n, frames, h, w, 3].
      valid: bool [n], whether the file of each decodes strictly.
    """

    pictures: np.ndarray
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """Everything that a table shows.

    Attributes:
      metric: name of the distance.
      codec: of the documents.
      kept: how many of its units are given, by ratio.
      floors: the rows of the originals themselves. For clips there is one per ratio, because the ratio decides which
        frames are measured.
      rows: of the methods, ratio by ratio.
      language_models: the trained model at `step`, the n-gram model and the pretrained model if there is one.
      history: the rows of the run's metrics up to `step`.
      shown: what the report shows, by (ratio, method, whether with the grammar). (None, "heldout", False) has the
        originals. For pictures, (ratio, "prompt", False) has the prompts, with grey for what was not given.
      notes: sentences about the numbers and how to read them.
      video_metric: name of the distance between clips; "" if it is not measured.
      extractors: SHA-256 of the weights of each network whose features are compared, by the network's name.
    """

    metric: str
    codec: Codec
    kept: dict[float, int]
    step: int
    floors: list[Row]
    rows: list[MethodRow]
    language_models: list[LanguageModel]
    history: list[dict[str, Any]]
    shown: dict[tuple[float | None, str, bool], Shown]
    notes: list[str]
    video_metric: str = ""
    extractors: dict[str, str] = dataclasses.field(default_factory=dict)

    @property
    def ngram(self) -> LanguageModel | None:
        """The n-gram model among the language models."""
        return next((model for model in self.language_models if model.fitted_tokens is not None), None)

    @property
    def all_rows(self) -> list[Row]:
        """Floors, then methods."""
        return [*self.floors, *self.rows]
