"""A table of clips, from a tiny run to its report, with fast extractors in the place of the networks."""

import base64
import csv
import io
import json
import re
import shutil

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from configs.eval import demo_avc
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.data import batches
from jpeglm.fid.frechet import Moments, frechet_distance
from jpeglm.sample.sampler import Sampler
from jpeglm.tables import make, metrics, ngram, report
from jpeglm.tables import text as table_text
from jpeglm.tables.judges import judge
from jpeglm.tables.methods.last_frame import with_last_frame
from jpeglm.tables.metrics import decibels
from jpeglm.tables.rows import Table
from tests.fid.projection import Projection
from tests.tiny_clips_config import get_config

NUM = 2  # of four held-out clips
RATIOS = (0.5, 10 / 15)
KEPT = {0.5: 7, 10 / 15: 10}  # whole frames
METHODS = ("trained", "untrained", "last_frame", "random_bytes")


class VideoProjection(Projection):
    """Projections of a clip's mean frame."""

    def __init__(self, seed: int = 0):
        super().__init__(seed)
        self.metric = "FD-clip"

    def prepare(self, clip: np.ndarray) -> np.ndarray:
        assert clip.shape == (15, 32, 32, 3)
        return super().prepare(np.rint(clip.mean(axis=0)).astype(np.uint8))


def make_config(workdir, data, out) -> ConfigDict:
    config = demo_avc.get_config()
    config.workdir, config.data, config.out = str(workdir), str(data), str(out)
    config.num, config.ratios, config.rows = NUM, RATIOS, METHODS
    config.sampling.slots, config.sampling.max_tokens = 2, 1024
    config.video_weights = "given.pt"
    return config


@pytest.fixture(scope="module")
def config(tiny_clips_run, tiny_clips_data, tmp_path_factory) -> ConfigDict:
    return make_config(tiny_clips_run, tiny_clips_data, tmp_path_factory.mktemp("table"))


@pytest.fixture(scope="module")
def table(config) -> Table:
    return make.make(config, Projection(), VideoProjection())


@pytest.fixture(scope="module")
def heldout(tiny_clips_data) -> list[bytes]:
    return list(batches.documents(str(tiny_clips_data), "heldout"))


def test_every_row_is_there_and_a_floor_for_each_ratio(table):
    assert [(row.method, row.ratio) for row in table.floors] == [("heldout", ratio) for ratio in RATIOS]
    assert [(row.method, row.ratio) for row in table.rows] == [(row, ratio) for ratio in RATIOS for row in METHODS]
    assert (table.codec.item, table.codec.unit, table.codec.units, table.codec.fps) == ("clip", "frame", 15, 5)
    assert all(row.num == NUM and row.removed is None and row.valid_with_grammar is None for row in table.all_rows)
    by_place = {(row.method, row.ratio): row for row in table.rows}
    for ratio in RATIOS:
        still, noise = by_place["last_frame", ratio], by_place["random_bytes", ratio]
        assert (still.valid, still.readable, still.scores["concealed"], still.tokens) == (1, 1, 0, None)
        assert (noise.valid, noise.readable) == (0, 0) and noise.scores["concealed"] > 0.9
        assert by_place["untrained", ratio].valid == 0
        for method in ("trained", "untrained"):
            assert by_place[method, ratio].tokens > 0 and 0 <= by_place[method, ratio].ended <= 1
    for row in table.all_rows:
        assert {value is None for value in (row.scores["psnr"], row.scores["ssim"], row.scores["true_distance"])} == {
            row.method == "heldout"
        }


@pytest.mark.parametrize("ratio", RATIOS)
def test_a_row_s_numbers_are_those_of_its_clips(table, heldout, ratio):
    codec, kept = CODECS.of(get_config()), KEPT[ratio]
    [row] = [row for row in table.rows if row.method == "last_frame" and row.ratio == ratio]
    documents = with_last_frame(codec, heldout[:NUM], ratio)
    clips, truth, reference = ([codec.decode(d) for d in side] for side in (documents, heldout[:NUM], heldout[NUM:]))

    def distance(extractor, *sides) -> float:
        return frechet_distance(*(Moments([extractor(side)]) for side in sides))

    frames = [np.concatenate([clip[kept:] for clip in side]) for side in (clips, reference)]
    assert row.distance == pytest.approx(distance(Projection(), *frames), rel=1e-6)
    assert row.video_distance == pytest.approx(distance(VideoProjection(), clips, reference), rel=1e-6)
    error = np.mean([(a[kept:].astype(float) - b[kept:]) ** 2 for a, b in zip(clips, truth, strict=True)])
    assert row.scores["psnr"] == pytest.approx(decibels(error))
    pairs = [(Projection()(a[kept:]), Projection()(b[kept:])) for a, b in zip(clips, truth, strict=True)]
    apart = np.concatenate([np.linalg.norm(a - b, axis=1) for a, b in pairs])
    assert row.scores["true_distance"] == pytest.approx(apart.mean(), rel=1e-5)
    floors = {floor.ratio: floor for floor in table.floors}
    frames = [np.concatenate([clip[kept:] for clip in side]) for side in (truth, reference)]
    assert floors[ratio].distance == pytest.approx(distance(Projection(), *frames), rel=1e-6)


