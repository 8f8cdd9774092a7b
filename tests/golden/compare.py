"""Runs the same inputs through two checkouts, and compares all that they write to the last bit.

    python -m tests.golden.compare BEFORE AFTER [--python=PYTHON] [--out=FOLDER]

BEFORE and AFTER are folders of the repository, which may differ in everything but commands and configs. Each prepares
and trains (first), then samples, scores, resumes and makes tables (second). After that the second part is done by
AFTER with what BEFORE prepared and trained (crossed). Shards, manifests, losses, checkpoints, samples, films, tables
and what is printed must be equal; times, compiled programs and pages need not. A new key in a JSON file is told and
no difference. Ends with status 1 where something differs. Takes a quarter of an hour on two cores.
"""

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from tabulate import tabulate

from tests.golden import inputs
from tests.golden.collect import CLIPS, JPEG, PRETRAINED, TABLE, TINY, VARIANTS, Run, done

NOT_COMPARED = {"programs", "tensorboard", "grid.html", "report.html", "started.json", ".lock"}
OF_TIME = ("tokens_per_second", "seconds/", "goodput", "date")  # how keys of wall-clock time begin
DIGITS = "--config=configs/jpeglm_demo.py"
SHOWN = 20  # differences of a part


def first(run: Run, given: Path, out: Path) -> None:
    """Prepares pictures, clips and digits, and trains on them."""
    out.mkdir()
    for name, flags, source in (
        ("jpeg", JPEG, given / "pictures"),
        ("avc", CLIPS, given / "clips"),
        ("digits", (DIGITS,), "embedded:mnist"),
    ):
        done(run, "jpeglm.prepare", *flags, f"--source={source}", f"--out={out / name}")
    for name, flags in VARIANTS.items():
        where = f"--config.data.path={out / 'digits'}", f"--workdir={out / name}"
        done(run, "jpeglm.train", DIGITS, *TINY, *flags, *where)
    few = "--config.steps=4", "--config.optim.batch_size=2"
    done(run, "jpeglm.train", *CLIPS, *TINY, *few, f"--config.data.path={out / 'avc'}", f"--workdir={out / 'clips'}")


def second(run: Run, given: Path, trained: Path, out: Path) -> None:
    """Samples, scores, resumes and makes tables, from the folder that `first` wrote."""
    out.mkdir()
    pictures, filters = f"--images={given / 'pictures'}", ("--temperature=0.7", "--top_k=40", "--top_p=0.9")
    for name, workdir, *flags in (
        ("grammar", PRETRAINED, pictures, "--num=8", *filters),
        ("no_grammar", PRETRAINED, pictures, "--num=8", *filters, "--nogrammar"),
        ("new", PRETRAINED, "--num=4", "--seed=3"),
        ("heldout", trained / "plain", f"--images={trained / 'digits'}", "--num=3", "--samples=2"),
        ("films", trained / "clips", f"--images={trained / 'avc'}", "--num=2", "--frames=3", "--max_tokens=400"),
    ):
        done(run, "jpeglm.sample", f"--workdir={workdir}", *flags, f"--out={out / name}")
    for name, workdir, images in (
        ("score_pretrained.txt", PRETRAINED, given / "pictures"),
        ("score_qk_norm.txt", trained / "qk_norm", trained / "digits"),
    ):
        told = done(run, "jpeglm.score", f"--workdir={workdir}", f"--images={images}", "--num=8")
        (out / name).write_text(told)
    resumed = out / "resumed"
    shutil.copytree(trained / "plain", resumed)
    longer = "--config.steps=14", f"--config.data.path={trained / 'digits'}", f"--workdir={resumed}"
    done(run, "jpeglm.train", DIGITS, *TINY, *VARIANTS["plain"], *longer)
    for name, workdir, data, *flags in (
        ("table", "plain", "digits", *TABLE, f"--config.pretrained={PRETRAINED}", "--config.sampling.temperature=0.7"),
        ("table_of_clips", "clips", "avc", "--config=configs/eval/demo_avc.py", "--config.ratios=(0.5,)",
         "--config.num=2", "--config.sampling.max_tokens=400"),
    ):  # fmt: skip
        where = {"workdir": trained / workdir, "data": trained / data, "out": out / name}
        done(run, "jpeglm.tables", *flags, *(f"--config.{key}={value}" for key, value in where.items()))


def runner(python: str, checkout: Path, programs: Path) -> Run:
    """Runs the commands of a checkout; both share the compiled programs, which are found by their content."""
    variables = {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(programs)}
    variables |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.1"}

    def run(module: str, *flags: str) -> subprocess.CompletedProcess:
        begin, command = time.monotonic(), [python, "-m", module, *flags]
        finished = subprocess.run(command, cwd=checkout, env=os.environ | variables, capture_output=True, text=True)
        print(f"{checkout.name}: {module} {flags[-1]}: {time.monotonic() - begin:.0f} s", file=sys.stderr, flush=True)
        return finished

    return run


