"""A whole completion table of a tiny run, with a fast extractor in the place of the network."""

import csv
import dataclasses
import importlib.util
import json
import re
import resource
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from etils import epath
from flax import nnx
from ml_collections import ConfigDict

from jpeglm.core import files, sharding
from jpeglm.core.errors import InputError
from jpeglm.core.parts import Part
from jpeglm.core.workdir import read_config
from jpeglm.data import batches
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.codecs.pictures import PictureEvaluation
from jpeglm.data.tokenizers.bpe import BpeTokenizer
from jpeglm.fid.frechet import Moments, frechet_distance
from jpeglm.models import llama
from jpeglm.models.networks import abstract
from jpeglm.sample.engine import Engine
from jpeglm.sample.sampler import Completion, Sampler
from jpeglm.sample.settings import Settings
from jpeglm.tables import context as context_lib
from jpeglm.tables import make, methods, ngram, report
from jpeglm.tables import rows as table_rows
from jpeglm.tables import text as table_text
from jpeglm.tables.context import Context
from jpeglm.tables.methods import REGISTRY, Completed, networks, runs_of
from jpeglm.tables.methods.random_bytes import with_random_bytes
from tests.fid import inceptions
from tests.fid.projection import Projection

NUM = 10  # all 20 held-out digits of the tiny data
RATIOS = (0.25, 0.75)
ROWS = (*networks(), *PictureEvaluation.controls)


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
    return Made(config, make.make(config, extractor), extractor)


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
    assert made.extractor.seen == NUM * (2 + (len(ROWS) + len(networks())) * len(RATIOS))


def test_parts_make_the_table_of_one_process(made, config):
    extractors = Projection(), Projection()
    assert make.make(config, extractors[0], part=Part(1, 2)) is None
    table = make.make(config, extractors[1], part=Part(2, 2))
    assert table.all_rows == made.table.all_rows and table.notes == made.table.notes
    seen = [extractor.seen for extractor in extractors]
    assert min(seen) > 2 * NUM and sum(seen) == made.extractor.seen  # each cell is made once


def test_distances_and_shares_are_those_of_the_files(made, tiny_data):
    codec = JpegCodec(32, 32, "L", 25)
    documents = list(batches.documents(str(tiny_data), "heldout"))
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
        assert {getattr(row, field) is None for field in of_networks} == {row.method not in networks()}


def test_the_rows_of_the_model_describe_what_it_wrote(made, tiny_data):
    config = made.config
    documents = list(batches.documents(str(tiny_data), "heldout"))
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
        assert {rows[method, ratio].valid_with_grammar for method in networks()} == {1.0}
        assert rows["untrained", ratio].valid == 0.0
        assert 0 < rows["trained", ratio].removed < rows["untrained", ratio].removed < 1


def test_an_invalid_file_written_with_the_grammar_is_an_error(config, projection, monkeypatch):
    def complete(context, row, originals, ratio, grammar=False):
        documents = with_random_bytes(context.codec, originals, ratio, 0)
        if grammar:
            documents = originals[:-1] + documents[-1:]
        return Completed(documents, np.ones(NUM, bool), np.ones(NUM, np.int64), np.zeros(NUM) if grammar else None)

    monkeypatch.setattr(methods, "complete", complete)
    with pytest.raises(RuntimeError, match="cell trained-0.25-grammar: 1 of 10 files") as caught:
        make.make(config, projection)
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
    assert (counted.title, counted.fitted_tokens) == ("interpolated 4-gram", expected["train_tokens"])
    assert made.table.history == rows


@pytest.mark.parametrize("suffix", ["", " with grammar"])
@pytest.mark.parametrize("method", ["trained", "pretrained"])
def test_the_notes_say_which_controls_are_nearer_than_the_model(made, method, suffix):
    rows = made.table.rows
    own = by_place(made.table)

    def distance(row: table_rows.Row) -> float:
        return row.distance_with_grammar if suffix and row.method in networks() else row.distance

    subject = f"“{REGISTRY[method].title}{suffix}” is "
    said = " ".join(note for note in made.table.notes if note.startswith(subject))
    assert "real pictures" in said
    for row in rows:
        if row.method not in ("trained", "pretrained"):
            ours, theirs = distance(own[method, row.ratio]), distance(row)
            part = said.partition(f"“{REGISTRY[row.method].title}{suffix if row.method in networks() else ''}” ")[2]
            is_named = f"at {row.ratio:g} ({ours:,.2f} against {theirs:,.2f})" in part.partition(";")[0]
            assert is_named == (theirs < ours), (row.method, row.ratio)


