"""Does this run fit that pod, and what can it reach there? Compiled for the real target, on any machine.

python -m jpeglm.aot --config=configs/jpeglm_7b.py --topology=v5p:4x4x4

compiles the very step that `jpeglm.train` would run on that slice of a TPU, without having one: libtpu, the TPU's own
compiler, works anywhere (`pip install -r requirements-tpu.txt`). --what=sample compiles prefill and decoding instead.
--search tries each microbatch that divides the global batch, and each remat policy, and names the fastest that fits;
what the config says of both does not count. --slices=2 compiles for two such slices, and counts what crosses them.
For GPUs, as in --topology=h100:32, no compiler works without the card: the bytes are an estimate from the shapes.
Every key of the config is a flag, as in `jpeglm.train`; no data are needed.
"""

import contextlib
import dataclasses
import json
import math
import os
import time
from collections.abc import Iterator
from typing import Any

import jax
from absl import flags, logging
from etils import epath
from flax import nnx
from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict
from tabulate import tabulate

from jpeglm.aot import estimate, hlo
from jpeglm.core import cli, distributed, hardware, sharding
from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError, writing
from jpeglm.core.hardware import Chip
from jpeglm.core.registry import MODELS, TASKS
from jpeglm.models import Model, networks
from jpeglm.sample.engine import STEPS_A_CALL, Engine, Settings
from jpeglm.train import monitor
from jpeglm.train import step as train_step
from jpeglm.train.monitor import human_bytes, human_count

SPARE = 0.1  # of the memory, which --search leaves free
MFUS = (0.3, 0.4, 0.5, 0.6)
MOST_SLOTS = 4096
LIBTPU = {  # so that libtpu neither looks for a TPU nor minds being loaded twice
    "TPU_SKIP_MDS_QUERY": "1",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_ACCELERATOR_TYPE": "v5p-8",
}


@dataclasses.dataclass(frozen=True)
class Target:
    """What a topology names: "v5p:4x4x4", or "h100:32". `devices` are described, not there; of GPUs there are none."""

    name: str
    chip: Chip
    num_chips: int
    devices: list[jax.Device]
    slices: int = 1

    def mesh(self, sizes: ConfigDict) -> Mesh | AbstractMesh:
        if self.devices:
            return sharding.make_mesh(sizes, self.devices)
        shape = sharding.mesh_shape(sizes, self.num_chips)
        return AbstractMesh(tuple(shape), sharding.MESH_AXES, axis_types=sharding.AUTO)


@dataclasses.dataclass(frozen=True)
class Cost:
    """What one run of a compiled program takes of one chip.

    Attributes:
      held: bytes of arguments and results.
      temporary: bytes more while it runs.
      sent: bytes sent over the network, by mesh axes, and to other slices under hlo.SLICES.
      awaited: those of them for which the chip waits, instead of computing meanwhile.
      traffic: bytes between the chip and its memory.
      seconds: of compiling.
    """

    held: float
    temporary: float
    sent: dict[str, float] = dataclasses.field(default_factory=dict)
    awaited: float = 0.0
    traffic: float = 0.0
    seconds: float = 0.0

    @property
    def peak(self) -> float:
        return self.held + self.temporary


