"""Runs compiled for machines that are not here: what they take, and one line where they cannot go."""

import dataclasses
import json
import re

import jax
import jax.numpy as jnp
import pytest
from flax import nnx
from jax.sharding import NamedSharding, PartitionSpec
from ml_collections import ConfigDict

from benchmarks import pods
from jpeglm.aot import estimate, hlo
from jpeglm.aot.cost import Cost, cost_of, decode_cost, prefill_cost, sampling_peak, train_cost
from jpeglm.aot.report import sample_report, train_report
from jpeglm.aot.roofline import Roofline, compute_seconds
from jpeglm.aot.search import search_slots, search_train
from jpeglm.aot.target import describe
from jpeglm.core import hardware, sharding
from jpeglm.core.config import base
from jpeglm.core.errors import InputError
from jpeglm.data import batches
from jpeglm.models import networks
from jpeglm.models.llama import LlamaConfig
from jpeglm.sample.engine import Engine
from jpeglm.sample.settings import Settings
from jpeglm.train.step import build_programs
from jpeglm.train.tasks.lm import LanguageModelling
from tests.commands import finish, start
from tests.forks import run
from tests.tiny_config import get_config

SMALL = {  # of shapes that a TPU's kernels take
    "data.seq_len": 512, "model.width": 256, "model.num_heads": 4, "model.num_kv_heads": 4, "model.head_dim": 128,
    "model.ffn_width": 512, "model.num_layers": 4, "model.dtype": "bfloat16", "model.remat": "full",
}  # fmt: skip


def small(**changes):
    config = get_config()
    config.update_from_flattened_dict(SMALL | {name.replace("__", "."): value for name, value in changes.items()})
    return config


def aot_flags(topology, **changes):
    config = {f"--config.{name}={value}" for name, value in (SMALL | changes).items()}
    return "jpeglm.aot", "--config=tests/tiny_config.py", f"--topology={topology}", *sorted(config)


@pytest.fixture(scope="module")
def v5e():
    return describe("v5e:2x2")


def test_the_real_step_is_compiled_for_a_tpu_that_is_not_here(tmp_path):
    file = tmp_path / "step.json"
    done = run(*aot_flags("v5e:2x2"), f"--json={file}")
    assert done.returncode == 0, done.stderr
    assert "v5e:2x2" in done.stdout and "fits with" in done.stdout and "binds" in done.stdout
    facts = json.loads(file.read_text())
    assert facts["chips"] == 4 and facts["microbatch"] == 2
    # Parameters and two moments in float32, a quarter on each chip.
    model = LlamaConfig.of(small())
    assert facts["parameter_bytes"] == pytest.approx(model.num_parameters, rel=0.05)
    assert facts["optimizer_bytes"] == pytest.approx(2 * facts["parameter_bytes"], rel=0.01)
    assert facts["peak_bytes"] > facts["parameter_bytes"] + facts["optimizer_bytes"] + facts["temporary_bytes"]
    assert facts["flops_a_chip"] == model.flops_per_token(512) * 8 * 512 / 4
    # Each layer's matrices are gathered in the forward pass and again in the backward pass.
    matrices = 4 * (4 * 256 * 512 + 3 * 256 * 512)
    assert list(facts["sent_bytes"])[0] == "fsdp"
    assert facts["sent_bytes"]["fsdp"] > 2 * 2 * matrices * 3 / 4
    assert facts["traffic_bytes"] > facts["peak_bytes"]
    times = facts["roofline"]
    assert times["least"] >= max(times["compute"], times["memory"]) + times["awaited"]
    assert times["least"] >= times[times["binds"]] == max(times["compute"], times["memory"], times["network"])
    assert "awaited" in pods.train_row("tiny", "v5e:2x2", facts)[7]


@pytest.mark.slow
def test_each_microbatch_gathers_anew_and_needs_less_memory(v5e):
    whole, halved = (train_cost(small(optim__accumulate=parts), v5e) for parts in (1, 2))
    assert 1.5 < halved.sent["fsdp"] / whole.sent["fsdp"] < 2.1
    assert halved.temporary < whole.temporary


@pytest.mark.slow
def test_tensor_and_context_send_over_their_own_axes():
    cost = train_cost(small(mesh__fsdp=1, mesh__tensor=2, mesh__context=2), describe("v5e:2x2"))
    assert {"tensor", "context"} <= set(" x ".join(cost.sent).split(" x "))
    assert "fsdp" not in cost.sent


