"""The canonical documents of a set of pictures or clips, by name, one at a time.

The codec decides what an item of a source is and how it becomes documents: `Codec.items`.
"""

import hashlib
import itertools
import os
from collections.abc import Callable, Container, Iterator

from absl import logging

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, Refused, printable
from jpeglm.data import records, sources
from jpeglm.data.codecs import Codec
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver


def check(source: Source, codec: Codec) -> None:
    """Raises InputError if the source cannot have what the codec encodes."""
    if records.is_prepared(source.path):
        raise InputError(f"{printable(source.path)} holds prepared data: documents, and no {codec.item}s to encode")
    codec.items.check_source(source)


def read(path: str, codec: Codec, limit: int | None = None, background: str = DEFAULT_BACKGROUND) -> dict[str, bytes]:
    """All documents of `Documents`, in memory."""
    found = Documents(path, codec, limit, background)
    documents = dict(found.read())
    found.tell()
    return documents


class Documents:
    """The canonical documents of a set of pictures or clips, by names that can be used as file names.

    Names are listed first, and kept. Documents are not kept: each `read` encodes items as they are asked for.

    Attributes:
      names: after a `read`, those of the documents in the set, in order; during one, those so far.
    """

    def __init__(self, path: str, codec: Codec, limit: int | None = None, background: str = DEFAULT_BACKGROUND):
        """
        Args:
          path: as for `sources.open_source`; for a folder from `jpeglm.prepare`, its held-out documents are read.
          codec: of the documents.
          limit: the most documents of the set; the first ones that can be read.
          background: of transparent pictures, as the run's config says (`data.background`).

        Raises:
          InputError: there is no such source, or it cannot have such items.
        """
        self._source, self._codec, self._limit, self._background = sources.open_source(path), codec, limit, background
        self._path, self._passed_over = path, PassedOver()
        self._is_prepared = self._source.documents(codec, limit) is not None
        self._refused: set[str] = set()
        self._is_told = False
        self.names: list[str] = []
        self._listed: dict[str, str] = {}  # by file name, its name in the source
        self._order: list[str] = []  # of these file names
        if not self._is_prepared:
            check(self._source, codec)
            self._unlisted = codec.items.names(self._source, self._passed_over)

    def may_have(self, name: str) -> bool:
        """Whether there is an item of this name; with a limit, it may lie beyond that."""
        if not self._is_prepared:
            while name not in self._listed and self._list_another():
                pass
            return name in self._listed
        number = name.removeprefix("heldout-")
        return number.isdecimal() and name == _name_of_prepared(int(number))

    def read(self, wants: Callable[[str], bool] = lambda name: True) -> Iterator[tuple[str, bytes]]:
        """Names and documents, in order.

        Args:
          wants: whether the document of a name is to be read. An item that is not read counts as one of the set.

        Raises:
          InputError: the set is empty, or its source is damaged.
        """
        self.names = []
        for name, document in self._prepared() if self._is_prepared else self._encoded(wants):
            self.names.append(name)
            if document is not None and wants(name):
                yield name, document
        if not self.names and self._is_prepared:
            raise InputError(f"{printable(self._path)} was prepared without held-out {self._codec.item}s")
        if not self.names:
            why = self._passed_over.after("; ")
            raise InputError(f"{printable(self._path)} holds no {self._codec.item} that can be read{why}")

    def _prepared(self) -> Iterator[tuple[str, bytes]]:
        for number, document in enumerate(self._source.documents(self._codec, self._limit) or ()):
            yield _name_of_prepared(number), document

    def _encoded(self, wants: Callable[[str], bool]) -> Iterator[tuple[str, bytes | None]]:
        for name, item in self._items():
            if self._limit is not None and len(self.names) == self._limit:
                return
            if name in self._refused:
                continue
            document = None
            if wants(name):
                try:
                    document = self._codec.items.documents(self._source, item, background=self._background)[0]
                except Refused as error:
                    logging.warning("left out %s: %s", printable(item), error)
                    self._refused.add(name)
                    continue
            yield name, document

    def tell(self) -> None:
        """Logs how much of the set was left out, after everything was read."""
        if self._refused:
            logging.warning("%d files left out, %d %ss read", len(self._refused), len(self.names), self._codec.item)
        if self._passed_over.counts:
            after = self._passed_over.after("; ")
            logging.warning("%s: %d %ss read%s", printable(self._path), len(self.names), self._codec.item, after)

    def _items(self) -> Iterator[tuple[str, str]]:
        """File names and names in the source, in order."""
        for place in itertools.count():
            if place == len(self._order) and not self._list_another():
                return
            name = self._order[place]
            yield name, self._listed[name]

    def _list_another(self) -> bool:
        """Lists the next item of the source, each once; False if there is none."""
        item = next(self._unlisted, None)
        if item is None:
            return False
        name = _file_name(item, self._listed)
        self._listed[name] = item
        self._order.append(name)
        return True


def _name_of_prepared(number: int) -> str:
    return f"heldout-{number:05d}"


def _file_name(name: str, taken: Container[str]) -> str:
    """The file name for samples of an item: its name without slashes, or a hash if that is not usable."""
    flat = name.rstrip("/").replace("/", "_")
    try:
        is_short = len(os.fsencode(flat)) <= 200
    except UnicodeEncodeError:  # the locale lacks these characters
        is_short = False
    if is_short and not flat.startswith(".") and flat.isprintable() and flat not in taken:
        return flat
    chosen = "picture-" + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    logging.info("%s is called %s here", printable(name), chosen)
    return chosen
