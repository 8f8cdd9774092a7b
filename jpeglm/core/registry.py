"""Kinds by name: of models, of tasks. A new kind is one file, and one line in its registry.

A kind is a class that is made from a run's config by `of(config)`, and says what its section of the config holds. An
entry may be the class itself or its place as text, "package.module:Class", which is imported when it is asked for.
"""

import importlib
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jpeglm.core.ranges import Range, check_one, one_of

Section = Mapping[str, tuple[Any, Range]]  # each key of a section of the config: its default, and what it may be


class Registry:
    """The kinds of one section of the config, as `config.model`, whose key `name` says which of them is meant.

    Attributes:
      section: "model".
      kinds: class or its place by name; code outside of this package may put its own here.
      default: the name of the first, which runs have that were written without a name.
    """

    def __init__(self, section: str, kinds: Mapping[str, type | str]):
        self.section = section
        self.kinds = dict(kinds)
        self.default = next(iter(self.kinds))

    @property
    def names(self) -> tuple[str, ...]:
        """What `name` may be."""
        return tuple(self.kinds)

    def kind(self, name: Any) -> Any:
        """The class. Raises InputError for a name that is not known."""
        check_one(f"config.{self.section}.name", name, one_of(*self.names))
        kind = self.kinds[name]
        if isinstance(kind, str):
            module, _, attribute = kind.partition(":")
            kind = getattr(importlib.import_module(module), attribute)
        return kind

    def of(self, config: ConfigDict) -> Any:
        """What a run's config names, made with its settings. Raises InputError where they do not fit together."""
        return self.kind(config[self.section].name).of(config)

    def defaults(self, name: str) -> dict[str, Any]:
        """The whole section of a kind, its name included."""
        return {"name": name} | {key: default for key, (default, _) in self.kind(name).SECTION.items()}

    def ranges(self, name: str) -> dict[str, Range]:
        """What the keys of its section may be, as "model.name"."""
        own = {"name": one_of(*self.names)} | {key: range_ for key, (_, range_) in self.kind(name).SECTION.items()}
        return {f"{self.section}.{key}": range_ for key, range_ in own.items()}

    def identity(self, section: ConfigDict) -> dict[str, Any]:
        """The section as a part of what a result is known by, without the default's name.

        So that results stay known that were made when nothing had a name.
        """
        return {key: value for key, value in section.to_dict().items() if (key, value) != ("name", self.default)}
