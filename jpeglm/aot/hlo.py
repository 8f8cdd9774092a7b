"""Reads a compiled program's text (HLO) for its network and memory traffic, taking loops into account.

XLA's own cost analysis counts the body of a loop only once and does not name mesh axes. The text has both: how often
each loop runs, and which devices take part in each collective.

A program compiled for several TPU slices is the program of one slice: its collectives stay inside the slice, and
devices are numbered within it. Data for other slices goes through the hosts, in pairs of send and recv whose
attributes name a collective of libtpu's megascale runtime.
"""

import collections
import dataclasses
import re
from collections.abc import Iterator

import numpy as np
from jax.sharding import Mesh

SLICES = "slices"  # takes the place of mesh axes for communication between slices
COLLECTIVES = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute")
# Operations without traffic of their own: they name, regroup or wait for arrays, or call computations whose
# instructions are counted instead.
MOVES_NOTHING = {
    "parameter", "constant", "iota", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id",
    "replica-id", "while", "call", "conditional", "opt-barrier", "async-start", "async-update", "async-done",
    "copy-done", "slice-done", "dynamic-slice-done", "all-gather-done", "all-reduce-done", "collective-permute-done",
    "send-done", "recv-done",
}  # fmt: skip
BYTES = {"pred": 1, "s4": 0.5, "u4": 0.5, "bf16": 2, "token": 0}

