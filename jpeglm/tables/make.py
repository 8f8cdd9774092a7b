"""A completion table: methods by ratios, each judged on the same number of pictures against the same reference.

Prompts come from the first held-out documents in the order of the shards, which is by a hash of their bytes: a random
choice, not one by hand. The reference is as many documents that follow. Nothing is dropped: a file that does not
decode strictly counts as invalid and enters the distance as it is leniently decoded. What a network writes with the
codec's grammar is always valid and says nothing of the network's own grasp of the format: so it stands beside what the
network writes without, and beside the probability that the grammar took away.

Of clips, the frames after the given ones are what is measured: each of them as a picture in the distance, against the
frames at the same places of the reference, and against the clip's own as PSNR and SSIM.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError
from jpeglm.core.files import check_outside
from jpeglm.core.workdir import read_metrics
from jpeglm.data import batches
from jpeglm.data.codecs import Codec
from jpeglm.fid.extractors.base import Extractor, extract
from jpeglm.fid.extractors.efficientnet import EfficientNetLite0
from jpeglm.fid.extractors.i3d import I3D, MIN_FRAMES
from jpeglm.fid.extractors.inception import MODES, Inception
from jpeglm.fid.frechet import Moments, frechet_distance
from jpeglm.sample.engine import Settings
from jpeglm.tables import ngram, notes
from jpeglm.tables.completion import Methods, Run, Store
from jpeglm.tables.judges import judge, psnr
from jpeglm.tables.methods import REGISTRY, Completed, title_of
from jpeglm.tables.methods.base import documents_identity
from jpeglm.tables.rows import FLOOR, FLOOR_TITLE, NGRAM_ORDER, LanguageModel, Row, Shown, Table, methods_of

EXTRACTORS = ("efficientnet_lite0", "inception")
SHOWN = 8  # pictures of each cell that a report shows
NGRAM_TOKENS = 16_000_000  # that the n-gram model is fitted on where a config does not say: 1 to 1.5 GiB of memory


Measures = dict[str, np.ndarray]  # features float32 [pictures, dim], perhaps video [n, dim], and scores float64 [n]


def check(config: ConfigDict) -> None:
    """`InputError` for a config that names no table."""
    config_lib.check_table(config)
    for key in ("workdir", "data", "out"):
        if not config[key]:
            raise InputError(f"--config.{key}=DIR is needed")
    _check_rows(config.rows, tuple(REGISTRY))
    if len(set(config.ratios)) < len(config.ratios) or len(set(config.rows)) < len(config.rows):
        raise InputError("config.ratios or config.rows: something stands there twice")
    if config.extractor not in EXTRACTORS:
        raise InputError(f"config.extractor: {config.extractor!r} is none of {', '.join(EXTRACTORS)}")
    if (config.extractor == "inception") != bool(config.get("weights")):  # older configs have no such key
        raise InputError("config.weights=FILE and config.extractor=inception go together")
    if config.extractor == "inception" and config.mode not in MODES:
        raise InputError(f"config.mode={config.mode!r} is none of {', '.join(MODES)}")
    sources = {f"config.{key}": config.get(key) or None for key in ("workdir", "data", "pretrained")}
    check_outside(config.out, **sources)


def _check_rows(rows: Sequence[str], known: Sequence[str]) -> None:
    unknown = [row for row in rows if row not in known]
    if unknown or not rows:
        raise InputError(f"config.rows: {unknown[0] if unknown else 'nothing'!r} is none of {', '.join(known)}")


def _check_fits(config: ConfigDict, methods: Methods) -> None:
    """`InputError` for a table that this run and these data cannot give."""
    codec, least = methods.codec, methods.codec.evaluation.least_given
    _check_rows(config.rows, _rows_for(codec))
    if any(codec.units_of(ratio) < least for ratio in config.ratios):
        raise InputError(
            f"config.ratios={tuple(config.ratios)}: of a {codec.item} of {codec.units} {codec.unit}s one must be given"
        )
    if config.get("video_weights") and not codec.fps:
        raise InputError(f"config.video_weights is for clips, and {config.workdir} is a run on {codec.item}s")
    if config.get("video_weights") and codec.frames < MIN_FRAMES:
        raise InputError(f"config.video_weights: the network needs clips of {MIN_FRAMES} frames, not {codec.frames}")
    there, wanted = methods.manifest["splits"]["heldout"]["documents"], 2 * config.num
    if there < wanted:
        raise InputError(f"config.num={config.num} takes {wanted} held-out documents, {config.data} has {there}")


def _rows_for(codec: Codec) -> tuple[str, ...]:
    """The rows that a table of this codec can have."""
    return tuple(name for name, method in REGISTRY.items() if method.fits(codec))


def make(config: ConfigDict, extractor: Extractor | None = None, video_extractor: Extractor | None = None) -> Table:
    """Completes, judges and measures all that `config` names (see configs/eval/demo.py and demo_avc.py).

    What can be refused is refused before anything is sampled.

    Args:
      config: of the table.
      extractor: another one than `config.extractor` names.
      video_extractor: another one than `config.video_weights` asks for.

    Raises:
      InputError: a key, run or data that the user can mend, numbers that are not finite, or an output folder that
        cannot be written.
      RuntimeError: a file written with the grammar is not valid, which the grammar promises.
    """
    check(config)
    methods = Methods(config.workdir, config.data, Settings(**config.sampling), config.seed, config.pretrained)
    _check_fits(config, methods)
    documents = list(batches.documents(config.data, "heldout", 2 * config.num))
    methods.check_prompts(methods_of(config), documents[: config.num], config.ratios)
    store = Store(Path(config.out) / "cells")
    history = _history(methods.runs["trained"])
    extractors = [extractor or _extractor(config)]
    if config.get("video_weights"):
        extractors.append(video_extractor or I3D(config.video_weights))
    language_models = _language_models(config, methods, history, store)

    cells = _Cells(config, methods, store, documents, *extractors)
    floors = cells.floors()
    rows = [cells.row(method, ratio) for method in methods_of(config) for ratio in config.ratios]  # a model at a time
    order = {ratio: place for place, ratio in enumerate(config.ratios)}
    rows.sort(key=lambda row: order[row.ratio])  # stable: the methods keep their order
    cells.show_prompts()
    table = Table(
        metric=extractors[0].metric,
        codec=methods.codec,
        kept=cells.given,
        step=methods.step,
        floors=floors,
        rows=rows,
        language_models=language_models,
        history=history,
        shown=cells.shown,
        notes=[],
        video_metric=extractors[1].metric if len(extractors) > 1 else "",
        extractors={each.name: each.weights_sha256 for each in extractors},
    )
    table.notes.extend(notes.verdicts(table) + notes.notes(table, config, methods, *extractors))
    return table


############################ Completions and what is measured of them ############################


class _Cells:
    """The cells of one table, each made once and kept in the store.

    Attributes:
      given: units given, by ratio.
      shown: for the report, as `Table.shown`; filled by the way.
    """

    def __init__(
        self,
        config: ConfigDict,
        methods: Methods,
        store: Store,
        documents: Sequence[bytes],
        extractor: Extractor,
        video_extractor: Extractor | None = None,
    ):
        """`documents`: the prompts' originals, and as many for the reference."""
        self._config, self._methods, self._codec, self._store = config, methods, methods.codec, store
        self._originals, self._reference = documents[: config.num], documents[config.num :]
        self._extractor, self._video_extractor = extractor, video_extractor
        self._evaluation = methods.codec.evaluation
        self.given = {ratio: self._codec.cut(self._originals[0], ratio)[1] for ratio in config.ratios}
        # What is measured begins after the given units, ratio by ratio; or is the whole item, once.
        self._places = self.given if self._evaluation.measures_rest else dict.fromkeys(self.given, 0)
        self._targets = {
            kept: self._measure("reference", "reference", self._reference, kept) for kept in self._places.values()
        }
        self._truths: dict[int, Measures] = {}
        self.shown: dict[tuple[float | None, str, bool], Shown] = {}

    def floors(self) -> list[Row]:
        """Of the originals themselves; to be called before `row`."""
        floors = []
        for ratio, kept in self._places.items() if self._evaluation.measures_rest else [(None, 0)]:
            measured = self._truths[kept] = self._measure(FLOOR, FLOOR_TITLE, self._originals, kept)
            row = Row(
                method=FLOOR,
                title=FLOOR_TITLE,
                ratio=ratio,
                num=len(self._originals),
                valid=float(measured["valid"].mean()),
                ended=None,
                readable=None,
                tokens=None,
                **self._distances(measured, kept),
                **_more_scores(measured, None),
            )
            floors.append(row)
        self._show(None, FLOOR, self._originals)
        return floors

    def row(self, method: str, ratio: float) -> Row:
        """One method at one ratio; a network with the grammar, too, where the codec has one."""
        completed, measured = self._fill(method, ratio)
        wrote = completed.ended is not None
        row = Row(
            method=method,
            title=REGISTRY[method].title,
            ratio=ratio,
            num=len(completed.documents),
            valid=float(measured["valid"].mean()),
            ended=float(completed.ended.mean()) if wrote else None,
            readable=float(measured["readable"].mean()),
            tokens=float(completed.tokens.mean()) if wrote else None,
            **self._distances(measured, self._places[ratio]),
            **_more_scores(measured, self._truths[self._places[ratio]]),
        )
        if REGISTRY[method].is_network and self._codec.grammar():
            completed, measured = self._fill(method, ratio, grammar=True)
            row = dataclasses.replace(
                row,
                valid_with_grammar=float(measured["valid"].mean()),
                distance_with_grammar=self._distances(measured, self._places[ratio])["distance"],
                removed=float(completed.removed.mean()),
            )
        return row

    def show_prompts(self) -> None:
        """What was given of pictures, over grey; a clip shows it by itself."""
        for ratio in self.given:
            prompts = [self._codec.cut(original, ratio) for original in self._originals[:SHOWN]]
            shown = [self._evaluation.show_prompt(*prompt) for prompt in prompts]
            if None not in shown:
                self._show(ratio, "prompt", shown)

    def _fill(self, method: str, ratio: float, grammar: bool = False) -> tuple[Completed, Measures]:
        """The completions of one cell, and what is measured of them."""
        name = f"{method}-{ratio:g}{'-grammar' if grammar else ''}"
        identity = self._methods.identity(method, grammar)
        identity |= {"ratio": ratio, "originals": documents_identity(self._originals)}
        arrays = self._store.get(
            name, identity, lambda: self._methods.complete(method, self._originals, ratio, grammar).to_arrays()
        )
        completed = Completed.from_arrays(arrays)
        title = f"{title_of(method, grammar)}, ratio {ratio:g}"
        measured = self._measure(name, title, completed.documents, self.given[ratio], has_truth=True)
        if grammar and not measured["valid"].all():
            invalid, num = int(np.sum(measured["valid"] == 0)), len(completed.documents)
            raise RuntimeError(
                f"cell {name}: {invalid} of {num} files written with the grammar are not valid, which is a bug of "
                f"jpeglm; they are in {self._config.out}/cells/{name}.npz"
            )
        self._show(ratio, method, completed.documents, grammar)
        return completed, measured

    def _measure(
        self, name: str, title: str, documents: Sequence[bytes], kept: int, has_truth: bool = False
    ) -> Measures:
        """Features and scores of documents, of which `kept` units were given; `has_truth`: of the originals."""
        measures_rest = self._evaluation.measures_rest
        part = f"-from-{kept}" if measures_rest and not has_truth else ""  # the originals serve all ratios
        truth = self._originals if has_truth and measures_rest else None
        content = {
            "documents": documents_identity(documents),
            "codec": self._methods.run_config.codec.to_dict(),
            "versions": self._codec.encoder_versions(),
        }
        identity = content | {"extractor": _identity_of(self._extractor), "kept": kept}
        if truth:
            identity["originals"] = documents_identity(truth)
        found = dict(
            self._store.get(f"{name}{part}.features", identity, lambda: self._judge_all(documents, kept, truth, title))
        )
        if self._video_extractor:
            found["video"] = self._store.get(
                f"{name}.video",
                content | {"extractor": _identity_of(self._video_extractor)},
                lambda: {"features": self._video_features(documents, title)},
            )["features"]
        return found

    def _judge_all(self, documents: Sequence[bytes], kept: int, truth: Sequence[bytes] | None, title: str) -> Measures:
        scores: list[dict[str, float]] = []

        def pictures() -> Iterator[np.ndarray]:
            for judged in judge(self._codec, documents, kept, truth):
                scores.append(judged.scores)
                yield from judged.pictures

        total = len(documents) * self._evaluation.num_pictures(kept)
        features = _features(self._extractor, pictures(), total, title)
        return {"features": features} | {key: np.array([each[key] for each in scores]) for key in scores[0]}

    def _video_features(self, documents: Sequence[bytes], title: str) -> np.ndarray:
        """float32 [n, dim] of whole clips, the given frames too."""
        clips = (self._codec.see(self._codec.restore(document)) for document in documents)
        return _features(self._video_extractor, clips, len(documents), f"{title}, {self._video_extractor.name}")

    def _distances(self, measured: Measures, kept: int) -> dict[str, float | None]:
        """By the names of `Row`."""
        pairs = {"distance": "features", "video_distance": "video"}
        return {
            name: frechet_distance(*(Moments([side[key]]) for side in (measured, self._targets[kept])))
            for name, key in pairs.items()
            if key in measured
        }

    def _show(self, ratio: float | None, method: str, documents: Sequence[bytes], grammar: bool = False) -> None:
        judged = list(judge(self._codec, documents[:SHOWN], 0))
        valid = np.array([each.scores["valid"] == 1 for each in judged])
        self.shown[ratio, method, grammar] = Shown(np.stack([each.seen for each in judged]), valid)


