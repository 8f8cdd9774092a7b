r"""Completes held-out pictures or clips with a model and with controls, and measures their distance to real ones.

    python -m jpeglm.tables --config=configs/eval/demo.py \
        --config.workdir=WORKDIR --config.data=DATA --config.out=OUT

Prints the table; writes OUT/table.md, table.csv, table.json and report.html. Finished cells are cached in OUT/cells:
an interrupted table continues, and after a change of settings only the affected cells are made again.

Several processes share the cells: started by srun or mpirun, on all workers of a TPU slice, or each with --part=K/N.
None waits for another; the last one to finish makes the table.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from jpeglm.core import cli, parts
from jpeglm.tables import make, report, text


def main() -> None:
    """Makes the table of the config, writes its files and prints it."""
    config = _CONFIG.value
    make.check(config)
    part = parts.start(_PART.value, config.platform)
    out = Path(config.out)
    with parts.owned(out, part):
        table = make.make(config, part=part)
        if table is None:
            print(f"Part {part} is done, others are not yet: {out.resolve()}")
            return
        facts = report.facts(config, shlex.join(["python", "-m", "jpeglm.tables", *sys.argv[1:]]))
        with parts.serial(out, part):
            text.write(table, out, facts)
            report.write(table, out / "report.html", facts)
    sys.stderr.flush()
    print(text.markdown(table))
    print(f"Report: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    _CONFIG = cli.define_config("The table's config file; single keys as --config.KEY=VALUE.")
    _PART = flags.DEFINE_string("part", None, "K/N: make part K of N, from 1/N; the launcher says it if not given.")
    cli.run(main, required=("config",))
