"""Bits a byte and a pixel of files under a trained run's model.

python -m jpeglm.score --workdir=DIR --images=PATH [--compare]

PATH is a folder of pictures, or one that `jpeglm.prepare` wrote (then its held-out ones are taken). Each picture is
encoded canonically and scored alone, between BOS and EOS. It prints a table of the pictures, then their means. With
--compare it prints the model's ideal code length beside the sizes that other programs compress the same files to.
Pictures with more tokens than the run's data.seq_len are left out and named in the last lines; the command then exits
with status 2, unless --allow_too_long is given.
"""

from absl import flags
from etils import epath

from jpeglm.core import cli, distributed
from jpeglm.core.registry import CODECS
from jpeglm.core.workdir import read_config
from jpeglm.data import documents
from jpeglm.sample import too_long
from jpeglm.sample.scoring import Scorer
from jpeglm.score import compressors
from jpeglm.score.table import print_comparison, print_table

FLAGS = flags.FLAGS


def main() -> None:
    distributed.start()
    distributed.refuse_several("jpeglm.score")
    workdir = epath.Path(FLAGS.workdir)
    config = read_config(workdir)
    codec = CODECS.of(config)
    others = compressors.for_codec(codec) if FLAGS.compare else {}
    scorer = Scorer.load(workdir, FLAGS.step)
    found = documents.read(FLAGS.images, codec, FLAGS.num, config.data.background)
    left_out = scorer.too_long(found)
    kept = too_long.leave_out(found, left_out)
    if FLAGS.compare:
        print_comparison(scorer, codec, kept, left_out, others)
    else:
        print_table(scorer, codec, kept, left_out)
    too_long.finish(left_out, len(found), FLAGS.allow_too_long)


if __name__ == "__main__":
    flags.DEFINE_string("workdir", None, "Folder of the trained run.")
    flags.DEFINE_string("images", None, "Pictures or clips to score: a folder of files, or of prepared data.")
    flags.DEFINE_integer("num", None, "The most files to score.", lower_bound=1)
    flags.DEFINE_bool("compare", False, "Compare with xz, zstd and, for JPEG, cjxl, which must be installed.")
    flags.DEFINE_integer("step", None, "Checkpoint to use; the last one if not given.")
    flags.DEFINE_bool("allow_too_long", False, "Exit with status 0 even if too long pictures were left out.")
    cli.run(main, required=("workdir", "images"))
