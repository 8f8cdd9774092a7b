"""The demo of clips: animated emoji and windows of a few films at 32x32, on two CPU cores or one GPU in minutes.

    ./launch/demo.sh --avc

or by hand:

    ./launch/clips.sh CLIPS demo
    python -m jpeglm.prepare --config=configs/avclm_demo.py --source=CLIPS/demo --out=DATA
    python -m jpeglm.train --config=configs/avclm_demo.py --config.data.path=DATA --workdir=WORKDIR

Expect: 577K training tokens of 1,433 windows; a held-out loss below the 4-gram model's only just; a third of the
completions valid.
"""

from configs import jpeglm_demo
from jpeglm.config import avc


def get_config():
    config = jpeglm_demo.get_config()
    config.steps = 1_400
    config.codec = avc()
    config.codec.height = 32
    config.codec.width = 32
    config.codec.fps = 8  # an emoji moves for three seconds
    config.codec.strip_headers = True  # they would be half of so small a clip
    config.tokenizer.vocab_size = 1_024
    config.data.seq_len = 768  # nine in ten clips are shorter
    config.data.augment = 12  # windows more of each training film, at most; an emoji has room for three
    config.data.stride = 3
    config.data.holdout = 96  # films, of each its first clip
    config.model.mask_documents = True  # a clip begins at position 0, as in sampling
    config.optim.batch_size = 2
    config.eval.every = 350
    config.checkpoint.every = 350
    return config
