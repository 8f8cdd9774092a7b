"""Pictures or clips to tokenizer, packed shards and manifest.

    python -m jpeglm.prepare --config=configs/jpeglm_demo.py --source=embedded:mnist --out=runs/mnist

`--source` is a folder of pictures (searched through all its subfolders), a zip or tar file, ArrayRecords of picture
files, an array in a .npz or .npy, `embedded:mnist`, or `tfds:NAME[:SPLIT]`, a dataset that TensorFlow Datasets has
prepared in TFDS_DATA_DIR as array_record. With the codec avc, the files are clips (mp4, mov, mkv, webm, avi, gif,
animated webp and png), and a folder of still pictures is one clip. What cannot be used is counted and named in
DIR/refused.jsonl, and what was not looked for in DIR/passed_over.jsonl. A run that was killed goes on where it stood
when it is started again with the same flags; the result does not depend on `--workers` or on kills.
"""

from absl import flags
from tabulate import tabulate

from jpeglm.core import cli
from jpeglm.core.config import BACKGROUNDS, DEFAULT_BACKGROUND
from jpeglm.core.registry import CODECS
from jpeglm.prepare import plan
from jpeglm.prepare.verify import verify


def main() -> None:
    if _BACKGROUND.value:
        _CONFIG.value.data.background = _BACKGROUND.value
    manifest = plan.prepare(_CONFIG.value, _SOURCE.value, _OUT.value, _TOKENIZER.value, _WORKERS.value)
    if _VERIFY.value:
        verify(_OUT.value, _WORKERS.value)
    counts = manifest["counts"]
    refused = ", ".join(f"{count} {reason}" for reason, count in counts["refused"].items())
    items = f"{CODECS.of(_CONFIG.value).item}s"
    print(f"{counts['kept']} of {counts['seen']} {items} kept; refused: {refused or 'none'}")
    if passed_over := counts.get("passed_over"):
        found = ", ".join(f"{count} {kind}" for kind, count in passed_over.items())
        print(f"passed over, as they are no {items}: {found}; named in {_OUT.value}/{plan.PASSED_OVER}")
    rows = [
        [name, split["documents"], split["bytes"], split["tokens"], split["chunks"], len(split["shards"])]
        for name, split in manifest["splits"].items()
    ]
    print(tabulate(rows, headers=["split", "documents", "bytes", "tokens", "chunks", "shards"], intfmt=","))
    print(f"{_OUT.value}: {'verified' if _VERIFY.value else 'prepared'}")


if __name__ == "__main__":
    _CONFIG = cli.define_config()
    _SOURCE = flags.DEFINE_string(
        "source", None, "A folder of pictures or clips, an archive, arrays, embedded:mnist, or tfds:NAME[:SPLIT]."
    )
    _OUT = flags.DEFINE_string("out", None, "The folder to make.")
    _TOKENIZER = flags.DEFINE_string("tokenizer", None, "Use this tokenizer.json instead of learning one.")
    _VERIFY = flags.DEFINE_bool("verify", False, "Afterwards read everything again and compare it with the manifest.")
    _BACKGROUND = flags.DEFINE_enum(
        "background",
        None,
        list(BACKGROUNDS),
        f"What transparent pictures are put over, or refuse; config.data.background ({DEFAULT_BACKGROUND}) "
        "if not given.",
    )
    _WORKERS = flags.DEFINE_integer(
        "workers", None, "Processes; all cores by default. The result is the same.", 1, 1024
    )
    cli.run(main, required=("config", "source", "out"))
