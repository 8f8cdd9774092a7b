"""All keys of a config, with their defaults (the 7B JPEG-LM) and the ranges of their values.

Files in `configs/` start from `base()` and override what differs. The ConfigDict is locked, so a misspelt key is an
error instead of being ignored. Every command checks its config here before it does anything else.
"""

import importlib.machinery
import json
import os
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from jpeglm.core import ranges
from jpeglm.core.errors import InputError, reading
from jpeglm.core.ranges import SEED, SWITCH, TEXT, Range, one_of, real, several, whole
from jpeglm.core.registry import CODECS, MODELS, TASKS, TOKENIZERS, Registry

PLATFORMS = ("", "cpu", "gpu", "tpu")
BACKGROUNDS = ("white", "black", "refuse")  # what transparent pictures are put over, or refuse
DEFAULT_BACKGROUND = "white"
VERSION = 2  # of config.json; see `upgraded`
# What a resumed run may change, in addition to the keys that its model leaves free. None of these alters what is
# learnt, except by rounding and by the end of the schedule.
_FREE = (
    "steps",
    "platform",
    "deterministic",
    "watchdog",
    "profile",
    "data.path",
    "data.verify",
    "mesh.",
    "eval.",
    "checkpoint.",
    "log.",
    "optim.accumulate",
)


def base() -> ConfigDict:
    """JPEG-LM 7B on 256x256 colour images (JPEG-LM, sections 3 and 4; for gaps in the paper see BUILD_NOTES.md)."""
    config = ConfigDict()
    config.seed = 0  # parameters and the order of chunks
    config.platform = ""  # cpu, gpu or tpu; "": what JAX finds
    config.deterministic = False  # bitwise reproducible on GPUs, but slower; CPUs and TPUs always are
    config.steps = 74_000
    config.init_from = ""  # workdir whose newest weights a new run starts from
    config.watchdog = 900  # seconds that a step, a batch of an evaluation or a wait for a checkpoint may take; 0: any
    config.profile = 0  # number of steps, from the third on, to trace into WORKDIR/profile

    # Each codec, tokenizer, model and task has its own keys, in its file.
    config.codec = _defaults(CODECS, CODECS.default)
    config.tokenizer = _defaults(TOKENIZERS, TOKENIZERS.default)

    config.data = ConfigDict()
    config.data.path = ""  # folder that `jpeglm.prepare` wrote
    config.data.seq_len = 12_288  # tokens a chunk
    config.data.verify = True  # verify the checksum of every shard at each start; False: only its size
    config.data.shards = 256
    config.data.holdout = 0.001  # fraction of the documents, or (an integer) their number
    # Variants to add for each training picture (jpeglm/data/augment.py); for clips, the largest number of later
    # windows.
    config.data.augment = 0
    config.data.stride = 0  # frames from the start of one window of a clip to the next; 0: the length of a clip
    config.data.seed = 0  # order of documents and held-out split
    config.data.background = DEFAULT_BACKGROUND  # what transparent pictures are put over: white, black, or refuse

    config.model = _defaults(MODELS, MODELS.default)
    config.task = _defaults(TASKS, TASKS.default)

    config.optim = ConfigDict()
    config.optim.batch_size = 256  # chunks a step, the same on every topology
    config.optim.accumulate = 1  # microbatches a step; divides batch_size
    config.optim.lr = 3e-4
    config.optim.warmup_steps = 2_000
    config.optim.final_lr_ratio = 0.1  # cosine decay to this fraction of lr
    config.optim.b1 = 0.9
    config.optim.b2 = 0.95
    config.optim.eps = 1e-8
    config.optim.weight_decay = 0.1
    config.optim.clip_norm = 1.0
    config.optim.z_loss = 0.0

    config.mesh = ConfigDict()  # one axis may be -1: all remaining devices
    config.mesh.data = 1
    config.mesh.fsdp = -1
    config.mesh.context = 1
    config.mesh.tensor = 1

    config.eval = ConfigDict()
    config.eval.every = 1_000  # steps
    config.eval.batches = 16  # of batch_size held-out chunks; fewer where the split is smaller

    config.checkpoint = ConfigDict()
    config.checkpoint.every = 500  # steps
    config.checkpoint.keep = 3  # newest ones
    config.checkpoint.keep_every = 10_000  # and each step divisible by this, permanently

    config.log = ConfigDict()
    config.log.every = 10  # steps
    return config.lock()


