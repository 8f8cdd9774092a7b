import numpy as np
import pytest
from PIL import Image

from jpeglm.data import augment
from tests.photographs import photographs


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_variants_are_the_picture_moved_a_little(mode):
    [picture] = photographs(1, 64, 96)
    picture = picture.convert(mode)
    pixels = np.asarray(picture, np.float64)
    variants = [np.asarray(augment.variant(picture, number), np.float64) for number in range(1, 9)]
    assert {variant.shape for variant in variants} == {pixels.shape}
    assert len({variant.tobytes() for variant in variants}) == 8
    middle = np.s_[16:48, 24:72]
    for variant in variants:
        assert abs(variant.mean() - pixels.mean()) < 15
        assert np.corrcoef(variant[middle].ravel(), pixels[middle].ravel())[0, 1] > 0.3


def test_a_variant_depends_on_picture_and_number_alone():
    one, other = photographs(2, 32, 32)
    first = augment.variant(one, 1).tobytes()
    augment.variant(other, 1)
    assert augment.variant(one, 1).tobytes() == first != augment.variant(one, 2).tobytes()


def test_edges_go_on_outwards():
    assert np.all(np.asarray(augment.variant(Image.new("L", (32, 32), 200), 1)) == 200)
    halves = np.repeat(np.repeat(np.uint8([[10, 240]]), 64, axis=0), 32, axis=1)
    moved = np.asarray(augment.variant(Image.fromarray(halves), 3))
    assert np.all(moved[:, :8] == 10) and np.all(moved[:, -8:] == 240)
