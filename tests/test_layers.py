"""The house: which part may import which, and how large files and functions may be. docs/design.md draws it."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path("jpeglm")
FOUNDATIONS = ("core", "data", "models")
# What each part may import beside itself. A longer name allows a part of a part.
ALLOWED = {
    "core": (),
    "data": ("core",),
    "models": ("core",),
    "prepare": ("core", "data"),
    "train": FOUNDATIONS,
    "sample": FOUNDATIONS,
    "score": (*FOUNDATIONS, "sample"),
    "fid": ("core", "data"),
    "tables": (*FOUNDATIONS, "sample", "fid"),
    "convert": (*FOUNDATIONS, "fid.extractors"),
    "aot": (*FOUNDATIONS, "train", "sample"),
    "inspect": ("core", "data"),
    "__init__": ("sample",),  # jpeglm.load
    "__main__": (),  # the list of commands
}
MOST_LINES, MOST_LINES_OF_FUNCTION = 450, 80


def modules(package: Path) -> dict[str, Path]:
    """The files of a package by module name without "jpeglm."; a package's own file as "data.codecs"."""
    found = {}
    for path in package.rglob("*.py"):
        parts = path.relative_to(package).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[1:] else parts)] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of the package that a file imports, wherever in the file: functions do not hide an import."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: a relative import"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= {name if name.removeprefix("jpeglm.") in known else node.module for name in names}
    return {name.removeprefix("jpeglm.") for name in found if name.startswith("jpeglm.")}


def wrong_imports(package: Path) -> Iterator[str]:
    """Each import that ALLOWED does not have, and a circle if there is one."""
    known = modules(package)
    arrows = {name: imports(path, known) - {name} for name, path in known.items()}
    for name, targets in arrows.items():
        room = name.partition(".")[0]
        may = (room, *ALLOWED[room])
        for target in sorted(targets):
            if not any(target == part or target.startswith(f"{part}.") for part in may):
                yield f"{name} imports {target}"
    try:
        graphlib.TopologicalSorter(arrows).prepare()
    except graphlib.CycleError as error:
        yield "circle: " + " <- ".join(error.args[1])


def test_every_part_imports_only_what_it_may():
    assert not list(wrong_imports(PACKAGE))


@pytest.mark.parametrize(
    "file, line, told",
    [
        ("core/files.py", "from jpeglm.data import codecs", "core.files imports data.codecs"),
        ("data/render.py", "def f():\n    import jpeglm.models.llama", "data.render imports models.llama"),
        ("models/loss.py", "from jpeglm.data.records import BOS", "models.loss imports data.records"),
        ("train/step.py", "from jpeglm.sample.engine import Engine", "train.step imports sample.engine"),
        ("convert/slim.py", "from jpeglm.fid import frechet", "convert.slim imports fid.frechet"),
        ("core/errors.py", "from jpeglm.core import files", "circle: "),
    ],
)
def test_a_wrong_import_is_told(tmp_path, file, line, told):
    shutil.copytree(PACKAGE, tmp_path / "jpeglm", ignore=shutil.ignore_patterns("__pycache__"))
    with open(tmp_path / "jpeglm" / file, "a") as source:
        source.write(f"\n{line}\n")
    assert any(found.startswith(told) for found in wrong_imports(tmp_path / "jpeglm"))


def test_no_codec_source_or_record_needs_jax():
    for name, path in modules(PACKAGE).items():
        if name.partition(".")[0] in ("data", "prepare", "inspect"):
            of_jax = re.findall(r"^\s*(?:import|from) (?:jax|flax|optax|orbax)\b.*", path.read_text(), re.MULTILINE)
            assert not of_jax, path


def test_workers_of_prepare_import_neither_jax_nor_grain():
    program = (
        "import sys; from jpeglm.prepare import plan, verify; sys.exit('jax' in sys.modules or 'grain' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program]).returncode == 0


def test_few_names_lie_directly_in_the_package():
    names = {path.name for path in PACKAGE.iterdir()} - {"__pycache__"}
    assert len(names) <= 14 and names == {room for room in ALLOWED if room[0] != "_"} | {"__init__.py", "__main__.py"}


def test_files_and_functions_are_short():
    for path in PACKAGE.rglob("*.py"):
        text = path.read_text()
        assert text.count("\n") <= MOST_LINES, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert node.end_lineno - node.lineno < MOST_LINES_OF_FUNCTION, f"{path}: {node.name}"
