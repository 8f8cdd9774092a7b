"""The commands that use a trained run: `jpeglm.sample` and `jpeglm.score`."""

import base64
import io
import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jpeglm.core import checkpoint, sharding
from jpeglm.core.registry import CODECS, MODELS
from jpeglm.core.workdir import read_config
from jpeglm.data import batches, sources
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.models import llama, networks
from tests.commands import finish
from tests.forks import run
from tests.runs import start_job
from tests.tiny_config import get_config

FLAGS = ("--ratio=0.5", "--samples=2", "--num=3", "--top_k=40", "--top_p=0.9", "--max_tokens=256", "--slots=4")


def sample(workdir, images, out, *more):
    return run("jpeglm.sample", f"--workdir={workdir}", f"--images={images}", f"--out={out}", *FLAGS, *more)


@pytest.fixture(scope="module")
def completed(tiny_run, tiny_data, tmp_path_factory):
    out = tmp_path_factory.mktemp("samples") / "out"
    done = sample(tiny_run, tiny_data, out)
    assert done.returncode == 0, done.stderr
    return out


def files(out):
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.jpg"))}


def test_each_file_begins_with_its_prompt_and_is_in_the_log(completed, tiny_data):
    codec = CODECS.of(get_config())
    rows = {row["name"]: row for row in map(json.loads, (completed / "samples.jsonl").read_text().splitlines())}
    written = files(completed)
    assert sorted(rows) == [f"heldout-0000{i}-s{s}" for i in range(3) for s in range(2)]
    for index, original in enumerate(batches.documents(tiny_data, "heldout", 3)):
        prompt, units = codec.cut(original, 0.5)
        for number in range(2):
            row, file = rows[f"heldout-0000{index}-s{number}"], written[f"heldout-0000{index}-s{number}.jpg"]
            assert file.startswith(codec.restore(prompt))
            assert row["prompt_units"] == units == 8
            document = file[:2] + file[2 + len(codec.tables) :]
            assert row["valid"] == codec.is_valid(document)
    assert written["heldout-00000-s0.jpg"] != written["heldout-00000-s1.jpg"]
    assert not list(completed.glob("*.png"))  # which would count as a sample
    page = (completed / "grid.html").read_text()
    grid = Image.open(io.BytesIO(base64.b64decode(re.search(r'src="data:image/png;base64,([^"]*)"', page)[1])))
    assert grid.size == (4 * 34 - 2, 3 * 34 - 2)  # prompt, two completions, original; 2 pixels between
    assert grid.mode == "L"


def test_an_interrupted_command_goes_on_to_the_same_files(completed, tiny_run, tiny_data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(completed, out)
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    for line in lines[2:]:
        (out / f"{json.loads(line)['name']}.jpg").unlink()
    (out / "samples.jsonl").write_text("".join(lines[:2]))
    done = sample(tiny_run, tiny_data, out, "--slots=3")  # slots change no file
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == str(out / "grid.html")
    assert files(out) == files(completed)
    assert len((out / "samples.jsonl").read_text().splitlines()) == 6


def test_a_folder_of_other_settings_and_missing_things_are_refused(completed, tiny_run, tiny_data, tmp_path):
    before = files(completed)
    done = sample(tiny_run, tiny_data, completed, "--seed=1")
    assert done.returncode == 2 and "seed=0, now 1" in done.stderr
    assert files(completed) == before
    done = run("jpeglm.sample", f"--workdir={tmp_path}", "--num=1", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2 and "no run here" in done.stderr
    done = run("jpeglm.sample", f"--workdir={tiny_run}", f"--out={tmp_path / 'out'}")
    assert done.returncode == 2 and "--images" in done.stderr
    assert not (tmp_path / "out").exists()


def test_score_sums_the_models_own_log_probabilities(tiny_run, tiny_run_of_256, tiny_data):
    """Bits of three held-out files against the loss recomputed from the parameters, a token at a time."""
    done = run("jpeglm.score", f"--workdir={tiny_run_of_256}", f"--images={tiny_data}", "--num=3")
    assert done.returncode == 0, done.stderr
    rows = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()[2:]]
    assert [row[0] for row in rows] == ["heldout-00000", "heldout-00001", "heldout-00002", "mean"]

    stored = read_config(tiny_run)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    params = checkpoint.restore_model(
        tiny_run, checkpoint.pick_step(tiny_run, None), networks.laid_out(MODELS.of(stored), mesh)
    )
    model = nnx.merge(networks.abstract(llama.LlamaConfig.of(stored))[0], params)
    tokenizer = BpeTokenizer.load(tiny_run / "tokenizer.json")
    for row, document in zip(rows, batches.documents(tiny_data, "heldout", 3), strict=False):
        ids = np.array([[tokenizer.BOS, *tokenizer.encode(document), tokenizer.EOS]])
        logits = np.asarray(model(ids, np.arange(ids.shape[1])[None], np.ones_like(ids)), np.float64)[0]
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        chosen = (shifted / shifted.sum(-1, keepdims=True))[np.arange(ids.shape[1] - 1), ids[0, 1:]]
        bits = -np.log2(chosen).sum()
        assert float(row[2]) == pytest.approx(bits / len(document), abs=1e-3)
        assert float(row[3]) == pytest.approx(bits / 1024, abs=1e-3)


############################ What cannot be done, and what is left out ############################


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    """Two digits of about 130 tokens, and noise of more than 256."""
    folder = tmp_path_factory.mktemp("pictures")
    digits = sources.open_source("embedded:mnist")
    for name, _ in zip(digits.names(), range(2), strict=False):
        digits.load(name).save(folder / f"{name}.png")
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), np.uint8)
    Image.fromarray(noise).save(folder / "00000-noise.png")
    return folder


