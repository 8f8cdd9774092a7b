"""The memory that one process of a job takes to restore a checkpoint.

    python -m tests.restoring save WORKDIR       a state of some 600 MB, by one process of eight devices
    python -m tests.restoring restore WORKDIR    by any number of processes: bytes as JSON, from each

Keys: "own", the shards of this process; "whole", the state; "device", the most that one device holds; "peak", by how
much restoring raised this process's memory at most, the shards included.
"""

import json
import re
import sys
from pathlib import Path

import jax
from etils import epath
from flax import nnx

from jpeglm.core import checkpoint, distributed, sharding
from jpeglm.models import llama, networks
from jpeglm.train.optimizer import make_optimizer, make_schedule, state_shardings
from tests.tiny_config import get_config


def memory(key: str) -> int:
    """Bytes of this process: VmRSS now, VmHWM at most."""
    return 1024 * int(re.search(rf"{key}:\s+(\d+)", Path("/proc/self/status").read_text())[1])


def main() -> None:
    what, workdir = sys.argv[1], epath.Path(sys.argv[2])
    config = get_config()
    config.model.update(num_layers=4, width=1_024, num_heads=8, num_kv_heads=8, head_dim=128, ffn_width=2_816)
    devices = distributed.start("cpu")
    mesh = sharding.make_mesh({"data": 1, "fsdp": 8, "context": 1, "tensor": 1}, devices)
    jax.set_mesh(mesh)
    model_config = llama.LlamaConfig.of(config)
    _, model = networks.abstract(model_config)
    params, layout = nnx.to_pure_dict(model), sharding.parameter_shardings(model, mesh)
    optimizer = make_optimizer(config.optim, make_schedule(config.optim, 100), networks.decayed(model))
    make = lambda params: {"params": params, "opt_state": optimizer.init(params)}  # noqa: E731
    shardings = {"params": layout, "opt_state": state_shardings(optimizer, params, layout, mesh)}

    if what == "save":
        make_state = jax.jit(lambda: make(networks.init(model_config, 0)), out_shardings=shardings)
        saver = checkpoint.Saver(workdir, config.checkpoint)
        saver.save(1, make_state())
        saver.close()
        return
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    before = memory("VmRSS")
    step, state = checkpoint.restore_newest(workdir, sharding.laid_out(jax.eval_shape(make, params), shardings))
    peak = memory("VmHWM") - before
    held: dict[jax.Device, int] = {}
    for leaf in jax.tree.leaves(state):
        for shard in leaf.addressable_shards:
            held[shard.device] = held.get(shard.device, 0) + shard.data.nbytes
    whole = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    found = {"step": step, "own": sum(held.values()), "whole": whole, "device": max(held.values()), "peak": peak}
    print(json.dumps(found))


if __name__ == "__main__":
    main()
