"""The common part of zip and tar: named members, which are never unpacked to files of these names.

Members are read by their offset. A member's name is only a label, so links, devices and paths that lead out of the
archive have no effect.
"""

import itertools
import os
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import Any

from jpeglm.core.errors import Refused
from jpeglm.data.sources import listing
from jpeglm.data.sources.base import Named
from jpeglm.data.sources.listing import PassedOver


class Archive(Named):
    """The members of an archive, by name; sorted like a folder."""

    _members: dict[str, Any]  # only files, by name; the last of each name
    _replaced: list[str]  # names of members that a later one replaces

    def folders(self, passed_over: PassedOver) -> Iterator[tuple[str, list[str]]]:
        for name in self._replaced:
            passed_over.add(name, listing.REPLACED)
        hidden: dict[str, None] = {}
        shown: list[str] = []
        for name in listing.sorted_as_in_folders(self._members):
            if (part := listing.hidden_part(name)) is not None:
                hidden[part] = None
            elif name:
                shown.append(name)
            else:
                passed_over.add(name, listing.NAMELESS)
        for part in hidden:
            passed_over.add(part, "hidden")
        for folder, names in itertools.groupby(shown, os.path.dirname):
            yield folder, list(names)


def by_name(members: Iterable[tuple[str, Any]]) -> tuple[dict[str, Any], list[str]]:
    """Members by name (the last of each name, as after unpacking in order); and the names of replaced ones."""
    by_name, replaced = {}, []
    for name, member in members:
        if name in by_name:
            replaced.append(name)
        by_name[name] = member
    return by_name, replaced


def refuse_unsafe(name: str) -> None:
    """Raises `Refused` for a member whose name is absolute or leads out of the archive."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts:
        raise Refused("unsafe name", "it leads out of the archive")
