"""What is read out of compiled programs, against XLA's own analysis and against counting by hand."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jpeglm.aot import hlo
from tests.forks import run


def compiled(function, *shapes, dtype=jnp.float32):
    return jax.jit(function).lower(*(jax.ShapeDtypeStruct(shape, dtype) for shape in shapes)).compile()


def test_each_collective_is_found_with_its_axes_its_bytes_and_the_rounds_of_its_loop():
    done = run("tests.collectives", devices=8)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    row = 4096
    expected = {  # what a device sends on a ring: of all_gather three rows, of a sum over two all four rows, ...
        "all-gather": (["fsdp"], 3 * row),
        "all-reduce": (["data"], 4 * row),
        "reduce-scatter": (["fsdp"], 3 * row),
        "all-to-all": (["fsdp"], 3 / 4 * row),
        "collective-permute": (["data"], row),
    }
    assert {kind: (axes, size) for kind, axes, size, _ in result["found"]} == expected
    assert [times for *_, times in result["found"]] == [5] * len(expected)
    assert result["sum"] == {"fsdp": 5 * 6.75 * row, "data": 5 * 5 * row}


@pytest.mark.parametrize(
    "function, shapes",
    [
        (lambda a, b: jnp.tanh(a @ b) @ b, [(512, 512), (512, 512)]),
        (lambda a: jax.nn.softmax(a * 2.0) + a, [(256, 1024)]),
        (lambda a, i: jax.lax.dynamic_slice_in_dim(a, i.astype(int)[0], 16) * 2.0, [(4096, 64), (1,)]),
    ],
    ids=["products", "elementwise", "slice"],
)
def test_memory_traffic_without_loops_is_that_of_xla(function, shapes):
    program = compiled(function, *shapes)
    assert hlo.Program(program.as_text()).memory_traffic() == pytest.approx(
        program.cost_analysis()["bytes accessed"], rel=0.05
    )


def test_memory_traffic_counts_the_rounds_of_loops_where_xla_does_not():
    def repeated(times):
        return compiled(
            lambda x, w: jax.lax.scan(lambda x, _: (jnp.tanh(x @ w), None), x, None, length=times)[0],
            (512, 512), (512, 512),
        )  # fmt: skip

    ten, hundred, more = (hlo.Program(repeated(times).as_text()).memory_traffic() for times in (10, 100, 190))
    assert more - hundred == hundred - ten  # what lies outside of the loop is the same
    matrix = 4 * 512**2
    assert (more - hundred) / 90 == pytest.approx(5 * matrix, rel=0.01)  # three for the product, two for tanh
    assert repeated(100).cost_analysis()["bytes accessed"] < 10 * matrix  # the body once


def test_a_stack_that_a_loop_slices_is_read_once_in_all():
    layers, size = 64, 256
    stacked = compiled(
        lambda x, w: jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, w)[0],
        (size, size), (layers, size, size),
    )  # fmt: skip
    traffic, stack = hlo.Program(stacked.as_text()).memory_traffic(), 4 * layers * size**2
    # Slice, product and tanh touch at most a few matrices a round; the whole stack in each would be 64 times as much.
    assert 2 * stack < traffic < 12 * stack


def test_what_a_tpu_replaces_in_place_slices_ahead_or_keeps_in_vmem_counts_as_what_crosses_the_bus():
    # As a TPU's programs are written: S(1) is VMEM, a scatter writes into its first operand.
    text = """
%fused_computation.1 (p0: f32[1000,128], p1: s32[4,1], p2: f32[4,128]) -> f32[1000,128] {
  %p0 = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %p1 = s32[4,1]{1,0:T(4,128)} parameter(1)
  %p2 = f32[4,128]{1,0:T(4,128)} parameter(2)
  ROOT %scatter.1 = f32[1000,128]{1,0:T(8,128)} scatter(%p0, %p1, %p2), update_window_dims={1}, to_apply=%set
}

ENTRY %main (a: f32[1000,128], i: s32[4,1], u: f32[4,128], w: bf16[344,512]) -> f32[1000,128] {
  %a = f32[1000,128]{1,0:T(8,128)} parameter(0)
  %i = s32[4,1]{1,0:T(4,128)} parameter(1)
  %u = f32[4,128]{1,0:T(4,128)} parameter(2)
  %w = bf16[344,512]{1,0:T(8,128)(2,1)} parameter(3)
  %slice-start.1 = ((bf16[344,512]{1,0:T(8,128)(2,1)}), bf16[88,512]{1,0:T(8,128)(2,1)S(1)}, s32[]{:T(128)}) slice-start(%w), slice={[0:88], [0:512]}
  %slice-done.1 = bf16[88,512]{1,0:T(8,128)(2,1)S(1)} slice-done(%slice-start.1)
  %negate.1 = bf16[88,512]{1,0:T(8,128)(2,1)S(1)} negate(%slice-done.1)
  ROOT %fusion.1 = f32[1000,128]{1,0:T(8,128)} fusion(%a, %i, %u), kind=kCustom, calls=%fused_computation.1
}
"""  # noqa: E501
    ahead = 88 * 512 * 2  # read once; into VMEM, where it is negated
    in_place = 4 * 4 + 2 * (4 * 128 * 4)  # places and rows read, rows written
    assert hlo.Program(text).memory_traffic() == ahead + in_place


def test_of_a_tpus_collectives_one_overlapped_with_products_counts_once_and_starts_are_measured_by_their_results():
    # Three parts of one gather in fusions with products, two asynchronous ones, and one that is waited for.
    attributes = "channel_id=2, replica_groups=mesh['axis_0'=1,'axis_1'=4] {'axis_1'}, dimensions={0}"
    fused = "".join(
        f"""
