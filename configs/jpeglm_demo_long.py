"""A larger model of the demo's digits, trained for longer, also on their variants: what lies in pretrained/demo.

    ./launch/pretrained.sh

or by hand, after ./launch/demo.sh, whose tokenizer it takes:

    python -m jpeglm.prepare --config=configs/jpeglm_demo_long.py --source=embedded:mnist \
        --tokenizer=runs/demo/data/tokenizer.json --out=DATA
    python -m jpeglm.train --config=configs/jpeglm_demo_long.py --config.data.path=DATA --workdir=WORKDIR

Held out are the same 1,000 digits. How these values were chosen: docs/measurements.md.
"""

from configs import jpeglm_demo


def get_config():
    config = jpeglm_demo.get_config()
    config.steps = 8_500
    config.data.augment = 23
    config.data.shards = 16
    config.model.width = 192
    config.model.num_heads = 3
    config.model.num_kv_heads = 3
    config.model.ffn_width = 576
    config.model.mask_documents = True
    config.optim.batch_size = 16
    config.optim.lr = 4e-3
    config.optim.warmup_steps = 200
    config.optim.final_lr_ratio = 0.02
    config.eval.every = 1_000
    config.eval.batches = 32  # the whole split
    config.checkpoint.every = 500
    config.log.every = 50
    return config
