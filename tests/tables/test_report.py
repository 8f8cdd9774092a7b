"""The report: one file, all numbers, all pictures; also for colour and a single ratio."""

import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from ml_collections import ConfigDict
from PIL import Image

from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.tables import report
from jpeglm.tables.methods import REGISTRY, networks
from jpeglm.tables.rows import LanguageModel, Row, Shown, Table

METHODS = ("trained", "untrained", "flat")
FACTS = {
    "command": "python -m jpeglm.tables --config=x.py --config.out='a <b>'",
    "date": "2025-01-02 03:04 UTC",
    "hardware": {"processor": "a processor", "cores": 2, "devices": "1 x cpu"},
    "versions": {"jax": "0.10.2"},
    "config": {"num": 4},
    "run_config": {"model": {"width": 128}},
}


def colour_table(ratios=(0.5,)) -> Table:
    random = np.random.default_rng(0)

    def pictures() -> Shown:
        return Shown(random.integers(0, 256, (3, 24, 40, 3), np.uint8), np.array([True, False, True]))

    floors, rows = [Row("heldout", "held-out originals", None, 4, 1.0, None, None, 12.5, None)], []
    shown = {(None, "heldout", False): pictures()}
    for ratio in ratios:
        shown[ratio, "prompt", False] = pictures()
        for place, method in enumerate(METHODS):
            row = Row(method, REGISTRY[method].title, ratio, 4, 0.25, 0.75, 0.5, 101.25 + place, 33.5)
            shown[ratio, method, False] = pictures()
            if method in networks():
                row = dataclasses.replace(
                    row, valid_with_grammar=1.0, distance_with_grammar=201.25 + place, removed=0.00013
                )
                shown[ratio, method, True] = pictures()
            rows.append(row)
    models = [
        LanguageModel("trained model, step 9", 1.2345, 2.0, 0.5),
        LanguageModel("4-gram", 1.6789, 3.0, 0.75, 1_000),
        LanguageModel("pretrained model, step 90", 1.1111, 1.5, 0.25),
    ]
    history = [{"step": 3, "loss": 2.0}, {"step": 9, "loss": 1.5}, {"step": 9, "heldout/nats_per_token": 1.2345}]
    kept, notes = {ratio: int(16 * ratio) for ratio in ratios}, ["a note with <brackets>"]
    codec = JpegCodec(32, 32, "L", 25)  # of 16 MCUs
    return Table("FD-something", codec, kept, 9, floors, rows, models, history, shown, notes)


class Page(html.parser.HTMLParser):
    """Tags that are open at the end, sources of pictures, and the text outside styles."""

    VOID = {"meta", "img", "br"}

    def __init__(self, text: str):
        super().__init__()
        self.open, self.images, self.links, self.text = [], [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "img":
            self.images.append(attrs)
        self.links += [value for name, value in attrs.items() if name in ("href", "src", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.links += [value for name, value in attrs if name in ("href", "src", "xlink:href")]

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data


@pytest.fixture
def page(tmp_path) -> Page:
    report.write(colour_table((0.25, 0.5)), tmp_path / "report.html", FACTS)
    return Page((tmp_path / "report.html").read_text())


def test_every_tag_is_closed_and_nothing_is_fetched(page):
    assert page.open == []
    assert page.links
    assert all(link.startswith(("data:image/png;base64,", "#")) for link in page.links)


def test_the_page_shows_all_numbers_notes_and_facts(page):
    for expected in ("101.25", "102.25", "12.50", "25.0%", "75.0%", "33.5", "1.2345", "1.6789", "FD-something"):
        assert expected in page.text
    assert "25% of the MCUs given" in page.text
    for expected in ("25.0% of the files valid", "100.0%", "201.25", "202.25", "removed by the grammar: 0.013%"):
        assert expected in page.text
    for expected in ("a note with <brackets>", "--config.out='a <b>'", "a processor", "jax 0.10.2", '"width": 128'):
        assert expected in page.text


def test_pictures_are_embedded_without_loss_and_invalid_ones_are_marked(page):
    table = colour_table((0.25, 0.5))
    methods = [("prompt", False), ("trained", False), ("trained", True), ("untrained", False), ("untrained", True)]
    methods.append(("flat", False))
    columns = [[(None, "heldout", False), *((ratio, *method) for method in methods)] for ratio in (0.25, 0.5)]
    # On top the pictures of the better of the trained networks, at the middle ratio.
    look = [(0.5, "prompt", False), (0.5, "trained", True), (None, "heldout", False)]
    expected = [
        (p, bool(v)) for column in look for p, v in zip(*dataclasses.astuple(table.shown[column]), strict=True)
    ]
    expected += [
        (table.shown[column].pictures[row], bool(table.shown[column].valid[row]))
        for grid in columns
        for row in range(3)
        for column in grid
    ]
    assert len(page.images) == len(expected)
    titles = ["original", "given", "trained model", "trained model with grammar", "untrained model"]
    titles += ["untrained model with grammar", "prompt + flat blocks"]
    assert [image["alt"].removesuffix(", not valid") for image in page.images[9:][: len(titles)]] == titles
    assert [image["alt"].removesuffix(", not valid") for image in page.images[:9:3]] == [
        "given",
        "completed",
        "original",
    ]
    for image, (pixels, valid) in zip(page.images, expected, strict=True):
        file = io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))
        np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)
        assert ("invalid" in image.get("class", "")) is not valid
        assert int(image["width"]) * 24 == int(image["height"]) * 40  # enlarged, not stretched


