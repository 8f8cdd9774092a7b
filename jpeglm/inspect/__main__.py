"""Prints what is in prepared data: `python -m jpeglm.inspect DIR`."""

from absl import flags

from jpeglm.core import cli
from jpeglm.inspect.prepared import print_tables

FLAGS = flags.FLAGS


def main(folder: str) -> None:
    """Prints the tables of the prepared data in `folder`."""
    print_tables(folder, FLAGS.merges)


if __name__ == "__main__":
    flags.DEFINE_integer("merges", 10, "How many of the longest merges to show.", 0)
    cli.run(main, positional=("DIR",))
