"""What completes cut pictures or clips in a table: the model, and the controls that say what a distance is worth.

Each method is given the same cut documents and gives back as many whole ones. The controls are the model before its
first step and the prompt with something behind it: random bytes; for pictures also flat blocks, the mean of training
pictures or a random one of them; for clips their last frame again and again. A network can complete by the plain
sampling or, where the codec has a grammar, among its legal tokens.
"""

import dataclasses
import functools
import hashlib
import io
import itertools
import json
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
from absl import logging
from etils import epath
from ml_collections import ConfigDict
from PIL import Image
from tqdm import tqdm

from jpeglm import checkpoint, codecs, retries
from jpeglm import model as models
from jpeglm.codecs import Codec
from jpeglm.codecs.avc import AvcCodec
from jpeglm.data import pipeline, shards
from jpeglm.errors import InputError, writing
from jpeglm.files import write_whole
from jpeglm.sampling.engine import Settings
from jpeglm.sampling.grammar import TokenGrammar
from jpeglm.sampling.sampler import Sampler
from jpeglm.tokenizer import Tokenizer

TITLES = {  # of the rows, in the order of tables
    "trained": "trained model",
    "pretrained": "pretrained model",
    "untrained": "untrained model",
    "last_frame": "prompt + last frame repeated",
    "random_bytes": "prompt + random bytes",
    "flat": "prompt + flat blocks",
    "training_mean": "prompt + training mean",
    "training_picture": "prompt + rest of a random training picture",
}
TRAINED = ("trained", "pretrained")
MODELS = (*TRAINED, "untrained")  # the rows that a network writes
CONTROLS = {  # the other rows, by codec
    "jpeg": ("random_bytes", "flat", "training_mean", "training_picture"),
    "avc": ("last_frame", "random_bytes"),
}
# The mean of so many training pictures is within a grey level or two of the mean of all; a random one is one of them.
TRAINING_PICTURES = 2_000

_START_CODE = rb"(\x00?\x00\x00\x01)"

Arrays = dict[str, np.ndarray]


def title_of(row: str, grammar: bool) -> str:
    """What a row is called, by the sampling with the grammar or by the plain one."""
    return f"{TITLES[row]} with grammar" if grammar else TITLES[row]


@dataclasses.dataclass(frozen=True)
class Completed:
    """Whole documents, one a prompt and in the order of the prompts.

    Attributes:
      documents: canonical bytes, valid or not.
      ended: bool [n], whether the model ended the file itself within its budget; None for what no model wrote.
      tokens: int64 [n], how many the model wrote; None likewise.
      removed: float64 [n], the mean share of its probability that the grammar took away at a token; None without one.
    """

    documents: list[bytes]
    ended: np.ndarray | None = None
    tokens: np.ndarray | None = None
    removed: np.ndarray | None = None

    def to_arrays(self) -> Arrays:
        arrays = {
            "bytes": np.frombuffer(b"".join(self.documents), np.uint8),
            "lengths": np.array([len(document) for document in self.documents], np.int64),
        }
        optional = {"ended": self.ended, "tokens": self.tokens, "removed": self.removed}
        return arrays | {name: values for name, values in optional.items() if values is not None}

    @classmethod
    def from_arrays(cls, arrays: Arrays) -> "Completed":
        ends = np.cumsum(arrays["lengths"])
        documents = [part.tobytes() for part in np.split(arrays["bytes"], ends[:-1])]
        return cls(documents, arrays.get("ended"), arrays.get("tokens"), arrays.get("removed"))


############################ Controls ############################


def with_random_bytes(codec: Codec, documents: Sequence[bytes], ratio: float, seed: int) -> list[bytes]:
    """The prompt, then uniformly random bytes, as many as the original has there; of clips, between its start codes.

    The bytes of a document depend on (seed, the original) alone.
    """
    completed = []
    for document in documents:
        prefix, _ = codec.cut(document, ratio)
        digest = hashlib.sha256(document).digest()
        random = np.random.default_rng([seed, int.from_bytes(digest)])
        rest = document[len(prefix) :]
        pieces = re.split(_START_CODE, rest) if isinstance(codec, AvcCodec) else [rest]
        # What stands between start codes has even places.
        drawn = [piece if place % 2 else random.bytes(len(piece)) for place, piece in enumerate(pieces)]
        completed.append(prefix + b"".join(drawn))
    return completed


