"""A completion table as Markdown, CSV and JSON."""

import csv
import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

from tabulate import tabulate

from jpeglm.data.shards import write_whole
from jpeglm.evals.tables import GRAMMAR_HEADER, Row, Table


def percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f}%"


def fine_percent(share: float | None) -> str:
    """A share that may be tiny, in two digits or more that say something: 37.2%, 1.5%, 0.013%."""
    if not share:
        return percent(share)
    digits = max(1, 1 - math.floor(math.log10(100 * share)))
    return f"{100 * share:.{digits}f}%" if digits <= 5 else "<0.0001%"


def number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:,.{digits}f}"


def main_lines(table: Table) -> list[list[str]]:
    """The main table as text, header first."""
    lines = [
        ["given", "method", "N", "valid", GRAMMAR_HEADER, "removed", "ended", "MCUs readable", "tokens"]
        + [table.metric, GRAMMAR_HEADER]
    ]
    for row in table.rows:
        lines.append(
            ["–" if row.ratio is None else f"{row.ratio:g}", row.title, f"{row.num:,}", percent(row.valid)]
            + [percent(row.valid_with_grammar), fine_percent(row.removed), percent(row.ended), percent(row.readable)]
            + [number(row.tokens, 1), number(row.distance, 2), number(row.distance_with_grammar, 2)]
        )
    return lines


def language_model_lines(table: Table) -> list[list[str]]:
    """Held-out losses as text, header first."""
    lines = [["held-out", "nats a token", "bits a byte", "bits a pixel"]]
    for model in table.language_models:
        units = (model.nats_per_token, model.bits_per_byte, model.bits_per_pixel)
        lines.append([model.title, *(f"{value:.4f}" for value in units)])
    return lines


def markdown(table: Table) -> str:
    """Both tables as Markdown."""

    def table_of(lines: list[list[str]], left: int) -> str:
        align = ["left" if column < left else "right" for column in range(len(lines[0]))]
        return tabulate(lines[1:], lines[0], tablefmt="github", disable_numparse=True, colalign=align)

    return f"{table_of(main_lines(table), 2)}\n\n{table_of(language_model_lines(table), 1)}\n"


def as_csv(table: Table) -> str:
    """The main table, unrounded; empty where there is nothing to say."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    fields = [field.name for field in dataclasses.fields(Row)]
    writer.writerow(["metric", *fields])
    for row in table.rows:
        writer.writerow([table.metric, *(getattr(row, field) for field in fields)])
    return file.getvalue()


def write(table: Table, out: Path, facts: dict[str, Any]) -> None:
    """Writes table.md, table.csv and table.json into `out`; `facts` (config, versions) go into the last."""
    out.mkdir(parents=True, exist_ok=True)
    content = {
        "metric": table.metric,
        "step": table.step,
        "rows": [dataclasses.asdict(row) for row in table.rows],
        "language_models": [dataclasses.asdict(model) for model in table.language_models],
        "notes": table.notes,
        **facts,
    }
    notes = "".join(f"- {note}\n" for note in table.notes)
    write_whole(out / "table.md", f"{markdown(table)}\n{notes}".encode())
    write_whole(out / "table.csv", as_csv(table).encode())
    write_whole(out / "table.json", (json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
