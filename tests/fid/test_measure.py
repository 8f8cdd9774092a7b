"""Pictures shared out over processes."""

import json

import numpy as np
import pytest

from tests.commands import finish
from tests.fid import sharing
from tests.runs import start_job


@pytest.fixture(scope="module")
def found():
    """What one process and what three processes find."""
    results = {}
    for processes in (1, 3):
        done = [finish(process) for process in start_job("tests.fid.sharing", processes=processes)]
        assert [one.returncode for one in done] == [0] * processes, done[0].stderr
        results[processes] = json.loads(done[0].stdout.splitlines()[-1])
    return results


@pytest.mark.parametrize("processes", [1, 3])
def test_every_process_gets_what_each_has_sent(found, processes):
    assert found[processes]["sent"] == [True] * len(sharing.LENGTHS)


def test_processes_find_together_what_one_finds_alone(found):
    for alone, together in zip(found[1]["measured"], found[3]["measured"], strict=True):
        assert together[0] == alone[0]
        for a, b in zip(alone[1:3], together[1:3], strict=True):
            if a is not None:
                np.testing.assert_allclose(b, a, rtol=1e-9, atol=1e-12)
        np.testing.assert_array_equal(together[3], alone[3])  # every picture once, and in its place


def test_processes_that_do_not_see_the_same_pictures_all_say_so(found):
    assert found[1]["differing"] == ["4"]
    told = "pictures in memory: the processes of this job do not see the same pictures there"
    assert found[3]["differing"] == [told] * 3