@pytest.mark.slow
def test_decoding_is_compiled_and_its_memory_grows_by_the_caches(v5e):
    few, many = (decode_cost(small(), v5e, slots) for slots in (4, 68))
    # Keys and values in bfloat16, the heads divided over four chips.
    caches = 64 * 2 * 2 * 4 * 4 * 512 * 128 / 4
    assert many.held - few.held == pytest.approx(caches, rel=0.05)


@pytest.mark.slow
def test_the_search_takes_the_policy_that_computes_least_and_the_largest_microbatch(v5e):
    config = small(data__seq_len=2048, model__num_layers=8)  # so that activations are most of the memory
    found, cost, largest = search_train(config, v5e)
    assert largest == {"full": 2, "attention": 2, "none": 2}
    assert found.model.remat == "none" and found.optim.accumulate == 1  # there is room for everything
    tight = dataclasses.replace(v5e, chip=dataclasses.replace(v5e.chip, memory=cost.peak))
    found, less, _ = search_train(config, tight)
    assert less.peak <= 0.9 * cost.peak
    assert found.model.remat != "none" or found.optim.accumulate > 1
    nothing = dataclasses.replace(v5e, chip=dataclasses.replace(v5e.chip, memory=1e6))
    with pytest.raises(InputError, match="no microbatch and no remat policy fits"):
        search_train(config, nothing)


@pytest.mark.slow
def test_the_search_finds_the_most_slots_that_fit(v5e):
    one = decode_cost(small(), v5e, 1)
    each = 2 * 2 * 4 * 4 * 512 * 128 / 4
    prefill = prefill_cost(small(), v5e, 1)
    memory = (sampling_peak(prefill, one) + 20 * each) / 0.9
    room = dataclasses.replace(v5e, chip=dataclasses.replace(v5e.chip, memory=memory))
    slots, prefill, step = search_slots(small(), room)
    assert slots == 16
    assert sampling_peak(prefill, step) <= 0.9 * memory
    _, facts = sample_report(small(), v5e, slots, prefill, step)
    assert pods.sample_row("tiny", "v5e:2x2", facts)[2] == "16"


@pytest.mark.parametrize(
    "topology, changes, words",
    [
        ("v5e:2x2", {"optim__batch_size": 6}, "optim.batch_size=6 does not divide"),
        ("v5e:2x2", {"mesh__tensor": 3}, "does not fit 4 device"),
        ("v5e:2x2", {"mesh__fsdp": 1, "mesh__tensor": 4, "model__num_heads": 6, "model__num_kv_heads": 6}, "heads=6"),
        ("v5e:2x2", {"model__attention": "triton"}, "does not run on tpu"),
        ("v5e:3x3", {}, "v5e:3x3"),
        ("v4:2x2x1", {}, "describes 4 chips as 8 devices"),
        ("v9z:2x2", {}, "CHIP is one of v4, v5e, v5p, v6e"),
        ("v5e", {}, "CHIP:SHAPE"),
        ("h100:4x8", {}, "of GPUs their number"),
        ("h100:7", {}, "does not divide"),
    ],
)
def test_what_cannot_go_is_said_in_one_line(topology, changes, words):
    with pytest.raises(InputError, match=words) as error:
        train_cost(small(**changes), describe(topology))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "topology, changes, words",
    [
        ("v5e:2x2", {"optim.batch_size": 400_000}, "error: does not fit: Ran out of memory"),
        ("v5e:3x3", {}, "v5e:3x3"),
        ("h100:4", {"optim.batch_size": 4_000_000}, "error: does not fit"),
    ],
)
def test_the_command_ends_with_that_line_and_status_2(topology, changes, words):
    done = run(*aot_flags(topology, **changes))
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert words in done.stderr.splitlines()[-1]


def test_without_the_compiler_for_tpus_one_line_says_what_to_install(tmp_path):
    (tmp_path / "libtpu").mkdir()
    (tmp_path / "libtpu" / "__init__.py").write_text("raise ImportError('not here')")
    without = ("env", "--unset=TPU_LIBRARY_PATH")  # which this process may have set for its own
    done = finish(start(*aot_flags("v5e:2x2"), prefix=without, PYTHONPATH=str(tmp_path)))
    assert done.returncode == 2
    assert "pip install -r requirements-tpu.txt" in done.stderr.splitlines()[-1]


