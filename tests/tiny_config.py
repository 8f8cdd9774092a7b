"""A run that takes seconds: digits in chunks of 64 tokens, a model of two narrow layers, eight chunks a step."""

from jpeglm.core.config import base


def get_config():
    config = base()
    config.steps = 20
    config.codec.height = 32
    config.codec.width = 32
    config.codec.mode = "L"
    config.data.seq_len = 64
    config.data.shards = 2
    config.data.holdout = 20
    config.model.num_layers = 2
    config.model.width = 32
    config.model.num_heads = 4
    config.model.num_kv_heads = 4
    config.model.head_dim = 8
    config.model.ffn_width = 64
    config.model.dtype = "float32"
    config.model.remat = "none"
    config.optim.batch_size = 8
    config.optim.lr = 3e-3
    config.optim.warmup_steps = 5
    config.eval.every = 1_000
    config.checkpoint.every = 1_000
    config.checkpoint.keep_every = 0
    config.log.every = 1
    return config
