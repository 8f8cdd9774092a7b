"""What a folder of pictures may hold."""

import numpy as np
import pytest
from PIL import Image

from jpeglm.errors import InputError
from jpeglm.evals import images

COLOUR = np.random.default_rng(0).integers(0, 256, (6, 9, 3), dtype=np.uint8)


def test_pictures_are_found_recursively_in_the_order_of_their_relative_names(tmp_path):
    for name in ("b.png", "a/z.JPG", "a/b/c.png", "c.jpeg", "notes.txt", "a-.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    found = [path.relative_to(tmp_path).as_posix() for path in images.find(tmp_path)]
    assert found == ["a-.png", "a/b/c.png", "a/z.JPG", "b.png", "c.jpeg"]


def test_a_folder_without_pictures_and_no_folder_are_bad_input(tmp_path):
    with pytest.raises(InputError, match="holds no pictures"):
        images.find(tmp_path)
    with pytest.raises(InputError, match="no such folder"):
        images.find(tmp_path / "absent")


def test_colour_and_grey_pictures_are_read_exactly(tmp_path):
    Image.fromarray(COLOUR).save(tmp_path / "c.png")
    Image.fromarray(COLOUR[..., 0]).save(tmp_path / "g.png")
    np.testing.assert_array_equal(images.read(tmp_path / "c.png"), COLOUR, strict=True)
    np.testing.assert_array_equal(images.read(tmp_path / "g.png"), COLOUR[..., 0], strict=True)


def test_palettes_become_colour_and_exif_orientation_is_applied(tmp_path):
    palette = Image.fromarray(COLOUR).quantize(16)
    palette.save(tmp_path / "p.png")
    np.testing.assert_array_equal(images.read(tmp_path / "p.png"), np.asarray(palette.convert("RGB")))
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 270 degrees to view
    Image.fromarray(COLOUR).save(tmp_path / "e.png", exif=exif)
    np.testing.assert_array_equal(images.read(tmp_path / "e.png"), np.rot90(COLOUR, -1))


@pytest.mark.parametrize(
    ("name", "image"),
    [
        ("a.png", Image.fromarray(COLOUR).convert("RGBA")),
        ("a.png", Image.fromarray(COLOUR[..., 0]).convert("LA")),
        ("a.png", Image.fromarray(COLOUR[..., 0].astype(np.uint16) * 257)),
        ("a.tif", Image.fromarray(COLOUR[..., 0].astype(np.float32))),
    ],
    ids=["alpha", "grey alpha", "16 bit", "float"],
)
def test_pictures_without_one_right_meaning_are_refused_by_mode(tmp_path, name, image):
    image.save(tmp_path / name)
    with pytest.raises(InputError, match=f"{name}: mode {image.mode}"):
        images.read(tmp_path / name)


def test_animations_are_refused(tmp_path):
    frames = [Image.fromarray(np.roll(COLOUR, i, 0)) for i in range(3)]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    with pytest.raises(InputError, match="several frames"):
        images.read(tmp_path / "a.gif")


def test_broken_pictures_are_each_named_and_counted_and_end_in_an_error(tmp_path, caplog):
    for i in range(5):
        Image.fromarray(COLOUR).save(tmp_path / f"{i}.png")
    for i in (2, 4):
        data = (tmp_path / f"{i}.png").read_bytes()
        (tmp_path / f"{i}.png").write_bytes(data[: len(data) // 2])
    read = []
    with pytest.raises(InputError, match=r"2 of 5 pictures cannot be used, the first is .*2\.png"):
        read.extend(images.read_all(images.find(tmp_path)))
    assert len(read) == 2  # nothing is handed on after the first broken one
    assert [name in caplog.text for name in ("1.png", "2.png", "3.png", "4.png")] == [False, True, False, True]
