"""glibc keeps the memory that a training frees, on CPUs alone."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from jpeglm.core import distributed
from tests.commands import ROOT

# Page faults of each of six times 64 MiB, allocated, written and freed.
FAULTS = """
import ctypes, json, resource, sys
from jpeglm.train.allocator import keep_freed_memory

if sys.argv[1] == "keep":
    assert keep_freed_memory()
libc = ctypes.CDLL(None)
libc.malloc.restype, libc.malloc.argtypes, libc.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    block = libc.malloc(64 << 20)
    ctypes.memset(block, 1, 64 << 20)
    libc.free(block)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

print(json.dumps([faults() for _ in range(6)]))
"""


def test_freed_memory_is_used_again_without_a_page_fault():
    commands = ([sys.executable, "-c", FAULTS, how] for how in ("keep", "default"))
    kept, usual = (json.loads(subprocess.check_output(command, cwd=ROOT)) for command in commands)
    assert min(usual) >= 32  # huge pages of 2 MiB
    assert kept[0] >= 32 and max(kept[1:]) < 8


@pytest.mark.parametrize(
    ("platform", "variable", "files", "expected"),
    [
        ("cpu", None, "/dev/null", True),
        ("tpu", None, "/dev/no such device*", False),
        ("", "cpu", "/dev/null", True),
        ("", "cuda", "/dev/no such device*", False),
        ("", None, "/dev/null", False),
        ("", None, "/dev/no such device*", True),
    ],
)
def test_a_host_whose_devices_will_be_cpus_is_known_before_jax_starts(
    platform, variable, files, expected, monkeypatch
):
    monkeypatch.setattr(distributed, "ACCELERATORS", (files,))
    monkeypatch.setattr(distributed, "_CONFIG", SimpleNamespace(jax_platforms=variable))
    assert distributed.will_use_cpus(platform) is expected
