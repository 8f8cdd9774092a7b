"""Compiles a run for a TPU slice, on any machine, and reports whether it fits and its least time.

python -m jpeglm.aot --config=configs/jpeglm_7b.py --topology=v5p:4x4x4

compiles the step that `jpeglm.train` would run on that TPU slice. No TPU is needed: libtpu, the TPU's own compiler,
works anywhere (`pip install -r requirements-tpu.txt`). --what=sample compiles prefill and decoding instead. --search
tries each microbatch that divides the global batch, and each remat policy, and names the fastest that fits; the
config's own values of both are ignored. --slices=2 compiles for two such slices, and counts the traffic between them.
For GPUs, as in --topology=h100:32, nothing can be compiled without the card, so the bytes are estimated from the
shapes. Every key of the config is a flag, as in `jpeglm.train`. No data is needed.
"""

import json

import jax
from absl import flags
from etils import epath
from tabulate import tabulate

from jpeglm.aot.report import sample_report, train_report
from jpeglm.aot.roofline import compute_seconds
from jpeglm.aot.search import search_slots, search_train, try_slots, try_train
from jpeglm.aot.target import describe
from jpeglm.core import cli, distributed
from jpeglm.core import config as config_lib
from jpeglm.core.errors import InputError, writing

FLAGS = flags.FLAGS


def main() -> None:
    """Compiles what the flags ask for and prints the report.

    Raises:
      InputError: the flags do not fit together, or the program does not fit the memory.
    """
    config = FLAGS.config
    config_lib.check(config, any_accumulate=FLAGS.search)
    distributed.compute_in_float32()
    jax.config.update("jax_platforms", "cpu")  # nothing runs on a device, so none is needed
    jax.config.update("jax_enable_compilation_cache", False)  # it cannot load programs for absent devices
    target = describe(FLAGS.topology, FLAGS.slices, FLAGS.dcn_bandwidth)
    if FLAGS.what == "sample" and not target.devices:
        raise InputError("--what=sample is compiled, and for GPUs no compiler works without the card")
    if FLAGS.what == "train":
        compute_seconds(config, target)  # refuses a format that the chip lacks, before anything is compiled
        config, cost, largest = search_train(config, target) if FLAGS.search else try_train(config, target)
        rows, facts = train_report(config, target, cost)
        facts["largest_microbatch"] = largest
    else:
        found = search_slots(config, target) if FLAGS.search else try_slots(config, target, FLAGS.slots)
        rows, facts = sample_report(config, target, *found, filled=FLAGS.filled)
    if not target.devices:
        rows.insert(0, ("ESTIMATE", "from the shapes alone (jpeglm/aot/estimate.py), not compiled"))
    print(tabulate(rows, tablefmt="plain"))
    if FLAGS.json:
        with writing(FLAGS.json):
            epath.Path(FLAGS.json).write_text(json.dumps(facts, indent=1))
    if facts["peak_bytes"] > facts["memory_bytes"]:
        raise InputError("does not fit: more chips, a larger optim.accumulate, or model.remat=full")


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("topology", None, "CHIP:SHAPE of a TPU slice, as v5p:4x4x4, or CHIP:NUMBER of GPUs.")
    flags.DEFINE_integer("slices", 1, "Of that shape each; mesh.data runs across them.", lower_bound=1)
    flags.DEFINE_float(
        "dcn_bandwidth", None, "GB/s that a chip sends to other slices; v5e 3.125, v5p 6.25, v6e 12.5 if not given."
    )
    flags.DEFINE_enum("what", "train", ["train", "sample"], "Which program.")
    flags.DEFINE_integer("slots", 8, "Sequences sampled at once.", lower_bound=1)
    flags.DEFINE_integer("filled", None, "Mean tokens of a sequence while sampling; data.seq_len if not given.", 1)
    flags.DEFINE_bool("search", False, "Find the fastest microbatch and remat policy that fit, or the most slots.")
    flags.DEFINE_string("json", None, "File for the numbers.")
    cli.run(main, required=("config", "topology"))
