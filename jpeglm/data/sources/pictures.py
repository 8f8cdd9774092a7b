"""Converts every kind of picture file to a picture of the codec's size and mode.

`to_canonical` returns the picture to encode, or raises `Refused` with a reason, which is counted in the manifest,
and a detail, which is listed beside the name.

| input | result |
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
| a progressive JPEG of more than 100 scans | refused, "too large" |
| metadata that is damaged or too large around a sound picture | ignored, see `metadata` |
| a layout that Pillow opens but misreads | read right, or refused, "layout": see the table in `layouts` |
| truncated or damaged, as far as its decoder notices | refused, "broken" |
| a wrong checksum of a PNG's chunk of pixels | refused, "broken" |
| an empty file, no picture, a format that no second reader checks (`_FORMATS`) | refused, "not a picture" |

Then a centre crop to the codec's aspect and a bicubic, antialiased resize, as one step.

The limits keep a worker below 2 GB and a picture below a minute: decoders and conversions need up to 16 bytes per
pixel in addition to the file, and every 14 bytes of a progressive JPEG can be another scan over all pixels.
"""

import io
import logging
import re
import warnings

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from jpeglm.core.config import DEFAULT_BACKGROUND
from jpeglm.core.errors import Refused
from jpeglm.data.sources import layouts, metadata
from jpeglm.data.sources.reading import refusing

logging.getLogger("PIL").setLevel(logging.CRITICAL)  # it logs details of damage, which becomes a refusal here
warnings.filterwarnings("ignore", module=r"PIL\.")  # likewise; setting it around each call would not be thread-safe

_FIRST_OF_SEVERAL = ("MPO", "TIFF", "PSD")  # files of several pictures that are not a film
# The formats that are opened; the layouts of each are tested against another reader. TGA comes last, because it has no
# signature.
_FORMATS = "JPEG PNG GIF WEBP AVIF BMP TIFF PPM JPEG2000 QOI PSD ICO PCX SGI SUN XPM TGA".split()
_REFUSED_MODES = ("I", "F", "LAB")
_MOST_SCANS = 100  # of a JPEG; encoders write about 10
_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # in a JPEG, without stuffed and fill bytes and RST
# EXIF orientation and what makes such a picture upright
_TURNS: dict[int | None, Image.Transpose] = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(data: bytes) -> Image.Image:
    """Opens a picture file lazily; raises `Refused`. Most damage is found only when `to_canonical` decodes it."""
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


def load_pixels(image: Image.Image) -> None:
    """Decodes what `open_picture` opened; raises `Refused`."""
    with refusing():
        image.load()
        layouts.check_palette(image)
    _check_size(image)  # again: an icon's header may not give the size of the picture inside


def too_many(pixels: int) -> bool:
    """Whether a picture has too many pixels; Pillow itself only warns at this limit, and raises at twice as many."""
    return Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS


def _check_size(image: Image.Image) -> None:
    if too_many(image.width * image.height):
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
            raise Refused("animated", f"{image.format} of {getattr(image, 'n_frames', 0)} frames")
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
    """A decoded picture without transparency; the same image if its mode has none.

    Args:
      image: of up to 8 bits a channel.
      background: one of `config.BACKGROUNDS`.

    Raises:
      Refused: some of its pixels are transparent, and `background` is "refuse".
    """
    if not image.has_transparency_data:
        return image
    if image.mode == "La":  # premultiplied grey, which Pillow converts to RGBA only in two steps
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
    """16-bit grey to 8 bits; a value that the file marks as transparent becomes an alpha channel."""
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
