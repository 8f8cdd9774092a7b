"""A little trained run, and a feature extractor that takes no time."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.evals.projection import Projection


@pytest.fixture(scope="session")
def tiny_run(tiny_data, tmp_path_factory) -> Path:
    """The workdir of a run of `tests/tiny_config.py`, evaluated three times."""
    workdir = tmp_path_factory.mktemp("tiny_run") / "run"
    command = [sys.executable, "-m", "jpeglm.train", "--config=tests/tiny_config.py", f"--workdir={workdir}"]
    subprocess.run([*command, f"--config.data.path={tiny_data}", "--config.eval.every=8"], check=True)
    return workdir


@pytest.fixture
def projection() -> Projection:
    return Projection()
