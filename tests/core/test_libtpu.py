"""Flags of libtpu: who gets them."""

import re
from importlib import metadata
from pathlib import Path

import pytest

from jpeglm.core import libtpu

ROOT = Path(__file__).parents[2]


def test_the_version_of_the_lock_gets_the_flags(monkeypatch):
    [locked] = re.findall(r"^libtpu==(\S+)", (ROOT / "requirements-dev.txt").read_text(), re.MULTILINE)
    monkeypatch.setattr(metadata, "version", {"libtpu": locked}.__getitem__)
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    libtpu.set_flags()
    assert libtpu.os.environ["LIBTPU_INIT_ARGS"].split() == list(libtpu.FLAGS)


@pytest.mark.parametrize("own", ["", "--xla_tpu_scoped_vmem_limit_kib=98304"])
def test_flags_of_the_user_stay(monkeypatch, own):
    monkeypatch.setattr(metadata, "version", lambda _: libtpu.VERSION)
    monkeypatch.setenv("LIBTPU_INIT_ARGS", own)
    libtpu.set_flags()
    assert libtpu.os.environ["LIBTPU_INIT_ARGS"] == own


@pytest.mark.parametrize("version", ["0.0.41", "0.0.420", "0.1.0", None])
def test_another_libtpu_gets_none(monkeypatch, version):
    def found(name):
        if version is None:
            raise metadata.PackageNotFoundError(name)
        return version

    monkeypatch.setattr(metadata, "version", found)
    monkeypatch.delenv("LIBTPU_INIT_ARGS", raising=False)
    libtpu.set_flags()
    assert "LIBTPU_INIT_ARGS" not in libtpu.os.environ
