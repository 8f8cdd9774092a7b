"""What a table says in words and bars, read back and held against its numbers, over random tables.

The reader here knows the printed table alone: titles, shares given, and numbers as text.
"""

import html.parser
import math
import re
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from jpeglm.core.config import base
from jpeglm.core.errors import InputError
from jpeglm.data.codecs.avc import AvcCodec
from jpeglm.data.codecs.clips import ClipEvaluation
from jpeglm.data.codecs.jpeg import JpegCodec
from jpeglm.data.codecs.pictures import PictureEvaluation
from jpeglm.tables import notes as table_notes
from jpeglm.tables import report
from jpeglm.tables import text as table_text
from jpeglm.tables.methods import REGISTRY, networks
from jpeglm.tables.rows import LanguageModel, Row, Shown, Table
from tests.tables.test_report import FACTS

SEEDS = range(40)
NETWORKS = ("trained model", "pretrained model")
METRIC = "FD-something"


def random_table(seed: int) -> Table:
    """Any methods, ratios and numbers; many ties, some numbers that differ after the printed digits only."""
    random = np.random.default_rng(seed)
    is_clips, units = bool(seed % 3 == 0), int(random.integers(4, 20))
    known = [*networks(), *(ClipEvaluation if is_clips else PictureEvaluation).controls]
    methods = [method for method in known if random.random() < 0.8] or ["flat"]
    ratios = sorted(random.choice(np.arange(1, units), int(random.integers(1, 4)), replace=False) / units)
    few = random.uniform(0, 1_500, 4)  # so that many are equal

    def distance() -> float:
        return float(random.choice(few) + random.choice([0, 0, 0.001, 0.02]))

    def clip_scores() -> dict:
        if not is_clips:
            return {}
        psnr = None if random.random() < 0.3 else float(random.uniform(5, 40))
        compared = {"psnr": psnr, "ssim": float(random.random()), "true_distance": float(random.uniform(0, 9))}
        return compared | {"concealed": float(random.random())}

    def row(method: str, ratio: float) -> Row:
        wrote = method in networks()
        extra = {"video_distance": distance()} if is_clips else {}
        if wrote and not is_clips:
            extra = {"valid_with_grammar": 1.0, "distance_with_grammar": distance(), "removed": float(random.random())}
        tokens = float(random.uniform(1, 2_000)) if wrote else None
        ended = float(random.random()) if wrote else None
        shares = float(random.random()), ended, float(random.random())
        return Row(
            method, REGISTRY[method].title, ratio, 7, *shares, distance(), tokens, scores=clip_scores(), **extra
        )

    extra = {"scores": {"concealed": 0.0}, "video_distance": distance()} if is_clips else {}
    floors = [
        Row("heldout", "held-out originals", ratio, 7, 1.0, None, None, distance(), None, **extra)
        for ratio in (ratios if is_clips else [None])
    ]
    rows = [row(method, float(ratio)) for ratio in ratios for method in methods]
    return Table(
        METRIC,
        AvcCodec(32, 32, 5, units, 37, False) if is_clips else JpegCodec(8, 8 * units, "L", 25),
        {float(ratio): round(ratio * units) for ratio in ratios},
        9,
        floors,
        rows,
        [LanguageModel("trained model, step 9", 1.5, 2.0, 0.5), LanguageModel("4-gram", 1.6, 3.0, 0.75, 1_000)],
        [{"step": 9, "heldout/nats_per_token": 1.5}],
        shown_of(floors, rows, is_clips),
        [],
        video_metric="FVD" if is_clips else "",
    )


def shown_of(floors: list[Row], rows: list[Row], is_clips: bool) -> dict:
    picture = Shown(np.zeros((1, 2, 8, 8, 3) if is_clips else (1, 8, 8), np.uint8), np.array([True]))
    places = {(None, "heldout", False)} | {(row.ratio, row.method, grammar) for row in rows for grammar in (0, 1)}
    return dict.fromkeys(places | {(row.ratio, "prompt", False) for row in rows}, picture)


class Printed:
    """The lines of the main table as a reader sees them."""

    def __init__(self, table: Table):
        header, *lines = table_text.main_lines(table)
        assert len(set(header)) == len(header)
        self.lines = [dict(zip(header, line, strict=True)) for line in lines]
        self.header = header

    def distances(self) -> dict[tuple[str, str], str]:
        """By what is given and the title, with the grammar where the column says so; without the floors."""
        found = {}
        for line in self.lines:
            if line["method"] == "held-out originals":
                continue
            found[line["given"], line["method"]] = line[METRIC]
            if line.get(f"{METRIC} with grammar", "–") != "–":
                found[line["given"], f"{line['method']} with grammar"] = line[f"{METRIC} with grammar"]
        return found

    def floors(self) -> dict[str, str]:
        return {line["given"]: line[METRIC] for line in self.lines if line["method"] == "held-out originals"}


