"""The protocol of a codec: everything that other code needs from one.

To add a codec, write one file with a frozen dataclass of it and add one line to jpeglm/core/registry.py. A codec of
pictures inherits from `pictures.PictureCodec`, one of clips from `clips.ClipCodec`: these implement what such codecs
share and list what is left to write. Only a third kind of item needs all of this file.

No codec imports JAX, because documents are also made and read on machines without it.
"""

import abc
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, Self, TypeVar

import numpy as np
from PIL import Image

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, Refused
from jpeglm.core.ranges import check_one
from jpeglm.core.registry import Section
from jpeglm.data.codecs.grammar import Grammar
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver

Seen = Image.Image | np.ndarray  # a picture; or frames, uint8 [frames, height, width, 3]


class Codec(abc.ABC):
    """Canonical documents of one form, and ordinary files.

    A document is what a model learns: the compressed file of one item, without the parts that all of them share. Equal
    items have equal documents. A subclass is a frozen dataclass; its fields are the keys of `config.codec` other than
    `name`, and `__post_init__` raises `InputError` for values that the format does not have.

    Attributes:
      name: its name in `config.codec.name`.
      item: what a document represents, in the singular, for messages: "picture", "clip".
      unit: the unit at which `cut` cuts, likewise: "MCU", "frame".
      extension: suffix of ordinary files, with the dot.
      separator_behavior: where the tokenizer's merges end, at a match of `separator_regex` before it
        ("merged_with_next") or after it ("merged_with_previous").
      SECTION: the keys of `config.codec` other than `name` (the fields), each with default and range.
      height: of the decoded item, in pixels.
      width: likewise.
      frames: per item; 1 for a still picture.
      fps: frames per second; 0 for still pictures.
    """

    name: ClassVar[str]
    item: ClassVar[str]
    unit: ClassVar[str]
    extension: ClassVar[str]
    separator_behavior: ClassVar[str]
    SECTION: ClassVar[Section]
    height: int
    width: int
    frames: int
    fps: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> Self:
        """The codec of a config (of a run or a manifest), from its section codec.

        Raises:
          InputError: missing or surplus keys, or a value of a wrong type or out of range.
        """
        settings = {key: value for key, value in config["codec"].items() if key != "name"}
        for key in sorted(cls.SECTION.keys() ^ settings.keys()):
            what = "is missing" if key in cls.SECTION else f"is nothing that the codec {cls.name} has"
            raise InputError(f"config.codec.{key} {what}: its keys are {', '.join(sorted(cls.SECTION))}")
        for key, (_, range_) in cls.SECTION.items():
            check_one(f"config.codec.{key}", settings[key], range_)
        return cls(**settings)

    ############################ Sizes ############################

    @property
    @abc.abstractmethod
    def units(self) -> int:
        """Units of one item."""

    @property
    def pixels(self) -> int:
        """Pixels of one item, for bits per pixel."""
        return self.frames * self.height * self.width

    def units_of(self, ratio: float) -> int:
        """floor(ratio * units): the number of complete units in a share of an item.

        A product within 1e-9 of the next whole number is rounded up to it, so that floating-point rounding never loses
        a unit.

        Raises:
          InputError: the ratio is outside [0, 1].
        """
        if not 0 <= ratio <= 1:
            raise InputError(f"ratio {ratio} is outside [0, 1]")
        return math.floor(ratio * self.units + 1e-9)

    ############################ Documents ############################

    @property
    @abc.abstractmethod
    def separator_regex(self) -> str:
        """Where the tokenizer's merges must end, over text in which byte b is chr(0x2800 + b).

        It must match wherever `cut` can cut, so that the tokens of a cut document are a prefix of the tokens of the
        whole one.
        """

    @abc.abstractmethod
    def restore(self, document: bytes) -> bytes:
        """The ordinary file of a document or of the beginning of one. Accepts any bytes; damaged ones stay damaged."""

    @abc.abstractmethod
    def strip(self, file: bytes) -> bytes:
        """The document of an ordinary file of this codec or of the beginning of one: the inverse of `restore`.

        Raises:
          InputError: the parts that documents leave out are not those of this codec.
        """

    @abc.abstractmethod
    def parse(self, document: bytes) -> Any:
        """Reads a complete canonical document strictly; the type of the result is up to the codec.

        Raises:
          InputError: the document is anything else; one line says where and what is wrong.
        """

    @abc.abstractmethod
    def is_valid(self, document: bytes) -> bool:
        """Whether bytes are a document that `parse` accepts and a decoder decodes without warnings."""

    @abc.abstractmethod
    def cut(self, document: bytes, ratio: float) -> tuple[bytes, int]:
        """The beginning of a canonical document with `units_of(ratio)` whole units, and their number.

        Raises:
          InputError: the ratio is outside [0, 1], or the document is not valid.
        """

    @abc.abstractmethod
    def look(self, document: bytes) -> tuple[bool, Seen, int]:
        """For any bytes: `is_valid`, the lenient decoding, and the number of units readable from the first on."""

    @abc.abstractmethod
    def see(self, file: bytes) -> Seen:
        """Decodes an ordinary file leniently, however damaged, to the codec's size."""

    @abc.abstractmethod
    def encoder_versions(self) -> dict[str, str]:
        """Versions of all programs that determine the bytes of documents and the pixels of decoded ones."""

    def decode_leniently(self, document: bytes) -> tuple[Seen, int]:
        """Decodes any bytes leniently; also returns how many units are readable in sequence from the first."""
        return self.look(document)[1:]

    def grammar(self) -> Grammar | None:
        """The automaton of all canonical documents, or None. The first call may take a while."""
        return None

    def header_of(self, document: bytes) -> bytes:
        """The beginning of a document that is not about its item: it follows from the codec's settings. Often b"".

        It ends where the tokenizer's merges end.
        """
        del document
        return b""

    def checked(self, document: bytes) -> bytes:
        """Returns an encoder's document after checking that it parses and survives `restore` and `strip`.

        Raises:
          Refused: "not canonical".
        """
        try:
            self.parse(document)
            restored = self.strip(self.restore(document))
        except InputError as error:
            raise Refused("not canonical", str(error)) from error
        if restored != document:
            raise Refused("not canonical", "the restored file has another document")
        return document

    ############################ Further parts, each in its own class ############################

    @property
    @abc.abstractmethod
    def items(self) -> "Items":
        """How items become documents."""

    @property
    @abc.abstractmethod
    def display(self) -> "Display":
        """How files are shown."""

    @property
    @abc.abstractmethod
    def evaluation(self) -> "Evaluation":
        """How completions are judged."""


