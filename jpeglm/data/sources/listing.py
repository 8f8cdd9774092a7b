"""Which files of a folder or an archive are taken and which are skipped: one rule for every command.

The first line that applies decides:

| a file or folder | becomes |
|---|---|
| hidden: its name begins with a dot, or is `__MACOSX`, `Thumbs.db`, `desktop.ini`, ... | passed over |
| below a hidden folder | passed over with the folder, which counts as one |
| linked folder that is listed anyway, or holds the folder it is found in (a loop) | passed over |
| any other linked folder | listed as if it stood there |
| beside or below `samples.jsonl`, or those of parts, and `settings.json` | taken if one of the former names it |
| a suffix of what is looked for, in any case | taken |
| another suffix, or none | taken if its first bytes are those of what is looked for |
| a member of an archive that a later one of the same name replaces | passed over |

A file that is taken but turns out not to be a picture or clip is refused by its reader. Files that are passed over are
counted by suffix or reason, and named. A file whose suffix decides is not opened.
"""

import collections
import dataclasses
import functools
import json
import posixpath
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from PIL import Image

from jpeglm.core.errors import InputError, printable
from jpeglm.core.registry import CODECS

START = 512  # bytes at the beginning of a file that are checked
LINKED_FOLDER, NOT_A_SAMPLE, REPLACED, NAMELESS = "linked", "no sample", "replaced", "without a name"
SAMPLES_LOG, SAMPLES_SETTINGS = "samples.jsonl", "settings.json"
SAMPLES_LOGS = re.compile(r"samples(?:-\d+-of-\d+)?\.jsonl")  # that of a job alone, and those of the parts of one

_SYSTEM = {
    *("__macosx", "thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "$recycle.bin"),
    "system volume information",
}
_NOT_DECODED = ("BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF")  # Pillow lists these but cannot decode them itself
_FILM_SUFFIXES = frozenset(
    ".3g2 .3gp .apng .asf .avi .f4v .flv .gif .m2ts .m4v .mkv .mov .mp4 .mpeg .mpg .mts .ogg .ogv .qt .ts .vob .webm "
    ".webp .wmv".split()
)
_FILM_STARTS = rb"""
    .{4}ftyp(?!avi[fs]|mi[af]|msf|hei|hev) | \x00.{3}(?:moov|mdat|wide|free|skip) | \x1a\x45\xdf\xa3
    | RIFF.{4}(?:AVI\x20|WEBP) | GIF8[79]a | \x47.{187}\x47.{187}\x47 | \x00\x00\x01\xba | OggS\x00 | FLV\x01
    | \x30\x26\xb2\x75\x8e\x66\xcf\x11
"""
_PICTURE_STARTS = rb"""
    \xff\xd8\xff | \x89PNG\r\n\x1a\n | GIF8[79]a | RIFF.{4}WEBP | BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\x00{3}
    | II[*+]\x00 | MM\x00[*+] | \x00{3}\x0cjP\x20\x20\r\n | \xff\x4f\xff\x51 | .{4}ftyp(?:avi[fs]|mif1|msf1) | qoif
    | 8BPS | P[1-6]\s+[#\d] | P[fF]\s+\d | DDS\x20\x7c | \x00\x00\x01\x00[^\x00]\x00 | \x01\xda[\x00\x01][\x01\x02]
    | \x59\xa6\x6a\x95 | icns
    | /\*\x20XPM\x20\*/ | SIMPLE\x20\x20=
"""
_MOST_NAMES = 100  # of names kept, of files passed over
_MOST_KINDS = 100


@dataclasses.dataclass(frozen=True)
class Rule:
    """The files to take: by `suffixes`, in lower case with dots, and by first bytes for other names."""

    suffixes: frozenset[str]
    starts: re.Pattern[bytes]

    def takes(self, name: str, start: Callable[[str], bytes]) -> bool:
        """Whether a file is taken; `start` returns the first bytes by name; called only if the suffix does not decide.

        Raises:
          Refused: `start` does.
        """
        return suffix_of(name) in self.suffixes or bool(self.starts.match(start(name)))


def _rule(suffixes: Collection[str], *starts: bytes) -> Rule:
    return Rule(frozenset(suffixes), re.compile(b"|".join(starts), re.DOTALL | re.VERBOSE))


@functools.cache
def pictures() -> Rule:
    """All that Pillow decodes here."""
    known = Image.registered_extensions()  # loads its readers, too
    formats = Image.OPEN.keys() - set(_NOT_DECODED) | {"MPO"}  # MPO is opened as a JPEG
    return _rule({suffix for suffix, name in known.items() if name in formats}, _PICTURE_STARTS)


@functools.cache
def films() -> Rule:
    """Files that are clips, including pictures of formats that are mostly animated; not PNG."""
    return _rule(_FILM_SUFFIXES, _FILM_STARTS)


@functools.cache
def films_and_frames() -> Rule:
    """For folders of pictures as clips: films and pictures. Anything that `films` takes is not a frame."""
    return _rule(_FILM_SUFFIXES | pictures().suffixes, _FILM_STARTS, _PICTURE_STARTS)


def is_frame(name: str, start: Callable[[str], bytes]) -> bool:
    """Whether a file that `films_and_frames` takes is a frame. `start` and errors as in `Rule.takes`."""
    suffix = suffix_of(name)
    if suffix in _FILM_SUFFIXES or suffix in pictures().suffixes:
        return suffix not in _FILM_SUFFIXES
    data = start(name)
    return bool(pictures().starts.match(data)) and not films().starts.match(data)


@functools.cache
def films_and_png() -> Rule:
    """For archives, where pictures side by side are not a clip: a PNG may be animated."""
    return _rule(_FILM_SUFFIXES | {".png"}, _FILM_STARTS, rb"\x89PNG\r\n\x1a\n")


class PassedOver:
    """Records the files that a listing skips.

    Attributes:
      counts: by suffix or reason.
      names: the first hundred.
    """

    def __init__(self, on_each: Callable[[str, str], object] = lambda name, why: None):
        """`on_each`: called with the name and the reason of each."""
        self.counts: collections.Counter[str] = collections.Counter()
        self.names: list[str] = []
        self._on_each = on_each

    def add(self, name: str, why: str = "") -> None:
        """Counts a file or a folder (name with a slash at the end); `why`: the reason, if not the suffix."""
        key = f"{why} {_suffix_in_words(name)}".strip() or "no suffix"
        if key not in self.counts and len(self.counts) >= _MOST_KINDS:
            key = "other"
        self.counts[key] += 1
        if len(self.names) < _MOST_NAMES:
            self.names.append(name)
        self._on_each(name, key)

    def to_json(self) -> dict[str, object]:
        return {"counts": dict(sorted(self.counts.items())), "names": self.names}

    def after(self, before: str) -> str:
        """`before` and a summary in words; "" if nothing was skipped."""
        if not self.counts:
            return ""
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.most_common(10))
        more = ", ..." if self.counts.total() > 3 else ""
        return f"{before}passed over: {kinds} ({', '.join(map(printable, self.names[:3]))}{more})"