def value(text: str) -> float:
    return float(text.replace(",", ""))


def claims(text: str) -> list[tuple[str, str, list[str]]]:
    """(title, given, numbers) of each “title” at GIVEN (NUMBER ...), at GIVEN (NUMBER ...); “title” ..."""
    found = []
    for part in text.removesuffix(".").split("; "):
        title, places = re.fullmatch(r"“(.+?)” (at .+)", part).groups()
        assert re.fullmatch(r"(at [^()]+ \([^()]+\))(, at [^()]+ \([^()]+\))*", places), places
        for given, inside in re.findall(r"at ([^()]+?) \(([^()]+)\)", places):
            found.append((title, given, inside.split(" against ")))
    return found


def controls_of(subject: str, given: str, distances: dict) -> dict[str, str]:
    """Title and distance of each control that a network is compared with, by the same sampling where there are two."""
    suffix = " with grammar" if subject.endswith(" with grammar") else ""
    titles = {title for at, title in distances if at == given}
    plain = {title for title in titles if not title.endswith(" with grammar")} - set(NETWORKS)
    own = {title: f"{title}{suffix}" if f"{title}{suffix}" in titles else title for title in plain}
    return {title: distances[given, title] for title in own.values()}


@pytest.mark.parametrize("seed", SEEDS)
def test_each_sentence_that_compares_networks_with_controls_says_what_the_table_says_and_none_is_missing(seed):
    table = random_table(seed)
    distances = Printed(table).distances()
    said = set()
    for sentence in table_notes.verdicts(table):
        match = re.fullmatch(
            r"“([^”]+)” is (farther from|exactly as far from|nearer to) (?:real pictures|frames of real clips) "
            r"(than every control, at |than |as )(.+)\.",
            sentence,
        )
        if not match:
            continue
        subject, how, which, rest = match.groups()
        if how == "nearer to":
            for given in rest.split(", ") if table.codec.item == "picture" else re.findall(r"\d+ of \d+ frames", rest):
                for title, theirs in controls_of(subject, given, distances).items():
                    assert value(distances[given, subject]) < value(theirs)
                    said.add((subject, given, title))
            continue
        for title, given, numbers in claims(rest):
            assert title in controls_of(subject, given, distances)
            pair = [distances[given, subject], distances[given, title]]  # in the order of the names
            assert numbers == (pair if how == "farther from" else pair[:1])
            assert value(pair[0]) > value(pair[1]) if how == "farther from" else pair[0] == pair[1]
            said.add((subject, given, title))
    for given, subject in distances:
        if subject.removesuffix(" with grammar") in NETWORKS:
            for title, theirs in controls_of(subject, given, distances).items():
                ours = distances[given, subject]
                is_best = all(
                    value(distances[at, subject]) < value(other)
                    for at, name in distances
                    if name == subject
                    for other in controls_of(subject, at, distances).values()
                )
                assert ((subject, given, title) in said) == (value(theirs) <= value(ours) or is_best)


@pytest.mark.parametrize("seed", SEEDS)
def test_what_is_below_the_floor_is_said_and_nothing_else(seed):
    table = random_table(seed)
    printed = Printed(table)
    distances, floors = printed.distances(), printed.floors()
    [sentence] = [sentence for sentence in table_notes.verdicts(table) if "the floor" in sentence]
    expected = {
        (title, given, (ours, floor))
        for (given, title), ours in distances.items()
        for floor in [floors.get(given, floors.get("–"))]
        if value(ours) < value(floor)
    }
    if sentence == "No row is below the floor.":
        assert not expected
    else:
        found = claims(sentence.removeprefix("Below the floor: "))
        assert {(title, given, tuple(numbers)) for title, given, numbers in found} == expected
        assert len(found) == len(expected)


@pytest.mark.parametrize("seed", [seed for seed in SEEDS if seed % 3 == 0])
def test_networks_and_the_still_frame_are_compared_by_the_numbers_of_their_rows(seed):
    table = random_table(seed)
    lines = {(line["given"], line["method"]): line for line in Printed(table).lines}
    columns = {"distance": METRIC, "to true frames": "to true frames", "PSNR": "PSNR, dB", "SSIM": "SSIM"}
    found = set()
    for sentence in table_notes.verdicts(table):
        if match := re.fullmatch(r"“([^”]+)” against “([^”]+)” at (\d+ of \d+ frames): (.+)\.", sentence):
            first, second, given, rest = match.groups()
            said = {}
            for what, *pair in re.findall(r"([A-Za-z ]+?) ([\d.,]*\d) against ([\d.,]*\d)", rest):
                said[what.strip()] = pair
            for what, column in columns.items():
                pair = [lines[given, title].get(column, "–") for title in (first, second)]
                assert said.get(what, pair) == pair and (what in said) == ("–" not in pair), sentence
            found.add((given, second))
    still = {given for given, title in lines if title == REGISTRY["last_frame"].title}
    assert found == {(given, title) for given, title in lines if title in NETWORKS and given in still}