@pytest.fixture(scope="module")
def with_noise(tiny_run_of_256, pictures, tmp_path_factory) -> dict:
    """What scoring and completing do with one picture that is too long, and where samples went."""
    out = tmp_path_factory.mktemp("with_noise") / "out"
    given = (f"--workdir={tiny_run_of_256}", f"--images={pictures}")
    sampling = (f"--out={out}", "--ratio=0.9", "--slots=2")
    commands = {"score": ("jpeglm.score", *given), "sample": ("jpeglm.sample", *given, *sampling)}
    with ThreadPoolExecutor(2) as pool:
        done = dict(zip(commands, pool.map(lambda command: run(*command), commands.values()), strict=True))
    return done | {"out": out}


def last_lines(done) -> tuple[str, str]:
    """The first warning of a picture that is left out, and the error."""
    lines = [line for line in done.stderr.splitlines() if "left out" in line]
    return lines[0], lines[-1]


def test_score_names_what_is_too_long_and_scores_the_others(with_noise):
    done = with_noise["score"]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    table = done.stdout.splitlines()[2:]
    assert [line.split()[0] for line in table[:3]] == ["00000-digit0.png", "00001-digit0.png", "mean"]
    alone = [line.split() for line in table[:2]]
    mean = np.average([float(row[2]) for row in alone], weights=[float(row[1]) for row in alone])
    assert float(table[2].split()[2]) == pytest.approx(mean, abs=2e-4)
    assert re.fullmatch(r"left out: 00000-noise.png: \d+ tokens, more than data.seq_len=256", table[3])
    assert table[4] == "1 of 3 left out, and not in the mean"
    warning, error = last_lines(done)
    assert "left out 00000-noise.png: " in warning
    assert re.search(r"jpeglm.score: error: 1 of 3 are too long and left out: 00000-noise.png: \d+ tokens", error)


def test_sample_names_what_is_too_long_and_completes_the_others(with_noise):
    done, out = with_noise["sample"], with_noise["out"]
    assert done.returncode == 2 and "Traceback" not in done.stderr
    assert sorted(files(out)) == ["00000-digit0.png-s0.jpg", "00001-digit0.png-s0.jpg"]
    assert done.stdout.splitlines() == [str(out / "grid.html")]
    warning, error = last_lines(done)
    assert "left out 00000-noise.png: " in warning
    assert re.search(r"jpeglm.sample: error: 1 of 3 are too long .*: 00000-noise.png: .*max_tokens", error)


@pytest.mark.slow
def test_leaving_out_is_allowed_by_a_flag(with_noise, tiny_run_of_256, pictures):
    given = (f"--workdir={tiny_run_of_256}", f"--images={pictures}", "--allow_too_long")
    scored = run("jpeglm.score", *given)
    sampled = run("jpeglm.sample", *given, f"--out={with_noise['out']}", "--ratio=0.9")
    assert scored.returncode == sampled.returncode == 0
    assert scored.stdout == with_noise["score"].stdout and "1 of 3 are too long" in scored.stderr


