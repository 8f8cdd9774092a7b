"""`python -m jpeglm.fid` against the whole programs of pytorch-fid, torch-fidelity and clean-fid."""

import io
import subprocess
import sys

import pytest
from PIL import Image

from tests.fid import inceptions
from tests.photographs import photographs

COUNT = 3000  # on each side


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A weight file; photographs as they are; and others of the same, compressed at quality 25."""
    root = tmp_path_factory.mktemp("fid")
    inceptions.write_weights(root / "weights.pth", 0)
    pictures = photographs(2 * COUNT, 72, 72)
    for side in ("real", "fake"):
        (root / side).mkdir()
    for index in range(COUNT):
        pictures[2 * index].save(root / "real" / f"{index:04}.png", compress_level=1)
        compressed = io.BytesIO()
        pictures[2 * index + 1].save(compressed, "JPEG", quality=25)
        Image.open(compressed).save(root / "fake" / f"{index:04}.png", compress_level=1)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["legacy_pytorch", "legacy_tensorflow", "clean"])
def test_distances_of_3000_and_3000_photographs_are_the_reference_s_to_five_digits(scene, mode):
    real, fake, weights = scene / "real", scene / "fake", scene / "weights.pth"
    flags = [f"--real={real}", f"--fake={fake}", f"--mode={mode}", f"--weights={weights}"]
    done = subprocess.run([sys.executable, "-m", "jpeglm.fid", *flags], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    ours, theirs = float(done.stdout.splitlines()[-1]), inceptions.reference_distance(weights, mode, real, fake)
    print(f"{mode}: {ours:.6f} by jpeglm, {theirs:.6f} by its reference, {ours / theirs - 1:+.1e}")
    assert ours == pytest.approx(theirs, rel=1e-5)
