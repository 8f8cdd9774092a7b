"""The commands `prepare` and `inspect` as a user runs them."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]


def run(module: str, *arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", module, *arguments], cwd=ROOT, capture_output=True, text=True)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of 12 pictures and a text file, prepared and verified by the command; and what the command printed."""
    folder = tmp_path_factory.mktemp("prepare")
    (folder / "pictures").mkdir()
    for index in range(12):
        Image.radial_gradient("L").rotate(index * 25, fillcolor=index).save(folder / "pictures" / f"{index}.png")
    (folder / "pictures" / "notes.txt").write_text("none")
    (folder / "pictures" / "notes.png").write_text("none")
    arguments = [
        "--config=configs/jpeglm_demo.py",
        f"--source={folder / 'pictures'}",
        f"--out={folder / 'out'}",
        "--config.data.holdout=2",
        "--config.tokenizer.vocab_size=280",
        "--workers=2",
        "--verify",
    ]
    return folder / "out", arguments, run("jpeglm.prepare", *arguments)


def test_prepare_says_what_it_kept_and_verifies(prepared):
    out, _, done = prepared
    assert done.returncode == 0, done.stderr
    assert "12 of 13 pictures kept; refused: 1 not a picture" in done.stdout
    assert f"passed over, as they are no pictures: 1 .txt; named in {out}/passed_over.jsonl" in done.stdout
    assert f"{out}: verified" in done.stdout
    assert "encoding: 100%" in done.stderr and "verifying: 100%" in done.stderr
    assert json.loads((out / "manifest.json").read_text())["counts"]["kept"] == 12


def test_prepare_says_that_a_folder_is_finished(prepared):
    _, arguments, _ = prepared
    done = run("jpeglm.prepare", *arguments)
    assert done.returncode == 0
    assert "is finished already" in done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("--source=/no/such/folder", "no such folder: /no/such/folder"),
        ("--config.data.seq_len=128", "config.data.seq_len=256, now 128 is asked for"),
        ("--config.data.seqlen=256", "seqlen"),
        ("--background=black", "config.data.background=white, now black is asked for"),
        ("--config.data.background=grey", "config.data.background='grey'"),
        ("--config=configs/nothing.py", "nothing.py"),
        ("--workers=0", "workers"),
        ("--tokenizer=/no/tokenizer.json", "cannot read the tokenizer /no/tokenizer.json"),
    ],
)
def test_bad_input_is_one_line_and_status_2(prepared, change, message, tmp_path):
    _, arguments, _ = prepared
    if change.startswith("--source"):
        arguments = [argument for argument in arguments if not argument.startswith("--out")] + [
            f"--out={tmp_path}/new"
        ]
    done = run("jpeglm.prepare", *arguments, change)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not (tmp_path / "new").exists()


def test_inspect_stops_quietly_when_nobody_reads_on(prepared):
    out, _, _ = prepared
    command = [sys.executable, "-m", "jpeglm.inspect", str(out)]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 1


def test_inspect_prints_what_is_in_the_folder(prepared):
    out, _, _ = prepared
    done = run("jpeglm.inspect", str(out))
    assert done.returncode == 0, done.stderr
    for text in (
        "codec.quality",
        "train-00003-of-00004.array_record",
        "refused: not a picture",
        "passed over: .txt",
        "280 entries, 21 merges",
    ):
        assert text in done.stdout
    vocab = json.loads((out / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    longest = max((token for token in vocab if vocab[token] > 2), key=len)
    assert bytes(ord(character) - 0x2800 for character in longest).hex() in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "missing argument DIR"),
        (["/no/such/folder"], "/no/such/folder holds no finished prepared data"),
        (["a", "b"], "unexpected argument 'b'"),
    ],
)
def test_inspect_refuses_in_one_line(arguments, message):
    done = run("jpeglm.inspect", *arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
