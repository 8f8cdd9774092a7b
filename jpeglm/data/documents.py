"""From the items of a source to documents, whatever the codec: the one place that knows pictures from clips.

An item is a picture, or a clip; `listing` says which files are. Clips are files; beside them, a folder with pictures
in it (but for gif, webp and apng, which are clips) is one clip. Its frames are all the pictures that lie in it
directly, in the order of their names, numbers in them compared as numbers, `codec.fps` of them a second; each becomes
RGB by the rules of `sources`.

A clip is the first frames of its film, as many as the codec has. Its variants are later windows, which begin at frame
`stride`, 2 * `stride`, ... of the film at the codec's rate, up to the film's end. They lie in memory until the film is
done, and ffmpeg has five minutes for it: of hours of film, cut scenes first.
"""

import hashlib
import os
import re
from collections.abc import Container, Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from jpeglm import codecs
from jpeglm.codecs import Codec, ffmpeg
from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import augment, listing, shards, sources
from jpeglm.data.sources import Files, Folder, Source
from jpeglm.errors import InputError, Refused, printable


def check_variants(codec: Codec, data: Mapping[str, Any]) -> None:
    """`InputError` if a config's `data` section asks for variants or a background that the codec does not have."""
    if data["stride"] and not isinstance(codec, AvcCodec):
        raise InputError(f"data.stride={data['stride']}: windows are cut from clips alone; for pictures it is 0")
    if data["background"] != sources.DEFAULT_BACKGROUND and isinstance(codec, AvcCodec):
        raise InputError(
            f"data.background={data['background']}: transparent clips are put over {sources.DEFAULT_BACKGROUND} alone"
        )


def check(source: Source, codec: Codec) -> None:
    """`InputError` if the source cannot hold what the codec encodes."""
    if shards.is_prepared(source.path):
        raise InputError(f"{printable(source.path)} holds prepared data: documents, and no {codec.item}s to encode")
    if isinstance(codec, AvcCodec):
        if not isinstance(source, Files):
            raise InputError(f"{source.path} holds pixels, and the codec avc reads files of clips")
        try:
            codec.header  # noqa: B018  a trial: without ffmpeg or its x264, every clip would be refused
        except ffmpeg.FfmpegError as error:
            raise InputError(f"ffmpeg cannot encode: {error}") from error


