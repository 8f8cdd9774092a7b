"""A completion table: methods by ratios, each judged on the same number of pictures against the same reference.

Prompts come from the first held-out documents in the order of the shards, which is by a hash of their bytes: a random
choice that nobody made. The reference is as many documents that follow. Nothing is dropped: a file that does not
decode strictly counts as invalid and enters the distance as it is leniently decoded. What a network writes with the
codec's grammar is always valid and says nothing of the network's own grasp of the format: so it stands beside what the
network writes without, and beside the probability that the grammar took away.
"""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import pipeline
from jpeglm.errors import InputError
from jpeglm.evals import ngram
from jpeglm.evals.completion import (
    MODELS,
    TITLES,
    TRAINED,
    TRAINING_PICTURES,
    Completed,
    Methods,
    Store,
    documents_identity,
    judge,
    title_of,
)
from jpeglm.evals.efficientnet import EfficientNetLite0
from jpeglm.evals.features import Extractor, extract
from jpeglm.evals.fid import Moments, frechet_distance
from jpeglm.evals.inception import MODES, Inception
from jpeglm.metrics import read_metrics
from jpeglm.sampling.engine import Settings

EXTRACTORS = ("efficientnet_lite0", "inception")
FLOOR = "heldout"
FLOOR_TITLE = "held-out originals"
SHOWN = 8  # pictures of each cell that a report shows
NGRAM_ORDER = 4
GRAMMAR_HEADER = "+ grammar"  # of the column that repeats the one before it, for files written with the grammar


@dataclasses.dataclass(frozen=True)
class Row:
    """One line of the table. Of a network, all but the last three tell of the plain sampling, without the grammar.

    Attributes:
      method: a key of `TITLES`, or "heldout" for the originals themselves.
      title: what the table calls it.
      ratio: share of the MCUs that were given; None for the originals.
      num: pictures.
      valid: share of the files that decode strictly.
      ended: share of the files that the model ended itself within its budget of tokens; None where no model wrote.
      readable: mean share of the MCUs to be completed that are readable in sequence, leniently; None for originals.
      distance: between the features of these pictures and of the reference.
      tokens: mean number that the model wrote; None where no model wrote.
      valid_with_grammar: share of the files written with the grammar that decode strictly; None where no model wrote.
      distance_with_grammar: between the features of those files' pictures and of the reference; None likewise.
      removed: the share of its probability that the grammar took away from the model at a token, the mean over each
        file's tokens and then over the files; None likewise.
    """

    method: str
    title: str
    ratio: float | None
    num: int
    valid: float
    ended: float | None
    readable: float | None
    distance: float
    tokens: float | None
    valid_with_grammar: float | None = None
    distance_with_grammar: float | None = None
    removed: float | None = None

    def distance_by(self, grammar: bool) -> float:
        """The distance by the sampling with the grammar, or by the plain one; what no model wrote has only one."""
        return self.distance if self.distance_with_grammar is None or not grammar else self.distance_with_grammar


@dataclasses.dataclass(frozen=True)
class LanguageModel:
    """Held-out loss of a model of the tokens, in the field's three units."""

    title: str
    nats_per_token: float
    bits_per_byte: float
    bits_per_pixel: float


@dataclasses.dataclass(frozen=True)
class Shown:
    """Pictures of a cell for the report: uint8 [n, h, w] or [n, h, w, 3], and which of their files are valid."""

    pictures: np.ndarray
    valid: np.ndarray


@dataclasses.dataclass(frozen=True)
class Table:
    """What `make` found out.

    Attributes:
      metric: what the distance is called.
      rows: the originals first, then ratio by ratio.
      language_models: the trained model at `step`, the n-gram model, and the pretrained model if there is one.
      history: the rows of the run's metrics up to `step`.
      shown: by (ratio, method, whether with the grammar); without it, also by (None, "heldout") the originals and by
        (ratio, "prompt") what was given over grey.
    """

    metric: str
    step: int
    rows: list[Row]
    language_models: list[LanguageModel]
    history: list[dict[str, Any]]
    shown: dict[tuple[float | None, str, bool], Shown]
    notes: list[str]


