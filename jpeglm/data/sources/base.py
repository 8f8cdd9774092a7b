"""The protocol of a source, which codecs and evaluators use for every kind of source.

To add a source, write one file with its class and add one line to `SOURCES` in `sources`. The class inherits from the
last of these that fits:

| class | content | to implement |
|---|---|---|
| `Source` | pixels | `takes`, `names`, `load` |
| `Files` | files of pictures or clips | `takes`, `names`, `read` |
| `Named` | files with names of their own, in folders | `takes`, `folders`, `start`, `read` |

A source that is recognised by the suffix of its path sets `suffixes` instead of `takes`. `__init__` opens what has to
be opened once.

A source lists names cheaply, and loads one item by name. Prepared data must depend only on the content, so names come
in the same order in every process and on every machine. A source may be read by several threads at once, and each
process opens its own.
"""

import abc
import os
from collections.abc import Iterator
from typing import ClassVar

from PIL import Image

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import Refused, printable
from jpeglm.data.sources import listing
from jpeglm.data.sources.listing import PassedOver, Rule
from jpeglm.data.sources.pictures import open_picture, to_canonical


class Source(abc.ABC):
    """A set of pictures or clips, made from the path that names it.

    Attributes:
      suffixes: of the paths that name such a source, in lower case with their dots; empty if `takes` decides.
      holds_files: whether `read` can be used.
      path: as given to `open_source`.
    """

    suffixes: ClassVar[tuple[str, ...]] = ()
    holds_files: ClassVar[bool] = False
    path: str

    def __init__(self, path: str):
        """Opens the source; raises `InputError` if it cannot be read."""
        self.path = path

    @classmethod
    def takes(cls, path: str) -> bool:
        """Whether `path` names a source of this kind; `__init__` reports if nothing is there.

        Raises:
          InputError: it is not clear which source is meant.
        """
        return path.lower().endswith(cls.suffixes) and not os.path.isdir(path)

    @abc.abstractmethod
    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        """Names of all items, in an order that depends only on the content.

        Args:
          rule: which files are taken, if files have names of their own; pictures if None.
          passed_over: records what is skipped.

        Raises:
          InputError: a folder cannot be listed.
        """

    @abc.abstractmethod
    def load(self, name: str) -> Image.Image:
        """Opens one picture, possibly lazily.

        Raises:
          Refused: it is no picture, or no rule of `pictures` converts it.
        """

    def canonical(
        self, name: str, height: int, width: int, mode: str, background: str = DEFAULT_BACKGROUND
    ) -> Image.Image:
        """One picture in a codec's size and mode: see `pictures.to_canonical`.

        Raises:
          Refused: as `load` and `to_canonical` do.
        """
        with self.load(name) as image:
            return to_canonical(image, height, width, mode, background)

    def read(self, name: str) -> bytes:
        """The bytes of one file.

        Raises:
          Refused: it cannot be read, or the source holds pixels.
        """
        raise Refused("no file", f"{printable(self.path)} holds pixels")

    def clips(self, passed_over: PassedOver | None = None) -> Iterator[str]:
        """Names of all clips, like `names` for pictures."""
        return self.names(listing.films_and_png(), passed_over)

    def stills(self, name: str) -> list[str] | None:
        """For a clip stored as pictures, the names of its frames, unordered; None for a clip that is a file.

        Raises:
          Refused: they cannot be listed.
        """
        return None

    def documents(self, codec: object, limit: int | None = None) -> Iterator[bytes] | None:
        """Documents of a source that `jpeglm.prepare` wrote; None for any other source, whose items must be encoded.

        Args:
          codec: the `Codec` whose documents are wanted.
          limit: at most so many.

        Raises:
          InputError: another codec made them, or they are damaged.
        """
        return None


class Files(Source):
    """A source of files: pictures, or clips."""

    holds_files: ClassVar[bool] = True

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `Refused` if it cannot be read."""

    def load(self, name: str) -> Image.Image:
        """Opens one file as a picture, lazily; raises `Refused`."""
        return open_picture(self.read(name))


class Named(Files):
    """Files with names of their own, in folders: `listing` decides which of them are taken."""

    @abc.abstractmethod
    def start(self, name: str) -> bytes:
        """The first bytes of one file, at most `listing.START`; raises `Refused`."""

    @abc.abstractmethod
    def folders(self, passed_over: PassedOver) -> Iterator[tuple[str, list[str]]]:
        """Each folder (the first is "") with the full names of the files in it, without hidden ones."""

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        rule, passed_over = rule or listing.pictures(), passed_over or PassedOver()
        of_samples = None  # the last folder of samples; those below it follow it
        for folder, names in self.folders(passed_over):
            sampled: set[str] | None
            if of_samples is not None and os.path.join(folder, "").startswith(os.path.join(of_samples, "")):
                sampled = set()  # films and the like
            else:
                sampled = listing.sampled(printable(os.path.join(self.path, folder).rstrip("/")), names, self.read)
                of_samples = folder if sampled is not None else None
            for name in names:
                if sampled is None:
                    is_taken, why = self.is_taken(name, rule)
                else:
                    is_taken, why = name in sampled, listing.NOT_A_SAMPLE
                if is_taken:
                    yield name
                else:
                    passed_over.add(name, why)

    def is_taken(self, name: str, rule: Rule) -> tuple[bool, str]:
        """Whether the rule takes a file, and why this cannot be decided."""
        try:
            return rule.takes(name, self.start), ""
        except Refused as refusal:
            return False, refusal.reason
