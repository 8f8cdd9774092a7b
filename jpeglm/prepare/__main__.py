"""Pictures or clips to tokenizer, packed shards and manifest.

    python -m jpeglm.prepare --config=configs/jpeglm_demo.py --source=embedded:mnist --out=runs/mnist

`--source` is a folder of pictures (searched through all its subfolders), a zip or tar file, ArrayRecords of picture
files, an array in a .npz or .npy, `embedded:mnist`, or `tfds:NAME[:SPLIT]`, a dataset that TensorFlow Datasets has
prepared in TFDS_DATA_DIR as array_record. With the codec avc, the files are clips (mp4, mov, mkv, webm, avi, gif,
animated webp and png), and a folder of still pictures is one clip. Items that cannot be used are counted and named in
DIR/refused.jsonl, skipped files in DIR/passed_over.jsonl. A killed run continues where it stopped if it is started
again with the same flags; the result does not depend on `--workers` or on kills.
"""

from absl import flags

from jpeglm.core import cli
from jpeglm.core.config import BACKGROUNDS, DEFAULT_BACKGROUND
from jpeglm.prepare import plan
from jpeglm.prepare.summary import print_summary
from jpeglm.prepare.verify import verify

FLAGS = flags.FLAGS


def main() -> None:
    if FLAGS.background:
        FLAGS.config.data.background = FLAGS.background
    manifest = plan.prepare(FLAGS.config, FLAGS.source, FLAGS.out, FLAGS.tokenizer, FLAGS.workers)
    if FLAGS.verify:
        verify(FLAGS.out, FLAGS.workers)
    print_summary(manifest, FLAGS.out)
    print(f"{FLAGS.out}: {'verified' if FLAGS.verify else 'prepared'}")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string(
        "source", None, "A folder of pictures or clips, an archive, arrays, embedded:mnist, or tfds:NAME[:SPLIT]."
    )
    flags.DEFINE_string("out", None, "The folder to make.")
    flags.DEFINE_string("tokenizer", None, "Use this tokenizer.json instead of learning one.")
    flags.DEFINE_bool("verify", False, "Afterwards read everything again and compare it with the manifest.")
    flags.DEFINE_enum(
        "background",
        None,
        list(BACKGROUNDS),
        f"What transparent pictures are put over, or refuse; config.data.background ({DEFAULT_BACKGROUND}) "
        "if not given.",
    )
    flags.DEFINE_integer("workers", None, "Processes; all cores by default. The result is the same.", 1, 1024)
    cli.run(main, required=("config", "source", "out"))
