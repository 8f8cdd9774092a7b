"""A source in one file: each line of a .hex file is the file of a picture or clip, in hexadecimal digits."""

from collections.abc import Iterator
from typing import ClassVar

from jpeglm.core.errors import Refused
from jpeglm.data.sources.base import Files
from jpeglm.data.sources.listing import PassedOver, Rule
from jpeglm.data.sources.reading import naming, open_file


class HexLines(Files):
    suffixes: ClassVar[tuple[str, ...]] = (".hex",)

    def __init__(self, path: str):
        super().__init__(path)
        with naming(path, "file of hexadecimal digits"), open_file(path) as file:
            self._lines = file.read().decode("ascii").splitlines()

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        return map(str, range(len(self._lines)))

    def read(self, name: str) -> bytes:
        try:
            return bytes.fromhex(self._lines[int(name)])
        except ValueError as error:
            raise Refused("broken", str(error)) from error