def describe(topology: str, slices: int = 1, dcn_bandwidth: float | None = None) -> Target:
    """Devices that need not be in this machine.

    Args:
      topology: CHIP:SHAPE of a TPU slice, or CHIP:NUMBER of GPUs.
      slices: how many of that shape.
      dcn_bandwidth: GB/s (1e9 bytes) that a chip can send to other slices; None takes the maker's figure.

    Raises:
      InputError: there is no such chip or slice, or libtpu is missing.
    """
    name, _, shape = topology.partition(":")
    chip = next((chip for chip in hardware.CHIPS if chip.name == name), None)
    if chip is None or not shape:
        names = ", ".join(chip.name for chip in hardware.CHIPS)
        raise InputError(f"--topology={topology}: CHIP:SHAPE, as v5p:4x4x4 or h100:32; CHIP is one of {names}")
    if dcn_bandwidth is not None:
        if slices == 1 or not 0 < dcn_bandwidth < math.inf:
            raise InputError(f"--dcn_bandwidth={dcn_bandwidth}: GB/s of a chip, above 0, with --slices of 2 or more")
        chip = dataclasses.replace(chip, dcn=1e9 * dcn_bandwidth)
    if not chip.is_tpu:
        if not shape.isdecimal() or int(shape) < 1 or slices != 1:
            raise InputError(f"--topology={topology}: of GPUs their number, as {name}:32, and no slices")
        return Target(topology, chip, int(shape), [])
    devices = _describe_tpu(topology, slices)
    chips = slices * math.prod(map(int, shape.split("_")[0].split("x")))  # 4x4x8_twisted is a shape, too
    if len(devices) != chips:  # of v4, whose two cores a real slice runs as one
        raise InputError(f"--topology={topology}: libtpu describes {chips} chips as {len(devices)} devices")
    return Target(topology + (f" x {slices} slices" if slices > 1 else ""), chip, len(devices), devices, slices)


def _describe_tpu(topology: str, slices: int) -> list[jax.Device]:
    os.environ.update(LIBTPU | os.environ)
    from jax.experimental import topologies

    options = {"num_slices": slices} if slices > 1 else {}
    try:
        return topologies.get_topology_desc(platform="tpu", topology_name=topology, **options).devices
    except (RuntimeError, ValueError) as error:
        if "not installed" in str(error):
            raise InputError("the TPU's compiler is not here: pip install -r requirements-tpu.txt") from error
        raise InputError(f"--topology={topology}: {str(error).splitlines()[0]}") from error


class Tries:
    """Says which program is compiled, of how many at most, and afterwards how long that took."""

    def __init__(self, at_most: int):
        self.at_most, self._number = at_most, 0

    def still(self, at_most: int) -> None:
        """So many more are left at most."""
        self.at_most = self._number + at_most

    @contextlib.contextmanager
    def next(self, what: str) -> Iterator[None]:
        self._number += 1
        logging.info("try %d of at most %d: %s", self._number, self.at_most, what)
        started = time.monotonic()
        yield
        logging.info("try %d took %s", self._number, _seconds(time.monotonic() - started))


def cost_of(lowered: jax.stages.Lowered, mesh: Mesh) -> Cost:
    """Compiles a program and reads what it takes.

    Raises:
      InputError: it needs more memory than the chip has.
    """
    started = time.monotonic()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        words = str(error).splitlines()[0].removeprefix("RESOURCE_EXHAUSTED: ")
        raise InputError(f"does not fit: {words}") from error
    seconds = time.monotonic() - started
    program = hlo.Program(compiled.as_text())
    held, temporary = monitor.device_memory(compiled)
    found = program.collectives(_one_slice(mesh))
    awaited = sum(collective.bytes * collective.times for collective in found if not collective.is_overlapped)
    return Cost(held, temporary, hlo.by_axis(found), awaited, program.memory_traffic(), seconds)


def _one_slice(mesh: Mesh) -> Mesh:
    """The part of a mesh that lies in its first slice; data alone runs across slices."""
    data = mesh.devices.shape[0] // sharding.num_slices(list(mesh.devices.flat))
    return Mesh(mesh.devices[:data], mesh.axis_names, axis_types=mesh.axis_types)


def train_cost(config: ConfigDict, target: Target) -> Cost:
    """Of one step of `jpeglm.train`; for GPUs estimated memory alone.

    Raises:
      InputError: config and mesh do not fit, or the step does not fit the memory.
    """
    mesh = target.mesh(config.mesh)
    programs = train_step.build(config, mesh)  # before the mesh is set: nothing runs on devices that are not here
    if isinstance(mesh, AbstractMesh):
        return Cost(*estimate.train_step(config, mesh, programs.state))
    batch = train_step.batch_shapes(TASKS.of(config), config.optim.batch_size, mesh)
    with jax.set_mesh(mesh):
        lowered = programs.train_step.lower(programs.state, batch)
    return cost_of(lowered, mesh)