def avc() -> ConfigDict:
    """The codec section of AVC-LM (sections 3.1 and 4.2), for `config.codec`."""
    return _defaults(CODECS, "avc")


def _defaults(kinds: Registry, name: Any) -> ConfigDict:
    """The section of a config for this kind, with its defaults; raises InputError for an unknown kind."""
    return ConfigDict(kinds.defaults(name)).lock()


############################ Ranges ############################


def _is_holdout(value: Any) -> bool:
    return real(above=0).holds(value) and (value < 1 or (value == int(value) and whole(1).holds(int(value))))


_AXIS = whole(1, also=-1)
# For each key of `base()` except those of codec, tokenizer, model and task, which define their own.
RUN = {
    "seed": SEED,
    "platform": one_of(*PLATFORMS),
    "deterministic": SWITCH,
    "steps": whole(1),
    "init_from": TEXT,
    "watchdog": whole(0, 366 * 86_400),
    "profile": whole(0),
    "data.path": TEXT,
    "data.seq_len": whole(2, 2**24),  # positions that float32 represents exactly
    "data.verify": SWITCH,
    "data.shards": whole(1, 99_999),  # five digits in their names
    "data.holdout": Range(_is_holdout, "a fraction above 0 and below 1, or a whole number from 1 to 2,147,483,647"),
    "data.augment": whole(0),
    "data.stride": whole(0),
    "data.seed": SEED,
    "data.background": one_of(*BACKGROUNDS),
    "optim.batch_size": whole(1),
    "optim.accumulate": whole(1),
    "optim.lr": real(least=0),
    "optim.warmup_steps": whole(0),
    "optim.final_lr_ratio": real(least=0, most=1),
    "optim.b1": real(least=0, below=1),
    "optim.b2": real(least=0, below=1),
    "optim.eps": real(above=0),
    "optim.weight_decay": real(least=0),
    "optim.clip_norm": real(above=0),
    "optim.z_loss": real(least=0),
    "mesh.data": _AXIS,
    "mesh.fsdp": _AXIS,
    "mesh.context": _AXIS,
    "mesh.tensor": _AXIS,
    "eval.every": whole(1),
    "eval.batches": whole(1),
    "checkpoint.every": whole(1),
    "checkpoint.keep": whole(1),
    "checkpoint.keep_every": whole(0),
    "log.every": whole(1),
}
# Sampling settings: of flags, of arguments in Python and of a table's section.
SAMPLING = {
    "max_tokens": whole(2, 2**24),
    "temperature": real(least=1e-30, most=1e30, also=0),  # what float32 can divide by
    "top_k": whole(0),
    "top_p": real(above=0, most=1),
    "slots": whole(1),
    "grammar": SWITCH,
}
# For the flags of all commands, in addition to what absl checks.
FLAGS = SAMPLING | {"seed": SEED, "ratio": real(least=0, most=1)}
# Of a table's config (configs/eval).
TABLE = {
    "workdir": TEXT,
    "data": TEXT,
    "out": TEXT,
    "platform": one_of(*PLATFORMS),
    "num": whole(2),  # a distance needs two pictures
    "ratios": several(real(least=0, below=1)),
    "rows": several(TEXT),
    "ngram_tokens": whole(0),
    "pretrained": TEXT,
    "extractor": TEXT,
    "weights": TEXT,
    "mode": TEXT,
    "video_extractor": TEXT,
    "video_weights": TEXT,
    "seed": SEED,
} | {f"sampling.{key}": range_ for key, range_ in SAMPLING.items() if key != "grammar"}
# Older configs lack these.
_OPTIONAL_IN_TABLES = {"weights", "mode", "video_extractor", "video_weights", "ngram_tokens"}
_OPTIONAL_IN_TABLES |= {key for key in TABLE if key.startswith("sampling.") and key != "sampling.max_tokens"}


