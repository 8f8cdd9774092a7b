"""Trains several runs in one process of eight CPU devices.

    python -m tests.trainings '[{"workdir": "W", "devices": 4, "set": {"mesh.fsdp": 2}}, ...]'

Each run is `tests/tiny_config.py` with the given keys set, on the first so many devices.
"""

import json
import sys
from unittest import mock

import jax
from etils import epath

from jpeglm.core import distributed
from jpeglm.train.loop import train
from tests.tiny_config import get_config


def main() -> None:
    for run in json.loads(sys.argv[1]):
        config = get_config()
        config.update_from_flattened_dict(run["set"])
        devices = jax.devices()[: run.get("devices", 8)]
        with mock.patch.object(distributed, "start", lambda *_, devices=devices: devices):
            train(config, epath.Path(run["workdir"]))


if __name__ == "__main__":
    main()
