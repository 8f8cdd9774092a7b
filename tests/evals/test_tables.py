"""A whole completion table of a tiny run, with a fast extractor in the place of the network."""

import csv
import dataclasses
import importlib.util
import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from ml_collections import ConfigDict

from jpeglm.codecs.jpeg import JpegCodec
from jpeglm.data import pipeline
from jpeglm.errors import InputError
from jpeglm.evals import ngram, table_rows, table_text, tables
from jpeglm.evals.completion import CONTROLS, MODELS, TITLES, Completed, Methods, with_random_bytes
from jpeglm.evals.fid import Moments, frechet_distance
from jpeglm.sampling.engine import Settings
from jpeglm.sampling.sampler import Completion, Sampler
from tests.evals import inceptions
from tests.evals.projection import Projection

NUM = 10  # all 20 held-out digits of the tiny data
RATIOS = (0.25, 0.75)
ROWS = (*MODELS, *CONTROLS["jpeg"])


def make_config(workdir: Path, data: Path, out: Path) -> ConfigDict:
    spec = importlib.util.spec_from_file_location("demo", "configs/eval/demo.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    config = module.get_config()
    config.workdir, config.data, config.out = str(workdir), str(data), str(out)
    config.pretrained = str(workdir)
    config.num, config.ratios = NUM, RATIOS
    config.sampling.slots = 4
    return config


@dataclasses.dataclass
class Made:
    config: ConfigDict
    table: table_rows.Table
    extractor: Projection


@pytest.fixture(scope="module")
def made(tiny_run, tiny_data, tmp_path_factory) -> Made:
    """A whole table with all its rows."""
    config = make_config(tiny_run, tiny_data, tmp_path_factory.mktemp("table"))
    extractor = Projection()
    return Made(config, tables.make(config, extractor), extractor)


@pytest.fixture
def config(tiny_run, tiny_data, tmp_path) -> ConfigDict:
    """The same table, to be made elsewhere."""
    return make_config(tiny_run, tiny_data, tmp_path / "out")


def pictures(documents: list[bytes]) -> np.ndarray:
    codec = JpegCodec(32, 32, "L", 25)
    return np.stack([codec.decode_leniently(document)[0] for document in documents])


def by_place(table: table_rows.Table) -> dict:
    return {(row.method, row.ratio): row for row in table.all_rows}


def test_every_row_has_all_pictures_and_each_is_extracted_once(made):
    assert [(row.method, row.ratio) for row in made.table.all_rows] == [("heldout", None)] + [
        (method, ratio) for ratio in RATIOS for method in ROWS
    ]
    assert {row.num for row in made.table.all_rows} == {NUM}
    assert made.table.metric == "FD-projection"
    assert made.extractor.seen == NUM * (2 + (len(ROWS) + len(MODELS)) * len(RATIOS))


def test_distances_and_shares_are_those_of_the_files(made, tiny_data):
    codec = JpegCodec(32, 32, "L", 25)
    documents = list(pipeline.documents(str(tiny_data), "heldout"))
    extractor = Projection()

    def distance(completed: list[bytes]) -> float:
        return frechet_distance(*(Moments([extractor(pictures(side))]) for side in (completed, documents[NUM:])))

    rows = by_place(made.table)
    assert rows["heldout", None].distance == pytest.approx(distance(documents[:NUM]), rel=1e-6)
    flat = [codec.complete_with_flat(*codec.cut(document, 0.25)) for document in documents[:NUM]]
    assert rows["flat", 0.25].distance == pytest.approx(distance(flat), rel=1e-6)
    assert (rows["flat", 0.25].valid, rows["flat", 0.25].readable) == (1.0, 1.0)
    assert rows["random_bytes", 0.25].valid == 0.0
    assert rows["random_bytes", 0.25].readable < 0.5
    of_networks = ("ended", "tokens", "valid_with_grammar", "distance_with_grammar", "removed")
    for row in made.table.all_rows:
        assert {getattr(row, field) is None for field in of_networks} == {row.method not in MODELS}


def test_the_rows_of_the_model_describe_what_it_wrote(made, tiny_data):
    config = made.config
    documents = list(pipeline.documents(str(tiny_data), "heldout"))
    sampler = Sampler.load(config.workdir, Settings(**config.sampling, grammar=False))
    target = Moments([Projection()(pictures(documents[NUM:]))])
    row = by_place(made.table)["trained", 0.75]

    def written_by(sampler: Sampler) -> tuple[list[Completion], float]:
        written = list(sampler.complete(documents[:NUM], 0.75, seed=config.seed))
        written.sort(key=lambda completion: completion.index)
        features = Projection()(pictures([completion.document for completion in written]))
        return written, frechet_distance(Moments([features]), target)

    plain, distance = written_by(sampler)
    assert row.tokens == pytest.approx(np.mean([completion.tokens for completion in plain]))
    assert row.ended == pytest.approx(np.mean([completion.ended for completion in plain]))
    assert row.valid == pytest.approx(np.mean([sampler.codec.is_valid(c.document) for c in plain]))
    assert row.distance == pytest.approx(distance, rel=1e-6)
    legal, distance = written_by(sampler.with_settings(Settings(**config.sampling, grammar=True)))
    assert row.removed == pytest.approx(np.mean([completion.removed for completion in legal]))
    assert row.distance_with_grammar == pytest.approx(distance, rel=1e-6)


def test_the_grammar_makes_every_networks_files_valid_and_removes_less_of_a_trained_ones_mass(made):
    rows = by_place(made.table)
    for ratio in RATIOS:
        assert {rows[method, ratio].valid_with_grammar for method in MODELS} == {1.0}
        assert rows["untrained", ratio].valid == 0.0
        assert 0 < rows["trained", ratio].removed < rows["untrained", ratio].removed < 1


def test_an_invalid_file_written_with_the_grammar_is_an_error(config, projection, monkeypatch):
    def complete(self, row, originals, ratio, grammar=False):
        documents = with_random_bytes(self.codec, originals, ratio, 0)
        if grammar:
            documents = originals[:-1] + documents[-1:]
        return Completed(documents, np.ones(NUM, bool), np.ones(NUM, np.int64), np.zeros(NUM) if grammar else None)

    monkeypatch.setattr(Methods, "complete", complete)
    with pytest.raises(RuntimeError, match="cell trained-0.25-grammar: 1 of 10 files") as caught:
        tables.make(config, projection)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "share, text",
    [(None, "–"), (0.0, "0.0%"), (1.0, "100.0%"), (0.372, "37.2%"), (0.0151, "1.5%"), (0.005, "0.50%")]
    + [(0.00013, "0.013%"), (1.3e-6, "0.00013%"), (1e-9, "<0.0001%")],
)
def test_small_shares_keep_two_digits(share, text):
    assert table_text.fine_percent(share) == text


