"""`jpeglm.convert` as a command, and the other commands on what it made: a directory like the public checkpoint."""

import json
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import sentencepiece
import torch
import transformers

import jpeglm
from jpeglm.data import batches
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from tests.convert import llamas
from tests.convert.test_sentencepiece import braille, train
from tests.forks import run

TINY = "--config=tests/tiny_config.py"
CODEC = JpegCodec(height=32, width=32, mode="L", quality=25)


@pytest.fixture(scope="module")
def public(tiny_data, tmp_path_factory):
    """One pytorch_model.bin in bfloat16 and a SentencePiece tokenizer.model."""
    folder = tmp_path_factory.mktemp("public") / "llama"
    llamas.save(llamas.make(rms_norm_eps=1e-6).bfloat16(), folder, "bin", "")
    (folder / "tokenizer.json").unlink()
    documents = list(batches.documents(tiny_data, "train", 200))
    (folder / "tokenizer.model").write_bytes(train(documents))
    return folder


@pytest.fixture(scope="module")
def workdir(public, tmp_path_factory):
    target = tmp_path_factory.mktemp("imported") / "run"
    done = run("jpeglm.convert", "import", str(public), str(target), TINY, "--config.data.seq_len=256")
    assert done.returncode == 0, done.stderr
    assert re.search(r"run: 3 layers, 1\d\d,\d{3} parameters, 320 entries\n$", done.stdout)
    return target


def test_an_imported_run_samples_scores_and_goes_out_again(public, workdir, tiny_data, tmp_path):
    commands = [
        ("jpeglm.sample", f"--workdir={workdir}", f"--images={tiny_data}", "--num=2", "--slots=2", "--max_tokens=160")
        + (f"--out={tmp_path / 'samples'}",),
        ("jpeglm.score", f"--workdir={workdir}", f"--images={tiny_data}", "--num=2"),
        ("jpeglm.convert", "export", str(workdir), str(tmp_path / "export"), "--dtype=bfloat16", "--step=0"),
    ]
    with ThreadPoolExecutor(2) as pool:
        sampled, scored, exported = pool.map(lambda command: run(*command), commands)
    assert sampled.returncode == scored.returncode == exported.returncode == 0, sampled.stderr + scored.stderr
    assert len(list((tmp_path / "samples").glob("*.jpg"))) == 2

    # Bits a byte as transformers and sentencepiece give them.
    theirs = transformers.LlamaForCausalLM.from_pretrained(public).float()
    processor = sentencepiece.SentencePieceProcessor(model_file=str(public / "tokenizer.model"))
    for index, document in enumerate(batches.documents(tiny_data, "heldout", 2)):
        ids = torch.tensor([[1, *processor.encode(braille(document)), 2]])
        with torch.no_grad():
            nats = float(theirs(ids, labels=ids).loss) * (ids.shape[1] - 1)
        line = next(line for line in scored.stdout.splitlines() if f"heldout-0000{index}" in line)
        assert float(line.split()[2]) == pytest.approx(nats / np.log(2) / len(document), abs=2e-4)

    again = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "export").state_dict()
    original = torch.load(public / "pytorch_model.bin")
    assert all(torch.equal(again[name], original[name]) for name in original)
    auto = transformers.AutoTokenizer.from_pretrained(tmp_path / "export")
    text = braille(document)
    assert auto(text, add_special_tokens=False).input_ids == processor.encode(text)


def test_training_begins_from_an_imported_run_but_not_in_it(workdir, tiny_data, tmp_path):
    copy = shutil.copytree(workdir, tmp_path / "imported")
    done = run("jpeglm.train", TINY, f"--config.data.path={tiny_data}", f"--workdir={copy}")
    assert done.returncode == 2
    assert "--config.init_from=" in done.stderr and "Traceback" not in done.stderr


