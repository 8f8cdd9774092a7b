"""Files and their bits as a table."""

from collections.abc import Mapping

import numpy as np
from tabulate import tabulate
from tqdm import tqdm

from jpeglm.core.errors import printable
from jpeglm.data.codecs import Codec
from jpeglm.sample.scoring import Scorer


def print_table(scorer: Scorer, codec: Codec, documents: Mapping[str, bytes], left_out: Mapping[str, str]) -> None:
    """Scores documents and prints a row for each, their means, and what was left out.

    Args:
      documents: one or more canonical documents by name. Mean bits per byte are over all bytes, bits per pixel over
        files.
      left_out: by name, why other documents are not scored.

    Raises:
      InputError: see `Scorer.nats`.
    """
    rows = []
    for name, document in tqdm(documents.items(), unit=codec.item, disable=None):
        bits, size = scorer.nats(document) / np.log(2), len(document)
        rows.append((name, size, bits / size, bits / codec.pixels))
    sizes, per_byte, per_pixel = (np.array(column) for column in list(zip(*rows, strict=True))[1:])
    rows.append(("mean", sizes.mean(), np.average(per_byte, weights=sizes), per_pixel.mean()))
    print(tabulate(rows, headers=(codec.item, "bytes", "bits a byte", "bits a pixel"), floatfmt=".4f"))
    for name, why in left_out.items():
        print(f"left out: {printable(name)}: {why}")
    if left_out:
        print(f"{len(left_out)} of {len(documents) + len(left_out)} left out, and not in the mean")
