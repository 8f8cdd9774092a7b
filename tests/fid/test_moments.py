"""Statistics files: other programs read ours, we read theirs, and damage is told."""

import errno
import io
import json
import os
import random
import zipfile

import numpy as np
import pytest
from absl import logging

from jpeglm.core.errors import InputError
from jpeglm.fid import moments as statistics
from jpeglm.fid.frechet import Moments, frechet_distance
from jpeglm.fid.moments import check_comparable, load_statistics, save_statistics
from tests.fid import peers

FACTS = {"metric": "FID", "mode": "clean", "weights_sha256": "ab" * 32}


def features(seed, count=90, dim=20):
    return np.random.default_rng(seed).normal(size=(count, dim)) @ np.random.default_rng(9).normal(size=(dim, dim))


@pytest.fixture
def warnings(monkeypatch):
    told = []
    monkeypatch.setattr(logging, "warning", lambda text, *values: told.append(text % values))
    return told


@pytest.mark.parametrize("count", [90, 12], ids=["n>d", "n<d"])
def test_what_was_saved_is_loaded_with_its_facts(tmp_path, count):
    path = tmp_path / "digits.npz"
    saved = Moments([features(0, count)])
    save_statistics(path, saved, FACTS)
    moments, facts = load_statistics(path)
    assert facts == FACTS
    assert (moments.count, moments.dim) == (count, 20)
    np.testing.assert_array_equal(moments.mean, saved.mean)
    np.testing.assert_allclose(moments.covariance, saved.covariance, rtol=1e-15)
    other = Moments([features(1)])
    assert frechet_distance(moments, other) == pytest.approx(frechet_distance(saved, other), rel=1e-9)
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.npz"]


def test_the_name_of_the_file_is_kept_whatever_it_ends_in(tmp_path):
    save_statistics(tmp_path / "digits.stats", Moments([features(0)]), FACTS)
    assert [entry.name for entry in tmp_path.iterdir()] == ["digits.stats"]


def test_pytorch_fid_reads_our_file_and_gives_the_same_distance(tmp_path):
    a, b = Moments([features(0)]), Moments([features(1, 120)])
    statistics = []
    for name, moments in (("a.npz", a), ("b.npz", b)):
        save_statistics(tmp_path / name, moments, FACTS, spatial=Moments([features(2, moments.count)[:, :7]]))
        read = peers.pytorch_fid().compute_statistics_of_path(str(tmp_path / name), None, 50, 2048, "cpu")
        assert [array.dtype for array in read] == [np.float64] * 2
        statistics += read
    theirs = peers.pytorch_fid().calculate_frechet_distance(*statistics)
    assert frechet_distance(a, b) == pytest.approx(theirs, rel=1e-7)


def test_pytorch_fids_file_is_read_and_tells_neither_facts_nor_a_number(tmp_path):
    a = features(0)
    np.savez_compressed(tmp_path / "theirs.npz", mu=np.mean(a, axis=0), sigma=np.cov(a, rowvar=False))
    moments, facts = load_statistics(tmp_path / "theirs.npz")
    assert facts == {} and moments.count is None
    other = Moments([features(1)])
    assert frechet_distance(moments, other) == pytest.approx(frechet_distance(Moments([a]), other), rel=1e-9)
    with pytest.raises(ValueError, match="unknown number"):
        moments.update(a)
    with pytest.raises(ValueError, match="one number of pictures"):
        save_statistics(tmp_path / "again.npz", moments, {})


def test_float32_statistics_are_read(tmp_path):
    a, b = features(0), features(1)
    np.savez(tmp_path / "f.npz", mu=a.mean(0).astype(np.float32), sigma=np.cov(a, rowvar=False).astype(np.float32))
    moments, _ = load_statistics(tmp_path / "f.npz")
    assert moments.mean.dtype == moments.covariance.dtype == np.float64
    expected = frechet_distance(Moments([a]), Moments([b]))
    assert frechet_distance(moments, Moments([b])) == pytest.approx(expected, rel=1e-5)


def test_reference_batches_of_guided_diffusion_give_both_their_moments_and_never_their_pictures(tmp_path):
    a, spatial = features(0), features(1)[:, :7]
    path = tmp_path / "batch.npz"
    np.savez(
        path,
        mu=a.mean(0), sigma=np.cov(a, rowvar=False),
        mu_s=spatial.mean(0), sigma_s=np.cov(spatial, rowvar=False),
        arr_0=np.array([{"a": "pickle, which would be refused"}]),
    )  # fmt: skip
    np.testing.assert_array_equal(load_statistics(path)[0].mean, a.mean(0))
    moments, facts = load_statistics(path, spatial=True)
    np.testing.assert_array_equal(moments.mean, spatial.mean(0))
    np.testing.assert_allclose(moments.covariance, np.cov(spatial, rowvar=False), rtol=1e-15)
    assert facts == {}


