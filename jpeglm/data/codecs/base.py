"""What a codec has to say: the protocol that all other code asks, whatever the codec.

To add a codec, write one file with a frozen dataclass of it and add one line to jpeglm/core/registry.py. A codec of
pictures inherits from `pictures.PictureCodec`, one of clips from `clips.ClipCodec`: these have all that is the same
for every codec of their kind, and list what is left to write. Only an item of a third kind needs all of this file.

No codec imports JAX: documents are also made and read where there is none.
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

    A document is what a model learns: the compressed file of one item, without what is the same in all of them. Equal
    items have equal documents. A subclass is a frozen dataclass; its fields are the keys of `config.codec` beside
    `name`, and `__post_init__` raises `InputError` for values that the format does not have.

    Attributes:
      name: by which `config.codec.name` asks for it.
      item: what a document is of, in the singular, for messages: "picture", "clip".
      unit: what `cut` keeps whole ones of, likewise: "MCU", "frame".
      extension: suffix of ordinary files, with its dot.
      separator_behavior: where the tokenizer's merges end, at a match of `separator_regex` before it
        ("merged_with_next") or after it ("merged_with_previous").
      SECTION: the keys of `config.codec` but `name`, which are the fields, each with its default and its range.
      height: of what is seen, in pixels.
      width: likewise.
      frames: of an item; 1 of a still picture.
      fps: frames a second of what is seen; 0 of still pictures.
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
        """The codec of a config, a run's or a manifest's: of the section codec.

        Raises:
          InputError: missing or surplus keys, or a value of a type or range that the codec does not have.
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
        """Pixels of one item, by which its bits are divided."""
        return self.frames * self.height * self.width

    def units_of(self, ratio: float) -> int:
        """floor(ratio * units): whole units that a share of an item holds.

        A product within 1e-9 of the next whole number counts as that number, so that rounding in floating point never
        costs a unit.

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

        It must match wherever `cut` can cut: then the tokens of a cut document are a prefix of the tokens of the
        whole.
        """

    @abc.abstractmethod
    def restore(self, document: bytes) -> bytes:
        """The ordinary file of a document, or of the beginning of one; of any bytes: damaged ones stay damaged."""

    @abc.abstractmethod
    def strip(self, file: bytes) -> bytes:
        """The document of an ordinary file of this codec, or of the beginning of one: the inverse of `restore`.

        Raises:
          InputError: what is left out of documents is not this codec's.
        """

    @abc.abstractmethod
    def parse(self, document: bytes) -> Any:
        """Reads a whole canonical document strictly; what it returns is the codec's own.

        Raises:
          InputError: the document is anything else; one line says where and what is wrong.
        """

    @abc.abstractmethod
    def is_valid(self, document: bytes) -> bool:
        """Whether any bytes are a document that `parse` accepts and a decoder decodes without complaints."""

    @abc.abstractmethod
    def cut(self, document: bytes, ratio: float) -> tuple[bytes, int]:
        """The beginning of a canonical document with `units_of(ratio)` whole units, and their number.

        Raises:
          InputError: the ratio is outside [0, 1], or the document is not valid.
        """

    @abc.abstractmethod
    def look(self, document: bytes) -> tuple[bool, Seen, int]:
        """Of any bytes: `is_valid`, what can be seen, and how many units are readable in sequence from the first."""

    @abc.abstractmethod
    def see(self, file: bytes) -> Seen:
        """What can be seen of an ordinary file, however damaged, in the codec's size."""

    @abc.abstractmethod
    def encoder_versions(self) -> dict[str, str]:
        """Versions of all that the bytes of documents and the pixels of decoded ones depend on."""

    def decode_leniently(self, document: bytes) -> tuple[Seen, int]:
        """What can be seen of any bytes, and how many units are readable in sequence from the first."""
        return self.look(document)[1:]

    def grammar(self) -> Grammar | None:
        """The automaton of all canonical documents; None of a codec without one. The first one may take a while."""
        return None

    def checked(self, document: bytes) -> bytes:
        """The document that an encoder wrote, which must parse and come back from its ordinary file.

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

    ############################ What else is asked, each in a class of its own ############################

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
    """Where a codec's items come from, and how each becomes documents."""

    codec: Kind

    @abc.abstractmethod
    def check_data(self, data: Mapping[str, Any]) -> None:
        """`InputError` if a config's section `data` asks for variants or a background that the codec does not have."""

    @abc.abstractmethod
    def check_source(self, source: Source) -> None:
        """`InputError` if the source cannot hold such items, or what encodes them does not work here."""

    @abc.abstractmethod
    def a_minute(self, variants: int) -> int:
        """How many items with so many variants one core encodes in about a minute: that many are one unit of work."""

    @abc.abstractmethod
    def names(self, source: Source, passed_over: PassedOver | None = None) -> Iterator[str]:
        """The names of a source's items, in an order that depends on its content alone.

        `passed_over` is told what else there is.
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
        """The document of an item, and after it those of its variants. Each has passed `Codec.checked`.

        Args:
          source: where `name` is from.
          name: one of `names`.
          variants: how many, of those that the codec has.
          stride: frames from the beginning of one variant of a clip to that of the next; 0: as many as a clip has.
          background: what transparent pixels are put over, one of `config.BACKGROUNDS`.

        Raises:
          Refused: the item cannot be encoded.
        """

    @abc.abstractmethod
    def encode(self, given: Any, background: str) -> bytes:
        """The document of an item from Python: a file's bytes, a uint8 array or, of pictures, a Pillow image.

        Raises:
          InputError: it is no such item.
        """

    @abc.abstractmethod
    def axes(self, shape: Sequence[int]) -> int:
        """How many axes the array of one item has; one more is an array of several. `shape`: of the array given."""


@dataclasses.dataclass(frozen=True)
class Display(abc.ABC, Generic[Kind]):
    """How a codec's ordinary files are shown, whole or not.

    Attributes:
      caption: of a page whose rows are those of `rows`.
      film_suffixes: of the files that `films` makes; none of a codec whose items do not move.
    """

    codec: Kind
    caption: ClassVar[str]
    film_suffixes: ClassVar[tuple[str, ...]] = ()

    @abc.abstractmethod
    def rows(self, prompt: bytes, kept: int, files: Sequence[bytes], original: bytes) -> list[list[Image.Image]]:
        """The rows of a sheet that show one prompt.

        Args:
          prompt: the beginning that was given; `kept` units of the codec.
          files: what was made of it.
          original: what it was cut from.
        """

    @abc.abstractmethod
    def tile(self, file: bytes) -> Image.Image:
        """One file as one still picture."""

    def films(self, file: bytes) -> dict[str, bytes]:
        """Files that any program plays, by suffix: what `Codec.see` sees, encoded again."""
        return {}


@dataclasses.dataclass(frozen=True)
class Judged:
    """One completed document.

    Attributes:
      seen: all that a tolerant decoder makes of it: uint8 [h, w] or [h, w, 3]; of a clip [frames, h, w, 3].
      pictures: uint8 [n, h, w] or [n, h, w, 3], what enters a distance between pictures.
      scores: by name, floats:
        valid: 1 if it decodes strictly, else 0.
        readable: the share of the units to be completed that are readable in sequence.
        concealed: of clips, the share of the macroblocks to be completed that the decoder made up or never gave.
    """

    seen: np.ndarray
    pictures: np.ndarray
    scores: dict[str, float]


@dataclasses.dataclass(frozen=True)
class Words:
    """What a table's notes call things.

    Attributes:
      real: what completions are compared with.
      completed: what enters the distance between pictures.
      unreadable: how a file that does not decode strictly enters it.
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
      controls: names of the methods beside networks (`jpeglm.tables.methods`) that can complete these documents.
      words: for the notes of tables.
      measures_rest: whether what was given stays out of the measures, each unit being a picture of its own: then floor
        and reference depend on how much was given, and a completion is also compared with its own original. Otherwise
        the whole item is one picture.
      least_given: the fewest units of a prompt.
    """

    codec: Kind
    controls: ClassVar[tuple[str, ...]]
    words: ClassVar[Words]
    measures_rest: ClassVar[bool] = False
    least_given: ClassVar[int] = 0

    @abc.abstractmethod
    def judge(self, document: bytes, kept: int) -> Judged:
        """Judges any bytes, of which `kept` units were given, fewer than an item has."""

    def num_pictures(self, kept: int) -> int:
        """How many pictures of an item enter a distance where `kept` units were given."""
        return self.codec.units - kept if self.measures_rest else 1

    @property
    def counted(self) -> str:
        """What these pictures are, in the plural."""
        return f"{self.codec.unit if self.measures_rest else self.codec.item}s"

    @abc.abstractmethod
    def given(self, ratio: float, kept: int) -> str:
        """How much was given, in a table: `kept` units, which may be less than `ratio` of an item."""

    def pieces(self, rest: bytes) -> list[bytes]:
        """The rest of a document as the control of random bytes takes it: those at even places become random."""
        return [rest]

    def show_prompt(self, prefix: bytes, kept: int) -> bytes | None:
        """A valid document that shows a prompt as `cut` gave it; None where each completion shows it by itself."""
        return None

    def share(self, readable: int, kept: int) -> float:
        """Of the units to be completed; what follows can make the last given one unreadable, too."""
        return max(0, readable - kept) / (self.codec.units - kept)
