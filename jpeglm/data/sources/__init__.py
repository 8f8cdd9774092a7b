"""Where pictures come from, and how each kind of picture becomes the codec's size and mode.

A source lists names cheaply and loads one picture by name, in any process. `canonical` gives the picture that is
encoded, or raises `Refused` with a reason class (counted in the manifest) and a detail (listed beside the name).

| what is found | what becomes of it |
|---|---|
| EXIF orientation | applied |
| alpha, transparent palette entry or colour | over the background: white, black, or refused, "transparent" |
| 1 bit, palette, CMYK, YCbCr, HSV, RGBX | converted to RGB, then to the codec's mode |
| 12- and 16-bit grey | scaled to 255, rounded |
| 16 bits a colour channel | Pillow's reader keeps the high byte |
| colour profile | ignored |
| several pictures in one file: MPO, TIFF, PSD | the first |
| animated: GIF, WebP, APNG, AVIF and other moving formats | refused, "animated" |
| 32-bit integer (I), floating point (F), LAB | refused, "mode I", "mode F", "mode LAB" |
| more than `PIL.Image.MAX_IMAGE_PIXELS` (89 million pixels) | refused, "too large" |
| a file of more than 512 MiB, a progressive JPEG of more than 100 scans | refused, "too large" |
| metadata that is damaged or too large around a sound picture | ignored, see `metadata` |
| a layout that Pillow opens but misreads | read right, or refused, "layout": see the table in `layouts` |
| truncated or damaged, as far as its decoder notices | refused, "broken" |
| a wrong checksum of a PNG's chunk of pixels | refused, "broken" |
| an empty file, no picture, a format that no second reader checks (`_FORMATS`) | refused, "not a picture" |
| a pipe, socket, device with the name of a picture | refused, "not a regular file" |
| no permission, dangling link, gone since the folder was listed | refused, "unreadable" |
| a member of a zip or tar that is a link or a device, or has holes | refused, "not a regular file" |
| a member whose name is absolute or holds `..` | refused, "unsafe name" |
| an encrypted member of a zip, one compressed otherwise than by deflate | refused, "unreadable" |
| a member, a record of more than 512 MiB | refused, "too large" |
| a member that is damaged, or longer than its header says | refused, "broken" |
| a folder that cannot be listed, a file of pictures that is cut off | an error: how much is missing is not known |
| an archive with anything but zeros after its end, or in front of a zip: another archive, perhaps | an error |
| a folder with pictures and record files side by side, arrays that are not uint8 pictures | an error |

What a folder or an archive holds is decided before, by `listing`.

Then a centre crop to the codec's aspect and a bicubic, antialiased resize, as one step.

The limits keep a worker below 2 GB and a picture below a minute: decoders and conversions hold up to 16 bytes a pixel
beside the file, and each 14 bytes of a progressive JPEG can be a scan that passes over all pixels again.

Every source may be read by several threads at once, and each process opens its own.
"""

import abc
import contextlib
import functools
import io
import logging
import os
import re
import stat
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import InputError, Refused, printable
from jpeglm.data.sources import layouts, listing, metadata

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it tells at length of damage that becomes a refusal here
warnings.filterwarnings("ignore", module=r"PIL\.")  # so, too; around a call it would not be safe for threads

MOST_BYTES = 512 << 20  # of a file

_FIRST_OF_SEVERAL = ("MPO", "TIFF", "PSD")  # files of several pictures that are not a film
# What is opened; the layouts of each are compared with another reader. TGA has no signature, and so comes last.
_FORMATS = "JPEG PNG GIF WEBP AVIF BMP TIFF PPM JPEG2000 QOI PSD ICO PCX SGI SUN XPM TGA".split()
_REFUSED_MODES = ("I", "F", "LAB")
_MOST_SCANS = 100  # of a JPEG; encoders write about 10
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in a JPEG, without stuffed and fill bytes and RST
_LONGEST_DETAIL = 200  # characters
# EXIF orientation and what makes such a picture upright
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class Source(Protocol):
    """A set of pictures. `path` is what `open_source` was given."""

    path: str

    def names(self) -> Iterator[str]:
        """Names in an order that depends on the content alone."""

    def load(self, name: str) -> Image.Image:
        """Opens one picture, perhaps lazily; raises `Refused`."""