def test_spatial_moments_are_written_beside_the_others(tmp_path):
    path, moments, spatial = tmp_path / "a.npz", Moments([features(0)]), Moments([features(1)[:, :7]])
    save_statistics(path, moments, FACTS, spatial=spatial)
    read, facts = load_statistics(path, spatial=True)
    assert (read.dim, read.count, facts) == (7, 90, FACTS)
    np.testing.assert_array_equal(read.mean, spatial.mean)
    np.testing.assert_array_equal(load_statistics(path)[0].mean, moments.mean)
    with pytest.raises(ValueError, match="one number of pictures"):
        save_statistics(path, moments, FACTS, spatial=Moments([features(1, 89)]))


def good(**changed):
    """The arrays of a sound file, some of them replaced; None leaves one out."""
    a = features(0)
    arrays = {"mu": a.mean(0), "sigma": np.cov(a, rowvar=False)} | changed
    return {key: array for key, array in arrays.items() if array is not None}


def asymmetric():
    sigma = good()["sigma"].copy()
    sigma[3, 4] += 1
    return sigma


DAMAGES = {
    "no mu": (good(mu=None), r"lacks mu; it holds sigma"),
    "no sigma": (good(sigma=None), r"lacks sigma; it holds mu"),
    "other arrays": ({"x": np.ones(3)}, r"lacks mu and sigma; it holds x"),
    "mu of two dimensions": (good(mu=np.ones((20, 1))), r"mu has the shape \(20, 1\)"),
    "sigma of one": (good(sigma=np.ones(20)), r"sigma has the shape \(20,\)"),
    "nothing": (good(mu=np.ones(0), sigma=np.ones((0, 0))), r"mu has the shape \(0,\)"),
    "other d": (good(mu=np.ones(19)), r"sigma has the shape \(20, 20\), which does not fit mu with 19 features"),
    "not square": (good(sigma=np.ones((20, 19))), r"shape \(20, 19\)"),
    "NaN in mu": (good(mu=np.full(20, np.nan)), "mu holds NaN or infinity"),
    "infinity in sigma": (good(sigma=np.full((20, 20), np.inf)), "sigma holds NaN or infinity"),
    "not symmetric": (good(sigma=asymmetric()), "sigma is not symmetric"),
    "negative variance": (good(sigma=np.diag([1.0] * 19 + [-1.0])), "sigma holds a negative variance"),
    "objects": (good(mu=np.array([{}] * 20)), "cannot be read as a statistics file: Object arrays"),
    "integers": (good(mu=np.ones(20, np.int64)), "mu is int64, not float64 or float32"),
    "complex": (good(sigma=np.ones((20, 20), complex)), "sigma is complex128"),
    "one picture": (good(count=np.array(1)), "count is no number of pictures"),
    "counts": (good(count=np.array([5, 6])), "count is no number of pictures"),
    "no JSON": (good(facts=np.array("{")), "cannot be read as a statistics file"),
    "a list of facts": (good(facts=np.array("[]")), "facts are not names with strings"),
    "a number as fact": (good(facts=np.array('{"mode": 3}')), "facts are not names with strings"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_statistics_that_are_none_are_one_line_with_the_path(tmp_path, damage):
    arrays, message = DAMAGES[damage]
    path = tmp_path / "bad.npz"
    np.savez(path, **arrays)
    with pytest.raises(InputError, match=message) as caught:
        load_statistics(path)
    assert str(caught.value).startswith(f"{path}: ") and "\n" not in str(caught.value)


def test_a_file_without_spatial_features_is_told(tmp_path):
    save_statistics(tmp_path / "a.npz", Moments([features(0)]), FACTS)
    with pytest.raises(InputError, match="a.npz: lacks mu_s and sigma_s; it holds mu, sigma, count, facts"):
        load_statistics(tmp_path / "a.npz", spatial=True)


def test_what_is_no_npz_is_one_line_with_the_path(tmp_path):
    zipped = io.BytesIO()
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("mu.npy", b"not an array")
        archive.writestr("sigma.npy", b"")
    single = io.BytesIO()
    np.save(single, np.ones(3))
    contents = {"empty": b"", "text": b"mu sigma", "png": b"\x89PNG\r\n\x1a\n" + bytes(50), "pickle": b"\x80\x04]."}
    contents |= {"zip of text": zipped.getvalue(), "npy": single.getvalue(), "half a zip": zipped.getvalue()[:90]}
    for name, content in contents.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(InputError, match="^[^\n]*$") as caught:
            load_statistics(path)
        assert str(caught.value).startswith(f"{path}: "), name
    with pytest.raises(InputError, match="absent.npz: no such file"):
        load_statistics(tmp_path / "absent.npz")
    with pytest.raises(InputError, match="cannot be read"):
        load_statistics(tmp_path)


def test_no_truncated_file_is_taken_and_a_changed_byte_is_told_or_harmless(tmp_path):
    whole, path = tmp_path / "whole.npz", tmp_path / "damaged.npz"
    save_statistics(whole, Moments([features(0)]), FACTS)
    content = whole.read_bytes()
    sound = load_statistics(whole)[0]
    rng = random.Random(0)
    for length in [*range(0, len(content), 97), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(InputError, match="damaged.npz: "):
            load_statistics(path)
    refused = 0
    for _ in range(400):
        changed = bytearray(content)
        changed[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        path.write_bytes(changed)
        try:
            moments, _ = load_statistics(path)
        except InputError as error:
            assert str(path) in str(error)
            refused += 1
        else:
            np.testing.assert_array_equal(moments.mean, sound.mean)
            np.testing.assert_array_equal(moments.covariance, sound.covariance)
    assert refused > 300


def test_an_interrupted_write_leaves_the_old_file_and_a_full_disk_is_told(tmp_path, monkeypatch):
    path = tmp_path / "a.npz"
    save_statistics(path, Moments([features(0)]), FACTS)
    before = path.read_bytes()

    def refuse(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(InputError, match="cannot write .*a.npz: No space left"):
        save_statistics(path, Moments([features(1)]), FACTS)
    assert path.read_bytes() == before
    with pytest.raises(InputError, match="cannot write .*absent/a.npz: No such file"):
        save_statistics(tmp_path / "absent" / "a.npz", Moments([features(1)]), FACTS)


def test_equal_facts_are_comparable_and_silent(warnings):
    check_comparable(FACTS, dict(FACTS), ("a.npz", "photos"))
    assert not warnings


@pytest.mark.parametrize("changed", [{"mode": "legacy_pytorch"}, {"metric": "sFID"}, {"weights_sha256": "cd" * 32}])
def test_different_facts_are_refused_with_both_names_and_values(changed):
    ((fact, value),) = changed.items()
    with pytest.raises(InputError) as caught:
        check_comparable(FACTS, FACTS | changed, ("a.npz", "photos"))
    assert "a.npz and photos cannot be compared" in str(caught.value)
    assert str(caught.value).endswith(f"{fact}: {FACTS[fact]} against {value}")


def test_a_fact_of_one_side_alone_is_a_difference():
    with pytest.raises(InputError, match="mode: clean against none"):
        check_comparable(FACTS, {fact: FACTS[fact] for fact in ("metric", "weights_sha256")}, ("a", "b"))


def test_statistics_over_two_backgrounds_are_not_compared():
    def compare(*backgrounds: str | None) -> None:
        sides = [FACTS | ({"background": background} if background else {}) for background in backgrounds]
        check_comparable(*sides, ("a.npz", "photos"))

    for one, other in (("white", "black"), ("black", "white")):
        with pytest.raises(InputError, match=f"in two ways: background: {one} against {other}$"):
            compare(one, other)
    # Where transparent pictures were refused there were none: so it was before the background was told.
    for one, other in (("white", "white"), ("refuse", "white"), ("black", "refuse"), (None, "white"), ("black", None)):
        compare(one, other)


def test_another_programs_file_is_taken_as_of_the_same_mode_and_that_is_told(warnings):
    check_comparable({}, FACTS, ("theirs.npz", "photos"))
    assert warnings == ["theirs.npz does not tell what it was made with: taken as made in the same mode."]
    check_comparable({}, {}, ("a.npz", "b.npz"))
    assert [text.split()[0] for text in warnings[1:]] == ["a.npz", "b.npz"]


def test_facts_are_json_that_others_can_read(tmp_path):
    save_statistics(tmp_path / "a.npz", Moments([features(0)]), FACTS)
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert json.loads(str(file["facts"])) == FACTS
        assert file["count"] == 90


def test_a_pipe_is_no_statistics_and_nobody_waits_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe.npz")
    assert not statistics.holds_statistics(tmp_path / "pipe.npz")


def test_an_array_that_unpacks_to_gibibytes_is_refused(tmp_path, monkeypatch):
    np.savez_compressed(tmp_path / "bomb.npz", mu=np.zeros(500), sigma=np.zeros((500, 500)))
    monkeypatch.setattr(statistics, "_MOST_BYTES", 1 << 20)
    with pytest.raises(InputError, match="bomb.npz: cannot be read as a statistics file: an array of more than"):
        load_statistics(tmp_path / "bomb.npz")
