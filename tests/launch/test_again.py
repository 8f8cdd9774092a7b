"""The rule of starting again, with a training that ends as told."""

import signal
import subprocess
import time

import pytest

from tests.commands import ROOT
from tests.launch.fakes import starts, training, wait_until, write_program

AGAIN = ROOT / "launch" / "again.sh"


@pytest.mark.parametrize("status", [0, 1, 2, 3, 255])
def test_an_end_that_would_come_again_is_the_last(fakes, status):
    done = subprocess.run([AGAIN, *training(fakes, status, 0)])
    assert (done.returncode, starts(fakes)) == (status, 1)


@pytest.mark.parametrize("status", [75, 134, -signal.SIGKILL, -signal.SIGSEGV])
def test_an_end_that_may_go_better_next_time_is_not_the_last(fakes, status):
    done = subprocess.run([AGAIN, *training(fakes, status, status, 2)])
    assert (done.returncode, starts(fakes)) == (2, 3)


def test_ten_short_lives_in_a_row_are_the_last(fakes):
    done = subprocess.run([AGAIN, *training(fakes, *[134] * 20)], capture_output=True, text=True)
    assert (done.returncode, starts(fakes)) == (134, 10)
    assert list(map(int, (fakes / "slept").read_text().split())) == [10, 20, 40, 80, 160, 240, 240, 240, 240]
    assert done.stderr.splitlines()[-1].endswith("as ten short lives in a row did, and is not started again")


def test_a_long_life_starts_the_count_anew(fakes):
    # This clock goes on by ten minutes in the third life, between the fifth and the sixth look at it.
    clock = f"#!/bin/sh\necho >>{fakes}/looks\n[ $(wc -l <{fakes}/looks) -lt 6 ] && echo 0 || echo 600\n"
    write_program(fakes / "bin" / "date", clock)
    done = subprocess.run([AGAIN, *training(fakes, *[75] * 20)])
    assert (done.returncode, starts(fakes)) == (75, 12)


def test_a_hundred_lives_are_the_last_however_long_they_are(fakes):
    # By this clock every life is ten minutes long.
    clock = f"#!/bin/sh\necho >>{fakes}/looks\nexpr $(wc -l <{fakes}/looks) \\* 600\n"
    write_program(fakes / "bin" / "date", clock)
    done = subprocess.run([AGAIN, *training(fakes, *[75] * 120)], capture_output=True, text=True)
    assert (done.returncode, starts(fakes)) == (75, 100)
    assert done.stderr.splitlines()[-1].endswith("for the hundredth time, and is not started again")


def test_a_request_to_stop_is_passed_on_and_is_the_end(fakes):
    process = subprocess.Popen([AGAIN, *training(fakes)])
    wait_until(lambda: starts(fakes) == 1)
    time.sleep(0.1)
    for _ in range(3):  # impatience does not disturb the saving
        process.send_signal(signal.SIGTERM)
        time.sleep(0.05)
    assert (process.wait(5), starts(fakes)) == (75, 1)
    assert (fakes / fakes.name / "stop").read_text() == "asked\nsaved\n"


def test_a_request_to_stop_in_a_pause_is_the_end(fakes):
    (fakes / "bin" / "sleep").unlink()
    process = subprocess.Popen([AGAIN, *training(fakes, 134)], stderr=subprocess.PIPE, text=True)
    wait_until(lambda: "started again in 10 s" in process.stderr.readline())
    process.send_signal(signal.SIGTERM)
    assert (process.wait(5), starts(fakes)) == (134, 1)


def test_nothing_to_run_is_refused_in_one_line():
    done = subprocess.run([AGAIN], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