%part.{number} (p: bf16[4,128]) -> bf16[16,128] {{
  %p.{number} = bf16[4,128]{{1,0:T(4,128)(2,1)}} parameter(0)
  ROOT %gather.{number} = bf16[16,128]{{1,0:T(8,128)(2,1)}} all-gather(%p.{number}), {attributes}, frontend_attributes={{chain_id="0"}}
}}
"""  # noqa: E501
        for number in range(3)
    )
    calls = "".join(
        f"  %f.{number} = bf16[16,128]{{1,0}} fusion(%a), kind=kCustom, calls=%part.{number}\n" for number in range(3)
    )
    everybody = "channel_id=3, replica_groups={}"
    text = f"""{fused}
ENTRY %main (a: bf16[4,128]) -> bf16[16,128] {{
  %a = bf16[4,128]{{1,0:T(4,128)(2,1)}} parameter(0)
{calls}  %s.1 = (bf16[4,128]{{1,0}}, bf16[16,128]{{1,0}}) all-gather-start(%a), {everybody}, dimensions={{0}}
  %s.2 = (bf16[4,128]{{1,0}}, bf16[4,128]{{1,0}}, u32[], u32[]) collective-permute-start(%a), source_target_pairs={{{{0,1}},{{1,0}}}}
  ROOT %r = bf16[4,128]{{1,0}} all-reduce(%a), {everybody}, to_apply=%add
}}
"""  # noqa: E501

    class Mesh:
        size, devices, axis_names = 4, np.zeros((1, 4)), ("data", "fsdp")

    found = hlo.Program(text).collectives(Mesh)
    row = 4 * 128 * 2
    assert [(c.kind, c.axes, c.bytes, c.is_overlapped) for c in found] == [
        ("all-gather", ("fsdp",), 3 * row, True),
        ("all-gather", ("fsdp",), 3 * row, True),
        ("collective-permute", ("fsdp",), row, True),
        ("all-reduce", ("fsdp",), 1.5 * row, False),
    ]


def test_an_unknown_way_to_write_who_takes_part_is_an_error():
    class Mesh:
        size = 4

    instruction = hlo._Instruction(False, "x", "f32[8]", "all-reduce", (), "%y), replica_groups=something new")
    with pytest.raises(ValueError, match="unknown way"):
        hlo._groups(instruction, Mesh)


def test_a_loop_of_unknown_length_is_an_error():
    program = compiled(lambda x: jax.lax.while_loop(lambda x: x.sum() < 100, lambda x: x + 1, x), (8, 8))
    with pytest.raises(ValueError, match="number of rounds"):
        hlo.Program(program.as_text()).memory_traffic()


@pytest.mark.parametrize(
    "written, groups",
    [
        ("replica_groups={{0,1},{2,3}}", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[4]", [[0, 1], [2, 3]]),
        ("replica_groups=[2,2]<=[2,2]T(1,0)", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0'}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['axis_0'=2,'axis_1'=2] {'axis_0','axis_1'}", [[0, 1, 2, 3]]),
        ("replica_groups=mesh['a'=2,'b'=2], device_ids=([2,2]T(1,0)) {'a'}", [[0, 1], [2, 3]]),
        ("replica_groups=mesh['a'=1,'b'=4] {'b':(1)2}", [[0, 2], [1, 3]]),
        ("replica_groups=mesh['a'=1,'b'=4] {'b':(2)2}", [[0, 1], [2, 3]]),
        ("source_target_pairs={{0,2},{2,0},{1,3},{3,1}}", [[0, 2], [2, 0], [1, 3], [3, 1]]),
        ("replica_groups={}", [[0, 1, 2, 3]]),
    ],
)
def test_all_ways_in_which_xla_writes_who_takes_part(written, groups):
    class Mesh:
        size = 4

    instruction = hlo._Instruction(False, "x", "f32[8]", "all-reduce", (), f"%y), channel_id=1, {written}, more=1")
    assert hlo._groups(instruction, Mesh).tolist() == groups


def sent(kind, target, array):
    """A send to other slices and its recv, as libtpu writes them."""
    attributes = (
        'channel_id=2, is_host_transfer=true, frontend_attributes={_xla_host_transfer_handler_name="xla_megascale_'
        f'runtime",_xla_host_transfer_rendezvous="x_0",_xla_megascale_target={target},'
        f'_xla_megascale_transfer_type="{kind}"}}, backend_config={{"flag_configs":[]}}'
    )
    return f"""  %send.1 = ({array}, u32[], token[]) send(%x, %token), {attributes}
  %recv.1 = ({array}, u32[], token[]) recv(%token), {attributes}
  %send-done.1 = token[] send-done(%send.1), channel_id=2, is_host_transfer=true
  %recv-done.1 = ({array}, token[]) recv-done(%recv.1), channel_id=1, is_host_transfer=true