def with_last_frame(codec: AvcCodec, documents: Sequence[bytes], ratio: float) -> list[bytes]:
    """The prompt, then its last frame again and again, in skipped slices: a valid file."""
    return [codec.complete_with_last(*codec.cut(document, ratio)) for document in documents]


def with_flat_blocks(codec: Codec, documents: Sequence[bytes], ratio: float) -> list[bytes]:
    """The prompt, then flat mid-grey MCUs to the end: a valid file."""
    return [codec.complete_with_flat(*codec.cut(document, ratio)) for document in documents]


def with_rest_of(codec: Codec, documents: Sequence[bytes], ratio: float, others: Sequence[bytes]) -> list[bytes]:
    """The prompt, then the MCUs that its one of `others`, canonical too, has in the missing places: a valid file.

    Each MCU predicts its DC values anew, so those of another document look behind the prompt as they do at home.
    """

    def joined(document: bytes, other: bytes) -> bytes:
        return codec.cut(document, ratio)[0] + other[len(codec.cut(other, ratio)[0]) :]

    return [joined(document, other) for document, other in zip(documents, others, strict=True)]


def random_others(documents: Sequence[bytes], pool: Sequence[bytes], seed: int) -> list[bytes]:
    """One of `pool` for each document; which one depends on (seed, the document) alone."""

    def pick(document: bytes) -> bytes:
        digest = hashlib.sha256(document).digest()
        return pool[np.random.default_rng([seed, int.from_bytes(digest)]).integers(len(pool))]

    return [pick(document) for document in documents]


def mean_document(codec: Codec, documents: Iterable[bytes]) -> bytes:
    """The canonical document of the pictures' mean, pixel by pixel."""
    total, count = 0.0, 0
    for document in documents:
        total = total + np.asarray(codec.decode(document), np.float64)
        count += 1
    return codec.encode(Image.fromarray(np.rint(total / count).astype(np.uint8), codec.mode))


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
        config, step = checkpoint.read_config(workdir), checkpoint.pick_step(workdir, None)
        return cls(workdir, config, Tokenizer.load(workdir / "tokenizer.json"), step)

    @functools.cached_property
    def weights(self) -> str:
        return checkpoint.weights_hash(self.workdir, self.step)


