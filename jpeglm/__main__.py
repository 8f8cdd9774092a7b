"""Lists the commands: `python -m jpeglm`."""

import ast
import sys
from pathlib import Path

from tabulate import tabulate


def commands() -> dict[str, str]:
    """What each command does, by name: the first line of its file."""
    found = {}
    for path in sorted(Path(__file__).parent.glob("*/__main__.py")):
        docstring = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert docstring  # --help shows it
        found[path.parent.name] = docstring.splitlines()[0]
    return found


def main(arguments: list[str]) -> int:
    """Prints the list; if a command is given as an argument, one line on standard error and status 2."""
    found = commands()
    if set(arguments) - {"--help", "-h", "--helpfull", "--helpshort"}:
        name = arguments[0]
        wanted = f"python -m jpeglm.{name}" if name in found else "python -m jpeglm.COMMAND"
        known = "" if name in found else f"; COMMAND is one of {', '.join(found)}"
        print(f"python -m jpeglm: error: {name!r}: commands are written {wanted}{known}", file=sys.stderr)
        return 2
    print("Language models on the bytes of compressed files. The commands:\n")
    print(tabulate([(f"python -m jpeglm.{name}", what) for name, what in found.items()], tablefmt="plain"))
    print("\npython -m jpeglm.COMMAND --help explains a command; README.md says where to start.")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