def test_for_gpus_the_bytes_are_called_an_estimate(tmp_path):
    file = tmp_path / "step.json"
    done = run(*aot_flags("h100:8"), f"--json={file}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("ESTIMATE")
    assert "at MFU 40%" in done.stdout and "least time" not in done.stdout
    assert run(*aot_flags("h100:8"), "--what=sample").returncode == 2


@pytest.mark.parametrize(
    "layers, width, heads, ffn, billions", [(16, 2048, 16, 8192, 1.08), (40, 5120, 40, 13_824, 12.7)]
)
def test_other_sizes_pass_as_shapes(layers, width, heads, ffn, billions):
    config = base()
    sizes = {"num_layers": layers, "width": width, "num_heads": heads, "num_kv_heads": heads, "ffn_width": ffn}
    config.model.update(sizes)
    target = describe("h100:64")
    _, facts = train_report(config, target, train_cost(config, target))
    assert facts["parameters"] == pytest.approx(billions * 1e9, rel=0.02)
    assert facts["parameter_bytes"] == pytest.approx(4 * facts["parameters"] / 64, rel=0.001)


@pytest.mark.slow
@pytest.mark.parametrize("remat", ["full", "attention", "none"])
def test_the_estimate_is_near_what_the_compiler_says(remat, v5e):
    # Shapes in which nothing small or padded matters; the compiler's copies and scratch come on top.
    changes = dict(data__seq_len=2048, model__width=1024, model__num_heads=8, model__num_kv_heads=8)
    config = small(model__remat=remat, model__ffn_width=2816, model__num_layers=8, **changes)
    cost = train_cost(config, v5e)
    held, more = estimate.train_step(
        config, v5e.mesh(config.mesh), build_programs(config, v5e.mesh(config.mesh)).abstract_state
    )
    assert cost.held == pytest.approx(held, rel=0.1)
    assert 0.6 < more / cost.temporary < 1.6, (more, cost.temporary)


def test_a_decoding_step_computes_what_the_formula_says():
    config = LlamaConfig(
        vocab_size=320, num_layers=2, width=256, num_heads=4, num_kv_heads=4, head_dim=64, ffn_width=512
    )
    mesh = sharding.make_mesh({"data": 1}, jax.devices()[:1])
    params = nnx.to_pure_dict(networks.abstract(config)[1])
    engine = Engine(config, params, mesh, Settings(max_tokens=512, slots=4), eos=2)
    xla = engine.lower_step().compile().cost_analysis()["flops"]
    padded = 2 * config.width * (config.padded_vocab_size - config.vocab_size)
    assert xla / engine._programs.slots == pytest.approx(config.decode_flops(512) + padded, rel=0.1)


def test_what_is_computed_again_is_the_layers_forward_pass():
    model = LlamaConfig.of(small())
    forward = model.flops_per_token(512) / 3
    again = {
        remat: dataclasses.replace(model, remat=remat).recomputed_flops_per_token(512)
        for remat in ("none", "attention", "full")
    }
    assert again["none"] == 0 and again["none"] < again["attention"] < again["full"] < forward
    assert again["full"] - again["attention"] == 2 * 4 * 4 * 128 * 513


def test_transfers_run_beside_products_unless_the_user_says_otherwise(tmp_path):
    facts = {}
    for name, env in (("ours", {}), ("none", {"LIBTPU_INIT_ARGS": ""})):
        done = finish(start(*aot_flags("v5p:2x2x1"), f"--json={tmp_path / name}", **env))
        assert done.returncode == 0, done.stderr
        facts[name] = json.loads((tmp_path / name).read_text())
    awaited = {name: found["roofline"]["awaited"] for name, found in facts.items()}
    assert awaited["ours"] < 0.8 * awaited["none"], awaited
    assert facts["ours"]["peak_bytes"] < 1.05 * facts["none"]["peak_bytes"]


def test_products_in_8_bits_are_compiled_and_counted_at_their_own_peak(v5e):
    plain, narrow = small(), small(model__quantise="int8")
    cost = train_cost(narrow, v5e)
    model, tokens = LlamaConfig.of(narrow), 8 * 512 / 4
    # Of four layers of seven matrices: forward, for gradients of activations, and forward again.
    matrices = 4 * (4 * 256 * 512 + 3 * 256 * 512)
    assert model.quantised_flops_per_token == 6 * matrices
    saved = 6 * matrices * tokens * (1 / 197e12 - 1 / 393e12)
    assert compute_seconds(narrow, v5e) == pytest.approx(compute_seconds(plain, v5e) - saved)
    _, facts = train_report(narrow, v5e, cost)
    assert facts["roofline"]["compute"] == compute_seconds(narrow, v5e)
    assert facts["flops_a_chip"] == LlamaConfig.of(plain).flops_per_token(512) * tokens


@pytest.mark.parametrize("topology, fits", [("v5e:2x2", False), ("a100:4", False), ("h100:4", True)])
def test_fp8_is_refused_for_a_chip_that_has_no_such_products(topology, fits):
    done = run(*aot_flags(topology, **{"model.quantise": "fp8"}))
    if fits:
        assert done.returncode == 0, done.stderr
    else:
        chip = topology.partition(":")[0]
        assert done.returncode == 2
        assert f"config.model.quantise=fp8: {chip} has no products of this format" in done.stderr


def test_a_batch_of_the_pipeline_is_what_the_step_is_compiled_for(tiny_data):
    batch = batches.Chunks(tiny_data, "train", 64).batch([0])
    found = {name: (array.shape[1:], array.dtype) for name, array in batch.items()}
    assert found == LanguageModelling(seq_len=64, z_loss=0.0).arrays


def test_the_kind_of_every_described_tpu_is_known():
    for topology in ("v5e:2x2", "v5p:2x2x1", "v6e:2x2"):
        target = describe(topology)
        assert hardware.chip_of(target.devices[0]).name == target.chip.name == topology.split(":")[0]
    two = describe("v5p:2x2x1", slices=2)
    assert two.num_chips == 8
    assert sharding.num_slices(two.devices) == 2


BETWEEN = {  # by the collective: bytes that a chip sends to other slices, of an array of `size` bytes on each chip
    "all_reduce": (lambda x: jax.lax.psum(x, "data"), lambda size, slices: 2 * (slices - 1) / slices * size),
    "all_gather": (lambda x: jax.lax.all_gather(x, "data"), lambda size, slices: (slices - 1) * size),
    "reduce_scatter": (
        lambda x: jax.lax.psum_scatter(x, "data", tiled=True),
        lambda size, slices: (slices - 1) / slices * size,
    ),
    "all_to_all": (
        lambda x: jax.lax.all_to_all(x, "data", 0, 0, tiled=True),
        lambda size, slices: (slices - 1) / slices * size,
    ),
    "permute": (lambda x: jax.lax.ppermute(x, "data", [(0, 1), (1, 0)]), lambda size, slices: size),
}


@pytest.mark.parametrize("slices", [2, 3])
@pytest.mark.parametrize("kind", BETWEEN)
def test_each_collective_between_slices_that_libtpu_compiles_is_counted(kind, slices):
    function, expected = BETWEEN[kind]
    mesh = describe("v5e:2x2", slices).mesh(ConfigDict({"data": slices, "fsdp": -1}))
    spread = PartitionSpec("data", "fsdp")
    array = jax.ShapeDtypeStruct((slices * 1536, 4096), jnp.bfloat16, sharding=NamedSharding(mesh, spread))
    run_each = jax.shard_map(function, mesh=mesh, in_specs=spread, out_specs=PartitionSpec(), check_vma=False)
    cost = cost_of(jax.jit(run_each).lower(array), mesh)
    assert cost.sent == {hlo.SLICES: expected(1536 * 1024 * 2, slices)}
    assert cost.awaited == 0


@pytest.mark.slow
def test_a_step_on_two_slices_sends_each_gradient_once_to_the_other():
    config, target = small(mesh__data=2, optim__batch_size=16), describe("v5e:2x2", 2)
    cost = train_cost(config, target)
    model = LlamaConfig.of(config)
    # Each chip's quarter: matrices of the layers in bfloat16, embedding and head in float32. An all-reduce over two
    # sends as much as the array has. Norms and the loss come on top.
    layers = 4 * (4 * 256 * 512 + 3 * 256 * 512) * 2 / 4
    outer = 2 * model.padded_vocab_size * 256 * 4 / 4
    assert layers + outer < cost.sent[hlo.SLICES] < 1.01 * (layers + outer)
    _, facts = train_report(config, target, cost)
    assert facts["roofline"]["dcn"] == cost.sent[hlo.SLICES] / 3.125e9 == facts["roofline"]["least"]
    # Three slices send four thirds of the array instead of all of it, and need a batch of three parts.
    config.optim.batch_size, config.mesh.data = 24, 3
    third = train_cost(config, describe("v5e:2x2", 3))
    assert third.sent[hlo.SLICES] == pytest.approx(4 / 3 * cost.sent[hlo.SLICES], rel=1e-6)
    assert third.sent["fsdp"] == cost.sent["fsdp"]


@pytest.mark.parametrize("bandwidth, seconds", [(None, 2.0), (3.125, 4.0), (25.0, 0.5)])
def test_the_bandwidth_between_slices_bounds_a_step(bandwidth, seconds):
    target = describe("v5p:2x2x1", 2, bandwidth)  # 6.25 GB/s a chip
    cost = Cost(1e9, 1e9, {"fsdp": 60e9, hlo.SLICES: 12.5e9}, awaited=6e9, traffic=0.1 * 2765e9)
    roofline = Roofline(target.chip, 0.3, cost)
    assert roofline.facts() == {
        "compute": pytest.approx(0.3), "memory": pytest.approx(0.1), "network": pytest.approx(0.1), "dcn": seconds,
        "awaited": pytest.approx(0.01), "least": seconds, "binds": "dcn",
    }  # fmt: skip
    words = "dcn binds (compute 300 ms, memory 100 ms, network 100 ms, of it awaited 10 ms, dcn "
    assert words in str(roofline)
    _, facts = train_report(small(mesh__data=2, optim__batch_size=16), target, cost)
    assert facts["slices"] == 2 and facts["dcn_bandwidth"] == 1e9 * (bandwidth or 6.25)


def test_one_slice_has_no_data_centres_network_in_its_table():
    roofline = Roofline(describe("v5p:2x2x1").chip, 0.3, Cost(1e9, 1e9, {"fsdp": 60e9}))
    assert "dcn" not in str(roofline) and roofline.facts()["dcn"] == 0


@pytest.mark.parametrize("slices, bandwidth", [(1, 5.0), (2, 0.0), (2, -1.0), (2, float("nan")), (2, float("inf"))])
def test_a_bandwidth_between_slices_that_means_nothing_is_refused(slices, bandwidth):
    with pytest.raises(InputError, match="--dcn_bandwidth=.* above 0, with --slices of 2 or more"):
        describe("v5p:2x2x1", slices, bandwidth)


@pytest.mark.parametrize("devices, accumulate", [(1, 8), (8, 8), (16, 8), (32, 8), (16, 5), (8, 32)])
def test_the_search_ignores_the_microbatches_that_it_is_to_find(devices, accumulate, caplog):
    config = base()
    config.update_from_flattened_dict({"optim.batch_size": 32, "optim.accumulate": accumulate, "model.num_layers": 2})
    caplog.set_level("INFO", logger="absl")
    found, cost, largest = search_train(config, describe(f"h100:{devices}"))
    assert config.optim.accumulate == accumulate  # the caller's own stays
    assert 32 % (found.optim.accumulate * devices) == 0
    assert max(largest.values()) <= 32 // devices and cost.peak < 0.9 * 60 * 2**30
    # Each try is told, of how many at most, and how long it took.
    told = [record.getMessage() for record in caplog.records if record.getMessage().startswith("try ")]
    tries = len(told) // 2
    assert tries <= int(re.match(r"try 1 of at most (\d+): remat full, \d+ chunk", told[0])[1]) < 10
    assert [line.split()[1] for line in told] == [str(1 + i // 2) for i in range(2 * tries)]
    assert all(re.fullmatch(r"try \d+ took [\d.]+ m?s", line) for line in told[1::2])


def test_the_search_names_what_fits_where_the_batch_does_not_divide():
    config = base()
    config.optim.update({"batch_size": 32, "accumulate": 8})
    with pytest.raises(InputError, match="over 5 devices .*no optim.accumulate fits; .* optim.batch_size=30, 35"):
        search_train(config, describe("h100:5"))
