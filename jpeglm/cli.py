"""What every command shares: flag parsing, one-line errors, exit statuses.

Exit status 0: done. 2: bad input that the user can mend, one line on standard error. 75: stopped on request,
start me again. 1: anything unexpected, with its traceback.
"""

import logging as std_logging
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from absl import app, flags, logging

from jpeglm.errors import InputError

EXIT_BAD_INPUT = 2
PACKAGE = Path(__file__).parent


def _fail(message: object) -> None:
    line = " ".join(str(message).split())
    print(f"{_program()}: error: {line}", file=sys.stderr)
    sys.exit(EXIT_BAD_INPUT)


def _is_worth_reading(record: std_logging.LogRecord) -> bool:
    # Orbax, Grain and JAX tell their inner workings at INFO: some forty lines a checkpoint.
    return record.levelno > std_logging.INFO or Path(record.pathname).is_relative_to(PACKAGE)


def _program() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return f"python -m {spec.name}" if spec else sys.argv[0]


def _parse(argv: Sequence[str]) -> list[str]:
    # config_flags raises KeyError/AttributeError for an unknown key and ValueError/TypeError for a wrong value;
    # a config file that does not exist or does not import raises its own error. Each is the user's to mend.
    try:
        return app.parse_flags_with_usage(argv) if _asks_for_help(argv) else flags.FLAGS(argv)
    except (flags.Error, InputError, AttributeError, KeyError, TypeError, ValueError, OSError) as error:
        _fail(error.args[0] if isinstance(error, KeyError) and error.args else error)
        raise  # unreachable: _fail exits


def _asks_for_help(argv: Sequence[str]) -> bool:
    return any(arg.lstrip("-") in ("help", "helpshort", "helpfull") for arg in argv[1:] if arg.startswith("-"))


def run(main: Callable[..., None], positional: Sequence[str] = ()) -> None:
    """Parses the flags and runs `main`; `InputError` becomes one line and exit status 2.

    Args:
      main: the command.
      positional: names of the arguments that are not flags; each must be given and is passed to `main`.
    """

    def wrapped(argv: Sequence[str]) -> None:
        given = argv[1:]
        if len(given) > len(positional):
            _fail(f"unexpected argument {given[len(positional)]!r}; flags are written --name=value")
        if len(given) < len(positional):
            _fail(f"missing argument {positional[len(given)]}")
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_is_worth_reading)
        try:
            main(*given)
        except InputError as error:
            _fail(error)

    app.run(wrapped, flags_parser=_parse)