def check(config: ConfigDict, any_accumulate: bool = False) -> None:
    """Checks the config of a run: exactly the keys of `base()`, each in its range, and consistent with each other.

    `any_accumulate`: whether `optim.accumulate` is chosen later, so that it need not divide the batch now.

    Raises:
      InputError: names the first key that the user must change.
    """
    values = ranges.flat(config.to_dict())
    if "sampling" in config and "model" not in config:
        raise InputError("this is the config of a table; the config of a run is needed, as configs/jpeglm_demo.py")
    codec = {key for key in values if key == "codec" or key.startswith("codec.")}
    ranges.check("config.", {key: value for key, value in values.items() if key not in codec}, allowed(values))
    if "codec.name" not in codec:
        raise InputError(f"config.codec.name is missing: {one_of(*CODECS.names).words}")
    for kinds in (CODECS, MODELS, TASKS):
        kinds.of(config)
    if config.optim.batch_size % config.optim.accumulate and not any_accumulate:
        raise InputError(
            f"config.optim.accumulate={config.optim.accumulate} does not divide "
            f"config.optim.batch_size={config.optim.batch_size}"
        )
    if config.optim.warmup_steps >= config.steps:
        raise InputError(
            f"config.optim.warmup_steps={config.optim.warmup_steps}: fewer than config.steps={config.steps} are needed"
        )


def allowed(values: Mapping[str, Any]) -> dict[str, Range]:
    """The range of each key for a config of these values (by flat key), without the codec's, which checks its own.

    Raises:
      InputError: the tokenizer, the model or the task has no name, or an unknown one.
    """
    found = dict(RUN)
    for kinds in (TOKENIZERS, MODELS, TASKS):
        key = f"{kinds.section}.name"
        if key not in values:
            raise InputError(f"config.{key} is missing: {one_of(*kinds.names).words}")
        found |= kinds.ranges(values[key])
    return found


def free(config: ConfigDict) -> tuple[str, ...]:
    """Prefixes of the flat keys that a resumed run may change."""
    return (*_FREE, *(f"model.{key}" for key in MODELS.kind(config.model.name).FREE))


def check_table(config: ConfigDict) -> None:
    """Checks the config of a table, like `check`."""
    values = ranges.flat(config.to_dict())
    if "model" in config and "sampling" not in config:
        raise InputError("this is the config of a run; the config of a table is needed, as configs/eval/demo.py")
    if not any(key.startswith("sampling.") for key in values):
        raise InputError("config.sampling is missing: max_tokens, temperature, top_k, top_p, slots")
    ranges.check("config.", values, TABLE, _OPTIONAL_IN_TABLES)


def check_sampling(settings: dict[str, Any]) -> None:
    """Checks the sampling settings, like `check`."""
    ranges.check("sampling.", settings, SAMPLING)


############################ Files ############################