def _identity_of(extractor: Extractor) -> list[Any]:
    return [extractor.name, extractor.size, extractor.weights_sha256] + ([extractor.mode] if extractor.mode else [])


def _features(extractor: Extractor, pictures: Iterator[np.ndarray], total: int, title: str) -> np.ndarray:
    """float32 [n, dim]; `InputError` where one is not a finite number, before it is kept."""
    features = np.concatenate(list(extract(extractor, map(extractor.prepare, pictures), total, title)))
    if not np.isfinite(features).all():
        raise InputError(f"{title}: features of {extractor.name} are not finite numbers: its weights are damaged")
    return features


def _more_scores(measured: Measures, truth: Measures | None) -> dict[str, float | None]:
    """What not every codec has, by the names of `Row`; `truth`: of the originals, for what was made of them."""
    scores = {name: float(measured[name].mean()) for name in ("concealed", "ssim") if name in measured}
    if "squared_error" in measured:
        error = float(measured["squared_error"].mean())
        scores["psnr"] = psnr(error) if error else None
        apart = np.linalg.norm(measured["features"] - truth["features"], axis=1)
        scores["true_distance"] = float(apart.mean())
    return scores


def _extractor(config: ConfigDict) -> Extractor:
    return Inception(config.weights, config.mode) if config.extractor == "inception" else EfficientNetLite0()


