"""What the methods of a table work with, a run and its data, and the store of what they made."""

import dataclasses
import functools
import io
import itertools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict

from jpeglm.core import checkpoint, retries
from jpeglm.core.errors import InputError, writing
from jpeglm.core.files import write_whole
from jpeglm.core.registry import CODECS
from jpeglm.core.workdir import read_config, read_manifest
from jpeglm.data import batches, records, tokenizers
from jpeglm.data.tokenizers import Tokenizer
from jpeglm.sample.engine import Settings
from jpeglm.sample.grammar import TokenGrammar
from jpeglm.tables.methods import REGISTRY, Completed
from jpeglm.tables.methods.base import TRAINING_PICTURES, Arrays

############################ The methods of a table ############################


@dataclasses.dataclass(frozen=True)
class Run:
    """A run at one of its checkpoints, whatever is saved there meanwhile."""

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
        return checkpoint.weights_hash(self.workdir, self.step)


class Methods:
    """The rows of a completion table over one run and its data: a `Bench`.

    What a method needs is loaded when it is first used; of the networks only the last used one is held.

    Attributes:
      runs: by the rows of networks, where there is one.
      held: see `Bench`.
    """

    def __init__(
        self,
        workdir: epath.PathLike,
        data: str,
        settings: Settings,
        seed: int,
        pretrained: epath.PathLike | None = None,
    ):
        """Opens a run and its data, and perhaps a second run, `pretrained`.

        `settings` are those of both samplings of a network: whether with the grammar, `complete` is told.

        Raises:
          InputError: no run, no checkpoint, no finished data, data that the run was not trained on, or a second run
            with another held-out split: it may have learnt what is held out here.
        """
        self.workdir = epath.Path(workdir)
        self.data = data
        self.settings = settings
        self.seed = seed
        run = Run.open(self.workdir)
        self.runs = {"trained": run, "untrained": run}
        self.run_config, self.step, self.tokenizer = run.config, run.step, run.tokenizer
        self.manifest = records.read_manifest(data)
        with self.run_config.unlocked():
            self.run_config.data.path = data  # named in the message if it does not fit
        batches.check_fits(self.manifest, self.run_config)
        if self.tokenizer.sha256 != self.manifest["tokenizer_sha256"]:
            raise InputError(f"{data} was prepared with another tokenizer than the run in {workdir} learnt with")
        self.codec = CODECS.of(self.run_config)
        self.held: tuple[str, Any] | None = None
        self._pool: list[bytes] | None = None
        self.pretrained = epath.Path(pretrained) if pretrained else None
        if self.pretrained:
            self.runs["pretrained"] = Run.open(self.pretrained)
            theirs = read_manifest(self.pretrained)["splits"]["heldout"]["shards"]
            ours = self.manifest["splits"]["heldout"]["shards"]
            if [shard["sha256"] for shard in theirs] != [shard["sha256"] for shard in ours]:
                raise InputError(
                    f"{pretrained} held out other files than {data} does, and may have learnt these: leave it out "
                    "with --config.pretrained="
                )

    def check_prompts(self, rows: Sequence[str], originals: Sequence[bytes], ratios: Sequence[float]) -> None:
        """Says before anything is sampled whether each network of `rows` has room for what it is to write.

        Raises:
          InputError: `max_tokens` leaves no room after a prompt, or with the grammar not enough for a whole file.
        """
        runs = [self.runs[row] for row in rows if row in self.runs]
        of_bytes = self.codec.grammar()
        for tokenizer in {run.tokenizer.sha256: run.tokenizer for run in runs}.values():
            grammar = TokenGrammar(of_bytes, tokenizer) if of_bytes else None
            wanted = []
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

    def complete(self, row: str, originals: Sequence[bytes], ratio: float, grammar: bool = False) -> Completed:
        """Completes each original from its first `ratio` of MCUs or frames by the method of `row`.

        Args:
          row: a key of `methods.REGISTRY`.
          originals: valid documents.
          ratio: 0 to 1.
          grammar: whether a network draws among legal tokens only; the other rows draw no tokens.
        """
        return REGISTRY[row].complete(self, originals, ratio, grammar)

    def identity(self, row: str, grammar: bool = False) -> dict:
        """All that the completions of `row` depend on beside the originals and the ratio, by content; JSON types."""
        identity = {"row": row, "codec": self.run_config.codec.to_dict(), "versions": self.codec.encoder_versions()}
        return identity | REGISTRY[row].identity(self, grammar)

    def training_documents(self) -> list[bytes]:
        """The first `TRAINING_PICTURES` training documents in the order of the shards, which is by a hash."""
        if self._pool is None:
            self._pool = list(batches.documents(self.data, "train", TRAINING_PICTURES))
        return self._pool


############################ What is kept between two runs of a table ############################


class Store:
    """Named arrays in a folder, each with the identity of what made them: made once, made again where it changed."""

    def __init__(self, folder: Path):
        self._folder = folder

    def get(self, name: str, identity: dict, make: Callable[[], Arrays]) -> Arrays:
        """The arrays of `name` if they are there with this identity, else those of `make()`, which are then kept.

        Raises:
          InputError: they cannot be written, or not be read for another reason than damage.
        """
        path = self._folder / f"{name}.npz"
        fingerprint = json.dumps(identity, sort_keys=True)
        if path.exists():
            found = retries.read(path.read_bytes, path)
            try:
                with np.load(io.BytesIO(found)) as file:
                    if str(file["fingerprint"]) == fingerprint:
                        return {key: file[key] for key in str(file["names"]).split()}
                logging.info("%s is of other settings: made again", path)
            except Exception as error:  # a damaged file can make the reader fail in any way
                logging.warning("%s cannot be read (%s): made again", path, error)
        arrays, content = make(), io.BytesIO()
        np.savez(content, fingerprint=np.array(fingerprint), names=np.array(" ".join(arrays)), **arrays)
        with writing(self._folder):
            self._folder.mkdir(parents=True, exist_ok=True)
            write_whole(path, content.getbuffer())
        return arrays
