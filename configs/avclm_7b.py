"""AVC-LM, 7B, as in the paper: 15 frames of 256x144 as H.264, 32,768-token chunks, 1,024 entries.

Shapes and optimiser only: the `avc` codec is not written yet, and `jpeglm.prepare` says so.

Expect: 42B tokens an epoch (1.3M chunks); 8.4M tokens a step.
"""

from jpeglm.config import base


def get_config():
    config = base()
    config.codec.name = "avc"
    config.codec.height = 144
    config.codec.width = 256
    config.tokenizer.vocab_size = 1024
    config.data.seq_len = 32_768
    config.steps = 10_000  # two epochs
    return config
