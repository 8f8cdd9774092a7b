"""`python -m jpeglm.fid` as a user runs it."""

import hashlib
import json
import re
import zipfile

import numpy as np
import pytest
from PIL import Image

from jpeglm.fid.extractors import efficientnet
from jpeglm.fid.extractors.inception import Inception
from jpeglm.fid.frechet import Moments, frechet_distance
from jpeglm.fid.kid import kernel_distance
from jpeglm.fid.moments import load_statistics
from tests.commands import finish
from tests.fid import inceptions
from tests.forks import run
from tests.photographs import photographs
from tests.runs import start_job


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two folders with 13 and 11 pictures, colour and grey, in subfolders, and their arrays in the command's order."""
    root = tmp_path_factory.mktemp("pictures")
    pictures = iter(photographs(24, 40, 56))
    arrays = {}
    for side, count in (("real", 13), ("fake", 11)):
        arrays[side] = []
        for i in range(count):
            picture = next(pictures)
            picture = picture.convert("L") if i % 3 == 0 else picture.resize((30 + i, 40))
            path = root / side / f"part{i // 7}" / f"{i:02}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            picture.save(path)
            arrays[side].append(np.asarray(picture))
    for name in (".ipynb_checkpoints/01.png", "part0/._01.png", "part0/notes.txt"):
        path = root / "fake" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("no picture")
    return root, arrays


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    path = tmp_path_factory.mktemp("weights") / "weights.pth"
    inceptions.write_weights(path, 0)
    return path


@pytest.fixture(scope="module")
def features(folders, weights):
    """Of both sides in mode legacy_pytorch, those of sFID after the others."""
    extractor = Inception(weights, "legacy_pytorch", spatial=True)
    return {side: extractor(arrays) for side, arrays in folders[1].items()}


def sides(folders):
    return [f"--real={folders[0] / 'real'}", f"--fake={folders[0] / 'fake'}"]


def inception(weights, mode="legacy_pytorch"):
    return [f"--mode={mode}", f"--weights={weights}"]


def number(done):
    """What the command printed."""
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n") == 1
    return float(done.stdout)


def distance(features, part=slice(0, 2048)):
    return frechet_distance(*(Moments([features[side][:, part]]) for side in ("real", "fake")))


def test_the_last_line_of_standard_output_is_the_distance_and_the_json_holds_its_circumstances(folders, tmp_path):
    output = tmp_path / "distance.json"
    done = run("jpeglm.fid", *sides(folders), f"--json={output}")
    extractor = efficientnet.EfficientNetLite0()
    expected = frechet_distance(*(Moments([extractor(folders[1][side])]) for side in ("real", "fake")))
    assert number(done) == pytest.approx(expected, rel=1e-5)
    assert "FD-EfficientNet-Lite0" in done.stderr and "FID" not in done.stderr
    assert "fewer than 2048 pictures" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["distance.json"]
    result = json.loads(output.read_text())
    assert result["metric"] == "FD-EfficientNet-Lite0"
    assert f"{result['value']:.6f}" == done.stdout.strip()
    assert result["n"] == {"real": 13, "fake": 11} and result["refused"] == {"real": [], "fake": []}
    assert result["weights_sha256"] == hashlib.sha256(efficientnet.weights_path().read_bytes()).hexdigest()
    assert {"jax", "numpy", "pillow"} <= result["versions"].keys()
    assert result["passed_over"] == {
        "real": {"counts": {}, "names": []},
        "fake": {
            "counts": {".txt": 1, "hidden .png": 1, "hidden folder": 1},
            "names": [".ipynb_checkpoints/", "part0/._01.png", "part0/notes.txt"],
        },
    }
    told = "fake: 11 pictures; passed over: 1 hidden folder, 1 hidden .png, 1 .txt (.ipynb_checkpoints/, part0/._01"
    assert told in done.stderr and re.search("real: 13 pictures$", done.stderr, re.MULTILINE)


