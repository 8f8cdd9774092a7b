"""What a grammar of documents is: an automaton over bytes that a sampler walks, many files at once, on a device too.

A *place* is where a file stands in it: a pytree of integer and boolean arrays of one shape, [] or [n] or any other,
which only the grammar looks into.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

Place = Any  # a pytree of arrays; a new one is made by the grammar alone
Lookup = Any  # a pytree of arrays


class Grammar(Protocol):
    """All canonical documents of a codec, as an automaton over bytes.

    A file may begin with a header: places [header bytes], one before each byte that is the same in all files. There
    whole tokens are looked up instead of walked, since most of them can stand nowhere else.

    Attributes:
      start: place [] of an empty file.
      end: place [] of a whole one.
      header: places [header bytes], in their order; perhaps none.
    """

    start: Place
    end: Place
    header: Place

    def lookup(self, header: np.ndarray | None = None) -> Lookup:
        """The arrays that `step` and `distance` look up, to be put on a device.

        `header`: int32 [header bytes], what `distance` shall give for the places of the header, if not their bytes.
        """

    def step(self, at: Place, byte: Any, lookup: Lookup | None = None, xp: ModuleType = np) -> tuple[Place, Any]:
        """Reads a byte.

        Args:
          at: places.
          byte: 0 to 255, integers of a shape that broadcasts with the places'.
          lookup: of `lookup`; the grammar's own if None.
          xp: numpy, or jax.numpy to walk on a device.

        Returns:
          The next places, and whether each byte was legal; where it was not, the place is no file's.
        """

    def distance(self, at: Place, lookup: Lookup | None = None, xp: ModuleType = np) -> Any:
        """A number of bytes, int32, that is enough to end the file; some legal byte always leads to a smaller one.

        Arguments as of `step`.
        """

    def is_end(self, at: Place) -> Any:
        """Whether a file is whole at these places, bool."""

    def header_index(self, at: Place) -> Any:
        """Which place of `header` each place is, int32; negative for a place after it."""

    def is_possible(self, data: bytes) -> bool:
        """False only if these bytes can stand together nowhere after the header."""

    def walk(self, files: Sequence[bytes]) -> tuple[Place, np.ndarray]:
        """Reads beginnings of files, all at once.

        Returns:
          The place [n] after each, and how many of its bytes, int64 [n], are legal: where not all are, the place is
          the one before the first that is not.
        """

    def can_pack(self, longest: int) -> bool:
        """Whether `pack` has room for the places after `longest` bytes, or fewer."""

    def pack(self, place: Place, legal: Any, seen_from: Place, xp: ModuleType = np) -> Any:
        """Places in one int32 each, 0 or more, as far as they differ from places before them; -1 where not `legal`.

        One array instead of several: fewer kernels on a device.
        """

    def unpack(self, packed: Any, seen_from: Place) -> Place:
        """The places that `pack` packed; any place where that is negative."""
