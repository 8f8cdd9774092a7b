"""A codec, a tokenizer, a model and a method of another package go through every command by entry points."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from tests.commands import ROOT, run
from tests.outside.palette import PaletteCodec
from tests.photographs import photographs
from tests.runs import losses, state

KINDS = {
    "jpeglm.codecs": "palette = tests.outside.palette:PaletteCodec",
    "jpeglm.tokenizers": "words = tests.outside.words:WordTokenizer",
    "jpeglm.models": "gru = tests.outside.gru:Gru",
    "jpeglm.methods": "originals = tests.outside.originals:Originals",
}
RUN = "--config=tests/outside/run_config.py"
CODEC = PaletteCodec(24, 20)
RATIO = 0.5


@pytest.fixture(scope="module")
def path(tmp_path_factory) -> str:
    """PYTHONPATH with the package installed, as pip leaves it."""
    folder = tmp_path_factory.mktemp("installed")
    about = folder / "outside-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: outside\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("".join(f"[{group}]\n{entry}\n" for group, entry in KINDS.items()))
    return f"{folder}:{ROOT}"


@pytest.fixture(scope="module")
def command(path):
    def done(name: str, *flags: str) -> str:
        found = run(f"jpeglm.{name}", *flags, PYTHONPATH=path)
        assert found.returncode == 0, found.stderr
        return found.stdout

    return done


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(photographs(48, 48, 40, "RGB")):
        picture.save(folder / f"{number:02d}.png")
    return folder


@pytest.fixture(scope="module")
def data(command, pictures, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("prepared") / "data"
    command("prepare", RUN, f"--source={pictures}", f"--out={out}", "--workers=2", "--verify")
    return out


@pytest.fixture(scope="module")
def workdir(command, data, tmp_path_factory) -> Path:
    """A run of 20 steps."""
    workdir = tmp_path_factory.mktemp("run") / "workdir"
    command("train", RUN, f"--config.data.path={data}", f"--workdir={workdir}")
    return workdir


def test_they_are_short():
    files = [place.split(" = ")[1].split(":")[0].replace(".", "/") + ".py" for place in KINDS.values()]
    assert sum((ROOT / file).read_text().count("\n") for file in files) < 200


def test_prepared_data_are_of_that_codec_and_tokenizer(command, data):
    manifest = json.loads((data / "manifest.json").read_text())
    assert manifest["counts"]["kept"] == 48 and manifest["encoder_versions"] == {"palette": "1"}
    assert [manifest["config"][section]["name"] for section in ("codec", "tokenizer")] == ["palette", "words"]
    told = command("inspect", str(data))
    assert "Tokenizer: 320 entries, 61 merges" in told and "0 refused" not in told


def test_the_run_learns_and_goes_on_bit_for_bit(command, data, workdir, tmp_path):
    assert losses(workdir, 20)[-5:].mean() < losses(workdir, 20)[:5].mean() - 0.1
    again = shutil.copytree(workdir, tmp_path / "again")
    shutil.rmtree(again / "checkpoints/20")
    command("train", RUN, f"--config.data.path={data}", f"--workdir={again}")
    before, after = state(workdir, 20), state(again, 20)
    assert before.keys() == after.keys() and any("recurrent" in name for name in before)
    assert all(before[name].tobytes() == after[name].tobytes() for name in before)


def test_samples_begin_with_their_pictures(command, workdir, pictures, tmp_path):
    flags = f"--images={pictures}", f"--ratio={RATIO}", "--num=3", "--samples=2", f"--out={tmp_path / 'out'}"
    command("sample", f"--workdir={workdir}", *flags)
    rows = [json.loads(line) for line in (tmp_path / "out/samples.jsonl").read_text().splitlines()]
    assert sorted(row["name"] for row in rows) == [
        f"0{number}.png-s{sample}" for number in range(3) for sample in range(2)
    ]
    for row in rows:
        file = (tmp_path / "out" / f"{row['name']}.palette").read_bytes()
        given, _ = CODEC.cut(CODEC.items.encode((pictures / row["name"][:6]).read_bytes(), "white"), RATIO)
        assert CODEC.strip(file).startswith(given) and row["prompt_units"] == 12
        assert row["valid"] == CODEC.is_valid(CODEC.strip(file))


def test_scores_are_of_whole_files(command, workdir, pictures):
    *_, mean = command("score", f"--workdir={workdir}", f"--images={pictures}", "--num=3").splitlines()
    _, size, a_byte, a_pixel, of_header = mean.split()
    assert float(size) == len(CODEC.header) + 24 * 21
    np.testing.assert_allclose(float(a_byte) * float(size), float(a_pixel) * 24 * 20, rtol=1e-3)
    assert 1 < float(a_byte) < 8
    assert 0 <= float(of_header) < float(a_byte) * float(size)


def test_a_table_has_the_method_beside_the_network(command, data, workdir, tmp_path):
    where = f"--config.workdir={workdir}", f"--config.data={data}", f"--config.out={tmp_path / 'table'}"
    told = command("tables", "--config=tests/outside/table_config.py", *where)
    assert "| the originals" in told and "rows readable" in told
    table = json.loads((tmp_path / "table/table.json").read_text())
    assert "“the originals” are the pictures themselves." in table["notes"]
    valid = {row["method"]: row["valid"] for row in table["rows"]}
    assert valid["originals"] == valid["flat"] == 1 and "trained" in valid
