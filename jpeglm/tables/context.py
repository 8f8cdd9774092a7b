"""The context of a table's methods: the run, its data and the sampling settings."""

import dataclasses
import functools
import itertools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from etils import epath
from ml_collections import ConfigDict

from jpeglm.core import checkpoint
from jpeglm.core.errors import InputError
from jpeglm.core.registry import CODECS
from jpeglm.core.workdir import read_config, read_manifest
from jpeglm.data import batches, records, tokenizers
from jpeglm.data.tokenizers import Tokenizer
from jpeglm.sample.grammar import TokenGrammar
from jpeglm.sample.settings import Settings

# The mean of this many training pictures is within a grey level or two of the mean of all. Random training pictures
# are also drawn from them.
TRAINING_PICTURES = 2_000


@dataclasses.dataclass(frozen=True)
class Run:
    """A run at a fixed checkpoint, even if later ones are saved meanwhile."""

    workdir: epath.Path
    config: ConfigDict
    tokenizer: Tokenizer
    step: int

    @classmethod
    def open(cls, workdir: epath.Path) -> "Run":
        """The run at its last checkpoint."""
        config, step = read_config(workdir), checkpoint.pick_step(workdir, None)
        return cls(workdir, config, tokenizers.load(workdir, config), step)

    @functools.cached_property
    def weights(self) -> str:
        """A hash of the parameters."""
        return checkpoint.weights_hash(self.workdir, self.step)


class Context:
    """One run and its data, and optionally a second run, for the methods of one table.

    Attributes:
      runs: by the key of the table's config that names them: "workdir" and, if there is one, "pretrained".
      run_config: of the first run.
      step: the first run's last checkpoint.
      tokenizer: of the first run.
      data: folder of the prepared data.
      manifest: of this data.
      codec: of the documents.
      seed: of all draws.
      settings: of sampling. Whether to use the grammar is an argument of `Method.complete`.
      held: name of a network and its loaded parts. Networks share this slot, so that only the last used one is in
        memory.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        data: str,
        settings: Settings,
        seed: int,
        pretrained: epath.PathLike | None = None,
    ):
        """Opens the runs and the data.

        Raises:
          InputError: there is no run, no checkpoint or no finished data; the run was not trained on this data; or the
            second run has another held-out split, so that it may have been trained on what is held out here.
        """
        run = Run.open(epath.Path(workdir))
        self.runs = {"workdir": run}
        self.run_config, self.step, self.tokenizer = run.config, run.step, run.tokenizer
        self.data, self.settings, self.seed = data, settings, seed
        self.manifest = records.read_manifest(data)
        with self.run_config.unlocked():
            self.run_config.data.path = data  # named in the message if it does not fit
        batches.check_fits(self.manifest, self.run_config)
        if self.tokenizer.sha256 != self.manifest["tokenizer_sha256"]:
            raise InputError(f"{data} was prepared with another tokenizer than the run in {workdir} learnt with")
        self.codec = CODECS.of(self.run_config)
        self.held: tuple[str, Any] | None = None
        self._training_documents: list[bytes] | None = None
        if pretrained:
            self.runs["pretrained"] = self._open_pretrained(epath.Path(pretrained))

    def _open_pretrained(self, workdir: epath.Path) -> Run:
        run = Run.open(workdir)
        theirs = read_manifest(workdir)["splits"]["heldout"]["shards"]
        ours = self.manifest["splits"]["heldout"]["shards"]
        if [shard["sha256"] for shard in theirs] != [shard["sha256"] for shard in ours]:
            raise InputError(
                f"{workdir} held out other files than {self.data} does, and may have learnt these: leave it out "
                "with --config.pretrained="
            )
        return run

    def check_prompts(self, runs: Iterable[Run], originals: Sequence[bytes], ratios: Sequence[float]) -> None:
        """Checks, before anything is sampled, that `max_tokens` is large enough for the networks of these runs.

        Raises:
          InputError: `max_tokens` leaves no room after a prompt, or with the grammar not enough for a whole file.
        """
        of_bytes = self.codec.grammar()
        for tokenizer in {run.tokenizer.sha256: run.tokenizer for run in runs}.values():
            grammar = TokenGrammar(of_bytes, tokenizer) if of_bytes else None
            wanted: list[tuple[int, float, int]] = []  # tokens, ratio, number of the original
            for ratio in ratios:
                prefixes = [self.codec.cut(original, ratio)[0] for original in originals]
                lengths = np.array([1 + len(tokenizer.encode(prefix)) for prefix in prefixes])  # with BOS
                after = grammar.tokens_needed(grammar.places(prefixes)) if grammar else 1
                wanted += zip((lengths + after).tolist(), itertools.repeat(ratio), range(len(originals)))
            most, ratio, number = max(wanted, default=(0, 0, 0))
            if most > self.settings.max_tokens:
                what = "become a whole file" if grammar else "be continued"
                raise InputError(
                    f"config.sampling.max_tokens={self.settings.max_tokens}: held-out {self.codec.item} {number} at "
                    f"ratio {ratio:g} wants {most} or more to {what}; no other wants more"
                )

    def training_documents(self) -> list[bytes]:
        """The first `TRAINING_PICTURES` training documents in the order of the shards, which is by a hash of each."""
        if self._training_documents is None:
            self._training_documents = list(batches.documents(self.data, "train", TRAINING_PICTURES))
        return self._training_documents
