"""A completion table as one self-contained HTML file: numbers, curves and pictures."""

import datetime
import functools
import io
import json
import os
import platform
import re
import textwrap
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import jinja2
import matplotlib
import numpy as np
from etils import epath
from matplotlib.figure import Figure
from ml_collections import ConfigDict
from PIL import Image

from jpeglm.core.errors import writing
from jpeglm.core.files import write_whole
from jpeglm.core.registry import CODECS
from jpeglm.core.workdir import read_config
from jpeglm.data import render
from jpeglm.tables.methods import REGISTRY, title_of, trained
from jpeglm.tables.rows import FLOOR, FLOOR_TITLE, MethodRow, Row, Shown, Table
from jpeglm.tables.text import Column, columns, fine_percent, given, number, percent

# Charts are drawn in these colours, which are then replaced by CSS variables, so that they follow light and dark mode.
_INK, _LINE, _FLOOR = "#000001", "#000002", "#000003"
# On a page 400 CSS pixels wide, a chart is at least 320 CSS pixels wide, so that a point is at least one CSS pixel.
_WIDTH, _TEXT = 320, 11  # points
_CHART_STYLE: dict[Any, Any] = {  # matplotlib's rcParams
    "svg.fonttype": "none",  # text stays text, in the page's font
    "svg.hashsalt": "jpeglm",
    "font.size": _TEXT,
    "axes.labelsize": _TEXT,
    "xtick.labelsize": _TEXT,
    "ytick.labelsize": _TEXT,
    "legend.fontsize": _TEXT,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _LINE,
    "axes.labelcolor": _INK,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": _LINE,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.solid_capstyle": "round",
}
_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "scipy", "scikit-image", "pillow", "tokenizers")
_PICTURE_SIDE = 64  # CSS pixels to which a small picture is enlarged, by an integer factor
_CLIP_SIDE = 96
_FIRST_LOOK = 12  # pictures a line
_LARGEST_SIDE = 128  # CSS pixels to which a large picture is shrunk


def facts(config: ConfigDict, command: str) -> dict[str, Any]:
    """The origin of the numbers: config of table and run, versions, hardware, date and command; JSON types."""
    run = read_config(epath.Path(config.workdir))
    devices = jax.devices()
    return {
        "command": command,
        "date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "hardware": {
            "processor": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "devices": f"{len(devices)} x {devices[0].device_kind}",
        },
        "versions": {"python": platform.python_version()}
        | {name: metadata.version(name) for name in _PACKAGES}
        | CODECS.of(run).encoder_versions(),
        "config": json.loads(config.to_json()),
        "run_config": json.loads(run.to_json()),
    }


