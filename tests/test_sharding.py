"""Meshes and layouts: what divides is spread as the table says, what does not is refused."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from flax import nnx
from jax.sharding import AbstractMesh, PartitionSpec

from jpeglm import sharding
from jpeglm.errors import InputError
from jpeglm.model import llama
from tests.tiny_config import get_config

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
    _, model = llama.abstract(MODEL)
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
    _, model = llama.abstract(dataclasses.replace(MODEL, **changes))
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
