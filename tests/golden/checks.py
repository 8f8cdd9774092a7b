"""What differs between the goldens and the numbers of today, a line for each."""

import base64
import json
import math
from pathlib import Path
from typing import Any

GOLDEN = Path(__file__).with_name("golden.json")
NEAR = 1e-4  # a draw is near to its threshold below this; logits agree to it across machines
LOSSES, CELLS = 1e-5, 1e-3  # relative differences that machines may have
COUNTED = ("num", "valid", "ended", "readable", "tokens", "valid_with_grammar", "fitted_tokens")  # means of counts
RENEW = 'if the change is meant: python -m tests.golden.renew "why", which writes the reason beside the numbers'


def golden() -> dict[str, Any]:
    """The committed goldens."""
    return json.loads(GOLDEN.read_text())


def of_shards(old: dict[str, str], new: dict[str, str]) -> list[str]:
    """Differences between the hashes of shards, by their names."""
    return _differences("shard", old, new, lambda name, was, now: was == now)


def of_losses(old: list[float], new: list[float]) -> list[str]:
    """Differences between the losses of two runs, step by step."""
    by_step = ({number: loss for number, loss in enumerate(side, 1)} for side in (old, new))
    return _differences("loss of step", *by_step, lambda step, was, now: math.isclose(was, now, rel_tol=LOSSES))


def of_cells(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Differences between the cells of two tables."""

    def is_same(name: str, was: float, now: float) -> bool:
        return was == now if name.endswith(COUNTED) else math.isclose(was, now, rel_tol=CELLS)

    flat = (
        {f"{row}, {key}": value for row, cells in side.items() for key, value in cells.items()} for side in (old, new)
    )
    return _differences("cell", *flat, is_same)


def of_files(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    """Sampled files that differ from the golden ones first where no draw was near.

    Each golden file has its near draws as [begin, end, margin]: the bytes of the token that was drawn, and by how
    much probabilities must change before another one is.
    """
    found = [f"sample {name}: only in {side}" for name, side in _unpaired(old, new)]
    for name in sorted(old.keys() & new.keys()):
        was, now = (base64.b64decode(side[name]["file"]) for side in (old, new))
        if was == now:
            continue
        first = first_difference(was, now)
        if not any(begin <= first <= end for begin, end, _ in old[name]["near"]):
            found.append(
                f"sample {name}: {old[name]['sha256']} before, {new[name]['sha256']} now; the files differ first in "
                f"byte {first} of {len(was)}, and only the draws at {old[name]['near']} were near"
            )
    return found


def first_difference(was: bytes, now: bytes) -> int:
    """The first byte in which two files differ; the length of the shorter one if the other begins with it."""
    pairs = enumerate(zip(was, now, strict=False))
    return next((place for place, (mine, other) in pairs if mine != other), min(len(was), len(now)))


def _unpaired(old: dict[Any, Any], new: dict[Any, Any]) -> list[tuple[Any, str]]:
    return [(name, "the golden") for name in old.keys() - new.keys()] + [
        (name, "today's") for name in new.keys() - old
    ]


def _differences(what: str, old: dict[Any, Any], new: dict[Any, Any], is_same: Any) -> list[str]:
    found = [f"{what} {name}: only in {side}" for name, side in _unpaired(old, new)]
    return found + [
        f"{what} {name}: {was} before, {new[name]} now"
        for name, was in old.items()
        if name in new and not is_same(name, was, new[name])
    ]