def write(table: Table, path: Path, facts: dict[str, Any]) -> None:
    """Writes the report of a table to `path`. `facts`: the result of the function of that name.

    Raises:
      InputError: it cannot be written.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {function.__name__: function for function in (percent, fine_percent, number)}
    shown = columns(table)
    page = environment.get_template("report.html").render(
        table=table,
        methods=REGISTRY,
        main_row=trained()[0],
        facts=facts,
        columns=shown,
        share_given=functools.partial(_share_given, table),
        floors_of=lambda ratio: [row for row in table.floors if row.ratio == ratio],
        groups=_by_ratio(table.rows),
        bar=functools.partial(_bar, _farthest(table, shown)),
        look=_first_look(table),
        grids=[_grid(table, ratio) for ratio in _by_ratio(table.rows)],
        loss_chart=_loss_chart(table),
        distance_chart=_distance_chart(table)
        if len(_by_ratio(table.rows)) > 1 or table.floors[0].ratio is None
        else "",
        settings={"Table": facts["config"], "Run": facts["run_config"]},
        to_json=lambda tree: json.dumps(tree, indent=2, ensure_ascii=False),
    )
    with writing(path):
        write_whole(path, page.encode())


def _share_given(table: Table, ratio: float) -> str:
    """What is given at a ratio, in words. Only whole units are given, so it may be less than the ratio."""
    codec, kept = table.codec, table.kept[ratio]
    if codec.evaluation.measures_rest:
        return f"{given(table, ratio)} given"
    part = "" if kept == ratio * codec.units else f": {kept} of {codec.units}"
    return f"{100 * ratio:g}% of the {codec.unit}s given{part}"


def _farthest(table: Table, shown: list[Column]) -> dict[str, float]:
    """The longest bar of each scale."""
    lengths = [(column.scale, column.length(row)) for column in shown for row in table.all_rows]
    return {scale: max(length or 0.0 for other, length in lengths if other == scale) for scale, _ in lengths}


def _bar(farthest: dict[str, float], column: Column, row: Row) -> str | None:
    """The length of a bar in percent of the longest one of its scale; None for no bar."""
    length, longest = column.length(row), farthest[column.scale]
    return None if length is None else f"{100 * length / longest if longest else 0:.2f}"


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    names = re.findall(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else []
    return names[0] if names else platform.machine()


def _by_ratio(rows: list[MethodRow]) -> dict[float, list[MethodRow]]:
    groups: dict[float, list[MethodRow]] = {}
    for row in rows:
        groups.setdefault(row.ratio, []).append(row)
    return groups


def _samplings(rows: Sequence[Row]) -> tuple[bool, ...]:
    """Which samplings to show: False is without the grammar, True with it; the latter only if all rows have it."""
    return (False, True) if all(row.distance_with_grammar is not None for row in rows) else (False,)


############################ Pictures ############################


def _grid(table: Table, ratio: float) -> dict[str, Any]:
    """What the template needs for the pictures of one ratio: columns, and rows of (picture, whether it is valid)."""
    columns: dict[tuple[float | None, str, bool], str] = {(None, FLOOR, False): "original"}
    if (ratio, "prompt", False) in table.shown:
        columns[ratio, "prompt", False] = "given"
    for row in table.rows:
        if row.ratio == ratio:
            for grammar in _samplings([row]):
                columns[ratio, row.method, grammar] = title_of(row.method, grammar)
    fps = table.codec.fps
    cells = [_cells(table.shown[column], fps) for column in columns]
    return {
        "ratio": ratio,
        "titles": list(columns.values()),
        "rows": list(zip(*cells, strict=True)),
        "size": _size(table),
    }


def _size(table: Table) -> dict[str, int]:
    """Width and height of a picture on the page, in CSS pixels."""
    fps, originals = table.codec.fps, table.shown[None, FLOOR, False].pictures
    height, width = originals.shape[2:4] if fps else originals.shape[1:3]
    side = _CLIP_SIDE if fps else _PICTURE_SIDE
    factor = side // max(height, width) or min(1.0, _LARGEST_SIDE / max(height, width))
    return {"width": round(factor * width), "height": round(factor * height)}


def _first_look(table: Table) -> dict[str, Any] | None:
    """Pictures for the top of the page: completions by the trained network of the least distance at the middle ratio.

    With the grammar, if there is one. None if the table has no trained network.
    """
    ratios = sorted(_by_ratio(table.rows))
    ratio = ratios[len(ratios) // 2]
    rows = [row for row in table.rows if row.ratio == ratio and REGISTRY[row.method].is_trained]
    if not rows:
        return None
    grammar = _samplings(rows)[-1]
    best = min(rows, key=lambda row: row.distance_by(grammar))
    lines = {
        "given": (ratio, "prompt", False),
        "completed": (ratio, best.method, grammar),
        "original": (None, FLOOR, False),
    }
    cells = {name: _cells(table.shown[key], table.codec.fps) for name, key in lines.items() if key in table.shown}
    return {
        "title": title_of(best.method, grammar),
        "ratio": ratio,
        "lines": {name: line[:_FIRST_LOOK] for name, line in cells.items()},
        "size": _size(table),
    }


def _cells(shown: Shown, fps: int) -> list[tuple[str, bool]]:
    return [(_data_url(picture, fps), bool(valid)) for picture, valid in zip(shown.pictures, shown.valid, strict=True)]


def _data_url(picture: np.ndarray, fps: int) -> str:
    """A picture as a PNG, or a clip as an animated WebP, in a data URL."""
    if fps:
        return render.data_url("image/webp", render.animation(picture, fps))
    return render.data_url("image/png", render.png(Image.fromarray(picture)))


############################ Charts ############################


def _loss_chart(table: Table) -> str:
    """Training and held-out loss by step, and the n-gram model's as a horizontal line if there is one."""
    training = [(row["step"], row["loss"]) for row in table.history if "loss" in row]
    heldout = [
        (row["step"], row["heldout/nats_per_token"]) for row in table.history if "heldout/nats_per_token" in row
    ]
    with matplotlib.rc_context(_CHART_STYLE):
        figure = _figure(lines=3)
        axes = figure.add_subplot(xlabel="step", ylabel="nats a token")
        if training:
            axes.plot(*zip(*training, strict=True), color=_colour(trained()[0]), alpha=0.45, label="training")
        axes.plot(*zip(*heldout, strict=True), color=_colour(trained()[0]), marker="o", markersize=4, label="held-out")
        if table.ngram:
            label = "\n".join(textwrap.wrap(f"{table.ngram.title}, held-out", 45))
            axes.axhline(table.ngram.nats_per_token, color=_FLOOR, linestyle=(0, (4, 3)), linewidth=1.2, label=label)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower left")
        return _svg(figure, "Training and held-out loss by step")


