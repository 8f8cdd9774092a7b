"""The demo of clips: animated emoji and windows of a few films at 32x32, on two CPU cores or one GPU in minutes.

    ./launch/demo.sh --avc

or by hand:

    ./launch/clips.sh CLIPS demo
    python -m jpeglm.prepare --config=configs/avclm_demo.py --source=CLIPS/demo --out=DATA
    python -m jpeglm.train --config=configs/avclm_demo.py --config.data.path=DATA --workdir=WORKDIR
"""

from configs import jpeglm_demo
from jpeglm.config import avc


def get_config():
    config = jpeglm_demo.get_config()
    config.steps = 500
    config.codec = avc()
    config.codec.height = 32
    config.codec.width = 32
    config.codec.fps = 8  # an emoji moves for three seconds
    config.codec.strip_headers = True  # they would be a third of so small a clip
    config.tokenizer.vocab_size = 1_024
    config.data.seq_len = 768
    config.data.augment = 12  # windows of a film, at most
    config.data.stride = 3
    config.data.holdout = 96  # films, of each its first clip
    config.optim.batch_size = 4
    return config
