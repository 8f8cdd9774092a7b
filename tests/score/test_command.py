"""The command `jpeglm.score` with `--compare`, on several devices and without files."""

import json
import re
import shutil

import numpy as np
import pytest

from jpeglm.core.errors import InputError
from jpeglm.data import batches, documents
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.sample.scoring import Scorer
from jpeglm.score.compressors import COMPRESSORS, Sizes
from tests.commands import run

GREY = JpegCodec(32, 32, "L", 25)


def rows(told: str) -> dict[str, list[float]]:
    """The numbers of each row of a comparison."""
    split = [re.split(r"\s{2,}", line.strip()) for line in told.splitlines()]
    return {name: list(map(float, numbers)) for name, *numbers in split if len(numbers) == 8 and name[0] != "-"}


def test_the_model_is_compared_on_the_same_files(tiny_run_of_256, tiny_data):
    flags = (f"--workdir={tiny_run_of_256}", f"--images={tiny_data}", "--num=9", "--compare")
    done = run("jpeglm.score", *flags)
    assert done.returncode == 0, done.stderr
    found = rows(done.stdout)
    assert found.keys() == {"this model, ideal", *COMPRESSORS}
    given = list(batches.documents(tiny_data, "heldout", 9))
    scorer = Scorer.load(tiny_run_of_256)
    nats = list(scorer.nats_of(given))
    header = scorer.num_tokens(GREY.header)
    expected = {name: compressor.sizes(GREY, given) for name, compressor in COMPRESSORS.items()}
    expected["this model, ideal"] = Sizes(
        sum(each.sum() for each in nats) / np.log(256), sum(each[header:].sum() for each in nats) / np.log(256)
    )
    plain, files = expected["document"], expected["file"]
    for name, sizes in expected.items():
        for column, size, document, file in (
            (0, sizes.whole, plain.whole, files.whole),
            (4, sizes.rest, plain.rest, files.rest),
        ):
            numbers = (size / 9, 8 * size / document, 8 * size / 9 / 1024, size / file)
            assert found[name][column : column + 4] == pytest.approx(numbers, abs=6e-3), name


def test_a_missing_program_is_named_before_anything_is_scored(tiny_run_of_256, tiny_data, tmp_path):
    (tmp_path / "zstd").symlink_to(shutil.which("zstd"))
    flags = (f"--workdir={tiny_run_of_256}", f"--images={tiny_data}", "--compare")
    done = run("jpeglm.score", *flags, PATH=str(tmp_path))
    assert done.returncode == 2 and not done.stdout
    told = "error: --compare needs the program cjxl: on Debian, apt install libjxl-tools"
    assert done.stderr.splitlines()[-1] == f"python -m jpeglm.score: {told}"


def test_several_devices_give_the_scores_of_one(tiny_run_of_256, tiny_data):
    """Two devices, each with half of the rows of a batch."""
    done = run("jpeglm.score", f"--workdir={tiny_run_of_256}", f"--images={tiny_data}", "--num=5", devices=2)
    assert done.returncode == 0, done.stderr
    table = [re.split(r"\s{2,}", line.strip()) for line in done.stdout.splitlines()[2:]]
    scorer, given = Scorer.load(tiny_run_of_256), list(batches.documents(tiny_data, "heldout", 5))
    header = scorer.num_tokens(GREY.header)
    for (name, *numbers), document, nats in zip(table[:5], given, scorer.nats_of(given), strict=True):
        bits = nats / np.log(2)
        expected = len(document), bits.sum() / len(document), bits.sum() / 1024, bits[:header].sum()
        assert list(map(float, numbers)) == pytest.approx(expected, abs=2e-4), name
    assert table[5][0] == "mean"


def test_data_without_held_out_files_are_refused(tiny_data, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(tiny_data, data)
    manifest = json.loads((data / "manifest.json").read_text())
    manifest["splits"]["heldout"]["shards"] = []
    (data / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(InputError, match=f"^{data} was prepared without held-out pictures$"):
        documents.read(str(data), GREY)
