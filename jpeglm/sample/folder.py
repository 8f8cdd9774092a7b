"""The output folder of sampling. Finished samples are recognised by hashes; a second start makes the others again.

    OUT/NAME-sK.jpg     sample K of picture NAME, as the model wrote it; .h264 of clips
    OUT/samples.jsonl   a line for each, written after its file
    OUT/settings.json   what all samples depend on besides their originals; where run and pictures were found
    OUT/grid.html       an overview
    OUT/films/          for clips, each sample as mp4 and animated WebP

A line has three hashes: of the settings, of the original document and of the file. A sample counts as done only if all
three match. It is made again if its line was cut off, or if its file is missing or altered. Samples of other settings,
weights or originals are never touched: the folder is refused.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from absl import logging

from jpeglm.core.errors import InputError, printable, writing
from jpeglm.core.files import write_whole
from jpeglm.data.sources.listing import SAMPLES_LOG, SAMPLES_SETTINGS

LOG, SETTINGS, GRID, FILMS = SAMPLES_LOG, SAMPLES_SETTINGS, "grid.html", "films"
# Temporary files of `write_whole`, of this and older versions.
_UNFINISHED = re.compile(r"\.(?:.+-s\d+|sample-\d+|samples|settings|grid)(?:\.\w+)?\.(\d+|tmp)")


class Samples:
    """An open folder. The caller must hold `files.owned` on it."""

    def __init__(
        self,
        out: Path,
        extension: str,
        identity: Mapping[str, Any],
        about: Mapping[str, Any],
        wanted: Mapping[str, str | None],
    ):
        """Reads what is done, cleans up after a kill or a disk error, and writes the settings.

        Args:
          out: the folder, which must exist.
          extension: of sample files.
          identity: everything that samples depend on besides their originals; JSON types.
          about: further entries of settings.json.
          wanted: names of samples -> SHA-256 of their original, None if there is no original.

        Raises:
          InputError: the folder has samples of other settings or originals, or cannot be written.
        """
        self.out, self._extension, self._wanted = out, extension, wanted
        self._identity = json.loads(json.dumps(identity))
        self._digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        with writing(out):
            lines = (out / LOG).read_bytes().splitlines() if (out / LOG).exists() else []
            rows = self._checked([row for row in map(_parsed, lines) if row and _is_row(row)], bool(lines))
            self.rows = {name: row for name, row in rows.items() if self._is_whole(name, row)}
            if len(self.rows) < len(lines):
                logging.warning(
                    "%s: %d of %d samples are whole, others are made again", out, len(self.rows), len(lines)
                )
            self._remove_unfinished()
            write_whole(out / SETTINGS, (json.dumps(self._identity | dict(about), indent=1) + "\n").encode())
            write_whole(out / LOG, b"".join(map(_line, self.rows.values())))

    def path(self, name: str) -> Path:
        """The path of a sample's file."""
        return self.out / f"{name}{self._extension}"

    def add(self, name: str, file: bytes, facts: Mapping[str, Any]) -> None:
        """Writes the file of a sample, then its line.

        Raises:
          InputError: the disk is full, or the folder cannot be written.
        """
        hashes = {"original": self._wanted[name], "sha256": _sha256(file), "settings": self._digest}
        row = {"name": name} | dict(facts) | hashes
        with writing(self.out):
            for film in (self.out / FILMS).glob(f"{glob.escape(name)}.*"):  # of an earlier sample of this name
                film.unlink()
            write_whole(self.path(name), file)
            with open(self.out / LOG, "ab") as log:
                log.write(_line(row))
        self.rows[name] = row

    def add_films(self, name: str, films: Mapping[str, bytes]) -> None:
        """Writes the films of a sample, by suffix, into a subfolder that readers of samples ignore."""
        with writing(self.out):
            (self.out / FILMS).mkdir(exist_ok=True)
            for suffix, content in films.items():
                write_whole(self.out / FILMS / f"{name}{suffix}", content)

    def has_films(self, name: str, suffixes: tuple[str, ...]) -> bool:
        return all((self.out / FILMS / f"{name}{suffix}").exists() for suffix in suffixes)

    def write_grid(self, page: str) -> Path:
        """Writes the overview and returns its path."""
        with writing(self.out):
            write_whole(self.out / GRID, page.encode())
        return self.out / GRID

    def _checked(self, rows: list[dict[str, Any]], has_log: bool) -> dict[str, dict[str, Any]]:
        """The rows by name; refuses the folder unless all have these settings and originals."""
        found = _parsed((self.out / SETTINGS).read_bytes()) if (self.out / SETTINGS).exists() else None
        if any("settings" not in row for row in rows):
            self._refuse("samples of an older version, which kept no hashes of weights and pictures")
        if found and not has_log and not found.keys() & self._identity.keys():
            self._refuse("a settings.json of another program")
        if found and has_log:
            for key, value in self._identity.items():
                if found.get(key) != value:
                    self._refuse(f"samples with {key}={found.get(key)}, now {value} is asked")
        for row in rows:
            name = row["name"]
            if row["settings"] != self._digest:
                self._refuse("samples of other settings")
            if name not in self._wanted:
                self._refuse(f"{printable(name)}, and nothing of that name is asked now")
            if row["original"] != self._wanted[name]:
                self._refuse(f"{printable(name)}, which completes another original than has that name now")
        return {row["name"]: row for row in rows}

    def _refuse(self, what: str) -> None:
        raise InputError(f"{self.out} holds {what}: another --out")

    def _is_whole(self, name: str, row: Mapping[str, Any]) -> bool:
        try:
            return _sha256(self.path(name).read_bytes()) == row["sha256"]
        except FileNotFoundError:
            return False

    def _remove_unfinished(self) -> None:
        """Removes temporary files of killed commands; no other command writes here now."""
        for folder in (self.out, self.out / FILMS):
            for name in os.listdir(folder) if folder.is_dir() else ():
                if _UNFINISHED.fullmatch(name) and (folder / name).is_file():
                    (folder / name).unlink()


def _parsed(text: bytes) -> dict[str, Any] | None:
    """A JSON object, or None for anything else, such as a line that was cut off."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _is_row(found: Mapping[str, Any]) -> bool:
    """Whether an object is a complete line of the log: with all hashes, or with none (an older version)."""
    is_complete = found.keys() >= {"original", "sha256", "valid"}
    return isinstance(found.get("name"), str) and (is_complete or "settings" not in found)


def _line(row: Mapping[str, Any]) -> bytes:
    return json.dumps(row).encode() + b"\n"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
