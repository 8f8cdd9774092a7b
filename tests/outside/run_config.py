"""A run of kinds that are all of another package."""

from ml_collections import ConfigDict

from jpeglm.core.registry import CODECS, MODELS, TOKENIZERS
from tests import tiny_config


def get_config():
    config = tiny_config.get_config()
    config.codec = ConfigDict(CODECS.defaults("palette"))
    config.tokenizer = ConfigDict(TOKENIZERS.defaults("words"))
    config.model = ConfigDict(MODELS.defaults("gru"))
    config.data.seq_len, config.data.holdout = 512, 16
    config.optim.batch_size, config.optim.lr = 4, 3e-2
    config.checkpoint.every = 5
    return config
