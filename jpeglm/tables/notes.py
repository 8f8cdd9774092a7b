"""The notes of a completion table: which rows are nearer to real pictures, and how to read the numbers.

Statements about rows are computed from their numbers as the table prints them: two distances that are printed the same
count as equal.
"""

import itertools
from collections.abc import Iterator

from ml_collections import ConfigDict

from jpeglm.fid.extractors.base import Extractor
from jpeglm.fid.frechet import RELIABLE_PICTURES
from jpeglm.tables import ngram
from jpeglm.tables.context import Context
from jpeglm.tables.methods import REGISTRY, rows_of, title_of, trained
from jpeglm.tables.metrics import METRICS
from jpeglm.tables.rows import NGRAM_ORDER, Table
from jpeglm.tables.text import columns, given, number, with_grammar

_DIGITS = 2  # of distances in the table


def verdicts(table: Table) -> list[str]:
    """Sentences that compare the rows: networks with controls, all rows with the floor, networks with still frames."""
    of = []
    if table.video_metric:
        of.append(f"These sentences compare {table.metric} alone; {table.video_metric} may order the rows otherwise.")
    return [*of, *_against_controls(table), *_against_floor(table), *_against_still_frames(table)]


def _against_controls(table: Table) -> Iterator[str]:
    """For each trained network, which controls are nearer to real pictures, or equally near, and at which ratios.

    First for plain sampling, then for sampling with the grammar, which every network has if the codec has a grammar.
    """
    real = table.codec.evaluation.words.real
    for method, grammar in itertools.product(trained(), (False, True)):
        nearer: dict[str, list[str]] = {}
        level: dict[str, list[str]] = {}
        compared = []
        for row in table.rows:
            if row.method != method or (grammar and row.distance_with_grammar is None):
                continue
            controls = [other for other in table.rows if other.ratio == row.ratio and other.method not in trained()]
            compared += [given(table, row.ratio)] if controls else []
            for other in controls:
                ours, theirs = (round(each.distance_by(grammar), _DIGITS) for each in (row, other))
                title = title_of(other.method, grammar and REGISTRY[other.method].is_network)
                if theirs < ours:
                    place = f"at {given(table, row.ratio)} ({number(ours, _DIGITS)} against {number(theirs, _DIGITS)})"
                    nearer.setdefault(title, []).append(place)
                elif theirs == ours:
                    level.setdefault(title, []).append(f"at {given(table, row.ratio)} ({number(ours, _DIGITS)})")
        subject = f"“{title_of(method, grammar)}”"
        if nearer:
            yield f"{subject} is farther from {real} than {_listed(nearer)}."
        if level:
            yield f"{subject} is exactly as far from {real} as {_listed(level)}."
        if compared and not nearer and not level:
            yield f"{subject} is nearer to {real} than every control, at {', '.join(compared)}."


def _listed(places: dict[str, list[str]]) -> str:
    return "; ".join(f"“{title}” {', '.join(found)}" for title, found in places.items())


def _against_floor(table: Table) -> Iterator[str]:
    """Which rows are nearer to the reference than the originals themselves."""
    floors = {floor.ratio: floor.distance for floor in table.floors}
    below: dict[str, list[str]] = {}
    for row, grammar in itertools.product(table.rows, (False, True)):
        distance = row.distance_with_grammar if grammar else row.distance
        floor = floors.get(row.ratio, floors.get(None))
        if distance is None or floor is None or round(distance, _DIGITS) >= round(floor, _DIGITS):
            continue
        place = f"at {given(table, row.ratio)} ({number(distance, _DIGITS)} against {number(floor, _DIGITS)})"
        below.setdefault(title_of(row.method, grammar), []).append(place)
    yield f"Below the floor: {_listed(below)}." if below else "No row is below the floor."


def _against_still_frames(table: Table) -> Iterator[str]:
    """How the trained networks compare with still frames, by each number that both have."""
    for row, still in itertools.product(table.rows, table.rows):
        if row.method in trained() and REGISTRY[still.method].is_compared_in_full and still.ratio == row.ratio:
            compared = [f"distance {number(still.distance, _DIGITS)} against {number(row.distance, _DIGITS)}"]
            for metric in METRICS:
                theirs, ours = still.scores.get(metric.name), row.scores.get(metric.name)
                if metric.digits is not None and theirs is not None and ours is not None:
                    name, digits = metric.header.partition(",")[0], metric.digits
                    compared.append(f"{name} {number(theirs, digits)} against {number(ours, digits)}")
            yield f"“{still.title}” against “{row.title}” at {given(table, row.ratio)}: {', '.join(compared)}."


