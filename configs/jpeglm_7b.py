"""JPEG-LM, 7B, as in the paper: 256x256 colour images, 12,288-token chunks, 6.48B parameters.

    python -m jpeglm.prepare --config=configs/jpeglm_7b.py --source=PICTURES --out=DATA
    python -m jpeglm.train --config=configs/jpeglm_7b.py --config.data.path=DATA --workdir=WORKDIR

Expect: 3.1M tokens a step, 74,000 steps for about two epochs of 23M pictures. The paper names the learning rate and
about a month on 32 A100s; batch, warm-up, decay and precision are ours (BUILD_NOTES.md). Not run at this size here.
"""

from jpeglm.core.config import base


def get_config():
    return base()
