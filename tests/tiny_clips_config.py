"""tests/tiny_config.py on clips: 15 frames of 32x32, five a second, without headers."""

from jpeglm.core.config import avc
from tests.tiny_config import get_config as tiny


def get_config():
    config = tiny()
    config.codec = avc()
    config.codec.update({"height": 32, "width": 32, "fps": 5, "strip_headers": True})
    config.tokenizer.vocab_size = 320
    config.data.update({"seq_len": 1024, "shards": 1, "holdout": 4})
    config.optim.batch_size = 2
    return config
