"""Kills at random moments change nothing in the end; see `tests/kills.py`, which prints when they came."""

import pytest
from tabulate import tabulate

from tests.kills import kill_preparing, kill_training


def test_three_kills_of_prepare_leave_its_bytes_as_they_are(tmp_path):
    rows = kill_preparing(tmp_path, 3, seed=0, moments=(("encode", 0.5), ("order", 0.2), ("pack", 0.3)))
    assert len(rows) >= 3


@pytest.mark.slow
def test_twenty_kills_of_prepare_leave_its_bytes_as_they_are(tmp_path):
    rows = kill_preparing(tmp_path, kills=20, seed=1)
    print(tabulate(rows, headers="keys"))
    assert {row["stage"] for row in rows} >= {"encode", "order", "pack"}
    assert {row["killed"] for row in rows} == {"parent alone", "all processes"}


@pytest.mark.slow
def test_twenty_kills_of_a_training_leave_every_bit_as_it_is(tiny_data, tmp_path):
    rows = kill_training(tiny_data, tmp_path, kills=20, seed=1)
    print(tabulate(rows, headers="keys"))
    assert sum(bool(row["unfinished"]) for row in rows) >= 3
    assert sum(bool(row["committed"]) for row in rows) >= 10