def check(config: ConfigDict) -> None:
    """`InputError` for a config that names no table."""
    for key in ("workdir", "data", "out"):
        if not config[key]:
            raise InputError(f"--config.{key}=DIR is needed")
    unknown = [row for row in config.rows if row not in TITLES]
    if unknown or not config.rows:
        raise InputError(f"config.rows: {unknown[0] if unknown else 'nothing'!r} is none of {', '.join(TITLES)}")
    if not config.ratios or not all(0 <= ratio < 1 for ratio in config.ratios):
        raise InputError(f"config.ratios={tuple(config.ratios)}: one or more of 0 to below 1 are needed")
    if len(set(config.ratios)) < len(config.ratios) or len(set(config.rows)) < len(config.rows):
        raise InputError("config.ratios or config.rows: something stands there twice")
    if config.num < 2:
        raise InputError(f"config.num={config.num}: a distance needs two pictures")
    if config.extractor not in EXTRACTORS:
        raise InputError(f"config.extractor: {config.extractor!r} is none of {', '.join(EXTRACTORS)}")
    if (config.extractor == "inception") != bool(config.get("weights")):  # older configs have no such key
        raise InputError("config.weights=FILE and config.extractor=inception go together")
    if config.extractor == "inception" and config.mode not in MODES:
        raise InputError(f"config.mode={config.mode!r} is none of {', '.join(MODES)}")


def make(config: ConfigDict, extractor: Extractor | None = None) -> Table:
    """Completes, judges and measures all that `config` names (see configs/eval/demo.py).

    Args:
      config: of the table.
      extractor: another one than `config.extractor` names.

    Raises:
      InputError: a key, run or data that the user can mend.
      RuntimeError: a file written with the grammar is not valid, which the grammar promises.
    """
    check(config)
    methods = Methods(config.workdir, config.data, Settings(**config.sampling), config.seed, config.pretrained)
    codec, num = methods.codec, config.num
    if isinstance(codec, AvcCodec):
        raise InputError(f"{config.workdir} is a run on clips, and these tables are of pictures")
    there = methods.manifest["splits"]["heldout"]["documents"]
    if there < 2 * num:
        raise InputError(f"config.num={num} takes {2 * num} held-out documents, {config.data} has {there}")
    documents = list(pipeline.documents(config.data, "heldout", 2 * num))
    originals, reference = documents[:num], documents[num:]
    extractor = extractor or _extractor(config)
    store = Store(Path(config.out) / "cells")
    shown: dict[tuple[float | None, str, bool], Shown] = {}

    def measure(name: str, title: str, documents: list[bytes], kept: int) -> dict[str, np.ndarray]:
        """Features float32 [n, dim], valid bool [n] and readable float64 [n] of documents."""
        identity = {
            "documents": documents_identity(documents),
            "codec": methods.run_config.codec.to_dict(),
            "extractor": [extractor.name, extractor.size, extractor.weights_sha256]
            + ([extractor.mode] if extractor.mode else []),
            "kept": kept,
        }

        def compute() -> dict[str, np.ndarray]:
            judged = []

            def pictures():
                for picture, valid, readable in judge(codec, documents, kept):
                    judged.append((valid, readable))
                    yield picture

            prepared = map(extractor.prepare, pictures())
            features = np.concatenate(list(extract(extractor, prepared, len(documents), title)))
            valid, readable = zip(*judged, strict=True)
            return {"features": features, "valid": np.array(valid), "readable": np.array(readable)}

        return store.get(f"{name}.features", identity, compute)

    def show(ratio: float | None, method: str, documents: list[bytes], grammar: bool = False) -> None:
        seen = list(judge(codec, documents[:SHOWN], 0))
        pictures, valid = np.stack([entry[0] for entry in seen]), np.array([entry[1] for entry in seen])
        shown[ratio, method, grammar] = Shown(pictures, valid)

    def fill(method: str, ratio: float, grammar: bool = False) -> tuple[Completed, dict[str, np.ndarray]]:
        """The completions of one cell, and what is measured of them."""
        name = f"{method}-{ratio:g}{'-grammar' if grammar else ''}"
        identity = methods.identity(method, grammar)
        identity |= {"ratio": ratio, "originals": documents_identity(originals)}
        arrays = store.get(name, identity, lambda: methods.complete(method, originals, ratio, grammar).to_arrays())
        completed = Completed.from_arrays(arrays)
        title = f"{title_of(method, grammar)}, ratio {ratio:g}"
        measured = measure(name, title, completed.documents, codec.cut(originals[0], ratio)[1])
        if grammar and not measured["valid"].all():
            raise RuntimeError(
                f"cell {name}: {np.sum(~measured['valid'])} of {num} files written with the grammar are not valid, "
                f"which is a bug of jpeglm; they are in {config.out}/cells/{name}.npz"
            )
        show(ratio, method, completed.documents, grammar)
        return completed, measured

    ############################ Reference and floor ############################
    target = Moments([measure("reference", "reference", reference, 0)["features"]])

    def distance_of(measured: dict[str, np.ndarray]) -> float:
        return frechet_distance(Moments([measured["features"]]), target)

    measured = measure(FLOOR, FLOOR_TITLE, originals, 0)
    floor = distance_of(measured)
    rows = [Row(FLOOR, FLOOR_TITLE, None, num, float(measured["valid"].mean()), None, None, floor, None)]
    show(None, FLOOR, originals)

    ############################ Methods by ratios ############################
    for method in _rows(config):  # outermost, so that each model is loaded once
        for ratio in config.ratios:
            completed, measured = fill(method, ratio)
            wrote = completed.ended is not None
            row = Row(
                method=method,
                title=TITLES[method],
                ratio=ratio,
                num=len(completed.documents),
                valid=float(measured["valid"].mean()),
                ended=float(completed.ended.mean()) if wrote else None,
                readable=float(measured["readable"].mean()),
                distance=distance_of(measured),
                tokens=float(completed.tokens.mean()) if wrote else None,
            )
            if method in MODELS:
                completed, measured = fill(method, ratio, grammar=True)
                row = dataclasses.replace(
                    row,
                    valid_with_grammar=float(measured["valid"].mean()),
                    distance_with_grammar=distance_of(measured),
                    removed=float(completed.removed.mean()),
                )
            rows.append(row)
    for ratio in config.ratios:
        show(
            ratio, "prompt", [codec.complete_with_flat(*codec.cut(original, ratio)) for original in originals[:SHOWN]]
        )
    order = {ratio: place for place, ratio in enumerate(config.ratios)}
    rows[1:] = sorted(rows[1:], key=lambda row: order[row.ratio])  # stable: the methods keep their order

    ############################ The language model ############################
    history = [row for row in read_metrics(methods.workdir) if row["step"] <= methods.step]
    identity = {split: methods.split_identity(split) for split in ("train", "heldout")} | {"order": NGRAM_ORDER}
    counted = store.get("ngram", identity, lambda: _ngram_scores(config.data))
    language_models = [
        _last_scores(TITLES["trained"], history, config.workdir),
        _language_model(f"interpolated {NGRAM_ORDER}-gram", {name: float(x) for name, x in counted.items()}, ""),
    ]
    if methods.pretrained:
        rows_of = read_metrics(methods.pretrained)
        language_models.append(_last_scores(TITLES["pretrained"], rows_of, config.pretrained))
    notes = _verdicts(rows) + _notes(config, methods, extractor)
    return Table(extractor.metric, methods.step, rows, language_models, history, shown, notes)