def sampling_engine(config: ConfigDict, target: Target, slots: int) -> tuple[Engine, Mesh]:
    """An engine without numbers that samples sequences of data.seq_len tokens, as `jpeglm.sample --nogrammar` does.

    A grammar needs a tokenizer; with 320 tokens its tables take 36 MiB more of each device.
    """
    model = MODELS.of(config)
    mesh = sharding.inference_mesh(model.tensor_parallelism, True, target.devices)
    params = nnx.to_pure_dict(networks.abstract(model)[1])
    return Engine(model, params, mesh, Settings(config.data.seq_len, 1.0, 40, 0.9, slots), eos=2), mesh


def prefill_cost(config: ConfigDict, target: Target, slots: int) -> Cost:
    """Of taking in the longest prompt."""
    engine, mesh = sampling_engine(config, target, slots)
    return cost_of(engine.lower_prefill(config.data.seq_len - 1), mesh)


def decode_cost(config: ConfigDict, target: Target, slots: int) -> Cost:
    """Of one step of decoding."""
    engine, mesh = sampling_engine(config, target, slots)
    cost = cost_of(engine.lower_decode(), mesh)
    sent = {axes: size / STEPS_A_CALL for axes, size in cost.sent.items()}
    each = dict(sent=sent, awaited=cost.awaited / STEPS_A_CALL, traffic=cost.traffic / STEPS_A_CALL)
    return dataclasses.replace(cost, **each)


class Roofline:
    """The least time that a program can take on a chip.

    Each resource works at the maker's peak, and all at once, but for the part of the network's time that the chip, as
    the program is compiled, waits for. What crosses slices is sent while the program goes on. "network" is inside of a
    slice, "dcn" the data centre's, between slices.
    """

    def __init__(self, chip: Chip, flops: float, cost: Cost):
        across = cost.sent.get(hlo.SLICES, 0.0)
        self.seconds = {
            "compute": flops / chip.flops,
            "memory": cost.traffic / chip.bandwidth,
            "network": sum(size for axes, size in cost.sent.items() if axes != hlo.SLICES) / chip.network,
            "dcn": across / chip.dcn if across else 0.0,
        }
        self.binds = max(self.seconds, key=self.seconds.get)
        self.awaited = cost.awaited / chip.network
        busy = max(self.seconds["compute"], self.seconds["memory"])
        self.bound = max(busy + self.awaited, self.seconds["network"], self.seconds["dcn"])

    def __str__(self) -> str:
        parts = {name: _seconds(value) for name, value in self.seconds.items() if name != "dcn" or value}
        parts["network"] += f", of it awaited {_seconds(self.awaited)}"
        words = ", ".join(f"{name} {value}" for name, value in parts.items())
        return f"{_seconds(self.bound)}: {self.binds} binds ({words})"

    def facts(self) -> dict[str, Any]:
        """For programs: all in seconds."""
        return self.seconds | {"awaited": self.awaited, "least": self.bound, "binds": self.binds}


