"""Ranges of settings, as a test and in words; and suggestions for misspelt names."""

import dataclasses
import difflib
import numbers
from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np

from jpeglm.core.errors import InputError

INT32_MAX = 2**31 - 1
_FLOAT32_MAX, _FLOAT32_TINY = float(np.finfo(np.float32).max), float(np.finfo(np.float32).tiny)
_LONGEST = 80  # characters of a refused value that a message shows


@dataclasses.dataclass(frozen=True)
class Range:
    """A set of allowed values: a test, and the words that follow "KEY=VALUE: " in a message."""

    holds: Callable[[Any], bool]
    words: str


def whole(least: int, most: int = INT32_MAX, also: int | None = None) -> Range:
    """Integers from `least` to `most`, and `also`. Bools are not integers here."""

    def holds(value: Any) -> bool:
        is_whole = isinstance(value, numbers.Integral) and not isinstance(value, bool | np.bool_)
        return is_whole and (least <= value <= most or value == also)

    return Range(holds, f"a whole number from {least:,} to {most:,}" + ("" if also is None else f", or {also}"))


def real(
    above: float | None = None,
    least: float | None = None,
    below: float | None = None,
    most: float | None = None,
    also: float | None = None,
) -> Range:
    """Finite numbers within bounds, and `also`. Checked as float32, too, because devices compute in float32.

    0.99999999999 is 1 in float32, and 1e-40 is 0 on a device.
    """

    def is_within(value: float | np.float32) -> bool:
        low = (above is None or value > above) and (least is None or value >= least)
        high = (below is None or value < below) and (most is None or value <= most)
        return bool(value == also or (low and high))

    def holds(value: Any) -> bool:
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _FLOAT32_MAX:
            return False  # NaN compares as false
        rounded = np.float32(0 if abs(value) < _FLOAT32_TINY else value)
        return is_within(value) and is_within(rounded)

    low, to = (f"above {above:g}", ", up to") if least is None else (f"from {least:g}", " to")
    high = f"{to} {most:g}" if most is not None else f"{to} below {below:g}" if below is not None else ""
    return Range(holds, f"a finite number {low}{high}" + ("" if also is None else f", or {also:g}"))


def one_of(*names: str) -> Range:
    """One of these texts."""
    return Range(lambda value: isinstance(value, str) and value in names, f"one of {', '.join(map(repr, names))}")


def several(each: Range) -> Range:
    """A tuple or list of one or more."""

    def holds(values: Any) -> bool:
        return isinstance(values, tuple | list) and bool(values) and all(map(each.holds, values))

    return Range(holds, f"one or more in parentheses, each {each.words}")


TEXT = Range(lambda value: isinstance(value, str), "a text")
SWITCH = Range(lambda value: isinstance(value, bool), "True or False")
SEED = whole(0, 2**32 - 1)  # JAX takes the low 32 bits: a larger seed, or a negative one, would equal another
INTEGER = Range(whole(-INT32_MAX).holds, "a whole number of at most 32 bits")  # for kinds that check their own ranges


def check(prefix: str, values: Mapping[str, Any], ranges: Mapping[str, Range], optional: Collection[str] = ()) -> None:
    """Checks that every key is there, that none is unknown, and that every value is in its range.

    Args:
      prefix: put before each key in a message, such as "config.".
      values: by key, flat.
      ranges: by key, for all keys that are allowed.
      optional: keys that may be missing.

    Raises:
      InputError: the first value that is not allowed, in one line.
    """
    for key in values:
        if key not in ranges:
            raise InputError(f"{prefix}{key}: no such key{did_you_mean(key, ranges, prefix)}")
    for key, range_ in ranges.items():
        if key in values:
            check_one(f"{prefix}{key}", values[key], range_)
        elif key not in optional:
            raise InputError(f"{prefix}{key} is missing: {range_.words}")


