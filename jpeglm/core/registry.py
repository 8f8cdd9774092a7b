"""The registries of codecs, tokenizers, models and tasks (kinds). A new kind is one file and one line here.

Another package can add kinds without a change here, by entry points of the groups "jpeglm.codecs",
"jpeglm.tokenizers", "jpeglm.models" and "jpeglm.tasks", and likewise "jpeglm.sources", "jpeglm.methods",
"jpeglm.extractors" and "jpeglm.clip_extractors". Every command knows them once that package is installed.

The key `name` of a section of the config selects the kind. A kind is a class; `Registry` says what the registry needs
of it, its protocol says the rest. An entry is the class itself or its path as text, "package.module:Class", which is
imported on first use, so that a config can list all kinds without importing them.
"""

import functools
import importlib
import importlib.metadata
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jpeglm.core.ranges import Range, check_one, one_of

Section = Mapping[str, tuple[Any, Range]]  # for each key of a section of the config: default and range


def resolved(kind: Any) -> Any:
    """Resolves an entry of a registry: imports it if it is a path as text."""
    if isinstance(kind, str):
        module, _, attribute = kind.partition(":")
        return getattr(importlib.import_module(module), attribute)
    return kind


@functools.cache
def installed(group: str) -> dict[str, str]:
    """The paths of other packages' kinds by name: their entry points of "jpeglm.GROUP"."""
    return {entry.name: entry.value for entry in importlib.metadata.entry_points(group=f"jpeglm.{group}")}


def with_installed(own: Mapping[str, Any], group: str) -> dict[str, Any]:
    """A registry's own kinds, followed by those of other packages, which cannot replace them."""
    return dict(own) | {name: place for name, place in installed(group).items() if name not in own}


class Registry:
    """The kinds for one section of the config, such as `config.model`, whose key `name` selects one.

    A kind has `SECTION`, a `Section` with the keys other than `name`. Kinds that are made from settings alone (all
    except tokenizers, which are learnt) also have a classmethod `of(config)`.

    Attributes:
      section: its name, such as "model".
      kinds: class or path by name; code outside this package may add its own here.
      default: the first name, which is used for a section that was saved without one.
    """

    def __init__(self, section: str, kinds: Mapping[str, type | str]):
        self.section = section
        self.kinds = dict(kinds)
        self.default = next(iter(self.kinds))

    @property
    def names(self) -> tuple[str, ...]:
        """The allowed values of `name`."""
        return tuple(self._all)

    @property
    def _all(self) -> dict[str, type | str]:
        return with_installed(self.kinds, f"{self.section}s")

    def kind(self, name: Any) -> Any:
        """The class. Raises InputError for an unknown name."""
        check_one(f"config.{self.section}.name", name, one_of(*self.names))
        return resolved(self._all[name])

    def kind_of(self, config: Mapping[str, Any]) -> Any:
        """The class that a config (of a run or a manifest) names. Raises InputError for an unknown name."""
        return self.kind(config[self.section].get("name"))

    def of(self, config: Mapping[str, Any]) -> Any:
        """An instance of the named kind, made from the config. Raises InputError if settings do not fit together."""
        return self.kind_of(config).of(config)

    def defaults(self, name: str) -> dict[str, Any]:
        """The whole section of a kind with its defaults, including its name."""
        return {"name": name} | {key: default for key, (default, _) in self.kind(name).SECTION.items()}

    def ranges(self, name: str) -> dict[str, Range]:
        """The ranges of the keys of its section, by names such as "model.name"."""
        own = {"name": one_of(*self.names)} | {key: range_ for key, (_, range_) in self.kind(name).SECTION.items()}
        return {f"{self.section}.{key}": range_ for key, range_ in own.items()}

    def identity(self, section: ConfigDict) -> dict[str, Any]:
        """The section as a part of a result's identity, without the name if it is the default.

        This keeps the identities of results that were made before kinds had names.
        """
        return {key: value for key, value in section.to_dict().items() if (key, value) != ("name", self.default)}


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
