"""Kinds by name: of codecs, tokenizers, models and tasks. A new kind is one file, and one line here.

Another package adds kinds without a change here: by entry points of the groups "jpeglm.codecs", "jpeglm.tokenizers",
"jpeglm.models" and "jpeglm.tasks", and likewise "jpeglm.sources", "jpeglm.methods", "jpeglm.extractors" and
"jpeglm.clip_extractors". Every command knows them where that package is installed.

A section of the config says by its key `name` which kind is meant. A kind is a class; what its registry asks of it is
said at `Registry`, and all else in its protocol. An entry may be the class itself, or its place as text,
"package.module:Class", which is imported when it is asked for: a config asks for the kinds without importing them all.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Container, Mapping
from typing import Any

from ml_collections import ConfigDict

from jpeglm.core.errors import InputError
from jpeglm.core.ranges import Range, check_one, one_of

Section = Mapping[str, tuple[Any, Range]]  # each key of a section of the config: its default, and what it may be


def resolved(kind: Any) -> Any:
    """What an entry of a registry means: itself or, of a place as text, what is found there.

    Raises:
      InputError: another package's kind cannot be imported.
    """
    if not isinstance(kind, str):
        return kind
    module, _, attribute = kind.partition(":")
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module))
    except Exception as error:
        if module.split(".")[0] == __name__.split(".")[0]:  # a fault of this package, which wants its traceback
            raise
        raise InputError(f"{kind}, of another package, cannot be imported: {type(error).__name__}: {error}") from error


@functools.cache
def installed(group: str) -> dict[str, str]:
    """The places of other packages' kinds by name: their entry points of "jpeglm.GROUP"."""
    entries = importlib.metadata.entry_points(group=f"jpeglm.{group}")
    return {entry.name: f"{entry.module}:{entry.attr}" for entry in entries}


def check_free(name: Any, own: Container[Any], group: str) -> None:
    """Raises InputError if another package's kind has this name, and one of this package has it, too."""
    if name in own and name in installed(group):
        raise InputError(
            f"{name!r} is a name of jpeglm's own, and that of {installed(group)[name]} in another package: "
            f"that entry point of jpeglm.{group} needs another name"
        )


def with_installed(own: Mapping[str, Any], group: str) -> dict[str, Any]:
    """A registry's own kinds and, after them, those of other packages, which replace none of them."""
    return dict(own) | {name: place for name, place in installed(group).items() if name not in own}


class Registry:
    """The kinds of one section of the config, as `config.model`, whose key `name` says which of them is meant.

    A kind has `SECTION`, a `Section` of the keys beside `name`. Those that are made from settings alone (all but
    tokenizers, which are learnt) have a classmethod `of(config)`, too.

    Attributes:
      section: "model".
      kinds: class or its place by name; code outside of this package may put its own here.
      default: the name of the first, which a section has that was written without a name.
    """

    def __init__(self, section: str, kinds: Mapping[str, type | str]):
        self.section = section
        self.kinds = dict(kinds)
        self.default = next(iter(self.kinds))
        self._own = tuple(self.kinds)

    @property
    def names(self) -> tuple[str, ...]:
        """What `name` may be."""
        return tuple(self._all)

    @property
    def _all(self) -> dict[str, type | str]:
        return with_installed(self.kinds, f"{self.section}s")

    def kind(self, name: Any) -> Any:
        """The class. Raises InputError for a name that is not known or not clear, or a class that is not there."""
        check_one(f"config.{self.section}.name", name, one_of(*self.names))
        check_free(name, self._own, f"{self.section}s")
        return resolved(self._all[name])

    def kind_of(self, config: Mapping[str, Any]) -> Any:
        """The class that a config names, a run's or a manifest's. Raises InputError for a name that is not known."""
        return self.kind(config[self.section].get("name"))

    def of(self, config: Mapping[str, Any]) -> Any:
        """What a config names, made with its settings. Raises InputError where they do not fit together."""
        return self.kind_of(config).of(config)

    def defaults(self, name: str) -> dict[str, Any]:
        """The whole section of a kind, its name included."""
        return {"name": name} | {key: default for key, (default, _) in self.kind(name).SECTION.items()}

    def ranges(self, name: str) -> dict[str, Range]:
        """What the keys of its section may be, as "model.name"."""
        own = {"name": one_of(*self.names)} | {key: range_ for key, (_, range_) in self.kind(name).SECTION.items()}
        return {f"{self.section}.{key}": range_ for key, range_ in own.items()}

    def identity(self, section: ConfigDict) -> dict[str, Any]:
        """The section as a part of what a sample is known by, for given weights.

        Without the default's name, so that results stay known that were made when nothing had a name, and without the
        keys that the kind lists in `IN_TRAINING_ALONE`.
        """
        left_out = getattr(self.kind(section.get("name", self.default)), "IN_TRAINING_ALONE", ())
        return {
            key: value
            for key, value in section.to_dict().items()
            if (key, value) != ("name", self.default) and key not in left_out
        }


CODECS = Registry(  # `Codec` in jpeglm/data/codecs/base.py
    "codec",
    {
        "jpeg": "jpeglm.data.codecs.jpeg:JpegCodec",
        "avc": "jpeglm.data.codecs.avc:AvcCodec",
    },
)
TOKENIZERS = Registry("tokenizer", {"bpe": "jpeglm.data.tokenizers.bpe:BpeTokenizer"})  # `Tokenizer` in its package
MODELS = Registry("model", {"llama": "jpeglm.models.llama_config:LlamaConfig"})  # `Model` in jpeglm/models
TASKS = Registry("task", {"lm": "jpeglm.train.tasks.lm:LanguageModelling"})  # `Task` in jpeglm/train/tasks