def train_report(config: ConfigDict, target: Target, cost: Cost) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Rows for people, and the same numbers for programs."""
    model, mesh = MODELS.of(config), target.mesh(config.mesh)
    seq_len, batch_size, accumulate = config.data.seq_len, config.optim.batch_size, config.optim.accumulate
    tokens, remat = batch_size * seq_len, config.model.get("remat", "none")
    members = sharding.num_parts(mesh, "batch")
    flops, executed = _flops(config, target)
    shard = estimate.state_bytes(train_step.build(config, mesh).state)
    facts = {
        "chips": target.num_chips, "mesh": dict(mesh.shape), "remat": remat, "parameters": model.num_parameters,
        "microbatch": batch_size // accumulate // members, "accumulate": accumulate, "tokens_a_step": tokens,
        "parameter_bytes": shard["params"], "optimizer_bytes": shard["opt_state"], "temporary_bytes": cost.temporary,
        "peak_bytes": cost.peak, "memory_bytes": target.chip.memory, "flops_a_chip": flops, "executed_flops": executed,
        "seconds_at_mfu": {mfu: flops / (mfu * target.chip.flops) for mfu in MFUS}, "steps": config.steps,
        "compile_seconds": cost.seconds,
    }  # fmt: skip
    rows = [
        *_opening(target, mesh, model),
        ("global batch", f"{batch_size} chunks of {seq_len:,} tokens: {human_count(tokens)} tokens a step"),
        ("microbatch", f"{_chunks(facts['microbatch'], mesh)}, {accumulate} to a step; remat {remat}"),
        ("parameters a chip", f"{human_bytes(shard['params'])}, optimiser {human_bytes(shard['opt_state'])}"),
        ("activations, gradients", f"{human_bytes(cost.temporary)} and what else a step needs for a while"),
        ("peak", _peak(cost.peak, target.chip)),
        (
            "FLOPs a chip and step",
            f"{human_count(flops)} (causal); {human_count(executed)} with what is computed again",
        ),
    ]
    rows += [(f"at MFU {mfu:.0%}", _days(config, step, tokens)) for mfu, step in facts["seconds_at_mfu"].items()]
    if target.devices:
        roofline = Roofline(target.chip, executed, cost)
        facts |= {"sent_bytes": cost.sent, "traffic_bytes": cost.traffic, "roofline": roofline.facts()}
        facts |= {"slices": target.slices, "dcn_bandwidth": target.chip.dcn}
        mfu = flops / target.chip.flops / roofline.bound
        rows += [
            *_traffic(cost, target),
            ("least time of a step", str(roofline)),
            (f"there, MFU {mfu:.0%}", _days(config, roofline.bound, tokens)),
            ("compiled in", f"{cost.seconds:.0f} s"),
        ]
    return rows, facts


def sample_report(
    config: ConfigDict, target: Target, slots: int, prefill: Cost, step: Cost
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """Rows for people, and the same numbers for programs."""
    model = MODELS.of(config)
    mesh = sharding.inference_mesh(model.tensor_parallelism, True, target.devices)
    seq_len = config.data.seq_len
    forward = model.flops_per_token(seq_len) / 3
    used = mesh.size
    # A prompt is prefilled by the devices of its heads; a step attends over the whole capacity of the cache.
    prompts = Roofline(target.chip, forward * seq_len / sharding.num_parts(mesh, "kv_heads"), prefill)
    steps = Roofline(target.chip, model.decode_flops(seq_len) * slots / used, step)
    peak = sampling_peak(prefill, step)
    facts = {
        "chips": used, "mesh": dict(mesh.shape), "slots": slots, "capacity": seq_len, "peak_bytes": peak,
        "memory_bytes": target.chip.memory, "prefill_roofline": prompts.facts(), "step_roofline": steps.facts(),
        "sent_bytes": step.sent, "traffic_bytes": step.traffic, "compile_seconds": prefill.seconds + step.seconds,
        "slices": target.slices, "dcn_bandwidth": target.chip.dcn,
    }  # fmt: skip
    rows = [
        *_opening(target, mesh, model),
        ("slots", f"{slots} sequences at once, a cache of {seq_len:,} tokens each"),
        ("weights and cache", f"{human_bytes(step.held)} a chip"),
        ("while decoding", f"{human_bytes(step.temporary)} more"),
        ("while prefilling", f"{human_bytes(prefill.temporary)} more, a prompt of {seq_len - 1:,} tokens"),
        ("peak", _peak(peak, target.chip)),
        *_traffic(step, target),
        ("least time of a prefill", str(prompts)),
        ("least time of a step", str(steps)),
        ("there", f"{human_count(slots / steps.bound)} tokens/s of all slots, {1 / steps.bound:,.0f} of each"),
        ("compiled in", f"{prefill.seconds:.0f} s (prefill), {step.seconds:.0f} s (decoding)"),
    ]
    return rows, facts


def search_train(config: ConfigDict, target: Target) -> tuple[ConfigDict, Cost, dict[str, int]]:
    """The microbatch and the remat policy that are fastest by the roofline of those that fit.

    Policies go from the one that needs least memory to the one that computes least; what does not fit under one is
    not tried under the next. The config's own `optim.accumulate` and `model.remat` do not count.

    Returns:
      the config with them, what they cost, and by policy the largest microbatch (chunks a member of the batch's mesh
      axes) that fits.

    Raises:
      InputError: the batch does not divide over the mesh, or nothing fits with SPARE of the memory to spare.
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
            with tries.next(f"remat {policy}, {_chunks(sizes[-1], mesh)}"):
                cost, words = _fitting(trial, target)
            bound = cost and Roofline(target.chip, _flops(trial, target)[1], cost).bound
            tried.append((policy, trial.optim.accumulate, words, _seconds(bound) if cost else ""))
            if cost is None:
                sizes.pop()
                continue
            largest[policy] = sizes[-1]
            if best is None or bound < best[0]:
                best = bound, trial, cost
    headers = ["remat", "microbatches", "peak", "least time of a step"]
    logging.info("tried, largest microbatch first:\n%s", tabulate(tried, headers, tablefmt="plain"))
    if best is None:
        raise InputError(f"{target.name}: no microbatch and no remat policy fits with {SPARE:.0%} to spare")
    return best[1], best[2], largest


