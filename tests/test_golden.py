"""Small runs of the real commands give the numbers in tests/golden/golden.json.

A change of these numbers is a decision: `python -m tests.golden.renew "why"` makes them anew and keeps the reason.
"""

import base64
import json
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import forks
from tests.golden import checks, collect, compare, margins

GOLDEN = checks.golden()


def run(module: str, *flags: str) -> subprocess.CompletedProcess:
    return forks.run(module, *flags, **collect.VARIABLES)


def agree(differences: list[str]) -> None:
    assert not differences, "\n".join([*differences, checks.RENEW])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures, clips, and what was prepared of them."""
    folder = tmp_path_factory.mktemp("golden")
    collect.prepare(run, folder)
    return folder


@pytest.fixture(scope="module")
def plain(folder: Path) -> Path:
    """The workdir of the plain run."""
    collect.train(run, folder / "jpeg", folder / "plain", *collect.VARIANTS["plain"])
    return folder / "plain"


@pytest.mark.parametrize("data", ["jpeg", "avc"])
def test_shards_are_the_golden_ones(folder, data):
    agree(checks.of_shards(GOLDEN["shards"][data], collect.shards(folder / data)))


@pytest.mark.parametrize("variant", collect.VARIANTS)
def test_losses_are_the_golden_ones(folder, plain, variant):
    if variant != "plain":
        collect.train(run, folder / "jpeg", folder / variant, *collect.VARIANTS[variant])
    agree(checks.of_losses(GOLDEN["losses"][variant], collect.losses(folder / variant)))


@pytest.mark.parametrize("kind", collect.SAMPLING)
def test_samples_are_the_golden_ones_or_differ_first_where_a_draw_was_near(folder, kind):
    collect.sample(run, folder / "pictures", folder / kind, *collect.SAMPLING[kind])
    agree(checks.of_files(GOLDEN["samples"][kind], collect.files(folder / kind)))


def test_the_cells_of_a_table_are_the_golden_ones(folder, plain):
    collect.make_table(run, plain, folder / "jpeg", folder / "table")
    agree(checks.of_cells(GOLDEN["cells"], collect.cells(folder / "table")))


def sampled(content: bytes, near: list) -> dict[str, Any]:
    return {"one": {"sha256": f"of {content.hex()}", "file": base64.b64encode(content).decode(), "near": near}}


@pytest.mark.parametrize("other", [b"abcXef", b"abcdeX", b"abcde", b"abcdefg"])
def test_only_a_near_draw_excuses_a_file_that_differs(other):
    first = next(place for place in range(7) if other[: place + 1] != b"abcdef"[: place + 1])
    new = sampled(other, [])
    assert not checks.of_files(sampled(b"abcdef", [[first, first + 1, 1e-5]]), new)
    [line] = checks.of_files(sampled(b"abcdef", [[0, first - 1, 1e-5]]), new)
    assert f"differ first in byte {first} of 6" in line and "of 616263646566 before" in line


def test_a_file_more_and_a_file_less_are_differences():
    assert checks.of_files(sampled(b"a", []), {}) == ["sample one: only in the golden"]
    assert checks.of_cells({}, {"row": {"num": 1}}) == ["cell row, num: only in today's"]


def test_the_margin_of_a_draw_is_the_distance_to_the_nearest_border():
    logits = np.log([0.5, 0.3, 0.15, 0.05])
    assert margins.margin(logits, 0.45, 1.0, 1.0) == pytest.approx(0.05)  # below 0.5
    assert margins.margin(logits, 0.45, 1.0, 0.82) == pytest.approx(0.02)  # 0.8, where the third token begins
    assert margins.margin(np.array([0.0, -np.inf]), 0.999, 1.0, 1.0) == 1  # one token alone


def test_the_comparison_of_two_checkouts_tells_every_bit_but_times_and_new_keys(tmp_path, capsys):
    def write(side: str, table: dict[str, Any], file: bytes, seconds: float) -> None:
        out = tmp_path / side / "second" / "out"
        out.mkdir(parents=True)
        (out / "table.json").write_text(json.dumps(table))
        (out / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.1, "seconds/steps": seconds}) + "\n")
        (out / "one.jpg").write_bytes(file)
        np.savez(out / "cell.npz", features=np.arange(seconds > 5, dtype=np.float32))

    write("old", {"rows": [{"distance": 0.1}]}, b"file", 1)
    write("same", {"rows": [{"distance": 0.1}], "version": 2}, b"file", 2)
    write("other", {"rows": [{"distance": 0.1 + 2**-56}]}, b"File", 9)
    assert compare.compare(tmp_path / "old", tmp_path / "same")
    assert "new key in second/out/table.json: version = 2" in capsys.readouterr().out
    assert not compare.compare(tmp_path / "old", tmp_path / "other")
    told = capsys.readouterr().out
    assert "table.json rows.0.distance: 0.1 before, 0.10000000000000002 after" in told
    assert "one.jpg : " in told and "cell.npz features: float32 (0,)" in told
    assert "seconds" not in told