def notes(
    table: Table,
    config: ConfigDict,
    context: Context,
    extractor: Extractor,
    video_extractor: Extractor | None = None,
) -> list[str]:
    """The sentences that a reader needs to understand the numbers."""
    num, codec = config.num, table.codec
    unreadable = codec.evaluation.words.unreadable
    by_grammar = any(row.distance_with_grammar is not None for row in table.rows)
    twice = ", a network's a second one with the grammar" if by_grammar else ""
    lines = [
        f"Prompts come from the first {num:,} held-out files in the order of the shards, the reference from the "
        f"{num:,} that follow. That order is by a hash of the files, so they were not chosen by hand.",
        f"Every row has {num:,} {codec.item}s and one completion a prompt{twice}. A file that does not decode "
        f"strictly counts against “valid” and enters the distance {unreadable}: none is dropped.",
        *_about_distances(table, extractor, video_extractor),
    ]
    columns_shown = {column.header for column in columns(table)}
    lines += [words for header, words in _about_columns(table).items() if header in columns_shown]
    if by_grammar:
        lines += _about_grammar(table)
    about = [REGISTRY[row].note(context, config) for row in rows_of(config)]
    return [*lines, *(sentence for sentence in about if sentence), *_about_losses(table, context)]


def _about_distances(table: Table, extractor: Extractor, video_extractor: Extractor | None) -> list[str]:
    evaluation = table.codec.evaluation
    lines = [
        f"{extractor.metric} is the Fréchet distance between {extractor.dim:,} features of {extractor.name}, "
        f"{evaluation.words.completed} stretched to {extractor.size}x{extractor.size}. {extractor.caveat}",
        "Both sides were compressed by the same codec at the same quality. The floor is the distance that the "
        "prompts' originals themselves have to the reference.",
        "Compare methods within one ratio: a larger share given leaves less to complete.",
    ]
    if video_extractor:
        lines.append(
            f"{video_extractor.metric} is the Fréchet distance between {video_extractor.dim:,} features of "
            f"{video_extractor.name} of whole clips, the given frames too. {video_extractor.caveat}"
        )
    num = table.floors[0].num
    counts = sorted({num * evaluation.num_pictures(kept) for kept in table.kept.values()})
    if counts[0] < max(RELIABLE_PICTURES, extractor.dim):
        size = f"{' or '.join(f'{count:,}' for count in counts)} {evaluation.counted}"
        lines.append(_biased(extractor.metric, size))
    if video_extractor and num < max(RELIABLE_PICTURES, video_extractor.dim):
        lines.append(_biased(video_extractor.metric, f"{num:,} {table.codec.item}s"))
    return lines


def _biased(metric: str, size: str) -> str:
    return (
        f"With {size} a side {metric} is biased upwards and depends on that number: it compares rows of this table "
        "and nothing else."
    )


def _about_columns(table: Table) -> dict[str, str]:
    """The meaning of each column whose header does not explain it, by header."""
    unit = table.codec.unit
    return {
        f"{unit}s readable": f"“{unit}s readable”: of the {unit}s to be completed, the share that a tolerant decoder "
        "reads in sequence before the first that it cannot.",
        "ended": "“ended” means that the model wrote its end token within the budget.",
        **{metric.header: metric.note for metric in METRICS if metric.note},
    }


def _about_grammar(table: Table) -> list[str]:
    valid, distance = with_grammar("valid"), with_grammar(table.metric)
    return [
        "The grammar is an automaton of all legal files of the codec. With it, a network draws only tokens that "
        "lead to a legal file which ends within the budget; without it, from all tokens, as in the paper.",
        f"“{valid}” and “{distance}” are of files written with the grammar, from the same prompts and random numbers. "
        "These are valid by construction, whoever the model. All other columns are without it: “valid” is a property "
        "of the model and says how well it has learnt the format.",
        "“removed” is the probability that the grammar took away from a model at a token, before temperature, "
        "top-k and top-p: the mean over each file's tokens, then over the files.",
    ]


def _about_losses(table: Table, context: Context) -> list[str]:
    """Which tokens the losses are computed on: the n-gram model and a network's evaluation may have limits."""
    lines = []
    fitted = table.ngram.fitted_tokens if table.ngram else None
    if fitted is not None:
        there = ngram.training_tokens(context.manifest)
        part = f"the first {fitted:,} of {there:,} tokens of " if fitted < there else ""
        lines.append(
            f"The {NGRAM_ORDER}-gram model (modified Kneser-Ney) was fitted on {part}the training split. It is scored "
            "on every held-out token that follows another within a chunk."
        )
    heldout = context.manifest["splits"]["heldout"]["chunks"]
    for row in trained():
        if REGISTRY[row].run in context.runs:
            run = context.runs[REGISTRY[row].run].config
            scored = run.eval.batches * run.optim.batch_size
            which = f"all {heldout:,}" if scored >= heldout else f"the first {scored:,} of {heldout:,}"
            lines.append(f"The loss of “{REGISTRY[row].title}” is of {which} held-out chunks.")
    return lines
