"""Decodes many requests with one set of parameters: continuous batching over a fixed number of slots.

A draw depends only on its request and position, so a sequence does not depend on its neighbours or on its place in the
queue. With a grammar, each step draws only from the tokens that it allows; see grammar.py. The parts: scheduler.py
decides which request sits where, programs.py has what is compiled, filters.py the way from logits to a token.
"""

import concurrent.futures
import contextlib
import copy
import os
import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.models import Model, networks
from jpeglm.sample.grammar import TokenGrammar
from jpeglm.sample.programs import Programs, bucket
from jpeglm.sample.scheduler import Lane, Queue, Request, Written
from jpeglm.sample.settings import Settings
from jpeglm.sample.too_long import TooLong

LARGEST_IN_LANES = 32 << 20  # bytes of parameters


class Engine:
    """Decodes many requests with one set of parameters.

    Args:
      model: the trained model.
      params: pure dict of its parameters, sharded on `mesh`; or their shapes, for an engine that is only lowered.
      mesh: slots and heads are sharded over it.
      eos: the id that ends a sequence.
      grammar: of the files, or None.
      name: of the weights, for messages.
    """

    def __init__(
        self,
        model: Model,
        params: Any,
        mesh: Mesh,
        settings: Settings,
        eos: int,
        grammar: TokenGrammar | None = None,
        name: str = "sampling",
    ):
        self._model = model.for_decoding()
        self._mesh = mesh
        self._name = name
        self._eos = eos
        self._give(grammar)
        layout = sharding.parameter_shardings(networks.abstract(self._model)[1], mesh)
        prepare = jax.jit(model.decoding_parameters, out_shardings=layout)
        is_abstract = isinstance(jax.tree.leaves(params)[0], jax.ShapeDtypeStruct)
        self._params = prepare.eval_shape(params) if is_abstract else prepare(params)
        self._set(settings)

    def with_settings(self, settings: Settings, grammar: TokenGrammar | None = None) -> "Engine":
        """An engine with the same parameters (not copied), other settings and, if it had none, a grammar."""
        other = copy.copy(self)
        if grammar:
            other._give(grammar)
        other._set(settings)
        return other

    @property
    def weights(self) -> tuple[Model, Any, Mesh]:
        """The decoding model, its parameters and their mesh."""
        return self._model, self._params, self._mesh

    def _give(self, grammar: TokenGrammar | None) -> None:
        whole = NamedSharding(self._mesh, PartitionSpec())
        self._grammar_and_rules = grammar, jax.device_put(grammar.rules, whole) if grammar else None

    def _set(self, settings: Settings) -> None:
        members = sharding.num_parts(self._mesh, "batch")
        if settings.slots % members:
            raise InputError(f"slots={settings.slots} do not divide over {members} devices")
        self.settings = settings
        self._grammar, self._rules = self._grammar_and_rules if settings.grammar else (None, None)
        self._lanes = min(settings.slots, _lanes(self._mesh, self._params))
        slots = -(-settings.slots // self._lanes)
        self._programs = Programs(self._model, self._mesh, settings, slots, self._eos, self._grammar)

    def lower_prefill(self, length: int) -> jax.stages.Lowered:
        """The program that prefills prompts of this length, not compiled yet."""
        return self._programs.lower_prefill(self._params, bucket(length - 1, self.settings.max_tokens))

    def lower_step(self) -> jax.stages.Lowered:
        """One decoding step of all slots of a lane, with the largest caches; not compiled yet."""
        return self._programs.lower_step(self._params, self._rules)

    def generate(self, requests: Iterable[Request]) -> Generator[Written]:
        """Yields the result of each request, in the order in which they finish.

        `requests` is read when slots are free, a bounded number ahead, and possibly by another thread.

        Raises:
          InputError: logits are not finite, whatever the settings.
          TooLong: a prompt that leaves no room.
        """
        waiting = Queue(requests, self._programs, self.settings.max_tokens, self.check)
        lanes = [
            Lane(self._programs, self._params, self._rules, self.settings.max_tokens, self._eos, self._name)
            for _ in range(self._lanes)
        ]
        runs = [lane.run(waiting) for lane in lanes]
        with contextlib.closing(_merged(runs) if len(runs) > 1 else runs[0]) as results:
            for written in results:
                yield from written

    def check(self, request: Request) -> None:
        """Raises TooLong if a prompt leaves no room for a token, or with a grammar for a complete file."""
        length, limit = len(request.prompt), self.settings.max_tokens
        if not 0 < length < limit:
            raise TooLong(f"a prompt of {length} tokens leaves no room within max_tokens={limit}")
        if self._grammar and (least := length + int(self._grammar.tokens_needed(request.place))) > limit:
            raise TooLong(
                f"to become a whole file, a prompt of {length} tokens needs max_tokens={least} or more; "
                "without the grammar nothing is promised or refused"
            )


def _lanes(mesh: Mesh, params: Any) -> int:
    """How many threads decode at the same time, each with slots of its own.

    The steps of a small model keep only one core of a CPU busy, so each core gets a lane. The products of a large one
    use all cores, and each lane would read its parameters again. An accelerator is one lane.
    """
    if mesh.size > 1 or mesh.devices.flat[0].platform != "cpu":
        return 1
    size = sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(params))
    return len(os.sched_getaffinity(0)) if size <= LARGEST_IN_LANES else 1


def _merged(lanes: list[Generator[list[Written]]]) -> Generator[list[Written]]:
    """What several iterators yield, each run by a thread of its own, as it comes.

    A thread waits while `len(lanes)` results are not taken. The first error of any is raised, after all have stopped.
    """
    results: queue.Queue[list[Written] | BaseException | None] = queue.Queue(len(lanes))
    stopped = threading.Event()

    def put(result: list[Written] | BaseException | None) -> None:
        while not stopped.is_set():
            with contextlib.suppress(queue.Full):
                return results.put(result, timeout=0.1)

    def run(lane: Generator[list[Written]]) -> None:
        try:
            for written in lane:
                put(written)
                if stopped.is_set():
                    return
        except BaseException as error:
            put(error)
        else:
            put(None)

    with concurrent.futures.ThreadPoolExecutor(len(lanes)) as threads:
        for lane in lanes:
            threads.submit(run, lane)
        try:
            running = len(lanes)
            while running:
                result = results.get()
                if isinstance(result, BaseException):
                    raise result
                if result is None:
                    running -= 1
                else:
                    yield result
        finally:
            stopped.set()
