"""Commands as a user starts them, in processes of their own."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).parents[1]
UNOPTIMISED = "--xla_backend_optimization_level=0"  # halves the time of compiling, which is most of a tiny training's


def xla_flags(devices: int) -> str:
    """XLA's flags for a process with so many CPU devices."""
    return f"--xla_force_host_platform_device_count={devices} {UNOPTIMISED}" if devices > 1 else ""


def start(
    module: str, *arguments: str, devices: int = 1, prefix: Sequence[str] = (), **variables: str
) -> subprocess.Popen:
    """Starts `python -m module`, after `prefix`, on so many CPU devices and with these environment variables."""
    return subprocess.Popen(
        [*prefix, sys.executable, "-m", module, *arguments],
        cwd=ROOT,
        env=os.environ | {"XLA_FLAGS": xla_flags(devices)} | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen) -> subprocess.CompletedProcess:
    """Waits for a started command."""
    out, err = process.communicate(timeout=600)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(module: str, *arguments: str, devices: int = 1, **variables: str) -> subprocess.CompletedProcess:
    """Runs `python -m module` to its end."""
    return finish(start(module, *arguments, devices=devices, **variables))
