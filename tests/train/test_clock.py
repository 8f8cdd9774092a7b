"""Where the time of a run went."""

import time

import pytest

from jpeglm.train.clock import Stopwatch


@pytest.fixture
def wait(monkeypatch):
    """Lets so many seconds pass."""
    now = 100.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(time, "monotonic", lambda: now)
    return wait


def test_every_second_belongs_to_one_part_and_restarts_add_up(wait):
    clock = Stopwatch()
    wait(4)
    with clock.counting("compile"):
        wait(6)
    wait(1)
    clock.begin("steps")
    wait(20)
    with clock.counting("data"):
        wait(2)
    wait(7)
    assert clock.seconds == {"restart": 5, "compile": 6, "data": 2, "steps": 27, "evaluation": 0, "checkpoint": 0}
    assert clock.goodput == 27 / 40
    again = Stopwatch()
    again.go_on([{"step": 5, "loss": 1.0, **clock.scalars()}, {"step": 5, "heldout/nats_per_token": 2.0}])
    wait(60)
    assert again.goodput == 27 / 100 and again.seconds["restart"] == 65
    assert sum(again.seconds.values()) == 100


def test_the_time_of_a_block_that_fails_counts_too(wait):
    clock = Stopwatch()
    clock.begin("steps")
    with pytest.raises(ValueError), clock.counting("evaluation"):
        wait(3)
        raise ValueError
    wait(1)
    assert clock.seconds["evaluation"] == 3 and clock.seconds["steps"] == 1
