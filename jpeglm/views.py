"""What can be seen of files, whole or not: pictures, strips of frames, films, and a page that holds them."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from jpeglm.codecs import Codec, ffmpeg
from jpeglm.codecs.avc import AvcCodec

GAP = 2  # pixels between the pictures of a grid and the frames of a strip
FILMS = (".mp4", ".webp")  # suffixes of what `films` makes
_WIDE_GAP = 10  # between the frames that were given and those that follow
_PAGE = """<!DOCTYPE html>
<meta charset="utf-8">
<title>{title}</title>
<style>
body {{ font-family: sans-serif; margin: 1em }}
img {{ image-rendering: pixelated; zoom: 2 }}
figure {{ display: inline-block; margin: 0 1em 1em 0 }}
</style>
<h1>{title}</h1>
<p>{caption}</p>
{body}
"""


def rows(codec: Codec, prompt: bytes, kept: int, files: Sequence[bytes], original: bytes) -> list[list[Image.Image]]:
    """The rows of a grid that show one prompt.

    Pictures stand in one row: prompt, completions, original. Clips have a row each: the original, then completions.

    Args:
      codec: of all files; they are ordinary ones, with tables and headers.
      prompt: the beginning that was given; `kept` units of the codec.
      files: what was made of it.
      original: what it was cut from.
    """
    if isinstance(codec, AvcCodec):
        return [[strip(codec.see(file), kept)] for file in (original, *files)]
    return [[codec.see(file) for file in (prompt, *files, original)]]


def tile(codec: Codec, file: bytes) -> Image.Image:
    """A picture, or a clip as the strip of its frames."""
    seen = codec.see(file)
    return strip(seen, 0) if isinstance(codec, AvcCodec) else seen


def strip(frames: np.ndarray, kept: int) -> Image.Image:
    """Frames uint8 [n, height, width, 3] side by side, with a wider gap behind the first `kept`."""
    count, height, width, _ = frames.shape
    wider = _WIDE_GAP - GAP if 0 < kept < count else 0
    sheet = Image.new("RGB", (count * (width + GAP) - GAP + wider, height), "white")
    for number, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (number * (width + GAP) + (wider if number >= kept else 0), 0))
    return sheet


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """One picture of rows of equally large ones."""
    width, height = rows[0][0].size
    across, down = max(map(len, rows)), len(rows)
    sheet = Image.new(rows[0][0].mode, (across * (width + GAP) - GAP, down * (height + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + GAP), y * (height + GAP)))
    return sheet


def page(title: str, caption: str, sheet: Image.Image, moving: Mapping[str, bytes]) -> str:
    """An HTML page that needs no other file: a picture and, below it, animated WebP files by what they are called."""
    pictures = [f'<p><img alt="overview" src="{data_url("image/png", png(sheet))}"></p>']
    for name, animated in moving.items():
        picture = f'<img alt="" src="{data_url("image/webp", animated)}">'
        pictures.append(f"<figure>{picture}<figcaption>{html.escape(name)}</figcaption></figure>")
    return _PAGE.format(title=html.escape(title), caption=html.escape(caption), body="\n".join(pictures))


def data_url(kind: str, content: bytes) -> str:
    """Content of a MIME type as an address that holds it."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(image: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def films(codec: Codec, file: bytes) -> dict[str, bytes]:
    """Files by suffix in which a clip moves, an mp4 and an animated WebP: what `codec.see` sees, encoded anew.

    A picture has none.
    """
    if not isinstance(codec, AvcCodec):
        return {}
    frames = codec.see(file)
    size = f"{codec.width}x{codec.height}"
    fine = ("-c:v", "libx264", "-crf", "12", "-pix_fmt", "yuv420p", "-movflags", "frag_keyframe+empty_moov")
    raw = ("-f", "rawvideo", "-pix_fmt", "rgb24", "-s", size, "-r", str(codec.fps))
    film, _ = ffmpeg.run(raw, frames.tobytes(), (*fine, "-f", "mp4"))
    return {".mp4": film, ".webp": animation(frames, codec.fps)}


def animation(frames: np.ndarray, fps: int) -> bytes:
    """Frames uint8 [n, height, width, 3] as an animated WebP without end."""
    first, *others = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=90)
    return file.getvalue()
