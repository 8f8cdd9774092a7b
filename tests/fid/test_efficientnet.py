"""EfficientNet-Lite0 in JAX against the PyTorch package that the weights come with."""

import hashlib
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from PIL import Image

from jpeglm.core.errors import InputError
from jpeglm.core.weights.torch_file import load_state_dict
from jpeglm.fid.extractors import base, efficientnet, resize


@pytest.fixture(scope="module")
def extractor():
    return efficientnet.EfficientNetLite0()


@pytest.fixture(scope="module")
def pictures():
    """uint8 [6, 32, 32, 3]: noise, smooth noise, a gradient, black, white, blocks."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(noise[:5, :5]).resize((32, 32), Image.Resampling.BICUBIC))
    ramp = np.broadcast_to(np.arange(0, 256, 8, dtype=np.uint8)[:, None], (32, 32))
    gradient = np.stack([ramp, ramp.T, 255 - ramp], axis=-1)
    blocks = np.kron(rng.integers(0, 256, (4, 4, 3)), np.ones((8, 8, 1))).astype(np.uint8)
    return np.stack([noise, smooth, gradient, np.zeros_like(noise), np.full_like(noise, 255), blocks])


def torch_peer(size):
    from efficientnet_lite_pytorch import EfficientNet

    model = EfficientNet.from_name("efficientnet-lite0", image_size=size)
    model.load_state_dict(torch.load(efficientnet.weights_path()))
    return model.eval()


@pytest.mark.parametrize("size", [224, 129])
def test_features_equal_those_of_the_torch_peer(extractor, pictures, size):
    images = np.stack([resize.bicubic(picture, size) for picture in pictures])
    with torch.no_grad():
        normalised = torch.from_numpy((images.transpose(0, 3, 1, 2) - np.float32(127)) / np.float32(128))
        expected = torch_peer(size).extract_features(normalised).mean((2, 3)).numpy()
    found = efficientnet.EfficientNetLite0(size)(pictures) if size != 224 else extractor(pictures)
    assert found.shape == (6, 1280) and found.dtype == np.float32
    assert np.abs(found - expected).max() <= 1e-4 * np.abs(expected).max()
    for row, reference in zip(found, expected, strict=True):
        assert np.linalg.norm(row - reference) <= 1e-4 * np.linalg.norm(reference)


def test_the_logits_of_the_loaded_classifier_equal_those_of_the_torch_peer(extractor, pictures):
    images = np.stack([resize.bicubic(picture, 224) for picture in pictures])
    with torch.no_grad():
        expected = torch_peer(224)(torch.from_numpy((images.transpose(0, 3, 1, 2) - 127) / 128)).numpy()
    params = efficientnet.load(efficientnet.weights_path())
    kernel, bias = params["classifier"]
    logits = jax.jit(efficientnet.apply)(params, jnp.asarray(images)) @ kernel + bias
    np.testing.assert_allclose(logits, expected, atol=1e-4 * np.abs(expected).max())


def test_features_do_not_depend_on_neighbours_or_on_the_batch(extractor, pictures):
    whole = extractor(pictures)
    for i, picture in enumerate(pictures):
        np.testing.assert_array_equal(extractor([picture])[0], whole[i])
    assert extractor([]).shape == (0, 1280)


def test_a_grey_picture_has_the_features_of_its_three_equal_channels(extractor, pictures):
    grey = pictures[:2, :, :, 0]
    np.testing.assert_array_equal(extractor(grey), extractor(np.repeat(grey[..., None], 3, axis=-1)))


def test_pictures_of_several_sizes_go_through_together(extractor, pictures):
    other = pictures[0, :20, :30]
    mixed = extractor([pictures[0], other, pictures[1]])
    np.testing.assert_array_equal(mixed, np.concatenate([extractor([p]) for p in (pictures[0], other, pictures[1])]))


@pytest.mark.parametrize(("height", "width"), [(32, 32), (300, 400), (224, 224)])
def test_resizing_is_antialiased_bicubic_unrounded_and_clipped(height, width):
    picture = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    found = resize.bicubic(picture, 224)
    shape = (224, 224, 3)
    expected = jax.image.resize(picture.astype(np.float32), shape, "cubic", antialias=True, precision="highest")
    assert found.shape == shape and found.dtype == np.float32
    np.testing.assert_allclose(found, np.clip(expected, 0, 255), atol=0.01)


@pytest.mark.parametrize(
    "picture", [np.zeros((8, 8, 4), np.uint8), np.zeros((8, 8)), np.zeros((2, 8, 8, 3), np.uint8)]
)
def test_arrays_that_are_no_pictures_are_refused(picture):
    with pytest.raises(ValueError, match="a picture is uint8"):
        resize.bicubic(picture, 224)


def test_extraction_streams_in_order(extractor):
    pictures = np.random.default_rng(2).integers(0, 256, (67, 8, 8), dtype=np.uint8)
    blocks = list(base.extract(extractor, map(extractor.prepare, pictures), len(pictures), "test"))
    assert [len(block) for block in blocks] == [4] * 16 + [3]
    np.testing.assert_array_equal(np.concatenate(blocks)[[0, 65]], extractor(pictures[[0, 65]]))


def edit(state, name, change):
    if change == "missing":
        del state[name]
    elif change == "unexpected":
        state[name + "2"] = state[name]
    elif change == "shape":
        state[name] = state[name][:-1]
    else:
        state[name] = state[name].double()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("missing", r"lacks _blocks.3._bn1.bias \(1 keys missing, 0 unexpected"),
        ("unexpected", r"holds _blocks.3._bn1.bias2 \(0 keys missing, 1 unexpected"),
        ("shape", r"_blocks.3._bn1.bias is float32 \[143\], expected float32 \[144\]"),
        ("dtype", r"_blocks.3._bn1.bias is float64 \[144\], expected float32 \[144\]"),
    ],
)
def test_every_key_shape_and_dtype_of_the_weights_counts(tmp_path, change, message):
    state = torch.load(efficientnet.weights_path())
    edit(state, "_blocks.3._bn1.bias", change)
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(InputError, match=message):
        efficientnet.load(tmp_path / "weights.pth")


def test_the_published_file_is_read_as_torch_reads_it(extractor):
    path = efficientnet.weights_path()
    expected, found = torch.load(path), load_state_dict(path)
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor.numpy(), strict=True)
    assert extractor.weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_extractor_needs_no_torch():
    code = (
        "import sys; sys.modules['torch'] = None; import numpy as np;"
        "from jpeglm.fid.extractors.efficientnet import EfficientNetLite0;"
        "print(EfficientNetLite0()(np.zeros((2, 8, 8), np.uint8)).shape)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "(2, 1280)"
