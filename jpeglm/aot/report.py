"""Reports on compiled programs: rows of a table for people, and the same numbers for programs."""

import dataclasses
from typing import Any

from jax.sharding import AbstractMesh, Mesh
from ml_collections import ConfigDict

from jpeglm.aot import estimate, hlo
from jpeglm.aot.cost import Cost, sampling_peak
from jpeglm.aot.roofline import Roofline, compute_seconds, step_flops
from jpeglm.aot.target import Target
from jpeglm.core import sharding
from jpeglm.core.hardware import Chip
from jpeglm.core.human import human_bytes, human_count, human_seconds
from jpeglm.core.registry import MODELS
from jpeglm.models import Model
from jpeglm.train.step import build_programs

MFUS = (0.3, 0.4, 0.5, 0.6)


def train_report(config: ConfigDict, target: Target, cost: Cost) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The report on a training step: rows of (label, text), and the same numbers by name."""
    model, mesh = MODELS.of(config), target.mesh(config.mesh)
    seq_len, batch_size, accumulate = config.data.seq_len, config.optim.batch_size, config.optim.accumulate
    tokens, remat = batch_size * seq_len, config.model.get("remat", "none")
    members = sharding.num_parts(mesh, "batch")
    flops, executed = step_flops(config, target)
    shard = estimate.state_bytes(build_programs(config, mesh).abstract_state)
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
        ("microbatch", f"{microbatch_words(facts['microbatch'], mesh)}, {accumulate} to a step; remat {remat}"),
        ("parameters a chip", f"{human_bytes(shard['params'])}, optimiser {human_bytes(shard['opt_state'])}"),
        ("activations, gradients", f"{human_bytes(cost.temporary)} and what else a step needs for a while"),
        ("peak", peak_words(cost.peak, target.chip)),
        (
            "FLOPs a chip and step",
            f"{human_count(flops)} (causal); {human_count(executed)} with what is computed again",
        ),
    ]
    rows += [(f"at MFU {mfu:.0%}", _days(config, step, tokens)) for mfu, step in facts["seconds_at_mfu"].items()]
    if target.devices:
        roofline = Roofline(target.chip, compute_seconds(config, target), cost)
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
    config: ConfigDict, target: Target, slots: int, prefill: Cost, step: Cost, filled: int | None = None
) -> tuple[list[tuple[str, str]], dict[str, Any]]:
    """The report on sampling with `slots` sequences: rows of (label, text), and the same numbers by name.

    `filled`: the mean number of tokens of a sequence at a step; data.seq_len if not given.
    """
    model = MODELS.of(config)
    mesh = sharding.inference_mesh(model.tensor_parallelism, True, target.devices)
    seq_len = config.data.seq_len
    forward = model.flops_per_token(seq_len) / 3
    used = mesh.size
    filled = min(filled or seq_len, seq_len)
    read = model.cache_read(filled, seq_len, mesh.devices.flat[0].platform)
    step = dataclasses.replace(step, traffic=step.traffic - step.cache * (1 - read / seq_len))
    needed = step.held - step.cache * (1 - filled / seq_len)
    # A prompt is prefilled by the devices over which its heads are sharded.
    peak_flops = target.chip.flops
    prompts = Roofline(target.chip, forward * seq_len / sharding.num_parts(mesh, "kv_heads") / peak_flops, prefill)
    steps = Roofline(target.chip, model.decode_flops(int(read)) * slots / used / peak_flops, step)
    peak = sampling_peak(prefill, step)
    facts = {
        "chips": used, "mesh": dict(mesh.shape), "slots": slots, "capacity": seq_len, "peak_bytes": peak,
        "memory_bytes": target.chip.memory, "prefill_roofline": prompts.facts(), "step_roofline": steps.facts(),
        "sent_bytes": step.sent, "traffic_bytes": step.traffic, "compile_seconds": prefill.seconds + step.seconds,
        "slices": target.slices, "dcn_bandwidth": target.chip.dcn, "filled": filled, "needed_bytes": needed,
    }  # fmt: skip
    rows = [
        *_opening(target, mesh, model),
        ("slots", f"{slots} sequences at once, a cache of {seq_len:,} tokens each"),
        ("weights and cache", f"{human_bytes(step.held)} a chip"),
        ("while decoding", f"{human_bytes(step.temporary)} more"),
        ("while prefilling", f"{human_bytes(prefill.temporary)} more, a prompt of {seq_len - 1:,} tokens"),
        ("peak", peak_words(peak, target.chip)),
        *_traffic(step, target),
        (
            "needed of it",
            f"{human_bytes(needed)}, {filled:,} tokens in a cache; read {step.traffic / needed:.2f} times",
        ),
        ("least time of a prefill", str(prompts)),
        ("least time of a step", str(steps)),
        ("there", f"{human_count(slots / steps.bound)} tokens/s of all slots, {1 / steps.bound:,.0f} of each"),
        ("compiled in", f"{prefill.seconds:.0f} s (prefill), {step.seconds:.0f} s (decoding)"),
    ]
    return rows, facts


def _opening(target: Target, mesh: Mesh | AbstractMesh, model: Model) -> list[tuple[str, str]]:
    return [
        ("target", f"{target.num_chips} x {target.chip.kinds[0]} ({target.name})"),
        ("mesh", ", ".join(f"{axis} {size}" for axis, size in mesh.shape.items())),
        ("parameters", f"{model.num_parameters:,}"),
    ]


def peak_words(peak: float, chip: Chip) -> str:
    """Whether a program with a peak of so many bytes fits a chip's memory, in words."""
    spare = 1 - peak / chip.memory
    words = "does not fit" if spare < 0 else f"fits with {spare:.0%} to spare"
    return f"{human_bytes(peak)} of {human_bytes(chip.memory)}: {words}"


def microbatch_words(microbatch: int, mesh: Mesh | AbstractMesh) -> str:
    """The size of a microbatch, in words: chunks for each group of chips that computes them together."""
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
    return f"{human_seconds(seconds)} a step, {human_count(tokens / seconds)} tokens/s, {days:.1f} days for the run"