def test_the_losses_are_those_of_the_last_evaluation_and_of_the_ngram_model(made):
    rows = [json.loads(line) for line in (Path(made.config.workdir) / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if "heldout/bits_per_byte" in row][-1]
    model, counted, pretrained = made.table.language_models
    assert dataclasses.replace(pretrained, title="") == dataclasses.replace(model, title="")  # here the same run
    assert model.nats_per_token == last["heldout/nats_per_token"]
    assert model.bits_per_pixel == last["heldout/bits_per_pixel"]
    assert "step 20" in model.title
    expected = ngram.fit_and_score(made.config.data, 4)
    assert counted.nats_per_token == pytest.approx(expected["nats_per_token"])
    assert made.table.history == rows


@pytest.mark.parametrize("suffix", ["", " with grammar"])
@pytest.mark.parametrize("method", ["trained", "pretrained"])
def test_the_notes_say_which_controls_are_nearer_than_the_model(made, method, suffix):
    rows = made.table.rows
    own = by_place(made.table)

    def distance(row: table_rows.Row) -> float:
        return row.distance_with_grammar if suffix and row.method in MODELS else row.distance

    start = f"“{TITLES[method]}{suffix}” is "
    [verdict] = [note for note in made.table.notes if note.startswith(start) and "real pictures than" in note]
    names = {other: TITLES[other] + (suffix if other in MODELS else "") for other in ROWS}
    parts = dict.fromkeys(("every control", *names.values()), "")
    for part in verdict.partition(" than ")[2].split("; "):
        parts[part.strip("“").partition("”")[0].partition(",")[0]] = part
    assert len(parts) == 1 + len(names)  # none of another name
    for row in rows:
        if row.method not in ("trained", "pretrained"):
            ours, theirs = distance(own[method, row.ratio]), distance(row)
            is_named = f"at {row.ratio:g} ({theirs:,.2f} against {ours:,.2f})" in parts[names[row.method]]
            assert is_named == (theirs <= ours), (row.method, row.ratio)


def test_a_second_time_everything_is_taken_from_the_cells(made, monkeypatch):
    monkeypatch.setattr(Sampler, "load", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(ngram, "fit_and_score", lambda *_: pytest.fail("counted again"))
    extractor = Projection()
    again = tables.make(made.config, extractor)
    assert extractor.seen == 0
    assert again.all_rows == made.table.all_rows
    assert again.language_models == made.table.language_models


def test_another_seed_redoes_only_what_is_drawn(made, config, projection):
    shutil.copytree(Path(made.config.out) / "cells", Path(config.out) / "cells")
    config.seed, config.ratios, config.rows = 1, (0.75,), ("trained", "random_bytes", "flat", "training_mean")
    before, after = by_place(made.table), by_place(tables.make(config, projection))
    assert projection.seen == 3 * NUM  # the model twice and the random bytes
    for method in ("flat", "training_mean"):
        assert after[method, 0.75] == before[method, 0.75]
    for method in ("trained", "random_bytes"):
        assert after[method, 0.75] != before[method, 0.75]


def test_another_extractor_measures_again_without_sampling_again(made, config, monkeypatch):
    shutil.copytree(Path(made.config.out) / "cells", Path(config.out) / "cells")
    monkeypatch.setattr(Sampler, "load", lambda *_: pytest.fail("sampled again"))
    other = Projection(seed=1)
    table = tables.make(config, other)
    assert other.seen == made.extractor.seen
    assert table.rows != made.table.rows
    assert [row.valid for row in table.rows] == [row.valid for row in made.table.rows]


def test_a_table_that_was_broken_off_goes_on_to_the_same_numbers(made, config, projection, monkeypatch):
    config.rows = ("random_bytes", "flat", "training_mean")
    complete = Methods.complete

    def break_off(self, row, originals, ratio, grammar=False):
        if (row, ratio) == ("flat", 0.75):
            raise KeyboardInterrupt
        return complete(self, row, originals, ratio, grammar)

    monkeypatch.setattr(Methods, "complete", break_off)
    with pytest.raises(KeyboardInterrupt):
        tables.make(config, projection)
    seen = projection.seen
    monkeypatch.setattr(Methods, "complete", complete)
    resumed = tables.make(config, projection)
    assert projection.seen == seen + 3 * NUM
    undisturbed = [row for row in made.table.rows if row.method in ("heldout", *config.rows)]
    assert resumed.rows == undisturbed


def test_files_hold_the_same_numbers(made, tmp_path):
    table = made.table
    table_text.write(table, tmp_path / "files", {"command": "c"})
    content = json.loads((tmp_path / "files/table.json").read_text())
    assert content["command"] == "c"
    assert content["metric"] == "FD-projection"
    with open(tmp_path / "files/table.csv") as file:
        lines = list(csv.DictReader(file))
    text = (tmp_path / "files/table.md").read_text()
    assert len(lines) == len(content["rows"]) == len(table.all_rows)
    for row, line, entry in zip(table.all_rows, lines, content["rows"], strict=True):
        assert float(line["distance"]) == entry["distance"] == row.distance
        assert (line["ratio"] == "") == (row.ratio is None)
        assert f"{row.distance:,.2f} |" in text
        for field in ("valid_with_grammar", "distance_with_grammar", "removed"):
            value = getattr(row, field)
            assert entry[field] == value
            assert line[field] == ("" if value is None else str(value))
        if row.method in MODELS:
            assert f"{row.distance_with_grammar:,.2f} |" in text
            assert f"| {table_text.fine_percent(row.removed)} |" in " ".join(text.split())
    for model in table.language_models:
        assert f"{model.nats_per_token:.4f}" in text
    assert table.notes[0] in text


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("workdir", "", "config.workdir"),
        ("num", 11, "22 held-out documents"),
        ("num", 1, "config.num=1: a whole number from 2"),
        ("rows", ("trained", "vq"), "'vq' is none of trained"),
        ("ratios", (0.5, 1.0), r"config.ratios=\\(0.5, 1.0\\): .*from 0 to below 1"),
        ("ratios", (0.5, 0.5), "twice"),
        ("extractor", "vgg", "'vgg' is none of efficientnet_lite0, inception"),
        ("extractor", "inception", "config.weights=FILE and config.extractor=inception go together"),
        ("weights", "inception.pth", "config.weights=FILE and config.extractor=inception go together"),
        ("workdir", "/nowhere", "no run here"),
        ("data", "/nowhere", "no finished prepared data"),
    ],
)
def test_a_config_that_names_no_table_is_refused_in_one_line(config, projection, key, value, words):
    config[key] = value
    with pytest.raises(InputError, match=words) as caught:
        tables.make(config, projection)
    assert "\n" not in str(caught.value)


def test_weights_of_the_inception_give_its_features_in_the_mode_asked_for(config, tmp_path):
    inceptions.write_weights(tmp_path / "weights.pth", 0)
    config.update({"extractor": "inception", "weights": str(tmp_path / "weights.pth"), "mode": "legacy_pytorch"})
    tables.check(config)
    extractor = tables._extractor(config)
    assert (extractor.name, extractor.mode, extractor.dim) == ("Inception 2015", "legacy_pytorch", 2048)


def test_a_config_of_before_there_were_weights_still_serves(config):
    older = ConfigDict({key: value for key, value in config.items() if key not in ("weights", "mode")})
    tables.check(older)
    assert tables._extractor(older).name == "EfficientNet-Lite0"


def test_a_misspelt_key_ends_with_status_2():
    command = [sys.executable, "-m", "jpeglm.tables", "--config=configs/eval/demo.py", "--config.nmu=4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nmu" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