def _extractor(config: ConfigDict) -> Extractor:
    return Inception(config.weights, config.mode) if config.extractor == "inception" else EfficientNetLite0()


def _rows(config: ConfigDict) -> list[str]:
    return [row for row in config.rows if row != "pretrained" or config.pretrained]


def _last_scores(title: str, history: list[dict[str, Any]], workdir: str) -> LanguageModel:
    """The last held-out loss of a run's metrics."""
    scores = [row for row in history if "heldout/nats_per_token" in row]
    if not scores:
        raise InputError(f"{workdir}: metrics.jsonl holds no held-out loss up to its checkpoint")
    return _language_model(f"{title}, step {scores[-1]['step']:,}", scores[-1], "heldout/")


def _verdicts(rows: list[Row]) -> list[str]:
    """Says of each trained network which controls are nearer to real pictures than it is, at which ratio.

    By the plain sampling, then by that with the grammar: then the untrained network has the grammar, too.
    """
    verdicts = []
    for method, grammar in itertools.product(TRAINED, (False, True)):
        subject = f"“{title_of(method, grammar)}”"
        own = [row for row in rows if row.method == method]
        nearer: dict[str, list[str]] = {}
        for row in own:
            for other in rows:
                ours, theirs = row.distance_by(grammar), other.distance_by(grammar)
                if other.ratio == row.ratio and other.method not in TRAINED and theirs <= ours:
                    place = f"at {row.ratio:g} ({theirs:,.2f} against {ours:,.2f})"
                    nearer.setdefault(title_of(other.method, grammar and other.method in MODELS), []).append(place)
        if nearer:
            lost = "; ".join(f"“{title}” {', '.join(places)}" for title, places in nearer.items())
            verdicts.append(f"{subject} is farther from real pictures than {lost}.")
        elif own:
            verdicts.append(f"{subject} is nearer to real pictures than every control, at every ratio.")
    return verdicts


