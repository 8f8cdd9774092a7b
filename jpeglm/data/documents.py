"""From the items of a source to documents, whatever the codec: the one place that knows pictures from clips.

An item is a picture, or a clip. Clips are files; beside them, a folder with still pictures in it (png, jpg, bmp, ppm,
tif) is one clip. Its frames are all the stills that lie in it directly, in the order of their names, numbers in them
compared as numbers, `codec.fps` of them a second; each becomes RGB by the rules of `sources`.

A clip is the first frames of its film, as many as the codec has. Its variants are later windows, which begin at frame
`stride`, 2 * `stride`, ... of the film at the codec's rate, up to the film's end. They lie in memory until the film is
done, and ffmpeg has five minutes for it: of hours of film, cut scenes first.
"""

import os
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from absl import logging

from jpeglm.codecs import Codec, ffmpeg
from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import augment, sources
from jpeglm.data.sources import Files, Folder, Source
from jpeglm.errors import InputError, Refused, printable

_STILLS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff")


def check_variants(codec: Codec, data: Mapping[str, Any]) -> None:
    """`InputError` if a config's `data` section asks for variants that the codec does not have."""
    if data["augment"] < 0:
        raise InputError(f"data.augment must be a number of variants from 0 on, not {data['augment']}")
    if data["stride"] < 0 or (data["stride"] and not isinstance(codec, AvcCodec)):
        raise InputError(f"data.stride={data['stride']}: frames between windows of clips, 0 or more; of pictures 0")


def check(source: Source, codec: Codec) -> None:
    """`InputError` if the source cannot hold what the codec encodes."""
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


def names(source: Source, codec: Codec) -> Iterator[str]:
    """The names of a source's items, in an order that depends on the content alone; a folder's ends with a slash."""
    if not (isinstance(codec, AvcCodec) and isinstance(source, Folder)):
        yield from source.names()
        return
    clip = None
    for name in source.names():  # the files of one folder follow each other
        if not name.lower().endswith(_STILLS):
            yield name
        elif (folder := os.path.join(os.path.dirname(name), "")) != clip:
            clip = folder
            yield clip or "./"


def of(source: Source, name: str, codec: Codec, variants: int = 0, stride: int = 0) -> list[bytes]:
    """The document of an item, and behind it those of its variants. Each has passed the codec's strict parser.

    Raises `Refused`.

    Args:
      source: where `name` is from.
      name: one of `names`.
      codec: of the documents.
      variants: so many of a picture; of a clip at most so many.
      stride: frames from the beginning of one window of a clip to that of the next; 0: as many as a clip has.
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
    image = sources.canonical(source, name, codec.height, codec.width, codec.mode)
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
    try:
        found = os.listdir(os.path.join(source.path, name))
    except OSError as error:
        raise Refused("unreadable", error.strerror) from error
    stills = sorted((still for still in found if still.lower().endswith(_STILLS)), key=_by_number)[first:]
    if len(stills) < codec.frames:
        raise Refused("short", f"{len(stills)} of {codec.frames} frames")
    for still in stills[: codec.frames]:
        with source.load(os.path.join(name, still)) as image:
            yield np.asarray(sources.upright(image).convert("RGB"))


def _by_number(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10; the name itself where numbers are equal."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", name)]
    return [*parts, (-2, name)]