"""


TWO, FOUR = '"{1,2}x{0:3}"', '"{1,2,3,4}x{0:3}"'
SIZE = 64 * 128 * 2


@pytest.mark.parametrize(
    "kind, target, name, size",
    [
        ("ALL_REDUCE", TWO, "all-reduce", SIZE),
        ("ALL_REDUCE", FOUR, "all-reduce", 1.5 * SIZE),
        ("ALL_GATHER", TWO, "all-gather", SIZE),
        ("ALL_GATHER", FOUR, "all-gather", 3 * SIZE),
        ("REDUCE_SCATTER", TWO, "reduce-scatter", 0.5 * SIZE),
        ("REDUCE_SCATTER", FOUR, "reduce-scatter", 0.75 * SIZE),
        ("ALL_TO_ALL", "{{100000,200000},{100001,200001}}", "all-to-all", 0.5 * SIZE),
        ("ALL_TO_ALL", "{{100000,100003,200000,200003},{100001,100002,200001,200002}}", "all-to-all", 0.5 * SIZE),
        ("ALL_TO_ALL", "{{100000,200000,300000,400000}}", "all-to-all", 0.75 * SIZE),
        ("ONE_TO_ONE", "{{100000->200000},{200000->100000}}", "collective-permute", SIZE),
    ],
)
def test_what_goes_to_other_slices_counts_as_the_collective_that_it_is_part_of(kind, target, name, size):
    array = "bf16[64,128]{1,0:T(8,128)(2,1)}"
    text = f"""
ENTRY %main (x: bf16[64,128]) -> bf16[64,128] {{
  %x = {array} parameter(0)
  %token = token[] after-all()
{sent(kind, target, array)}  ROOT %y = {array} get-tuple-element(%recv-done.1), index=0
}}
"""
    program = hlo.Program(text)
    found = program.collectives(None)  # no mesh is asked: the program names the slices
    assert found == [hlo.Collective(name, ("slices",), size, 1, is_overlapped=True)]
    assert hlo.by_axis(found) == {"slices": size}
    assert program.memory_traffic() == 2 * SIZE  # read to be sent, and written when it has come


@pytest.mark.parametrize(
    "kind, target", [("RAGGED_ALL_TO_ALL", TWO), ("ALL_REDUCE", '"all"'), ("ALL_REDUCE", "{{a}}"), ("", "")]
)
def test_a_send_that_is_written_in_an_unknown_way_is_an_error(kind, target):
    text = f"ENTRY %main (x: f32[8]) -> f32[8] {{\n{sent(kind, target, 'f32[8]')}}}\n"
    with pytest.raises(ValueError, match="unknown way"):
        hlo.Program(text).collectives(None)


@pytest.mark.parametrize("start, moved", [("constant(0)", ""), ("constant(1)", ""), ("constant(1)", "copy")])
def test_a_loop_whose_first_round_stands_in_front_of_it_runs_one_less(start, moved):
    array = "bf16[64,128]{1,0}"
    copied = "  %start.1 = s32[] copy(%start.0)\n" if moved else ""
    text = f"""
%body (p: (s32[], {array})) -> (s32[], {array}) {{
  %p = (s32[], {array}) parameter(0)
  %x = {array} get-tuple-element(%p), index=1
{sent("ALL_REDUCE", TWO, array)}}}

%condition (p: (s32[], {array})) -> pred[] {{
  %p = (s32[], {array}) parameter(0)
  %counter = s32[]{{:T(128)}} get-tuple-element(%p), index=0
  %bound = s32[]{{:T(128)}} constant(4)
  ROOT %less = pred[] compare(%counter, %bound), direction=LT
}}

ENTRY %main (x: {array}) -> {array} {{
  %x = {array} parameter(0)
  %start.0 = s32[] {start}
{copied}  %carried = (s32[], {array}) tuple(%start.{1 if moved else 0}, %x)
  %loop = (s32[], {array}) while(%carried), condition=%condition, body=%body
}}
"""
    [found] = hlo.Program(text).collectives(None)
    assert found.times == 4 - int(start[9])
