"""The user's own mistakes, in every command: one exact line on standard error, status 2, and nothing is written."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands import ROOT
from tests.forks import run

TINY = "--config=tests/tiny_config.py"
DEMO = "--config=configs/eval/demo.py"
AS_A_TABLE = "this is the config of a table; the config of a run is needed, as configs/jpeglm_demo.py"
AS_A_RUN = "this is the config of a run; the config of a table is needed, as configs/eval/demo.py"
COUNT = "a whole number from 1 to 2,147,483,647"
SEED = "a whole number from 0 to 4,294,967,295"
NO_CONFIG = "get_config() gives dict, not a ConfigDict as base() does"
# What each command is given beside the mistake. {new} does not exist, {file} is a file, {bad} a folder of configs.
NEEDS = {
    "train": [TINY, "--workdir={new}"],
    "train --dry_run": [TINY, "--workdir={new}", "--dry_run"],
    "prepare": [TINY, "--source=embedded:mnist", "--out={new}"],
    "aot": [TINY, "--topology=h100:8"],
    "convert": ["import", "{file}", "{new}", TINY],
    "tables": [DEMO, "--config.workdir={new}", "--config.data={new}-data", "--config.out={new}"],
    "sample": ["--workdir=pretrained/demo", "--num=1", "--out={new}"],
    "score": ["--workdir=pretrained/demo", "--images=embedded:mnist", "--num=1"],
    "fid": ["--real=embedded:mnist", "--fake=embedded:mnist"],
}
RUNS = ("train", "train --dry_run", "prepare", "aot", "convert")  # commands that take the config of a run
MISTAKES = {  # (commands, flags, line)
    "checkpoint.keep=0": (RUNS, ["--config.checkpoint.keep=0"], f"config.checkpoint.keep=0: {COUNT}"),
    "eval.batches=0": (RUNS, ["--config.eval.batches=0"], f"config.eval.batches=0: {COUNT}"),
    "log.every=0": (RUNS, ["--config.log.every=0"], f"config.log.every=0: {COUNT}"),
    "lr=nan": (RUNS, ["--config.optim.lr=nan"], "config.optim.lr=nan: a finite number from 0"),
    "accumulate=0": (RUNS, ["--config.optim.accumulate=0"], f"config.optim.accumulate=0: {COUNT}"),
    "num_kv_heads=0": (
        RUNS,
        ["--config.model.num_kv_heads=0"],
        "config.model.num_kv_heads=0: a whole number from 1 to 65,536",
    ),
    "seed=-1": (RUNS, ["--config.seed=-1"], f"config.seed=-1: {SEED}"),
    "seed beyond 32 bits": ((*RUNS, "tables"), ["--config.seed=4294967297"], f"config.seed=4294967297: {SEED}"),
    "temperature=nan": (
        ("tables",),
        ["--config.sampling.temperature=nan"],
        "config.sampling.temperature=nan: a finite number from 1e-30 to 1e+30, or 0",
    ),
    "num=1": (("tables",), ["--config.num=1"], "config.num=1: a whole number from 2 to 2,147,483,647"),
    "a fraction for a number": (
        RUNS,
        ["--config.steps=1e6"],
        "flag --config.steps=1e6: invalid literal for int() with base 10: '1e6'",
    ),
    "sample --seed=-1": (("sample",), ["--seed=-1"], f"--seed=-1: {SEED}"),
    "sample --seed beyond 32 bits": (("sample",), ["--seed=4294967296"], f"--seed=4294967296: {SEED}"),
    "fid --seed=-1": (("fid",), ["--seed=-1"], "flag --seed=-1: -1 is not an integer in the range [0, 4294967295]"),
    "sample --temperature=nan": (
        ("sample",),
        ["--temperature=nan"],
        "--temperature=nan: a finite number from 1e-30 to 1e+30, or 0",
    ),
    "sample --ratio=inf": (("sample",), ["--ratio=inf"], "--ratio=inf: a finite number from 0 to 1"),
    "sample --top_p=1.5": (("sample",), ["--top_p=1.5"], "--top_p=1.5: a finite number above 0, up to 1"),
    "sample --top_k=-1": (("sample",), ["--top_k=-1"], "--top_k=-1: a whole number from 0 to 2,147,483,647"),
    "sample --slots=0": (("sample",), ["--slots=0"], f"--slots=0: {COUNT}"),
    "sample --max_tokens=0": (
        ("sample",),
        ["--max_tokens=0"],
        "--max_tokens=0: a whole number from 2 to 16,777,216",
    ),
    "a number of 70 bits": (
        ("sample", "score"),
        ["--num=999999999999999999999"],
        "--num=999999999999999999999: a whole number of at most 32 bits",
    ),
    "syntax": (
        (*RUNS, "tables"),
        ["--config={bad}/syntax.py"],
        "{bad}/syntax.py, line 1: SyntaxError: invalid syntax",
    ),
    "import": (
        (*RUNS, "tables"),
        ["--config={bad}/imports.py"],
        "{bad}/imports.py, line 1: ModuleNotFoundError: No module named 'nowhere'",
    ),
    "a dict": ((*RUNS, "tables"), ["--config={bad}/plain.py"], f"{{bad}}/plain.py: {NO_CONFIG}"),
    "a missing key": (RUNS, ["--config={bad}/missing.py"], f"config.eval.every is missing: {COUNT}"),
    "a table without sampling": (
        ("tables",),
        ["--config={bad}/no_sampling.py"],
        "config.sampling is missing: max_tokens, temperature, top_k, top_p, slots",
    ),
    "the config of a table": (RUNS, [DEMO], AS_A_TABLE),
    "config.json": (
        (*RUNS, "tables"),
        ["--config=pretrained/demo/config.json"],
        "pretrained/demo/config.json: a config is a Python file with get_config(), as configs/jpeglm_demo.py",
    ),
    "no such file": (
        (*RUNS, "tables"),
        ["--config=/no.py"],
        "cannot read the config /no.py: No such file or directory",
    ),
    "learning_rate": (
        RUNS,
        ["--config.optim.learning_rate=1"],
        "config.optim.learning_rate: no such key; did you mean config.optim.lr?",
    ),
    "a section": (
        RUNS,
        ["--config.mesh=8"],
        "config.mesh is a section, its keys are mesh.context, mesh.data, mesh.fsdp, mesh.tensor",
    ),
    "s3": (
        ("train", "train --dry_run", "sample", "score"),
        ["--workdir=s3://bucket/run"],
        "s3://bucket/run: Install s3fs to access S3",
    ),
    "gs": (
        ("train", "train --dry_run", "sample", "score"),
        ["--workdir=gs://bucket/run"],
        "gs://bucket/run: Please install gcsfs to access Google Storage",
    ),
    "s3 of tables": (("tables",), ["--config.workdir=s3://b/run"], "s3://b/run: Install s3fs to access S3"),
    "no such store": (
        ("train", "train --dry_run", "sample", "score"),
        ["--workdir=foo://bucket/run"],
        "foo://: there is no such store; gs:// and s3:// are known",
    ),
    "a file as workdir": (
        ("train", "train --dry_run", "sample", "score"),
        ["--workdir={file}"],
        "{file} is a file; a folder is needed",
    ),
    "no workdir": (("train", "sample", "score"), ["--workdir="], "--workdir is needed; see --help"),
    "a config of 200,000 brackets": (
        ("sample", "score"),
        ["--workdir={deep}"],
        "{deep}/config.json: not a readable config of a run (RecursionError: maximum recursion depth exceeded while "
        "decoding a JSON array from a unicode string)",
    ),
    "tables --workdir": (("tables",), ["--workdir=x"], "unknown flag --workdir; did you mean --config.workdir?"),
    "sample --source": (("sample", "score"), ["--source=x"], "unknown flag --source; did you mean --images?"),
    "prepare --images": (("prepare",), ["--images=x"], "unknown flag --images; did you mean --source?"),
    "train --lr": (("train",), ["--lr=1"], "unknown flag --lr; did you mean --config.optim.lr?"),
    "sample --temprature": (("sample",), ["--temprature=1"], "unknown flag --temprature; did you mean --temperature?"),
    "fid --reference": (("fid",), ["--reference=x"], "unknown flag --reference; did you mean --real?"),
    "a flag like none": (tuple(NEEDS), ["--zzzzzz=1"], "unknown flag --zzzzzz"),
}
MISSING = {
    "train": "--config and --workdir are needed; see --help",
    "prepare": "--config and --source and --out are needed; see --help",
    "aot": "--config and --topology are needed; see --help",
    "tables": "--config is needed; see --help",
    "sample": "--workdir and --out are needed; see --help",
    "score": "--workdir and --images are needed; see --help",
}


@pytest.fixture(scope="module")
def places(tmp_path_factory) -> dict[str, Path]:
    """The folders and files in braces above."""
    folder = tmp_path_factory.mktemp("mistakes")
    bad, deep = folder / "bad", folder / "deep"
    bad.mkdir()
    deep.mkdir()
    (bad / "syntax.py").write_text("def get_config(:\n    pass\n")
    (bad / "imports.py").write_text("import nowhere\n")
    (bad / "plain.py").write_text("def get_config():\n    return {'steps': 1}\n")
    without = "\ndef get_config():\n    c = made()\n    c.unlock()\n    del c.{}\n    return c\n"
    (bad / "missing.py").write_text("from jpeglm.core.config import base as made" + without.format("eval"))
    (bad / "no_sampling.py").write_text(
        "from configs.eval.demo import get_config as made" + without.format("sampling")
    )
    (deep / "config.json").write_text("[" * 200_000)
    (folder / "file").write_text("a file")
    return {"new": folder / "new", "bad": bad, "deep": deep, "file": folder / "file"}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_the_same_line_in_every_command(places, mistake):
    commands, flags, line = MISTAKES[mistake]
    for command in commands:
        name, *first = command.split()
        replaced = {flag.partition("=")[0] for flag in flags}
        needs = [flag for flag in NEEDS[command] if flag.partition("=")[0] not in replaced]
        arguments = [argument.format(**places) for argument in (*flags, *needs, *first)]
        arguments.sort(key=lambda argument: argument.startswith("--config."))  # after --config
        done = run(f"jpeglm.{name}", *arguments)
        assert done.stderr == f"python -m jpeglm.{name}: error: {line.format(**places)}\n", (command, done.stderr)
        assert (done.returncode, done.stdout) == (2, "")
    assert not places["new"].exists()


@pytest.mark.parametrize("command", MISSING)
def test_flags_that_are_missing_are_one_line(command):
    done = run(f"jpeglm.{command}")
    assert (done.returncode, done.stderr) == (2, f"python -m jpeglm.{command}: error: {MISSING[command]}\n")


def test_the_package_lists_its_commands():
    done = run("jpeglm.__main__")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("python -m jpeglm.")]
    listed = {line.split()[2].removeprefix("jpeglm.") for line in lines}
    assert listed - {"COMMAND"} == {command.split()[0] for command in NEEDS} | {"inspect"}
    assert "python -m jpeglm.train    Trains a language model on prepared chunks, or resumes" in done.stdout
    for arguments, line in (
        (["train"], "'train': commands are written python -m jpeglm.train"),
        (["trian", "--x"], "'trian': commands are written python -m jpeglm.COMMAND; COMMAND is one of aot, convert,"),
    ):
        done = run("jpeglm.__main__", *arguments)
        assert done.returncode == 2 and done.stderr.startswith(f"python -m jpeglm: error: {line}")


def test_names_that_are_not_utf8_reach_any_terminal(tiny_data, tmp_path):
    folder = Path(os.fsdecode(os.fsencode(tmp_path) + b"/d\xe9j\xe0-\xe6\x97\xa5"))
    shutil.copytree(tiny_data, folder)
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["source"] = f"{folder}/pictures"
    (folder / "manifest.json").write_text(json.dumps(manifest))
    for encoding in ("latin-1", "utf-8"):
        command = [sys.executable, "-m", "jpeglm.inspect"]
        variables = os.environ | {"PYTHONIOENCODING": encoding}
        done = subprocess.run([*command, folder], cwd=ROOT, capture_output=True, env=variables)
        assert done.returncode == 0 and not done.stderr, done.stderr
        assert b"d\\udce9j\\udce0-" in done.stdout
    done = subprocess.run([*command, f"{folder}/none"], cwd=ROOT, capture_output=True, env=variables)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1
    assert b"/d\\udce9j\\udce0-" in done.stderr and b"holds no finished prepared data" in done.stderr
