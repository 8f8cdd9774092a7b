"""Chooses what to compile for a target: one program, or a search for the fastest step or the most slots that fit."""

import contextlib
import math
import time
from collections.abc import Iterator

from absl import logging
from ml_collections import ConfigDict
from tabulate import tabulate

from jpeglm.aot.cost import Cost, decode_cost, prefill_cost, sampling_peak, train_cost
from jpeglm.aot.report import microbatch_words, peak_words
from jpeglm.aot.roofline import Roofline, compute_seconds
from jpeglm.aot.target import Target
from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.core.human import human_seconds
from jpeglm.core.registry import MODELS

SPARE = 0.1  # share of the memory to leave free
MOST_SLOTS = 4096


class Tries:
    """Logs before each compilation what is compiled and how many may follow, and afterwards how long it took."""

    def __init__(self, at_most: int):
        self.at_most, self._number = at_most, 0

    def still(self, at_most: int) -> None:
        """Sets the limit: at most this number of compilations is left."""
        self.at_most = self._number + at_most

    @contextlib.contextmanager
    def next(self, what: str) -> Iterator[None]:
        """Logs one compilation, which happens inside the block. `what`: names it."""
        self._number += 1
        logging.info("try %d of at most %d: %s", self._number, self.at_most, what)
        started = time.monotonic()
        yield
        logging.info("try %d took %s", self._number, human_seconds(time.monotonic() - started))


def try_train(config: ConfigDict, target: Target) -> tuple[ConfigDict, Cost, dict[str, int]]:
    """Compiles only the config's own step. The result is as of `search_train`, with an empty dict at the end."""
    with Tries(1).next("the step"):
        return config, train_cost(config, target), {}


def search_train(config: ConfigDict, target: Target) -> tuple[ConfigDict, Cost, dict[str, int]]:
    """Finds the microbatch and the remat policy with the least time by the roofline, among those that fit.

    Policies are tried from the least memory to the least computation. A microbatch that does not fit with one policy
    is not tried with the next. The config's own `optim.accumulate` and `model.remat` are ignored.

    Returns:
      the config with both, its cost, and the largest microbatch that fits, by policy: chunks per part of the mesh axes
      over which the batch is sharded.

    Raises:
      InputError: the batch does not divide over the mesh, or nothing fits with SPARE of the memory left free.
    """
    mesh = target.mesh(config.mesh)
    sharding.check_divides(_with(config, accumulate=1), mesh)
    each = config.optim.batch_size // sharding.num_parts(mesh, "batch")
    sizes = [each // parts for parts in reversed(sharding.microbatches_that_fit(each, 1))]
    policies = MODELS.of(config).REMAT_POLICIES
    tries = Tries(len(sizes) + len(policies) - 1)
    tried, largest, best = [], {}, None
    for policy in policies:
        while sizes and policy not in largest:
            trial = _with(config, accumulate=each // sizes[-1], remat=policy)
            with tries.next(f"remat {policy}, {microbatch_words(sizes[-1], mesh)}"):
                cost, words = _fitting(trial, target)
            if cost is None:
                tried.append((policy, trial.optim.accumulate, words, ""))
                sizes.pop()
                continue
            bound = Roofline(target.chip, compute_seconds(trial, target), cost).bound
            tried.append((policy, trial.optim.accumulate, words, human_seconds(bound)))
            largest[policy] = sizes[-1]
            if best is None or bound < best[0]:
                best = bound, trial, cost
    headers = ["remat", "microbatches", "peak", "least time of a step"]
    logging.info("tried, largest microbatch first:\n%s", tabulate(tried, headers, tablefmt="plain"))
    if best is None:
        raise InputError(f"{target.name}: no microbatch and no remat policy fits with {SPARE:.0%} to spare")
    return best[1], best[2], largest


def _with(config: ConfigDict, accumulate: int, remat: str | None = None) -> ConfigDict:
    """A copy of the config with these values."""
    changed = ConfigDict(config.to_dict())
    changed.optim.accumulate = accumulate
    if remat and "remat" in changed.model:
        changed.model.remat = remat
    return changed


def _fitting(trial: ConfigDict, target: Target) -> tuple[Cost | None, str]:
    """The cost of a step, or None if it does not leave SPARE of the memory free; and in words what it needs."""
    try:
        cost = train_cost(trial, target)
    except InputError as error:
        if not str(error).startswith("does not fit"):
            raise
        return None, str(error)
    return cost if cost.peak <= (1 - SPARE) * target.chip.memory else None, peak_words(cost.peak, target.chip)


def try_slots(config: ConfigDict, target: Target, slots: int) -> tuple[int, Cost, Cost]:
    """Compiles for this number of slots only. The result is as of `search_slots`."""
    tries = Tries(2)
    with tries.next("prefill"):
        prefill = prefill_cost(config, target, slots)
    with tries.next(f"decoding, {slots} slots"):
        return slots, prefill, decode_cost(config, target, slots)


def search_slots(config: ConfigDict, target: Target) -> tuple[int, Cost, Cost]:
    """Finds the most slots that fit with SPARE of the memory left free: a power of two for each part of the batch.

    Returns:
      the number of slots, the cost of a prefill, and the cost of a decoding step.

    Raises:
      InputError: not even one slot for each part of the batch fits.
    """
    limit = (1 - SPARE) * target.chip.memory
    mesh = sharding.inference_mesh(MODELS.of(config).tensor_parallelism, True, target.devices)
    least = sharding.num_parts(mesh, "batch")
    tries = Tries(3 + max(0, int(math.log2(MOST_SLOTS / (2 * least)))))
    steps: dict[int, Cost] = {}

    def step_of(slots: int) -> Cost:
        if slots not in steps:
            with tries.next(f"decoding, {slots} slots"):
                steps[slots] = decode_cost(config, target, slots)
        return steps[slots]

    with tries.next("prefill"):
        prefill = prefill_cost(config, target, least)
    first, second = (sampling_peak(prefill, step_of(slots)) for slots in (least, 2 * least))
    if first > limit:
        raise InputError(f"{target.name}: not even {least} slot(s) fit with {SPARE:.0%} to spare")
    # Almost only the caches grow with the slots, and linearly, so two sizes are enough to extrapolate the limit.
    each, slots = (second - first) / least, 2 * least
    while 2 * slots <= MOST_SLOTS and first + each * (2 * slots - least) <= limit:
        slots *= 2
    tries.still(round(math.log2(slots / (2 * least))))
    while slots > least and sampling_peak(prefill, step_of(slots)) > limit:
        slots //= 2
    return slots, prefill, steps[slots]