def _with(config: ConfigDict, accumulate: int, remat: str | None = None) -> ConfigDict:
    """A copy of the config with these."""
    changed = ConfigDict(config.to_dict())
    changed.optim.accumulate = accumulate
    if remat and "remat" in changed.model:
        changed.model.remat = remat
    return changed


def _fitting(trial: ConfigDict, target: Target) -> tuple[Cost | None, str]:
    """The cost of a step that leaves SPARE of the memory free, or None; and in words what it needs."""
    try:
        cost = train_cost(trial, target)
    except InputError as error:
        if not str(error).startswith("does not fit"):
            raise
        return None, str(error)
    return cost if cost.peak <= (1 - SPARE) * target.chip.memory else None, _peak(cost.peak, target.chip)


def sampling_peak(prefill: Cost, step: Cost) -> float:
    """Prefill needs as much for a while whatever the slots; what both hold is weights and caches."""
    return step.held + max(step.temporary, prefill.temporary)


def search_slots(config: ConfigDict, target: Target) -> tuple[int, Cost, Cost]:
    """The most slots that fit with SPARE of the memory to spare, as a power of two for each part of the batch.

    Returns:
      their number, the cost of a prefill, and of a step.

    Raises:
      InputError: not one does.
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
    # The caches grow with the slots and hardly anything else does: two sizes tell where the limit lies.
    each, slots = (second - first) / least, 2 * least
    while 2 * slots <= MOST_SLOTS and first + each * (2 * slots - least) <= limit:
        slots *= 2
    tries.still(round(math.log2(slots / (2 * least))))
    while slots > least and sampling_peak(prefill, step_of(slots)) > limit:
        slots //= 2
    return slots, prefill, steps[slots]


def _flops(config: ConfigDict, target: Target) -> tuple[float, float]:
    """Of one chip in one step: the model's, and with what is computed again."""
    model, seq_len = MODELS.of(config), config.data.seq_len
    tokens = config.optim.batch_size * seq_len / target.num_chips
    flops = model.flops_per_token(seq_len)
    return flops * tokens, (flops + model.recomputed_flops_per_token(seq_len)) * tokens


def _opening(target: Target, mesh: Mesh | AbstractMesh, model: Model) -> list[tuple[str, str]]:
    return [
        ("target", f"{target.num_chips} x {target.chip.kinds[0]} ({target.name})"),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())),
        ("parameters", f"{model.num_parameters:,}"),
    ]


def _peak(peak: float, chip: Chip) -> str:
    spare = 1 - peak / chip.memory
    words = "does not fit" if spare < 0 else f"fits with {spare:.0%} to spare"
    return f"{human_bytes(peak)} of {human_bytes(chip.memory)}: {words}"


