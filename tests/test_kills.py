"""Kills at random moments change nothing in the end; see `tests/kills.py`, which prints when they came."""

import pytest
from tabulate import tabulate

from tests.kills import kill_preparing, kill_training


def test_a_kill_while_documents_are_ordered_leaves_the_bytes_as_they_are(tmp_path):
    # Kills while they are encoded and packed: tests/prepare/test_plan.py.
    rows = kill_preparing(tmp_path, 1, seed=0, moments=(("order", 0.2),))
    assert rows[0]["stage"] == "order"


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
