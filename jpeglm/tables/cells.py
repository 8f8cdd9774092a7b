"""The cells of a table: completions of one method at one ratio, and their measures."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
from ml_collections import ConfigDict

from jpeglm.core.errors import InputError
from jpeglm.core.parts import Part
from jpeglm.fid.extractors.base import Extractor, extract
from jpeglm.fid.frechet import Moments, frechet_distance
from jpeglm.tables import methods
from jpeglm.tables.context import Context
from jpeglm.tables.judges import judge
from jpeglm.tables.methods import REGISTRY, Completed, title_of
from jpeglm.tables.methods.base import documents_identity
from jpeglm.tables.metrics import Measures, score_names, scores_of_row
from jpeglm.tables.rows import FLOOR, FLOOR_TITLE, MethodRow, Row, Shown
from jpeglm.tables.store import Store

SHOWN = 8  # number of pictures per cell in a report


class Cells:
    """The cells of one table, each made once and kept in the store.

    Attributes:
      given: number of given units, by ratio.
      shown: pictures for the report, as `Table.shown`; filled while the rows are made.
    """

    def __init__(
        self,
        config: ConfigDict,
        context: Context,
        store: Store,
        documents: Sequence[bytes],
        extractor: Extractor,
        video_extractor: Extractor | None = None,
    ):
        """Measures the reference, or takes it from the store.

        Args:
          config: of the table.
          context: its run and data.
          store: caches the results.
          documents: the originals of the prompts, then the same number of documents for the reference.
          extractor: of pictures, or of each frame of clips.
          video_extractor: of whole clips, or None.
        """
        self._config, self._context, self._codec, self._store = config, context, context.codec, store
        self._originals, self._reference = documents[: config.num], documents[config.num :]
        self._extractor, self._video_extractor = extractor, video_extractor
        self._evaluation = context.codec.evaluation
        self.given = {ratio: self._codec.cut(self._originals[0], ratio)[1] for ratio in config.ratios}
        # Units excluded from the measures, by ratio: the given ones, or none if whole items are measured.
        self._places = self.given if self._evaluation.measures_rest else dict.fromkeys(self.given, 0)
        self._targets = {
            kept: self._measure("reference", "reference", self._reference, kept) for kept in self._places.values()
        }
        self._truths: dict[int, Measures] = {}
        self.shown: dict[tuple[float | None, str, bool], Shown] = {}

    def floors(self) -> list[Row]:
        """The rows of the originals themselves. Must be called before `row`, which compares with their measures."""
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
                distance=self._distance("features", measured, kept),
                video_distance=self._distance("video", measured, kept) if self._video_extractor else None,
                scores=scores_of_row(measured, None),
            )
            floors.append(row)
        self._show(None, FLOOR, self._originals)
        return floors

    def make_share(self, methods: Iterable[str], part: Part) -> None:
        """Makes every N-th cell for a part of N, and keeps them in the store; errors as of `row`."""
        cells = [
            (method, ratio, grammar)
            for method in methods
            for ratio in self.given
            for grammar in ((False, True) if self._has_grammar(method) else (False,))
        ]
        for cell in cells[part.number - 1 :: part.of]:
            self._fill(*cell)

    def row(self, method: str, ratio: float) -> MethodRow:
        """The row of one method at one ratio; for a network also with the grammar, if the codec has one.

        Raises:
          InputError: a number is not finite, or the store cannot be written.
          RuntimeError: a file written with the grammar is not valid, which is a bug.
        """
        completed, measured = self._fill(method, ratio)
        kept = self._places[ratio]
        row = MethodRow(
            method=method,
            title=REGISTRY[method].title,
            ratio=ratio,
            num=len(completed.documents),
            valid=float(measured["valid"].mean()),
            ended=_mean(completed.ended),
            readable=float(measured["readable"].mean()),
            tokens=_mean(completed.tokens),
            distance=self._distance("features", measured, kept),
            video_distance=self._distance("video", measured, kept) if self._video_extractor else None,
            scores=scores_of_row(measured, self._truths[kept]),
        )
        if self._has_grammar(method):
            completed, measured = self._fill(method, ratio, grammar=True)
            row = dataclasses.replace(
                row,
                valid_with_grammar=float(measured["valid"].mean()),
                distance_with_grammar=self._distance("features", measured, kept),
                removed=_mean(completed.removed),
            )
        return row

    def show_prompts(self) -> None:
        """Adds the prompts to `shown`, with grey for what was not given. Completions of clips already show theirs."""
        for ratio in self.given:
            prompts = [self._codec.cut(original, ratio) for original in self._originals[:SHOWN]]
            shown = [self._evaluation.show_prompt(*prompt) for prompt in prompts]
            if None not in shown:
                self._show(ratio, "prompt", shown)

    def _has_grammar(self, method: str) -> bool:
        """Whether a method is sampled with the grammar, too."""
        return REGISTRY[method].is_network and self._codec.grammar() is not None

    def _fill(self, method: str, ratio: float, grammar: bool = False) -> tuple[Completed, Measures]:
        """The completions of one cell, and their measures."""
        name = f"{method}-{ratio:g}{'-grammar' if grammar else ''}"
        identity = methods.identity(self._context, method, grammar)
        identity |= {"ratio": ratio, "originals": documents_identity(self._originals)}
        arrays = self._store.get(
            name,
            identity,
            lambda: methods.complete(self._context, method, self._originals, ratio, grammar).to_arrays(),
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
        """Features and scores of documents.

        Args:
          name: of the cell.
          title: for progress bars and messages.
          documents: the ones to measure.
          kept: number of given units.
          has_truth: whether the documents are completions of the prompts' originals, to be compared with these.
        """
        measures_rest = self._evaluation.measures_rest
        # for pictures, one cell of originals serves all ratios
        part = f"-from-{kept}" if measures_rest and not has_truth else ""
        truth = self._originals if has_truth and measures_rest else None
        content = {
            "documents": documents_identity(documents),
            "codec": self._context.run_config.codec.to_dict(),
            "versions": self._codec.encoder_versions(),
        }
        identity = content | {"extractor": _identity_of(self._extractor), "kept": kept}
        if truth:
            identity["originals"] = documents_identity(truth)
        found = dict(
            self._store.get(
                f"{name}{part}.features",
                identity,
                lambda: self._judge_all(documents, kept, truth, title),
                needed=score_names() if truth else (),  # a metric may have been added since
            )
        )
        if extractor := self._video_extractor:
            found["video"] = self._store.get(
                f"{name}.video",
                content | {"extractor": _identity_of(extractor)},
                lambda: {"features": self._video_features(extractor, documents, title)},
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

    def _video_features(self, extractor: Extractor, documents: Sequence[bytes], title: str) -> np.ndarray:
        """float32 [n, dim] of whole clips, including the given frames."""
        clips = (self._codec.see(self._codec.restore(document)) for document in documents)
        return _features(extractor, clips, len(documents), f"{title}, {extractor.name}")

    def _distance(self, key: str, measured: Measures, kept: int) -> float:
        """The distance to the reference, by the features of this key."""
        return frechet_distance(*(Moments([side[key]]) for side in (measured, self._targets[kept])))

    def _show(self, ratio: float | None, method: str, documents: Sequence[bytes], grammar: bool = False) -> None:
        judged = list(judge(self._codec, documents[:SHOWN], 0))
        valid = np.array([each.scores["valid"] == 1 for each in judged])
        self.shown[ratio, method, grammar] = Shown(np.stack([each.seen for each in judged]), valid)


def _identity_of(extractor: Extractor) -> list[Any]:
    return [extractor.name, extractor.size, extractor.weights_sha256] + ([extractor.mode] if extractor.mode else [])


def _features(extractor: Extractor, pictures: Iterator[np.ndarray], total: int, title: str) -> np.ndarray:
    """float32 [n, dim]. Raises InputError, before anything is stored, if one is not a finite number."""
    features = np.concatenate(list(extract(extractor, map(extractor.prepare, pictures), total, title)))
    if not np.isfinite(features).all():
        raise InputError(f"{title}: features of {extractor.name} are not finite numbers: its weights are damaged")
    return features


def _mean(values: np.ndarray | None) -> float | None:
    return None if values is None else float(values.mean())
