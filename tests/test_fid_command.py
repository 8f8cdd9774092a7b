"""`python -m jpeglm.fid` as a user runs it."""

import hashlib
import json
import subprocess
import sys

import numpy as np
import pytest
from PIL import Image

from jpeglm.evals import efficientnet
from jpeglm.evals.fid import Moments, frechet_distance


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders with 9 and 7 pictures, colour and grey, in subfolders."""
    root = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    arrays = {}
    for side, count, top in (("real", 9, 256), ("fake", 7, 100)):
        arrays[side] = []
        for i in range(count):
            array = rng.integers(0, top, (16, 16) if i % 3 == 0 else (12, 20, 3), dtype=np.uint8)
            path = root / side / f"part{i % 2}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(array).save(path)
            arrays[side].append(array)
    return root, arrays


def run(*arguments):
    command = [sys.executable, "-m", "jpeglm.fid", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True)


def test_the_last_line_of_standard_output_is_the_distance_and_the_json_holds_its_circumstances(folders, tmp_path):
    root, arrays = folders
    output = tmp_path / "distance.json"
    done = run(f"--real={root / 'real'}", f"--fake={root / 'fake'}", f"--json={output}")
    assert done.returncode == 0, done.stderr
    extractor = efficientnet.EfficientNetLite0()
    expected = frechet_distance(*(Moments([extractor(arrays[side])]) for side in ("real", "fake")))
    assert float(done.stdout) == pytest.approx(expected, rel=1e-5)
    assert done.stdout.count("\n") == 1
    assert "FD-EfficientNet-Lite0" in done.stderr and "FID" not in done.stderr
    assert "fewer than 2048 pictures" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["distance.json"]
    result = json.loads(output.read_text())
    assert result["metric"] == "FD-EfficientNet-Lite0"
    assert f"{result['value']:.6f}" == done.stdout.strip()
    assert result["n"] == {"real": 9, "fake": 7}
    assert result["weights_sha256"] == hashlib.sha256(efficientnet.weights_path().read_bytes()).hexdigest()
    assert {"jax", "numpy", "pillow"} <= result["versions"].keys()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=clean"], "the 2015 Inception network, which is not part of this version"),
        (["--weights=inception.pth"], "the 2015 Inception network, which is not part of this version"),
        (["--mode=cleen"], "clean|legacy_tensorflow|legacy_pytorch"),
        (["--fake="], "--fake=FOLDER is needed"),
        (["--fake=/absent"], "no such folder: /absent"),
        (["--json=/absent/x.json"], "--json=/absent/x.json: no such folder"),
        (["surplus"], "unexpected argument 'surplus'"),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(folders, arguments, message):
    root, _ = folders
    done = run(f"--real={root / 'real'}", f"--fake={root / 'fake'}", *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_unreadable_pictures_end_the_command_with_their_names_and_write_nothing(folders, tmp_path):
    root, _ = folders
    for name in ("bad1.png", "bad2.png"):
        (tmp_path / name).write_bytes(b"\x89PNG\r\n\x1a\nrubbish")
    output = tmp_path / "distance.json"
    done = run(f"--real={root / 'real'}", f"--fake={tmp_path}", f"--json={output}")
    assert done.returncode == 2
    assert "bad1.png" in done.stderr and "bad2.png" in done.stderr and "2 of 2 pictures cannot be used" in done.stderr
    assert not output.exists() and done.stdout == ""