def test_samples_within_the_pictures_are_refused(tiny_run, pictures):
    before = sorted(pictures.iterdir())
    done = run("jpeglm.sample", f"--workdir={tiny_run}", f"--images={pictures}", f"--out={pictures / 'out'}")
    assert done.returncode == 2 and f"{pictures / 'out'} lies in --images={pictures}" in done.stderr
    assert sorted(pictures.iterdir()) == before


############################ Several jobs in one command, and several processes ############################


GRID = ("--num=3", "--samples=2", "--ratio=0.25,0.75", "--seed=0,1", "--top_p=0.9,1", "--max_tokens=256", "--slots=4")


@pytest.fixture(scope="module")
def grid(tiny_run, tiny_data, tmp_path_factory) -> Path:
    """Two ratios, two seeds and two settings of the draws, by two processes that a launcher has started."""
    out = tmp_path_factory.mktemp("grid") / "out"
    flags = (f"--workdir={tiny_run}", f"--images={tiny_data}", f"--out={out}", *GRID)
    for done in map(finish, start_job("jpeglm.sample", *flags)):
        assert done.returncode == 0, done.stderr
    return out


def test_each_combination_has_a_folder_as_a_job_of_its_own_writes_it(grid, tiny_run, tiny_data, tmp_path):
    names = [f"ratio-{r}-seed-{s}-top_p-{p}" for r in ("0.25", "0.75") for s in "01" for p in ("0.9", "1")]
    assert sorted(path.name for path in grid.iterdir()) == sorted(names)
    assert all((grid / name / "grid.html").exists() for name in names)
    out = tmp_path / "out"
    one = ("--ratio=0.75", "--seed=1", "--top_p=0.9")
    done = run("jpeglm.sample", f"--workdir={tiny_run}", f"--images={tiny_data}", f"--out={out}", *GRID, *one)
    assert done.returncode == 0, done.stderr
    cell = grid / "ratio-0.75-seed-1-top_p-0.9"
    assert files(out) == files(cell) and len(files(out)) == 6
    assert (out / "settings.json").read_bytes() == (cell / "settings.json").read_bytes()
    assert (out / "grid.html").read_bytes() == (cell / "grid.html").read_bytes()
    of_parts = [json.loads(line) for log in cell.glob("*.jsonl") for line in log.read_text().splitlines()]
    alone = [json.loads(line) for line in (out / "samples.jsonl").read_text().splitlines()]
    known = {"name", "ratio", "seed", "tokens", "ended", "removed", "log_likelihood", "valid", "prompt_units"}
    assert all(row.keys() == known | {"original", "sha256", "settings"} for row in alone)
    for rows in (of_parts, alone):
        rows.sort(key=lambda row: row["name"])
        for row in rows:  # the other one may have had other neighbours
            del row["removed"], row["log_likelihood"]
    assert of_parts == alone and [row["ratio"] for row in alone] == [0.75] * 6


def test_one_process_goes_on_where_two_were(grid, tiny_run, tiny_data, tmp_path):
    out = shutil.copytree(grid, tmp_path / "out")
    before = {str(path): path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    (out / "ratio-0.25-seed-0-top_p-1" / "heldout-00001-s1.jpg").unlink()
    done = run("jpeglm.sample", f"--workdir={tiny_run}", f"--images={tiny_data}", f"--out={out}", *GRID)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(page) for page in sorted(out.rglob("grid.html"))]
    assert {path.name for path in out.rglob("*.jsonl")} == {"samples.jsonl"}
    after = {str(path): path.stat().st_mtime_ns for path in out.rglob("*.jpg")}
    assert after.keys() == before.keys() and sum(after[path] != before[path] for path in after) == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--ratio=0.5,0.5",), "--ratio=0.5,0.5: 0.5 stands there twice"),
        (("--ratio=half",), "--ratio=half: a number, or several with commas between them"),
        (("--seed=1.5",), "--seed=1.5: a whole number, or several"),
        (("--seed=",), "--seed: a number is needed"),
        (("--part=5/4",), "--part=5/4: K/N, part K of N, from 1/N to N/N"),
        (("--ratio=0.5,0.6", "--images="), "without --images nothing is given"),
    ],
    ids=str,
)
def test_values_that_make_no_sense_are_one_line(tiny_run, tiny_data, tmp_path, flags, message):
    flags = ("--num=1", f"--images={tiny_data}", *flags)
    if flags[-1] == "--images=":
        flags = ("--num=1", flags[2])
    done = run("jpeglm.sample", f"--workdir={tiny_run}", f"--out={tmp_path / 'out'}", *flags)
    assert done.returncode == 2 and message in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()
