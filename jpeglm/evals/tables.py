"""A completion table: methods by ratios, each judged on the same number of pictures against the same reference.

Prompts come from the first held-out documents in the order of the shards, which is by a hash of their bytes: a random
choice that nobody made. The reference is as many documents that follow. Nothing is dropped: a file that does not
decode strictly counts as invalid and enters the distance as it is leniently decoded. What a network writes with the
codec's grammar is always valid and says nothing of the network's own grasp of the format: so it stands beside what the
network writes without, and beside the probability that the grammar took away.

Of clips, the frames behind the given ones are what is measured: each of them as a picture in the distance, against the
frames at the same places of the reference, and against the clip's own as PSNR and SSIM.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jpeglm import config as config_lib
from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import pipeline
from jpeglm.errors import InputError
from jpeglm.evals import ngram, table_notes
from jpeglm.evals.completion import (
    CONTROLS,
    MODELS,
    TITLES,
    Completed,
    Methods,
    Store,
    documents_identity,
    title_of,
)
from jpeglm.evals.efficientnet import EfficientNetLite0
from jpeglm.evals.features import Extractor, extract
from jpeglm.evals.fid import Moments, frechet_distance
from jpeglm.evals.i3d import I3D, MIN_FRAMES
from jpeglm.evals.inception import MODES, Inception
from jpeglm.evals.judging import judge, psnr
from jpeglm.evals.table_rows import FLOOR, FLOOR_TITLE, NGRAM_ORDER, LanguageModel, Row, Shown, Table, methods_of
from jpeglm.metrics import read_metrics
from jpeglm.sampling.engine import Settings

EXTRACTORS = ("efficientnet_lite0", "inception")
SHOWN = 8  # pictures of each cell that a report shows


Measures = dict[str, np.ndarray]  # features float32 [pictures, dim], perhaps video [n, dim], and scores float64 [n]


def check(config: ConfigDict) -> None:
    """`InputError` for a config that names no table."""
    config_lib.check_table(config)
    for key in ("workdir", "data", "out"):
        if not config[key]:
            raise InputError(f"--config.{key}=DIR is needed")
    _check_rows(config.rows, tuple(TITLES))
    if len(set(config.ratios)) < len(config.ratios) or len(set(config.rows)) < len(config.rows):
        raise InputError("config.ratios or config.rows: something stands there twice")
    if config.extractor not in EXTRACTORS:
        raise InputError(f"config.extractor: {config.extractor!r} is none of {', '.join(EXTRACTORS)}")
    if (config.extractor == "inception") != bool(config.get("weights")):  # older configs have no such key
        raise InputError("config.weights=FILE and config.extractor=inception go together")
    if config.extractor == "inception" and config.mode not in MODES:
        raise InputError(f"config.mode={config.mode!r} is none of {', '.join(MODES)}")


def _check_rows(rows: Sequence[str], known: Sequence[str]) -> None:
    unknown = [row for row in rows if row not in known]
    if unknown or not rows:
        raise InputError(f"config.rows: {unknown[0] if unknown else 'nothing'!r} is none of {', '.join(known)}")


def make(config: ConfigDict, extractor: Extractor | None = None, video_extractor: Extractor | None = None) -> Table:
    """Completes, judges and measures all that `config` names (see configs/eval/demo.py and demo_avc.py).

    Args:
      config: of the table.
      extractor: another one than `config.extractor` names.
      video_extractor: another one than `config.video_weights` asks for.

    Raises:
      InputError: a key, run or data that the user can mend.
      RuntimeError: a file written with the grammar is not valid, which the grammar promises.
    """
    check(config)
    methods = Methods(config.workdir, config.data, Settings(**config.sampling), config.seed, config.pretrained)
    codec, num = methods.codec, config.num
    is_clips = isinstance(codec, AvcCodec)
    _check_rows(config.rows, (*MODELS, *CONTROLS[methods.run_config.codec.name]))
    if is_clips and any(ratio * codec.frames + 1e-9 < 1 for ratio in config.ratios):
        raise InputError(f"config.ratios={tuple(config.ratios)}: of a clip of {codec.frames} frames one must be given")
    if config.get("video_weights") and not is_clips:
        raise InputError(f"config.video_weights is for clips, and {config.workdir} is a run on pictures")
    if config.get("video_weights") and codec.frames < MIN_FRAMES:
        raise InputError(f"config.video_weights: the network needs clips of {MIN_FRAMES} frames, not {codec.frames}")
    there = methods.manifest["splits"]["heldout"]["documents"]
    if there < 2 * num:
        raise InputError(f"config.num={num} takes {2 * num} held-out documents, {config.data} has {there}")
    documents = list(pipeline.documents(config.data, "heldout", 2 * num))
    originals, reference = documents[:num], documents[num:]
    extractor = extractor or _extractor(config)
    if config.get("video_weights"):
        video_extractor = video_extractor or I3D(config.video_weights)
    store = Store(Path(config.out) / "cells")
    shown: dict[tuple[float | None, str, bool], Shown] = {}

    def measure(name: str, title: str, documents: list[bytes], kept: int, has_truth: bool = False) -> Measures:
        """Features and scores of documents, of which `kept` units were given; `has_truth`: of the originals."""
        behind = f"-from-{kept}" if is_clips and not has_truth else ""  # the originals stand behind all ratios
        truth = originals if has_truth and is_clips else None
        identity = {
            "documents": documents_identity(documents),
            "codec": methods.run_config.codec.to_dict(),
            "extractor": _identity_of(extractor),
            "kept": kept,
        }
        if is_clips:
            identity["decoder"] = codec.encoder_versions()["ffmpeg"]
        if truth:
            identity["originals"] = documents_identity(truth)

        def compute() -> dict[str, np.ndarray]:
            scores = []

            def pictures():
                for judged in judge(codec, documents, kept, truth):
                    scores.append(judged.scores)
                    yield from judged.pictures

            total = len(documents) * (codec.units - kept if is_clips else 1)
            features = np.concatenate(list(extract(extractor, map(extractor.prepare, pictures()), total, title)))
            return {"features": features} | {key: np.array([each[key] for each in scores]) for key in scores[0]}

        found = dict(store.get(f"{name}{behind}.features", identity, compute))
        if video_extractor and is_clips:
            found["video"] = store.get(
                f"{name}.video",
                {key: identity[key] for key in ("documents", "codec", "decoder")}
                | {"extractor": _identity_of(video_extractor)},
                lambda: {"features": _video_features(video_extractor, codec, documents, title)},
            )["features"]
        return found

    def show(ratio: float | None, method: str, documents: list[bytes], grammar: bool = False) -> None:
        judged = list(judge(codec, documents[:SHOWN], 0))
        valid = np.array([each.scores["valid"] == 1 for each in judged])
        shown[ratio, method, grammar] = Shown(np.stack([each.seen for each in judged]), valid)

    def fill(method: str, ratio: float, grammar: bool = False) -> tuple[Completed, Measures]:
        """The completions of one cell, and what is measured of them."""
        name = f"{method}-{ratio:g}{'-grammar' if grammar else ''}"
        identity = methods.identity(method, grammar)
        identity |= {"ratio": ratio, "originals": documents_identity(originals)}
        arrays = store.get(name, identity, lambda: methods.complete(method, originals, ratio, grammar).to_arrays())
        completed = Completed.from_arrays(arrays)
        title = f"{title_of(method, grammar)}, ratio {ratio:g}"
        measured = measure(name, title, completed.documents, given[ratio], has_truth=True)
        if grammar and not measured["valid"].all():
            raise RuntimeError(
                f"cell {name}: {np.sum(measured['valid'] == 0)} of {num} files written with the grammar are not "
                f"valid, which is a bug of jpeglm; they are in {config.out}/cells/{name}.npz"
            )
        show(ratio, method, completed.documents, grammar)
        return completed, measured

    ############################ Reference and floor ############################
    # Of clips the frames at the places that are completed, ratio by ratio; of pictures each one whole, once.
    given = {ratio: codec.cut(originals[0], ratio)[1] for ratio in config.ratios}
    places = given if is_clips else dict.fromkeys(given, 0)
    targets = {kept: measure("reference", "reference", reference, kept) for kept in places.values()}

    def distances_of(measured: Measures, kept: int) -> dict[str, float | None]:
        """By the names of `Row`."""
        pairs = {"distance": "features", "video_distance": "video"}
        return {
            name: frechet_distance(*(Moments([side[key]]) for side in (measured, targets[kept])))
            for name, key in pairs.items()
            if key in measured
        }

    floors, truths = [], {}
    for ratio, kept in places.items() if is_clips else [(None, 0)]:
        measured = truths[kept] = measure(FLOOR, FLOOR_TITLE, originals, kept)
        valid = float(measured["valid"].mean())
        row = Row(FLOOR, FLOOR_TITLE, ratio, num, valid, None, None, tokens=None, **distances_of(measured, kept))
        floors.append(dataclasses.replace(row, **_clip_scores(measured, None)))
    show(None, FLOOR, originals)

    ############################ Methods by ratios ############################
    rows = []
    for method in methods_of(config):  # outermost, so that each model is loaded once
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
                tokens=float(completed.tokens.mean()) if wrote else None,
                **distances_of(measured, places[ratio]),
                **_clip_scores(measured, truths[places[ratio]]),
            )
            if method in MODELS and codec.has_grammar:
                completed, measured = fill(method, ratio, grammar=True)
                row = dataclasses.replace(
                    row,
                    valid_with_grammar=float(measured["valid"].mean()),
                    distance_with_grammar=distances_of(measured, places[ratio])["distance"],
                    removed=float(completed.removed.mean()),
                )
            rows.append(row)
    if not is_clips:
        for ratio in config.ratios:
            prompts = [codec.cut(original, ratio) for original in originals[:SHOWN]]
            show(ratio, "prompt", [codec.complete_with_flat(*prompt) for prompt in prompts])
    order = {ratio: place for place, ratio in enumerate(config.ratios)}
    rows.sort(key=lambda row: order[row.ratio])  # stable: the methods keep their order

    ############################ The language model ############################
    history = [row for row in read_metrics(methods.workdir) if row["step"] <= methods.step]
    identity = {split: methods.split_identity(split) for split in ("train", "heldout")} | {"order": NGRAM_ORDER}
    counted = store.get("ngram", identity, lambda: _ngram_scores(config.data))
    language_models = [
        _last_scores(TITLES["trained"], history, config.workdir),
        _language_model(f"interpolated {NGRAM_ORDER}-gram", {name: float(x) for name, x in counted.items()}, ""),
    ]
    if methods.pretrained:
        scores = read_metrics(methods.pretrained)
        language_models.append(_last_scores(TITLES["pretrained"], scores, config.pretrained))
    extractors = [extractor, video_extractor] if video_extractor else [extractor]
    table = Table(
        metric=extractor.metric,
        item=codec.item,
        unit=codec.unit,
        units=codec.units,
        kept=given,
        step=methods.step,
        floors=floors,
        rows=rows,
        language_models=language_models,
        history=history,
        shown=shown,
        notes=[],
        video_metric=video_extractor.metric if video_extractor else "",
        fps=codec.fps if is_clips else 0,
        extractors={each.name: each.weights_sha256 for each in extractors},
    )
    table.notes.extend(table_notes.verdicts(table) + table_notes.notes(table, config, methods, *extractors))
    return table


def _identity_of(extractor: Extractor) -> list[Any]:
    return [extractor.name, extractor.size, extractor.weights_sha256] + ([extractor.mode] if extractor.mode else [])


def _video_features(extractor: Extractor, codec: AvcCodec, documents: list[bytes], title: str) -> np.ndarray:
    """float32 [n, dim] of whole clips, the given frames too."""
    clips = (extractor.prepare(codec.see(codec.restore(document))) for document in documents)
    return np.concatenate(list(extract(extractor, clips, len(documents), f"{title}, {extractor.name}")))


def _clip_scores(measured: Measures, truth: Measures | None) -> dict[str, float]:
    """What only clips have, by the names of `Row`; `truth`: of the originals, for clips made of them."""
    scores = {name: float(measured[name].mean()) for name in ("concealed", "ssim") if name in measured}
    if "squared_error" in measured:
        error = float(measured["squared_error"].mean())
        scores["psnr"] = psnr(error) if error else None
        apart = np.linalg.norm(measured["features"] - truth["features"], axis=1)
        scores["true_distance"] = float(apart.mean())
    return scores


def _extractor(config: ConfigDict) -> Extractor:
    return Inception(config.weights, config.mode) if config.extractor == "inception" else EfficientNetLite0()


def _last_scores(title: str, history: list[dict[str, Any]], workdir: str) -> LanguageModel:
    """The last held-out loss of a run's metrics."""
    scores = [row for row in history if "heldout/nats_per_token" in row]
    if not scores:
        raise InputError(f"{workdir}: metrics.jsonl holds no held-out loss up to its checkpoint")
    return _language_model(f"{title}, step {scores[-1]['step']:,}", scores[-1], "heldout/")


def _ngram_scores(data: str) -> dict[str, np.ndarray]:
    logging.info("fitting the %d-gram model", NGRAM_ORDER)
    scores = ngram.fit_and_score(data, NGRAM_ORDER)
    return {name: np.array(value, np.float64) for name, value in scores.items()}


def _language_model(title: str, scores: dict[str, float], prefix: str) -> LanguageModel:
    units = ("nats_per_token", "bits_per_byte", "bits_per_pixel")
    return LanguageModel(title, **{unit: scores[prefix + unit] for unit in units})
