"""The tiny run with a model of its own kind."""

from ml_collections import ConfigDict

from jpeglm.core.registry import MODELS
from tests import tiny_config
from tests.outside.gru import Gru

MODELS.kinds["gru"] = Gru


def get_config():
    config = tiny_config.get_config()
    config.model = ConfigDict(MODELS.defaults("gru"))
    config.optim.lr = 3e-2
    config.checkpoint.every = 10
    return config