_COMPUTATION = re.compile(r"(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"\s+(ROOT )?%?([\w.\-]+) = (\(.*?\)|\S+) ([a-z][\w\-]*)\((.*)$")
_ARRAY = re.compile(r"\b([a-z]\w*)\[([\d,]*)\](\{[^}]*\})?")
_IN_VMEM = re.compile(r"S\([1-9]\)")  # in a layout: the array is not in the chip's main memory
_CALLED = re.compile(
    r"(?:calls|body|condition|branch_computations|to_apply|called_computations)=(\{[^}]*\}|%?[\w.\-]+)"
)
_SLICED = {"dynamic-slice", "slice", "gather"}
_REPLACING = {"dynamic-update-slice": 1, "scatter": 2}  # update in place; the index of the operand that is written
# Megascale's names of the collectives. It numbers the devices of slice s from s * _IDS_A_SLICE on.
_TRANSFERS = {
    "ALL_GATHER": "all-gather", "ALL_REDUCE": "all-reduce", "REDUCE_SCATTER": "reduce-scatter",
    "ALL_TO_ALL": "all-to-all", "ONE_TO_ONE": "collective-permute",
}  # fmt: skip
_IDS_A_SLICE = 100_000


@dataclasses.dataclass(frozen=True)
class Collective:
    """One communication of a program.

    Attributes:
      kind: one of COLLECTIVES.
      axes: names of the mesh axes along which data is sent, or only SLICES.
      bytes: bytes that one device sends each time, with ring algorithms. For an array of `size` bytes and n devices:
        (n-1)/n * size for all-gather, reduce-scatter and all-to-all, twice that for all-reduce, and `size` for
        collective-permute.
      times: how often the program runs it.
      is_overlapped: whether the device can compute meanwhile; otherwise it waits.
    """

    kind: str
    axes: tuple[str, ...]
    bytes: float
    times: int
    is_overlapped: bool


@dataclasses.dataclass(frozen=True)
class _Instruction:
    is_root: bool
    name: str
    shape: str
    operation: str
    operands: tuple[str, ...]
    rest: str  # operands and attributes

    @property
    def called(self) -> list[str]:
        return [name.strip(" %") for names in _CALLED.findall(self.rest) for name in names.strip("{}").split(",")]


class Program:
    """A compiled program, read from its text: `Program(compiled.as_text())`."""

    def __init__(self, text: str):
        self._computations: dict[str, dict[str, _Instruction]] = {}
        self._entry, current = "", {}
        for line in text.splitlines():
            if head := _COMPUTATION.match(line):
                current = self._computations.setdefault(head[2], {})
                self._entry = head[2] if head[1] else self._entry
            elif found := _INSTRUCTION.match(line):
                root, name, shape, operation, rest = found.groups()
                operands = tuple(re.findall(r"%([\w.\-]+)", _until_closed(rest)))
                current[name] = _Instruction(bool(root), name, shape, operation, operands, rest)

    def collectives(self, mesh: Mesh) -> list[Collective]:
        """Every communication between devices, with the number of times that it runs. `mesh`: of one slice.

        A collective that the compiler overlaps with matrix products appears in several fusions, from its start to its
        end, with the same attributes. It is counted once.

        Raises:
          ValueError: the text has a form that is not known here.
        """
        found: dict[str | _Instruction, Collective] = {}
        for _, instruction, times in self._walk(self._entry, 1, into_fusions=True):
            if instruction.operation == "send":
                found[instruction] = _between_slices(instruction, times)
                continue
            kind = instruction.operation.removesuffix("-start")
            if kind not in COLLECTIVES:
                continue
            groups = _groups(instruction, mesh)
            n = groups.shape[1]
            if n == 1:
                continue
            sizes = [_bytes(array) for array in _arrays(instruction.shape)]
            if instruction.operation == "collective-permute-start":  # the operand, the result, two tokens
                sizes = sizes[1:2]
            elif instruction.operation != kind and kind != "all-reduce":
                sizes = sizes[len(sizes) // 2 :]  # the first half are the operands
            whole = sum(sizes) * (n if kind == "reduce-scatter" else 1)
            share = {"all-reduce": 2 * (n - 1) / n, "collective-permute": 1}.get(kind, (n - 1) / n)
            is_fused = "chain_id=" in instruction.rest  # with matrix products
            key = re.sub(r"\A.*?\), |backend_config=.*", "", instruction.rest) if is_fused else instruction
            is_overlapped = is_fused or instruction.operation != kind
            found[key] = Collective(kind, _axes(groups, mesh), share * whole, times, is_overlapped)
        return list(found.values())

    def memory_traffic(self) -> float:
        """Bytes that one device reads from and writes to its main memory in one run.

        The sum over the operands and results of each instruction. Instructions inside a fusion and arrays in a TPU's
        VMEM do not count. If an array is sliced, only the slice counts, as in XLA's cost analysis. A hand-written
        kernel counts as if it read and wrote each array once.

        Raises:
          ValueError: the text has a form that is not known here.
        """
        total = 0.0
        for computation, instruction, times in self._walk(self._entry, 1, into_fusions=False):
            if instruction.operation not in MOVES_NOTHING and "AllocateBuffer" not in instruction.rest:
                total += times * self._traffic(computation, instruction)
        return total

    def kernels(self) -> int:
        """How many hand-written kernels (custom calls to Mosaic or Triton) a run launches."""
        walk = self._walk(self._entry, 1, into_fusions=True)
        return sum(
            times for _, i, times in walk if re.search('custom_call_target="(tpu_custom_call|.*triton.*)"', i.rest)
        )

    def _walk(self, name: str, times: int, into_fusions: bool) -> Iterator[tuple[str, _Instruction, int]]:
        """Yields (computation, instruction, times) for all that runs, including each branch of a conditional."""
        for instruction in self._computations[name].values():
            yield name, instruction, times
            operation = instruction.operation
            follow = {"while", "call", "conditional", "async-start"} | ({"fusion"} if into_fusions else set())
            if operation in follow:  # callees of others, such as reductions and sorts, only combine two numbers
                inner = times * (self._trips(name, instruction) if operation == "while" else 1)
                for called in instruction.called:
                    yield from self._walk(called, inner, into_fusions)

    def _trips(self, computation: str, loop: _Instruction) -> int:
        """How often a loop runs: as XLA states, or else the bound of its comparison minus the counter's start."""
        if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop.rest):
            return int(known[1])
        condition = self._computations[re.findall(r"condition=%?([\w.\-]+)", loop.rest)[0]]
        bounds = [value for i in condition.values() if (value := _constant(i)) is not None]
        compared = [i for i in condition.values() if "direction=LT" in i.rest]
        start = self._start(computation, loop, condition, compared[0]) if len(compared) == 1 else None
        if len(bounds) != 1 or start is None:
            raise ValueError(f"{loop.name}: a loop whose number of rounds the program does not tell")
        return bounds[0] - start

    def _start(
        self, computation: str, loop: _Instruction, condition: dict[str, _Instruction], compared: _Instruction
    ) -> int | None:
        """The counter before the first iteration, which is 1 if the compiler has moved one before the loop.

        None if it cannot be found.
        """
        counter = condition.get(compared.operands[0])
        place = counter and re.search(r"index=(\d+)", counter.rest)
        around = self._computations[computation]
        found = around.get(loop.operands[0])
        if place and found and found.operation == "tuple":
            found = around.get(found.operands[int(place[1])])
        while found and found.operation in ("copy", "bitcast"):
            found = around.get(found.operands[0])
        return _constant(found) if found else None

    def _traffic(self, computation: str, instruction: _Instruction) -> float:
        known = self._computations[computation]
        shapes = [known[operand].shape for operand in instruction.operands if operand in known]
        if instruction.operation in _SLICED:
            return 2 * _main_memory(instruction.shape)
        if instruction.operation in _REPLACING:
            return 2 * _main_memory(shapes[_REPLACING[instruction.operation]])
        if instruction.operation == "copy-start":  # results: the copy, the original, a token
            return sum(map(_main_memory, _arrays(instruction.shape)[:2]))
        if instruction.operation in ("send", "recv"):  # results: the array, a handle, a token
            return _main_memory(_arrays(instruction.shape)[0])
        if instruction.operation in ("slice-start", "dynamic-slice-start"):  # operands, the slice, a token
            part = _arrays(instruction.shape)[len(shapes)]
            return (_bytes(part) if _main_memory(shapes[0]) else 0.0) + _main_memory(part)
        if instruction.operation != "fusion":
            return _main_memory(instruction.shape) + sum(map(_main_memory, shapes))
        inside = self._computations[instruction.called[0]]
        total = 0.0
        for number, shape in enumerate(shapes):
            whole = _main_memory(shape)
            total += whole and min(whole, self._read(inside, _parameter(inside, number), whole))
        root = next(i for i in inside.values() if i.is_root)
        results = [inside[name] for name in root.operands] if root.operation == "tuple" else [root]
        arrays = _arrays(instruction.shape)
        if len(results) != len(arrays):  # some fusions also return scratch memory or an operand
            return total + _main_memory(instruction.shape)
        for result, array in zip(results, arrays, strict=True):
            whole = _main_memory(array)
            total += whole and min(whole, self._written(inside, result, whole))
        return total

    def _read(self, inside: dict[str, _Instruction], name: str, whole: float) -> float:
        """Bytes that a fusion reads of an array of `whole` bytes; fewer if its users only take slices of it."""
        total = 0.0
        for user in inside.values():
            if name not in user.operands:
                continue
            if user.operation in _SLICED and name not in user.operands[1:]:
                total += _bytes(user.shape)
            elif user.operation == "bitcast":
                total += self._read(inside, user.name, whole)
            elif user.operation == "fusion":
                inner = self._computations[user.called[0]]
                total += self._read(inner, _parameter(inner, user.operands.index(name)), whole)
            elif user.operation not in _REPLACING or name in user.operands[1:]:
                return whole
        return total

    def _written(self, inside: dict[str, _Instruction], result: _Instruction, whole: float) -> float:
        """Bytes that a fusion writes of a result of `whole` bytes; fewer if it only updates a part of an array."""
        if result.operation in _REPLACING:
            return _bytes(inside[result.operands[_REPLACING[result.operation]]].shape)
        if result.operation == "bitcast":
            return self._written(inside, inside[result.operands[0]], whole)
        if result.operation == "fusion":
            inner = self._computations[result.called[0]]
            return self._written(inner, next(i for i in inner.values() if i.is_root), whole)
        return whole


def by_axis(found: list[Collective]) -> dict[str, float]:
    """Bytes that one device sends in one run, by mesh axes ("fsdp", or "data x fsdp"), largest first."""
    total: dict[str, float] = collections.defaultdict(float)
    for collective in found:
        total[" x ".join(collective.axes)] += collective.bytes * collective.times
    return dict(sorted(total.items(), key=lambda item: item[1], reverse=True))


def _between_slices(send: _Instruction, times: int) -> Collective:
    """What a chip hands to its host for other slices. The program continues meanwhile, until recv-done."""
    transfer = re.search(r'_xla_megascale_transfer_type="(\w+)"', send.rest)
    target = re.search(r'_xla_megascale_target="?(\{[-\d{},:x>]*\})', send.rest)
    if not transfer or transfer[1] not in _TRANSFERS or not target:
        raise ValueError(f"{send.name}: a send whose target is written in an unknown way: {send.rest[:200]}")
    kind, members = _TRANSFERS[transfer[1]], _slices_of_members(target[1])
    others = 1 - members.count(members[0]) / len(members)  # the share of the participants in other slices
    share = {"all-reduce": 2 * others, "all-gather": others * len(members), "collective-permute": 1}.get(kind, others)
    return Collective(kind, (SLICES,), share * _bytes(_arrays(send.shape)[0]), times, is_overlapped=True)


def _slices_of_members(target: str) -> list[int]:
    """The slice of each participant of a transfer; if there are several groups, of the first one.

    The text has one of three forms: {1,2}x{0:3}, which is slices x devices, where each device communicates with the
    same device of the other slices; groups of devices, {{100000,200000},{100001,200001}}; pairs, {{100000->200000}}.
    """
    if alike := re.fullmatch(r"\{([\d,]+)\}x\{[\d:,]+\}", target):
        return list(_numbers(alike[1]))
    first = re.match(r"\{\{(\d+(?:(?:,|->)\d+)*)\}", target)
    if not first:
        raise ValueError(f"a transfer between slices whose participants are written in an unknown way: {target[:200]}")
    return [int(number) // _IDS_A_SLICE for number in re.findall(r"\d+", first[1])]


def _constant(instruction: _Instruction) -> int | None:
    """The value of an instruction that is an integer constant; None for any other."""
    value = re.match(r"(-?\d+)\)", instruction.rest)
    return int(value[1]) if value and instruction.operation == "constant" else None


def _until_closed(text: str) -> str:
    """The text up to the bracket that closes the one before the text."""
    depth = 1
    for place, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if not depth:
            return text[:place]
    return text


def _arrays(shape: str) -> list[str]:
    """The arrays of a shape, which may be a tuple."""
    return [found[0] for found in re.finditer(_ARRAY, shape)]


def _bytes(array: str) -> float:
    found = _ARRAY.match(array)
    if not found:
        raise ValueError(f"an array whose type is written in an unknown way: {array}")
    kind, dims, _ = found.groups()
    each = BYTES[kind] if kind in BYTES else int(re.findall(r"\d+", kind)[0]) / 8
    return each * float(np.prod([int(size) for size in dims.split(",") if size]))


def _main_memory(shape: str) -> float:
    """Bytes of the arrays of a shape that are in the chip's main memory."""
    return sum(_bytes(array) for array in _arrays(shape) if not _IN_VMEM.search(array))


def _parameter(inside: dict[str, _Instruction], number: int) -> str:
    """The name, inside a fusion, of its operand with this index."""
    return next(i.name for i in inside.values() if i.operation == "parameter" and i.rest.startswith(f"{number})"))


def _groups(instruction: _Instruction, mesh: Mesh) -> np.ndarray:
    """The groups of devices that communicate with each other, as indices into the flat mesh: int [groups, n]."""
    rest = instruction.rest
    if pairs := re.search(r"source_target_pairs=\{(\{.*?\})\}", rest):
        return np.array([[int(n) for n in pair.split(",")] for pair in re.findall(r"\{([\d,]+)\}", pairs[1])])
    if named := re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", rest
    ):
        return _named_groups(mesh.size, *named.groups())
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", rest):
        shape, dims, order = (_numbers(part) if part else None for part in iota.groups())
        return np.arange(mesh.size).reshape(dims).transpose(order).reshape(shape)
    if listed := re.search(r"replica_groups=\{(\{.*?\})\}", rest):
        return np.array([[int(n) for n in group.split(",")] for group in re.findall(r"\{([\d,]+)\}", listed[1])])
    if "replica_groups={}" in rest:
        return np.arange(mesh.size)[None]
    raise ValueError(
        f"{instruction.name}: a collective whose participants are written in an unknown way: {rest[:200]}"
    )


def _named_groups(num_devices: int, sizes: str, dims: str | None, order: str | None, along: str) -> np.ndarray:
    """Groups along axes of a mesh that XLA names itself, such as 'a'=4,'b'=8 along 'a','b':(2)4.

    The devices fill this mesh in row-major order or, with `dims` and `order`, in the order of an array of shape `dims`
    after a transposition. 'b':(2)4 is the part of size 4 of axis 'b' that follows a part of size 2.
    """
    devices: np.ndarray = np.arange(num_devices)
    if dims:
        devices = devices.reshape(_numbers(dims)).transpose(_numbers(order) if order else None)
    axes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", sizes)}
    wanted = {name: (int(before or 1), int(size or axes[name]))
              for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", along)}  # fmt: skip
    shape: list[int] = []
    places: list[int] = []
    for name, size in axes.items():
        before, part = wanted.get(name, (1, 1))
        if name in wanted:
            places.append(len(shape) + 1)
        shape += [before, part, size // (before * part)]
    groups = np.moveaxis(devices.reshape(shape), places, range(-len(places), 0))
    return groups.reshape(-1, int(np.prod([shape[place] for place in places])))


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(map(int, text.split(",")))


def _axes(groups: np.ndarray, mesh: Mesh) -> tuple[str, ...]:
    places = np.stack(np.unravel_index(groups, mesh.devices.shape), axis=-1)  # [groups, n, axes]
    differ = (places != places[:, :1]).any(axis=(0, 1))
    return tuple(name for name, is_along in zip(mesh.axis_names, differ, strict=True) if is_along)
