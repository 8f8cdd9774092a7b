"""The demo of clips: animated emoji and windows of a few films at 32x32, on two CPU cores or one GPU in minutes.

    ./launch/demo.sh --avc

or by hand:

    ./launch/clips.sh CLIPS demo
    python -m jpeglm.prepare --config=configs/avclm_demo.py --source=CLIPS/demo --out=DATA
    python -m jpeglm.train --config=configs/avclm_demo.py --config.data.path=DATA --workdir=WORKDIR

Expect: 268K training tokens, of 637 windows of 91 emoji and films; a held-out loss below the 4-gram model's; a few of
the completions valid, and their frames nearer to real ones than a frame that stands still is.
"""

from configs import jpeglm_demo
from jpeglm.core.config import avc


def get_config():
    config = jpeglm_demo.get_config()
    config.steps = 1_000  # a hundred clips are soon learnt by heart
    config.codec = avc()
    config.codec.height = 32
    config.codec.width = 32
    config.codec.fps = 8  # an emoji moves for three seconds
    config.codec.strip_headers = True  # they would be half of so small a clip
    config.tokenizer.vocab_size = 1_024
    config.data.seq_len = 768  # nine in ten clips are shorter
    config.data.augment = 24  # windows more of each training film, at most; an emoji has room for nine
    config.data.stride = 1
    config.data.holdout = 64  # films, of each its first clip
    config.model.mask_documents = True  # a clip begins at position 0, as in sampling
    config.optim.batch_size = 2
    config.optim.lr = 3e-3
    return config
