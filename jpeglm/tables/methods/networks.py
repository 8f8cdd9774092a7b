"""The run's own network, before its first step and after training, and the network of another run."""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from ml_collections import ConfigDict
from tqdm import tqdm

from jpeglm.core.registry import MODELS
from jpeglm.data.codecs import Codec
from jpeglm.sample.engine import Settings
from jpeglm.sample.sampler import Sampler
from jpeglm.tables.methods.base import Bench, Completed, Method


@dataclasses.dataclass(frozen=True)
class Network(Method):
    """The network of a run: what `jpeglm.sample` writes.

    Attributes:
      is_trained: whether with the weights of the run's checkpoint; else those that training began with.
      about: the sentence below a table; `{pretrained}` becomes the config's.
    """

    name: str
    title: str
    colours: tuple[str, str]
    marker: str
    is_trained: bool
    about: str | None = None
    is_network: ClassVar[bool] = True

    def fits(self, codec: Codec) -> bool:
        return True

    def complete(self, bench: Bench, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        generated = self._samplers(bench)[grammar].complete(originals, ratio, seed=bench.seed)
        title = f"{self.title}{' with grammar' if grammar else ''}, ratio {ratio:g}"
        bar = tqdm(generated, title, len(originals), unit=bench.codec.item, dynamic_ncols=True)
        in_order = sorted(bar, key=lambda completion: completion.index)
        return Completed(
            [completion.document for completion in in_order],
            np.array([completion.ended for completion in in_order]),
            np.array([completion.tokens for completion in in_order], np.int64),
            np.array([completion.removed for completion in in_order], np.float64) if grammar else None,
        )

    def identity(self, bench: Bench, grammar: bool) -> dict[str, Any]:
        run, settings = bench.runs[self.name], dataclasses.asdict(_settings(bench, grammar))
        del settings["slots"]  # changes no file
        identity = {"tokenizer": run.tokenizer.sha256, "seed": bench.seed, "model": MODELS.identity(run.config.model)}
        weights = {"weights": run.weights} if self.is_trained else {"parameters": run.config.seed}
        return identity | settings | weights

    def note(self, bench: Bench, config: ConfigDict) -> str | None:
        about = self.about and self.about.format(pretrained=config.pretrained)
        return f"“{self.title}” {about}" if about else None

    def _samplers(self, bench: Bench) -> dict[bool, Sampler]:
        """Without and with the grammar, of one set of parameters; of all networks only the last one is held."""
        if bench.held is None or bench.held[0] != self.name:
            bench.held = None  # before the next one is loaded
            run, settings = bench.runs[self.name], _settings(bench, False)
            if self.is_trained:
                plain = Sampler.load(run.workdir, settings, run.step)
            else:
                plain = Sampler.untrained(run.workdir, settings)
            bench.held = self.name, {False: plain, True: plain.with_settings(_settings(bench, True))}
        return bench.held[1]


def _settings(bench: Bench, grammar: bool) -> Settings:
    return dataclasses.replace(bench.settings, grammar=grammar)


TRAINED = Network("trained", "trained model", ("#2563c9", "#7fb0ff"), "o", is_trained=True)
PRETRAINED = Network(
    "pretrained",
    "pretrained model",
    ("#0f8fa8", "#63d2e6"),
    "P",
    is_trained=True,
    about="is another run's, {pretrained}; it held out the same files.",
)
UNTRAINED = Network(
    "untrained",
    "untrained model",
    ("#b8641b", "#eda766"),
    "s",
    is_trained=False,
    about="is the run's network before its first step, sampled alike.",
)
