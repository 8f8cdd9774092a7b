"""The tiny run with a tokenizer of its own kind, in chunks that hold whole files."""

from ml_collections import ConfigDict

from jpeglm.core.registry import TOKENIZERS
from tests import tiny_config
from tests.data.tokenizers import plain  # noqa: F401  registers it


def get_config():
    config = tiny_config.get_config()
    config.tokenizer = ConfigDict(TOKENIZERS.defaults("plain"))
    config.data.seq_len = 512
    config.steps, config.optim.warmup_steps = 5, 2
    return config