def test_a_model_s_row_describes_what_it_wrote(table, config, heldout):
    codec = CODECS.of(get_config())
    settings = make.Settings(**config.sampling, grammar=False)
    sampler = Sampler.load(config.workdir, settings)
    written = sorted(sampler.complete(heldout[:NUM], 10 / 15, seed=config.seed), key=lambda each: each.index)
    [row] = [row for row in table.rows if row.method == "trained" and row.ratio == 10 / 15]
    judged = list(judge(codec, [each.document for each in written], 10, heldout[:NUM]))
    assert row.tokens == np.mean([each.tokens for each in written])
    for name in ("valid", "readable", "concealed", "ssim"):
        assert row.record()[name] == pytest.approx(np.mean([each.scores[name] for each in judged])), name


def test_the_comparison_with_a_still_frame_is_told_whichever_way_it_goes(table):
    for ratio in RATIOS:
        still, trained = (
            next(row for row in table.rows if row.method == method and row.ratio == ratio)
            for method in ("last_frame", "trained")
        )
        [note] = [note for note in table.notes if f"“trained model” at {KEPT[ratio]} of 15 frames:" in note]
        for name, digits in (("distance", 2), ("true_distance", 3), ("psnr", 2), ("ssim", 4)):
            told = f"{still.record()[name]:,.{digits}f} against {trained.record()[name]:,.{digits}f}"
            assert told in note


def test_files_and_report_hold_the_numbers_and_clips_that_move(table, config, tmp_path, tiny_clips_run):
    facts = report.facts(config, "a command")
    table_text.write(table, tmp_path, facts)
    report.write(table, tmp_path / "report.html", facts)
    text, page = (tmp_path / "table.md").read_text(), (tmp_path / "report.html").read_text()
    content = json.loads((tmp_path / "table.json").read_text())
    assert content["video_metric"] == "FD-clip" and content["extractors"].keys() == {"projection"}
    assert any("2 clips a side" in note for note in table.notes)
    lines = list(csv.DictReader((tmp_path / "table.csv").open()))
    assert len(lines) == len(content["rows"]) == len(table.all_rows)
    for row, line in zip(table.all_rows, lines, strict=True):
        assert float(line["video_distance"]) == row.video_distance
        for shown in (f"{row.distance:,.2f}", f"{row.video_distance:,.2f}", f"{100 * row.scores['concealed']:.1f}%"):
            assert shown in text and shown in page
        assert f"| {KEPT[row.ratio]} of 15 frames " in text and f"{KEPT[row.ratio]} of 15 frames given" in page
        assert line["video_metric"] == "FD-clip"
    for header in ("frames readable", "concealed", "PSNR, dB", "SSIM", "FD-projection", "FD-clip"):
        assert header in text and header in page
    assert "grammar" not in text and "removed" not in text and "MCU" not in text
    words = re.sub(r"(?s)<style>.*?</style>|<pre>.*?</pre>", "", page)
    assert "picture" not in words
    images = re.findall(r'src="data:image/webp;base64,([^"]+)"', page)
    first_look = 2 * NUM  # completed and original
    assert len(images) == first_look + NUM * len(RATIOS) * (1 + len(METHODS))
    with Image.open(io.BytesIO(base64.b64decode(images[0]))) as clip:
        assert clip.n_frames > 1 and clip.size == (32, 32)


def test_a_second_time_everything_is_taken_from_the_cells(table, config, monkeypatch):
    monkeypatch.setattr(Sampler, "load", lambda *_: pytest.fail("sampled again"))
    monkeypatch.setattr(ngram, "fit_and_score", lambda *_: pytest.fail("counted again"))
    extractors = Projection(), VideoProjection()
    again = make.make(config, *extractors)
    assert again.all_rows == table.all_rows and not any(extractor.seen for extractor in extractors)


def test_a_metric_that_was_added_since_is_measured_of_what_is_there(table, config, monkeypatch, tmp_path):
    monkeypatch.setattr(Sampler, "load", lambda *_: pytest.fail("sampled again"))
    brightness = metrics.Metric(
        "brightness", "brightness", metrics.mean_of("grey"), 1, "grey", of_pictures=lambda a, b: float(a.mean())
    )
    monkeypatch.setattr(metrics, "METRICS", (*metrics.METRICS, brightness))
    changed = ConfigDict(config.to_dict())
    changed.out = str(shutil.copytree(config.out, tmp_path / "out"))
    again = make.make(changed, Projection(), VideoProjection())
    assert all(0 < row.scores["brightness"] < 255 for row in again.rows)
    before = [row.record() for row in table.rows]
    assert [{name: row.record()[name] for name in before[0]} for row in again.rows] == before


@pytest.mark.parametrize(
    "key, value, words",
    [
        ("rows", ("trained", "flat"), "'flat' is none of trained, pretrained, untrained, last_frame, random_bytes"),
        ("ratios", (0.05,), "of a clip of 15 frames one must be given"),
        ("num", 3, "6 held-out documents"),
        ("video_weights", "/nowhere.pt", "/nowhere.pt"),
    ],
)
def test_a_config_that_names_no_table_of_clips_is_refused_in_one_line(
    tiny_clips_run, tiny_clips_data, tmp_path, key, value, words
):
    config = make_config(tiny_clips_run, tiny_clips_data, tmp_path)
    config[key] = value
    with pytest.raises(InputError, match=words) as caught:
        make.make(config, Projection())
    assert "\n" not in str(caught.value)


def test_rows_of_clips_and_weights_for_clips_are_refused_for_pictures(tiny_run, tiny_data, tmp_path):
    config = make_config(tiny_run, tiny_data, tmp_path)
    with pytest.raises(InputError, match="'last_frame' is none of trained, .*flat"):
        make.make(config, Projection())
    config.rows = ("flat",)
    with pytest.raises(InputError, match="config.video_weights is for clips"):
        make.make(config, Projection())
