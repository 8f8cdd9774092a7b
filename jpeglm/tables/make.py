"""A completion table: each method at each ratio, measured on the same number of pictures against one reference.

Prompts come from the first held-out documents in the order of the shards. That order is by a hash of their bytes, so
they were not chosen by hand. The reference is the same number of documents after them. Nothing is dropped: a file that
does not decode strictly counts as invalid, and its lenient decoding is used for the distance. Files written with the
codec's grammar are always valid, so they do not show how well a network knows the format. A table therefore also has
the files written without the grammar, and the probability that the grammar removed.

For clips, the frames after the given ones are measured: each as a picture for the distance, against the frames at the
same positions of the reference; and against the clip's own frames by PSNR and SSIM.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging
from ml_collections import ConfigDict

from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError
from jpeglm.core.files import check_outside
from jpeglm.core.parts import ALONE, Part
from jpeglm.core.workdir import read_metrics
from jpeglm.data import batches
from jpeglm.data.codecs import Codec
from jpeglm.fid import extractors
from jpeglm.fid.extractors.base import Extractor
from jpeglm.sample.settings import Settings
from jpeglm.tables import notes
from jpeglm.tables.cells import Cells
from jpeglm.tables.context import Context, Run
from jpeglm.tables.losses import language_models
from jpeglm.tables.methods import REGISTRY, add_installed, rows_of, runs_of
from jpeglm.tables.rows import Table
from jpeglm.tables.store import Missing, Store


def check(config: ConfigDict) -> None:
    """Raises InputError if the config is not a valid one of a table. No run and no data is opened."""
    add_installed()
    config_lib.check_table(config)
    for key in ("workdir", "data", "out"):
        if not config[key]:
            raise InputError(f"--config.{key}=DIR is needed")
    _check_rows(config.rows, tuple(REGISTRY))
    if len(set(config.ratios)) < len(config.ratios) or len(set(config.rows)) < len(config.rows):
        raise InputError("config.ratios or config.rows: something stands there twice")
    _check_extractors(config)
    sources = {f"config.{key}": config.get(key) or None for key in ("workdir", "data", "pretrained")}
    check_outside(config.out, **sources)


def _check_rows(rows: Sequence[str], known: Sequence[str]) -> None:
    unknown = [row for row in rows if row not in known]
    if unknown or not rows:
        raise InputError(f"config.rows: {unknown[0] if unknown else 'nothing'!r} is none of {', '.join(known)}")


def _check_extractors(config: ConfigDict) -> None:
    for key, name, known in (
        ("extractor", config.extractor, extractors.PICTURES),
        ("video_extractor", _video_name(config), extractors.CLIPS),
    ):
        if name not in known:
            raise InputError(f"config.{key}: {name!r} is none of {', '.join(known)}")
    kind = extractors.find(config.extractor)
    if kind.wants_weights != bool(config.get("weights")):  # older configs have no such key
        wanting = [name for name in extractors.PICTURES if extractors.find(name).wants_weights]
        names = config.extractor if kind.wants_weights else " or ".join(wanting)
        raise InputError(f"config.weights=FILE and config.extractor={names} go together")
    if kind.modes and config.mode not in kind.modes:
        raise InputError(f"config.mode={config.mode!r} is none of {', '.join(kind.modes)}")


def _check_fits(config: ConfigDict, context: Context) -> None:
    """Raises InputError for a table that cannot be made of this run and these data."""
    codec, least = context.codec, context.codec.evaluation.least_given
    _check_rows(config.rows, _rows_for(codec))
    if any(codec.units_of(ratio) < least for ratio in config.ratios):
        raise InputError(
            f"config.ratios={tuple(config.ratios)}: of a {codec.item} of {codec.units} {codec.unit}s one must be given"
        )
    if config.get("video_weights") and not codec.fps:
        raise InputError(f"config.video_weights is for clips, and {config.workdir} is a run on {codec.item}s")
    if config.get("video_weights") and codec.frames < (least := extractors.find(_video_name(config)).min_frames):
        raise InputError(f"config.video_weights: the network needs clips of {least} frames, not {codec.frames}")
    there, wanted = context.manifest["splits"]["heldout"]["documents"], 2 * config.num
    if there < wanted:
        raise InputError(f"config.num={config.num} takes {wanted} held-out documents, {config.data} has {there}")


def _rows_for(codec: Codec) -> tuple[str, ...]:
    """The rows that a table of this codec can have."""
    return tuple(name for name, method in REGISTRY.items() if method.fits(codec))


def make(
    config: ConfigDict,
    extractor: Extractor | None = None,
    video_extractor: Extractor | None = None,
    part: Part = ALONE,
) -> Table | None:
    """Completes, judges and measures everything that `config` names (see configs/eval/demo.py and demo_avc.py).

    All input is checked before anything is sampled.

    Args:
      config: of the table.
      extractor: replaces the one that `config.extractor` names.
      video_extractor: replaces the one that `config.video_extractor` names, if `config.video_weights` is set.
      part: whose cells are made. The reference and the losses, which all cells need, are made by each part.

    Returns:
      The table; None if cells of other parts are not there yet.

    Raises:
      InputError: a key, the run or the data are wrong in a way that the user can fix, numbers are not finite, or the
        output folder cannot be written.
      RuntimeError: a file written with the grammar is not valid, which is a bug.
    """
    check(config)
    context = Context(config.workdir, config.data, Settings(**config.sampling), config.seed, config.pretrained)
    _check_fits(config, context)
    rows = rows_of(config)
    documents = list(batches.documents(config.data, "heldout", 2 * config.num))
    context.check_prompts(runs_of(context, rows), documents[: config.num], config.ratios)
    store = Store(Path(config.out) / "cells")
    histories = {key: _history(run) for key, run in context.runs.items()}
    used = [extractor or _extractor(config)]
    if config.get("video_weights"):
        used.append(video_extractor or _video_extractor(config))
    losses = language_models(config, context, histories, store)

    cells = Cells(config, context, store, documents, *used)
    floors = cells.floors()
    if not part.is_alone:
        cells.make_share(rows, part)
        store.makes = False
    try:  # row by row, so that each model is loaded once
        made = {(row, ratio): cells.row(row, ratio) for row in rows for ratio in config.ratios}
    except Missing as missing:
        logging.info("part %s is done; the cell %s of another part is not there yet", part, missing)
        return None
    cells.show_prompts()
    table = Table(
        metric=used[0].metric,
        codec=context.codec,
        kept=cells.given,
        step=context.step,
        floors=floors,
        rows=[made[row, ratio] for ratio in config.ratios for row in rows],
        language_models=losses,
        history=histories["workdir"],
        shown=cells.shown,
        notes=[],
        video_metric=used[1].metric if len(used) > 1 else "",
        extractors={each.name: each.weights_sha256 for each in used},
    )
    table.notes.extend(notes.verdicts(table) + notes.notes(table, config, context, *used))
    return table


def _history(run: Run) -> list[dict[str, Any]]:
    """The metrics of a run up to its checkpoint."""
    return [row for row in read_metrics(run.workdir) if row["step"] <= run.step]


def _extractor(config: ConfigDict) -> Extractor:
    return extractors.make(config.extractor, config.get("weights", ""), config.get("mode", ""))


def _video_extractor(config: ConfigDict) -> Extractor:
    return extractors.make(_video_name(config), config.video_weights)


def _video_name(config: ConfigDict) -> str:
    return config.get("video_extractor") or next(iter(extractors.CLIPS))  # older configs have no such key