def _chunks(microbatch: int, mesh: Mesh | AbstractMesh) -> str:
    devices = sharding.num_parts(mesh, "sequence") * sharding.num_parts(mesh, "heads")
    return f"{microbatch} chunk(s) a chip" if devices == 1 else f"{microbatch} chunk(s) for each {devices} chips"


def _traffic(cost: Cost, target: Target) -> list[tuple[str, str]]:
    inside = {axes: size for axes, size in cost.sent.items() if axes != hlo.SLICES}
    sent = ", ".join(f"{human_bytes(size)} over {axes}" for axes, size in inside.items()) or "nothing"
    rows = [("sent by a chip", sent), ("memory traffic", f"{human_bytes(cost.traffic)} a chip")]
    if target.slices > 1:
        across = human_bytes(cost.sent.get(hlo.SLICES, 0))
        rows.insert(
            1, ("sent to other slices", f"{across} a chip, at {target.chip.dcn / 1e9:g} GB/s (--dcn_bandwidth)")
        )
    return rows


def _days(config: ConfigDict, seconds: float, tokens: int) -> str:
    days = config.steps * seconds / 86_400
    return f"{_seconds(seconds)} a step, {human_count(tokens / seconds)} tokens/s, {days:.1f} days for the run"


def _seconds(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1000 * seconds:.3g} ms"


FLAGS = flags.FLAGS


def main() -> None:
    """The command."""
    config = FLAGS.config
    config_lib.check(config, any_accumulate=FLAGS.search)
    distributed.compute_in_float32()
    jax.config.update("jax_platforms", "cpu")  # nothing runs on a device, so none needs to be there
    jax.config.update("jax_enable_compilation_cache", False)  # which cannot read such programs again
    target = describe(FLAGS.topology, FLAGS.slices, FLAGS.dcn_bandwidth)
    if FLAGS.what == "sample" and not target.devices:
        raise InputError("--what=sample is compiled, and for GPUs no compiler works without the card")
    if FLAGS.what == "train":
        largest = {}
        if FLAGS.search:
            config, cost, largest = search_train(config, target)
        else:
            with Tries(1).next("the step"):
                cost = train_cost(config, target)
        rows, facts = train_report(config, target, cost)
        facts["largest_microbatch"] = largest
    else:
        slots = FLAGS.slots
        if FLAGS.search:
            slots, prefill, step = search_slots(config, target)
        else:
            tries = Tries(2)
            with tries.next("prefill"):
                prefill = prefill_cost(config, target, slots)
            with tries.next(f"decoding, {slots} slots"):
                step = decode_cost(config, target, slots)
        rows, facts = sample_report(config, target, slots, prefill, step)
    if not target.devices:
        rows.insert(0, ("ESTIMATE", "from the shapes alone (jpeglm/aot/estimate.py), not compiled"))
    print(tabulate(rows, tablefmt="plain"))
    if FLAGS.json:
        with writing(FLAGS.json):
            epath.Path(FLAGS.json).write_text(json.dumps(facts, indent=1))
    if facts["peak_bytes"] > facts["memory_bytes"]:
        raise InputError("does not fit: more chips, a larger optim.accumulate, or model.remat=full")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("topology", None, "CHIP:SHAPE of a TPU slice, as v5p:4x4x4, or CHIP:NUMBER of GPUs.")
    flags.DEFINE_integer("slices", 1, "Of that shape each; mesh.data runs across them.", lower_bound=1)
    flags.DEFINE_float(
        "dcn_bandwidth", None, "GB/s that a chip sends to other slices; v5e 3.125, v5p 6.25, v6e 12.5 if not given."
    )
    flags.DEFINE_enum("what", "train", ["train", "sample"], "Which program.")
    flags.DEFINE_integer("slots", 8, "Sequences sampled at once.", lower_bound=1)
    flags.DEFINE_bool("search", False, "Find the fastest microbatch and remat policy that fit, or the most slots.")
    flags.DEFINE_string("json", None, "File for the numbers.")
    cli.run(main, required=("config", "topology"))
