"""The demo's model trained for longer, on turned, scaled and bent variants too: what lies in pretrained/demo.

    ./launch/pretrained.sh

or by hand, after ./launch/demo.sh, whose tokenizer it takes:

    python -m jpeglm.prepare --config=configs/jpeglm_demo_long.py --source=embedded:mnist \
        --tokenizer=runs/demo/data/tokenizer.json --out=DATA
    python -m jpeglm.train --config=configs/jpeglm_demo_long.py --config.data.path=DATA --workdir=WORKDIR

Held out are the same 1,000 digits.
"""

from configs import jpeglm_demo


def get_config():
    config = jpeglm_demo.get_config()
    config.steps = 6_000
    config.data.augment = 15
    config.data.shards = 16
    config.eval.every = 1_000
    config.log.every = 50
    return config