def test_charts_draw_each_method_and_both_losses_in_the_colours_of_the_page(tmp_path):
    report.write(colour_table((0.25, 0.5, 0.75)), tmp_path / "report.html", FACTS)
    charts = re.findall(r"<svg .*?</svg>", (tmp_path / "report.html").read_text(), re.DOTALL)
    assert len(charts) == 2
    for words in ("training", "held-out", "4-gram"):
        assert words in charts[0]
    for method in METHODS:
        assert REGISTRY[method].title in charts[1]
        dashed = re.findall(rf"stroke-dasharray: [^\"]*stroke: var\(--{method}\)", charts[1])
        assert f"stroke: var(--{method})" in charts[1]
        assert bool(dashed) == (method in networks())
        assert (f"{REGISTRY[method].title} with grammar" in charts[1]) == (method in networks())
    assert "#0000" not in "".join(charts)


NARROW = 400 - 15 - 2 * 16 - 2 * 0.8 * 16 - 4  # pixels of a chart: page, scrollbar, its margins, the card's, borders


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> str:
    """The text of a page; 0.3 of 16 MCUs are 4 whole ones."""
    path = tmp_path_factory.mktemp("page") / "report.html"
    report.write(colour_table((0.25, 0.3)), path, FACTS)
    return path.read_text()


def test_a_narrow_page_has_no_text_below_11_pixels_and_legends_beside_their_charts(source):
    sizes = re.findall(r"font(?:-size)?:\s*([\d.]+)(rem|em|px)", source[: source.index("</style>")])
    assert len(sizes) > 5
    assert all(float(size) * (1 if unit == "px" else 16) >= 11 for size, unit in sizes)
    for chart in re.findall(r"<svg .*?</svg>", source, re.DOTALL):
        width = float(re.search(r'viewBox="0 0 ([\d.]+) ', chart)[1])
        texts = [float(size) for size in re.findall(r"font-size: ([\d.]+)px", chart)]
        assert texts and min(texts) * min(1, NARROW / width) >= 11
        axes, legend = chart.index('id="axes_1"'), chart.index('id="legend_1"')
        frame = re.search(r'id="patch_2">\s*<path d="M ([\d.]+) ([\d.]+)', chart[axes:])  # its lower left corner
        below = re.findall(r'<text [^>]*?y="([\d.]+)"', chart[legend:])
        assert below and min(map(float, below)) > float(frame[2])


def test_the_names_of_rows_stay_in_sight_while_numbers_are_scrolled(source):
    rules = re.findall(r"([^{}]+)\{([^{}]*)\}", source[source.index("<style>") : source.index("</style>")])
    [first] = [body for selector, body in rules if ".numbers td:first-child" in selector and "sticky" in body]
    assert re.search(r"left:\s*0", first) and "background" in first and "white-space: normal" in first
    [narrow] = [body for selector, body in rules if ".numbers td:first-child" in selector and "8.5rem" in body]
    assert "max-width" in narrow  # 136 of the 353 pixels: two or three numbers stand beside it
    assert source.count('<div class="card scroll">\n<table class="numbers">') == 2


def test_a_share_that_is_no_whole_number_of_units_says_how_many_were_given(source):
    text = Page(source).text
    assert "25% of the MCUs given" in text and "25% of the MCUs given:" not in text
    assert "30% of the MCUs given: 4 of 16" in text


def test_one_ratio_and_no_training_loss_will_do(tmp_path):
    table = colour_table()
    table.history[:] = [row for row in table.history if "loss" not in row]
    report.write(table, tmp_path / "report.html", FACTS)
    assert Page((tmp_path / "report.html").read_text()).open == []


def test_distances_of_nothing_but_zeros_have_bars_of_no_length(tmp_path):
    table = colour_table()
    for rows in (table.floors, table.rows):
        rows[:] = [dataclasses.replace(row, distance=0.0, distance_with_grammar=None) for row in rows]
    report.write(table, tmp_path / "report.html", FACTS)
    assert set(re.findall(r'class="bar" style="width: ([\d.]+)%', (tmp_path / "report.html").read_text())) == {"0.00"}


def test_facts_are_json_and_name_hardware_versions_and_both_configs(tiny_run):
    config = ConfigDict({"workdir": str(tiny_run), "ratios": (0.5,)})
    facts = json.loads(json.dumps(report.facts(config, "a command")))
    assert facts["command"] == "a command"
    assert facts["hardware"]["cores"] >= 1
    assert facts["versions"].keys() >= {"python", "jax", "pillow", "libjpeg_turbo"}
    assert facts["config"]["ratios"] == [0.5]
    assert facts["run_config"]["codec"]["height"] == 32