def load(path: str) -> ConfigDict:
    """The result of get_config() in a Python file; `FILE.py:TEXT` calls get_config("TEXT").

    Raises:
      InputError: there is no such file, it fails, or it does not return a ConfigDict.
    """
    path, *argument = path.split(":", 1)
    if not path:
        raise InputError("--config=FILE: a Python file with get_config() is needed")
    if path.endswith(".json"):
        raise InputError(f"{path}: a config is a Python file with get_config(), as configs/jpeglm_demo.py")
    module = types.ModuleType("config_file")
    module.__file__ = path
    sys.modules[module.__name__] = module  # dataclasses look it up there
    try:
        # Python's own loader handles the encoding of the source and caches the bytecode.
        importlib.machinery.SourceFileLoader(module.__name__, path).exec_module(module)
        make = getattr(module, "get_config", None)
        if make is None:
            raise InputError(f"{path}: it has no get_config()")
        config = make(*argument)
    except InputError:
        raise
    except OSError as error:
        if error.filename == path:
            raise InputError(f"cannot read the config {path}: {error.strerror or error}") from error
        raise InputError(f"{path}{_place(error, path)}: {type(error).__name__}: {error}") from error
    except (Exception, SystemExit) as error:
        raise InputError(f"{path}{_place(error, path)}: {type(error).__name__}: {_first_line(error)}") from error
    if not isinstance(config, ConfigDict):
        raise InputError(f"{path}: get_config() gives {type(config).__name__}, not a ConfigDict as base() does")
    return config


def _place(error: BaseException, path: str) -> str:
    """ ", line N" of the config file at which an error arose, or "" if it arose elsewhere."""
    if isinstance(error, SyntaxError):
        return f", line {error.lineno}" if error.filename == path and error.lineno else ""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    return f", line {lines[-1]}" if lines else ""


def _first_line(error: BaseException) -> str:
    # The rest of a KeyError of ml_collections is a list of all keys.
    text = str(error.args[0]) if error.args else ""
    return text.partition("\n")[0].partition(" Other fields present")[0][:200]


def parse(path: os.PathLike, text: bytes | str) -> ConfigDict:
    """Parses the `config.json` of a run into a locked config; keys newer than the file get their defaults.

    Args:
      path: for messages.
      text: of the file.

    Raises:
      InputError: it is not the config of a run, or a value is not allowed.
    """
    with reading(path, "config of a run"):
        stored = json.loads(text)
        if not isinstance(stored, dict):
            raise InputError(f"not the config of a run: {type(stored).__name__} instead of an object")
        stored = upgraded(stored)
        config = _defaults_for(stored)
        known = ranges.flat(config.to_dict())
        for key in ranges.flat(stored):
            if any(name.startswith(f"{key}.") for name in known):
                raise InputError(f"not the config of a run: config.{key} is a section")
            if key not in known:
                raise InputError(f"not the config of a run: config.{key}: no such key")
        try:
            config.update(stored)
        except (KeyError, TypeError) as error:
            raise InputError(f"not the config of a run: {_first_line(error)}") from error
        check(config)
    return config


def to_json(config: ConfigDict) -> str:
    """What `parse` reads."""
    return json.dumps({"version": VERSION} | config.to_dict(), indent=2) + "\n"


def upgraded(stored: dict[str, Any]) -> dict[str, Any]:
    """Brings the content of a config.json of an older version up to date; removes the version number.

    Version 0 (no version number) has no names of model and task, and version 1 has none of the tokenizer, because
    there was only one of each.

    Raises:
      InputError: the version is newer than this program.
    """
    stored = dict(stored)
    version = stored.pop("version", 0)
    if type(version) is not int or not 0 <= version <= VERSION:
        raise InputError(f"not the config of a run: version {version!r}, this program reads up to {VERSION}")
    for kinds, since in ((MODELS, 1), (TASKS, 1), (TOKENIZERS, 2)):
        section = stored.get(kinds.section, {})
        if version < since and isinstance(section, dict):
            stored[kinds.section] = {"name": kinds.default} | section
    return stored


def _defaults_for(stored: dict[str, Any]) -> ConfigDict:
    """`base()` with the sections of the codec, the tokenizer, the model and the task that are stored.

    Raises:
      InputError: an unknown tokenizer, model or task. `check` reports an unknown codec.
    """
    config = base()
    for kinds in (TOKENIZERS, MODELS, TASKS):
        if isinstance(section := stored.get(kinds.section), dict):
            config[kinds.section] = _defaults(kinds, section.get("name"))
    if isinstance(section := stored.get("codec"), dict) and section.get("name") in CODECS.names:
        config.codec = _defaults(CODECS, section["name"])
    return config
