"""The demo: 10,000 MNIST digits at 32x32, greyscale, on two CPU cores in minutes.

    ./launch/demo.sh

or by hand:

    python -m jpeglm.prepare --config=configs/jpeglm_demo.py --source=embedded:mnist --out=DATA
    python -m jpeglm.train --config=configs/jpeglm_demo.py --config.data.path=DATA --workdir=WORKDIR
"""

from jpeglm.core.config import base


def get_config():
    config = base()
    config.steps = 950
    config.codec.height = 32
    config.codec.width = 32
    config.codec.mode = "L"
    config.data.seq_len = 256  # the longest digit takes 215 tokens
    config.data.shards = 4
    config.data.holdout = 1_000
    config.model.num_layers = 4
    config.model.width = 128
    config.model.num_heads = 2
    config.model.num_kv_heads = 2
    config.model.head_dim = 64
    config.model.ffn_width = 384
    config.model.qk_norm = True  # bears the higher learning rate: docs/measurements.md
    config.model.dtype = "float32"  # CPUs have no fast bf16
    config.model.remat = "none"  # there is room for all activations
    config.optim.batch_size = 8
    config.optim.lr = 6e-3
    config.optim.warmup_steps = 50
    config.mesh.data = -1
    config.mesh.fsdp = 1
    config.eval.every = 250
    config.eval.batches = 64  # the whole split
    config.checkpoint.every = 250
    config.checkpoint.keep_every = 0
    config.log.every = 25
    return config
