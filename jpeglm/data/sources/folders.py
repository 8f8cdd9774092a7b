"""The files below a folder."""

import os
from collections.abc import Iterator

from jpeglm.core.errors import InputError, Refused, printable
from jpeglm.data.sources import listing, reading
from jpeglm.data.sources.base import Named
from jpeglm.data.sources.listing import PassedOver


class Folder(Named):
    """The files below a folder, by relative name; sorted within each folder."""

    @classmethod
    def takes(cls, path: str) -> bool:
        return os.path.isdir(path)

    def folders(self, passed_over: PassedOver) -> Iterator[tuple[str, list[str]]]:
        pending = [""]
        listed: set[tuple[int, int]] = set()
        while pending:
            folder = pending.pop()
            files: list[str] = []
            inside: list[str] = []
            if self._is_known(folder, listed):
                passed_over.add(folder + "/", listing.LINKED_FOLDER)
                continue
            for name, is_folder, is_link in self._entries(folder):
                if listing.is_hidden(os.path.basename(name)):
                    passed_over.add(name + "/" * is_folder, "hidden")
                elif is_folder and is_link and self._leads_back(name):
                    passed_over.add(name + "/", listing.LINKED_FOLDER)
                else:
                    (inside if is_folder else files).append(name)
            yield folder, files
            pending += inside[::-1]

    def _is_known(self, folder: str, listed: set[tuple[int, int]]) -> bool:
        """Whether a folder has been listed already; records it as listed."""
        try:
            status = os.stat(os.path.join(self.path, folder))
        except OSError as error:
            raise InputError(f"cannot list {printable(os.path.join(self.path, folder))}: {error.strerror}") from error
        known = (status.st_dev, status.st_ino) in listed
        listed.add((status.st_dev, status.st_ino))
        return known

    def _leads_back(self, link: str) -> bool:
        """Whether a linked folder contains this one, or is inside it and thus listed anyway."""
        top, target = os.path.realpath(self.path), os.path.realpath(os.path.join(self.path, link))
        if os.path.commonpath([top, target]) == target:
            return True
        inside = os.path.relpath(target, top)
        return os.path.commonpath([top, target]) == top and listing.hidden_part(inside) is None

    def _entries(self, folder: str) -> list[tuple[str, bool, bool]]:
        """What is in a folder, sorted: its path from the top on, whether it is or links to a folder, is a link."""
        try:
            with os.scandir(os.path.join(self.path, folder)) as entries:
                found = sorted((entry.name, _is_folder(entry), entry.is_symlink()) for entry in entries)
        except OSError as error:
            raise InputError(f"cannot list {printable(os.path.join(self.path, folder))}: {error.strerror}") from error
        return [(os.path.join(folder, name), is_folder, is_link) for name, is_folder, is_link in found]

    def clips(self, passed_over: PassedOver | None = None) -> Iterator[str]:
        """Films by name, and each folder with frames in it, whose name ends with a slash."""
        clip = None
        for name in self.names(listing.films_and_frames(), passed_over):  # files of one folder are consecutive
            if not listing.is_frame(name, self.start):
                yield name
            elif (folder := os.path.join(os.path.dirname(name), "")) != clip:
                clip = folder
                yield clip or "./"

    def stills(self, name: str) -> list[str] | None:
        if not name.endswith("/"):
            return None
        try:
            entries = self._entries(name)
        except InputError as error:
            raise Refused("unreadable", str(error)) from error
        rule = listing.films_and_frames()
        names = [entry for entry, is_folder, _ in entries if not is_folder]
        samples = listing.sampled(printable(os.path.join(self.path, name)), names, self.read)
        if samples is not None:
            names = [still for still in names if still in samples]
        return [
            still
            for still in names
            if not listing.is_hidden(os.path.basename(still))
            and self.is_taken(still, rule)[0]
            and listing.is_frame(still, self.start)
        ]

    def start(self, name: str) -> bytes:
        return reading.read_file(os.path.join(self.path, name), listing.START)

    def read(self, name: str) -> bytes:
        return reading.read_file(os.path.join(self.path, name))


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link loop, or no permission: reported when it is read
        return False
