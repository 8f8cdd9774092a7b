"""Jobs of many files: memory does not grow with their number, and interrupted processes lose nothing."""

import json
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from jpeglm.data import sources
from tests.commands import ROOT, run, start

# 50,000 files of 4 KiB that a sampler without a model writes: prints the growth of memory in MiB from the first 1,000
# files on; what is kept of each file are its name and its hashes.
_MANY = """
import resource, sys, tempfile
from pathlib import Path
from jpeglm.sample import job as jobs
from jpeglm.sample.sampler import Completion
from tests.sample.writer import CODEC, DOCUMENTS, Writer, job

class Fast(Writer):
    def run(self, tasks, on_too_long=None):
        for number, task in enumerate(tasks):
            if number == 1_000:
                self.before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            yield Completion(task, DOCUMENTS[0] + number.to_bytes(8) * 500, 0, 9, True, 0.25, -12.5)

CODEC.__class__.is_valid = lambda codec, document: True
fast = Fast()
try:
    jobs.generate(fast, int(sys.argv[2]), [job(Path(sys.argv[1]) / "out", samples=1)])
finally:
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - fast.before) / 1024)
"""


def test_memory_holds_names_and_hashes_of_files_alone(tmp_path):
    """10,000 files of 4 KiB would be 40 MiB, their lines in the index 4 MiB."""
    done = subprocess.run(
        [sys.executable, "-c", _MANY, str(tmp_path), "10000"], cwd=ROOT, capture_output=True, text=True, timeout=600
    )
    assert done.returncode == 0, done.stderr
    assert len((tmp_path / "out" / "samples.jsonl").read_text().splitlines()) == 10_000
    assert float(done.stdout.split()[-1]) < 20


@pytest.mark.slow
def test_fifty_thousand_files_of_a_tiny_model_take_no_more_memory_than_a_thousand(tiny_run, tmp_path):
    peaks = []
    for num in (1_000, 50_000):
        code = (
            "import resource, subprocess, sys; status = subprocess.call(sys.argv[1:]); "
            "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss); sys.exit(status)"
        )
        flags = (f"--workdir={tiny_run}", f"--num={num}", "--max_tokens=8", "--nogrammar", "--slots=64")
        command = [sys.executable, "-c", code, sys.executable, "-m", "jpeglm.sample", *flags]
        done = subprocess.run([*command, f"--out={tmp_path / str(num)}"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        peaks.append(int(done.stdout.split()[-1]) / 1024)
    assert peaks[1] < peaks[0] + 64, peaks


@pytest.mark.slow
def test_two_processes_each_killed_ten_times_write_what_one_does(tmp_path):
    """200 digits, two ratios and two seeds, by the pretrained demo model."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    digits = sources.open_source("embedded:mnist")
    for name, _ in zip(digits.names(), range(200), strict=False):
        digits.load(name).save(pictures / f"{name}.png")
    flags = ("--workdir=pretrained/demo", f"--images={pictures}", "--ratio=0.5,0.75", "--seed=0,1", "--slots=1")
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert run("jpeglm.sample", *flags, f"--out={whole}").returncode == 0
    random, left, running = np.random.default_rng(0), {1: 10, 2: 10}, {}
    while left:
        for part in left:
            if part not in running:
                running[part] = start("jpeglm.sample", *flags, f"--out={out}", f"--part={part}/2")
        time.sleep(random.uniform(2, 6))  # starting takes longer than the shortest of these
        part = int(random.choice(list(left)))
        if left[part] and running[part].poll() is None:
            running[part].kill()
            running.pop(part).communicate()
            left[part] -= 1
        else:
            _, told = running.pop(part).communicate(timeout=1_800)
            assert "Traceback" not in told, told
            assert not left.pop(part), "it was done before it was killed ten times"
    for process in running.values():
        process.communicate()
    assert files(out) == files(whole) and len(files(whole)) == 800
    rows = [json.loads(line)["name"] + str(log.parent) for log in out.rglob("*.jsonl") for line in log.open()]
    assert len(rows) == len(set(rows)) == 800


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*.jpg")}