Kind = TypeVar("Kind", bound=Codec)


@dataclasses.dataclass(frozen=True)
class Items(abc.ABC, Generic[Kind]):
    """Which items of a source a codec takes, and how each becomes documents."""

    codec: Kind

    @abc.abstractmethod
    def check_data(self, data: Mapping[str, Any]) -> None:
        """Raises InputError if the section `data` asks for variants or a background that are not supported."""

    @abc.abstractmethod
    def check_source(self, source: Source) -> None:
        """Raises InputError if the source cannot have such items, or if the encoder does not work here."""

    @abc.abstractmethod
    def a_minute(self, variants: int) -> int:
        """How many items, each with `variants` variants, one core encodes in about a minute: a unit of work."""

    @abc.abstractmethod
    def names(self, source: Source, passed_over: PassedOver | None = None) -> Iterator[str]:
        """The names of a source's items, in an order that depends only on its content.

        `passed_over` records everything that is skipped.
        """

    @abc.abstractmethod
    def documents(
        self,
        source: Source,
        name: str,
        variants: int = 0,
        stride: int = 0,
        background: str = DEFAULT_BACKGROUND,
    ) -> list[bytes]:
        """The document of an item, then those of its variants. Each has passed `Codec.checked`.

        Args:
          source: where `name` is from.
          name: one of `names`.
          variants: the largest number of variants.
          stride: frames from the start of one variant of a clip to the next; 0: the length of a clip.
          background: what transparent pixels are put over, one of `config.BACKGROUNDS`.

        Raises:
          Refused: the item cannot be encoded.
        """

    @abc.abstractmethod
    def encode(self, given: Any, background: str) -> bytes:
        """The document of an item from Python: a file's bytes, a uint8 array or, for pictures, a Pillow image.

        Raises:
          InputError: it is not such an item.
        """

    @abc.abstractmethod
    def axes(self, shape: Sequence[int]) -> int:
        """The number of axes of an array of one item; one more means several items. `shape`: of the given array."""