class Files(abc.ABC):
    """A source of files: pictures, or clips."""

    path: str

    @abc.abstractmethod
    def names(self, rule: listing.Rule | None = None, passed_over: listing.PassedOver | None = None) -> Iterator[str]:
        """Names in an order that depends on the content alone.

        Args:
          rule: what is looked for, where files have names of their own; pictures if None.
          passed_over: is told what is left out.
        """

    @abc.abstractmethod
    def read(self, name: str) -> bytes:
        """The bytes of one file; raises `Refused`."""

    def load(self, name: str) -> Image.Image:
        """Opens one file as a picture, lazily; raises `Refused`."""
        return open_picture(self.read(name))


class Named(Files):
    """Files with names that somebody gave them, in folders: `listing` says which of them are taken."""

    @abc.abstractmethod
    def start(self, name: str) -> bytes:
        """The first bytes of one file, at most `listing.START`; raises `Refused`."""

    @abc.abstractmethod
    def folders(self, passed_over: listing.PassedOver) -> Iterator[tuple[str, list[str]]]:
        """Each folder, "" the first, with the names of the files in it from the top on, none of them hidden."""

    def names(self, rule: listing.Rule | None = None, passed_over: listing.PassedOver | None = None) -> Iterator[str]:
        rule, passed_over = rule or listing.pictures(), passed_over or listing.PassedOver()
        of_samples = None  # the last folder of samples; those below it follow it
        for folder, names in self.folders(passed_over):
            if of_samples is not None and os.path.join(folder, "").startswith(os.path.join(of_samples, "")):
                sampled = set()  # films and the like
            else:
                sampled = listing.sampled(printable(os.path.join(self.path, folder).rstrip("/")), names, self.read)
                of_samples = folder if sampled is not None else None
            for name in names:
                if sampled is None:
                    is_taken, why = self._is_taken(name, rule)
                else:
                    is_taken, why = name in sampled, listing.NOT_A_SAMPLE
                if is_taken:
                    yield name
                else:
                    passed_over.add(name, why)

    def _is_taken(self, name: str, rule: listing.Rule) -> tuple[bool, str]:
        """Whether the rule takes a file, and why it cannot tell."""
        try:
            return rule.takes(name, self.start), ""
        except Refused as refusal:
            return False, refusal.reason


class Folder(Named):
    """The files below a folder, by relative name; sorted within each folder."""

    def __init__(self, path: str):
        if not os.path.isdir(path):
            raise InputError(f"no such folder: {printable(path)}")
        self.path = path

    def folders(self, passed_over: listing.PassedOver) -> Iterator[tuple[str, list[str]]]:
        pending, listed = [""], set()
        while pending:
            folder = pending.pop()
            files, inside = [], []
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
        """Whether a folder is among those that have been listed, and counts it among them."""
        try:
            status = os.stat(os.path.join(self.path, folder))
        except OSError as error:
            raise InputError(f"cannot list {printable(os.path.join(self.path, folder))}: {error.strerror}") from error
        known = (status.st_dev, status.st_ino) in listed
        listed.add((status.st_dev, status.st_ino))
        return known

    def _leads_back(self, link: str) -> bool:
        """Whether a linked folder holds this one, or lies in it where it is listed without the link."""
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
        return [(os.path.join(folder, name), *kind) for name, *kind in found]

    def stills(self, folder: str) -> list[str]:
        """The frames that lie in one folder of a clip, by name from the top on; raises `Refused`."""
        try:
            entries = self._entries(folder)
        except InputError as error:
            raise Refused("unreadable", str(error)) from error
        rule = listing.films_and_frames()
        names = [name for name, is_folder, _ in entries if not is_folder]
        samples = listing.sampled(printable(os.path.join(self.path, folder)), names, self.read)
        if samples is not None:
            names = [name for name in names if name in samples]
        return [
            name
            for name in names
            if not listing.is_hidden(os.path.basename(name))
            and self._is_taken(name, rule)[0]
            and listing.is_frame(name, self.start)
        ]

    def start(self, name: str) -> bytes:
        return read_file(os.path.join(self.path, name), listing.START)

    def read(self, name: str) -> bytes:
        return read_file(os.path.join(self.path, name))


