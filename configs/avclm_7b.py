"""AVC-LM, 7B, as in the paper: 15 frames of 256x144 as H.264, 32,768-token chunks, 1,024 entries.

    python -m jpeglm.prepare --config=configs/avclm_7b.py --source=CLIPS --out=DATA
    python -m jpeglm.train --config=configs/avclm_7b.py --config.data.path=DATA --workdir=WORKDIR

Expect: 42B tokens an epoch (1.3M chunks); 8.4M tokens a step. The paper names data, encoding and chunks; batch,
warm-up and decay are ours, as in configs/jpeglm_7b.py. Not run at this size here.
"""

from jpeglm.core.config import avc, base


def get_config():
    config = base()
    config.codec = avc()
    config.tokenizer.vocab_size = 1024
    config.data.seq_len = 32_768
    config.steps = 10_000  # two epochs
    return config
