"""From the items of a source to documents, whatever the codec: the one place that knows pictures from clips.

An item is a picture, or a clip. Clips are files; beside them, a folder with still pictures in it (png, jpg, bmp, ppm,
tif) is one clip. Its frames are all the stills that lie in it directly, in the order of their names, numbers in them
compared as numbers, `codec.fps` of them a second; each becomes RGB by the rules of `sources`.
"""

import os
import re
from collections.abc import Iterator

import numpy as np

from jpeglm.codecs import Codec, ffmpeg
from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import augment, sources
from jpeglm.data.sources import Files, Folder, Source
from jpeglm.errors import InputError, Refused

_STILLS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff")


def check(source: Source, codec: Codec, variants: int) -> None:
    """`InputError` if the source cannot hold what the codec encodes, or the codec has no variants."""
    if isinstance(codec, AvcCodec):
        if not isinstance(source, Files):
            raise InputError(f"{source.path} holds pixels, and the codec avc reads files of clips")
        if variants:
            raise InputError("data.augment is for pictures: with the codec avc it must be 0")
        try:
            codec.header  # noqa: B018  a trial: without ffmpeg or its x264, every clip would be refused
        except ffmpeg.FfmpegError as error:
            raise InputError(f"ffmpeg cannot encode: {error}") from error


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


def of(source: Source, name: str, codec: Codec, variants: int = 0) -> list[bytes]:
    """The document of an item, and behind it those of so many variants of the picture. Raises `Refused`."""
    if isinstance(codec, AvcCodec):
        return [
            codec.encode_frames(_frames(source, name, codec))
            if isinstance(source, Folder) and name.endswith("/")
            else codec.encode(source.read(name))
        ]
    image = sources.canonical(source, name, codec.height, codec.width, codec.mode)
    return [codec.encode(augment.variant(image, number) if number else image) for number in range(1 + variants)]


def _frames(source: Folder, name: str, codec: AvcCodec) -> Iterator[np.ndarray]:
    """The first frames of a folder, as many as a clip has, uint8 [height, width, 3]."""
    try:
        found = os.listdir(os.path.join(source.path, name))
    except OSError as error:
        raise Refused("unreadable", error.strerror) from error
    stills = sorted((still for still in found if still.lower().endswith(_STILLS)), key=_by_number)
    if len(stills) < codec.frames:
        raise Refused("short", f"{len(stills)} of {codec.frames} frames")
    for still in stills[: codec.frames]:
        with source.load(os.path.join(name, still)) as image:
            yield np.asarray(sources.upright(image).convert("RGB"))


def _by_number(name: str) -> list[tuple[int, str]]:
    """frame2 before frame10; the name itself where numbers are equal."""
    parts = [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split("([0-9]+)", name)]
    return [*parts, (-2, name)]