class Methods:
    """The rows of a completion table over one run and its data.

    What a method needs is loaded when it is first used; of the two models only the last used one is held.

    Attributes:
      runs: by the rows of networks, where there is one.
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
        self.manifest = shards.read_manifest(data)
        with self.run_config.unlocked():
            self.run_config.data.path = data  # named in the message if it does not fit
        pipeline.check_fits(self.manifest, self.run_config)
        if self.tokenizer.sha256 != self.manifest["tokenizer_sha256"]:
            raise InputError(f"{data} was prepared with another tokenizer than the run in {workdir} learnt with")
        self.codec = codecs.make(self.run_config.codec)
        self._samplers: tuple[str, dict[bool, Sampler]] | None = None  # row; without and with the grammar
        self._pool: list[bytes] | None = None
        self.pretrained = epath.Path(pretrained) if pretrained else None
        if self.pretrained:
            self.runs["pretrained"] = Run.open(self.pretrained)
            theirs = checkpoint.read_manifest(self.pretrained)["splits"]["heldout"]["shards"]
            ours = self.manifest["splits"]["heldout"]["shards"]
            if [shard["sha256"] for shard in theirs] != [shard["sha256"] for shard in ours]:
                raise InputError(
                    f"{pretrained} held out other files than {data} does, and may have learnt these: leave it out "
                    "with --config.pretrained="
                )

    def check_prompts(self, rows: Sequence[str], originals: Sequence[bytes], ratios: Sequence[float]) -> None:
        """Says before anything is sampled whether each network of `rows` has room for what it is to write.

        Raises:
          InputError: `max_tokens` leaves no room behind a prompt, or with the grammar not enough for a whole file.
        """
        tokenizers = {self.runs[row].tokenizer.sha256: self.runs[row].tokenizer for row in rows if row in MODELS}
        for tokenizer in tokenizers.values():
            grammar = TokenGrammar(self.codec.grammar(), tokenizer) if self.codec.has_grammar else None
            wanted = []
            for ratio in ratios:
                prefixes = [self.codec.cut(original, ratio)[0] for original in originals]
                lengths = np.array([1 + len(tokenizer.encode(prefix)) for prefix in prefixes])  # with BOS
                behind = grammar.tokens_needed(grammar.places(prefixes)) if grammar else 1
                wanted += zip((lengths + behind).tolist(), itertools.repeat(ratio), range(len(originals)))
            most, ratio, number = max(wanted, default=(0, 0, 0))
            if most > self.settings.max_tokens:
                what = "become a whole file" if grammar else "be continued"
                raise InputError(
                    f"config.sampling.max_tokens={self.settings.max_tokens}: held-out {self.codec.item} {number} at "
                    f"ratio {ratio:g} wants {most} or more to {what}; no other wants more"
                )

    def complete(self, row: str, originals: Sequence[bytes], ratio: float, grammar: bool = False) -> Completed:
        """Completes each original from its first `ratio` of MCUs or frames by the method of `row`, a key of `TITLES`.

        `grammar`: whether a network draws among legal tokens only; the other rows draw no tokens.
        """
        match row:
            case "trained" | "pretrained" | "untrained":
                return self._by_model(row, originals, ratio, grammar)
            case "random_bytes":
                return Completed(with_random_bytes(self.codec, originals, ratio, self.seed))
            case "last_frame":
                return Completed(with_last_frame(self.codec, originals, ratio))
            case "flat":
                return Completed(with_flat_blocks(self.codec, originals, ratio))
            case "training_mean":
                mean = mean_document(self.codec, self._training_pictures())
                return Completed(with_rest_of(self.codec, originals, ratio, [mean] * len(originals)))
            case "training_picture":
                others = random_others(originals, self._training_pictures(), self.seed)
                return Completed(with_rest_of(self.codec, originals, ratio, others))
        raise KeyError(row)

    def identity(self, row: str, grammar: bool = False) -> dict:
        """All that the completions of `row` depend on beside the originals and the ratio, by content; JSON types."""
        identity = {"row": row, "codec": self.run_config.codec.to_dict(), "versions": self.codec.encoder_versions()}
        if row in MODELS:
            run, settings = self.runs[row], dataclasses.asdict(self._settings(grammar))
            del settings["slots"]  # changes no file
            model = models.MODELS.identity(run.config.model)
            identity |= {"tokenizer": run.tokenizer.sha256, "seed": self.seed, "model": model}
            weights = {"parameters": run.config.seed} if row == "untrained" else {"weights": run.weights}
            identity |= settings | weights
        if row in ("random_bytes", "training_picture"):
            identity |= {"seed": self.seed}
        if row in ("training_mean", "training_picture"):
            identity |= {"pictures": documents_identity(self._training_pictures())}
        return identity

    def _settings(self, grammar: bool) -> Settings:
        return dataclasses.replace(self.settings, grammar=grammar)

    def _by_model(self, row: str, originals: Sequence[bytes], ratio: float, grammar: bool) -> Completed:
        if self._samplers is None or self._samplers[0] != row:
            self._samplers = None  # before the next one is loaded
            run, settings = self.runs[row], self._settings(False)
            if row == "untrained":
                plain = Sampler.untrained(run.workdir, settings)
            else:
                plain = Sampler.load(run.workdir, settings, run.step)
            self._samplers = row, {False: plain, True: plain.with_settings(self._settings(True))}
        generated = self._samplers[1][grammar].complete(originals, ratio, seed=self.seed)
        title = f"{title_of(row, grammar)}, ratio {ratio:g}"
        bar = tqdm(generated, title, len(originals), unit=self.codec.item, dynamic_ncols=True)
        in_order = sorted(bar, key=lambda completion: completion.index)
        return Completed(
            [completion.document for completion in in_order],
            np.array([completion.ended for completion in in_order]),
            np.array([completion.tokens for completion in in_order], np.int64),
            np.array([completion.removed for completion in in_order], np.float64) if grammar else None,
        )

    def _training_pictures(self) -> list[bytes]:
        """The first ones in the order of the shards, which is by a hash."""
        if self._pool is None:
            self._pool = list(pipeline.documents(self.data, "train", TRAINING_PICTURES))
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


def documents_identity(documents: Iterable[bytes]) -> str:
    """A digest of documents in their order."""
    return hashlib.sha256(b"".join(hashlib.sha256(document).digest() for document in documents)).hexdigest()