class EmbeddedMnist:
    """10,000 MNIST digits with 2 black pixels around each: 32x32 greyscale (see MNIST_LICENSE.txt)."""

    path = "embedded:mnist"

    def __init__(self):
        with np.load(Path(__file__).parent / "mnist10k.npz") as file:
            self._images = np.pad(file["images"], ((0, 0), (2, 2), (2, 2)))  # uint8 [10000, 32, 32]
            self._labels = file["labels"]  # uint8 [10000]

    def names(self) -> Iterator[str]:
        return (f"{index:05d}-digit{label}" for index, label in enumerate(self._labels))

    def load(self, name: str) -> Image.Image:
        return Image.fromarray(self._images[int(name[:5])])


class TfdsDataset(Files):
    """The pictures of a TensorFlow Datasets dataset that lies prepared in TFDS_DATA_DIR in the array_record format.

    They are read as they are stored (`SkipDecoding`), so the rules above hold for them; TensorFlow is not needed.
    """

    def __init__(self, path: str):
        """`path`: tfds:NAME or tfds:NAME:SPLIT, where NAME may be name/config and SPLIT is "train" by default."""
        import tensorflow_datasets as tfds  # only here: the import takes about a second

        self.path = path
        _, name, *split = path.split(":", 2)
        try:
            builder = tfds.builder(name)
            images = [key for key, kind in builder.info.features.items() if type(kind) is tfds.features.Image]
            if len(images) != 1:
                raise InputError(f"{path} has {len(images)} features that are pictures, not one")
            self._image = images[0]
            as_stored = {self._image: tfds.decode.SkipDecoding()}
            self._data = builder.as_data_source(split[0] if split else "train", decoders=as_stored)
        except InputError:
            raise
        except Exception as error:  # anything from a wrong name to a dataset in another format
            reason = str(error).strip().partition("\n")[0]
            raise InputError(f"cannot read {path} (it must lie prepared in TFDS_DATA_DIR): {reason}") from error

    def names(self, rule: listing.Rule | None = None, passed_over: listing.PassedOver | None = None) -> Iterator[str]:
        return (f"{index:09d}" for index in range(len(self._data)))

    def read(self, name: str) -> bytes:
        return self._data[int(name)][self._image]


@functools.lru_cache(maxsize=1)
def open_source(path: str) -> Source:
    """`open_anew`, once a process for as long as it asks for the same path."""
    return open_anew(path)


def open_anew(path: str) -> Source:
    """The source that `path` names.

    | path | source |
    |---|---|
    | `embedded:mnist` | 10,000 digits |
    | `tfds:NAME[:SPLIT]` | a dataset of TensorFlow Datasets |
    | a folder | the files below it, by the rule of `listing`; or the records of all `*.array_record` files in it |
    | `*.zip`, `*.tar`, `*.tar.gz`, `*.tgz`, `*.tar.bz2`, `*.tbz2`, `*.tar.xz`, `*.txz` | the members, likewise |
    | `*.array_record` | the records, each the bytes of a picture file |
    | `*.npz`, `*.npy`, `*.npz:NAME` | one array of pictures, uint8 [n, h, w], [n, h, w, 1] or [n, h, w, 3] |

    Suffixes may be in capitals.

    Raises:
      InputError: there is no such source, or it is damaged.
    """
    if path == EmbeddedMnist.path:
        return EmbeddedMnist()
    if path.startswith("tfds:"):
        return TfdsDataset(path)
    from jpeglm.data.sources import archives  # it is built on this module

    if os.path.isdir(path):
        return archives.ArrayRecords(path) if archives.holds_records(path) else Folder(path)
    kind = archives.kind_of(path)
    if kind is None and os.path.exists(path):
        raise InputError(
            f"{printable(path)}: neither a folder nor a file of a kind that holds pictures ({archives.KINDS})"
        )
    return (kind or Folder)(path)