def items_a_minute(codec: Codec, variants: int) -> int:
    """How many items one core encodes in about a minute, but no fewer than 16: each unit of them is three files."""
    # ffmpeg takes a tenth of a second for a window.
    return max(16, 512 // (1 + variants)) if isinstance(codec, AvcCodec) else 1024


def names(source: Source, codec: Codec, passed_over: listing.PassedOver | None = None) -> Iterator[str]:
    """The names of a source's items, in an order that depends on the content alone; a folder's ends with a slash.

    `passed_over` is told what else there is.
    """
    if not isinstance(source, Files):
        yield from source.names()
    elif not isinstance(codec, AvcCodec):
        yield from source.names(listing.pictures(), passed_over)
    elif not isinstance(source, Folder):
        yield from source.names(listing.films_and_png(), passed_over)
    else:
        clip = None
        for name in source.names(listing.films_and_frames(), passed_over):  # the files of one folder follow each other
            if not listing.is_frame(name, source.start):
                yield name
            elif (folder := os.path.join(os.path.dirname(name), "")) != clip:
                clip = folder
                yield clip or "./"


def read(
    path: str, codec: Codec, limit: int | None = None, background: str = sources.DEFAULT_BACKGROUND
) -> dict[str, bytes]:
    """The canonical documents of a set of pictures or clips, by names that are good as those of files.

    Args:
      path: what `sources.open_source` understands; or what `jpeglm.prepare` wrote, whose held-out documents they are.
      codec: of the documents.
      limit: at most so many.
      background: of transparent pictures, as the run's config says (`data.background`).

    Raises:
      InputError: there is none, or the documents are another codec's.
    """
    if shards.is_prepared(path):
        heldout = _heldout(path, codec, limit)
        return {f"heldout-{number:05d}": document for number, document in enumerate(heldout)}
    source, found, left_out, passed_over = sources.open_source(path), {}, 0, listing.PassedOver()
    check(source, codec)
    for name in names(source, codec, passed_over):
        if limit is not None and len(found) == limit:
            break
        try:
            document = of(source, name, codec, background=background)[0]
        except Refused as error:
            logging.warning("left out %s: %s", printable(name), error)
            left_out += 1
            continue
        found[_file_name(name, found)] = document
    if left_out:
        logging.warning("%d files left out, %d %ss read", left_out, len(found), codec.item)
    if passed_over.counts:
        logging.warning("%s: %d %ss read%s", printable(path), len(found), codec.item, passed_over.after("; "))
    if not found:
        raise InputError(f"{printable(path)} holds no {codec.item} that can be read{passed_over.after('; ')}")
    return found


def _heldout(path: str, codec: Codec, limit: int | None) -> Iterator[bytes]:
    """The held-out documents of a prepared folder; `InputError` if another codec than this made them."""
    from jpeglm.data import pipeline  # it is built on this module

    made_by = codecs.make(shards.read_manifest(path)["config"]["codec"])
    if made_by != codec:
        raise InputError(f"{printable(path)} was prepared with {made_by}, and the run's codec is {codec}")
    return pipeline.documents(path, "heldout", limit)


class HeldOut(Files):
    """The held-out pictures of a prepared folder, each an ordinary file."""

    def __init__(self, path: str):
        self.path = path
        self._codec = codecs.make(shards.read_manifest(path)["config"]["codec"])
        if isinstance(self._codec, AvcCodec):
            raise InputError(f"{printable(path)} holds prepared clips, and pictures are needed")
        self._documents = list(_heldout(path, self._codec, None))

    def names(self, rule: listing.Rule | None = None, passed_over: listing.PassedOver | None = None) -> Iterator[str]:
        return (f"heldout-{number:05d}" for number in range(len(self._documents)))

    def read(self, name: str) -> bytes:
        return self._codec.restore(self._documents[int(name.removeprefix("heldout-"))])


def _file_name(name: str, taken: Container[str]) -> str:
    """What the samples of an item are called: its name without slashes, or a hash where that would be no good name."""
    flat = name.rstrip("/").replace("/", "_")
    try:
        is_short = len(os.fsencode(flat)) <= 200
    except UnicodeEncodeError:  # in a locale without these characters
        is_short = False
    if is_short and not flat.startswith(".") and flat.isprintable() and flat not in taken:
        return flat
    chosen = "picture-" + hashlib.sha256(name.encode(errors="surrogateescape")).hexdigest()[:16]
    logging.info("%s is called %s here", printable(name), chosen)
    return chosen


def of(
    source: Source,
    name: str,
    codec: Codec,
    variants: int = 0,
    stride: int = 0,
    background: str = sources.DEFAULT_BACKGROUND,
) -> list[bytes]:
    """The document of an item, and behind it those of its variants. Each has passed the codec's strict parser.

    Raises `Refused`.

    Args:
      source: where `name` is from.
      name: one of `names`.
      codec: of the documents.
      variants: so many of a picture; of a clip at most so many.
      stride: frames from the beginning of one window of a clip to that of the next; 0: as many as a clip has.
      background: what transparent pictures are put over, one of `sources.BACKGROUNDS`; clips always over white.
    """
    if isinstance(codec, AvcCodec):
        windows, found = _windows(source, name, codec, 1 + variants, stride or codec.frames), []
        try:
            for window in windows:
                found.append(_checked(codec, window))
        except Refused as refusal:
            if not found:
                raise
            if refusal.reason != "short":  # which is the film's end
                logging.warning("%s: %d of its windows kept, then: %s", printable(name), len(found), refusal)
        return found
    image = sources.canonical(source, name, codec.height, codec.width, codec.mode, background)
    images = (augment.variant(image, number) if number else image for number in range(1 + variants))
    return [_checked(codec, codec.encode(image)) for image in images]


def _checked(codec: Codec, document: bytes) -> bytes:
    """The document, which the codec must parse and restore; raises `Refused`."""
    try:
        codec.parse(document)
        restored = codec.strip(codec.restore(document))
    except InputError as error:
        raise Refused("not canonical", str(error)) from error
    if restored != document:
        raise Refused("not canonical", "the restored file has another document")
    return document


def _windows(source: Source, name: str, codec: AvcCodec, count: int, stride: int) -> Iterator[bytes]:
    """The documents of a clip and of its later windows, `count` in all, unless `Refused` ends them."""
    if isinstance(source, Folder) and name.endswith("/"):
        for number in range(count):
            yield codec.encode_frames(_frames(source, name, codec, number * stride))
        return
    data = source.read(name)
    yield codec.encode(data)
    if count > 1:
        yield from codec.encode_windows(data, count - 1, stride)


def _frames(source: Folder, name: str, codec: AvcCodec, first: int) -> Iterator[np.ndarray]:
    """Frames of a folder, as many as a clip has, uint8 [height, width, 3]."""
    stills = sorted(source.stills(name), key=_by_number)[first:]
    if len(stills) < codec.frames:
        raise Refused("short", f"{len(stills)} of {codec.frames} frames")
    for still in stills[: codec.frames]:
        with source.load(still) as image:
            yield np.asarray(sources.upright(image).convert("RGB"))


def _by_number(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10; the name itself where numbers are equal."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", name)]
    return [*parts, (-2, name)]
