"""Trains a language model on prepared chunks, or resumes the run in the workdir.

python -m jpeglm.train --config=configs/jpeglm_demo.py --config.data.path=DIR --workdir=WORKDIR

DIR is what `jpeglm.prepare` wrote. WORKDIR receives config, tokenizer, checkpoints and metrics (metrics.jsonl and
TensorBoard). Every key of a config is listed with its default in jpeglm/core/config.py or in the file of its model;
--config.KEY=VALUE changes one, as in --config.optim.lr=1e-4. With several hosts, run the same command on each (see
jpeglm/core/distributed.py). --dry_run tries everything once and prints what the run will need and whether it can
start.
"""

from absl import flags
from etils import epath

from jpeglm.core import cli, files
from jpeglm.core import config as config_lib
from jpeglm.train import loop, preemption, rehearsal

FLAGS = flags.FLAGS


def main() -> None:
    """The command."""
    workdir = epath.Path(FLAGS.workdir)
    config_lib.check(FLAGS.config)
    files.check_store(workdir)
    with preemption.leaving_at_once():
        if FLAGS.dry_run:
            rehearsal.rehearse(FLAGS.config, workdir)
        else:
            loop.train(FLAGS.config, workdir)


if __name__ == "__main__":
    cli.define_config()
    flags.DEFINE_string("workdir", None, "Folder of the run; a run in it is resumed.")
    flags.DEFINE_bool("dry_run", False, "Try everything once in a temporary folder; prints go or no.")
    cli.run(main, required=("config", "workdir"))
