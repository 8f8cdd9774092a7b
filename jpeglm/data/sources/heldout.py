"""The held-out documents of a folder that `jpeglm.prepare` wrote, as ordinary files again."""

import functools
from collections.abc import Iterator
from typing import cast

from PIL import Image

from jpeglm.core.errors import InputError, printable
from jpeglm.core.registry import CODECS
from jpeglm.data import batches, records
from jpeglm.data.codecs import Codec
from jpeglm.data.codecs.pictures import PictureCodec
from jpeglm.data.sources.base import Files
from jpeglm.data.sources.listing import PassedOver, Rule


class HeldOut(Files):
    """The held-out pictures of a prepared folder, each an ordinary file; read lazily."""

    @classmethod
    def takes(cls, path: str) -> bool:
        return records.is_prepared(path)

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        return (f"heldout-{number:05d}" for number in range(len(self._pictures)))

    def read(self, name: str) -> bytes:
        return self._codec.restore(self._pictures[int(name.removeprefix("heldout-"))])

    def load(self, name: str) -> Image.Image:
        return cast(PictureCodec, self._codec).open(self.read(name))  # `_pictures` refuses others

    def documents(self, codec: object, limit: int | None = None) -> Iterator[bytes]:
        if codec != self._codec:
            raise InputError(f"{printable(self.path)} was prepared with {self._codec}, and the run's codec is {codec}")
        return batches.documents(self.path, "heldout", limit)

    @functools.cached_property
    def _codec(self) -> Codec:
        return CODECS.of(records.read_manifest(self.path)["config"])

    @functools.cached_property
    def _pictures(self) -> list[bytes]:
        """The documents, of a codec of pictures."""
        if self._codec.fps:
            raise InputError(f"{printable(self.path)} holds prepared {self._codec.item}s, and pictures are needed")
        return list(self.documents(self._codec))