def test_a_slim_copy_samples_as_the_run_does_and_is_not_trained_on(tiny_run, tiny_data, tmp_path):
    slim = tmp_path / "slim"
    done = run("jpeglm.convert", "slim", str(tiny_run), str(slim))
    assert done.returncode == 0, done.stderr
    steps = [path.name for path in (slim / "checkpoints").iterdir()]
    assert steps == [max((path.name for path in (tiny_run / "checkpoints").iterdir()), key=int)]
    size = {
        folder: sum(p.stat().st_size for p in (folder / "checkpoints" / steps[0]).rglob("*"))
        for folder in (tiny_run, slim)
    }
    assert size[slim] < size[tiny_run] / 2
    same = [
        (jpeglm.load(folder).generate(3, seed=5), (folder / "metrics.jsonl").read_text())
        for folder in (tiny_run, slim)
    ]
    assert [picture.file for picture in same[0][0]] == [picture.file for picture in same[1][0]]
    assert same[0][1] == same[1][1]
    done = run("jpeglm.train", TINY, f"--config.data.path={tiny_data}", f"--workdir={slim}")
    assert done.returncode == 2 and f"--config.init_from={slim}" in done.stderr
    done = run("jpeglm.convert", "slim", str(tiny_run), str(slim))
    assert done.returncode == 2 and "nothing is overwritten" in done.stderr


@pytest.mark.slow
def test_training_goes_on_from_imported_weights_with_the_imported_tokenizer(workdir, tmp_path):
    prepared = run(
        "jpeglm.prepare",
        TINY,
        "--source=embedded:mnist",
        f"--tokenizer={workdir / 'tokenizer.json'}",
        f"--out={tmp_path / 'data'}",
    )
    assert prepared.returncode == 0, prepared.stderr
    shapes = {name: value for name, value in json.loads((workdir / "config.json").read_text())["model"].items()}
    trained = run(
        "jpeglm.train",
        TINY,
        *(f"--config.model.{name}={value}" for name, value in shapes.items()),
        "--config.optim.lr=1e-9",
        f"--config.data.path={tmp_path / 'data'}",
        f"--config.init_from={workdir}",
        f"--workdir={tmp_path / 'run'}",
    )
    assert trained.returncode == 0, trained.stderr
    (_, before), (_, after) = llamas.restored(workdir), llamas.restored(tmp_path / "run")
    np.testing.assert_allclose(after["layers"]["wq"], before["layers"]["wq"], atol=1e-6)
    learnt = BpeTokenizer.load(tmp_path / "run" / "tokenizer.json")
    assert learnt.sha256 == BpeTokenizer.load(workdir / "tokenizer.json").sha256


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (["bring", "{public}", "{new}"], "'bring' is none of import, export, slim"),
        (["import", "{public}", "{new}", "--step=3"], "--step belongs to export and slim, not to import"),
        (["slim", "{public}", "{new}"], "llama/config.json: not the config of a run"),
        (["import", "{public}", "gs://bucket/run"], "gs://bucket/run: not a local path"),
        (["import", "{damaged}", "{new}", TINY], "pytorch_model.bin: .*truncated"),
        (["slim", "{public}", "{public}/slim"], "llama/slim lies in SRC=.*llama: take a place outside"),
    ],
    ids=["no direction", "flag of the other", "no run", "not local", "damaged weights", "inside of the source"],
)
def test_bad_input_is_one_line_and_exit_status_2(arguments, named, public, tmp_path):
    damaged = shutil.copytree(public, tmp_path / "in" / "llama")
    (damaged / "pytorch_model.bin").write_bytes((public / "pytorch_model.bin").read_bytes()[:-100])
    places = {"public": public, "damaged": damaged, "new": tmp_path / "new"}
    done = run("jpeglm.convert", *(argument.format(**places) for argument in arguments))
    lines = [line for line in done.stderr.splitlines() if not re.match(r"[IW]\d{4} ", line)]
    assert done.returncode == 2 and len(lines) == 1, done.stderr
    assert re.search(named, lines[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]