class Bars(html.parser.HTMLParser):
    """Of each row of the main table, its cells: text and the length of the bar, or None."""

    def __init__(self, page: str):
        super().__init__()
        self.rows, self._in_cell = [], False
        self.feed(page[page.index('<table class="numbers">') : page.index("</table>")])

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if tag == "tr":
            self.rows.append([])
        self._in_cell = tag in ("td", "th") or (self._in_cell and tag != "tr")
        if tag in ("td", "th"):
            self.rows[-1].append(["", None])
        if attrs.get("class") == "bar":
            self.rows[-1][-1][1] = float(re.search(r"width: ([\d.]+)%", attrs["style"])[1])

    def handle_data(self, data):
        if self._in_cell and self.rows[-1]:
            self.rows[-1][-1][0] += data.strip()


@pytest.mark.parametrize("seed", range(5))
def test_bars_of_one_metric_are_as_long_as_its_numbers_whatever_the_column(seed, tmp_path):
    table = random_table(seed)
    report.write(table, tmp_path / "report.html", FACTS)
    header, *rows = Bars((tmp_path / "report.html").read_text()).rows
    names = [text for text, _ in header]
    rows = [dict(zip(names, row, strict=True)) for row in rows if len(row) == len(names)]
    assert len(rows) == len(table.all_rows)
    for metric in {METRIC, "FVD"} & set(names):
        columns = [name for name in names if name.removesuffix(" with grammar") == metric]
        cells = [row[name] for row in rows for name in columns if row[name][0] != "–"]
        longest = max(value(text) for text, _ in cells)
        assert max(length for _, length in cells) == 100
        for text, length in cells:
            assert length == pytest.approx(100 * value(text) / longest, abs=0.02)
    others = [row[name] for row in rows for name in names if name.removesuffix(" with grammar") not in (METRIC, "FVD")]
    assert all(length is None for _, length in others)


def stub_of(table: Table, config: ConfigDict) -> tuple[SimpleNamespace, SimpleNamespace]:
    """What the notes take from a run and an extractor."""
    run = SimpleNamespace(config=base())
    split = {"documents": 50, "chunks": 8, "tokens": 1_500}
    runs = {REGISTRY[row.method].run: run for row in table.rows if row.method in networks()} | {"workdir": run}
    context = SimpleNamespace(codec=table.codec, manifest={"splits": {"train": split, "heldout": split}}, runs=runs)
    return context, SimpleNamespace(metric=METRIC, dim=1_280, name="a network", size=224, caveat="It is not FID.")


@pytest.mark.parametrize("seed", SEEDS)
def test_the_notes_speak_of_rows_and_columns_that_are_there(seed):
    table = random_table(seed)
    methods_there = dict.fromkeys(row.method for row in table.rows)
    config = ConfigDict({"num": 7, "rows": tuple(methods_there), "workdir": "run", "pretrained": "elsewhere"})
    context, extractor = stub_of(table, config)
    notes = table_notes.notes(table, config, context, extractor)
    header = Printed(table).header
    titles = {REGISTRY[method].title for method in [*methods_there, "trained"]}  # this one has a loss in any case
    if "pretrained" in methods_there:
        titles.add(REGISTRY["pretrained"].title)
    named = set(re.findall("“([^”]+)”", " ".join(notes)))
    assert named <= set(header) | titles
    assert ("grammar" in " ".join(notes)) == any("grammar" in name for name in header)
    assert {f"“{name}”" in " ".join(notes) for name in ("ended", "removed") if name in header} <= {True}
    assert any("fitted on the first 1,000 of 1,492 tokens" in note for note in notes)


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["valid", "readable", "distance", "tokens", "distance_with_grammar", "psnr"])
def test_a_row_takes_no_number_that_is_none(field, number):
    values = {"valid": 1.0, "ended": None, "readable": 1.0, "distance": 1.0, "tokens": None}
    values |= {"scores": {field: number}} if field == "psnr" else {field: number}
    with pytest.raises(InputError, match=f"“flat” at ratio 0.5: {field} is ") as caught:
        Row("flat", "flat", 0.5, 4, **values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("place", [1, 2, 3])
def test_a_loss_is_a_number(place):
    losses = [1.0, 1.0, 1.0]
    losses[place - 1] = math.nan
    with pytest.raises(InputError, match="“trained model, step 9”: .* is nan"):
        LanguageModel("trained model, step 9", *losses)
