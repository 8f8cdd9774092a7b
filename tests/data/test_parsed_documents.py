"""No document is kept that the codec's own parser refuses, whatever an encoder wrote."""

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.errors import Refused
from jpeglm.data import sources
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.jpeg import JpegCodec
from tests.clips import FILMS, ffmpeg

FORMS = [AvcCodec(height=32, width=32, fps=5, frames=5, qp=37, strip_headers=strip) for strip in (False, True)]
WRONG = {  # what an encoder might do wrong
    "cut off": lambda document: document[:-2],
    "something after it": lambda document: document + b"\0\0\1\x41\x9a",
    "a byte lost": lambda document: document[:-40] + document[-39:],
    "a part twice": lambda document: document + document[-30:],
    "nothing": lambda document: b"",
    "another beginning": lambda document: b"\0" + document,
}


@pytest.fixture
def folder(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (48, 48, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "noise.png")
    ffmpeg("-i", FILMS / "bikes.mp4", "-t", 4, "-an", "-c", "copy", tmp_path / "film.mp4")
    return tmp_path


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_document_of_a_picture_is_refused(folder, monkeypatch, what, mode):
    codec, source = JpegCodec(height=32, width=32, mode=mode, quality=25), sources.open_anew(str(folder))
    [right, *_] = codec.items.documents(source, "noise.png", variants=2)
    monkeypatch.setattr(JpegCodec, "encode", lambda *_: WRONG[what](right))
    with pytest.raises(Refused, match="^not canonical: byte [0-9]+") as caught:
        codec.items.documents(source, "noise.png")
    assert caught.value.reason == "not canonical"


@pytest.mark.parametrize("codec", FORMS, ids=["whole", "stripped"])
def test_a_wrong_document_of_a_clip_is_refused_and_those_before_it_are_kept(folder, monkeypatch, codec):
    source = sources.open_anew(str(folder))
    right = codec.items.documents(source, "film.mp4", variants=2)
    assert len(right) == 3
    for what, wrong in WRONG.items():
        monkeypatch.setattr(AvcCodec, "encode", lambda *_, wrong=wrong: wrong(right[0]))
        with pytest.raises(Refused, match="^not canonical: "):
            print(what, codec.items.documents(source, "film.mp4")[:0])
    monkeypatch.setattr(AvcCodec, "encode", lambda *_: right[0])
    monkeypatch.setattr(AvcCodec, "encode_windows", lambda *_: iter([right[1], right[2][:-3]]))
    assert codec.items.documents(source, "film.mp4", variants=2) == right[:2]


def test_a_clip_that_does_not_restore_is_refused(folder, monkeypatch):
    source, codec = sources.open_anew(str(folder)), FORMS[1]
    right = codec.items.documents(source, "film.mp4")[0]
    monkeypatch.setattr(AvcCodec, "encode", lambda *_: right)
    monkeypatch.setattr(AvcCodec, "strip", lambda *_: b"another")
    with pytest.raises(Refused, match="not canonical: the restored file has another document"):
        codec.items.documents(source, "film.mp4")
