"""Pictures measured by the processes of a job, and bytes sent between them; prints what process 0 has as JSON."""

import json
import sys

import jax
import numpy as np

from jpeglm.core import distributed
from jpeglm.core.errors import InputError
from jpeglm.fid import images
from jpeglm.fid.measure import measure
from tests.fid.projection import Projection

LENGTHS = (0, 1, 999, 1000, 1001, 4321)  # of what is sent, around the size of a piece
COUNTS = (1, 2, 30)  # of pictures: fewer than processes, and more than features


def content(process: int, length: int) -> bytes:
    """Differs from process to process, in its length too."""
    return np.random.default_rng([process, length]).bytes(length + process if length else 0)


def main() -> None:
    distributed.start("cpu")
    distributed._PIECE = 1000
    mine = jax.process_index()
    right = [
        list(distributed.from_each(content(mine, length)))
        == [content(process, length) for process in range(jax.process_count())]
        for length in LENGTHS
    ]
    found = []
    for count in COUNTS:
        pictures = [np.random.default_rng(n).integers(0, 256, (9 + n, 20, 3), np.uint8) for n in range(count)]
        measured = measure(images.open_pictures(pictures), Projection(), f"{count} pictures", keep_features=True)
        covariance = measured.moments.covariance.tolist() if count > 1 else None
        found.append([measured.moments.count, measured.moments.mean.tolist(), covariance, measured.features.tolist()])
    differing = images.open_pictures(np.zeros((4, 8, 8), np.uint8))
    differing.names = differing.names[mine % 2 :]  # as where a folder changes, or a disk is not the same
    try:
        told = str(measure(differing, Projection(), "differing").moments.count)
    except InputError as error:
        told = str(error)
    told = [one.decode() for one in distributed.from_each(told.encode())]
    if mine == 0:
        print(json.dumps({"sent": right, "measured": found, "differing": told}))
    sys.stdout.flush()


if __name__ == "__main__":
    main()
