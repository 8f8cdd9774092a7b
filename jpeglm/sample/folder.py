"""The output folder of sampling. Finished samples are recognised by hashes; a second start makes the others again.

    OUT/NAME-sK.jpg     sample K of picture NAME, as the model wrote it; .h264 of clips
    OUT/samples.jsonl   the index: a line for each, written after its file
    OUT/settings.json   what all samples depend on besides their originals; where run and pictures were found
    OUT/grid.html       an overview
    OUT/films/          for clips, each sample as mp4 and animated WebP

A line has three hashes: of the settings, of the original document and of the file. A sample counts as done only if all
three match. It is made again if its line was cut off, or if its file is missing or altered. Samples of other settings,
weights or originals are never touched: the folder is refused.

Several parts of a job (jpeglm/core/parts.py) write one folder at the same time, each with an index of its own,
samples-K-of-N.jsonl. Every reader reads all of them, so that another number of parts may go on. A job of one process
gathers them in samples.jsonl.
"""

import glob
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging

from jpeglm.core import parts
from jpeglm.core.errors import InputError, printable, writing
from jpeglm.core.files import replacing, write_whole
from jpeglm.core.parts import ALONE, Part
from jpeglm.data.sources.listing import SAMPLES_LOG, SAMPLES_LOGS, SAMPLES_SETTINGS

LOG, SETTINGS, GRID, FILMS = SAMPLES_LOG, SAMPLES_SETTINGS, "grid.html", "films"
# Temporary files of `write_whole`, of this and older versions; the name of a sample, if it is of one.
_UNFINISHED = re.compile(r"\.(?:(.+-s\d+|sample-\d+)|samples(?:-\d+-of-\d+)?|settings|grid)(?:\.\w+)?\.(\d+|tmp)")


