"""What several test files share: JAX on CPU, and a little prepared data, a little trained run."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

os.environ.setdefault("JAX_PLATFORMS", "cpu")  # for the commands that tests start, too
# Most of the time of a small training is compiling: no program is compiled twice in a session.
_PROGRAMS = tempfile.TemporaryDirectory(prefix="programs-")
os.environ["JAX_COMPILATION_CACHE_DIR"] = _PROGRAMS.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.5"


@pytest.fixture(scope="session", autouse=True)
def programs() -> Iterator[None]:
    """Removes the compiled programs in the end."""
    yield
    _PROGRAMS.cleanup()


@pytest.fixture(scope="session")
def tiny_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """300 digits prepared for `tests/tiny_config.py`, 20 of them held out."""
    from jpeglm.data import sources
    from jpeglm.prepare import plan
    from tests.tiny_config import get_config

    pictures, out = tmp_path_factory.mktemp("digits"), tmp_path_factory.mktemp("tiny") / "data"
    digits = sources.open_source("embedded:mnist")
    for name, _ in zip(digits.names(), range(300), strict=False):
        digits.load(name).save(pictures / f"{name.replace('/', '_')}.png")
    plan.prepare(get_config(), str(pictures), out, workers=1)
    return out


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory) -> Path:
    """The workdir of a run of `tests/tiny_config.py`, evaluated three times."""
    from tests.forks import run

    workdir = tmp_path_factory.mktemp("tiny_run") / "run"
    flags = ("--config=tests/tiny_config.py", f"--workdir={workdir}", f"--config.data.path={tiny_data}")
    done = run("jpeglm.train", *flags, "--config.eval.every=8")
    assert done.returncode == 0, done.stderr
    return workdir


@pytest.fixture(scope="session")
def tiny_run_of_256(tiny_run, tmp_path_factory) -> Path:
    """That run with chunks of 256 tokens in its config: room for whole files, of about 130 tokens."""
    workdir = tmp_path_factory.mktemp("tiny_run_of_256") / "run"
    shutil.copytree(tiny_run, workdir)
    config = json.loads((workdir / "config.json").read_text())
    config["data"]["seq_len"] = 256
    (workdir / "config.json").write_text(json.dumps(config))
    return workdir


@pytest.fixture(scope="session")
def tiny_clips_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twelve windows of a film prepared for `tests/tiny_clips_config.py`, four of them held out."""
    from jpeglm.prepare import plan
    from tests.clips import FILMS, ffmpeg
    from tests.tiny_clips_config import get_config

    folder, out = tmp_path_factory.mktemp("films"), tmp_path_factory.mktemp("prepared") / "data"
    for number in range(12):
        window = ("-ss", 0.5 * number, "-i", FILMS / "bikes.mp4", "-t", "3.5")
        ffmpeg(*window, "-vf", "scale=96:-2", "-an", folder / f"{number:02}.mp4")
    plan.prepare(get_config(), str(folder), out, workers=1)
    return out


@pytest.fixture(scope="session")
def tiny_clips_run(tiny_clips_data, tmp_path_factory) -> Path:
    """The workdir of a run of `tests/tiny_clips_config.py`."""
    from tests.forks import run

    workdir = tmp_path_factory.mktemp("tiny_clips_run") / "run"
    flags = (f"--config.data.path={tiny_clips_data}", f"--workdir={workdir}")
    done = run("jpeglm.train", "--config=tests/tiny_clips_config.py", *flags)
    assert done.returncode == 0, done.stderr
    return workdir