@dataclasses.dataclass(frozen=True)
class Display(abc.ABC, Generic[Kind]):
    """How a codec's ordinary files are displayed, complete or not.

    Attributes:
      caption: of a page with the rows of `rows`.
      film_suffixes: of the files from `films`; empty for still pictures.
    """

    codec: Kind
    caption: ClassVar[str]
    film_suffixes: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def rows(self, prompt: bytes, kept: int, files: Sequence[bytes], original: bytes) -> list[list[Image.Image]]:
        """The rows of a sheet that show one prompt.

        Args:
          prompt: the given beginning, of `kept` units.
          files: its completions.
          original: the file that it was cut from.
        """

    @abc.abstractmethod
    def tile(self, file: bytes) -> Image.Image:
        """One file as one still picture."""

    def films(self, file: bytes) -> dict[str, bytes]:
        """Files that any player can play, by suffix: the frames of `Codec.see`, encoded again."""
        return {}


@dataclasses.dataclass(frozen=True)
class Judged:
    """One completed document.

    Attributes:
      seen: the lenient decoding: uint8 [h, w] or [h, w, 3]; for a clip [frames, h, w, 3].
      pictures: uint8 [n, h, w] or [n, h, w, 3], the input of a distance between pictures.
      scores: by name, floats:
        valid: 1 if it decodes strictly, else 0.
        readable: the share of the units to be completed that are readable in sequence.
        concealed: for clips, the share of the macroblocks to be completed that the decoder concealed or that are
          missing.
    """

    seen: np.ndarray
    pictures: np.ndarray
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Words:
    """The words for things in a table's notes.

    Attributes:
      real: what the completions are compared with.
      completed: what is used for the distance between pictures.
      unreadable: how a file that does not decode strictly is counted there.
      shown: likewise, below a heading of pictures: "it is shown ...".
      random: where the control of random bytes puts them.
    """

    real: str
    completed: str
    unreadable: str
    shown: str
    random: str


@dataclasses.dataclass(frozen=True)
class Evaluation(abc.ABC, Generic[Kind]):
    """How the completions of cut documents are judged, and what they are compared with.

    Attributes:
      controls: names of the methods other than networks (`jpeglm.tables.methods`) that can complete these documents.
      measures_rest: whether the given part is excluded from the measures, and each unit is a separate picture. Then
        floor and reference depend on how much was given, and a completion is also compared with its own original.
        Otherwise the whole item is one picture.
      least_given: the fewest units of a prompt.
    """

    codec: Kind
    controls: ClassVar[tuple[str, ...]]
    measures_rest: ClassVar[bool] = False
    least_given: ClassVar[int] = 0

    @property
    @abc.abstractmethod
    def words(self) -> Words:
        """For the notes of tables."""

    @abc.abstractmethod
    def judge(self, document: bytes, kept: int) -> Judged:
        """Judges any bytes; `kept` units, fewer than an item has, were given."""

    def num_pictures(self, kept: int) -> int:
        """How many pictures of an item are used for a distance if `kept` units were given."""
        return self.codec.units - kept if self.measures_rest else 1

    @property
    def counted(self) -> str:
        """What these pictures are, in the plural."""
        return f"{self.codec.unit if self.measures_rest else self.codec.item}s"

    @abc.abstractmethod
    def given(self, ratio: float, kept: int) -> str:
        """How much was given, in a table: `kept` units, which may be less than `ratio` of an item."""

    def pieces(self, rest: bytes) -> list[bytes]:
        """The rest of a document in pieces for the control of random bytes: those at even indices become random."""
        return [rest]

    def show_prompt(self, prefix: bytes, kept: int) -> bytes | None:
        """A valid document that shows a prompt from `cut`; None if each completion already shows it."""
        return None

    def share(self, readable: int, kept: int) -> float:
        """The share of units to complete that are readable; bad data can also spoil the last given unit."""
        return max(0, readable - kept) / (self.codec.units - kept)
