"""The held-out losses below a table: of the trained networks and of the n-gram model."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging
from ml_collections import ConfigDict

from jpeglm.core.errors import InputError
from jpeglm.tables import ngram
from jpeglm.tables.context import Context
from jpeglm.tables.methods import REGISTRY, trained
from jpeglm.tables.rows import NGRAM_ORDER, LanguageModel
from jpeglm.tables.store import Store

NGRAM_TOKENS = 16_000_000  # default limit for fitting the n-gram model: 1 to 1.5 GiB of memory
Metrics = list[dict[str, Any]]  # the lines of a run's metrics up to its checkpoint


def language_models(
    config: ConfigDict, context: Context, histories: Mapping[str, Metrics], store: Store
) -> list[LanguageModel]:
    """The held-out losses for `Table.language_models`.

    Args:
      config: of the table.
      context: its run and data.
      histories: the metrics of each run, by the keys of `context.runs`.
      store: keeps the n-gram model's loss.

    Raises:
      InputError: a run's metrics hold no held-out loss, or a loss is not finite.
    """
    found = [_of_network(row, context, histories[run]) for row in trained() if (run := REGISTRY[row].run) in histories]
    limit = config.get("ngram_tokens", NGRAM_TOKENS)  # older configs have no such key
    if limit:
        found.insert(1, _of_ngram(config.data, context.manifest, limit, store))
    return found


def _of_network(row: str, context: Context, history: Metrics) -> LanguageModel:
    """The last held-out loss of a run's metrics."""
    scores = [scalars for scalars in history if "heldout/nats_per_token" in scalars]
    if not scores:
        workdir = context.runs[REGISTRY[row].run].workdir
        raise InputError(f"{workdir}: metrics.jsonl holds no held-out loss up to its checkpoint")
    return _language_model(f"{REGISTRY[row].title}, step {scores[-1]['step']:,}", scores[-1], "heldout/")


def _of_ngram(data: str, manifest: dict[str, Any], limit: int, store: Store) -> LanguageModel:
    """The n-gram model's loss, fitted on at most `limit` training tokens; the title says so if there are more."""

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
