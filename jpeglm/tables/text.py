"""A completion table as Markdown, CSV and JSON."""

import csv
import dataclasses
import io
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tabulate import tabulate

from jpeglm.core.errors import writing
from jpeglm.core.files import write_whole
from jpeglm.tables.metrics import METRICS, Metric
from jpeglm.tables.rows import Row, Table

NOTHING = "–"


def percent(share: float | None) -> str:
    """A share in per cent with one decimal; `NOTHING` for None."""
    return NOTHING if share is None else f"{100 * share:.1f}%"


def fine_percent(share: float | None) -> str:
    """A share that may be tiny, with at least two significant digits: 37.2%, 1.5%, 0.013%."""
    if not share:
        return percent(share)
    digits = max(1, 1 - math.floor(math.log10(100 * share)))
    return f"{100 * share:.{digits}f}%" if digits <= 5 else "<0.0001%"


def number(value: float | None, digits: int) -> str:
    """A number with this many decimals; `NOTHING` for None."""
    return NOTHING if value is None else f"{value:,.{digits}f}"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of the main table.

    Attributes:
      header: different for each column.
      text: gives the text of a row.
      length: gives the length of a row's bar; None for no bar.
      scale: what the bars measure; bars with the same scale are comparable.
    """

    header: str
    text: Callable[[Row], str]
    length: Callable[[Row], float | None] = lambda row: None
    scale: str = ""


def with_grammar(header: str) -> str:
    """The header of the column that repeats another one for files written with the grammar."""
    return f"{header} with grammar"


def columns(table: Table) -> list[Column]:
    """The columns of the main table after the method's name. A column that is empty in all rows is left out."""

    def distance(header: str, metric: str, name: str) -> Column:
        return Column(header, lambda row: number(getattr(row, name), 2), lambda row: getattr(row, name), metric)

    def score(metric: Metric) -> Column:
        def text(row: Row) -> str:
            value = row.scores.get(metric.name)
            return percent(value) if metric.digits is None else number(value, metric.digits)

        return Column(metric.header, text)

    found = [
        Column("N", lambda row: f"{row.num:,}"),
        Column("valid", lambda row: percent(row.valid)),
        Column(with_grammar("valid"), lambda row: percent(row.valid_with_grammar)),
        Column("removed", lambda row: fine_percent(row.removed)),
        Column("ended", lambda row: percent(row.ended)),
        Column(f"{table.codec.unit}s readable", lambda row: percent(row.readable)),
        *(score(metric) for metric in METRICS if metric.digits is None),
        Column("tokens", lambda row: number(row.tokens, 1)),
        distance(table.metric, table.metric, "distance"),
        distance(with_grammar(table.metric), table.metric, "distance_with_grammar"),
        distance(table.video_metric, table.video_metric, "video_distance"),
        *(score(metric) for metric in METRICS if metric.digits is not None),
    ]
    return [column for column in found if any(column.text(row) != NOTHING for row in table.all_rows)]


def given(table: Table, ratio: float | None) -> str:
    """How much was given: for pictures the share of their MCUs, for clips the number of frames."""
    return NOTHING if ratio is None else table.codec.evaluation.given(ratio, table.kept[ratio])


def main_lines(table: Table) -> list[list[str]]:
    """The main table as text, header first."""
    shown = columns(table)
    lines = [["given", "method", *(column.header for column in shown)]]
    for row in table.all_rows:
        lines.append([given(table, row.ratio), row.title, *(column.text(row) for column in shown)])
    return lines


def language_model_lines(table: Table) -> list[list[str]]:
    """Held-out losses as text, header first."""
    lines = [["held-out", "nats a token", "bits a byte", "bits a pixel"]]
    for model in table.language_models:
        units = (model.nats_per_token, model.bits_per_byte, model.bits_per_pixel)
        lines.append([model.title, *(f"{value:.4f}" for value in units)])
    return lines


def markdown(table: Table) -> str:
    """The main table and the table of held-out losses as Markdown."""

    def table_of(lines: list[list[str]], left: int) -> str:
        align = ["left" if column < left else "right" for column in range(len(lines[0]))]
        return tabulate(lines[1:], lines[0], tablefmt="github", disable_numparse=True, colalign=align)

    return f"{table_of(main_lines(table), 2)}\n\n{table_of(language_model_lines(table), 1)}\n"


def as_csv(table: Table) -> str:
    """The main table as CSV with unrounded numbers; a field is empty if there is no number."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    records = [row.record() for row in table.all_rows]
    writer.writerow(["metric", "video_metric", *records[0]])
    for record in records:
        writer.writerow([table.metric, table.video_metric, *record.values()])
    return file.getvalue()


def write(table: Table, out: Path, facts: dict[str, Any]) -> None:
    """Writes table.md, table.csv and table.json into `out`; `facts` (config, versions) go into table.json.

    Raises:
      InputError: `out` cannot be written.
    """
    content = {
        "metric": table.metric,
        "video_metric": table.video_metric,
        "extractors": table.extractors,
        "step": table.step,
        "rows": [row.record() for row in table.all_rows],
        "language_models": [dataclasses.asdict(model) for model in table.language_models],
        "notes": table.notes,
        **facts,
    }
    notes = "".join(f"- {note}\n" for note in table.notes)
    files = {
        "table.md": f"{markdown(table)}\n{notes}",
        "table.csv": as_csv(table),
        "table.json": json.dumps(content, indent=2, ensure_ascii=False) + "\n",
    }
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            write_whole(out / name, text.encode())