def _ngram_scores(data: str) -> dict[str, np.ndarray]:
    logging.info("fitting the %d-gram model", NGRAM_ORDER)
    scores = ngram.fit_and_score(data, NGRAM_ORDER)
    return {name: np.array(value, np.float64) for name, value in scores.items()}


def _language_model(title: str, scores: dict[str, float], prefix: str) -> LanguageModel:
    units = ("nats_per_token", "bits_per_byte", "bits_per_pixel")
    return LanguageModel(title, **{unit: scores[prefix + unit] for unit in units})


def _notes(config: ConfigDict, methods: Methods, extractor: Extractor) -> list[str]:
    """What a reader has to know to read the numbers right."""
    num, run, manifest = config.num, methods.run_config, methods.manifest
    pool = min(TRAINING_PICTURES, manifest["splits"]["train"]["documents"])
    notes = [
        f"Prompts come from the first {num:,} held-out files in the order of the shards, the reference from the "
        f"{num:,} that follow. That order is by a hash of the files: nobody chose them.",
        f"Every row has {num:,} pictures and one completion a prompt, a network's a second one with the grammar. A "
        "file that does not decode strictly counts against “valid” and enters the distance as leniently decoded, "
        "unreadable MCUs in mid-grey: none is dropped.",
        "The grammar is an automaton of all legal files of the codec. With it, a network draws only tokens that lead "
        "to a legal file which ends within the budget; without it, from all tokens, as in the paper.",
        f"“{GRAMMAR_HEADER}” repeats the column before it for files written with the grammar, from the same prompts "
        "and random numbers. These are all valid by construction, whoever the model. All other columns are without "
        "it: “valid” is a property of the model and says how well it has learnt the format.",
        "“removed” is the probability that the grammar took away from a model at a token, before temperature, top-k "
        "and top-p: the mean over each file's tokens, then over the files. Beginnings are always legal there.",
        f"{extractor.metric} is the Fréchet distance between {extractor.dim:,} features of {extractor.name}, pictures "
        f"stretched to {extractor.size}x{extractor.size}. "
        + (
            f"The weights are those of FID, the mode is {extractor.mode}: numbers of other modes are no peers."
            if extractor.metric.startswith("FID")
            else "It is not FID and is not to be set beside one."
        ),
        "Both sides were compressed by the same codec at the same quality. The floor is the distance that the "
        "prompts' originals themselves have to the reference: no method is expected below it.",
        "A larger share given leaves less to get wrong, so all distances fall with the ratio: compare methods "
        "within one ratio.",
        "“MCUs readable”: of the MCUs to be completed, the share that a tolerant decoder reads in sequence before "
        "the first that it cannot. “Ended” means that the model wrote its end token within the budget.",
    ]
    if num < max(2048, extractor.dim):
        notes.append(
            f"With {num:,} pictures a side the distance is biased upwards and depends on that number: it compares "
            "rows of this table and nothing else."
        )
    controls = {
        "pretrained": f"“pretrained model” is the checkpoint in {config.pretrained}, not trained by this run; it held "
        "out the same files.",
        "untrained": "“untrained model” is the same network before its first step, sampled alike, both times.",
        "random_bytes": "“prompt + random bytes” has uniformly random bytes behind the prompt, as many as the "
        "original has there, no markers put among them: nearly all of it is unreadable and shows as grey.",
        "flat": "“prompt + flat blocks” has mid-grey MCUs behind the prompt, a valid file.",
        "training_mean": "“prompt + training mean” has the MCUs of the mean of "
        f"{pool:,} training pictures there, a valid file.",
        "training_picture": "“prompt + rest of a random training picture” has the MCUs of one of these "
        f"{pool:,} there, a valid file: real strokes that know nothing of the prompt.",
    }
    notes += [text for row, text in controls.items() if row in _rows(config)]
    heldout, seen = manifest["splits"]["heldout"]["chunks"], run.eval.batches * run.optim.batch_size
    notes.append(
        f"The {NGRAM_ORDER}-gram model (modified Kneser-Ney) was fitted on the tokens that the network trained on; "
        + (
            "both are scored on every held-out token that follows another within a chunk."
            if seen >= heldout
            else f"it is scored on all {heldout:,} held-out chunks, the network on the first {seen:,}."
        )
    )
    return notes