def test_a_second_time_everything_is_taken_from_the_cells(made, monkeypatch):
    monkeypatch.setattr(Sampler, "load", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(ngram, "fit_and_score", lambda *_: pytest.fail("counted again"))
    extractor = Projection()
    again = make.make(made.config, extractor)
    assert extractor.seen == 0
    assert again.all_rows == made.table.all_rows
    assert again.language_models == made.table.language_models


def test_another_seed_redoes_only_what_is_drawn(made, config, projection):
    shutil.copytree(Path(made.config.out) / "cells", Path(config.out) / "cells")
    config.seed, config.ratios, config.rows = 1, (0.75,), ("trained", "random_bytes", "flat", "training_mean")
    before, after = by_place(made.table), by_place(make.make(config, projection))
    assert projection.seen == 3 * NUM  # the model twice and the random bytes
    for method in ("flat", "training_mean"):
        assert after[method, 0.75] == before[method, 0.75]
    for method in ("trained", "random_bytes"):
        assert after[method, 0.75] != before[method, 0.75]


def test_another_extractor_measures_again_without_sampling_again(made, config, monkeypatch):
    shutil.copytree(Path(made.config.out) / "cells", Path(config.out) / "cells")
    monkeypatch.setattr(Sampler, "load", lambda *_: pytest.fail("sampled again"))
    other = Projection(seed=1)
    table = make.make(config, other)
    assert other.seen == made.extractor.seen
    assert table.rows != made.table.rows
    assert [row.valid for row in table.rows] == [row.valid for row in made.table.rows]


def test_a_table_that_was_broken_off_goes_on_to_the_same_numbers(made, config, projection, monkeypatch):
    config.rows = ("random_bytes", "flat", "training_mean")
    complete = methods.complete

    def break_off(context, row, originals, ratio, grammar=False):
        if (row, ratio) == ("flat", 0.75):
            raise KeyboardInterrupt
        return complete(context, row, originals, ratio, grammar)

    monkeypatch.setattr(methods, "complete", break_off)
    with pytest.raises(KeyboardInterrupt):
        make.make(config, projection)
    seen = projection.seen
    monkeypatch.setattr(methods, "complete", complete)
    resumed = make.make(config, projection)
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
        if row.method in networks():
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
        ("ratios", (0.5, 1.0), r"config.ratios=\(0.5, 1.0\): .*from 0 to below 1"),
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
        make.make(config, projection)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", ["workdir", "data", "pretrained"])
@pytest.mark.parametrize("below", ["", "tables", "checkpoints/20/deep"])
def test_an_output_inside_what_the_table_is_made_of_is_refused(config, tiny_run, tiny_data, tmp_path, place, below):
    folder = tmp_path / "folder"
    folder.symlink_to(tiny_data if place == "data" else tiny_run)
    config[place], config.out = str(folder), str(folder / below)
    with pytest.raises(InputError, match=r"lies in --config\.(workdir|data|pretrained)=/"):
        make.check(config)


@pytest.fixture
def controls(config) -> ConfigDict:
    """The table with the controls alone."""
    config.rows, config.ratios, config.num = ("flat",), (0.5,), 2
    return config


############################ What is refused before anything is sampled ############################


@pytest.fixture(scope="module")
def sampler(tiny_run) -> Sampler:
    """Of shapes instead of parameters: it checks prompts as any other, and nothing is compiled."""
    config, mesh = read_config(epath.Path(tiny_run)), sharding.inference_mesh(4, is_batched=True)
    model = abstract(llama.LlamaConfig.of(config))[1]
    shapes = sharding.laid_out(nnx.to_pure_dict(model), sharding.parameter_shardings(model, mesh))
    return Sampler(config, BpeTokenizer.load(tiny_run / "tokenizer.json"), shapes, mesh, Settings(256))


@pytest.fixture
def context(tiny_run, tiny_data, sampler, monkeypatch) -> Context:
    """With the sampler's own grammar, which takes a while to make."""
    monkeypatch.setattr(context_lib, "TokenGrammar", lambda *_: sampler._grammar)
    return Context(tiny_run, str(tiny_data), Settings(256), seed=0, pretrained=tiny_run)


def least_max_tokens(context: Context, rows: tuple, originals: list[bytes], ratios: tuple) -> int:
    """As the refusal of too few tells it."""
    context.settings = Settings(2)
    with pytest.raises(InputError, match="config.sampling.max_tokens=2: held-out picture") as caught:
        context.check_prompts(runs_of(context, rows), originals, ratios)
    assert "\n" not in str(caught.value)
    return int(re.search(r"wants (\d+) or more", str(caught.value))[1])


@pytest.mark.parametrize(
    "ratios, rows",
    [
        ((0.0,), ("trained",)),
        ((0.25, 0.5, 0.75), ("trained", "flat")),
        ((0.75, 0.25), ("untrained",)),
        ((0.1, 0.9), ("pretrained", "random_bytes")),
        ((0.9375,), ("trained", "pretrained", "untrained")),
    ],
)
def test_max_tokens_is_checked_for_every_prompt_of_every_ratio_by_the_rule_of_the_sampler(
    context, sampler, tiny_data, monkeypatch, ratios, rows
):
    originals = list(batches.documents(str(tiny_data), "heldout", 4))
    least = least_max_tokens(context, rows, originals, ratios)
    context.settings = Settings(least - 1)
    with pytest.raises(InputError, match=f"max_tokens={least - 1}: .* wants {least} or more"):
        context.check_prompts(runs_of(context, rows), originals, ratios)
    context.settings = Settings(least)
    context.check_prompts(runs_of(context, rows), originals, ratios)
    context.settings = Settings(2)
    context.check_prompts(runs_of(context, ("flat", "random_bytes")), originals, ratios)  # which no network writes
    # The sampler says the same of these prompts: nothing is drawn here.
    monkeypatch.setattr(Engine, "generate", lambda *_: iter(()))
    for ratio in ratios:
        assert list(sampler.with_settings(Settings(least)).complete(originals, ratio)) == []
    with pytest.raises(InputError):
        for ratio in ratios:
            list(sampler.with_settings(Settings(least - 1)).complete(originals, ratio))


def test_a_table_that_would_fail_at_a_later_ratio_fails_before_the_first_file(
    config, context, projection, tiny_data, monkeypatch
):
    monkeypatch.setattr(methods, "complete", lambda *_: pytest.fail("something is made"))
    monkeypatch.setattr(ngram, "fit_and_score", lambda *_: pytest.fail("something is counted"))
    originals = list(batches.documents(str(tiny_data), "heldout", NUM))
    least = least_max_tokens(context, ("trained",), originals, (0.75,))
    config.sampling.max_tokens = least - 1
    context.settings = Settings(least - 1)
    context.check_prompts(runs_of(context, ("trained",)), originals, (0.25,))  # which would be sampled first
    with pytest.raises(InputError, match=f"held-out picture .* at ratio 0.75 wants {least} or more"):
        make.make(config, projection)


@pytest.mark.parametrize("loss", ["NaN", "Infinity", None])
@pytest.mark.parametrize("key", ["workdir", "pretrained"])
def test_a_run_without_a_held_out_loss_or_with_one_that_is_no_number_is_refused_first(
    config, tiny_run, tmp_path, projection, monkeypatch, key, loss
):
    monkeypatch.setattr(methods, "complete", lambda *_: pytest.fail("something is made"))
    monkeypatch.setattr(Context, "check_prompts", lambda *_: None)
    run = Path(shutil.copytree(tiny_run, tmp_path / "run", ignore=shutil.ignore_patterns("programs")))
    row = f'"heldout/nats_per_token": {loss}, "heldout/bits_per_byte": 1, "heldout/bits_per_pixel": 1'
    (run / "metrics.jsonl").write_text(f'{{"step": 20, {row if loss else chr(34) + "loss" + chr(34) + ": 1"}}}\n')
    config[key] = str(run)
    words = "nats_per_token is (nan|-?inf)" if loss else "no held-out loss up to its checkpoint"
    with pytest.raises(InputError, match=words):
        make.make(config, projection)


def test_features_that_are_no_numbers_end_the_table_and_are_not_kept(controls):
    class Broken(Projection):
        def prepare(self, picture):
            return super().prepare(picture) * np.float32(np.nan if self.seen == 1 else 1)

    with pytest.raises(InputError, match="reference: features of projection are not finite numbers"):
        make.make(controls, Broken())
    assert not list(Path(controls.out).rglob("reference*"))


############################ The n-gram model ############################


@pytest.mark.parametrize("limit", [64, 100, 640, 5_000])
def test_a_limited_ngram_model_says_what_it_was_fitted_on(controls, projection, limit):
    controls.ngram_tokens = limit
    table = make.make(controls, projection)
    expected = ngram.fit_and_score(controls.data, 4, limit)
    assert table.ngram.nats_per_token == pytest.approx(expected["nats_per_token"])
    fitted = limit // 64 * 63  # the first token of a chunk follows none
    assert table.ngram.fitted_tokens == fitted
    assert table.ngram.title == f"interpolated 4-gram of the first {fitted:,} training tokens"
    assert f"of the first {fitted:,} training tokens" in table_text.markdown(table)
    assert any(f"was fitted on the first {fitted:,} of " in note for note in table.notes)


def test_without_an_ngram_model_the_table_and_its_report_are_whole(controls, projection, monkeypatch):
    monkeypatch.setattr(ngram, "fit_and_score", lambda *_: pytest.fail("counted"))
    monkeypatch.setattr(ngram, "identity", lambda *_: pytest.fail("read"))
    controls.ngram_tokens = 0
    table = make.make(controls, projection)
    assert table.ngram is None
    assert [model.title.partition(",")[0] for model in table.language_models] == [
        REGISTRY["trained"].title,
        REGISTRY["pretrained"].title,
    ]
    report.write(table, Path(controls.out) / "report.html", report.facts(controls, "a command"))
    page = (Path(controls.out) / "report.html").read_text()
    assert "gram" not in re.sub(r"(?s)<style>.*?</style>|<pre>.*?</pre>", "", page)


def test_a_config_of_before_there_was_a_limit_still_serves(controls, projection):
    older = ConfigDict({key: value for key, value in controls.items() if key != "ngram_tokens"})
    table = make.make(older, projection)
    assert table.ngram.title == "interpolated 4-gram"


def test_a_limit_below_one_chunk_is_refused_in_one_line(controls, projection):
    controls.ngram_tokens = 63
    with pytest.raises(InputError, match="config.ngram_tokens=63: less than a chunk of 64 tokens"):
        make.make(controls, projection)


############################ The command ############################


@pytest.fixture
def command(controls, monkeypatch):
    """The command's main, with the fast extractor."""
    from jpeglm.tables import __main__ as module

    monkeypatch.setattr(module, "_CONFIG", SimpleNamespace(value=controls), raising=False)
    monkeypatch.setattr(module, "_PART", SimpleNamespace(value=None), raising=False)
    monkeypatch.setattr(make, "_extractor", lambda config: Projection())
    return module.main


def test_the_command_writes_its_files_once_and_takes_them_from_the_cells_again(command, controls, capsys):
    command()
    first = capsys.readouterr().out
    assert {"table.md", "table.csv", "table.json", "report.html", "cells"} <= {
        p.name for p in Path(controls.out).iterdir()
    }
    command()
    assert capsys.readouterr().out == first


def test_a_second_command_is_refused(command, controls):
    with files.owned(controls.out), pytest.raises(InputError, match="another command is writing here"):
        command()
    assert not (Path(controls.out) / "cells").exists()


def test_two_processes_of_a_launcher_make_one_table(command, controls, monkeypatch, capsys):
    controls.ratios = RATIOS
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")
    for number in "01":
        monkeypatch.setenv("JAX_PROCESS_ID", number)
        command()
    told = capsys.readouterr().out
    assert "Part 1/2 is done, others are not yet" in told and told.count("Report: ") == 1
    assert (Path(controls.out) / "table.md").exists()


@pytest.mark.parametrize("where", ["", "below", "cells"])
def test_an_output_that_cannot_be_written_is_one_line(command, controls, where):
    out = Path(controls.out)
    if where == "cells":
        out.mkdir()
        (out / "cells").write_text("a file")
    else:
        out.write_text("a file")
        controls.out = str(out / where)
    with pytest.raises(InputError, match="cannot write .*(exists|Not a directory)") as caught:
        command()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("most", [100, 20_000])
def test_a_disk_that_gets_full_is_one_line_and_loses_nothing(command, controls, most):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
    try:
        with pytest.raises(InputError, match="cannot write .*File too large") as caught:
            command()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "\n" not in str(caught.value)
    left = [path for path in Path(controls.out).rglob("*") if path.is_file() and path.name != ".lock"]
    assert all(path.suffix in (".npz", ".md", ".csv", ".json") for path in left)
    for path in left:
        if path.suffix == ".npz":
            with np.load(path) as file:
                assert "fingerprint" in file


def test_weights_of_the_inception_give_its_features_in_the_mode_asked_for(config, tmp_path):
    inceptions.write_weights(tmp_path / "weights.pth", 0)
    config.update({"extractor": "inception", "weights": str(tmp_path / "weights.pth"), "mode": "legacy_pytorch"})
    make.check(config)
    extractor = make._extractor(config)
    assert (extractor.name, extractor.mode, extractor.dim) == ("Inception 2015", "legacy_pytorch", 2048)


def test_a_config_of_before_there_were_weights_still_serves(config):
    older = ConfigDict({key: value for key, value in config.items() if key not in ("weights", "mode")})
    make.check(older)
    assert make._extractor(older).name == "EfficientNet-Lite0"


def test_a_misspelt_key_ends_with_status_2():
    command = [sys.executable, "-m", "jpeglm.tables", "--config=configs/eval/demo.py", "--config.nmu=4"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2
    assert "nmu" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
