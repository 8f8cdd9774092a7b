"""Prints the Fréchet distance between two sets of pictures, such as FID.

    python -m jpeglm.fid --real=originals --fake=samples --mode=clean --weights=pt_inception-2015-12-05-6726825d.pth

The only line on standard output is the number; everything else goes to standard error. --real and --fake are folders,
zip or tar files, ArrayRecords, arrays (.npz, .npy, FILE.npz:NAME), the output folder of `jpeglm.prepare` (its held-out
pictures) or of `jpeglm.sample` (its samples), or statistics from --save_stats:

    python -m jpeglm.fid --real=originals --save_stats=originals.npz --mode=... --weights=...
    python -m jpeglm.fid --real=originals.npz --fake=samples --mode=... --weights=...

Without --weights it is the Fréchet distance of EfficientNet-Lite0 features (FD-EfficientNet-Lite0), which needs no
download but is not FID: never compare one with the other. If a job has several processes, each reads a part of the
pictures.
"""

import dataclasses

from absl import flags

from jpeglm.core import cli, distributed
from jpeglm.core.config import BACKGROUNDS, DEFAULT_BACKGROUND
from jpeglm.fid import compare, extractors

FLAGS = flags.FLAGS


def main() -> None:
    """Checks the flags, compares the two sets and prints the distance."""
    values = FLAGS.flag_values_dict()
    options = compare.Options(**{field.name: values[field.name] for field in dataclasses.fields(compare.Options)})
    compare.check(options)
    with cli.only_standard_error():  # only the number goes to standard output, whatever libraries print
        distributed.start(FLAGS.platform)
        result = compare.run(options)
    if result:
        print(f"{result['value']:.6f}")


if __name__ == "__main__":
    flags.DEFINE_string(
        "real", None, "The reference pictures: a folder, an archive, arrays, prepared data, statistics."
    )
    flags.DEFINE_string("fake", None, "The pictures to judge: likewise.")
    flags.DEFINE_enum(
        "extractor",
        None,
        list(extractors.PICTURES),
        f"Network of the features: with --weights {extractors.FID}, else {extractors.DEFAULT}, if not given.",
    )
    flags.DEFINE_enum(
        "mode", None, extractors.modes(), "How pictures are resized and normalised for the 2015 Inception."
    )
    flags.DEFINE_string("weights", None, "Weights of the 2015 Inception: its .pth, or what jpeglm.convert made of it.")
    flags.DEFINE_string("save_stats", None, "File for the statistics of --real, to compare with again (.npz).")
    flags.DEFINE_string("json", None, "File to write the numbers and what they were made with to.")
    flags.DEFINE_bool("spatial", False, "Also sFID, of the network's spatial features.")
    flags.DEFINE_bool("kid", False, "Also the kernel distance, over 100 subsets of 1,000 pictures.")
    flags.DEFINE_integer("bootstrap", 0, "Also an interval, by resampling the pictures so many times.", lower_bound=0)
    flags.DEFINE_integer("seed", 2020, "Of --kid and --bootstrap.", 0, 2**32 - 1)
    flags.DEFINE_bool("allow_unreadable", False, "Leave out pictures that cannot be used, instead of ending.")
    flags.DEFINE_enum(
        "background",
        DEFAULT_BACKGROUND,
        list(BACKGROUNDS),
        "What transparent pictures are put over; `refuse` takes none. The same default as of jpeglm.prepare.",
    )
    flags.DEFINE_integer("batch_size", None, "Pictures computed at once; chosen by the device if not given.", 1)
    flags.DEFINE_string("platform", "", "cpu, gpu or tpu; what JAX finds if not given.")
    cli.run(main)
