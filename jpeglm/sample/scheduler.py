"""Which request sits in which slot: a queue that forms batches of prompts, and lanes that decode them.

A lane has slots of its own and runs until the queue is empty: it takes a batch, prefills it, seats its prompts in free
slots, decodes until some are done, and refills those slots at once. Several lanes share a queue.
"""

import dataclasses
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from typing import Any, NamedTuple

import jax
import numpy as np

from jpeglm.core.errors import InputError
from jpeglm.data.codecs.grammar import Place
from jpeglm.sample.filters import NOT_FINITE
from jpeglm.sample.grammar import Rules
from jpeglm.sample.programs import LONGEST_CALL, Arrivals, Programs, Slots, bucket

LOOKAHEAD = 4  # times the slots of a lane: how many requests of other buckets are read before a batch is taken
REFILL = 8  # decoding stops for refilling when one of so many slots is done


@dataclasses.dataclass(frozen=True)
class Request:
    """One sequence to continue.

    prompt: ids, BOS first. key: two uint32; the draws depend on nothing else. place: the grammar's state after it.
    """

    prompt: np.ndarray
    key: np.ndarray
    place: Place | None = None


class Written(NamedTuple):
    """The result of one request.

    Attributes:
      number: of the request.
      ids: generated ones, int32 [n], without EOS.
      ended: whether EOS came; with a grammar, also that the token budget never removed a legal token.
      removed: the mean share of the model's probability that the grammar removed per token; None without one.
      log_likelihood: ln p of the generated ids, EOS included, by the model alone: at temperature 1, without filters.
    """

    number: int
    ids: np.ndarray
    ended: bool
    removed: float | None
    log_likelihood: float


class Waiting(NamedTuple):
    """A request whose prompt is prefilled, or is about to be, as one row of a batch."""

    number: int
    request: Request
    row: int


class Batch(NamedTuple):
    """Requests whose prompts are prefilled together. Equal prompts share a row."""

    size: int  # bucket of the prompts without their last ids
    prompts: list[np.ndarray]  # of each row, without its last id
    waiting: deque[Waiting]


class Queue:
    """The requests that no lane has taken yet. They are read when needed, by whichever lane asks."""

    def __init__(self, requests: Iterable[Request], programs: Programs, limit: int, check: Callable[[Request], None]):
        """
        Args:
          limit: the most tokens of a sequence.
          check: raises TooLong for a request that leaves no room.
        """
        self._requests, self._programs, self._limit, self._check = enumerate(requests), programs, limit, check
        self._ahead: deque[tuple[int, Request]] = deque()  # read, but not of the bucket that was asked for
        self._lock = threading.Lock()

    def take(self) -> Batch | None:
        """The next batch: the oldest request, and further ones of its bucket. None if there is no request left.

        At most as many as a lane has slots, so that other lanes get theirs.
        """
        with self._lock:
            ahead, self._ahead = self._ahead, deque()
            batch: Batch | None = None
            rows: dict[bytes, int] = {}
            while (following := ahead.popleft() if ahead else self._read()) is not None:
                number, request = following
                size = bucket(len(request.prompt) - 1, self._limit)
                batch = batch or Batch(size, [], deque())
                prompt = request.prompt[:-1]
                row = rows.get(prompt.tobytes(), len(rows))
                if size == batch.size and row < self._programs.rows(size):
                    if row == len(rows):
                        rows[prompt.tobytes()] = row
                        batch.prompts.append(prompt)
                    batch.waiting.append(Waiting(number, request, row))
                else:
                    self._ahead.append(following)
                slots = self._programs.slots
                if len(batch.waiting) == slots or len(self._ahead) + len(ahead) >= LOOKAHEAD * slots:
                    break
            self._ahead.extend(ahead)
            return batch

    def _read(self) -> tuple[int, Request] | None:
        following = next(self._requests, None)
        if following is not None:
            self._check(following[1])
        return following


@dataclasses.dataclass
class _Running:
    """A request in a slot."""

    number: int
    length: int  # of the sequence so far, the prompt included
    pieces: list[np.ndarray] = dataclasses.field(default_factory=list)  # ids, call by call


