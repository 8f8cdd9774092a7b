"""A folder of fakes for each test of a launch script."""

import os
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.launch.fakes import write_program


@pytest.fixture
def fakes(tmp_path, monkeypatch) -> Path:
    """A folder with programs that come first on PATH: gcloud with TPUs that are there, and an instant sleep."""
    write_program(tmp_path / "bin" / "sleep", f'#!/bin/sh\necho "$1" >>{tmp_path}/slept\n')
    gcloud = f'#!/bin/sh\nexec {sys.executable} -S {ROOT}/tests/launch/fake_gcloud.py "$@"\n'
    write_program(tmp_path / "bin" / "gcloud", gcloud)
    (tmp_path / "states").write_text("ACTIVE\n")
    (tmp_path / "states_after_create").write_text("WAITING_FOR_RESOURCES\nPROVISIONING\nACTIVE\n")
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE", str(tmp_path))
    return tmp_path
