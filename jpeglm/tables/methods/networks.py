"""The run's own network, before its first step and after training, and the network of another run."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jpeglm.core.registry import MODELS
from jpeglm.data.codecs import Codec
from jpeglm.sample.sampler import Sampler
from jpeglm.sample.settings import Settings
from jpeglm.tables.context import Context
from jpeglm.tables.methods.base import Completed, Method


@dataclasses.dataclass(frozen=True)
class Network(Method):
    """The network of a run: what `jpeglm.sample` writes.

    Attributes:
      run: key of a table's config: "workdir" or "pretrained".
      is_trained: whether it has the weights of the run's checkpoint; otherwise those before the first step.
      about: the sentence below a table; `{pretrained}` becomes the config's.
    """

    name: str
    title: str
    colours: tuple[str, str]
    marker: str
    run: str
    is_trained: bool
    about: str | None = None
    is_network: ClassVar[bool] = True

    def fits(self, codec: Codec) -> bool:
        return True

    def is_available(self, config: ConfigDict) -> bool:
        return bool(config[self.run])

    def complete(self, context: Context, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        generated = self._samplers(context)[grammar].complete(originals, ratio, seed=context.seed)
        title = f"{self.title}{' with grammar' if grammar else ''}, ratio {ratio:g}"
        bar = tqdm(generated, title, len(originals), unit=context.codec.item, dynamic_ncols=True)
        in_order = sorted(bar, key=lambda completion: completion.index)
        return Completed(
            [completion.document for completion in in_order],
            np.array([completion.ended for completion in in_order]),
            np.array([completion.tokens for completion in in_order], np.int64),
            np.array([completion.removed for completion in in_order], np.float64) if grammar else None,
        )

    def identity(self, context: Context, grammar: bool) -> dict[str, Any]:
        run, settings = context.runs[self.run], dataclasses.asdict(_settings(context, grammar))
        del settings["slots"]  # does not affect files
        identity = {
            "tokenizer": run.tokenizer.sha256,
            "seed": context.seed,
            "model": MODELS.identity(run.config.model),
        }
        weights = {"weights": run.weights} if self.is_trained else {"parameters": run.config.seed}
        return identity | settings | weights

    def note(self, context: Context, config: ConfigDict) -> str | None:
        about = self.about and self.about.format(pretrained=config.pretrained)
        return f"“{self.title}” {about}" if about else None

    def _samplers(self, context: Context) -> dict[bool, Sampler]:
        """Samplers without and with the grammar, sharing parameters; only the last used network is kept."""
        if context.held is None or context.held[0] != self.name:
            context.held = None  # frees the last one before the next is loaded
            run, settings = context.runs[self.run], _settings(context, False)
            if self.is_trained:
                plain = Sampler.load(run.workdir, settings, run.step)
            else:
                plain = Sampler.untrained(run.workdir, settings)
            context.held = self.name, {False: plain, True: plain.with_settings(_settings(context, True))}
        return context.held[1]


def _settings(context: Context, grammar: bool) -> Settings:
    return dataclasses.replace(context.settings, grammar=grammar)


TRAINED = Network("trained", "trained model", ("#2563c9", "#7fb0ff"), "o", "workdir", is_trained=True)
PRETRAINED = Network(
    "pretrained",
    "pretrained model",
    ("#0f8fa8", "#63d2e6"),
    "P",
    "pretrained",
    is_trained=True,
    about="is another run's, {pretrained}; it held out the same files.",
)
UNTRAINED = Network(
    "untrained",
    "untrained model",
    ("#b8641b", "#eda766"),
    "s",
    "workdir",
    is_trained=False,
    about="is the run's network before its first step, sampled alike.",
)