class Samples:
    """An open folder. The caller must hold `parts.owned` on it, calls `begin` before it adds samples.

    Attributes:
      out: the folder.
      done: names of whole samples -> SHA-256 of their original, None if there is none.
      num_valid: how many of them decode strictly.
    """

    def __init__(
        self, out: Path, extension: str, identity: Mapping[str, Any], about: Mapping[str, Any], part: Part = ALONE
    ):
        """Reads what is done; changes nothing.

        Args:
          out: the folder, which must exist.
          extension: of sample files.
          identity: everything that samples depend on besides their originals; JSON types.
          about: further entries of settings.json.
          part: which part of a job writes here.

        Raises:
          InputError: the folder has samples of other settings, or cannot be read.
        """
        self.out, self._extension, self._about, self._part = out, extension, about, part
        self._identity = json.loads(json.dumps(identity))
        self._digest = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        self._log = out / (LOG if part.is_alone else f"samples-{part.number}-of-{part.of}.jsonl")
        self._leftovers: dict[str, list[Path]] = {}
        self.done: dict[str, str | None] = {}
        self._files: dict[str, str] = {}  # hashes of the files of those that are done; until `begin`
        self.num_valid = 0
        with writing(out):
            self._check_settings()
            self._take(checks_files=True)
            lines = sum(log.read_bytes().count(b"\n") for log in self._logs())
        if len(self.done) < lines:
            logging.warning("%s: %d of %d samples are whole, others are made again", out, len(self.done), lines)

    def check_original(self, name: str, original: str | None) -> None:
        """Raises InputError if a sample of this name is done, and completes another original (by SHA-256)."""
        if self.done.get(name, original) != original:
            self._refuse(f"{printable(name)}, which completes another original than has that name now")

    def refuse_unasked(self, name: str) -> None:
        """Raises InputError: the folder has a sample that the job does not ask for."""
        self._refuse(f"{printable(name)}, and nothing of that name is asked now")

    def begin(self) -> None:
        """Cleans up after a kill or a disk error, and writes the settings and this part's index.

        Raises:
          InputError: another part has begun with other settings, or the folder cannot be written.
        """
        with writing(self.out), parts.serial(self.out, self._part):
            self._check_settings()
            self._remove_unfinished()
            settings = (json.dumps(self._identity | dict(self._about), indent=1) + "\n").encode()
            if self._part.is_alone or not _is(self.out / SETTINGS, settings):
                write_whole(self.out / SETTINGS, settings)
            if self._part.is_alone:
                self._mend(self._log, self._logs())
                for log in self._logs()[1:]:
                    log.unlink()
            else:  # the indexes of other parts of this job are theirs; nobody writes those of another number of parts
                for log in {
                    self._log,
                    *(log for log in self._logs() if not log.stem.endswith(f"-of-{self._part.of}")),
                }:
                    self._mend(log, [log])
            self._files.clear()

    def path(self, name: str) -> Path:
        """The path of a sample's file."""
        return self.out / f"{name}{self._extension}"

    def add(self, name: str, file: bytes, facts: Mapping[str, Any], original: str | None = None) -> None:
        """Writes the file of a sample, then its line.

        Args:
          name: of the sample.
          file: its content.
          facts: for its line; JSON types, among them "valid".
          original: SHA-256 of the document that it completes.

        Raises:
          InputError: the disk is full, or the folder cannot be written.
        """
        row = {"name": name, **facts, "original": original, "sha256": _sha256(file), "settings": self._digest}
        with writing(self.out):
            for leftover in self._leftovers.pop(name, []):
                leftover.unlink(missing_ok=True)
            for film in (self.out / FILMS).glob(f"{glob.escape(name)}.*"):  # of an earlier sample of this name
                film.unlink()
            write_whole(self.path(name), file)
            with open(self._log, "ab") as log:
                log.write(_line(row))
        self._count(row)

    def add_films(self, name: str, films: Mapping[str, bytes]) -> None:
        """Writes the films of a sample, by suffix, into a subfolder that readers of samples ignore."""
        with writing(self.out):
            (self.out / FILMS).mkdir(exist_ok=True)
            for suffix, content in films.items():
                write_whole(self.out / FILMS / f"{name}{suffix}", content)

    def has_films(self, name: str, suffixes: tuple[str, ...]) -> bool:
        return all((self.out / FILMS / f"{name}{suffix}").exists() for suffix in suffixes)

    def look_again(self) -> None:
        """Adds to `done` what other parts have written since."""
        if not self._part.is_alone:
            with writing(self.out):
                self._take(checks_files=False)

    def write_grid(self, page: str) -> Path:
        """Writes the overview and returns its path."""
        with writing(self.out), parts.serial(self.out, self._part):
            write_whole(self.out / GRID, page.encode())
        return self.out / GRID

    def _logs(self) -> list[Path]:
        """All indexes; this part's first."""
        found = sorted(name for name in os.listdir(self.out) if SAMPLES_LOGS.fullmatch(name))
        return sorted((self.out / name for name in found), key=lambda log: log != self._log)

    def _mend(self, log: Path, sources: Sequence[Path]) -> None:
        """Writes an index anew from the lines of others: those of whole samples, each once."""
        with replacing(log) as temporary, open(temporary, "wb") as mended:
            written: set[str] = set()
            for source in sources:
                for line, row in self._rows(source):
                    if self._files.get(row["name"]) == row["sha256"] and row["name"] not in written:
                        written.add(row["name"])
                        mended.write(line + b"\n")

    def _rows(self, log: Path) -> Iterator[tuple[bytes, dict[str, Any]]]:
        """The complete lines of an index without their ends, and the rows in them; one cut off is left out."""
        try:
            with open(log, "rb") as file:
                for line in file:
                    line = line.rstrip(b"\r\n")
                    if (row := _parsed(line)) and _is_row(row):
                        yield line, row
        except FileNotFoundError:
            return

    def _take(self, checks_files: bool) -> None:
        """Fills `done` from all indexes."""
        for log in self._logs():
            for _, row in self._rows(log):
                if row["settings"] != self._digest:
                    self._refuse("samples of other settings")
                if row["name"] not in self.done and (not checks_files or self._is_whole(row)):
                    self._count(row)
                    self._files[row["name"]] = row["sha256"]

    def _count(self, row: Mapping[str, Any]) -> None:
        self.num_valid += bool(row["valid"])
        self.done[row["name"]] = row["original"]

    def _check_settings(self) -> None:
        """Refuses the folder if it has other settings, or rows of an older version."""
        found = _parsed((self.out / SETTINGS).read_bytes()) if (self.out / SETTINGS).exists() else None
        has_log = any(log.stat().st_size for log in self._logs())
        if any("settings" not in row for log in self._logs() for _, row in self._rows(log)):
            self._refuse("samples of an older version, which kept no hashes of weights and pictures")
        if found and not has_log and not found.keys() & self._identity.keys():
            self._refuse("a settings.json of another program")
        if found and (has_log or not self._part.is_alone):
            for key, value in self._identity.items():
                if found.get(key) != value:
                    self._refuse(f"samples with {key}={found.get(key)}, now {value} is asked")

    def _refuse(self, what: str) -> None:
        raise InputError(f"{self.out} holds {what}: another --out")

    def _is_whole(self, row: Mapping[str, Any]) -> bool:
        try:
            return _sha256(self.path(row["name"]).read_bytes()) == row["sha256"]
        except FileNotFoundError:
            return False

    def _remove_unfinished(self) -> None:
        """Removes temporary files of killed commands. Another part may be writing a sample: that waits for `add`."""
        for folder in (self.out, self.out / FILMS):
            for name in os.listdir(folder) if folder.is_dir() else ():
                found = _UNFINISHED.fullmatch(name)
                if not found or not (folder / name).is_file():
                    continue
                if self._part.is_alone or not found[1]:  # what is of no sample is written by one part at a time
                    (folder / name).unlink(missing_ok=True)
                else:
                    self._leftovers.setdefault(found[1], []).append(folder / name)


def _is(path: Path, content: bytes) -> bool:
    return path.exists() and path.read_bytes() == content


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
