"""Pictures for people: strips of frames, grids, animations, and a page with them."""

import base64
import html
import io
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

GAP = 2  # pixels between the pictures of a grid and the frames of a strip
_WIDE_GAP = 10  # between the given frames and those that follow
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


def strip(frames: np.ndarray, kept: int) -> Image.Image:
    """Frames uint8 [n, height, width, 3] side by side, with a wider gap after the first `kept`."""
    count, height, width, _ = frames.shape
    wider = _WIDE_GAP - GAP if 0 < kept < count else 0
    sheet = Image.new("RGB", (count * (width + GAP) - GAP + wider, height), "white")
    for number, frame in enumerate(frames):
        sheet.paste(Image.fromarray(frame), (number * (width + GAP) + (wider if number >= kept else 0), 0))
    return sheet


def grid(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """One picture made of rows of pictures of equal size."""
    width, height = rows[0][0].size
    across, down = max(map(len, rows)), len(rows)
    sheet = Image.new(rows[0][0].mode, (across * (width + GAP) - GAP, down * (height + GAP) - GAP), "white")
    for y, row in enumerate(rows):
        for x, picture in enumerate(row):
            sheet.paste(picture, (x * (width + GAP), y * (height + GAP)))
    return sheet


def page(title: str, caption: str, sheet: Image.Image, moving: Mapping[str, bytes]) -> str:
    """A self-contained HTML page: a picture and, below it, animated WebP files by their captions."""
    pictures = [f'<p><img alt="overview" src="{data_url("image/png", png(sheet))}"></p>']
    for name, animated in moving.items():
        picture = f'<img alt="" src="{data_url("image/webp", animated)}">'
        pictures.append(f"<figure>{picture}<figcaption>{html.escape(name)}</figcaption></figure>")
    return _PAGE.format(title=html.escape(title), caption=html.escape(caption), body="\n".join(pictures))


def data_url(kind: str, content: bytes) -> str:
    """Content of a MIME type as a data URL."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def png(image: Image.Image) -> bytes:
    """The file of a picture."""
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def animation(frames: np.ndarray, fps: int) -> bytes:
    """Frames uint8 [n, height, width, 3] as an endless animated WebP."""
    first, *others = map(Image.fromarray, frames)
    file = io.BytesIO()
    first.save(file, "WEBP", save_all=True, append_images=others, duration=round(1000 / fps), loop=0, quality=90)
    return file.getvalue()