def suffix_of(name: str) -> str:
    """The suffix of a file's name, in lower case with its dot; empty if there is none."""
    return posixpath.splitext(name)[1].lower()


def _suffix_in_words(name: str) -> str:
    """The suffix in words (numbers and long words after a dot do not count), or that it is a folder."""
    if name.endswith("/"):
        return "folder"
    suffix = suffix_of(name)
    return suffix if re.fullmatch(r"\.(?=.*[a-z])[a-z0-9_]{1,12}", suffix) else ""


def is_hidden(part: str) -> bool:
    """Whether a file or folder of this name (without its path) is skipped with everything in it."""
    return (part.startswith(".") and part not in (".", "..")) or part.lower() in _SYSTEM


def hidden_part(name: str) -> str | None:
    """The path up to its first hidden part; with a slash at the end if that is a folder."""
    parts = re.split(r"([/\\])", name)  # archives from Windows have both
    for place in range(0, len(parts), 2):
        if is_hidden(parts[place]):
            return "".join(parts[: place + 1]) + "/" * (place + 1 < len(parts))
    return None


def sampled(folder: str, names: Iterable[str], read: Callable[[str], bytes]) -> set[str] | None:
    """The samples in a folder that `jpeglm.sample` wrote; None for any other folder.

    Args:
      folder: for messages.
      names: paths of the files in it.
      read: returns the content of a file by its path.

    Raises:
      InputError: its log is damaged, or names a missing sample.
    """
    by_name = {posixpath.basename(name): name for name in names}
    logs = sorted(filter(SAMPLES_LOGS.fullmatch, by_name))
    if not logs or SAMPLES_SETTINGS not in by_name:
        return None
    suffixes = [CODECS.kind(name).extension for name in CODECS.names]
    found, missing = set(), []
    for sample in {name: None for log in logs for name in _logged(folder, log, read(by_name[log]))}:
        file = next((sample + suffix for suffix in suffixes if sample + suffix in by_name), None)
        if file is None:
            missing.append(sample)
        else:
            found.add(by_name[file])
    if missing:
        raise InputError(
            f"{folder}: {len(missing)} of {len(missing) + len(found)} samples in its {', '.join(logs)} are missing, "
            f"the first is {printable(missing[0])}"
        )
    return found


def _logged(folder: str, log: str, content: bytes) -> dict[str, None]:
    """The names in an index, each once, in order."""
    names: dict[str, None] = {}
    for number, line in enumerate(content.splitlines(), 1):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        name = row.get("name") if isinstance(row, Mapping) else None
        if not isinstance(name, str) or "/" in name or "\0" in name:
            raise InputError(
                f"{folder}: line {number} of {log} names no sample (cut off, or damaged): "
                "start the command that wrote it again, or remove that line"
            )
        names[name] = None
    return names


def sorted_as_in_folders(names: Iterable[str]) -> Sequence[str]:
    """The order of `folders.Folder`: in each folder its files come first, and each folder is followed by its own."""

    def key(name: str) -> list[tuple[bool, str]]:
        *folders, last = name.split("/")
        return [*((True, folder) for folder in folders), (False, last)]

    return sorted(names, key=key)
