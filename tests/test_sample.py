"""The commands that use a trained run: `jpeglm.sample` and `jpeglm.score`."""

import json
import re
import shutil

import jax
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from jpeglm import checkpoint, codecs, sharding
from jpeglm.data import pipeline
from jpeglm.model import llama
from jpeglm.tokenizer import Tokenizer
from tests.commands import run
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
    codec = codecs.make(get_config().codec)
    rows = {row["name"]: row for row in map(json.loads, (completed / "samples.jsonl").read_text().splitlines())}
    written = files(completed)
    assert sorted(rows) == [f"heldout-0000{i}-s{s}" for i in range(3) for s in range(2)]
    for index, original in enumerate(pipeline.documents(tiny_data, "heldout", 3)):
        prompt, units = codec.cut(original, 0.5)
        for number in range(2):
            row, file = rows[f"heldout-0000{index}-s{number}"], written[f"heldout-0000{index}-s{number}.jpg"]
            assert file.startswith(codec.restore(prompt))
            assert row["prompt_units"] == units == 8
            document = file[:2] + file[2 + len(codec.tables) :]
            assert row["valid"] == codec.is_valid(document)
    assert written["heldout-00000-s0.jpg"] != written["heldout-00000-s1.jpg"]
    grid = Image.open(completed / "grid.png")
    assert grid.size == (4 * 34 - 2, 3 * 34 - 2)  # prompt, two completions, original; 2 pixels between
    assert grid.mode == "L"


def test_an_interrupted_command_goes_on_to_the_same_files(completed, tiny_run, tiny_data, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(completed, out)
    lines = (out / "samples.jsonl").read_text().splitlines(keepends=True)
    for line in lines[2:]:
        (out / f"{json.loads(line)['name']}.jpg").unlink()
    (out / "samples.jsonl").write_text("".join(lines[:2]))
    assert sample(tiny_run, tiny_data, out).returncode == 0
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

    stored = checkpoint.read_config(tiny_run)
    mesh = sharding.make_mesh({"data": -1, "fsdp": 1, "context": 1, "tensor": 1}, jax.devices()[:1])
    params = checkpoint.restore_model(tiny_run, checkpoint.pick_step(tiny_run, None), stored, mesh)
    model = nnx.merge(llama.abstract(llama.LlamaConfig.of(stored))[0], params)
    tokenizer = Tokenizer.load(tiny_run / "tokenizer.json")
    for row, document in zip(rows, pipeline.documents(tiny_data, "heldout", 3), strict=False):
        ids = np.array([[tokenizer.BOS, *tokenizer.encode(document), tokenizer.EOS]])
        logits = np.asarray(model(ids, np.arange(ids.shape[1])[None], np.ones_like(ids)), np.float64)[0]
        shifted = np.exp(logits - logits.max(-1, keepdims=True))
        chosen = (shifted / shifted.sum(-1, keepdims=True))[np.arange(ids.shape[1] - 1), ids[0, 1:]]
        bits = -np.log2(chosen).sum()
        assert float(row[2]) == pytest.approx(bits / len(document), abs=1e-3)
        assert float(row[3]) == pytest.approx(bits / 1024, abs=1e-3)