class Lane:
    """Slots on the device, and the requests that they hold."""

    def __init__(self, programs: Programs, params: Any, rules: Rules | None, limit: int, eos: int, name: str):
        """
        Args:
          limit: the most tokens of a sequence.
          eos: the id that ends one.
          name: of the weights, for messages.
        """
        self._programs, self._params, self._rules = programs, params, rules
        self._limit, self._eos, self._name = limit, eos, name

    def run(self, queue: Queue) -> Generator[list[Written]]:
        """Yields, after each call of `decode`, the results of the requests that are done, possibly none.

        Raises:
          InputError: logits are not finite.
          TooLong: from the queue's check.
        """
        programs = self._programs
        self._running: dict[int, _Running] = {}
        self._capacity = programs.capacities[0]
        slots = programs.start(self._capacity)
        waiting: deque[Waiting] = deque()
        caches, has_more = None, True
        while True:
            while len(self._running) < programs.slots and (waiting or has_more):
                if not waiting:
                    batch = queue.take()
                    if batch is None:
                        has_more = False
                        break
                    size, waiting = batch.size, batch.waiting
                    caches = self._prefill(batch)
                slots = self._seat(slots, caches, size, waiting)
            if not self._running:
                return
            slots, finished = self._decode(slots, bool(waiting) or has_more)
            yield finished

    def _prefill(self, batch: Batch) -> Any:
        rows = self._programs.rows(batch.size)
        prompts, lengths = np.zeros((rows, batch.size), np.int32), np.ones(rows, np.int32)
        for row, prompt in enumerate(batch.prompts):
            prompts[row, : len(prompt)] = prompt
            lengths[row] = len(prompt)
        return self._programs.prefill(self._params, prompts, lengths)

    def _seat(self, slots: Slots, caches: Any, size: int, waiting: deque[Waiting]) -> Slots:
        """Seats as many of `waiting` as there are free slots, and removes them from it."""
        number = self._programs.slots
        free = [slot for slot in range(number) if slot not in self._running][: len(waiting)]
        arrived = [waiting.popleft() for _ in free]
        requests = [each.request for each in arrived]
        for slot, (sequence, request, _) in zip(free, arrived, strict=True):
            self._running[slot] = _Running(sequence, len(request.prompt))
        filled = [*range(len(arrived)), *[0] * (number - len(arrived))]  # entries that do not count repeat the first
        arrivals = Arrivals(
            number=np.int32(len(arrived)),
            rows=np.array([arrived[n].row for n in filled], np.int32),
            seats=np.array([*free, *[number] * (number - len(free))], np.int32),
            last=np.array([requests[n].prompt[-1] for n in filled], np.int32),
            lengths=np.array([len(requests[n].prompt) for n in filled], np.int32),
            keys=np.stack([requests[n].key for n in filled]),
            places=jax.tree.map(lambda *values: np.stack(values), *(requests[n].place for n in filled))
            if self._rules
            else None,
        )
        slots = self._with_capacity(slots, max(size, *(each.length for each in self._running.values())))
        return self._programs.seat(slots, caches, arrivals)

    def _with_capacity(self, slots: Slots, least: int) -> Slots:
        """The slots with the smallest capacity for `least` tokens; a larger one stays until it is four times that."""
        fitting = next(size for size in self._programs.capacities if size >= least)
        if fitting > self._capacity or 4 * least <= self._capacity:
            slots = self._programs.resize(slots, fitting) if fitting != self._capacity else slots
            self._capacity = fitting
        return slots

    def _decode(self, slots: Slots, has_more: bool) -> tuple[Slots, list[Written]]:
        """Some steps, and the results of the sequences that are done after them."""
        programs, running = self._programs, self._running
        longest = max(each.length for each in running.values())
        slots = self._with_capacity(slots, longest)
        # The cache must hold all but the last token of each sequence. The shortest budget ends a call, too.
        most = min(self._limit - longest, self._capacity - longest + 1, LONGEST_CALL)
        idle = programs.slots - len(running)
        enough = idle + max(1, programs.slots // REFILL) if has_more else programs.slots
        slots, drawn = programs.decode(self._params, self._rules, slots, most, min(enough, programs.slots))
        ids, after = jax.device_get((drawn, dataclasses.replace(slots, caches=None)))
        if not all(after.finite[slot] for slot in running):
            raise InputError(f"{self._name}: {NOT_FINITE}")
        for slot, each in running.items():
            each.pieces.append(ids[slot, : after.lengths[slot] - each.length])
            each.length = int(after.lengths[slot])
        return slots, [self._written(slot, after) for slot in list(running) if after.done[slot]]

    def _written(self, slot: int, after: Slots) -> Written:
        """The result of a slot that is done, which is then free."""
        each = self._running.pop(slot)
        ids = np.concatenate(each.pieces)
        written = ids[:-1] if ids[-1] == self._eos else ids
        ended, removed = len(written) < len(ids), None
        if after.walks:
            ended = ended and not after.walks.was_cut[slot]
            removed = float(after.walks.removed[slot]) / len(ids)
        return Written(each.number, written, ended, removed, float(after.log_likelihood[slot]))