def read_file(path: str | os.PathLike, size: int | None = None) -> bytes:
    """The content of a regular file, or its first `size` bytes; raises `Refused` for anything else, without waiting.

    It is read whole: decoders that map a file into memory die when somebody shortens it meanwhile.
    """
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):  # before opening: to open a device can have effects
            raise Refused("not a regular file", "a folder, pipe, socket or device")
        with open(path, "rb", opener=_without_waiting) as file:
            status = os.fstat(file.fileno())
            if not stat.S_ISREG(status.st_mode):
                raise Refused("not a regular file", "it was replaced by a pipe, socket or device")
            if size is None and status.st_size > MOST_BYTES:
                raise Refused("too large", f"a file of {status.st_size >> 20} MiB")
            return file.read(status.st_size if size is None else size)
    except OSError as error:
        raise Refused("unreadable", error.strerror) from error


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link in a circle, or into a folder that is closed: whoever reads it says so
        return False


def _without_waiting(path: str, mode: int) -> int:
    return os.open(path, mode | os.O_NONBLOCK)


def open_picture(data: bytes) -> Image.Image:
    """Opens a picture file lazily; raises `Refused`. `to_canonical` looks at its pixels, and so at most damage."""
    if not data:
        raise Refused("not a picture", "the file is empty")
    with refusing():
        data = metadata.checked(data)
        try:
            image = _opened(data)
        except UnidentifiedImageError as error:
            raise Refused("not a picture", "no format that is read here") from error
        _check_size(image)
        if image.format in ("JPEG", "MPO") and _num_scans(data) > _MOST_SCANS:
            raise Refused("too large", f"a JPEG of more than {_MOST_SCANS} scans")
        if inner := layouts.png_inside(image, data):
            return open_picture(inner)
        return layouts.right(image, data)


def _opened(data: bytes) -> Image.Image:
    """Opens a file as it is, or else without its metadata."""
    try:
        return Image.open(io.BytesIO(data), formats=_FORMATS)
    except Exception:
        stripped = metadata.stripped(data)
        if stripped == data:
            raise
        return Image.open(io.BytesIO(stripped), formats=_FORMATS)


@contextlib.contextmanager
def refusing() -> Iterator[None]:
    """Inside, what a reader or decoder raises becomes `Refused`: on a damaged file they raise nearly everything."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        raise _refusal(error) from error


def load_pixels(image: Image.Image) -> None:
    """Decodes what `open_picture` opened; raises `Refused`."""
    with refusing():
        image.load()
        layouts.check_palette(image)
    _check_size(image)  # again: an icon's header need not tell the size of the picture inside


def _check_size(image: Image.Image) -> None:
    """Pillow itself only warns of more than MAX_IMAGE_PIXELS, and raises from twice as much."""
    if image.width * image.height > Image.MAX_IMAGE_PIXELS:
        raise Refused("too large", f"{image.width}x{image.height} pixels")


def _num_scans(data: bytes) -> int:
    """Number of scans of a JPEG's first picture, or `_MOST_SCANS` + 1 where there are more."""
    scans = end = 0
    while scans <= _MOST_SCANS and (found := _MARKER.search(data, end)):
        marker, end = found.group()[1], found.end()
        if marker == 0xD9:  # EOI
            break
        scans += marker == 0xDA  # SOS
        if marker != 0xD8:  # SOI; all others have a length
            end += int.from_bytes(data[end : end + 2])
    return scans


