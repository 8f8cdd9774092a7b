"""About 100M parameters on 256x256 colour images: what a researcher with one GPU starts from.

    python -m jpeglm.prepare --config=configs/jpeglm_100m.py --source=PICTURES --out=DATA
    python -m jpeglm.train --config=configs/jpeglm_100m.py --config.data.path=DATA --workdir=WORKDIR

Expect: 107M parameters, 197K tokens a step, 1.0 GFLOPs a token. Raise `optim.accumulate` where memory is short.
Held-out loss on a large set: not measured.
"""

from jpeglm.core.config import base


def get_config():
    config = base()
    config.steps = 20_000
    config.data.seq_len = 6_144  # a picture takes about 4,500 tokens; half the attention of the 7B's 12,288
    config.data.shards = 32
    config.model.num_layers = 12
    config.model.width = 768
    config.model.num_heads = 12
    config.model.num_kv_heads = 12
    config.model.head_dim = 64
    config.model.ffn_width = 2_816  # 8/3 of the width, rounded up to a multiple of 256
    config.optim.batch_size = 32
    config.optim.lr = 6e-4
    config.optim.warmup_steps = 500
    return config
