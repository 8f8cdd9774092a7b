"""Commands in processes forked from one that has imported the libraries: a tenth of a second instead of four.

JAX reads some of its variables when it is imported, JAX_LOG_COMPILES for one: `commands.run` is for those.
"""

import atexit
import faulthandler
import logging
import multiprocessing
import os
import runpy
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.commands import ROOT, xla_flags

_LIMIT = 600  # seconds
_FORKS = multiprocessing.get_context("forkserver")
_MODULES = ("aot", "convert", "fid", "inspect", "prepare", "sample", "score", "tables", "train")
_FORKS.set_forkserver_preload([f"jpeglm.{name}.__main__" for name in _MODULES])


def run(module: str, *arguments: str, devices: int = 1, **variables: str) -> subprocess.CompletedProcess:
    """Runs `python -m module` to its end, as `commands.run` does."""
    variables = os.environ | {"XLA_FLAGS": xla_flags(devices)} | variables
    return _fork(_command, module, arguments, variables)


def parse(module: str, *arguments: str) -> subprocess.CompletedProcess:
    """What `python -m module` says of its flags and arguments; then it ends with status 0 and has done nothing."""
    return _fork(_parse, module, arguments, dict(os.environ))


def _fork(
    target: Callable[..., None], module: str, arguments: tuple[str, ...], variables: dict[str, str]
) -> subprocess.CompletedProcess:
    with tempfile.TemporaryDirectory() as folder:
        out, err = Path(folder, "out"), Path(folder, "err")
        process = _FORKS.Process(target=target, args=(module, arguments, variables, str(out), str(err)))
        process.start()
        process.join(_LIMIT + 10)
        if process.exitcode is None:
            process.kill()
            raise TimeoutError(f"{module} {arguments}\n{err.read_text(errors='backslashreplace')}")
        texts = [path.read_text(errors="backslashreplace") for path in (out, err)]
    return subprocess.CompletedProcess([module, *arguments], process.exitcode, *texts)


def _parse(module: str, *rest: Any) -> None:
    """Runs the command with nothing in the place of its `main`; the benchmarks' flags are absl's own."""
    from absl import app

    from jpeglm.core import cli

    with_flags, plain = cli.run, app.run
    if module.startswith("jpeglm."):
        cli.run = lambda main, *names, **others: with_flags(lambda *given: None, *names, **others)
    else:
        app.run = lambda main: plain(lambda given: None)
    _command(module, *rest)


def _command(module: str, arguments: tuple[str, ...], variables: dict[str, str], out: str, err: str) -> None:
    for descriptor, path in ((1, out), (2, err)):
        os.dup2(os.open(path, os.O_CREAT | os.O_WRONLY), descriptor)
    sys.stdout = open(1, "w", encoding=variables.get("PYTHONIOENCODING", "utf-8"), closefd=False)
    sys.stderr = open(2, "w", errors="backslashreplace", closefd=False)
    faulthandler.dump_traceback_later(_LIMIT, file=sys.stderr)  # where it hangs
    logging.root.handlers.clear()  # one that an import made, of the old standard error
    os.chdir(ROOT)
    os.environ.clear()
    os.environ.update(variables)
    sys.path[0:0] = [str(ROOT)]
    sys.argv = [module, *arguments]
    for name in _MODULES:  # runpy warns of a command that was imported before
        sys.modules.pop(f"jpeglm.{name}.__main__", None)
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    finally:
        atexit._run_exitfuncs()  # which a process of multiprocessing leaves out