def test_all_numbers_are_those_of_the_features(folders, weights, features, tmp_path):
    output = tmp_path / "all.json"
    flags = ["--spatial", "--kid", "--bootstrap=3", "--seed=7", f"--json={output}"]
    done = run("jpeglm.fid", *sides(folders), *inception(weights), *flags)
    value = number(done)
    result = json.loads(output.read_text())
    assert value == pytest.approx(distance(features), rel=1e-6)
    assert result["sfid"] == pytest.approx(distance(features, slice(2048, None)), rel=1e-6)
    kid = kernel_distance(features["real"][:, :2048], features["fake"][:, :2048], seed=7)
    assert result["kid"]["mean"] == pytest.approx(kid.mean, rel=1e-5) and result["kid"]["seed"] == 7
    assert result["interval"]["low"] <= value <= result["interval"]["high"]
    sha256 = hashlib.sha256(weights.read_bytes()).hexdigest()
    assert result["metric"] == f"FD of Inception weights {sha256[:8]} (legacy_pytorch)"
    assert (result["mode"], result["weights_sha256"]) == ("legacy_pytorch", sha256)
    assert "the distance is not the FID of papers" in done.stderr


@pytest.mark.parametrize("processes", [1, 2])
def test_devices_and_processes_change_the_number_by_less_than_a_millionth(folders, weights, features, processes):
    flags = [*sides(folders), *inception(weights), "--spatial", "--kid", "--batch_size=8"]
    first, *others = map(finish, start_job("jpeglm.fid", *flags, processes=processes, devices=8 // processes**2))
    assert number(first) == pytest.approx(distance(features), rel=1e-6)
    sfid = float(re.search(r"sFID: ([\d.]+)", first.stderr)[1])
    assert sfid == pytest.approx(distance(features, slice(2048, None)), rel=1e-6)
    kid = kernel_distance(features["real"][:, :2048], features["fake"][:, :2048])
    assert float(re.search(r" KID: (-?[\d.]+)", first.stderr)[1]) == pytest.approx(kid.mean, rel=1e-5)
    assert [(done.returncode, done.stdout) for done in others] == [(0, "")] * (processes - 1)


@pytest.mark.slow
def test_the_batch_size_changes_the_number_by_less_than_a_millionth(folders, weights, features):
    for batch_size in (1, 2, 7, 64):
        done = run("jpeglm.fid", *sides(folders), *inception(weights), f"--batch_size={batch_size}")
        print(batch_size, number(done))
        assert number(done) == pytest.approx(distance(features), rel=1e-6)


def test_statistics_stand_for_their_pictures(folders, weights, features, tmp_path):
    stats = tmp_path / "real.npz"
    made = run("jpeglm.fid", sides(folders)[0], f"--save_stats={stats}", "--spatial", *inception(weights))
    assert made.returncode == 0 and made.stdout == "" and "statistics of 13 pictures" in made.stderr
    again = run("jpeglm.fid", f"--real={stats}", sides(folders)[1], "--spatial", *inception(weights))
    assert number(again) == pytest.approx(distance(features), rel=1e-6)
    other = run("jpeglm.fid", f"--real={stats}", sides(folders)[1], *inception(weights, "clean"))
    assert other.returncode == 2 and other.stdout == ""
    assert "cannot be compared" in other.stderr and "mode: legacy_pytorch against clean" in other.stderr
    assert "pictures/s" not in other.stderr  # it is told before anything is measured
    with_itself = run("jpeglm.fid", f"--real={stats}", f"--fake={stats}")  # which needs no network
    assert number(with_itself) <= 1e-6


def test_the_background_of_transparent_pictures_is_a_flag_and_a_fact(folders, tmp_path):
    glass = tmp_path / "glass"
    glass.mkdir()
    for index in range(12):
        Image.new("RGBA", (40, 56), (20 * index, 90, 30, 100)).save(glass / f"{index:02}.png")
    real, stats = sides(folders)[0], tmp_path / "black.npz"
    refused = run("jpeglm.fid", real, f"--fake={glass}", "--background=refuse")
    assert refused.returncode == 2 and "12 of 12 pictures cannot be used" in refused.stderr
    assert "by reason: 12 transparent" in refused.stderr and refused.stderr.count(": transparent: ") <= 11
    made = run("jpeglm.fid", f"--real={glass}", f"--save_stats={stats}", "--background=black")
    assert made.returncode == 0, made.stderr
    assert load_statistics(stats)[1]["background"] == "black"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--mode=clean"], "--mode and --weights go together"),
        (["--weights=inception.pth"], "--mode and --weights go together"),
        (["--mode=clean", "--weights=/absent.pth"], "/absent.pth: No such file"),
        (["--mode=cleen"], "clean|legacy_tensorflow|legacy_pytorch"),
        (["--fake="], "--fake=PATH is needed, or --save_stats=FILE"),
        (["--real="], "--real=PATH is needed"),
        (["--fake=/absent"], "/absent"),
        (["--json=/absent/x.json"], "--json=/absent/x.json: no such folder"),
        (["--save_stats=x.npy"], "its name must end in .npz"),
        (["--spatial"], "--spatial is of the 2015 Inception"),
        (["--bootstrap=1"], "--bootstrap=1: one resampling has no spread"),
        (["--kid", "--seed=-1"], "seed"),
        (["--kid", "--seed=4294967296"], "seed"),
        (["--json=/tmp"], "--json=/tmp: is a folder"),
        (["--batch_size=0"], "batch_size"),
        (["--background=grey"], "white|black|refuse"),
        (["--platform=tpux"], "tpux"),
        (["surplus"], "unexpected argument 'surplus'"),
        (["--json=REAL/x.json"], "/real/x.json lies in --real="),
        (["--save_stats=FAKE/part0/x.npz"], "/fake/part0/x.npz lies in --fake="),
    ],
)
def test_what_the_user_can_mend_is_one_line_and_status_2(folders, arguments, message):
    places = {side.upper(): str(folders[0] / side) for side in ("real", "fake")}
    arguments = [re.sub("REAL|FAKE", lambda found: places[found[0]], argument) for argument in arguments]
    done = run("jpeglm.fid", *sides(folders), *arguments)
    assert done.returncode == 2
    assert message in done.stderr and done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_pictures_are_wanted_where_statistics_are_not_enough(folders, tmp_path):
    stats = tmp_path / "stats.npz"
    np.savez(stats, mu=np.zeros(3), sigma=np.eye(3))
    done = run("jpeglm.fid", f"--real={stats}", sides(folders)[1], "--kid")
    assert done.returncode == 2 and "--kid and --bootstrap need pictures" in done.stderr
    done = run("jpeglm.fid", f"--real={stats}", sides(folders)[1], f"--save_stats={tmp_path / 'again.npz'}")
    assert done.returncode == 2 and "holds statistics already" in done.stderr
    done = run("jpeglm.fid", f"--real={stats}", f"--fake={stats}", *inception("/absent.pth"))
    assert done.returncode == 2 and "both sides are statistics" in done.stderr
    done = run("jpeglm.fid", f"--real={stats}", sides(folders)[1])
    assert done.returncode == 2 and "features of two networks, 3 and 1,280" in done.stderr
    assert "pictures/s" not in done.stderr