############################ The language models ############################


def _language_models(
    config: ConfigDict, methods: Methods, history: list[dict[str, Any]], store: Store
) -> list[LanguageModel]:
    """As `Table.language_models`; `history`: the run's metrics up to its checkpoint."""
    found = [_last_scores("trained", methods, history)]
    if methods.pretrained:
        found.append(_last_scores("pretrained", methods, _history(methods.runs["pretrained"])))
    if limit := _ngram_tokens(config):
        found.insert(1, _ngram(config.data, methods.manifest, limit, store))
    return found


def _history(run: Run) -> list[dict[str, Any]]:
    """The metrics of a run up to its checkpoint."""
    return [row for row in read_metrics(run.workdir) if row["step"] <= run.step]


def _last_scores(row: str, methods: Methods, history: list[dict[str, Any]]) -> LanguageModel:
    """The last held-out loss of a run's metrics."""
    scores = [scalars for scalars in history if "heldout/nats_per_token" in scalars]
    if not scores:
        raise InputError(f"{methods.runs[row].workdir}: metrics.jsonl holds no held-out loss up to its checkpoint")
    return _language_model(f"{REGISTRY[row].title}, step {scores[-1]['step']:,}", scores[-1], "heldout/")


def _ngram_tokens(config: ConfigDict) -> int:
    return config.get("ngram_tokens", NGRAM_TOKENS)  # older configs have no such key


def _ngram(data: str, manifest: dict[str, Any], limit: int, store: Store) -> LanguageModel:
    """Fitted on at most `limit` tokens of the training split, which its title says where there are more."""

    def compute() -> dict[str, np.ndarray]:
        logging.info("fitting the %d-gram model", NGRAM_ORDER)
        scores = ngram.fit_and_score(data, NGRAM_ORDER, limit)
        return {name: np.array(value, np.float64) for name, value in scores.items()}

    arrays = store.get("ngram", ngram.identity(data, NGRAM_ORDER, limit), compute)
    counted = {name: float(value) for name, value in arrays.items()}
    fitted = int(counted["train_tokens"])
    part = f" of the first {fitted:,} training tokens" if fitted < ngram.training_tokens(manifest) else ""
    return _language_model(f"interpolated {NGRAM_ORDER}-gram{part}", counted, "", fitted)


def _language_model(title: str, scores: dict[str, float], prefix: str, fitted: int | None = None) -> LanguageModel:
    units = ("nats_per_token", "bits_per_byte", "bits_per_pixel")
    return LanguageModel(title, **{unit: scores[prefix + unit] for unit in units}, fitted_tokens=fitted)
