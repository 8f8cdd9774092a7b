"""One of each collective on eight CPU devices, as `jpeglm.aot.hlo` reads the compiled program; printed as JSON."""

import json

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jpeglm.aot import hlo
from jpeglm.core import sharding

ROUNDS = 5
MESH = {"data": 2, "fsdp": 4}


def once(x):
    """Of [8, 1024] float32 over both axes: a row of 4,096 bytes on each device."""
    whole = jax.lax.all_gather(x, "fsdp", tiled=True)  # [4, 1024]
    summed = jax.lax.psum(whole, "data")
    mine = jax.lax.psum_scatter(summed, "fsdp", scatter_dimension=1, tiled=True)  # [4, 256]
    turned = jax.lax.all_to_all(mine, "fsdp", 0, 1, tiled=True)  # [1, 1024]
    return jnp.tanh(jax.lax.ppermute(turned, "data", [(0, 1), (1, 0)]))


def main():
    mesh = sharding.make_mesh(MESH)
    looped = lambda x: jax.lax.scan(lambda x, _: (once(x), None), x, None, length=ROUNDS)[0]  # noqa: E731
    both = PartitionSpec(("data", "fsdp"))
    run = jax.shard_map(looped, mesh=mesh, in_specs=both, out_specs=both, check_vma=False)
    text = jax.jit(run).lower(jnp.zeros((8, 1024))).compile().as_text()
    found = hlo.Program(text).collectives(mesh)
    print(json.dumps({"found": [[c.kind, list(c.axes), c.bytes, c.times] for c in found], "sum": hlo.by_axis(found)}))


if __name__ == "__main__":
    main()
