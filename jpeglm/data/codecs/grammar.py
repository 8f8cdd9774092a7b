"""The protocol of a grammar: an automaton over bytes that a sampler steps for many files at once, also on a device.

A *place* is the state of a file in it: a pytree of integer and boolean arrays of one shape, such as [] or [n], whose
meaning only the grammar knows.
"""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, Protocol

import numpy as np

Place = Any  # a pytree of arrays; only the grammar makes new ones
Lookup = Any  # a pytree of arrays


class Grammar(Protocol):
    """All canonical documents of a codec, as an automaton over bytes.

    A file may begin with a header: places [header bytes], one before each byte that all files share. There, whole
    tokens are looked up in a table instead of stepped byte by byte, because most of them occur nowhere else.

    Attributes:
      start: place [] of an empty file.
      end: place [] of a complete one.
      header: places [header bytes], in order; possibly none.
    """

    start: Place
    end: Place
    header: Place

    def lookup(self, header: np.ndarray | None = None) -> Lookup:
        """The arrays that `step` and `distance` use, to be put on a device.

        `header`: int32 [header bytes], the results of `distance` for the places of the header, if not in bytes.
        """

    def step(self, at: Place, byte: Any, lookup: Lookup | None = None, xp: ModuleType = np) -> tuple[Place, Any]:
        """Reads a byte.

        Args:
          at: places.
          byte: 0 to 255, integers of a shape that broadcasts with the places'.
          lookup: from `lookup`; the grammar's own if None.
          xp: numpy, or jax.numpy to run on a device.

        Returns:
          The next places, and whether each byte was legal; the place after an illegal byte is meaningless.
        """

    def distance(self, at: Place, lookup: Lookup | None = None, xp: ModuleType = np) -> Any:
        """A number of bytes, int32, that suffices to end the file; some legal byte always leads to a smaller one.

        Arguments as of `step`.
        """

    def is_end(self, at: Place) -> Any:
        """Whether a file is complete at these places, bool."""

    def header_index(self, at: Place) -> Any:
        """The index of each place in `header`, int32; negative for a place after it."""

    def is_possible(self, data: bytes) -> bool:
        """False only if these bytes can occur nowhere after the header."""

    def walk(self, files: Sequence[bytes]) -> tuple[Place, np.ndarray]:
        """Reads prefixes of files, all at once.

        Returns:
          The place [n] after each, and how many of its bytes, int64 [n], are legal. If not all are, the place is that
          before the first illegal byte.
        """

    def can_pack(self, longest: int) -> bool:
        """Whether `pack` can represent the places after up to `longest` bytes."""

    def pack(self, place: Place, legal: Any, seen_from: Place, xp: ModuleType = np) -> Any:
        """Packs each place, relative to an earlier place, into one int32 of at least 0; -1 where not `legal`.

        One array instead of several means fewer kernels on a device.
        """

    def unpack(self, packed: Any, seen_from: Place) -> Place:
        """The places that `pack` packed; arbitrary where the packed value is negative."""