def check_one(name: str, value: Any, range_: Range) -> None:
    """Raises InputError if the value is not in the range."""
    if not range_.holds(value):
        try:
            shown = value if isinstance(value, numbers.Real) else repr(value)
            shown = f"{shown}"
        except ValueError:  # Python refuses to print a number of thousands of digits
            shown = "(a number of thousands of digits)"
        shown = shown if len(shown) <= _LONGEST else shown[: _LONGEST - 3] + "..."
        raise InputError(f"{name}={shown}: {range_.words}")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"optim": {"lr": 1}} -> {"optim.lr": 1}."""
    items: dict[str, Any] = {}
    for key, value in tree.items():
        items |= flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return items


############################ Hints ############################

# Names that other programs of the field use for our keys and flags, without dashes, underscores and dots.
_SYNONYMS = {
    "lr": ("learningrate", "maxlr", "peaklr", "stepsize"),
    "final_lr_ratio": ("minlrratio", "minlr", "endlr", "finallr", "lrmin"),
    "warmup_steps": ("warmup", "warmupiters", "numwarmupsteps", "warmupratio"),
    "weight_decay": ("wd", "decay", "l2"),
    "clip_norm": ("gradclip", "maxgradnorm", "gradientclip", "gradclipnorm", "gradientclipping", "clip"),
    "b1": ("beta1", "adambeta1", "adamb1"),
    "b2": ("beta2", "adambeta2", "adamb2"),
    "batch_size": ("batch", "bs", "globalbatchsize", "trainbatchsize", "perdevicebatchsize"),
    "accumulate": ("gradaccum", "gradientaccumulationsteps", "accumsteps", "gradaccumsteps", "microbatches"),
    "steps": ("maxsteps", "numsteps", "trainsteps", "totalsteps", "maxiters", "numtrainsteps", "iterations"),
    "seq_len": ("seqlength", "sequencelength", "maxseqlen", "blocksize", "contextlength", "maxlength", "nctx"),
    "num_layers": ("layers", "nlayers", "nlayer", "depth", "numhiddenlayers", "numblocks"),
    "width": ("hiddensize", "dmodel", "dim", "nembd", "embeddim", "hiddendim", "modeldim"),
    "num_heads": ("heads", "nheads", "nhead", "numattentionheads"),
    "num_kv_heads": ("kvheads", "nkvheads", "numkeyvalueheads"),
    "ffn_width": ("intermediatesize", "dff", "mlpdim", "ffndim", "ffn", "feedforwarddim"),
    "norm_eps": ("rmsnormeps", "layernormeps", "epsilon"),
    "rope_theta": ("ropebase", "theta"),
    "remat": ("checkpointing", "gradientcheckpointing", "rematerialization", "rematpolicy"),
    "attention": ("attentionimpl", "attnimplementation", "attn", "flashattention"),
    "vocab_size": ("vocab", "nvocab", "vocabularysize"),
    "holdout": ("valfraction", "testsize", "validation", "evalfraction"),
    "every": ("evalevery", "evalinterval", "evalsteps", "saveevery", "savesteps", "loginterval", "logevery"),
    "keep": ("maxtokeep", "savetotallimit", "keeplast"),
    "seed": ("randomseed", "rngseed"),
    "height": ("imagesize", "size", "resolution", "imagesizes"),
    "workdir": ("outputdir", "logdir", "rundir", "run", "checkpoint", "ckpt", "checkpointdir", "model", "modeldir"),
    "out": ("output", "outputdir", "outdir", "savedir", "dst", "target", "destination"),
    "images": ("source", "input", "inputs", "pictures", "prompts", "data", "dataset", "clips", "inputdir"),
    "source": ("images", "input", "inputs", "pictures", "data", "dataset", "clips", "inputdir", "src"),
    "real": ("reference", "originals", "ref", "images", "source", "gt"),
    "fake": ("generated", "samples", "gen", "out"),
    "data.path": ("data", "dataset", "datadir", "source", "images", "path"),
    "data": ("dataset", "datadir", "source", "images"),
    "num": ("n", "numsamples", "numimages", "limit", "count"),
    "samples": ("numsamples", "n", "numcompletions"),
    "temperature": ("temp", "t"),
    "top_k": ("k",),
    "top_p": ("p", "nucleus"),
    "max_tokens": ("maxlength", "maxnewtokens", "maxlen"),
    "slots": ("batchsize", "batch", "bs"),
    "workers": ("numworkers", "jobs", "threads", "processes", "nproc", "j"),
    "step": ("ckptstep", "checkpointstep", "checkpoint"),
    "topology": ("tpu", "gpu", "device", "devices", "accelerator"),
}


def _plain(name: str) -> str:
    return name.replace("-", "").replace("_", "").replace(".", "").lower()


def did_you_mean(name: str, known: Collection[str], prefix: str = "") -> str:
    """A hint such as "; did you mean optim.lr?" for a name that is not known, or "".

    It looks first for names that are equal except for dots and dashes, then for names with the same last part (`lr`
    for `optim.lr`) and for synonyms of the field, then for the most similar spelling. Names in the same section come
    first.

    Args:
      prefix: put before each name in the hint.
    """
    section, _, last = name.rpartition(".")
    parts = {other: _plain(other.rpartition(".")[2]) for other in known}
    in_section = [other for other in known if other.rpartition(".")[0] == section]
    ours = {key for key, theirs in _SYNONYMS.items() if _plain(last) in theirs or _plain(name) in theirs}
    found = [other for other in known if _plain(other) == _plain(name)]
    if not found:
        is_called_so = lambda other: any(f".{other}".endswith(f".{key}") for key in ours)  # noqa: E731
        found = [other for other in known if parts[other] == _plain(last) or is_called_so(other)]
        found = [other for other in found if other in in_section] or found
    for group in (in_section, known):
        if not found:
            close = difflib.get_close_matches(_plain(last), [parts[other] for other in group], 1)
            found = [other for other in group if [parts[other]] == close]
    return f"; did you mean {' or '.join(prefix + other for other in found[:3])}?" if found else ""
