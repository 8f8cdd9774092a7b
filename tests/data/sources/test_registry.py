"""Sources from outside of the package: each is one file and one line in `SOURCES`, and every reader takes it."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image

from jpeglm.core.errors import InputError
from jpeglm.data import documents, sources
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.sources import open_anew
from jpeglm.data.sources.base import Source
from jpeglm.data.sources.listing import PassedOver, Rule
from jpeglm.fid import images
from jpeglm.prepare import plan
from tests.clips import ffmpeg
from tests.tiny_config import get_config

JPEG, CLIPS = JpegCodec(32, 32, "L", 25), AvcCodec(32, 32, 3, 5, 37, False)


class Greys(Source):
    """greys:N are N pictures of one grey each."""

    @classmethod
    def takes(cls, path: str) -> bool:
        return path.startswith("greys:")

    def names(self, rule: Rule | None = None, passed_over: PassedOver | None = None) -> Iterator[str]:
        return map(str, range(int(self.path.removeprefix("greys:"))))

    def load(self, name: str) -> Image.Image:
        return Image.new("L", (40, 40), 50 * int(name))


@pytest.fixture(autouse=True)
def registered() -> Iterator[None]:
    before = sources.SOURCES.copy()
    sources.SOURCES += [Greys, "tests.data.sources.hex_lines:HexLines"]
    yield
    sources.SOURCES[:] = before


def hex_lines(path, *files: bytes) -> str:
    path.write_text("".join(file.hex() + "\n" for file in files))
    return str(path)


def png(grey: int) -> bytes:
    file = io.BytesIO()
    Image.new("L", (40, 40), grey).save(file, "PNG")
    return file.getvalue()


def test_files_of_a_new_source_are_encoded_and_evaluated(tmp_path):
    path = hex_lines(tmp_path / "a.HEX", png(0), png(50), b"no picture")
    assert documents.read(path, JPEG) == documents.read("greys:2", JPEG)
    found = images.open_pictures(path)
    assert found.names == ["0", "1", "2"]
    np.testing.assert_array_equal(found[1], np.full((40, 40), 50, np.uint8))


def test_worker_processes_know_a_new_source(tmp_path):
    sources.SOURCES.remove(Greys)  # a class of this file, which other processes cannot import
    path = hex_lines(tmp_path / "a.hex", *map(png, range(0, 200, 5)))
    config = get_config()
    config.data.holdout = 4
    assert plan.prepare(config, path, tmp_path / "out", workers=2)["counts"]["kept"] == 40


def test_clips_of_a_new_source_are_those_of_a_folder(tmp_path):
    (tmp_path / "films").mkdir()
    ffmpeg("-f", "lavfi", "-i", "testsrc=s=32x32:r=3:d=2", tmp_path / "films" / "a.mp4")
    path = hex_lines(tmp_path / "a.hex", (tmp_path / "films" / "a.mp4").read_bytes())
    assert [*documents.read(path, CLIPS).values()] == [*documents.read(str(tmp_path / "films"), CLIPS).values()]


def test_a_source_of_pixels_has_no_clips():
    with pytest.raises(InputError, match="greys:2 holds pixels, and the codec avc reads files of clips"):
        documents.read("greys:2", CLIPS)


def test_what_is_no_source_is_told_with_the_suffixes_of_all(tmp_path):
    (tmp_path / "a.txt").touch()
    with pytest.raises(InputError, match=r"neither a folder nor a file of a kind .*\.zip, .*\.hex\)"):
        open_anew(str(tmp_path / "a.txt"))
    with pytest.raises(InputError, match="no such file: absent.hex"):
        open_anew("absent.hex")


def test_an_array_of_the_name_of_another_file_is_found(tmp_path):
    pixels = np.zeros((2, 8, 8), np.uint8)
    for name in ("b.zip", "c.tar", "d.array_record"):
        np.savez(tmp_path / "a.npz", **{name: pixels, "other": pixels})
        assert len(list(open_anew(f"{tmp_path}/a.npz:{name}").names())) == 2
