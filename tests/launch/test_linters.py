"""Shell scripts and Dockerfiles pass their linters, which would tell."""

import fnmatch
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT

PROGRAMS = Path(sys.executable).parent
DOCKERFILES = [*ROOT.glob("launch/Dockerfile.*")]
SCRIPTS = [
    *ROOT.glob("launch/*.sh"),
    *ROOT.glob("launch/*.sbatch"),
    *ROOT.glob("tests/launch/*.sh"),
    ROOT / ".ci" / "run",
]


def test_shell_scripts_pass_shellcheck():
    assert len(SCRIPTS) >= 5
    done = subprocess.run([PROGRAMS / "shellcheck", *SCRIPTS], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def hadolint(*paths: Path) -> subprocess.CompletedProcess:
    """The linter of Dockerfiles. It knows their grammar and bad habits, not whether they can be built."""
    return subprocess.run([PROGRAMS / "hadolint", "--no-color", *paths], capture_output=True, text=True)


def test_dockerfiles_pass_hadolint():
    assert len(DOCKERFILES) == 2
    done = hadolint(*DOCKERFILES)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("good", "bad", "rule"),
    [
        ("FROM python:3.12.12-slim-bookworm", "FROM python", "DL3006"),
        ('ENTRYPOINT ["python", "-m"]', "ENTRYPOINT python -m", "DL3025"),
        ("USER 1000", "USER root", "DL3002"),
        (" --no-cache-dir", "", "DL3042"),
        ("WORKDIR", "WORKDIRECTORY", "missing whitespace"),
    ],
)
def test_hadolint_would_tell(tmp_path, good, bad, rule):
    text = (ROOT / "launch" / "Dockerfile.tpu").read_text()
    assert good in text
    (tmp_path / "Dockerfile").write_text(text.replace(good, bad))
    done = hadolint(tmp_path / "Dockerfile")
    assert done.returncode == 1 and rule in done.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_a_dockerfile_copies_is_there_and_is_sent(path):
    sent = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = [name for line in path.read_text().splitlines() if line.startswith("COPY") for name in line.split()[1:-1]]
    assert "jpeglm" in copied and "requirements.txt" in copied
    for name in copied:
        assert (ROOT / name).exists() and any(fnmatch.fnmatch(name, pattern) for pattern in sent)