def facts(folder: Path) -> dict[tuple[str, str], Any]:
    """All that was written below `folder`, by (file, what of it)."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, parts = path.relative_to(folder).as_posix(), path.relative_to(folder).parts
        if not NOT_COMPARED & set(parts) and "checkpoints" not in parts:
            found |= {(name, key): value for key, value in _of_file(path)}
    for path in sorted(folder.glob("**/checkpoints/*/default")):
        found |= {(path.relative_to(folder).as_posix(), key): value for key, value in _of_checkpoint(path)}
    return found


def _of_file(path: Path) -> Iterator[tuple[str, Any]]:
    if path.suffix == ".json":
        yield from _flat(json.loads(path.read_text()))
    elif path.suffix == ".jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        # Samples are written in the order in which they end; their lines are found by name.
        yield from _flat({str(row.get("name", number)): row for number, row in enumerate(rows)})
    elif path.suffix == ".npz":
        with np.load(path) as arrays:
            yield from ((name, _bits(arrays[name])) for name in arrays.files)
    else:
        yield "", hashlib.sha256(path.read_bytes()).hexdigest()


def _flat(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of a JSON value by their keys, without those of wall-clock time."""
    if not isinstance(value, dict | list):
        yield prefix, value
        return
    for key, part in value.items() if isinstance(value, dict) else enumerate(value):
        if not str(key).startswith(OF_TIME):
            yield from _flat(part, f"{prefix}.{key}" if prefix else str(key))


def _of_checkpoint(path: Path) -> Iterator[tuple[str, Any]]:
    """Every array of a checkpoint: parameters, optimiser and fingerprints."""
    import jax
    import orbax.checkpoint as ocp

    with ocp.PyTreeCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        to_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), saved)
        tree = checkpointer.restore(path, restore_args=to_numpy)
    for place, leaf in jax.tree_util.tree_leaves_with_path(tree):
        yield jax.tree_util.keystr(place), _bits(np.asarray(leaf))


def _bits(array: np.ndarray) -> str:
    return f"{array.dtype} {array.shape} {hashlib.sha256(array.tobytes()).hexdigest()}"


def compare(before: Path, after: Path) -> bool:
    """Prints what differs between two folders, by their parts; returns whether nothing does."""
    old, new = facts(before), facts(after)
    files = {file for file, _ in old}
    rows, differing, added = {}, {}, []
    for file, key in old.keys() | new.keys():
        part = "/".join(file.split("/")[:2])
        counts = rows.setdefault(part, {"part": part, "equal": 0, "different": 0})
        was, now = old.get((file, key), "nothing"), new.get((file, key), "nothing")
        if was == now:
            counts["equal"] += 1
        elif (file, key) not in old and file in files and file.endswith(".json"):
            added.append(f"new key in {file}: {key} = {now}")
        else:
            counts["different"] += 1
            differing.setdefault(part, []).append(f"{file} {key}: {was} before, {now} after")
    print(f"\n{before} and {after}:\n")
    print(tabulate([rows[part] for part in sorted(rows)], headers="keys"))
    for lines in [sorted(added), *(sorted(differing[part]) for part in sorted(differing))]:
        print("\n".join(lines[:SHOWN]) + (f"\nand {len(lines) - SHOWN} more" if len(lines) > SHOWN else ""))
    return not differing


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("before", type=Path)
    parser.add_argument("after", type=Path)
    parser.add_argument("--python", default=sys.executable, help="for both; the one that runs this if not given")
    parser.add_argument("--out", type=Path, help="an empty folder that is kept; a temporary one if not given")
    arguments = parser.parse_args()
    out = (arguments.out or Path(tempfile.mkdtemp(prefix="compare-"))).absolute()
    inputs.write_pictures(out / "given/pictures", 48)
    inputs.write_clips(out / "given/clips", 12)
    work, begin = out / "work", time.monotonic()  # of all in turn, so that paths in what they write are the same
    for name, checkout in (("before", arguments.before), ("after", arguments.after), ("crossed", arguments.after)):
        run = runner(os.path.abspath(shutil.which(arguments.python)), checkout.absolute(), out / "programs")
        work.mkdir()
        if name == "crossed":
            shutil.copytree(out / "before/first", work / "first")
        else:
            first(run, out / "given", work / "first")
        second(run, out / "given", work / "first", work / "second")
        work.rename(out / name)
    is_same = [compare(out / "before", out / name) for name in ("after", "crossed")]
    seconds = f"{time.monotonic() - begin:.0f} s"
    print(f"\n{'every bit is the same' if all(is_same) else 'the checkouts differ'}; {seconds}; see {out}")
    if arguments.out is None and all(is_same):
        shutil.rmtree(out)
    sys.exit(not all(is_same))


if __name__ == "__main__":
    main()
