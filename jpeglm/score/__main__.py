"""Bits a byte and a pixel of files under a trained run's model.

python -m jpeglm.score --workdir=DIR --images=PATH

PATH is a folder of pictures, or one that `jpeglm.prepare` wrote (then its held-out ones are taken). Each picture is
encoded canonically and scored alone, between BOS and EOS. A table of the pictures goes to standard output, then their
means. A picture of more tokens than the run's data.seq_len is left out and named in the last lines; the command then
ends with status 2 if --allow_too_long is not given.
"""

import numpy as np
from absl import flags
from etils import epath
from tabulate import tabulate
from tqdm import tqdm

from jpeglm.core import cli, distributed
from jpeglm.core.errors import printable
from jpeglm.core.registry import CODECS
from jpeglm.core.workdir import read_config
from jpeglm.data import documents
from jpeglm.sample import too_long
from jpeglm.sample.scoring import Scorer

FLAGS = flags.FLAGS


def main() -> None:
    distributed.start()
    distributed.refuse_several("jpeglm.score")
    workdir = epath.Path(FLAGS.workdir)
    config = read_config(workdir)
    codec = CODECS.of(config)
    scorer = Scorer.load(workdir, FLAGS.step)
    found = documents.read(FLAGS.images, codec, FLAGS.num, config.data.background)
    left_out = scorer.too_long(found)
    rows = []
    for name, document in tqdm(too_long.leave_out(found, left_out).items(), unit=codec.item, disable=None):
        bits, size = scorer.nats(document) / np.log(2), len(document)
        rows.append((name, size, bits / size, bits / codec.pixels))
    sizes, per_byte, per_pixel = (np.array(column) for column in list(zip(*rows, strict=True))[1:])
    rows.append(("mean", sizes.mean(), np.average(per_byte, weights=sizes), per_pixel.mean()))
    print(tabulate(rows, headers=(codec.item, "bytes", "bits a byte", "bits a pixel"), floatfmt=".4f"))
    for name, why in left_out.items():
        print(f"left out: {printable(name)}: {why}")
    if left_out:
        print(f"{len(left_out)} of {len(found)} left out, and not in the mean")
    too_long.finish(left_out, len(found), FLAGS.allow_too_long)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures or clips to score: a folder of files, or of prepared data.")
    flags.DEFINE_integer("num", None, "At most so many of them.", lower_bound=1)
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    flags.DEFINE_bool("allow_too_long", False, "Status 0 although pictures were left out as too long.")
    cli.run(main, required=("workdir", "images"))
