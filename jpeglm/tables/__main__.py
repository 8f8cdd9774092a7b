r"""Completes held-out pictures or clips with a model and with controls, and measures their distance to real ones.

    python -m jpeglm.tables --config=configs/eval/demo.py \
        --config.workdir=WORKDIR --config.data=DATA --config.out=OUT

Prints the table; writes OUT/table.md, table.csv, table.json and report.html. Finished cells are cached in OUT/cells:
an interrupted table continues, and after a change of settings only the affected cells are made again.
"""

import shlex
import sys
from pathlib import Path

from jpeglm.core import cli, distributed
from jpeglm.core.files import owned
from jpeglm.tables import make, report, text


def main() -> None:
    """Makes the table of the config, writes its files and prints it."""
    config = _CONFIG.value
    make.check(config)
    distributed.start(config.platform)
    distributed.refuse_several("jpeglm.tables")
    out = Path(config.out)
    with owned(out):
        table = make.make(config)
        facts = report.facts(config, shlex.join(["python", "-m", "jpeglm.tables", *sys.argv[1:]]))
        text.write(table, out, facts)
        report.write(table, out / "report.html", facts)
    sys.stderr.flush()
    print(text.markdown(table))
    print(f"Report: {(out / 'report.html').resolve()}")


if __name__ == "__main__":
    _CONFIG = cli.define_config("The table's config file; single keys as --config.KEY=VALUE.")
    cli.run(main, required=("config",))