def _distance_chart(table: Table) -> str:
    """Distance by ratio: a line per method, dashed for a network with the grammar, and the floor."""
    rows = table.rows
    with matplotlib.rc_context(_CHART_STYLE):
        methods = list(dict.fromkeys(row.method for row in rows))
        figure = _figure(lines=1 + sum(len(_samplings([row for row in rows if row.method == m])) for m in methods))
        axes = figure.add_subplot(xlabel=f"share of the {table.codec.unit}s given", ylabel=table.metric)
        for method in methods:
            own = sorted((row for row in rows if row.method == method), key=lambda row: row.ratio)
            for grammar in _samplings(own):
                axes.plot(
                    [row.ratio for row in own],
                    [row.distance_by(grammar) for row in own],
                    color=_colour(method),
                    linestyle=(0, (3, 2)) if grammar else "solid",
                    marker=REGISTRY[method].marker,
                    markersize=5,
                    markerfacecolor="none" if grammar else _colour(method),
                    label=title_of(method, grammar),
                )
        if table.floors[0].ratio is not None:
            places, distances = zip(*((row.ratio, row.distance) for row in table.floors), strict=True)
            axes.plot(places, distances, color=_FLOOR, linestyle=(0, (4, 3)), linewidth=1.2, label=FLOOR_TITLE)
        else:
            [floor] = table.floors
            axes.axhline(floor.distance, color=_FLOOR, linestyle=(0, (4, 3)), linewidth=1.2, label=FLOOR_TITLE)
        axes.set_xticks(sorted({row.ratio for row in rows}))
        axes.set_ylim(bottom=0)
        axes.grid(axis="x", visible=False)
        figure.legend(loc="outside lower left")
        return _svg(figure, f"{table.metric} by share given")


def _colour(method: str) -> str:
    """The colour of a method in the chart, which `_svg` replaces by the CSS variable of that name."""
    return f"#0000{16 + list(REGISTRY).index(method):02x}"


def _figure(lines: int) -> Figure:
    """A figure with room for a chart and a legend of `lines` lines below it."""
    return Figure(figsize=(_WIDTH / 72, (250 + 1.6 * _TEXT * lines) / 72), layout="constrained")


def _svg(figure: Figure, description: str) -> str:
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None})
    text = file.getvalue()
    text = text[text.index("<svg") :]
    variables = {_INK: "soft", _LINE: "line", _FLOOR: "ink"} | {_colour(method): method for method in REGISTRY}
    for colour, variable in variables.items():
        text = text.replace(colour, f"var(--{variable})")
    return text.replace("<svg ", f'<svg role="img" aria-label="{description}" ', 1)