def _refusal(error: Exception) -> Refused:
    """What an exception of Pillow means for the picture."""
    text = printable(" ".join(str(error).split()))[:_LONGEST_DETAIL]
    if isinstance(error, Image.DecompressionBombError | Image.DecompressionBombWarning):
        return Refused("too large", text)
    if isinstance(error, MemoryError):
        return Refused("too large", "not enough memory to decode it")
    return Refused("broken", f"{type(error).__name__}: {text}")


def canonical(
    source: Source, name: str, height: int, width: int, mode: str, background: str = DEFAULT_BACKGROUND
) -> Image.Image:
    """One picture of a source in the codec's size and mode, by the table above. Raises `Refused`."""
    with source.load(name) as image:
        return to_canonical(image, height, width, mode, background)


def to_canonical(
    image: Image.Image, height: int, width: int, mode: str, background: str = DEFAULT_BACKGROUND
) -> Image.Image:
    """A Pillow image in the codec's size and mode ("L" or "RGB"), by the table above. Raises `Refused`."""
    image = upright(image, background)
    with refusing():
        return ImageOps.fit(_converted(image, mode), (width, height), method=Image.Resampling.BICUBIC)


def upright(image: Image.Image, background: str = DEFAULT_BACKGROUND) -> Image.Image:
    """A Pillow image in its own size, of mode "L" or "RGB", by the table above. Raises `Refused`."""
    with refusing():
        if image.format not in _FIRST_OF_SEVERAL and getattr(image, "is_animated", False):
            raise Refused("animated", f"{image.format} of {image.n_frames} frames")
        # 16-bit grey: Pillow's own modes for it, and mode I where the format has no more than 16 bits
        is_wide_grey = image.mode.startswith("I;16") or (image.mode == "I" and image.format == "PPM")
        if image.mode in _REFUSED_MODES and not is_wide_grey:
            raise Refused(f"mode {image.mode}", f"{image.format} picture of {image.size[0]}x{image.size[1]}")
        load_pixels(image)
        turn = _TURNS.get(_orientation(image))
        if is_wide_grey:
            image = _eight_bit(image)
        if turn is not None:
            image = image.transpose(turn)
        image = on_background(image, background)
        return image if image.mode in ("L", "RGB") else image.convert("RGB")


def on_background(image: Image.Image, background: str) -> Image.Image:
    """A decoded picture with nothing transparent in it; the same image where it can hold nothing transparent.

    Args:
      image: of up to 8 bits a channel.
      background: one of `config.BACKGROUNDS`.

    Raises:
      Refused: some of its pixels are transparent, and `background` is "refuse".
    """
    if not image.has_transparency_data:
        return image
    if image.mode == "La":  # grey multiplied by its alpha, which Pillow makes RGBA of in two steps alone
        image = image.convert("LA")
    image = _converted(image, "RGBA")
    if background == "refuse":
        if image.getchannel("A").getextrema() != (255, 255):
            raise Refused("transparent", "some of its pixels are, and the background is to refuse them")
        return image
    return Image.alpha_composite(Image.new("RGBA", image.size, background), image)


def _converted(image: Image.Image, mode: str) -> Image.Image:
    """Pillow's `convert` without the copy that it makes of a picture in the right mode."""
    return image if image.mode == mode else image.convert(mode)


def _orientation(image: Image.Image) -> int | None:
    try:
        return image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # readers raise nearly everything on damaged metadata
        return None


def _eight_bit(image: Image.Image) -> Image.Image:
    """16-bit grey to 8 bits; a value that the file names as transparent becomes an alpha channel."""
    wide = np.asarray(image, np.int32)
    black, white = layouts.grey_range(image)
    steps = abs(white - black)
    scaled = np.abs(wide - black)
    scaled *= 255  # in place: a picture may have 89 million pixels
    scaled += steps // 2
    scaled //= steps
    grey = Image.fromarray(scaled.astype(np.uint8))
    if "transparency" in image.info:
        opaque = wide != image.info["transparency"]
        grey.putalpha(Image.fromarray(opaque.astype(np.uint8) * 255))
    return grey
