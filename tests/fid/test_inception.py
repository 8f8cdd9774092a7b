"""The 2015 Inception against pytorch-fid, torch-fidelity and clean-fid."""

import functools
import hashlib
import logging
import subprocess
import sys

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch_file

from jpeglm.core.errors import InputError
from jpeglm.fid.extractors import inception
from jpeglm.fid.extractors.inception import Inception
from tests.fid import inceptions, peers
from tests.fid.inceptions import MODES, edited
from tests.photographs import photographs

SEEDS = pytest.mark.parametrize("seed", [0, pytest.param(1, marks=pytest.mark.slow)], ids=["small", "large"])


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Paths of two weight files: by seed."""
    root = tmp_path_factory.mktemp("weights")
    paths = {0: root / "small.pth", 1: root / "large.pth"}
    inceptions.write_weights(paths[0], 0)
    inceptions.write_weights(paths[1], 1, gain=1.4)
    return paths


@pytest.fixture(scope="module")
def references(weights, pictures, tmp_path_factory):
    """Features by mode, of a seed."""

    @functools.cache
    def of(seed):
        found = inceptions.references([weights[seed]], pictures, tmp_path_factory.mktemp("references"))
        return {mode: found[weights[seed], mode] for mode in MODES}

    return of


@pytest.fixture(scope="module")
def extractors(weights):
    """By seed and mode."""
    return {(seed, mode): Inception(path, mode, batch_size=4) for seed, path in weights.items() for mode in MODES}


@pytest.fixture(scope="module")
def pictures():
    """Photographs, enlarged and reduced, one of them stretched; and a picture of one colour."""
    sizes = [(256, 256), (32, 32), (299, 299), (500, 375), (91, 610), (2, 3)]
    resized = [picture.resize(size) for picture, size in zip(photographs(6, 256, 256), sizes, strict=True)]
    return [np.asarray(picture) for picture in resized] + [np.full((64, 64, 3), 200, np.uint8)]


@SEEDS
@pytest.mark.parametrize("mode", MODES)
def test_features_are_those_of_the_reference(references, extractors, pictures, seed, mode):
    expected = references(seed)[mode]
    found = extractors[seed, mode](pictures)
    assert found.shape == (len(pictures), 2048) and found.dtype == np.float32
    scale = np.abs(expected).max()
    assert (scale > 1000) == (seed == 1)
    assert np.abs(found - expected).max() < 2e-6 * scale
    assert expected.std(axis=0).mean() > 1e-3 * scale  # the pictures differ by far more


def test_the_modes_differ(extractors, pictures):
    clean, tensorflow, pytorch = (extractors[0, mode](pictures[:2]) for mode in MODES)
    for a, b in ((clean, tensorflow), (clean, pytorch), (tensorflow, pytorch)):
        assert np.abs(a - b).max() > 1e-3 * np.abs(a).max()


def test_the_clean_resize_is_clean_fid_s_to_the_last_bit(extractors, pictures):
    resize = peers.clean_resizer()
    for picture in pictures:
        np.testing.assert_array_equal(extractors[0, "clean"].prepare(picture), resize(picture), strict=True)


def test_the_resize_of_tensorflow_is_torch_fidelity_s_to_the_last_bit(extractors, pictures):
    resize = peers.tensorflow_resizer()
    for picture in pictures:
        np.testing.assert_array_equal(extractors[0, "legacy_tensorflow"].prepare(picture), resize(picture))


def test_the_resize_of_pytorch_is_that_of_interpolate(extractors, pictures):
    for picture in pictures:
        whole = torch.from_numpy(picture.transpose(2, 0, 1).astype(np.float32)[None] / 255)
        expected = torch.nn.functional.interpolate(whole, size=(299, 299), mode="bilinear", align_corners=False)
        found = extractors[0, "legacy_pytorch"].prepare(picture)
        # Of values 0..1. A place between two pixels is known to 299 roundings of float32, 2e-5, at most.
        np.testing.assert_allclose(found.transpose(2, 0, 1), expected[0], atol=5e-6, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_a_grey_picture_has_the_features_of_its_three_equal_channels(extractors, pictures, mode):
    grey = pictures[0][..., 0]
    found = extractors[0, mode]([grey, np.repeat(grey[..., None], 3, axis=-1)])
    np.testing.assert_array_equal(found[0], found[1])


@pytest.mark.parametrize("batch_size", [1, 7])
def test_features_do_not_depend_on_the_batch(weights, extractors, pictures, batch_size):
    expected = extractors[0, "clean"](pictures[:3])
    found = Inception(weights[0], "clean", batch_size=batch_size)(pictures[:3])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_spatial_features_are_the_first_seven_channels_of_mixed_6d(weights, pictures):
    network = inceptions.torch_fidelity_network(weights[0])
    seen = []
    network.Mixed_6d.register_forward_hook(lambda _module, _inputs, output: seen.append(output.numpy()))
    with torch.no_grad():
        pool = network(torch.from_numpy(pictures[0].transpose(2, 0, 1)[None].copy()))[0].numpy()
    [found] = Inception(weights[0], "legacy_tensorflow", batch_size=1, spatial=True)(pictures[:1])
    # As guided-diffusion's evaluator, which works in TensorFlow's order, flattens them: channels last.
    spatial = seen[0][0, :7].transpose(1, 2, 0).ravel()
    assert found.shape == (2048 + 2023,)
    for part, expected in ((found[:2048], pool[0]), (found[2048:], spatial)):
        np.testing.assert_allclose(part, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


############################ Weight files ############################


def test_the_hash_is_that_of_the_file_and_unknown_weights_are_warned_about(weights, extractors, caplog):
    expected = hashlib.sha256(weights[0].read_bytes()).hexdigest()
    assert extractors[0, "clean"].weights_sha256 == expected
    with caplog.at_level(logging.INFO):
        made = Inception(weights[0], "clean")
    assert "is not pt_inception-2015-12-05-6726825d.pth" in caplog.text
    assert made.metric == f"FD of Inception weights {expected[:8]} (clean)"


def test_the_published_weights_are_known_by_their_hash(weights, monkeypatch, caplog):
    monkeypatch.setattr(inception, "OFFICIAL_SHA256", hashlib.sha256(weights[0].read_bytes()).hexdigest())
    with caplog.at_level(logging.INFO):
        made = Inception(weights[0], "legacy_pytorch")
    assert made.metric == "FID (legacy_pytorch)"
    assert "weights: pt_inception-2015-12-05-6726825d.pth" in caplog.text and "is not" not in caplog.text


def test_the_known_hash_is_the_one_in_the_file_s_name():
    assert f"-{inception.OFFICIAL_SHA256[:8]}.pth" in inception.OFFICIAL_NAME and len(inception.OFFICIAL_SHA256) == 64


def test_an_unknown_mode_is_refused(weights):
    with pytest.raises(InputError, match="mode 'legacy' is none of clean, legacy_tensorflow, legacy_pytorch"):
        Inception(weights[0], "legacy")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("Mixed_7c.branch_pool.bn.bias"),
            r"lacks Mixed_7c.branch_pool.bn.bias \(1 keys",
        ),
        (lambda s: s.pop("fc.weight"), r"lacks fc.weight"),
        (
            lambda s: s.update({"AuxLogits.conv0.conv.weight": torch.zeros(1)}),
            r"holds AuxLogits.conv0.conv.w",
        ),
        (
            lambda s: s.update({"fc.bias": torch.zeros(1000)}),
            r"fc.bias is float32 \[1000\], expected float32 \[10",
        ),
        (
            lambda s: s.update({"Conv2d_1a_3x3.conv.weight": torch.zeros(32, 3, 5, 5)}),
            r"Conv2d_1a_3x3.conv.weight is float32 \[32, 3, 5, 5\], expected float32 \[32, 3, 3, 3\]",
        ),
        (lambda s: s.update({"fc.bias": s["fc.bias"].half()}), r"fc.bias is float16 \[1008\], expected float32"),
    ],
    ids=["missing", "no classifier", "unexpected", "classes", "shape", "dtype"],
)
def test_weights_of_another_shape_are_refused_by_key(weights, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        inception.read_weights(edited(weights[0], tmp_path / "other.pth", change))


def test_counters_that_torch_adds_to_batch_norms_are_accepted(weights, tmp_path):
    def count(state):
        for name in [name for name in state if name.endswith(".bn.bias")]:
            state[name.replace("bias", "num_batches_tracked")] = torch.tensor(0)

    tensors, _ = inception.read_weights(edited(weights[0], tmp_path / "counted.pth", count))
    assert tensors.keys() == inception.read_weights(weights[0])[0].keys()


def test_a_torchscript_archive_is_refused_by_name(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "inception-2015-12-05.pt")
    with pytest.raises(InputError, match="TorchScript archive.*; FID wants the state dict pt_inception-2015"):
        inception.read_weights(tmp_path / "inception-2015-12-05.pt")


def test_converted_weights_give_the_same_network_and_the_same_hash(weights, tmp_path):
    target = tmp_path / "inception.safetensors"
    command = [sys.executable, "-m", "jpeglm.convert", "inception", str(weights[0]), str(target)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (before, sha256), (after, same) = inception.read_weights(weights[0]), inception.read_weights(target)
    assert same == sha256 and sha256 in done.stdout
    assert before.keys() == after.keys()
    for name, tensor in before.items():
        np.testing.assert_array_equal(after[name], tensor, strict=True)
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 2 and "exists" in again.stderr


def test_damaged_converted_weights_are_refused(weights, tmp_path):
    target = tmp_path / "inception.safetensors"
    inception.write_safetensors(*inception.read_weights(weights[0]), target)
    content = bytearray(target.read_bytes())
    content[-1000] ^= 1
    target.write_bytes(content)
    with pytest.raises(InputError, match="damaged"):
        inception.read_weights(target)
    target.write_bytes(content[:-5000])
    with pytest.raises(InputError, match="inception.safetensors"):
        inception.read_weights(target)
    with pytest.raises(InputError, match="No such file|no such file"):
        inception.read_weights(tmp_path / "absent.safetensors")


def test_converted_weights_of_other_types_are_refused(tmp_path):
    tensors = {"a": torch.zeros(3, dtype=torch.bfloat16)}
    save_torch_file(tensors, tmp_path / "half.safetensors", {"source_sha256": "0" * 64, "tensors_sha256": ""})
    with pytest.raises(InputError, match="half.safetensors"):
        inception.read_weights(tmp_path / "half.safetensors")


def test_weights_are_not_converted_to_where_nothing_can_be_written(weights):
    command = [sys.executable, "-m", "jpeglm.convert", "inception", str(weights[0]), "/proc/inception.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and "cannot write /proc/inception.safetensors" in done.stderr


def test_a_safetensors_file_of_somebody_else_is_refused(weights, tmp_path):
    tensors, _ = inception.read_weights(weights[0])
    save_file({name: np.ascontiguousarray(tensor) for name, tensor in tensors.items()}, tmp_path / "other.safetensors")
    with pytest.raises(InputError, match="jpeglm.convert inception"):
        inception.read_weights(tmp_path / "other.safetensors")
