"""Meshes and layouts: what divides is spread as the table says, what does not is refused."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from jpeglm.core import sharding
from jpeglm.core.errors import InputError
from jpeglm.models import llama, networks
from tests import meshes
from tests.forks import run
from tests.tiny_config import get_config

SOME_MESHES = [(1, 8, 1, 1), (2, 4, 1, 1), (2, 2, 1, 2), (2, 2, 2, 1), (1, 2, 2, 2), (1, 1, 4, 2)]

MODEL = llama.LlamaConfig.of(get_config())


def mesh_of(data: int = 1, fsdp: int = 1, context: int = 1, tensor: int = 1) -> AbstractMesh:
    return AbstractMesh((data, fsdp, context, tensor), sharding.MESH_AXES)


def sizes(data: int = 1, fsdp: int = 1, context: int = 1, tensor: int = 1) -> dict[str, int]:
    return {"data": data, "fsdp": fsdp, "context": context, "tensor": tensor}


def test_one_axis_may_take_what_the_others_leave():
    mesh = sharding.make_mesh(sizes(fsdp=-1), jax.devices()[:1])
    assert dict(mesh.shape) == sizes()


@pytest.mark.parametrize(
    "wrong", [sizes(fsdp=2), sizes(fsdp=-1, tensor=2), sizes(data=-1, fsdp=-1), sizes(tensor=0), sizes(context=-2)]
)
def test_a_mesh_that_does_not_fit_the_devices_is_refused(wrong):
    with pytest.raises(InputError, match="mesh: "):
        sharding.make_mesh(wrong, jax.devices()[:1])


def test_parameters_are_spread_as_the_table_says():
    _, model = networks.abstract(MODEL)
    layout = sharding.parameter_shardings(model, mesh_of(data=2, fsdp=4, tensor=2))
    assert jax.tree.structure(layout) == jax.tree.structure(nnx.to_pure_dict(model))
    layers = layout["layers"]
    assert layout["embedding"].spec == PartitionSpec("tensor", "fsdp")
    assert layout["head"].spec == PartitionSpec("fsdp", "tensor")
    assert layers["wq"].spec == PartitionSpec(None, "fsdp", "tensor", None)  # the first axis: layers
    assert layers["wo"].spec == PartitionSpec(None, "tensor", None, "fsdp")
    assert layers["w_down"].spec == PartitionSpec(None, "tensor", "fsdp")
    assert layers["ffn_norm"]["scale"].spec == PartitionSpec(None, "fsdp")


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (mesh_of(tensor=8), {}, "heads=4, which does not divide over 8"),
        (mesh_of(tensor=4), {"num_kv_heads": 2}, "kv_heads=2, which does not divide over 4"),
        (mesh_of(fsdp=3), {}, "embed=32, which does not divide over 3"),
        (mesh_of(tensor=4), {"ffn_width": 66}, "ffn=66, which does not divide over 4"),
    ],
)
def test_a_model_that_does_not_divide_over_the_mesh_is_refused(mesh, changes, message):
    _, model = networks.abstract(dataclasses.replace(MODEL, **changes))
    with pytest.raises(InputError, match=message):
        sharding.parameter_shardings(model, mesh)


def test_a_process_reads_the_rows_that_its_devices_hold():
    # Four devices of this process: rows 4..5 and 6..7, each in two halves of the sequence.
    held = {
        device: (slice(4 + 2 * (device // 2), 6 + 2 * (device // 2)), slice(32 * (device % 2), 32 * (device % 2) + 32))
        for device in range(4)
    }
    layout = SimpleNamespace(addressable_devices_indices_map=lambda shape: held)
    assert sharding.local_rows(layout, (8, 64)).tolist() == [4, 5, 6, 7]
    whole = SimpleNamespace(addressable_devices_indices_map=lambda shape: {0: (slice(None), slice(0, 32))})
    assert sharding.local_rows(whole, (8, 64)).tolist() == list(range(8))


def test_a_global_batch_puts_each_row_in_its_place():
    mesh = sharding.make_mesh(sizes(), jax.devices()[:1])
    rows = np.array([2, 0, 3, 1])
    local = {"tokens": 10 * rows[:, None] + np.arange(6)}
    batch = sharding.global_batch(local, rows, sharding.batch_sharding(mesh), 4)
    assert np.array_equal(batch["tokens"], 10 * np.arange(4)[:, None] + np.arange(6))


def test_a_spread_sequence_is_dealt_in_an_early_and_a_late_stripe():
    assert sharding.dealt_order(16, 2).tolist() == [0, 1, 2, 3, 12, 13, 14, 15, 4, 5, 6, 7, 8, 9, 10, 11]
    assert sharding.dealt_order(12, 1).tolist() == list(range(12))
    # Each member's queries see equally many keys.
    seen = (sharding.dealt_order(96, 4) + 1).reshape(4, -1).sum(axis=1)
    assert np.all(seen == seen[0])


@pytest.mark.parametrize(
    ("mesh", "changes", "message"),
    [
        (mesh_of(data=2, fsdp=8), {}, "optim.batch_size=8 .* over 16 devices"),
        (mesh_of(fsdp=4), {"optim.accumulate": 4}, "optim.accumulate=4"),
        (mesh_of(context=3), {}, "data.seq_len=64 .* mesh.context=3"),
        (mesh_of(context=4), {"data.seq_len": 68}, "data.seq_len=68 does not divide into two stripes"),
    ],
)
def test_a_batch_that_does_not_divide_over_the_mesh_is_refused(mesh, changes, message):
    config = get_config()
    sharding.check_divides(config, mesh_of(data=2, fsdp=4, context=4))
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=message):
        sharding.check_divides(config, mesh)


@pytest.mark.parametrize(
    ("batch_size", "accumulate", "devices", "accumulates", "batch_sizes"),
    [
        (32, 8, 8, [1, 2, 4], [64]),
        (32, 8, 16, [1, 2], [128]),
        (32, 1, 5, [], [30, 35]),
        (8, 3, 1, [1, 2, 4, 8], [6, 9]),
        (12, 5, 3, [1, 2, 4], [15]),
        (256, 3, 64, [1, 2, 4], [192, 384]),
    ],
)
def test_the_refusal_of_a_batch_names_what_fits(batch_size, accumulate, devices, accumulates, batch_sizes):
    config, mesh = get_config(), mesh_of(fsdp=devices)
    config.optim.update({"batch_size": batch_size, "accumulate": accumulate})
    named = ", ".join(map(str, accumulates))
    words = f"optim.accumulate={named} fits;" if accumulates else "no optim.accumulate fits;"
    sizes = ", ".join(map(str, batch_sizes))
    with pytest.raises(InputError, match=f"{words} with this optim.accumulate, optim.batch_size={sizes} or another"):
        sharding.check_divides(config, mesh)
    for key, values in (("accumulate", accumulates), ("batch_size", batch_sizes)):
        for value in values:
            changed = config.copy_and_resolve_references()
            changed.optim[key] = value
            sharding.check_divides(changed, mesh)
    changed = config.copy_and_resolve_references()
    for changed.optim.accumulate in set(range(1, batch_size + 1)) - set(accumulates):
        with pytest.raises(InputError):
            sharding.check_divides(changed, mesh)


def slices_of_a_tpu(slices: int, devices: int) -> list[SimpleNamespace]:
    return [
        SimpleNamespace(
            id=i,
            platform="tpu",
            device_kind="fake",
            process_index=i // 4,
            slice_index=i // devices,
            coords=(i % devices % 4, i % devices // 4, 0),
            core_on_chip=0,
        )  # fmt: skip
        for i in range(slices * devices)
    ]


def test_only_data_runs_across_the_slices_of_a_tpu():
    devices = slices_of_a_tpu(2, 8)
    assert sharding.num_slices(devices) == 2
    mixed = [devices[i] for i in np.random.default_rng(0).permutation(16)]
    placed = np.vectorize(lambda device: device.slice_index)(sharding.across_slices((4, 2, 1, 2), 2, mixed))
    assert placed.shape == (4, 2, 1, 2)
    assert np.all(placed[:2] == 0) and np.all(placed[2:] == 1)
    with pytest.raises(InputError, match="data=3 is no multiple of the 2 slices"):
        sharding.across_slices((3, 2, 1, 2), 2, slices_of_a_tpu(2, 6))
    nodes = [SimpleNamespace(slice_index=i, platform="gpu") for i in range(2)]
    assert sharding.num_slices(nodes) == 1  # parameters may be spread over nodes


@pytest.mark.parametrize("sizes", [SOME_MESHES, pytest.param(meshes.ALL, marks=pytest.mark.slow)], ids=["some", "all"])
def test_any_mesh_gives_the_loss_and_gradients_of_one_device(sizes):
    """Also: the compiler never has to bring an array together for want of a way between two layouts, and no device
    holds much more than its share of a fresh training's state, even while that is made."""
    process = run("tests.meshes", json.dumps(sizes), devices=8)
    assert process.returncode == 0, process.stderr
    assert "Involuntary full rematerialization" not in process.stderr
    result = json.loads(process.stdout)
    assert len(result["meshes"]) == len(sizes)
    for found in result["meshes"]:
        assert found["loss_error"] < 1e-5 and found["worst"][0] < 1e-5, found
        assert 5 < found["loss"] < 7, found
    start = result["start"]
    assert start["too_large"] == [] and start["arrays"] == 36  # parameters and both moments: 3 * 12
    assert start["state"] / 8 < start["device"] < 1.5 * start["state"] / 8
