"""The common part of all codecs of still pictures.

A codec of pictures is a frozen dataclass that inherits from `PictureCodec`. What it must implement is abstract there
and in `base.Codec`; tests/outside/palette.py is a short example.
"""

import abc
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from PIL import Image

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError
from jpeglm.data import augment
from jpeglm.data.codecs.base import Codec, Display, Evaluation, Items, Judged, Words
from jpeglm.data.sources import listing
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.pictures import open_picture, to_canonical


class PictureCodec(Codec):
    """Documents of pictures of one size.

    Attributes:
      mode: "RGB", or "L" for greyscale.
    """

    item: ClassVar[str] = "picture"
    frames: int = 1
    fps: int = 0
    mode: str

    @abc.abstractmethod
    def encode(self, image: Image.Image) -> bytes:
        """The canonical document of a picture of the codec's size and mode; InputError for any other."""

    @abc.abstractmethod
    def unit_ends(self, document: bytes) -> Sequence[int]:
        """Where each unit of a canonical document ends, including its separator; raises as `parse`."""

    @property
    @abc.abstractmethod
    def header(self) -> bytes:
        """The beginning of every document; `cut` leaves only this if no unit is kept."""

    def header_of(self, document: bytes) -> bytes:
        """See `Codec`."""
        del document
        return self.header

    @abc.abstractmethod
    def repair(self, document: bytes) -> tuple[bytes, int]:
        """Makes a canonical document from any bytes; it stays the same only if it is valid.

        Returns:
          The document, in which units that cannot be read are mid-grey, and the number of units that were readable in
          sequence, from the first on.
        """

    @abc.abstractmethod
    def decode_valid(self, document: bytes) -> Image.Image:
        """The picture of a document that is known to be canonical."""

    def complete_with_flat(self, prefix: bytes, units_kept: int) -> bytes:
        """A complete document: a prefix from `cut` with `units_kept` units, then flat mid-grey ones."""
        return self.repair(prefix)[0]

    def open(self, file: bytes) -> Image.Image:
        """Opens a complete ordinary file lazily; raises `Refused`."""
        return open_picture(file)

    def is_valid(self, document: bytes) -> bool:
        """Says whether `parse` accepts the document."""
        try:
            self.parse(document)
        except InputError:
            return False
        return True

    def decode(self, document: bytes) -> Image.Image:
        """The picture of a canonical document; raises as `parse` does."""
        self.parse(document)
        return self.decode_valid(document)

    def cut(self, document: bytes, ratio: float) -> tuple[bytes, int]:
        """See `Codec.cut`: a ratio of 0 leaves the header, one of 1 the whole document."""
        kept = self.units_of(ratio)
        ends = self.unit_ends(document)
        return (document[: ends[kept - 1]] if kept else self.header), kept

    def look(self, document: bytes) -> tuple[bool, Image.Image, int]:
        """`is_valid` of any bytes, and the result of `decode_leniently`. A valid document is parsed only once."""
        repaired, readable = self.repair(document)
        return repaired == document, self.decode_valid(repaired), readable

    def see(self, file: bytes) -> Image.Image:
        """Decodes an ordinary file leniently, like `decode_leniently` its document."""
        try:
            document = self.strip(file)
        except InputError:
            document = file  # `repair` finds the readable part, whatever comes before it
        return self.look(document)[1]

    @property
    def items(self) -> "PictureItems":
        return PictureItems(self)

    @property
    def display(self) -> "PictureDisplay":
        return PictureDisplay(self)

    @property
    def evaluation(self) -> "PictureEvaluation":
        return PictureEvaluation(self)


class PictureItems(Items[PictureCodec]):
    """Pictures of any source, converted by `Source.canonical` to the codec's size and mode; variants by `augment`."""

    def check_data(self, data: Mapping[str, Any]) -> None:
        if data["stride"]:
            raise InputError(f"data.stride={data['stride']}: windows are cut from clips alone; for pictures it is 0")

    def check_source(self, source: Source) -> None:
        pass  # every source has pictures

    def a_minute(self, variants: int) -> int:
        return 1024

    def names(self, source: Source, passed_over: listing.PassedOver | None = None) -> Iterator[str]:
        return source.names(listing.pictures(), passed_over)

    def documents(
        self,
        source: Source,
        name: str,
        variants: int = 0,
        stride: int = 0,
        background: str = DEFAULT_BACKGROUND,
    ) -> list[bytes]:
        codec = self.codec
        image = source.canonical(name, codec.height, codec.width, codec.mode, background)
        images = (augment.variant(image, number) if number else image for number in range(1 + variants))
        return [codec.checked(codec.encode(image)) for image in images]

    def encode(self, given: Image.Image | np.ndarray | bytes, background: str) -> bytes:
        codec = self.codec
        if isinstance(given, bytes):
            given = open_picture(given)
        elif not isinstance(given, Image.Image):
            given = _from_array(np.asarray(given))
        return codec.encode(to_canonical(given, codec.height, codec.width, codec.mode, background))

    def axes(self, shape: Sequence[int]) -> int:
        return 3 if tuple(shape[2:]) in ((1,), (3,), (4,)) else 2


def _from_array(array: np.ndarray) -> Image.Image:
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[..., 0]
    is_picture = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not is_picture or 0 in array.shape:
        wanted = "uint8 [height, width] or [height, width, 1, 3 or 4]"
        raise InputError(f"an array of {array.dtype} {list(array.shape)}; wanted is {wanted}")
    return Image.fromarray(array)


class PictureDisplay(Display[PictureCodec]):
    """A row for each prompt: prompt, completions, original."""

    caption: ClassVar[str] = "Each row: what was given, completions, original."

    def rows(self, prompt: bytes, kept: int, files: Sequence[bytes], original: bytes) -> list[list[Image.Image]]:
        return [[self.codec.see(file) for file in (prompt, *files, original)]]

    def tile(self, file: bytes) -> Image.Image:
        return self.codec.see(file)


class PictureEvaluation(Evaluation[PictureCodec]):
    """Judges whole pictures, leniently decoded; the prompt is shown over grey."""

    controls: ClassVar[tuple[str, ...]] = ("random_bytes", "flat", "training_mean", "training_picture")

    @property
    def words(self) -> Words:
        return Words(
            real="real pictures",
            completed="pictures",
            unreadable=f"as leniently decoded, unreadable {self.codec.unit}s in mid-grey",
            shown=f"as leniently decoded, with grey for each {self.codec.unit} that is missing or cannot be read.",
            random="no markers put among them",
        )

    def judge(self, document: bytes, kept: int) -> Judged:
        is_valid, picture, readable = self.codec.look(document)
        seen = np.asarray(picture)
        scores = {"valid": float(is_valid), "readable": self.share(readable, kept)}
        return Judged(seen, seen[None], scores)

    def given(self, ratio: float, kept: int) -> str:
        return f"{ratio:g}"

    def show_prompt(self, prefix: bytes, kept: int) -> bytes:
        return self.codec.complete_with_flat(prefix, kept)
