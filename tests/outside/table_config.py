"""A table with a method of another package."""

from jpeglm.core.config import load


def get_config():
    config = load("configs/eval/demo.py").unlock()
    config.num, config.ratios = 4, (0.5,)
    config.rows = ("trained", "flat", "originals")
    config.pretrained = ""
    config.sampling.max_tokens, config.sampling.slots = 512, 4
    return config.lock()