def test_unreadable_pictures_end_the_command_with_their_names_unless_they_are_allowed(folders, tmp_path):
    fake = tmp_path / "fake.zip"
    with zipfile.ZipFile(fake, "w") as archive:
        for path in sorted((folders[0] / "fake").rglob("*.png")):
            archive.write(path, path.relative_to(folders[0] / "fake"))
        for name in ("bad1.png", "bad2.png"):
            archive.writestr(name, b"\x89PNG\r\n\x1a\nrubbish")
    output = tmp_path / "distance.json"
    flags = [sides(folders)[0], f"--fake={fake}", f"--json={output}"]
    done = run("jpeglm.fid", *flags)
    assert done.returncode == 2 and done.stdout == ""
    assert "bad1.png" in done.stderr and "bad2.png" in done.stderr
    assert "2 of 13 pictures cannot be used" in done.stderr and "--allow_unreadable" in done.stderr
    assert not output.exists()
    allowed = run("jpeglm.fid", *flags, "--allow_unreadable")
    assert number(allowed) == number(run("jpeglm.fid", *sides(folders)))
    result = json.loads(output.read_text())
    assert result["n"] == {"real": 13, "fake": 11}
    assert [name for name, _ in result["refused"]["fake"]] == ["bad1.png", "bad2.png"]


def test_a_side_without_two_readable_pictures_is_one_clear_line(folders, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "one.png")
    (tmp_path / "bad.png").write_bytes(b"rubbish")
    done = run("jpeglm.fid", sides(folders)[0], f"--fake={tmp_path}", "--allow_unreadable")
    assert done.returncode == 2 and "two pictures or more are needed, 1 can be used" in done.stderr


def test_processes_end_alike_for_a_picture_that_one_of_them_cannot_use(folders, tmp_path):
    for path in sorted((folders[0] / "fake").rglob("*.png")):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "00.png").write_bytes(b"rubbish")  # in the first one's share
    ended = [finish(one) for one in start_job("jpeglm.fid", sides(folders)[0], f"--fake={tmp_path}")]
    assert [(done.returncode, "1 of 11 pictures cannot be used" in done.stderr) for done in ended] == [(2, True)] * 2
